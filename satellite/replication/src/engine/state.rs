//! What an engine says of itself.

#[cfg(doc)]
use crate::catalogue::Change;
use crate::ids::ReplicaId;

/// What the engine is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// Waits for promises.
    Starting,
    /// Serves.
    Serving,
    /// I/O waits; why.
    Suspended(String),
    /// A newer epoch has the volume.
    Fenced,
    /// Can't go on; why.
    Failed(FailReason),
    /// Drains.
    Stopping,
    /// Ended in order. `clean` as in [`Change::Detach`].
    Stopped {
        /// Drained, flushed, no dirty region.
        clean: bool,
    },
}

/// Why an engine can't go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FailReason {
    /// R8, R9.
    #[error(
        "every in-sync replica lost acknowledged writes that were not flushed; detach and attach the volume, \
         then check its file system"
    )]
    CacheLost,
    /// A replica stores a view above the catalogue's.
    #[error("catalogue-behind: a replica has seen a later configuration than the catalogue holds")]
    CatalogueBehind,
}

/// A running resync.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Who catches up.
    pub replica: ReplicaId,
    /// Bytes to copy when it began.
    pub total: u64,
    /// Bytes done.
    pub done: u64,
}

/// Totals since the engine began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
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
    pub snapshots: u64,
    /// How long writes were held for the last one, made or not, in microseconds.
    pub held_last_us: u64,
    /// The longest of these times.
    pub held_longest_us: u64,
}
