//! What is left of deleted volumes.

use stor_api::objects::{Tombstone, TombstoneState};

use super::volume::failure;
use crate::catalogue::row;
use crate::observed::Observations;

/// A replica of a deleted volume that its node has not removed yet.
pub fn tombstone(row: &row::Tombstone, seen: &Observations) -> Tombstone {
    let reported = seen.replica(&row.node, row.volume, row.replica);
    let (state, reason) = if !seen.online(&row.node) {
        (
            TombstoneState::Offline,
            format!("node {} is not connected", row.node),
        )
    } else if let Some(error) = reported.and_then(failure) {
        (TombstoneState::Failed, error)
    } else {
        (TombstoneState::Removing, String::new())
    };
    let last = seen.last(&row.node);
    let heard = last.and_then(|heard| heard.replicas.get(&(row.volume, row.replica)));
    Tombstone {
        volume: row.name.clone(),
        volume_id: row.volume.to_string(),
        replica: row.replica.0,
        node: row.node.clone(),
        pool: row.pool.clone(),
        size_bytes: row.size,
        allocated_bytes: row.allocated.or(heard.map(|report| report.allocated_bytes)),
        state,
        reason,
        deleted: row.deleted.clone(),
    }
}
