//! Nodes that are emptied: drained while they are there, replaced when they are gone.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use stor_api::objects::Node;
use stor_api::problem::Problem;

use super::answer::{Answer, plan};
use super::extract::{At, Manner, Params};
use super::nodes::show_node;
use super::problem::Failure;
use crate::catalogue::command::Leaving;
use crate::catalogue::snapshot::{self, Which};
use crate::catalogue::{Action, load};
use crate::cluster::Cluster;
use crate::reconcile::{self, emptying};

/// Empty a node: nothing new is placed there, each of its replicas gets another in its place and goes when that one is
/// in sync. With `dry_run`: what is left to be done, also of a drain that is under way.
#[utoipa::path(post, path = "/api/v1/nodes/{node}/drain", operation_id = "nodes_drain", tag = "nodes",
    params(("node" = String, Path), Manner),
    responses((status = 202, body = Node, description = "Empty when no volume has a replica there any more"),
        (status = "default", body = Problem)))]
pub(super) async fn drain(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    Params(manner): Params<Manner>,
) -> Answer {
    empty(&cluster, name, manner, Leaving::Drain).await
}

/// Declare a node that is not connected gone for good: its replicas are replaced at once. If it comes back, it removes
/// what is not wanted any more.
#[utoipa::path(post, path = "/api/v1/nodes/{node}/lost", operation_id = "nodes_lost", tag = "nodes",
    params(("node" = String, Path), Manner),
    responses((status = 202, body = Node), (status = "default", body = Problem)))]
pub(super) async fn lost(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    Params(manner): Params<Manner>,
) -> Answer {
    if cluster.look().await?.end().online(&name) {
        let title = format!("node {name} is connected");
        return Err(Failure::conflict("state", title)
            .because("Only a node that is gone is lost.")
            .remedy(format!("move its replicas away: storctl node drain {name}")));
    }
    empty(&cluster, name, manner, Leaving::Lost).await
}

async fn empty(cluster: &Cluster, name: String, manner: Manner, how: Leaving) -> Answer {
    if manner.dry_run {
        let mut look = cluster.look().await?;
        let found = load::node(look.rows(), &name).await?;
        let node = found.ok_or_else(|| Failure::not_found(format!("node {name}")))?;
        let lost = how == Leaving::Lost;
        let empty = [emptying::Empty {
            node: node.name,
            lost,
        }];
        let steps = reconcile::plan_emptying(&mut look, &empty).await?;
        let mut steps: Vec<String> = steps.iter().map(told).collect();
        let held = snapshot::snapshots(look.rows(), Which::At(&name, None)).await?;
        steps.extend(held.iter().map(|one| {
            let title = one.title();
            format!(
                "remove the copy of snapshot {title} on {name} when every replica of its volume has its own"
            )
        }));
        return Ok(plan(steps, Vec::new()));
    }
    let action = Action::EmptyNode {
        name: name.clone(),
        leaving: Some(how),
    };
    cluster.propose(action).await??;
    show_node(cluster, &name, StatusCode::ACCEPTED).await
}

fn told(step: &emptying::Step) -> String {
    let emptying::Step {
        volume, node, fate, ..
    } = step;
    match fate {
        emptying::Fate::Replace(_, to, pool) => {
            format!("move the replica of volume {volume} from {node} to {to} (pool {pool})")
        }
        emptying::Fate::UnderWay(what) => format!("go on with volume {volume}: {what}"),
        emptying::Fate::Stuck(why) => {
            format!("leave the replica of volume {volume} on {node}, which can't be moved: {why}")
        }
    }
}

/// Let a node hold replicas again. What moved away stays where it is; what is under way is completed.
#[utoipa::path(post, path = "/api/v1/nodes/{node}/undrain", operation_id = "nodes_undrain", tag = "nodes",
    params(("node" = String, Path), Manner),
    responses((status = 200, body = Node), (status = "default", body = Problem)))]
pub(super) async fn undrain(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    Params(manner): Params<Manner>,
) -> Answer {
    let action = Action::EmptyNode {
        name: name.clone(),
        leaving: None,
    };
    let step = format!("let node {name} hold replicas again");
    super::answer::change(&cluster, manner, action, step, |_| {
        show_node(&cluster, &name, StatusCode::OK)
    })
    .await
}
