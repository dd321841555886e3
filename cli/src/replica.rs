//! `storctl replica …`: copies of a volume that come, go and move while it is used.

use clap::{Args, Subcommand};
use stor_api::client::{Client, Filter, Wish};
use stor_api::objects::{Replica, ReplicaSpec, ReplicaState, Volume};

use crate::args;
use crate::completion;
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::output::confirm;
use crate::volume::{replica_table, volume_and_replicas};
use crate::wait::{self, Look};

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum ReplicaVerb {
    /// Replicas of one volume or of all, with how far they are
    List {
        /// Only of this volume
        #[arg(add = completion::volumes(), value_parser = args::existing)]
        volume: Option<String>,
        /// Only those on this node
        #[arg(long, add = completion::nodes(), value_parser = args::existing)]
        node: Option<String>,
    },
    /// Give a volume one more replica; it may be in use
    Add {
        /// The volume
        #[arg(add = completion::volumes(), value_parser = args::existing)]
        volume: String,
        /// On this node [default: chosen by the volume's rules]
        #[arg(long, add = completion::nodes(), value_parser = args::existing)]
        node: Option<String>,
        /// In this pool [default: the volume's]
        #[arg(long, add = completion::pools(), value_parser = args::existing)]
        pool: Option<String>,
    },
    /// Take a replica away; it goes when nothing is lost by it
    Remove {
        /// The volume
        #[arg(add = completion::volumes(), value_parser = args::existing)]
        volume: String,
        #[command(flatten)]
        which: Which,
        /// Also when no other replica in sync can be reached; what only this one has is lost
        #[arg(long)]
        force: bool,
    },
    /// Move a replica to another node or pool: a new one is made, and the old one goes when that is in sync
    Move {
        /// The volume
        #[arg(add = completion::volumes(), value_parser = args::existing)]
        volume: String,
        /// Node of the replica that moves
        #[arg(long, value_name = "NODE", add = completion::nodes(), value_parser = args::existing)]
        from: String,
        /// Node it moves to [default: chosen by the volume's rules]
        #[arg(long, value_name = "NODE", add = completion::nodes(), value_parser = args::existing)]
        to: Option<String>,
        /// Pool it moves to [default: the volume's]
        #[arg(long, add = completion::pools(), value_parser = args::existing)]
        pool: Option<String>,
    },
}

/// One replica of a volume.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// The one on this node
    #[arg(long, add = completion::nodes(), value_parser = args::existing)]
    node: Option<String>,
    /// The one of this number, as `storctl volume describe` shows it
    #[arg(long)]
    id: Option<u32>,
}

/// Runs a verb.
pub(crate) async fn run(context: &Context, verb: ReplicaVerb) -> Result<(), Failure> {
    match verb {
        ReplicaVerb::List { volume, node } => {
            let filter = Filter { node, volume };
            let replicas = context.client.replicas(&filter).await?;
            context
                .out
                .list(replicas, "no replicas", |all| replica_table(all, true))
        }
        ReplicaVerb::Add { volume, node, pool } => {
            let spec = ReplicaSpec {
                node,
                pool,
                replaces: None,
            };
            place(context, &volume, &spec).await
        }
        ReplicaVerb::Move {
            volume,
            from,
            to,
            pool,
        } => {
            let node = Some(from);
            let old = find(&context.client, &volume, &Which { node, id: None }).await?;
            let spec = ReplicaSpec {
                node: to,
                pool,
                replaces: Some(old.id),
            };
            place(context, &volume, &spec).await
        }
        ReplicaVerb::Remove { volume, which, force } => remove(context, &volume, &which, force).await,
    }
}

/// The replica a person means.
async fn find(client: &Client, name: &str, which: &Which) -> Result<Replica, Failure> {
    let volume = client.volume(name).await?;
    let matches = |one: &&Replica| match (&which.node, which.id) {
        (Some(node), _) => one.node == *node,
        (None, Some(id)) => one.id == id,
        (None, None) => false,
    };
    let found: Vec<&Replica> = volume.replicas.iter().filter(matches).collect();
    match found[..] {
        [one] => Ok(one.clone()),
        [] => {
            let on: Vec<String> = volume
                .replicas
                .iter()
                .map(|one| format!("{} (id {})", one.node, one.id))
                .collect();
            Err(
                Failure::new(Exit::NotFound, format!("volume {name} has no such replica"))
                    .why(format!("it has replicas on {}", on.join(", "))),
            )
        }
        [..] => Err(
            Failure::new(Exit::Usage, format!("volume {name} has several replicas there"))
                .help("say which with --id; `storctl volume describe` shows the numbers"),
        ),
    }
}

async fn place(context: &Context, volume: &str, spec: &ReplicaSpec) -> Result<(), Failure> {
    let wish = Wish::CreateReplica { volume, spec };
    if context.planned(&wish).await? {
        return Ok(());
    }
    let before: Vec<u32> = context
        .client
        .volume(volume)
        .await?
        .replicas
        .iter()
        .map(|one| one.id)
        .collect();
    let answered = context.client.create_replica(volume, spec).await?;
    let new = answered
        .replicas
        .iter()
        .filter(|one| match spec.replaces {
            Some(_) => one.replaces == spec.replaces,
            None => !before.contains(&one.id),
        })
        .map(|one| one.id)
        .next();
    let (Some(new), false) = (new, context.no_wait) else {
        return context.out.object(&answered, volume_and_replicas);
    };
    let done = wait::until(context, &format!("volume {volume}"), || async {
        look_placed(&context.client, volume, new, spec.replaces).await
    })
    .await?;
    context.out.object(&done, volume_and_replicas)
}

/// Whether the new replica is in sync, and the one it replaces gone.
async fn look_placed(
    client: &Client,
    name: &str,
    new: u32,
    old: Option<u32>,
) -> Result<Look<Volume>, Failure> {
    let volume = client.volume(name).await?;
    let Some(one) = volume.replicas.iter().find(|one| one.id == new) else {
        return Err(Failure::new(
            Exit::Conflict,
            format!("the new replica of volume {name} was taken away"),
        ));
    };
    let gone = old.is_none_or(|old| volume.replicas.iter().all(|one| one.id != old));
    if one.in_sync && gone {
        return Ok(Look::Done(volume));
    }
    let (doing, percent) = doing(one);
    let doing = if one.in_sync {
        "the old replica is let go".to_owned()
    } else {
        doing
    };
    Ok(Look::Pending(doing, percent))
}

/// What a replica on its way waits for.
fn doing(one: &Replica) -> (String, Option<f64>) {
    let node = &one.node;
    match one.state {
        ReplicaState::Creating => (format!("making the replica on {node}"), None),
        ReplicaState::Syncing => (format!("copying to {node}"), one.resync_percent),
        ReplicaState::Stale => (format!("the replica on {node} waits for its copy"), None),
        _ if one.reason.is_empty() => (format!("replica on {node}"), None),
        _ => (format!("replica on {node}: {}", one.reason), None),
    }
}

async fn remove(context: &Context, name: &str, which: &Which, force: bool) -> Result<(), Failure> {
    let old = find(&context.client, name, which).await?;
    let wish = Wish::DeleteReplica {
        volume: name,
        replica: old.id,
        force,
    };
    if context.planned(&wish).await? {
        return Ok(());
    }
    if !context.yes {
        let question = format!(
            "Volume {name} loses its replica on {} and what is stored there.",
            old.node
        );
        let force = if force { " --force" } else { "" };
        confirm(
            &question,
            &format!("storctl replica remove {name} --id {}{force}", old.id),
        )?;
    }
    context.client.delete_replica(name, old.id, force).await?;
    let volume = if context.no_wait {
        context.client.volume(name).await?
    } else {
        wait::until(context, &format!("volume {name}"), || async {
            let volume = context.client.volume(name).await?;
            let there = volume.replicas.iter().any(|one| one.id == old.id);
            Ok(if there {
                Look::Pending(format!("the replica on {} is to go", old.node), None)
            } else {
                Look::Done(volume)
            })
        })
        .await?
    };
    context.out.object(&volume, volume_and_replicas)
}
