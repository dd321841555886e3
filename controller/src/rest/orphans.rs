//! What is in pools and belongs to nothing, and the file systems on which pools could be: as nodes report it.

use std::sync::Arc;

use axum::extract::State;
use stor_api::objects::{Mount, Orphan, OrphanRemoval, Page};
use stor_api::problem::Problem;
use stor_proto::satellite::{RemoveOrphans, from_controller};

use super::answer::{Answer, cut, done, plan};
use super::extract::{At, Body, List, Manner, Params};
use super::problem::Failure;
use crate::catalogue::load;
use crate::cluster::Cluster;
use crate::show;

/// Names in one request.
const MOST: usize = 10_000;

/// File systems of the nodes that are online.
#[utoipa::path(get, path = "/api/v1/mounts", operation_id = "nodes_mounts", tag = "nodes", params(List),
    responses((status = 200, body = Page<Mount>), (status = "default", body = Problem)))]
pub(super) async fn mounts(State(cluster): State<Arc<Cluster>>, Params(list): Params<List>) -> Answer {
    let seen = seen(&cluster, &list).await?;
    let mounts = show::mounts(&seen, list.node.as_deref());
    Ok(cut(mounts, &list, |mount: &Mount| {
        format!("{} {}", mount.node, mount.path)
    }))
}

/// What is in the pools of nodes that are online and belongs to no replica or snapshot.
#[utoipa::path(get, path = "/api/v1/orphans", operation_id = "pools_orphans", tag = "pools", params(List),
    responses((status = 200, body = Page<Orphan>), (status = "default", body = Problem)))]
pub(super) async fn list(State(cluster): State<Arc<Cluster>>, Params(list): Params<List>) -> Answer {
    let seen = seen(&cluster, &list).await?;
    let orphans = show::orphans(&seen, list.node.as_deref());
    let key = |orphan: &Orphan| format!("{} {} {}", orphan.node, orphan.pool, orphan.name);
    Ok(cut(orphans, &list, key))
}

async fn seen(cluster: &Cluster, list: &List) -> Result<crate::observed::Observations, Failure> {
    let mut look = cluster.look().await?;
    if let Some(node) = &list.node
        && load::node(look.rows(), node).await?.is_none()
    {
        return Err(Failure::not_found(format!("node {node}")));
    }
    Ok(look.end())
}

/// Have a node remove what belongs to nothing. It looks at each again and leaves what belongs to something; done when it
/// is not reported any more.
#[utoipa::path(post, path = "/api/v1/pools/{pool}/nodes/{node}/remove-orphans", operation_id = "pools_remove_orphans",
    tag = "pools", params(("pool" = String, Path), ("node" = String, Path), Manner), request_body = OrphanRemoval,
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn remove(
    State(cluster): State<Arc<Cluster>>,
    At((pool, node)): At<(String, String)>,
    Params(manner): Params<Manner>,
    Body(removal): Body<OrphanRemoval>,
) -> Answer {
    if removal.names.is_empty() || removal.names.len() > MOST {
        return Err(Failure::invalid(format!(
            "give 1 to {MOST} names of what is to be removed"
        )));
    }
    let mut look = cluster.look().await?;
    if load::pool(look.rows(), &pool, &node).await?.is_none() {
        return Err(Failure::not_found(format!("pool {pool} on {node}")));
    }
    let revision = load::node(look.rows(), &node).await?.map_or(0, |row| row.desired);
    let history = load::history(look.rows()).await?;
    drop(look);
    if manner.dry_run {
        let steps = removal
            .names
            .iter()
            .map(|name| format!("remove {name} of pool {pool} on {node}"));
        return Ok(plan(steps.collect(), Vec::new()));
    }
    let message = RemoveOrphans {
        pool,
        names: removal.names,
        revision,
        history: history.map(|history| history.id.to_string()).unwrap_or_default(),
    };
    if cluster
        .sessions
        .tell(&node, from_controller::Kind::RemoveOrphans(message))
    {
        return Ok(done());
    }
    Err(
        Failure::conflict("offline", format!("node {node} is not connected"))
            .remedy("start its satellite, then ask again"),
    )
}
