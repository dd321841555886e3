//! Which regions may differ between members or from what is durable: those the engine has written, from
//! the first write until a flush of the whole in-sync set that began after the last one (R7).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::range::ByteRange;
use crate::time::Time;

/// A region stays dirty this long after its last write: setting a bit again costs a page write on every
/// replica, keeping it costs a little more to repair after a crash.
pub(super) const IDLE: Duration = Duration::from_secs(5);
/// With more dirty regions than this the idle time is given up: bounds what a crash leaves to repair.
pub(super) const SOFT_CAP: usize = 4096;

#[derive(Clone, Copy, Debug, Default)]
struct Region {
    writing: u32,
    /// Moment of the last begin or end of a write.
    touched: u64,
    last: Time,
}

/// A moment in the engine's life: rises with every write that begins or ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Moment(u64);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    regions: BTreeMap<u64, Region>,
    moment: u64,
    /// Everything that ended before this moment is durable on the whole in-sync set.
    flushed: Moment,
}

impl Tracker {
    /// A write begins.
    pub(super) fn begin(&mut self, now: Time, range: ByteRange) {
        self.touch(now, range.regions(), 1);
    }

    /// A write ended.
    pub(super) fn end(&mut self, now: Time, range: ByteRange) {
        self.touch(now, range.regions(), -1);
    }

    /// A region is dirty on some replica for a reason of its own.
    pub(super) fn mark(&mut self, now: Time, region: u64) {
        self.touch(now, region..region + 1, 0);
    }

    fn touch(&mut self, now: Time, regions: std::ops::Range<u64>, writing: i32) {
        self.moment += 1;
        for index in regions {
            let region = self.regions.entry(index).or_default();
            region.writing = region.writing.saturating_add_signed(writing);
            region.touched = self.moment;
            region.last = now;
        }
    }

    /// Now, as a flush that begins would cover it.
    pub(super) fn moment(&self) -> Moment {
        Moment(self.moment)
    }

    /// The whole in-sync set acknowledged a flush that began at `moment`.
    pub(super) fn flushed(&mut self, moment: Moment) {
        self.flushed = self.flushed.max(moment);
    }

    /// The in-sync set grew: no earlier flush holds for the new member.
    pub(super) fn forget_flushes(&mut self) {
        self.flushed = Moment(0);
    }

    /// All of them.
    pub(super) fn regions(&self) -> impl Iterator<Item = u64> + '_ {
        self.regions.keys().copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Idle regions: those a past flush covers may be cleaned; `bool`: others wait for a flush.
    pub(super) fn idle(&self, now: Time) -> (Vec<u64>, bool) {
        let hold = if self.regions.len() > SOFT_CAP {
            Duration::ZERO
        } else {
            IDLE
        };
        let hold = if defect!(CleanWhileWriting) {
            Duration::ZERO
        } else {
            hold
        };
        let quiet = |region: &Region| region.writing == 0 || defect!(CleanWhileWriting);
        let idle = |region: &Region| quiet(region) && now.since(region.last) >= hold;
        let mut clean = Vec::new();
        let mut more = false;
        for (index, region) in self.regions.iter().filter(|(_, region)| idle(region)) {
            if region.touched <= self.flushed.0 || defect!(CleanWithoutFlush) {
                clean.push(*index);
            } else {
                more = true;
            }
        }
        (clean, more)
    }

    /// A region was declared clean to the whole in-sync set.
    pub(super) fn forget(&mut self, region: u64) {
        self.regions.remove(&region);
    }
}
