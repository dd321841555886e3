//! The replica server: serves the node's replicas to engines, on a thread of its own.

pub(crate) mod content;
mod digests;
mod errands;
mod extents;
mod gate;
mod grow;
mod making;
mod mended;
mod open;
mod pre_sync;
pub(crate) mod readers;
mod report;
mod serve;
mod server;
pub(crate) mod snapshot;
mod thin;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stor_device::{ReactorError, Waker};
use thiserror::Error;

pub(crate) use pre_sync::paths_of as pre_sync_files;
use stor_replication::disk::Superblock;
use stor_replication::ids::{CacheId, Epoch, Lineage, ReplicaId, SnapshotId, View, VolumeId};
use stor_right::Keyring;

use crate::agent::copies::CopyKey;
use crate::pool::backing::Room;

/// A replica to serve.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaSpec {
    /// Volume.
    pub volume: VolumeId,
    /// Replica.
    pub replica: ReplicaId,
    /// Where the pool has it.
    pub room: Room,
    /// File or device with the data.
    pub data: PathBuf,
    /// File or device with superblock and maps.
    pub meta: PathBuf,
    /// Bytes.
    pub size: u64,
    /// History the replica must belong to.
    pub lineage: Lineage,
    /// Make it if its files are not there. `Some(true)`: as an (empty) member of the in-sync set;
    /// `Some(false)`: as one that needs everything. `None`: absence is [`ReplicaState::Missing`].
    pub create: Option<bool>,
    /// What its data begin as, if it is to be made: a copy of a snapshot in the same pool.
    pub source: Option<PathBuf>,
    /// Identity of the volatile state under its pool.
    pub cache: CacheId,
    /// Snapshots of which a copy may be made now.
    pub snapshots: BTreeSet<SnapshotId>,
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
    /// It can't be used: a disk error, something in the way.
    Failed(String),
    /// It will never be of use again: nothing helps but another one in its place.
    Damaged(String),
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
    /// What else it says of itself, while it is served.
    pub about: Option<About>,
    /// Snapshots of which a copy may be made or is being made: nobody else may touch those files.
    pub snapshots: BTreeSet<SnapshotId>,
    /// What of its metadata was found damaged when it was opened, and what was done; empty: nothing.
    pub mended: String,
    /// When, seconds since 1970.
    pub mended_at: u64,
}

impl ReplicaReport {
    /// The same replica is in the same state.
    pub fn is_same_trouble(&self, other: &Self) -> bool {
        (self.volume, self.replica, &self.state) == (other.volume, other.replica, &other.state)
    }
}

/// What a replica's superblock says of it, beside the view.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct About {
    /// Engines of older epochs are refused.
    pub fence: Epoch,
    /// Bytes.
    pub size: u64,
    /// History of its data.
    pub lineage: Lineage,
    /// In-sync set of the view; empty: it is no member of any.
    pub in_sync: Vec<ReplicaId>,
}

impl From<&Superblock> for About {
    fn from(superblock: &Superblock) -> Self {
        Self {
            fence: superblock.fence,
            size: superblock.size,
            lineage: superblock.lineage,
            in_sync: superblock.in_sync.clone(),
        }
    }
}

/// Why the server could not be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// Its address.
    #[error("cannot listen on {address}: {source}; choose another --data-listen or stop what uses it")]
    Listen {
        /// Address asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Its reactor.
    #[error(transparent)]
    Reactor(#[from] ReactorError),
    /// Its thread.
    #[error("cannot start the data thread: {0}")]
    Thread(#[source] io::Error),
}

/// What the server's thread and its handle share.
#[derive(Debug, Default)]
struct Shared {
    /// What should be served; taken by the thread.
    wanted: Option<Vec<ReplicaSpec>>,
    /// What rights are checked with; taken by the thread.
    keys: Option<Keyring>,
    /// Copies of snapshots that others may read; taken by the thread.
    copies: Option<BTreeMap<CopyKey, PathBuf>>,
    /// What is served.
    report: Vec<ReplicaReport>,
    /// Connections whose engine uses a replica.
    sessions: usize,
}

/// The kernel closes the socket of a killed satellite a moment after its end: an io_uring holds it until it is taken
/// apart. Without patience, a satellite started again at once would end.
const BIND_AGAIN: (u32, Duration) = (60, Duration::from_millis(50));

/// Listens; waits for a while when the port is taken. Blocks: for the start only.
fn bind(listen: SocketAddr) -> io::Result<TcpListener> {
    let (times, pause) = BIND_AGAIN;
    for _ in 0..times {
        match TcpListener::bind(listen) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => std::thread::sleep(pause),
            other => return other,
        }
    }
    TcpListener::bind(listen)
}

/// Handle on the server's thread, which lives as long as the process.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    backend: &'static str,
    shared: Arc<Mutex<Shared>>,
    waker: Waker,
}

impl Server {
    /// Listens on `listen` and starts the thread.
    pub fn start(listen: SocketAddr) -> Result<Self, StartError> {
        let listen_error = |source| StartError::Listen {
            address: listen,
            source,
        };
        let listener = bind(listen).map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (tell, told) = sync_channel(1);
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("replicas".to_owned())
            .spawn(move || server::run(listener, &theirs, &tell))
            .map_err(StartError::Thread)?;
        let (waker, backend) = told
            .recv()
            .map_err(|_| StartError::Thread(io::Error::other("it ended at once")))??;
        Ok(Self {
            address,
            backend,
            shared,
            waker,
        })
    }

    /// Address the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How it talks to the kernel: `io_uring` or `epoll`.
    pub fn backend(&self) -> &'static str {
        self.backend
    }

    /// Sets the keys rights are checked with. Before, no engine is let in.
    pub fn trust(&self, keys: Keyring) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).keys = Some(keys);
        self.waker.wake();
    }

    /// Sets what should be served: new specs are opened (made where asked), absent ones closed.
    /// Returns at once; [`Server::report`] tells the progress.
    pub fn set(&self, specs: Vec<ReplicaSpec>) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).wanted = Some(specs);
        self.waker.wake();
    }

    /// Sets which copies of snapshots other satellites may read.
    pub fn show(&self, copies: BTreeMap<CopyKey, PathBuf>) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).copies = Some(copies);
        self.waker.wake();
    }

    /// What is served now. A closed replica is absent: its files may be removed.
    pub fn report(&self) -> Vec<ReplicaReport> {
        self.shared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .report
            .clone()
    }
}

impl Server {
    /// Connections of engines that use a replica here now.
    pub fn sessions(&self) -> usize {
        self.shared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .sessions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_just_being_given_back_is_waited_for() {
        let before = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = before.local_addr().unwrap();
        let holder = std::thread::spawn(move || {
            std::thread::sleep(BIND_AGAIN.1 * 4);
            drop(before);
        });
        let listener = bind(address).unwrap();
        holder.join().unwrap();
        assert_eq!(bind(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
    }
}
