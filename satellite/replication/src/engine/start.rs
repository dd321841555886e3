//! From promises to service: which regions are unequal, which member is right about them.

use super::message::{Message, Purpose};
use super::{Command, Engine, FailReason, Phase};
use crate::bitmap::Bitmap;
use crate::catalogue::MemberState;
use crate::ids::ReplicaId;
use crate::info::Info;
use crate::range::{BLOCK, REGION};
use crate::time::Time;
use crate::wire::{DIRTY_MAP, Kind};

impl<P: Clone> Engine<P> {
    pub(super) fn regions(&self) -> u64 {
        self.row.size.div_ceil(REGION)
    }

    pub(super) fn blocks(&self) -> u64 {
        self.row.size.div_ceil(BLOCK)
    }

    /// Whether a member's own account fits what the catalogue says of it. A superblock from before it
    /// joined was restored from a copy (case 36).
    pub(super) fn vouches(&self, replica: ReplicaId, info: &Info) -> bool {
        let joined = self.row.replicas.get(&replica).and_then(|member| member.joined);
        info.in_sync
            && info.lineage == self.row.lineage
            && info.size >= self.row.size
            && joined.is_some_and(|joined| info.stored.config.next() >= joined)
    }

    /// Asks a member for its dirty map, from word `from` on.
    pub(super) fn ask_dirty(&mut self, now: Time, replica: ReplicaId, from: u64, out: &mut Vec<Command<P>>) {
        let message = Message {
            offset: from,
            length: DIRTY_MAP,
            ..Message::plain(Kind::GetMap)
        };
        self.send(now, replica, message, Purpose::DirtyMap(from), out);
    }

    pub(super) fn dirty_words(
        &mut self,
        now: Time,
        replica: ReplicaId,
        from: u64,
        words: &[u8],
        out: &mut Vec<Command<P>>,
    ) {
        let regions = self.regions();
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        let map = peer.reading.get_or_insert_with(|| Bitmap::new(regions));
        map.or_bytes(from, words);
        let next = from + words.len() as u64 / 8;
        if words.is_empty() || next >= regions.div_ceil(64) {
            let map = peer.reading.take().unwrap_or_default();
            self.set_dirty(now, replica, map, out);
        } else {
            self.ask_dirty(now, replica, next, out);
        }
    }

    /// A member's dirty map is known: it is ready.
    pub(super) fn set_dirty(
        &mut self,
        now: Time,
        replica: ReplicaId,
        map: Bitmap,
        out: &mut Vec<Command<P>>,
    ) {
        if self.phase_serves() {
            for region in map.iter() {
                self.tracker.mark(now, region);
            }
        }
        if let Some(peer) = self.peers.get_mut(&replica) {
            peer.dirty = Some(map);
        }
        self.issue_waiting_reads(now, out);
        self.stirred = true;
    }

    /// Begins to serve once every member has promised and its dirty map is known (R5, R8).
    pub(super) fn start_when_ready(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        let Phase::Starting { .. } = self.phase else {
            return;
        };
        if self.proposal.is_some()
            || self.members().next().is_none()
            || !self.members().all(|(_, p)| p.is_ready())
        {
            return;
        }
        let mut dirty = Bitmap::new(self.regions());
        for map in self.members().filter_map(|(_, peer)| peer.dirty.as_ref()) {
            dirty.or(map);
        }
        //= docs/replication.md#R8
        if !dirty.is_clear() {
            let source = self.members().max_by_key(|(_, peer)| peer.worth());
            if self.guest_alive && !defect!(LossServed) && !source.is_some_and(|(_, peer)| peer.is_right()) {
                return self.fail(FailReason::CacheLost, out);
            }
            self.source = source.map(|(id, _)| id);
            for region in dirty.iter() {
                self.tracker.mark(now, region);
            }
            let members: Vec<ReplicaId> = self.members().map(|(id, _)| id).collect();
            for replica in members {
                if let Some(peer) = self.peers.get_mut(&replica) {
                    peer.assume_unflushed();
                }
            }
        }
        self.unequal = dirty.regions_to_blocks(self.blocks());
        if defect!(NoRepair) {
            self.unequal = Bitmap::new(self.blocks());
        }
        self.phase = Phase::Active;
        self.tell_source(now, out);
        self.begin_backlog(now, out);
    }

    /// A member lost what it had not flushed and the set may not shrink (R16): every region that is not
    /// known to be durable on it is unequal from here on, as after an unclean end, and copied to it from a
    /// member that has it.
    //= docs/replication.md#R9
    pub(super) fn doubt(&mut self, now: Time, replica: ReplicaId, out: &mut Vec<Command<P>>) {
        let mut regions = Bitmap::new(self.regions());
        for region in self.tracker.regions() {
            regions.set(region);
        }
        if self.unequal.is_empty() {
            self.unequal = Bitmap::new(self.blocks());
        }
        self.unequal.or(&regions.regions_to_blocks(self.blocks()));
        self.copies
            .values_mut()
            .for_each(|job| job.void = !defect!(CopyNotVoided));
        self.source = None;
        if !defect!(WritesNotRecalled) {
            self.recall_writes(now, replica, out);
        }
        self.repair_at = now;
        self.stirred = true;
        if !defect!(FlushNotRecalled) {
            self.recall_flushes(now, out);
        }
    }

    /// Copies of one replica are equal to themselves.
    pub(super) fn drop_unequal_when_alone(&mut self) {
        let members = self
            .row
            .replicas
            .values()
            .filter(|member| member.state == MemberState::InSync)
            .count();
        if members <= 1 && !self.unequal.is_clear() && !self.nobody_is_right() {
            self.unequal = Bitmap::new(self.blocks());
            self.urgent.clear();
        }
    }
}
