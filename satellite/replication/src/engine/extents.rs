//! Which parts of the volume are holes: asked of one member, as a read is, under the same lock and the same
//! leases. Members may differ in what is allocated, but not in what a hole reads as; where they may differ in
//! that, too, nothing is a hole.

use super::locks::Holder;
use super::{Command, Engine, Request};
use crate::body::Body;
use crate::extents::{Extent, decode};
use crate::ids::IoId;
use crate::range::{BLOCK, ByteRange};
use crate::time::Time;

impl<P: Clone> Engine<P> {
    /// Cuts the range to what is equal on all members and takes its lock. A range that begins where they may
    /// differ is answered at once.
    //= docs/replication.md#R8
    pub(super) fn begin_extents(&mut self, now: Time, io: IoId, range: ByteRange, out: &mut Vec<Command<P>>) {
        let blocks = range.blocks();
        let unequal = self
            .unequal
            .next_set(blocks.start)
            .filter(|block| blocks.contains(block));
        let equal = unequal.map_or(range.len, |block| (block * BLOCK).saturating_sub(range.offset));
        let Some(state) = self.ios.get_mut(&io) else {
            return;
        };
        if equal == 0 {
            let end = blocks.clone().find(|block| !self.unequal.get(*block));
            let end = end.map_or(range.end(), |block| block * BLOCK);
            state.extents = Some(vec![Extent::data(end - range.offset)]);
            return self.finish(now, io, Ok(None), out);
        }
        let range = ByteRange::new(range.offset, equal);
        state.request = Request::Extents(range);
        if self.locks.acquire(Holder::Io(io), range, false) {
            self.issue(now, io, out);
        }
    }

    /// A member answered. What does not describe the range says nothing of it.
    pub(super) fn extents_answered(
        &mut self,
        now: Time,
        io: IoId,
        body: &Body<P>,
        out: &mut Vec<Command<P>>,
    ) {
        let Some(state) = self.ios.get_mut(&io) else {
            return;
        };
        let Some(range) = state.range() else { return };
        let extents = decode(body.bytes(), range.len);
        state.extents = Some(extents.unwrap_or_else(|| vec![Extent::data(range.len)]));
        self.release_read(now, io, out);
    }
}
