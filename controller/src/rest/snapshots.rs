//! Snapshots, and what is made of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use stor_api::name;
use stor_api::objects::{Page, RestoreSpec, Snapshot, SnapshotsSpec, Volume};
use stor_api::problem::Problem;
use stor_replication::ids::{Lineage, ReplicaId, SnapshotId, VolumeId};
use uuid::Uuid;

use super::answer::{Answer, change, created, cut, done, object, plan};
use super::extract::{At, Body, IfMatch, List, Manner, Nothing, Params};
use super::problem::Failure;
use super::volumes::{
    NO_PLACEMENT, check_replicas, min_in_sync, need, planner_nodes, reasons, show_volume, verdicts,
};
use crate::behind;
use crate::catalogue::command::{NewSnapshot, NewVolume, Placement, Restore, RollBack, VolumeWish};
use crate::catalogue::snapshot::{self, CopyPhase, Which};
use crate::catalogue::{self, Action, Outcome, Refused, load};
use crate::cluster::{Cluster, Look};
use crate::plan as planner;
use crate::show;

/// Volumes of one moment: all of them hold their writes until the last one does.
const MOST_AT_ONCE: usize = 64;
/// Placements that others overtook before one is given up.
const ATTEMPTS: u32 = 8;

async fn shown(look: &mut Look, rows: &[snapshot::Snapshot]) -> Result<Vec<Snapshot>, Failure> {
    let ids: BTreeSet<String> = rows.iter().map(|row| row.volume.to_string()).collect();
    let volumes = load::volumes(look.rows(), &ids.into_iter().collect::<Vec<_>>()).await?;
    let of = |row: &snapshot::Snapshot| volumes.iter().find(|volume| volume.row.volume == row.volume);
    Ok(rows
        .iter()
        .map(|row| show::snapshot(row, of(row), &look.seen))
        .collect())
}

async fn need_snapshot(look: &mut Look, volume: &str, name: &str) -> Result<snapshot::Snapshot, Failure> {
    let found = snapshot::snapshot_named(look.rows(), volume, name).await?;
    found.ok_or_else(|| Failure::not_found(format!("snapshot {volume}@{name}")))
}

/// Snapshots, by volume and in the order in which they were asked for; with `volume`, its own.
#[utoipa::path(get, path = "/api/v1/snapshots", operation_id = "snapshots_list", tag = "snapshots", params(List),
    responses((status = 200, body = Page<Snapshot>), (status = "default", body = Problem)))]
pub(super) async fn list(State(cluster): State<Arc<Cluster>>, Params(list): Params<List>) -> Answer {
    let mut look = cluster.look().await?;
    let which = list.volume.as_deref().map_or(Which::All, Which::Named);
    let mut rows = snapshot::snapshots(look.rows(), which).await?;
    let key = |row: &snapshot::Snapshot| format!("{} {:020} {}", row.volume_name, row.queued, row.id);
    rows.sort_by_key(key);
    let node = list.node.as_ref();
    rows.retain(|row| node.is_none_or(|node| row.copies.values().any(|copy| copy.node == *node)));
    let keys: Vec<(String, String)> = rows.iter().map(|row| (row.id.to_string(), key(row))).collect();
    let items = shown(&mut look, &rows).await?;
    Ok(cut(items, &list, |item: &Snapshot| {
        let of = keys.iter().find(|(id, _)| *id == item.id);
        of.map(|(_, key)| key.clone()).unwrap_or_default()
    }))
}

/// One snapshot with its copies.
#[utoipa::path(get, path = "/api/v1/snapshots/{volume}/{name}", operation_id = "snapshots_get", tag = "snapshots",
    params(("volume" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = Snapshot), (status = "default", body = Problem)))]
pub(super) async fn get(
    State(cluster): State<Arc<Cluster>>,
    At((volume, name)): At<(String, String)>,
    _: Params<Nothing>,
) -> Answer {
    show_one(&cluster, &volume, &name, StatusCode::OK).await
}

pub(super) async fn show_one(cluster: &Cluster, volume: &str, name: &str, status: StatusCode) -> Answer {
    let mut look = cluster.look().await?;
    let row = need_snapshot(&mut look, volume, name).await?;
    let items = shown(&mut look, std::slice::from_ref(&row)).await?;
    let one = items
        .first()
        .ok_or_else(|| Failure::not_found(format!("snapshot {volume}@{name}")))?;
    Ok(object(status, row.revision, one))
}

/// Begin to make snapshots. Several are of one moment: the writes of all volumes are held at once, for 5 s at most.
#[utoipa::path(post, path = "/api/v1/snapshots", operation_id = "snapshots_create", tag = "snapshots", params(Manner),
    request_body = SnapshotsSpec,
    responses((status = 201, body = Page<Snapshot>, description = "Look at them until they are ready or failed"),
        (status = 200, body = Page<Snapshot>, description = "They were there already"),
        (status = "default", body = Problem)))]
pub(super) async fn create(
    State(cluster): State<Arc<Cluster>>,
    Params(manner): Params<Manner>,
    Body(spec): Body<SnapshotsSpec>,
) -> Answer {
    check(&spec)?;
    let mut look = cluster.look().await?;
    for one in &spec.snapshots {
        let row = need(&mut look, &one.volume).await?;
        if let Some(why) = behind::in_short(&row, &look.seen) {
            return Err(Failure::behind(&row.name, &format!("It is known of it: {why}.")));
        }
    }
    let snapshots = spec.snapshots.iter().map(|one| NewSnapshot {
        id: SnapshotId(Uuid::now_v7()),
        volume: one.volume.clone(),
        name: one.name.clone(),
    });
    let action = Action::CreateSnapshots {
        batch: Uuid::now_v7(),
        snapshots: snapshots.collect(),
    };
    if manner.dry_run {
        let steps = match catalogue::check(look.rows(), &action).await?? {
            Outcome::Unchanged => Vec::new(),
            Outcome::Created | Outcome::Changed | Outcome::Row(_) => {
                let step = |one: &stor_api::objects::SnapshotSpec| {
                    format!("make snapshot {}@{}", one.volume, one.name)
                };
                spec.snapshots.iter().map(step).collect()
            }
        };
        return Ok(plan(steps, Vec::new()));
    }
    drop(look);
    let outcome = cluster.propose(action).await??;
    let mut look = cluster.look().await?;
    let mut rows = Vec::new();
    for one in &spec.snapshots {
        rows.push(need_snapshot(&mut look, &one.volume, &one.name).await?);
    }
    let items = shown(&mut look, &rows).await?;
    Ok((created(&outcome), Json(Page { items, next: None })).into_response())
}

fn check(spec: &SnapshotsSpec) -> Result<(), Failure> {
    if spec.snapshots.is_empty() || spec.snapshots.len() > MOST_AT_ONCE {
        let count = spec.snapshots.len();
        return Err(Failure::invalid(format!(
            "{count} snapshots; 1 to {MOST_AT_ONCE} can be made at once"
        )));
    }
    let mut volumes = BTreeSet::new();
    for one in &spec.snapshots {
        name::check(name::Kind::Snapshot, &one.name).map_err(Failure::invalid)?;
        if !volumes.insert(&one.volume) {
            return Err(Failure::invalid(format!(
                "volume {} is named more than once",
                one.volume
            )));
        }
    }
    Ok(())
}

/// Delete a snapshot. Volumes that were made of it stay as they are.
#[utoipa::path(delete, path = "/api/v1/snapshots/{volume}/{name}", operation_id = "snapshots_delete", tag = "snapshots",
    params(("volume" = String, Path), ("name" = String, Path), Manner),
    responses((status = 202, body = Snapshot, description = "Gone once it is not found any more"),
        (status = 204, description = "Gone"), (status = "default", body = Problem)))]
pub(super) async fn delete(
    State(cluster): State<Arc<Cluster>>,
    At((volume, name)): At<(String, String)>,
    Params(manner): Params<Manner>,
    IfMatch(expect): IfMatch,
) -> Answer {
    let mut look = cluster.look().await?;
    let row = need_snapshot(&mut look, &volume, &name).await?;
    drop(look);
    let action = Action::DeleteSnapshot {
        snapshot: row.id,
        expect,
    };
    let step = format!("delete snapshot {volume}@{name}");
    change(&cluster, manner, action, step, async |_| {
        // It may be gone by now.
        let shown = show_one(&cluster, &volume, &name, StatusCode::ACCEPTED).await;
        Ok(shown.unwrap_or_else(|_| done()))
    })
    .await
}

/// Make a volume of a snapshot. It shares blocks with the snapshot and needs neither it nor its volume.
#[utoipa::path(post, path = "/api/v1/snapshots/{volume}/{name}/restore", operation_id = "snapshots_restore",
    tag = "snapshots", params(("volume" = String, Path), ("name" = String, Path), Manner), request_body = RestoreSpec,
    responses((status = 201, body = Volume), (status = 200, body = Volume, description = "It was there already"),
        (status = "default", body = Problem)))]
pub(super) async fn restore(
    State(cluster): State<Arc<Cluster>>,
    At((volume, name)): At<(String, String)>,
    Params(manner): Params<Manner>,
    Body(spec): Body<RestoreSpec>,
) -> Answer {
    name::check(name::Kind::Volume, &spec.name).map_err(Failure::invalid)?;
    spec.replicas.map(check_replicas).transpose()?;
    for _ in 0..ATTEMPTS {
        let mut look = cluster.look().await?;
        let row = need_snapshot(&mut look, &volume, &name).await?;
        let restore = draft(&mut look, &row, &spec).await?;
        let action = Action::RestoreSnapshot(restore);
        if manner.dry_run {
            catalogue::check(look.rows(), &action).await??;
            let step = format!("make volume {} of snapshot {volume}@{name}", spec.name);
            return Ok(plan(vec![step], Vec::new()));
        }
        drop(look);
        match cluster.propose(action).await? {
            Ok(outcome) => return show_volume(&cluster, &spec.name, created(&outcome)).await,
            // Placed with what was true a moment ago.
            Err(Refused::PlacementStale { .. }) => {}
            Err(refused) => return Err(refused.into()),
        }
    }
    let why = "other volumes were placed at the same time, again and again".into();
    Err(Refused::PlacementStale { why }.into())
}

/// The volume as it would be made now: first where copies are, whose blocks it shares; more replicas where the planner
/// puts them, which get everything from the first.
pub(super) async fn draft(
    look: &mut Look,
    row: &snapshot::Snapshot,
    spec: &RestoreSpec,
) -> Result<Restore, Failure> {
    let mut new = NewVolume {
        id: VolumeId(Uuid::now_v7()),
        name: spec.name.clone(),
        lineage: Lineage(Uuid::new_v4()),
        wish: VolumeWish {
            size: row.size,
            class: None,
            replicas: spec.replicas,
            pool: None,
            tags: Vec::new(),
            spread: None,
            together: None,
            min_in_sync: spec.min_in_sync,
        },
        min_in_sync: 1,
        placements: Vec::new(),
    };
    let mut restore = Restore {
        new: new.clone(),
        snapshot: row.id,
        copies: Vec::new(),
    };
    if load::volume_named(look.rows(), &spec.name).await?.is_some() {
        // Whether it is this one is decided where it is applied.
        return Ok(restore);
    }
    let all = planner_nodes(look).await?;
    let held: Vec<(&ReplicaId, &snapshot::Copy)> = row
        .copies
        .iter()
        .filter(|(_, copy)| copy.phase == CopyPhase::Ready && look.seen.online(&copy.node))
        .collect();
    let wanted = spec.replicas.map_or(held.len(), usize::from).max(1);
    let refused = |refusal: planner::Refusal| {
        let title = format!("volume {} can't be made of snapshot {}", spec.name, row.title());
        Failure::new(StatusCode::UNPROCESSABLE_ENTITY, NO_PLACEMENT, title)
            .because(reasons(&refusal.verdicts))
            .remedy("bring back a node that has a copy of the snapshot, make room there, or ask for fewer replicas")
            .placement(verdicts(refusal.verdicts))
    };
    for (replica, copy) in held {
        if new.placements.len() == wanted {
            break;
        }
        let here: Vec<planner::Node> = all
            .iter()
            .filter(|node| node.name == copy.node)
            .cloned()
            .collect();
        let wish = planner::Wish {
            size: row.size,
            replicas: 1,
            pool: Some(copy.pool.clone()),
            ..planner::Wish::default()
        };
        if let Ok(placement) = planner::place(&wish, &here) {
            new.placements.extend(placement.places.into_iter().map(placed));
            restore.copies.push(Some(*replica));
        }
    }
    if new.placements.is_empty() {
        let wish = planner::Wish {
            size: row.size,
            replicas: 1,
            ..planner::Wish::default()
        };
        let holders: Vec<planner::Node> = all
            .into_iter()
            .filter(|node| row.copies.values().any(|copy| copy.node == node.name))
            .collect();
        let verdicts = match planner::place(&wish, &holders) {
            Ok(placement) => placement.verdicts,
            Err(refusal) => refusal.verdicts,
        };
        return Err(refused(planner::Refusal {
            wanted,
            possible: 0,
            verdicts,
        }));
    }
    let more = wanted - new.placements.len();
    if more > 0 {
        let taken: BTreeSet<&str> = new.placements.iter().map(|place| place.node.as_str()).collect();
        let others: Vec<planner::Node> = all
            .iter()
            .filter(|node| !taken.contains(node.name.as_str()))
            .cloned()
            .collect();
        let wish = planner::Wish {
            size: row.size,
            replicas: more,
            ..planner::Wish::default()
        };
        let placement = planner::place(&wish, &others).map_err(refused)?;
        new.placements.extend(placement.places.into_iter().map(placed));
        restore.copies.resize(new.placements.len(), None);
    }
    new.min_in_sync = min_in_sync(spec.min_in_sync, wanted)?;
    restore.new = new;
    Ok(restore)
}

fn placed(place: planner::Place) -> Placement {
    Placement {
        node: place.node,
        pool: place.pool,
        pool_revision: place.pool_revision,
        promise_limit: place.promise_limit,
    }
}

/// Make a detached volume what a snapshot of it holds. What it held is lost; snapshots stay.
#[utoipa::path(post, path = "/api/v1/snapshots/{volume}/{name}/rollback", operation_id = "snapshots_rollback",
    tag = "snapshots", params(("volume" = String, Path), ("name" = String, Path), Manner),
    responses((status = 202, body = Volume, description = "Done when it is not in state creating any more"),
        (status = "default", body = Problem)))]
pub(super) async fn rollback(
    State(cluster): State<Arc<Cluster>>,
    At((volume, name)): At<(String, String)>,
    Params(manner): Params<Manner>,
) -> Answer {
    let mut look = cluster.look().await?;
    let row = need(&mut look, &volume).await?;
    let one = need_snapshot(&mut look, &volume, &name).await?;
    if let Some(why) = behind::in_short(&row, &look.seen) {
        return Err(Failure::behind(&row.name, &format!("It is known of it: {why}.")));
    }
    let there = one.copies.iter().filter(|(_, copy)| look.seen.online(&copy.node));
    let action = Action::RollBack(RollBack {
        volume: row.row.volume,
        snapshot: one.id,
        expect: row.row.view.epoch,
        lineage: Lineage(Uuid::new_v4()),
        copies: there.map(|(replica, _)| *replica).collect(),
    });
    drop(look);
    let step = format!("make volume {volume} what snapshot {volume}@{name} holds; what it holds now is lost");
    change(&cluster, manner, action, step, async |_| {
        show_volume(&cluster, &volume, StatusCode::ACCEPTED).await
    })
    .await
}
