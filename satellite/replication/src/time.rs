//! Time as the state machines see it: handed in, never read.

use std::ops::Add;
use std::time::Duration;

/// A reading of `CLOCK_BOOTTIME`, which goes on while the machine sleeps, so that a lease can't be
/// stretched by suspending its holder.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time(pub Duration);

impl Time {
    /// How long ago `earlier` was; zero if it lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, length: Duration) -> Self {
        Self(self.0.saturating_add(length))
    }
}

/// How long a replica's answer lets the engine serve reads (R6), as the replica counts it: from the
/// request's arrival. A second keeps a forced take-over quick and needs no more than one extra round
/// trip a second on a volume that is only read.
pub const LEASE: Duration = Duration::from_secs(1);

/// What the engine takes off a lease, which it counts from the request's sending: room for clocks that
/// run at different speeds. A tenth is far beyond any clock that keeps time at all.
pub const LEASE_MARGIN: Duration = Duration::from_millis(100);
