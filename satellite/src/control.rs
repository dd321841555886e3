//! Between a node's agent and its engine processes: a unix socket per engine, which the engine listens
//! on and the agent dials, so that a restarted agent finds the engines that went on without it.
//!
//! Each message is a little-endian `u32` length (at most [`MAX_MESSAGE`]) and that many bytes of JSON
//! (`{"kind": content}`: a tag inside the content would make serde refuse the numbers that are keys of a
//! row's replicas). The
//! engine's [`FromEngine::Hello`] carries the descriptor of the FUSE connection (`SCM_RIGHTS`) when it has
//! one, so that the agent can keep it open beyond the engine's end.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use stor_replication::catalogue::{Change, Refusal, VolumeRow};
use stor_replication::engine::{SnapshotAsk, SnapshotStage};
use stor_replication::ids::{Epoch, ReplicaId, ScrubRun, SnapshotId, VolumeId};
use stor_replication::scrub::ScrubAsk;
use stor_right::SignedRight;

/// Largest message, bytes.
pub const MAX_MESSAGE: usize = 1 << 20;

/// How an engine's device is reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "transport")]
pub enum Transport {
    /// NBD on a unix socket.
    Socket {
        /// Where the engine listens.
        path: PathBuf,
    },
    /// The same, with the kernel as the only client.
    Nbd {
        /// Where the engine listens.
        path: PathBuf,
    },
    /// Requests of a device of the kernel's ublk driver.
    Ublk {
        /// Its number.
        device: u32,
        /// What the kernel says of it if it is the right one.
        mark: u64,
    },
    /// FUSE requests on the descriptor handed over at the engine's start (`--fuse-fd`).
    Fuse,
    /// No device: the engine only heals.
    None,
}

/// Agent to engine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToEngine {
    /// All an engine has to know; the first message, and again whenever any of it changes.
    Configure(Config),
    /// The outcome of [`FromEngine::Propose`]. No outcome is ever made up: when
    /// the agent can't learn it, it keeps asking.
    Outcome {
        /// The proposal's number.
        id: u64,
        /// The row after it, or the row as it is when the change was refused.
        row: VolumeRow,
        /// Why it was refused.
        refusal: Option<Refusal>,
    },
    /// Drain, flush, tell [`FromEngine::Stopped`] and end.
    Stop,
}

/// See [`ToEngine::Configure`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Export name for NBD clients.
    pub name: String,
    /// The epoch this engine was started for; it never takes another.
    pub epoch: Epoch,
    /// The catalogue's row.
    pub row: VolumeRow,
    /// `host:port` of each replica's server, where known.
    pub addresses: Vec<(ReplicaId, String)>,
    /// Where the device is served.
    pub transport: Transport,
    /// Refuse writes.
    pub read_only: bool,
    /// The snapshot to be made now.
    #[serde(default)]
    pub snapshot: Option<SnapshotAsk>,
    /// The scrub that is to go on.
    #[serde(default)]
    pub scrub: Option<ScrubAsk>,
    /// What replicas are opened with; renewed as long as the volume is attached.
    #[serde(default)]
    pub right: SignedRight,
}

/// Engine to agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromEngine {
    /// First message on every connection. With the FUSE descriptor attached when there is one.
    Hello {
        /// Volume.
        volume: VolumeId,
        /// Epoch it serves, once configured.
        epoch: Option<Epoch>,
    },
    /// On every change, and every second while something moves.
    Report(Report),
    /// Wants the catalogue changed. Repeated on every new connection until its outcome is known.
    Propose {
        /// Number, rising.
        id: u64,
        /// What; under the engine's view.
        change: Change,
    },
    /// Ends now. `clean`: drained, flushed, no dirty region.
    Stopped {
        /// As in [`Change::Detach`].
        clean: bool,
    },
}

/// What an engine is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Waits for promises.
    Starting,
    /// Serves.
    Serving,
    /// I/O waits.
    Suspended,
    /// A newer epoch has the volume; ends.
    Fenced,
    /// Can't go on; answers I/O with errors.
    Failed,
    /// Drains.
    Stopping,
}

/// See [`FromEngine::Report`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// What it is doing.
    pub state: State,
    /// Why, when not serving.
    pub reason: String,
    /// Bytes of the volume it serves.
    #[serde(default)]
    pub size: u64,
    /// Running resyncs.
    pub syncing: Vec<Progress>,
    /// Since the engine began.
    pub counters: Counters,
    /// The snapshot at hand.
    #[serde(default)]
    pub snapshot: Option<(SnapshotId, SnapshotStage)>,
    /// The scrub at hand.
    #[serde(default)]
    pub scrub: Option<Scrub>,
}

/// How far a scrub is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Scrub {
    /// Which.
    pub run: ScrubRun,
    /// Everything before is done.
    pub cursor: u64,
    /// Why it does not go on; empty when it does.
    pub waits: String,
}

/// A running resync.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// Who catches up.
    pub replica: ReplicaId,
    /// Bytes to copy when it began.
    pub total_bytes: u64,
    /// Bytes done.
    pub done_bytes: u64,
}

/// Totals since the engine began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Requests.
    pub reads: u64,
    /// Bytes.
    pub read_bytes: u64,
    /// Requests.
    pub writes: u64,
    /// Bytes.
    pub written_bytes: u64,
    /// Requests.
    pub flushes: u64,
    /// Bytes copied to replicas that had missed writes.
    pub resynced_bytes: u64,
    /// Bytes copied to make members equal after an unclean end.
    pub repaired_bytes: u64,
    /// Snapshots made.
    #[serde(default)]
    pub snapshots: u64,
    /// How long writes were held for the last one, made or not: microseconds.
    #[serde(default)]
    pub held_last_us: u64,
    /// The longest of these times.
    #[serde(default)]
    pub held_longest_us: u64,
}
