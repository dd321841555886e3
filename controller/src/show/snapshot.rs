//! Snapshots and their copies.

use stor_api::objects::{Snapshot, SnapshotCopy, SnapshotCopyState as State, SnapshotState};
use stor_proto::satellite::{SnapshotCopyState as Reported, SnapshotCopyStatus};

use crate::catalogue::row::Volume;
use crate::catalogue::snapshot::{self as row, CopyPhase, SnapshotPhase};
use crate::observed::Observations;

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
            }
        })
        .collect();
    let wanted = volume.map_or(copies.len(), |volume| volume.row.replicas.len());
    let kept = one
        .copies
        .values()
        .filter(|copy| copy.phase == CopyPhase::Ready)
        .count();
    let ready = one.phase == SnapshotPhase::Ready;
    let present = copies.iter().filter(|copy| copy.state == State::Present).count();
    let reason = if ready && present < wanted {
        let told = if kept < wanted { "hold it" } else { "can show it" };
        format!("{present} of {wanted} replicas {told}")
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
