//! What is to be made equal: unequal blocks, those somebody waits for first, and blocks a member could not
//! read.

use super::copy::{COPIES, COPY_BLOCKS, Reason, Stage, overlaps_unequal, run_at};
use super::io::Io;
use super::{Command, Engine, FailReason, IoError, Phase};
use crate::ids::{IoId, ReplicaId};
use crate::range::ByteRange;
use crate::time::Time;

impl<P: Clone> Engine<P> {
    /// Keeps the repair of unequal blocks going: first those somebody waits for.
    pub(super) fn tend_copies(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        // An engine that stops repairs no more than what is still asked for.
        if self.phase != Phase::Active && !(self.phase_serves() && self.has_client_io()) {
            return;
        }
        if self.nobody_is_right() {
            return self.fail(FailReason::CacheLost, out);
        }
        self.drop_unequal_when_alone();
        let stuck: Vec<u64> = self
            .copies
            .iter()
            .filter(|(_, job)| job.stage == Stage::Reading && job.source.is_none())
            .map(|(id, _)| *id)
            .collect();
        for id in stuck {
            self.copy_locked(now, id, out);
        }
        let mut running = self
            .copies
            .values()
            .filter(|job| job.reason == Reason::Repair)
            .count();
        while running < COPIES {
            let Some(first) = self.next_unequal(now) else {
                break;
            };
            let range = ByteRange::of_blocks(run_at(&self.unequal, first, COPY_BLOCKS), self.row.size);
            self.begin_copy(now, range, Reason::Repair, false, out);
            running += 1;
        }
        if self.unequal.is_clear() && !self.unrepaired.is_empty() {
            self.requeue_unrepaired(now, out);
        }
    }

    /// The next block to repair that no copy has in hand.
    fn next_unequal(&self, now: Time) -> Option<u64> {
        let free = |block: &u64| {
            let at = ByteRange::new(block * crate::range::BLOCK, 1);
            !self
                .copies
                .values()
                .any(|job| job.reason == Reason::Repair && job.range.overlaps(at))
        };
        let urgent = self
            .urgent
            .iter()
            .copied()
            .filter(|block| self.unequal.get(*block))
            .find(free);
        urgent.or_else(|| self.unequal.iter().find(free).filter(|_| self.repair_at <= now))
    }

    /// Reads that waited for a repair try again.
    pub(super) fn requeue_unrepaired(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        let waiting: Vec<IoId> = self.unrepaired.drain(..).collect();
        for io in waiting {
            self.begin(now, io, out);
        }
    }

    /// An unreadable range of a member is written again from another one, if there is one.
    pub(super) fn mend(
        &mut self,
        now: Time,
        replica: ReplicaId,
        range: ByteRange,
        out: &mut Vec<Command<P>>,
    ) {
        let reason = Reason::Mend(replica);
        let known = self
            .copies
            .values()
            .any(|job| job.reason == reason && job.range == range);
        // Where members differ, only the repair knows who is right.
        let known = known || overlaps_unequal(&self.unequal, range);
        if !known && self.members().count() > 1 && self.copies.len() < 4 * COPIES {
            self.begin_copy(now, range, reason, false, out);
        }
    }

    /// Nobody can read these bytes: who waits for their repair is told.
    pub(super) fn fail_unrepaired(&mut self, now: Time, range: ByteRange, out: &mut Vec<Command<P>>) {
        for io in std::mem::take(&mut self.unrepaired) {
            if self
                .ios
                .get(&io)
                .and_then(Io::range)
                .is_some_and(|of| of.overlaps(range))
            {
                self.finish(now, io, Err(IoError::Media), out);
            } else {
                self.unrepaired.push_back(io);
            }
        }
        range.blocks().for_each(|block| {
            self.urgent.remove(&block);
        });
    }
}
