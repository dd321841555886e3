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
        let report = self
            .slots
            .iter()
            .map(|(key, slot)| report(*key, slot, self.troubles.get(key)))
            .collect();
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.report = report;
        shared.sessions = self.sessions;
    }

    /// Remembers why a replica can't be served, until it is. `true`: that is news.
    pub(super) fn note_trouble(&mut self, key: Key, state: &ReplicaState) -> bool {
        self.troubles.insert(key, state.clone()).as_ref() != Some(state)
    }
}

fn report(key: Key, slot: &Slot, trouble: Option<&ReplicaState>) -> ReplicaReport {
    let (state, superblock) = match slot {
        // Tried again: until that is over, what was wrong still is.
        Slot::Making => (trouble.cloned().unwrap_or(ReplicaState::Opening), None),
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
        mended: match slot {
            Slot::Served(served) => served.mended.clone(),
            Slot::Making | Slot::Failed { .. } => String::new(),
        },
        mended_at: match slot {
            Slot::Served(served) => served.opened_at,
            Slot::Making | Slot::Failed { .. } => 0,
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
