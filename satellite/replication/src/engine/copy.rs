//! Copies between replicas, under a range lock (R12): to make members equal after a crash (R8), to write an unreadable
//! block again, to mend what a scrub found, to bring a returning replica up to date.

use std::ops::Range;
use std::time::Duration;

use super::io::data_message;
use super::locks::Holder;
use super::message::{Message, Purpose};
use super::{Command, Engine, FailReason};
use crate::bitmap::Bitmap;
use crate::body::Body;
use crate::ids::ReplicaId;
use crate::range::{ByteRange, SECTOR};
use crate::time::Time;
use crate::wire::{Kind, flags};

/// Blocks copied at once: 256 KiB. More would hold a writer up too long, less costs more round trips.
pub(super) const COPY_BLOCKS: u64 = 4;
/// Copies under way at once, of each purpose.
pub(super) const COPIES: usize = 4;

/// A block that no member can read is not tried again in the background before this.
const REPAIR_PAUSE: Duration = Duration::from_secs(1);

/// Why a copy is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reason {
    /// Members may differ here.
    Repair,
    /// This member could not read it.
    Mend(ReplicaId),
    /// This replica missed it.
    Sync(ReplicaId),
    /// A scrub found that these, by their bits, do not hold what that one does.
    Scrub { source: ReplicaId, targets: u16 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    Locking,
    Reading,
    Writing,
}

/// One copy.
#[derive(Debug)]
pub(super) struct CopyJob {
    pub(super) range: ByteRange,
    pub(super) reason: Reason,
    /// A part of it could not be read: it is copied sector by sector, this one now, so that an unreadable
    /// sector costs itself and not its neighbours.
    piece: Option<ByteRange>,
    pub(super) stage: Stage,
    pub(super) source: Option<ReplicaId>,
    /// Bits of the replicas that must have it.
    targets: u16,
    acked: u16,
    /// Bits of the replicas that could not read it.
    failed: u16,
    /// A member lost what it had not flushed since this began, maybe parts of this: the range is as unequal as before.
    pub(super) void: bool,
    /// The source is asked for holes first, and the range cut to what it says.
    pub(super) asks: bool,
}

impl CopyJob {
    /// What it reads and writes now.
    fn part(&self) -> ByteRange {
        self.piece.unwrap_or(self.range)
    }

    /// Goes on to the next piece, if there is one.
    fn next_piece(&mut self) -> bool {
        let next = self.piece.map(|piece| ByteRange::new(piece.end(), SECTOR));
        let Some(next) = next.filter(|next| next.end() <= self.range.end()) else {
            return false;
        };
        self.piece = Some(next);
        (self.failed, self.acked, self.targets) = (0, 0, 0);
        true
    }
}

/// Whether a range has a block that may differ between members.
pub(super) fn overlaps_unequal(unequal: &Bitmap, range: ByteRange) -> bool {
    !unequal.is_clear() && unequal.any(range.blocks())
}

/// The run of set bits at `first`, at most `longest` long.
pub(super) fn run_at(map: &Bitmap, first: u64, longest: u64) -> Range<u64> {
    let end = (first..first + longest)
        .find(|block| !map.get(*block))
        .unwrap_or(first + longest);
    first..end
}

impl<P: Clone> Engine<P> {
    /// Begins a copy: it asks for the lock.
    pub(super) fn begin_copy(
        &mut self,
        now: Time,
        range: ByteRange,
        reason: Reason,
        asks: bool,
        out: &mut Vec<Command<P>>,
    ) {
        let id = self.next_copy;
        self.next_copy += 1;
        let job = CopyJob {
            range,
            reason,
            piece: None,
            stage: Stage::Locking,
            source: None,
            targets: 0,
            acked: 0,
            failed: 0,
            void: false,
            asks,
        };
        self.copies.insert(id, job);
        // What a returning replica gets changes nothing that is read.
        let exclusive = !matches!(reason, Reason::Sync(_));
        if self.locks.acquire(Holder::Copy(id), range, exclusive) {
            self.copy_locked(now, id, out);
        }
    }

    /// Has its lock: reads from a source.
    pub(super) fn copy_locked(&mut self, now: Time, id: u64, out: &mut Vec<Command<P>>) {
        let Some(job) = self.copies.get(&id) else { return };
        let (range, failed, reason, asks) = (job.part(), job.failed, job.reason, job.asks);
        let source = match reason {
            Reason::Repair => self.repair_source(now, failed, out),
            Reason::Mend(replica) => self.any_source(range, failed, Some(replica)),
            //= docs/replication.md#R12
            Reason::Sync(_) if defect!(PassFromAnyone) => self.any_source(range, failed, None),
            Reason::Sync(_) => self.any_source(range, failed | self.lacking(range), None),
            Reason::Scrub { source, .. } => self.scrub_source(source, range, failed),
        };
        let hopeless = match reason {
            // Whoever wants the bytes, or looks at them again, finds them as they were.
            Reason::Mend(_) | Reason::Scrub { .. } => true,
            Reason::Repair => !self.members().any(|(_, peer)| self.may_repair_from(peer, failed)),
            Reason::Sync(_) => self.members().all(|(_, peer)| failed & peer.bit != 0),
        };
        // Who is right about unequal blocks only their repair finds out, and that needs the lock. The resync comes
        // back to them.
        let yields =
            source.is_none() && matches!(reason, Reason::Sync(_)) && overlaps_unequal(&self.unequal, range);
        if yields && !defect!(CopyHoldsRepair) {
            self.copies.remove(&id);
            return self.unlock(now, Holder::Copy(id), out);
        }
        let Some(job) = self.copies.get_mut(&id) else {
            return;
        };
        job.stage = Stage::Reading;
        job.source = source;
        match source {
            Some(source) => {
                let kind = if asks { Kind::Extents } else { Kind::Read };
                let message = data_message(kind, range, false, Body::None);
                self.send(now, source, message, Purpose::Copy(id), out);
            }
            None if hopeless => self.copy_hopeless(now, id, out),
            None => {}
        }
    }

    /// A source is there again, or has to be chosen anew.
    pub(super) fn restart_copy(&mut self, now: Time, id: u64, out: &mut Vec<Command<P>>) {
        if self
            .copies
            .get(&id)
            .is_some_and(|job| job.stage == Stage::Reading)
        {
            self.copy_locked(now, id, out);
        }
    }

    /// Copies to a returning replica that wait for a lock behind a write that waits itself, for members that are away.
    //= docs/replication.md#R12
    pub(super) fn pass_stalled(&mut self, now: Time, target: ReplicaId, out: &mut Vec<Command<P>>) {
        let waits = |job: &CopyJob| job.reason == Reason::Sync(target) && job.stage == Stage::Locking;
        let jobs = self.copies.iter().filter(|(_, job)| waits(job));
        let waiting: Vec<u64> = jobs.map(|(id, _)| *id).collect();
        // While all members are there, whoever is before it in the queue has its turn first.
        let all_there = self.members().all(|(_, peer)| peer.is_open());
        if waiting.is_empty() || all_there || defect!(NothingPassed) {
            return;
        }
        let stalled = self.stalled_writes();
        for id in waiting {
            let passed = |holder: Holder| matches!(holder, Holder::Io(io) if stalled.contains(&io));
            if self.locks.pass(Holder::Copy(id), passed) {
                self.copy_locked(now, id, out);
            }
        }
    }

    /// The source answered, or a target did.
    pub(super) fn copy_answered(
        &mut self,
        now: Time,
        replica: ReplicaId,
        id: u64,
        body: Body<P>,
        out: &mut Vec<Command<P>>,
    ) {
        let bit = self.peers.get(&replica).map_or(0, |peer| peer.bit);
        let Some(job) = self.copies.get_mut(&id) else {
            return;
        };
        match (job.stage, body) {
            (Stage::Reading, body) if job.source == Some(replica) && job.asks => {
                self.surveyed(now, id, body.bytes(), out);
            }
            (Stage::Reading, Body::Data(data)) if job.source == Some(replica) => {
                self.write_copy(now, id, Some(data), out);
            }
            (Stage::Writing, _) => {
                job.acked |= bit;
                self.end_copy_when_done(now, id, out);
            }
            _ => {}
        }
    }

    /// Sends what was read, or, if there is nothing, that it is a hole.
    pub(super) fn write_copy(&mut self, now: Time, id: u64, data: Option<P>, out: &mut Vec<Command<P>>) {
        let Some(job) = self.copies.get(&id) else { return };
        let (range, reason, source) = (job.part(), job.reason, job.source);
        let targets: Vec<(ReplicaId, u16)> = self
            .peers
            .iter()
            .filter(|(replica, peer)| match reason {
                Reason::Repair => self.is_member(**replica) && Some(**replica) != source,
                Reason::Scrub { targets, .. } => {
                    let named = peer.bit & targets != 0 && Some(**replica) != source;
                    named && self.is_member(**replica) && peer.is_open()
                }
                Reason::Mend(target) => **replica == target && peer.is_open(),
                Reason::Sync(target) => **replica == target,
            })
            .map(|(replica, peer)| (*replica, peer.bit))
            .collect();
        if let Some(job) = self.copies.get_mut(&id) {
            job.stage = Stage::Writing;
            job.targets = targets.iter().fold(0, |mask, (_, bit)| mask | bit);
        }
        if !matches!(reason, Reason::Sync(_)) && !defect!(CopyNotTracked) {
            self.tracker.begin(now, range);
        }
        //= docs/replication.md#C3
        // What was mended and comes back with a loss of power could be taken for right by the repair that follows (R8).
        let fua = matches!(reason, Reason::Scrub { .. }) && !defect!(ScrubUnflushed);
        let message = match data {
            Some(data) => data_message(Kind::Write, range, fua, Body::Data(data)),
            None => Message {
                flags: flags::DISCARD,
                ..data_message(Kind::Zero, range, false, Body::None)
            },
        };
        for (replica, _) in targets {
            let message = message.clone();
            self.send(now, replica, message, Purpose::Copy(id), out);
        }
        self.end_copy_when_done(now, id, out);
    }

    /// A member is not there: what was being mended on it is for a later read or scrub to find, and holds nobody's bytes
    /// until it is back.
    //= docs/replication.md#R12
    pub(super) fn drop_mends_on(&mut self, now: Time, replica: ReplicaId, out: &mut Vec<Command<P>>) {
        let bit = self.peers.get(&replica).map_or(0, |peer| peer.bit);
        let mends = |job: &CopyJob| matches!(job.reason, Reason::Mend(_) | Reason::Scrub { .. });
        let owed = |job: &CopyJob| job.stage == Stage::Writing && job.targets & !job.acked & bit != 0;
        let jobs = self.copies.iter().filter(|(_, job)| mends(job) && owed(job));
        let ids: Vec<u64> = jobs.map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(peer) = self.peers.get_mut(&replica) {
                peer.sent.retain(|_, sent| sent.purpose != Purpose::Copy(id));
            }
            if let Some(job) = self.copies.get_mut(&id) {
                job.targets &= !bit;
            }
            self.end_copy_when_done(now, id, out);
        }
    }

    fn end_copy_when_done(&mut self, now: Time, id: u64, out: &mut Vec<Command<P>>) {
        let done = self
            .copies
            .get(&id)
            .is_some_and(|job| job.stage == Stage::Writing && job.acked & job.targets == job.targets);
        if !done {
            return;
        }
        let Some(job) = self.copies.get_mut(&id) else {
            return;
        };
        if !matches!(job.reason, Reason::Sync(_)) && !defect!(CopyNotTracked) {
            self.tracker.end(now, job.part());
        }
        if job.next_piece() {
            return self.copy_locked(now, id, out);
        }
        let Some(job) = self.copies.remove(&id) else {
            return;
        };
        match job.reason {
            //= docs/replication.md#R9
            Reason::Repair if job.void => {}
            Reason::Repair => {
                self.counters.repaired_bytes += job.range.len;
                self.unequal.clear_range(job.range.blocks());
                job.range.blocks().for_each(|block| {
                    self.urgent.remove(&block);
                });
            }
            Reason::Mend(_) | Reason::Scrub { .. } => self.counters.repaired_bytes += job.range.len,
            Reason::Sync(replica) => self.sync_copied(now, replica, job.range, out),
        }
        self.unlock(now, Holder::Copy(id), out);
        if job.reason == Reason::Repair {
            self.requeue_unrepaired(now, out);
        }
        self.stirred = true;
    }

    /// A source could not read: another is tried, and what it had to say is written over the bad block.
    pub(super) fn copy_read_failed(
        &mut self,
        now: Time,
        replica: ReplicaId,
        id: u64,
        out: &mut Vec<Command<P>>,
    ) {
        let bit = self.peers.get(&replica).map_or(0, |peer| peer.bit);
        let Some(job) = self.copies.get_mut(&id) else {
            return;
        };
        let (range, reason) = (job.part(), job.reason);
        job.failed |= bit;
        let whole = job.piece.is_none() && range.len > SECTOR;
        if whole && !matches!(reason, Reason::Mend(_) | Reason::Scrub { .. }) {
            job.piece = Some(ByteRange::new(range.offset, SECTOR));
            job.failed = 0;
            return self.restart_copy(now, id, out);
        }
        self.restart_copy(now, id, out);
        let gone = !self.copies.contains_key(&id);
        match reason {
            Reason::Mend(target) if gone && whole => {
                // Two members may each lack a different block of the range: half of it may do.
                let first = (range.len / 2).next_multiple_of(SECTOR);
                self.mend(now, target, ByteRange::new(range.offset, first), out);
                let second = ByteRange::new(range.offset + first, range.len - first);
                self.mend(now, target, second, out);
            }
            Reason::Mend(_) | Reason::Scrub { .. } => {}
            Reason::Repair | Reason::Sync(_) => self.mend(now, replica, range, out),
        }
    }

    /// No member can read the block. A returning replica can't be completed; unequal blocks stay unequal
    /// and the reads that want them fail.
    fn copy_hopeless(&mut self, now: Time, id: u64, out: &mut Vec<Command<P>>) {
        let Some(job) = self.copies.remove(&id) else {
            return;
        };
        self.unlock(now, Holder::Copy(id), out);
        match job.reason {
            Reason::Sync(replica) => self.abort_sync(now, replica, out),
            // The block stays unreadable there; to remove the replica for it would cost a copy of the rest.
            Reason::Mend(_) | Reason::Scrub { .. } => {}
            // What another member holds is older than what the client was told: no read may show it.
            Reason::Repair if self.members().any(|(_, peer)| job.failed & peer.bit == 0) => {
                self.fail(FailReason::CacheLost, out);
            }
            Reason::Repair => {
                self.repair_at = now + REPAIR_PAUSE;
                self.fail_unrepaired(now, job.range, out);
            }
        }
    }

    /// Some copy will still write to a member.
    pub(super) fn copies_to_members(&self) -> bool {
        self.copies
            .values()
            .any(|job| !matches!(job.reason, Reason::Sync(_)))
    }

    /// A member left: copies need it no more, as target or source.
    pub(super) fn copies_without(
        &mut self,
        now: Time,
        replica: ReplicaId,
        bit: u16,
        out: &mut Vec<Command<P>>,
    ) {
        let mend = Reason::Mend(replica);
        let ids: Vec<u64> = self.copies.keys().copied().collect();
        for id in ids {
            let Some(job) = self.copies.get_mut(&id) else {
                continue;
            };
            job.targets &= !bit;
            if job.reason == mend && job.stage != Stage::Writing {
                self.copies.remove(&id);
                self.unlock(now, Holder::Copy(id), out);
            } else if job.stage == Stage::Reading && job.source == Some(replica) {
                self.copy_locked(now, id, out);
            } else {
                self.end_copy_when_done(now, id, out);
            }
        }
    }

    /// Drops the copies made for a replica whose resync ended. Its connection is closed before, so that
    /// none of them can arrive late.
    pub(super) fn drop_copies_for(&mut self, now: Time, replica: ReplicaId, out: &mut Vec<Command<P>>) {
        let reason = Reason::Sync(replica);
        let ids: Vec<u64> = self
            .copies
            .iter()
            .filter(|(_, job)| job.reason == reason)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.copies.remove(&id);
            self.unlock(now, Holder::Copy(id), out);
        }
    }
}
