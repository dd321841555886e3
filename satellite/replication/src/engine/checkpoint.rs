//! What a resync has copied for good: flushed there, then let go of by the maps of the members.

use super::message::{Message, Purpose};
use super::resync::Sync;
use super::{Command, Engine};
use crate::bitmap::Bitmap;
use crate::body::Body;
use crate::ids::ReplicaId;
use crate::range::{BLOCKS_PER_REGION, ByteRange};
use crate::time::Time;
use crate::wire::{Kind, MAX_CONTROL};

/// Copied bytes, or an eighth of a small volume, after which the target is flushed and the maps of the
/// members are cleared: what an interruption costs (case 16).
const CHECKPOINT: u64 = 64 << 20;

impl Sync {
    /// Of the regions `done` lies in, flushed there, those of which nothing is left to copy, to flush, or to tell of:
    /// what its own dirty map says of them is no news to anyone. Whatever the members write there later they
    /// note themselves, and the replica too if it reaches it.
    fn whole_regions(&self, done: &Bitmap) -> Vec<u32> {
        let open = |region: u64| {
            let blocks = region * BLOCKS_PER_REGION..(region + 1) * BLOCKS_PER_REGION;
            let part = self.need.any(blocks.clone()) || self.copied.any(blocks.clone());
            (part && !defect!(PartCalledClean)) || (self.touched.any(blocks) && !defect!(WrittenCleared))
        };
        let mut whole: Vec<u32> = Vec::new();
        let mut from = 0;
        while let Some(block) = done.next_set(from) {
            let region = block / BLOCKS_PER_REGION;
            from = (region + 1) * BLOCKS_PER_REGION;
            whole.extend(u32::try_from(region).ok().filter(|_| !open(region)));
        }
        whole
    }
}

impl<P: Clone> Engine<P> {
    /// A copy reached the replica.
    pub(super) fn sync_copied(
        &mut self,
        now: Time,
        target: ReplicaId,
        range: ByteRange,
        out: &mut Vec<Command<P>>,
    ) {
        self.counters.resynced_bytes += range.len;
        let checkpoint = CHECKPOINT.min(self.row.size / 8);
        let Some(sync) = self.sync_of(target) else { return };
        sync.need.clear_range(range.blocks());
        sync.copied.set_range(range.blocks());
        sync.regions.set_range(range.regions());
        sync.since_checkpoint += range.len;
        if sync.since_checkpoint >= checkpoint && sync.flushing.is_none() {
            sync.since_checkpoint = 0;
            let blocks = sync.copied.len();
            sync.flushing = Some(std::mem::replace(&mut sync.copied, Bitmap::new(blocks)));
            if defect!(MapClearedUnflushed) {
                return self.checkpointed(now, target, out);
            }
            self.send(
                now,
                target,
                Message::plain(Kind::Flush),
                Purpose::Sync(target),
                out,
            );
        }
    }

    /// What was copied is durable there: the members' maps let go of it, but for what was written since, and so
    /// does its own.
    //= docs/replication.md#R10
    pub(super) fn checkpointed(&mut self, now: Time, target: ReplicaId, out: &mut Vec<Command<P>>) {
        let Some(sync) = self.sync_of(target) else { return };
        let Some(done) = sync.flushing.take() else { return };
        let whole = sync.whole_regions(&done);
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for block in done
            .iter()
            .filter(|block| !sync.touched.get(*block) || defect!(WrittenCleared))
        {
            match runs.last_mut().filter(|(first, count)| first + count == block) {
                Some((_, count)) => *count += 1,
                None => runs.push((block, 1)),
            }
        }
        let members: Vec<ReplicaId> = self
            .members()
            .filter(|(_, p)| p.is_open())
            .map(|(id, _)| id)
            .collect();
        // As many as a message holds: holes go fast, and a flush may take its time meanwhile.
        for runs in runs.chunks(MAX_CONTROL as usize / 16) {
            let body: Vec<u8> = runs
                .iter()
                .flat_map(|(first, count)| [first.to_le_bytes(), count.to_le_bytes()])
                .flatten()
                .collect();
            for replica in &members {
                let message = Message {
                    kind: Kind::ClearMap,
                    flags: 0,
                    offset: 0,
                    length: target.0,
                    body: Body::Bytes(body.clone()),
                };
                self.send(now, *replica, message, Purpose::Ping, out);
            }
        }
        //= docs/replication.md#R11
        // What a member that is away lacks must stay dirty wherever it is.
        let whole: Vec<u32> = whole
            .into_iter()
            .filter(|region| !self.is_written((*region).into()) || defect!(StalledCalledClean))
            .collect();
        for regions in whole.chunks(MAX_CONTROL as usize / 4) {
            let message = Message {
                body: Body::Bytes(regions.iter().flat_map(|region| region.to_le_bytes()).collect()),
                ..Message::plain(Kind::Clean)
            };
            self.send(now, target, message, Purpose::Ping, out);
        }
        self.stirred = true;
    }

    /// A client's write begins: blocks already copied are no longer what the checkpoint will vouch for.
    pub(super) fn note_live_write(&mut self, range: ByteRange) {
        for sync in self
            .peers
            .values_mut()
            .filter_map(|peer| peer.sync.as_mut())
            .filter(|sync| sync.mirrors())
        {
            for block in range.blocks().filter(|block| !sync.need.get(*block)) {
                sync.touched.set(block);
            }
            sync.regions.set_range(range.regions());
        }
    }
}
