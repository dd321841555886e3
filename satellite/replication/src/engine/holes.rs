//! Copies to a returning replica keep holes: what takes no space on the source takes none on the target.
//!
//! A copy of what is not known to be data asks the source first, under the lock it copies under, so that no
//! write comes between the answer and what is made of it. It is then cut to what the answer begins with: a
//! hole is sent as one, however long; data as ever. That a range *was* data is remembered and saves the next
//! question; that it was a hole never is.
//!
//! Repairs (R8) copy what was just written and do not ask.

use super::copy::{COPIES, COPY_BLOCKS, Reason, run_at};
use super::locks::Holder;
use super::{Command, Engine};
use crate::extents::decode;
use crate::ids::ReplicaId;
use crate::range::{BLOCK, ByteRange};
use crate::time::Time;

/// Blocks asked about, and zeroed, at once: 16 MiB. Writers wait for the answer, and for the hole to be made.
const SURVEY_BLOCKS: u64 = 256;

impl<P: Clone> Engine<P> {
    /// Keeps the copies to a returning replica going, in order.
    pub(super) fn pump_copies(&mut self, now: Time, target: ReplicaId, out: &mut Vec<Command<P>>) {
        self.pass_stalled(now, target, out);
        loop {
            let reason = Reason::Sync(target);
            let own = self.copies.values().filter(|job| job.reason == reason);
            let taken: Vec<ByteRange> = own.clone().map(|job| job.range).collect();
            // Until the answer is there nobody knows where the next one begins.
            let asking = own.clone().any(|job| job.asks);
            if taken.len() >= COPIES || asking {
                return;
            }
            let Some(sync) = self.sync_of(target) else { return };
            let from = taken.iter().map(|range| range.blocks().end).max().unwrap_or(0);
            let is_taken = |block: &u64| taken.iter().any(|range| range.blocks().contains(block));
            let first = sync
                .need
                .next_set(from)
                .or_else(|| sync.need.iter().find(|block| !is_taken(block)));
            let Some(first) = first else {
                if taken.is_empty() {
                    self.begin_joint(now, target, out);
                }
                return;
            };
            let known = sync.data.contains(&first);
            let longest = if known {
                COPY_BLOCKS.min(sync.data.end - first)
            } else {
                SURVEY_BLOCKS
            };
            let mut run = run_at(&sync.need, first, longest);
            run.end = run.clone().find(is_taken).unwrap_or(run.end);
            let range = ByteRange::of_blocks(run, self.row.size);
            self.begin_copy(now, range, reason, !known, out);
        }
    }

    /// The source told what is a hole, or nothing that makes sense: then all is data.
    //= docs/replication.md#G1
    pub(super) fn surveyed(&mut self, now: Time, id: u64, answer: &[u8], out: &mut Vec<Command<P>>) {
        let Some(job) = self.copies.get_mut(&id) else {
            return;
        };
        job.asks = false;
        let reason = job.reason;
        let (part, hole) = beginning(job.range, answer);
        let most = if hole { part.len } else { COPY_BLOCKS * BLOCK };
        let range = ByteRange::new(part.offset, part.len.min(most));
        job.range = range;
        if let Reason::Sync(target) = reason
            && let Some(sync) = self.sync_of(target)
        {
            sync.data = if hole { 0..0 } else { part.blocks() };
        }
        let mut granted = Vec::new();
        self.locks.shrink(Holder::Copy(id), range, &mut granted);
        self.begin_granted(now, granted, out);
        if hole {
            self.write_copy(now, id, None, out);
        } else {
            self.copy_locked(now, id, out);
        }
        self.stirred = true;
    }
}

/// What the range begins with, in whole blocks, and whether that is a hole. A block that is a hole in part is data.
fn beginning(asked: ByteRange, answer: &[u8]) -> (ByteRange, bool) {
    let extents = decode(answer, asked.len).unwrap_or_default();
    let Some(first) = extents.first() else {
        return (asked, false);
    };
    let same = extents.iter().take_while(|extent| extent.hole == first.hole);
    let end = asked.offset + same.map(|extent| u64::from(extent.length)).sum::<u64>();
    let whole = end - end % BLOCK;
    let part = |end: u64| ByteRange::new(asked.offset, end.min(asked.end()).saturating_sub(asked.offset));
    match first.hole {
        true if end >= asked.end() || defect!(HoleTooLong) => (asked, true),
        true if whole > asked.offset => (part(whole), true),
        true => (part(asked.offset + BLOCK), false),
        false => (part(end.next_multiple_of(BLOCK)), false),
    }
}
