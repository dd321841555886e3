//! What the agent is told of the replicas.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use stor_replication::ids::{Epoch, View};

use super::serve::Served;
use super::server::{Key, Loop, Slot};
use super::{About, ReplicaReport, ReplicaState};

impl Loop<'_> {
    /// Tells it, when something has changed.
    pub(super) fn publish(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let report = self.slots.iter().map(|(key, slot)| report(*key, slot)).collect();
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).report = report;
    }
}

fn report(key: Key, slot: &Slot) -> ReplicaReport {
    let (state, superblock) = match slot {
        Slot::Making => (ReplicaState::Opening, None),
        Slot::Served(served) => (
            if served.core().superblock().failed {
                ReplicaState::Failed("its disk failed a write or a flush; see the satellite's log".to_owned())
            } else {
                ReplicaState::Ready
            },
            Some(served.core().superblock()),
        ),
        Slot::Failed { state, .. } => (state.clone(), None),
    };
    ReplicaReport {
        volume: key.0,
        replica: key.1,
        state,
        stored: superblock.map_or(View::default(), |superblock| superblock.view),
        about: about(slot),
        snapshots: match slot {
            Slot::Served(served) => served.snapshots(),
            Slot::Making | Slot::Failed { .. } => BTreeSet::new(),
        },
    }
}

/// What it says of itself; of its size what is durable.
fn about(slot: &Slot) -> Option<About> {
    let Slot::Served(served) = slot else {
        return None;
    };
    let size = served.core().size();
    Some(About {
        size,
        ..About::from(served.core().superblock())
    })
}

/// What of a report can change by a step; without what would have to be copied.
pub(super) fn stored(served: &Served) -> (View, Epoch, usize, bool, u64) {
    let superblock = served.core().superblock();
    (
        superblock.view,
        superblock.fence,
        superblock.in_sync.len(),
        superblock.failed,
        served.core().size(),
    )
}
