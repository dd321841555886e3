//! Snapshots on their way: several at once go on when all their engines hold writes, one that takes too long is given
//! up, copies that are gone are struck off.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use stor_proto::satellite::SnapshotCopyState;
use stor_replication::ids::VolumeId;
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
        for one in moved.iter().filter(|one| one.is_live()) {
            batches.entry(one.batch).or_default().push(one);
        }
        self.since.retain(|batch, _| batches.contains_key(batch));
        let mut actions = gone(moved, seen);
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

/// Copies that were to be removed and are gone; one command per node.
fn gone(moved: &[Snapshot], seen: &Observations) -> Vec<Action> {
    let mut by_node: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for one in moved {
        for (replica, copy) in one
            .copies
            .iter()
            .filter(|(_, copy)| copy.phase == CopyPhase::Deleting)
        {
            let report = seen.copy(&copy.node, one.id, *replica);
            if report.is_some_and(|report| report.state() == SnapshotCopyState::Deleted) {
                by_node.entry(&copy.node).or_default().push((one.id, *replica));
            }
        }
    }
    let observed = |(node, gone): (&str, Vec<_>)| Action::CopiesObserved {
        node: node.to_owned(),
        gone,
    };
    by_node.into_iter().map(observed).collect()
}

#[cfg(test)]
#[path = "snapshots_tests.rs"]
#[allow(clippy::indexing_slicing, reason = "tests")]
mod tests;
