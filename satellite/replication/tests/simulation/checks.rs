//! What must hold at any moment, and what must have come true after the healing.

use stor_replication::catalogue::MemberState;
use stor_replication::engine::State;
use stor_replication::ids::ReplicaId;

use super::world::{SIZE, World};

impl World {
    fn member_nodes(&self) -> Vec<usize> {
        self.row.in_sync().filter_map(|id| self.node_of(id)).collect()
    }

    /// In-sync members are equal on regions that are clean on all of them; with `everywhere`, on all.
    pub(crate) fn check_equal(&mut self, everywhere: bool) {
        let members = self.member_nodes();
        let [first, rest @ ..] = members.as_slice() else {
            return;
        };
        let mut wrong = None;
        let per_region = (1 << 20) / super::disk::BLOCK;
        for region in 0..SIZE >> 20 {
            let dirty = |node: &usize| {
                self.nodes[*node]
                    .store
                    .as_ref()
                    .unwrap()
                    .1
                    .stored_dirty
                    .get(region)
            };
            if !everywhere && members.iter().any(dirty) {
                continue;
            }
            for block in region * per_region..(region + 1) * per_region {
                if self.has_rotted(block) {
                    continue;
                }
                let block = usize::try_from(block).unwrap();
                let read = |node: &usize| self.nodes[*node].store.as_ref().unwrap().1.block(block);
                if let Some(other) = rest.iter().find(|node| read(node) != read(first)) {
                    wrong = Some(format!(
                        "block {block} is {} on n{first} and {} on n{other}, both in sync, the region clean on all",
                        read(first),
                        read(other)
                    ));
                }
            }
        }
        if let Some(wrong) = wrong {
            self.violate(wrong);
        }
    }

    /// Nobody is left who could serve: all in-sync replicas' disks failed for good, or are with the machine that stays away.
    pub(crate) fn is_lost(&self) -> bool {
        let gone = |node: &usize| self.forsaken == Some(*node) || self.is_failed(*node);
        self.member_nodes().iter().all(gone)
    }

    /// Everything is as it was before the faults: `None`, or what is not.
    pub(crate) fn unsettled(&self) -> Option<String> {
        let away = |id: ReplicaId| self.forsaken.is_some() && self.forsaken == self.node_of(id);
        for (id, member) in self.row.replicas.iter().filter(|(id, _)| !away(**id)) {
            if member.state != MemberState::InSync {
                return Some(format!("replica {id} is {:?}", member.state));
            }
        }
        let Some(process) = self
            .engines
            .values()
            .find(|process| process.epoch == self.row.view.epoch)
        else {
            return Some("there is no engine".into());
        };
        let state = process.engine.state(self.nodes[process.node].clock(self.now));
        if state != State::Serving {
            return Some(format!("the engine is {state:?}"));
        }
        if self.guests.values().any(|guest| !guest.ops.is_empty()) {
            return Some("requests are not answered".into());
        }
        if process.engine.unequal_bytes() > 0 {
            return Some("members are not equal yet".into());
        }
        None
    }

    pub(crate) fn describe(&self) -> String {
        let mut text = format!("row {}; ", super::trace::row(&self.row));
        for process in self.engines.values() {
            let state = process.engine.state(self.nodes[process.node].clock(self.now));
            let engine = format!(
                "e{} on n{}: {state:?}, {} in flight, progress {:?}; ",
                process.epoch,
                process.node,
                process.engine.in_flight(),
                process.engine.progress()
            );
            text.push_str(&engine);
        }
        text
    }

    /// After a clean stop: no dirty region, all replicas equal.
    pub(crate) fn check_clean(&mut self) {
        self.check_equal(true);
        let dirty: Vec<ReplicaId> = self
            .nodes
            .iter()
            .filter(|node| {
                node.satellite
                    .as_ref()
                    .is_some_and(|s| s.replica.dirty_regions() > 0)
            })
            .filter_map(|node| node.store.as_ref().map(|(id, _)| *id))
            // One that left is about to be deleted.
            .filter(|id| self.row.replicas.contains_key(id))
            .collect();
        if !dirty.is_empty() {
            self.violate(format!(
                "dirty maps of {dirty:?} are not empty after a clean stop"
            ));
        }
    }
}
