//! What the cluster does by itself, and when.

use std::time::Duration;

/// See the module. Every controller has its own; the leader's counts, so give all the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// A storage node that is away for so long is taken for lost and its replicas are replaced; `None`: never.
    pub replace_after: Option<Duration>,
    /// Not while more than this share of the storage nodes is away, in percent: then it is the network, or the power,
    /// and copying everything would make it worse. One node alone is always replaced.
    pub replace_share: u8,
    /// Days after which the copies of a volume are compared again, where its class does not say; 0: never.
    pub scrub_days: u16,
    /// Bytes a second that a scrub reads of each replica.
    pub scrub_rate: u64,
}

/// An hour: longer than a repair or an upgrade of a machine takes.
const REPLACE_AFTER: Duration = Duration::from_hours(1);
const REPLACE_SHARE: u8 = 34;
/// A month, as is usual for arrays: bits rot slowly.
const SCRUB_DAYS: u16 = 30;
/// A terabyte in nine hours; a tenth of what a single disk reads.
const SCRUB_RATE: u64 = 32 << 20;

impl Default for Policy {
    fn default() -> Self {
        Self {
            replace_after: Some(REPLACE_AFTER),
            replace_share: REPLACE_SHARE,
            scrub_days: SCRUB_DAYS,
            scrub_rate: SCRUB_RATE,
        }
    }
}

impl Policy {
    /// Whether `away` of `all` storage nodes are few enough to be replaced.
    pub fn may_replace(&self, away: usize, all: usize) -> bool {
        away == 1 || away * 100 <= all * usize::from(self.replace_share)
    }
}
