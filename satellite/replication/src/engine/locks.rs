//! Range locks: overlapping writes are never in flight together, and no read beside a write (R12).
//!
//! Readers share, and so do copies to a replica that is not read; writers and other copies exclude. First come, first
//! served: a request waits for every earlier one it conflicts with, granted or not, so that nobody starves.

use std::collections::VecDeque;

use crate::ids::IoId;
use crate::range::ByteRange;

/// Who holds or awaits a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Holder {
    /// A client's request.
    Io(IoId),
    /// A copy between replicas.
    Copy(u64),
    /// A look of a scrub.
    Scrub(u64),
}

#[derive(Clone, Copy, Debug)]
struct Lock {
    holder: Holder,
    range: ByteRange,
    exclusive: bool,
}

impl Lock {
    fn conflicts(&self, other: &Self) -> bool {
        let shared = defect!(ReadsUnlocked) && !(self.exclusive && other.exclusive);
        (self.exclusive || other.exclusive) && !shared && self.range.overlaps(other.range)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Locks {
    granted: Vec<Lock>,
    waiting: VecDeque<Lock>,
}

impl Locks {
    /// Asks for a lock; `true`: granted at once. Otherwise [`Locks::release`] grants it one day.
    //= docs/replication.md#R12
    pub(super) fn acquire(&mut self, holder: Holder, range: ByteRange, exclusive: bool) -> bool {
        let lock = Lock {
            holder,
            range,
            exclusive,
        };
        let blocked = self
            .granted
            .iter()
            .chain(&self.waiting)
            .any(|other| lock.conflicts(other));
        let copy = matches!(holder, Holder::Copy(_));
        let blocked = blocked && !defect!(NoLocks) && !(defect!(CopyUnlocked) && copy);
        if blocked {
            self.waiting.push_back(lock);
        } else {
            self.granted.push(lock);
        }
        !blocked
    }

    /// Grants a lock that is waited for past those `passed`, and past whoever waits, if nobody else is in the way. Says
    /// whether it did.
    //= docs/replication.md#R12
    pub(super) fn pass(&mut self, holder: Holder, passed: impl Fn(Holder) -> bool) -> bool {
        let Some(at) = self.waiting.iter().position(|lock| lock.holder == holder) else {
            return false;
        };
        let blocks = |lock: &Lock, other: &Lock| lock.conflicts(other) && !passed(other.holder);
        let free = |lock: &Lock| !self.granted.iter().any(|other| blocks(lock, other));
        let lock = self.waiting.get(at).copied().filter(free);
        if let Some(lock) = lock {
            self.waiting.remove(at);
            self.granted.push(lock);
        }
        lock.is_some()
    }

    /// Gives a lock, or the wait for one, back. Appends who got theirs by that.
    pub(super) fn release(&mut self, holder: Holder, granted: &mut Vec<Holder>) {
        if let Some(at) = self.granted.iter().position(|lock| lock.holder == holder) {
            self.granted.swap_remove(at);
        } else if let Some(at) = self.waiting.iter().position(|lock| lock.holder == holder) {
            self.waiting.remove(at);
        }
        self.grant(granted);
    }

    /// Keeps only a part of the range a granted lock is for. Appends who got theirs by that.
    pub(super) fn shrink(&mut self, holder: Holder, range: ByteRange, granted: &mut Vec<Holder>) {
        if let Some(lock) = self.granted.iter_mut().find(|lock| lock.holder == holder) {
            lock.range = range;
        }
        self.grant(granted);
    }

    fn grant(&mut self, granted: &mut Vec<Holder>) {
        let mut index = 0;
        while let Some(lock) = self.waiting.get(index).copied() {
            let earlier = self.waiting.iter().take(index);
            if self
                .granted
                .iter()
                .chain(earlier)
                .any(|other| lock.conflicts(other))
            {
                index += 1;
            } else {
                self.waiting.remove(index);
                self.granted.push(lock);
                granted.push(lock.holder);
            }
        }
    }

    /// Whether `holder` has its lock.
    pub(super) fn holds(&self, holder: Holder) -> bool {
        self.granted.iter().any(|lock| lock.holder == holder)
    }
}
