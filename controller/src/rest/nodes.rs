//! Nodes and their disks.

use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use stor_api::name;
use stor_api::objects::{Disk, Node, NodeChange, NodeKind, NodeSpec, Page};
use stor_api::problem::Problem;

use super::answer::{Answer, change, created, cut, done, object, page};
use super::extract::{At, Body, IfMatch, List, Manner, Nothing, Params};
use super::problem::Failure;
use crate::catalogue::command::{self, NodeWish};
use crate::catalogue::{Action, load};
use crate::cluster::Cluster;
use crate::show;

/// All nodes, by name.
#[utoipa::path(get, path = "/api/v1/nodes", operation_id = "nodes_list", tag = "nodes", params(List),
    responses((status = 200, body = Page<Node>), (status = "default", body = Problem)))]
pub(super) async fn list(State(cluster): State<Arc<Cluster>>, Params(list): Params<List>) -> Answer {
    let mut look = cluster.look().await?;
    let rows = load::nodes_page(look.rows(), &list.after, list.limit() + 1).await?;
    let nodes = rows.iter().map(|row| show::node(row, &look.seen)).collect();
    Ok(page(nodes, &list, |node: &Node| node.name.clone()))
}

/// One node.
#[utoipa::path(get, path = "/api/v1/nodes/{node}", operation_id = "nodes_get", tag = "nodes", params(("node" = String, Path)),
    responses((status = 200, body = Node), (status = "default", body = Problem)))]
pub(super) async fn get(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    _: Params<Nothing>,
) -> Answer {
    show_node(&cluster, &name, StatusCode::OK).await
}

pub(super) async fn show_node(cluster: &Cluster, name: &str, status: StatusCode) -> Answer {
    let mut look = cluster.look().await?;
    let row = load::node(look.rows(), name)
        .await?
        .ok_or_else(|| Failure::not_found(format!("node {name}")))?;
    Ok(object(status, row.revision, &show::node(&row, &look.seen)))
}

/// Register a node.
#[utoipa::path(post, path = "/api/v1/nodes", operation_id = "nodes_create", tag = "nodes", params(Manner), request_body = NodeSpec,
    responses((status = 201, body = Node), (status = 200, body = Node, description = "It was registered already"),
        (status = "default", body = Problem)))]
pub(super) async fn create(
    State(cluster): State<Arc<Cluster>>,
    Params(manner): Params<Manner>,
    Body(spec): Body<NodeSpec>,
) -> Answer {
    name::check(name::Kind::Node, &spec.name).map_err(Failure::invalid)?;
    name::check_properties(&spec.properties).map_err(Failure::invalid)?;
    check_address(&spec.address)?;
    let wish = NodeWish {
        name: spec.name.clone(),
        address: spec.address,
        kind: match spec.kind {
            NodeKind::Storage => command::NodeKind::Storage,
            NodeKind::Diskless => command::NodeKind::Diskless,
        },
        properties: spec
            .properties
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .collect(),
    };
    let step = format!("register node {} at {}", wish.name, wish.address);
    change(&cluster, manner, Action::RegisterNode(wish), step, |outcome| {
        show_node(&cluster, &spec.name, created(&outcome))
    })
    .await
}

/// A host name or address, without a port: the satellite tells its ports itself.
fn check_address(address: &str) -> Result<(), Failure> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']' | '_' | '%');
    // Numbers and dots alone are an IPv4 address or a slip of the pen, never a host's name.
    let is_slip =
        address.chars().all(|c| c.is_ascii_digit() || c == '.') && address.parse::<Ipv4Addr>().is_err();
    if address.is_empty() || address.len() > 255 || !address.chars().all(allowed) || is_slip {
        return Err(Failure::invalid(format!(
            "{:?} is not an address",
            address.chars().take(80).collect::<String>()
        ))
        .remedy("give the host name or IP address under which the other nodes reach it"));
    }
    Ok(())
}

/// Change a node's properties.
#[utoipa::path(patch, path = "/api/v1/nodes/{node}", operation_id = "nodes_set", tag = "nodes", params(("node" = String, Path), Manner),
    request_body = NodeChange, responses((status = 200, body = Node), (status = "default", body = Problem)))]
pub(super) async fn set(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    Params(manner): Params<Manner>,
    IfMatch(expect): IfMatch,
    Body(wanted): Body<NodeChange>,
) -> Answer {
    name::check_properties(&wanted.properties).map_err(Failure::invalid)?;
    let step = format!("set {} properties of node {name}", wanted.properties.len());
    let action = Action::ChangeNode {
        name: name.clone(),
        expect,
        properties: wanted.properties,
    };
    change(&cluster, manner, action, step, |_| {
        show_node(&cluster, &name, StatusCode::OK)
    })
    .await
}

/// Forget a node that holds nothing; with `force` also its pools without replicas, and what it still has to remove of
/// deleted volumes.
#[utoipa::path(delete, path = "/api/v1/nodes/{node}", operation_id = "nodes_delete", tag = "nodes", params(("node" = String, Path), Manner),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn delete(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    Params(manner): Params<Manner>,
    IfMatch(expect): IfMatch,
) -> Answer {
    let step = format!("forget node {name}");
    // Force is for nodes that are gone. One that is there can do its work, and be asked about.
    let force = manner.force && !cluster.look().await?.end().online(&name);
    change(
        &cluster,
        manner,
        Action::DeleteNode {
            name: name.clone(),
            expect,
            force,
        },
        step,
        |_| async {
            cluster.sessions.close(&name);
            cluster.observed.forget(&name);
            Ok(done())
        },
    )
    .await
}

/// Block devices of the nodes that are online.
#[utoipa::path(get, path = "/api/v1/disks", operation_id = "nodes_disks", tag = "nodes", params(List),
    responses((status = 200, body = Page<Disk>), (status = "default", body = Problem)))]
pub(super) async fn disks(State(cluster): State<Arc<Cluster>>, Params(list): Params<List>) -> Answer {
    let mut look = cluster.look().await?;
    if let Some(node) = &list.node
        && load::node(look.rows(), node).await?.is_none()
    {
        return Err(Failure::not_found(format!("node {node}")));
    }
    let disks = show::disks(&look.seen, list.node.as_deref());
    Ok(cut(disks, &list, |disk: &Disk| {
        format!("{} {}", disk.node, disk.path)
    }))
}
