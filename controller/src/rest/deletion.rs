//! The end of volumes, and what is left of them.
//!
//! Without force a volume is gone when all its nodes have removed their replicas. With force it is gone at once, its
//! name is free, and tombstones keep what each node still has to remove.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use stor_api::objects::{Deletion, Page, Tombstone, Volume};
use stor_api::problem::Problem;
use stor_api::size;
use stor_replication::catalogue::Refusal;

use super::answer::{Answer, cut, done, plan};
use super::extract::{At, IfMatch, List, Manner, Params};
use super::problem::{Failure, NOT_FOUND};
use super::volumes::{need, show_volume};
use crate::behind;
use crate::catalogue::command::ForcedDelete;
use crate::catalogue::load;
use crate::catalogue::{self, Action, Refused, row};
use crate::cluster::{Cluster, Look};
use crate::show;

/// Views that moved between looking and proposing before a forced delete is given up.
const ATTEMPTS: u32 = 8;

/// Delete a detached volume; with `force` at once, whatever its nodes can do about it, and also one attached on a
/// node that is not connected, whose engine is fenced.
#[utoipa::path(delete, path = "/api/v1/volumes/{volume}", operation_id = "volumes_delete", tag = "volumes", params(("volume" = String, Path), Manner),
    responses((status = 202, body = Volume, description = "Gone once it is not found any more"),
        (status = 200, body = Deletion, description = "Gone, by force"), (status = 204, description = "Gone"),
        (status = "default", body = Problem)))]
pub(super) async fn delete(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    Params(manner): Params<Manner>,
    IfMatch(expect): IfMatch,
) -> Answer {
    if manner.force {
        return delete_now(&cluster, name, manner, expect).await;
    }
    let mut look = cluster.look().await?;
    let row = need(&mut look, &name).await?;
    let gone = super::behind::is_gone(&mut look, &row).await?;
    if !gone {
        refuse_behind(&row, &look)?;
    }
    let action = Action::DeleteVolume {
        name: name.clone(),
        expect,
        gone,
        force: None,
    };
    if manner.dry_run {
        catalogue::check(look.rows(), &action).await??;
        let steps = row.row.replicas.values().map(|member| {
            let wait = if look.seen.online(&member.node) {
                ""
            } else {
                ", as soon as it is connected"
            };
            format!("remove the replica on node {}{wait}", member.node)
        });
        return Ok(plan(steps.collect(), Vec::new()));
    }
    drop(look);
    cluster.propose(action).await??;
    // It may be gone by now.
    match show_volume(&cluster, &name, StatusCode::ACCEPTED).await {
        Err(failure) if failure.code() == NOT_FOUND => Ok(done()),
        shown => shown.map_err(Failure::after_change),
    }
}

async fn delete_now(cluster: &Cluster, name: String, manner: Manner, expect: Option<u64>) -> Answer {
    for _ in 0..ATTEMPTS {
        let mut look = cluster.look().await?;
        let row = need(&mut look, &name).await?;
        refuse_behind(&row, &look)?;
        refuse_in_use(&row, &look)?;
        let action = Action::DeleteVolume {
            name: name.clone(),
            expect,
            gone: false,
            force: Some(forced(&row, &look)),
        };
        if manner.dry_run {
            catalogue::check(look.rows(), &action).await??;
            return Ok(plan(steps(&row, &look), Vec::new()));
        }
        drop(look);
        match cluster.propose(action).await? {
            Ok(_) => {
                let mut look = cluster.look().await?;
                let left = load::tombstones(look.rows(), None).await?;
                let deletion = Deletion {
                    name,
                    id: row.row.volume.to_string(),
                    left_behind: left
                        .iter()
                        .filter(|tombstone| tombstone.volume == row.row.volume)
                        .map(|tombstone| show::tombstone(tombstone, &look.seen))
                        .collect(),
                };
                return Ok(Json(deletion).into_response());
            }
            Err(Refused::View {
                refusal: Refusal::ViewChanged { .. },
                ..
            }) => {}
            Err(refused) => return Err(refused.into()),
        }
    }
    Err(
        Failure::conflict("busy", format!("the view of volume {name} changes all the time"))
            .remedy("ask again"),
    )
}

/// What is later than the catalogue is not deleted by it, by force or not.
fn refuse_behind(row: &row::Volume, look: &Look) -> Result<(), Failure> {
    match behind::in_short(row, &look.seen) {
        Some(why) => Err(Failure::behind(&row.name, &format!("It is known of it: {why}."))),
        None => Ok(()),
    }
}

/// Force is for nodes that are away. What is in use on one that is there is detached first, by its user.
fn refuse_in_use(row: &row::Volume, look: &Look) -> Result<(), Failure> {
    let attachment = show::user_attachment(row, &look.seen);
    let Some(attachment) = attachment.filter(|attachment| look.seen.online(&attachment.node)) else {
        return Ok(());
    };
    let (name, node) = (&row.name, attachment.node);
    let title = format!("volume {name} is attached on node {node}, which is connected");
    Err(Failure::conflict("attached", title)
        .because("Force does without nodes that are away, not without the users of a volume.")
        .remedy(format!("detach it from {node} first")))
}

fn forced(row: &row::Volume, look: &Look) -> ForcedDelete {
    let allocated = row.row.replicas.iter().filter_map(|(replica, member)| {
        let heard = look.seen.last(&member.node)?;
        let report = heard.replicas.get(&(row.row.volume, *replica))?;
        Some((*replica, report.allocated_bytes))
    });
    ForcedDelete {
        expect: row.row.view.epoch,
        allocated: allocated.collect(),
    }
}

/// What a forced delete would do.
fn steps(row: &row::Volume, look: &Look) -> Vec<String> {
    let mut steps = Vec::new();
    if let Some(attachment) = show::user_attachment(row, &look.seen) {
        steps.push(format!(
            "detach it from node {}, whose engine is fenced",
            attachment.node
        ));
    }
    for replica in show::replicas(row, &look.seen) {
        let node = &replica.node;
        if look.seen.online(node) {
            steps.push(format!("remove the replica on node {node}"));
        } else {
            let pool = &replica.pool;
            let size = size::format(replica.allocated_bytes);
            steps.push(format!(
                "leave the replica on node {node} behind (pool {pool}, {size}) until the node is back"
            ));
        }
    }
    steps
}

/// What is left of deleted volumes; with `volume`, of those that had this name.
#[utoipa::path(get, path = "/api/v1/tombstones", operation_id = "volumes_tombstones", tag = "volumes", params(List),
    responses((status = 200, body = Page<Tombstone>), (status = "default", body = Problem)))]
pub(super) async fn tombstones(State(cluster): State<Arc<Cluster>>, Params(list): Params<List>) -> Answer {
    let mut look = cluster.look().await?;
    let rows = load::tombstones(look.rows(), list.node.as_deref()).await?;
    let left = rows
        .iter()
        .filter(|row| list.volume.as_ref().is_none_or(|name| *name == row.name))
        .map(|row| show::tombstone(row, &look.seen))
        .collect();
    Ok(cut(left, &list, |one: &Tombstone| {
        format!("{} {:010}", one.volume_id, one.replica)
    }))
}
