//! `storctl node drain`, `lost`: until nothing is left on the node.

use stor_api::client::{Filter, Wish};
use stor_api::objects::{Replica, Snapshot};

use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::output::confirm;
use crate::wait::{self, Look};

/// How a node is emptied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Drain,
    Lost,
}

pub(super) async fn empty(context: &Context, name: &str, how: How) -> Result<(), Failure> {
    let wish = match how {
        How::Drain => Wish::DrainNode { name },
        How::Lost => Wish::LoseNode { name },
    };
    if context.planned(&wish).await? {
        return Ok(());
    }
    if how == How::Lost && !context.yes {
        let question = format!(
            "Node {name} is declared lost: its replicas are made anew elsewhere, and removed there if it comes back."
        );
        confirm(&question, &format!("storctl node lost {name}"))?;
    }
    let node = match how {
        How::Drain => context.client.drain_node(name).await?,
        How::Lost => context.client.lose_node(name).await?,
    };
    if !context.no_wait {
        wait_empty(context, name, &wish).await?;
    }
    let word = match (how, context.no_wait) {
        (_, false) => "holds no replicas any more",
        (How::Drain, true) => "is being drained",
        (How::Lost, true) => "was declared lost",
    };
    context
        .out
        .object(&node, |node| format!("node {} {word}\n", node.name))
}

async fn wait_empty(context: &Context, name: &str, wish: &Wish<'_>) -> Result<(), Failure> {
    let done = wait::until(context, &format!("node {name}"), || async {
        let filter = Filter {
            node: Some(name.to_owned()),
            volume: None,
        };
        let left = context.client.replicas(&filter).await?;
        if !left.is_empty() {
            return Ok(Look::Pending(what_is_left(&left), None));
        }
        // The copies of snapshots follow their replicas; those of a node that is gone can't be removed there.
        let copies = match wish {
            Wish::LoseNode { .. } => Vec::new(),
            _ => context.client.snapshots(&filter).await?,
        };
        if copies.is_empty() {
            return Ok(Look::Done(()));
        }
        Ok(Look::Pending(copies_left(&copies), None))
    })
    .await;
    match done {
        Err(failure) if failure.exit == Exit::TimedOut => {
            let left = context.client.plan(wish).await?.steps;
            Err(failure.why(left.join("\n")).help(
                "the cluster goes on with it; the same command with --dry-run shows what is left, and what can't be done",
            ))
        }
        done => done,
    }
}

fn copies_left(left: &[Snapshot]) -> String {
    let names = left
        .iter()
        .take(5)
        .map(|one| format!("{}@{}", one.volume, one.name));
    let more = if left.len() > 5 { ", …" } else { "" };
    let word = if left.len() == 1 {
        "copy of a snapshot is"
    } else {
        "copies of snapshots are"
    };
    format!(
        "{} {word} left: {}{more}",
        left.len(),
        names.collect::<Vec<_>>().join(", ")
    )
}

fn what_is_left(left: &[Replica]) -> String {
    let mut volumes: Vec<&str> = left.iter().map(|one| one.volume.as_str()).collect();
    let all = volumes.len();
    volumes.truncate(5);
    let more = if all > volumes.len() { ", …" } else { "" };
    let word = if all == 1 { "replica is" } else { "replicas are" };
    format!("{all} {word} left: {}{more}", volumes.join(", "))
}
