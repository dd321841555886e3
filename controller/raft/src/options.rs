//! How a node is set up.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::PeerInfo;

/// What [`crate::Node::open`] needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// Holds `log.db`, `catalogue.db`, `snapshots/` and `lock`. Created when missing.
    pub dir: PathBuf,
    /// Where [`crate::Node::serve`] listens.
    pub peer_listen: SocketAddr,
    /// This node as the others know it.
    pub peer: PeerInfo,
    /// Heartbeats and elections.
    pub timing: Timing,
    /// A snapshot is taken after this many log entries.
    pub snapshot_every: u64,
    /// So many entries stay in the log behind the snapshot, for members that are only a little late.
    pub keep_entries: u64,
}

impl Options {
    /// The options of a normal node.
    pub fn new(dir: impl Into<PathBuf>, peer_listen: SocketAddr, peer: PeerInfo) -> Self {
        Self {
            dir: dir.into(),
            peer_listen,
            peer,
            timing: Timing::default(),
            snapshot_every: 5_000,
            keep_entries: 1_000,
        }
    }
}

/// Heartbeats and elections. All members should have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How often the leader shows that it is there.
    pub heartbeat: Duration,
    /// The shortest silence after which a member stands for election.
    pub election_min: Duration,
    /// The longest; also the length of the leader's lease, during which nobody else is elected.
    pub election_max: Duration,
}

impl Default for Timing {
    /// With 100 ms and 300 to 600 ms, leaders lost their lease whenever another process kept the disk busy; with up to
    /// 3 s, I/O waited 5 to 8 s when a replica's machine died together with the leader.
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(250),
            election_min: Duration::from_millis(750),
            election_max: Duration::from_millis(1_500),
        }
    }
}

impl Timing {
    /// For tests and clusters on one machine: fails over in about a second.
    pub fn fast() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_secs(1),
        }
    }

    /// After this long without a leader an election is over, if one can succeed: the lease of the old one, and the
    /// longest wait of a candidate, twice because the first votes may be split.
    pub(crate) fn patience(self) -> Duration {
        self.election_max * 3
    }

    /// The openraft configuration of a node with these options.
    pub(crate) fn configuration(self, options: &Options) -> Result<openraft::Config, openraft::ConfigError> {
        openraft::Config {
            cluster_name: "stor".to_owned(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
            // The whole transfer, not a chunk; chunks have their own deadline.
            install_snapshot_timeout: millis(crate::transfer::SNAPSHOT_DEADLINE),
            max_payload_entries: 256,
            max_append_entries: Some(512),
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(options.snapshot_every),
            max_in_snapshot_log_to_keep: options.keep_entries,
            // Each purge is a transaction with an fsync: not one per entry.
            purge_batch_size: (options.keep_entries / 2).max(1),
            replication_lag_threshold: options.snapshot_every.saturating_add(options.keep_entries),
            api_channel_size: Some(4_096),
            notification_channel_size: Some(4_096),
            // Followers write while the leader's own fsync still runs: one disk latency per commit, not two.
            broadcast_submitted_on_append: Some(true),
            // So a leader may end before its own disk has what its followers have committed. Were it to lead on in
            // its term, it would give the same log ids to other entries: it has to be elected anew.
            enable_leader_restore: Some(false),
            enable_pre_vote: Some(true),
            ..openraft::Config::default()
        }
        .validate()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
