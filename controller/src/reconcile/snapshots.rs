//! Snapshots on their way: several at once go on when all their engines hold writes, one that takes too long is given
//! up, copies that are gone are struck off. Those that are ready: copies are made anew where replicas have none, and go
//! where there is no replica any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use stor_proto::satellite::{SnapshotCopyState, SnapshotCopyStatus};
use stor_replication::ids::{ReplicaId, SnapshotId, VolumeId};
use uuid::Uuid;

use crate::catalogue::Action;
use crate::catalogue::row::Volume;
use crate::catalogue::snapshot::{CopyPhase, Snapshot, SnapshotPhase};
use crate::observed::Observations;

/// How long one may take: members have to be there and equal, and a repair after an unclean end comes first.
const PATIENCE: Duration = Duration::from_mins(1);

/// What the leader remembers between passes: since when it knows of each batch. A new leader waits anew.
#[derive(Debug, Default)]
pub(super) struct Batches {
    since: BTreeMap<Uuid, Instant>,
}

/// Volumes of which a snapshot is to be made.
pub(super) fn wanted(moved: &[Snapshot]) -> BTreeSet<VolumeId> {
    let making = |one: &&Snapshot| one.phase == SnapshotPhase::Creating;
    moved.iter().filter(making).map(|one| one.volume).collect()
}

impl Batches {
    pub(super) fn decide(
        &mut self,
        moved: &[Snapshot],
        attached: &[Volume],
        seen: &Observations,
        now: Instant,
    ) -> Vec<Action> {
        let mut batches: BTreeMap<Uuid, Vec<&Snapshot>> = BTreeMap::new();
        let under_way = |one: &&Snapshot| one.is_live() && one.phase != SnapshotPhase::Ready;
        for one in moved.iter().filter(under_way) {
            batches.entry(one.batch).or_default().push(one);
        }
        self.since.retain(|batch, _| batches.contains_key(batch));
        let mut actions = observed(moved, seen);
        for (batch, all) in batches {
            let since = *self.since.entry(batch).or_insert(now);
            if now.saturating_duration_since(since) >= PATIENCE {
                let why = why(&all, attached, seen);
                actions.push(Action::FailSnapshots { batch, why });
            } else if all.iter().all(|one| one.holds() && held(one, attached, seen)) {
                actions.push(Action::GoSnapshots { batch });
            }
        }
        actions
    }
}

/// How far the engine of a snapshot's volume says it is with it.
fn stage<'a>(one: &Snapshot, attached: &[Volume], seen: &'a Observations) -> Option<&'a str> {
    let volume = attached.iter().find(|volume| volume.row.volume == one.volume)?;
    let owner = volume.row.owner.as_ref()?;
    let engine = seen.engine(owner, one.volume, volume.row.view.epoch.0)?;
    (engine.snapshot_id == one.id.to_string()).then_some(engine.snapshot_stage.as_str())
}

fn held(one: &Snapshot, attached: &[Volume], seen: &Observations) -> bool {
    stage(one, attached, seen) == Some("held")
}

/// What it waits for, in words.
fn why(all: &[&Snapshot], attached: &[Volume], seen: &Observations) -> String {
    let waits = all.iter().find(|one| one.phase == SnapshotPhase::Creating);
    let Some(one) = waits else {
        return "it took too long".to_owned();
    };
    let volume = &one.volume_name;
    match stage(one, attached, seen) {
        None => format!("no engine of volume {volume} took it up; are all its replicas in sync there?"),
        Some("waiting") => format!("the replicas of volume {volume} in sync are not all there and equal"),
        Some(_) => format!("the engine of volume {volume} did not finish it"),
    }
}

/// Copies that were to be removed and are gone, or were to be made anew and are there; one command per node.
fn observed(moved: &[Snapshot], seen: &Observations) -> Vec<Action> {
    type Copies = Vec<(SnapshotId, ReplicaId)>;
    let mut by_node: BTreeMap<&str, (Copies, Copies)> = BTreeMap::new();
    for one in moved {
        for (replica, copy) in &one.copies {
            let told = seen
                .copy(&copy.node, one.id, *replica)
                .map(SnapshotCopyStatus::state);
            let (gone, made) = by_node.entry(&copy.node).or_default();
            match (copy.phase, told) {
                (CopyPhase::Deleting, Some(SnapshotCopyState::Deleted)) => gone.push((one.id, *replica)),
                // While it is being made for the first time, that is for its engine to say.
                (CopyPhase::Creating, Some(SnapshotCopyState::There))
                    if one.phase == SnapshotPhase::Ready =>
                {
                    made.push((one.id, *replica));
                }
                _ => {}
            }
        }
    }
    by_node.retain(|_, (gone, made)| !gone.is_empty() || !made.is_empty());
    let observed = |(node, (gone, made)): (&str, (Copies, Copies))| Action::CopiesObserved {
        node: node.to_owned(),
        gone,
        made,
    };
    by_node.into_iter().map(observed).collect()
}

/// What is to be done so that every replica of a volume has its copy of each snapshot, and nobody else: of each
/// volume one in a pool at a time, the oldest first. `uneven`: ready, in the order in which they were asked for.
//= docs/replication.md#S6
pub(super) fn even_out(uneven: &[Snapshot], volumes: &[Volume], seen: &Observations) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut busy: BTreeSet<(VolumeId, &str, &str)> = uneven
        .iter()
        .flat_map(|one| one.copies.values().map(move |copy| (one.volume, copy)))
        .filter(|(_, copy)| copy.phase == CopyPhase::Creating)
        .map(|(volume, copy)| (volume, copy.node.as_str(), copy.pool.as_str()))
        .collect();
    for one in uneven {
        let Some(volume) = volumes.iter().find(|volume| volume.row.volume == one.volume) else {
            continue;
        };
        for (replica, member) in &volume.row.replicas {
            let pool = volume.places.get(replica).map_or("", |place| place.pool.as_str());
            if seen.online(&member.node)
                && one.lacks(volume, *replica)
                && busy.insert((one.volume, member.node.as_str(), pool))
            {
                actions.push(Action::RecopySnapshot {
                    snapshot: one.id,
                    replica: *replica,
                });
            }
        }
        let left_over = one
            .copies
            .iter()
            .filter(|(_, copy)| copy.phase != CopyPhase::Deleting && one.is_left_over(volume, copy));
        actions.extend(left_over.map(|(replica, _)| Action::DropCopy {
            snapshot: one.id,
            replica: *replica,
        }));
    }
    actions
}

#[cfg(test)]
#[path = "snapshots_tests.rs"]
#[allow(clippy::indexing_slicing, reason = "tests")]
mod tests;
