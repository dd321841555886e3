//! The replica server: serves the node's replicas to engines, on a thread of its own.

use std::net::SocketAddr;
use std::path::PathBuf;

use stor_replication::ids::{CacheId, Lineage, ReplicaId, View, VolumeId};

/// A replica to serve.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaSpec {
    /// Volume.
    pub volume: VolumeId,
    /// Replica.
    pub replica: ReplicaId,
    /// File with the data.
    pub data: PathBuf,
    /// File with superblock and maps.
    pub meta: PathBuf,
    /// Bytes.
    pub size: u64,
    /// History the replica must belong to.
    pub lineage: Lineage,
    /// Make it if its files are not there. `Some(true)`: as an (empty) member of the in-sync set;
    /// `Some(false)`: as one that needs everything. `None`: absence is [`ReplicaState::Missing`].
    pub create: Option<bool>,
    /// Identity of the volatile state under its pool.
    pub cache: CacheId,
}

/// Whether a replica can be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReplicaState {
    /// Being opened.
    Opening,
    /// Served.
    Ready,
    /// Its files are not there.
    Missing,
    /// It can't be used: a damaged superblock, a disk error.
    Failed(String),
}

/// What the server knows of a replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaReport {
    /// Volume.
    pub volume: VolumeId,
    /// Replica.
    pub replica: ReplicaId,
    /// Usable or not.
    pub state: ReplicaState,
    /// View stored in its superblock.
    pub stored: View,
}

/// Handle on the server's thread.
#[derive(Debug)]
pub struct Server {}

impl Server {
    /// Listens on `listen` and starts the thread.
    pub fn start(_listen: SocketAddr) -> std::io::Result<Self> {
        Ok(Self {})
    }

    /// Address the server listens on.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    /// Sets what should be served: new specs are opened (made where asked), absent ones closed.
    /// Returns at once; [`Server::report`] tells the progress.
    pub fn set(&self, _specs: Vec<ReplicaSpec>) {}

    /// What is served now. A closed replica is absent: its files may be removed.
    pub fn report(&self) -> Vec<ReplicaReport> {
        Vec::new()
    }
}
