//! Snapshots and their copies.

use stor_api::objects::{Check, Severity, Snapshot, SnapshotCopy, SnapshotCopyState as State, SnapshotState};
use stor_proto::satellite::{SnapshotCopyState as Reported, SnapshotCopyStatus};

use crate::catalogue::row::Volume;
use crate::catalogue::snapshot::{self as row, CopyPhase, SnapshotPhase};
use crate::observed::Observations;
use crate::show::health::check;

/// A snapshot; `volume` is its volume, if that is still there.
pub fn snapshot(one: &row::Snapshot, volume: Option<&Volume>, seen: &Observations) -> Snapshot {
    let copies: Vec<SnapshotCopy> = one
        .copies
        .iter()
        .map(|(replica, copy)| {
            let report = seen.copy(&copy.node, one.id, *replica);
            let reported = report.map(SnapshotCopyStatus::state);
            let state = match (copy.phase, reported) {
                _ if !seen.online(&copy.node) => State::Offline,
                (_, Some(Reported::Failed)) => State::Failed,
                (CopyPhase::Deleting, _) => State::Deleting,
                (CopyPhase::Creating, _) if one.phase == SnapshotPhase::Ready => State::Copying,
                (CopyPhase::Creating, _) => State::Creating,
                (CopyPhase::Ready, Some(Reported::Missing)) => State::Missing,
                (CopyPhase::Ready, _) => State::Present,
            };
            let there = report.filter(|report| report.state() == Reported::There);
            SnapshotCopy {
                replica: replica.0,
                node: copy.node.clone(),
                pool: copy.pool.clone(),
                state,
                reason: report.map(|report| report.error.clone()).unwrap_or_default(),
                allocated_bytes: there.map(|report| report.allocated_bytes),
                own_bytes: there.map(|report| report.own_bytes),
                copied_bytes: report
                    .filter(|_| state == State::Copying)
                    .map(|report| report.done_bytes),
            }
        })
        .collect();
    let (kept, wanted) = held(one, volume);
    let ready = one.phase == SnapshotPhase::Ready;
    let present = copies.iter().filter(|copy| copy.state == State::Present).count();
    let reason = if ready && present.min(kept) < wanted {
        let told = if kept < wanted { "hold it" } else { "can show it" };
        let count = if kept < wanted { kept } else { present };
        let now = copies.iter().any(|copy| copy.state == State::Copying);
        let more = if now { "; it is being copied" } else { "" };
        format!("{count} of {wanted} replicas {told}{more}")
    } else {
        one.reason.clone()
    };
    Snapshot {
        volume: volume.map_or(&one.volume_name, |volume| &volume.name).clone(),
        name: one.name.clone(),
        id: one.id.to_string(),
        size_bytes: one.size,
        state: match one.phase {
            SnapshotPhase::Creating | SnapshotPhase::Taken => SnapshotState::Creating,
            SnapshotPhase::Ready => SnapshotState::Ready,
            SnapshotPhase::Failed => SnapshotState::Failed,
            SnapshotPhase::Deleting => SnapshotState::Deleting,
        },
        reason,
        created: one.created.clone(),
        group: one.batch.to_string(),
        copies,
        wanted_copies: wanted as u64,
        revision: one.revision,
    }
}

/// What is wrong with snapshots that are ready: nobody can reach one, or it has fewer copies than its volume.
pub(super) fn checks(all: &[row::Snapshot], volumes: &[Volume], seen: &Observations) -> Vec<Check> {
    let mut checks = Vec::new();
    for one in all.iter().filter(|one| one.phase == SnapshotPhase::Ready) {
        let object = format!("snapshot/{}", one.title());
        let kept = || one.copies.values().filter(|copy| copy.phase == CopyPhase::Ready);
        if !kept().any(|copy| seen.online(&copy.node)) {
            let nodes: Vec<&str> = kept().map(|copy| copy.node.as_str()).collect();
            let message = format!("no copy of snapshot {} can be reached", one.title());
            let remedy = format!("bring a node back that holds it: {}", nodes.join(", "));
            checks.push(check(
                "SNAPSHOT_UNREACHABLE",
                Severity::Error,
                message,
                object,
                &remedy,
            ));
            continue;
        }
        let volume = volumes.iter().find(|volume| volume.row.volume == one.volume);
        let (held, wanted) = held(one, volume);
        if held < wanted {
            let message = format!("{held} of {wanted} replicas hold snapshot {}", one.title());
            let remedy = "nothing, while it is being copied (storctl snapshot describe); a replica gets it when it is in sync";
            checks.push(check(
                "SNAPSHOT_DEGRADED",
                Severity::Warning,
                message,
                object,
                remedy,
            ));
        }
    }
    checks
}

/// How many of the volume's replicas have a copy where they are, and how many there are.
fn held(one: &row::Snapshot, volume: Option<&Volume>) -> (usize, usize) {
    let ready = || one.copies.values().filter(|copy| copy.phase == CopyPhase::Ready);
    let Some(volume) = volume else {
        return (ready().count(), one.copies.len());
    };
    let replicas = volume.row.replicas.iter();
    let holding = replicas.filter(|(replica, member)| {
        let place = volume.places.get(replica);
        place.is_some_and(|place| ready().any(|copy| copy.is_at(&member.node, &place.pool)))
    });
    (holding.count(), volume.row.replicas.len())
}
