//! Who may open a replica (R14): the check of an engine's right, and the word about those who have none.
//!
//! The state machine sees an Open only after this. What is told is limited: anybody who can reach the port can
//! cause it.

use std::net::SocketAddr;
use std::time::Duration;

use stor_replication::ids::{Epoch, SnapshotId, VolumeId};
use stor_replication::right::RightRefusal;
use stor_replication::time::Time;
use stor_replication::wire::Header;
use stor_right::{Asked, Granted, Keyring, Seconds};

/// Between two warnings of refused Opens, whoever they were for.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// For tests: seconds by which the clock that rights are checked by is ahead of the machine's.
pub(super) const TEST_CLOCK_AHEAD: &str = "STOR_TEST_CLOCK_AHEAD";

/// See the module.
#[derive(Debug)]
pub(super) struct Gate {
    keys: Keyring,
    /// See [`TEST_CLOCK_AHEAD`].
    ahead: Duration,
    /// Not warned again before.
    quiet_until: Time,
    /// Refused since the last warning.
    untold: u64,
}

impl Gate {
    /// Lets nobody in: it has no keys yet.
    pub(super) fn new() -> Self {
        // Only tests set it; without a number the clock is right.
        let ahead = std::env::var(TEST_CLOCK_AHEAD).ok();
        let ahead = ahead.and_then(|seconds| seconds.parse().ok());
        Self {
            keys: Keyring::default(),
            ahead: ahead.map_or(Duration::ZERO, Duration::from_secs),
            quiet_until: Time::default(),
            untold: 0,
        }
    }

    /// Takes over the keys a controller named.
    pub(super) fn trust(&mut self, keys: Keyring) {
        self.keys = keys;
    }

    /// Checks the right that came with an Open of a replica whose highest epoch so far is `fenced`.
    //= docs/replication.md#R14
    pub(super) fn check(
        &self,
        header: &Header,
        right: &[u8],
        fenced: Epoch,
    ) -> Result<Granted, RightRefusal> {
        let asked = Asked {
            volume: header.volume,
            epoch: header.view.epoch,
            fenced,
        };
        self.keys.verify(right, asked, Seconds::now().after(self.ahead))
    }

    /// Checks a right to read copies of a snapshot: it names the snapshot where a right to a volume names that, so that
    /// it opens no replica, and no engine's right opens a copy.
    pub(super) fn check_copy(&self, snapshot: SnapshotId, right: &[u8]) -> Result<(), RightRefusal> {
        let asked = Asked {
            volume: VolumeId(snapshot.0),
            epoch: Epoch(1),
            // There are no epochs here, and age counts always.
            fenced: Epoch(0),
        };
        let granted = self.keys.verify(right, asked, Seconds::now().after(self.ahead));
        granted.map(drop)
    }

    /// Says that an Open was refused, unless something like it was said just before.
    pub(super) fn refused(
        &mut self,
        now: Time,
        header: &Header,
        why: RightRefusal,
        peer: Option<SocketAddr>,
    ) {
        self.untold += 1;
        if now < self.quiet_until {
            return;
        }
        self.quiet_until = now + WARN_EVERY;
        let (refused, peer) = (
            std::mem::take(&mut self.untold),
            peer.map(|peer| peer.to_string()),
        );
        tracing::warn!(
            volume = %header.volume, replica = %header.replica, epoch = %header.view.epoch, peer, %why, refused,
            "an engine without a right to this replica was refused"
        );
    }
}
