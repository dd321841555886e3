//! Controllers, status and events.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use serde::Deserialize;
use stor_api::objects::{Controller, ControllerRole, Event, Page, Status};
use stor_api::problem::Problem;
use stor_raft::{MemberInfo, MembershipError};

use super::answer::{Answer, cut, done, plan};
use super::extract::{At, List, Manner, Nothing, Params};
use super::problem::Failure;
use crate::catalogue::load::{self, Which};
use crate::catalogue::snapshot;
use crate::cluster::Cluster;
use crate::session::http;
use crate::show;

/// Events of a page, unless the caller wants another number.
const EVENTS: u64 = 500;

/// The controllers as the leader sees them, by name.
pub(super) fn controllers(cluster: &Cluster) -> Vec<Controller> {
    let applied = *cluster.raft.applied().borrow();
    let show = |member: MemberInfo| Controller {
        name: member.peer.name.clone(),
        id: member.peer.id,
        api_address: http(&member.peer.api_address),
        peer_address: http(&member.peer.peer_address),
        role: match (member.leader, member.voter) {
            (true, _) => ControllerRole::Leader,
            (false, true) => ControllerRole::Follower,
            (false, false) => ControllerRole::Learner,
        },
        online: member.leader || member.heard == Some(true),
        lag: if member.leader {
            Some(0)
        } else {
            member.matched.map(|at| applied.saturating_sub(at))
        },
    };
    let mut controllers: Vec<Controller> = cluster.raft.members().into_iter().map(show).collect();
    controllers.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    controllers
}

/// All controllers.
#[utoipa::path(get, path = "/api/v1/controllers", operation_id = "controllers_list", tag = "controllers", params(List),
    responses((status = 200, body = Page<Controller>), (status = "default", body = Problem)))]
pub(super) async fn list(State(cluster): State<Arc<Cluster>>, Params(list): Params<List>) -> Answer {
    // Only a leader that still leads knows who is there.
    cluster.look().await?;
    Ok(cut(controllers(&cluster), &list, |controller: &Controller| {
        controller.name.clone()
    }))
}

async fn find(cluster: &Cluster, name: &str) -> Result<Controller, Failure> {
    cluster.look().await?;
    controllers(cluster)
        .into_iter()
        .find(|controller| controller.name == name)
        .ok_or_else(|| Failure::not_found(format!("controller {name}")))
}

/// One controller.
#[utoipa::path(get, path = "/api/v1/controllers/{controller}", operation_id = "controllers_get", tag = "controllers",
    params(("controller" = String, Path)),
    responses((status = 200, body = Controller), (status = "default", body = Problem)))]
pub(super) async fn get(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    _: Params<Nothing>,
) -> Answer {
    Ok(Json(find(&cluster, &name).await?).into_response())
}

impl From<MembershipError> for Failure {
    fn from(error: MembershipError) -> Self {
        match error {
            MembershipError::NotLeader { .. } => Self::no_leader(),
            MembershipError::Refused { reason } => Self::conflict("refused", reason),
            MembershipError::Timeout { .. } | MembershipError::Stopped { .. } => {
                Self::undecided(error.to_string())
            }
        }
    }
}

/// Take a controller out of the cluster for good.
#[utoipa::path(delete, path = "/api/v1/controllers/{controller}", operation_id = "controllers_delete", tag = "controllers",
    params(("controller" = String, Path), Manner),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn delete(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    Params(manner): Params<Manner>,
) -> Answer {
    let controller = find(&cluster, &name).await?;
    if manner.dry_run {
        let steps = vec![format!(
            "take controller {name} out of the cluster; it can't come back under its id"
        )];
        return Ok(plan(steps, Vec::new()));
    }
    if controller.id == cluster.raft.me().id {
        // A leader does not remove itself: the next one does it, when the request gets there.
        let heirs = controllers(&cluster);
        let heir = heirs
            .iter()
            .find(|other| other.id != controller.id && other.online && other.role == ControllerRole::Follower)
            .ok_or_else(|| Failure::conflict("refused", "the last controller can't be removed"))?;
        cluster.raft.transfer_leader(heir.id).await?;
        return Err(Failure::no_leader());
    }
    cluster.raft.remove_member(controller.id).await?;
    Ok(done())
}

/// Make a controller the leader.
#[utoipa::path(post, path = "/api/v1/controllers/{controller}/transfer-leader", operation_id = "controllers_transfer_leader", tag = "controllers",
    params(("controller" = String, Path), Manner),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn transfer_leader(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    Params(manner): Params<Manner>,
) -> Answer {
    let controller = find(&cluster, &name).await?;
    if manner.dry_run {
        let leads = controller.role == ControllerRole::Leader;
        let steps = if leads {
            Vec::new()
        } else {
            vec![format!("make controller {name} the leader")]
        };
        return Ok(plan(steps, Vec::new()));
    }
    cluster.raft.transfer_leader(controller.id).await?;
    Ok(done())
}

/// The cluster on one screen.
#[utoipa::path(get, path = "/api/v1/status", operation_id = "controllers_status", tag = "cluster",
    responses((status = 200, body = Status), (status = "default", body = Problem)))]
pub(super) async fn status(State(cluster): State<Arc<Cluster>>, _: Params<Nothing>) -> Answer {
    let mut look = cluster.look().await?;
    let cluster_id = load::cluster_id(look.rows())
        .await?
        .map(|id| id.to_string())
        .unwrap_or_default();
    let nodes = load::nodes(look.rows()).await?;
    let pools = load::pools(look.rows()).await?;
    let rows = load::volumes_which(look.rows(), Which::All).await?;
    let history = load::history(look.rows()).await?;
    let left = load::tombstones(look.rows(), None).await?;
    let snapshots = snapshot::snapshots(look.rows(), snapshot::Which::All).await?;
    let seen = &look.seen;
    let status = show::status(show::Facts {
        cluster_id,
        controllers: controllers(&cluster),
        nodes: &nodes.iter().map(|row| show::node(row, seen)).collect::<Vec<_>>(),
        pools: &pools.iter().map(|row| show::pool(row, seen)).collect::<Vec<_>>(),
        rows: &rows,
        volumes: &rows.iter().map(|row| show::volume(row, seen)).collect::<Vec<_>>(),
        tombstones: &left
            .iter()
            .map(|row| show::tombstone(row, seen))
            .collect::<Vec<_>>(),
        snapshots: &snapshots,
        seen,
        node_rows: &nodes,
        history,
    });
    Ok(Json(status).into_response())
}

/// Which events.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct After {
    /// Only those with a higher number.
    #[serde(default)]
    #[param(required = false)]
    after: u64,
    /// At most this many, up to 1000.
    #[serde(default, deserialize_with = "super::extract::limit")]
    #[param(value_type = u64, minimum = 1, maximum = 1000, required = false)]
    limit: Option<u64>,
}

/// Events, oldest first; `?watch=1` streams them as they happen (server-sent events). The newest 10,000 are kept.
#[utoipa::path(get, path = "/api/v1/events", operation_id = "controllers_events", tag = "cluster", params(After),
    responses((status = 200, body = Page<Event>), (status = "default", body = Problem)))]
pub(super) async fn events(State(cluster): State<Arc<Cluster>>, Params(query): Params<After>) -> Answer {
    let limit = query.limit.unwrap_or(EVENTS);
    let mut look = cluster.look().await?;
    let rows = load::events(look.rows(), query.after, limit + 1).await?;
    let mut items: Vec<Event> = rows.iter().map(show::event).collect();
    let more = items.len() as u64 > limit;
    items.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let next = items.last().filter(|_| more).map(|event| event.seq.to_string());
    Ok(Json(Page { items, next }).into_response())
}
