//! A member of the cluster: its storage, its Raft, its server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::Raft;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{InitializeError as Refusal, RaftError};
use sqlx::SqlitePool;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::channel::Channels;
use crate::contact::Contacts;
use crate::directory::Directory;
use crate::entry::TypeConfig;
use crate::machine::Machine;
use crate::network::Network;
use crate::opening::{check_positions, open_catalogue, readers, start_log};
use crate::peer::Seat;
use crate::service::PeerService;
use crate::snapshot::{Shelf, copy_database};
use crate::{Application, Leadership, OpenError, Options, PeerHandler, PeerInfo, leadership, log_file};

/// The wait for tasks and transactions under way when the node stops.
const STOP: Duration = Duration::from_secs(10);
/// A server that is told to stop waits this long for calls under way.
const DRAIN: Duration = Duration::from_secs(2);

/// No cluster was made.
#[derive(Debug, thiserror::Error)]
pub enum InitializeError {
    /// The node is in a cluster already, or has been asked into one.
    #[error("this controller is in a cluster already; to start over, use an empty directory")]
    Already,
    /// It was made, but its only member does not lead it.
    #[error("the new cluster has not elected its only member for {waited:?}; is the disk very slow?")]
    NoLeader {
        /// How long.
        waited: Duration,
    },
    /// The node has stopped.
    #[error("this controller has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}

/// The peer server ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen for other controllers on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The server failed.
    #[error("the server for other controllers failed: {0}")]
    Server(#[source] tonic::transport::Error),
}

/// A handle to the node; cheap to clone. Dropping handles does not stop the node, [`Node::shutdown`] does.
#[derive(Debug)]
pub struct Node<A: Application> {
    pub(crate) inner: Arc<Inner<A>>,
}

impl<A: Application> Clone for Node<A> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

pub(crate) struct Inner<A: Application> {
    pub(crate) options: Options,
    pub(crate) raft: Raft<TypeConfig, Machine<A>>,
    pub(crate) channels: Channels,
    pub(crate) contacts: Contacts,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) stop: CancellationToken,
    /// Made with the log.
    pub(crate) incarnation: String,
    pub(crate) shelf: Arc<Shelf>,
    /// One snapshot is received at a time.
    pub(crate) receiving: tokio::sync::Mutex<()>,
    readers: SqlitePool,
    applied: watch::Receiver<u64>,
    catalogue: PathBuf,
    /// Ends when nobody writes any more.
    released: tokio::sync::Mutex<mpsc::Receiver<()>>,
    directory: Mutex<Option<Directory>>,
}

impl<A: Application> std::fmt::Debug for Inner<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl<A: Application> Node<A> {
    /// Opens the storage and starts Raft. Does not listen yet: see [`Node::serve`].
    ///
    /// Not cancel-safe: a node that was half opened leaves its tasks running; await it to the end.
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        let config = options
            .timing
            .configuration(&options)
            .map_err(OpenError::Timing)?;
        let directory = Directory::open(&options.dir)?;
        let (hold, released) = mpsc::channel(1);
        let (log, log_state) = log_file::open(&directory.log(), options.peer.id).await?;
        let catalogue = directory.catalogue();
        let (conn, applied) = open_catalogue::<A>(&catalogue).await?;
        let shelf = Arc::new(Shelf::open(&directory.snapshots()).await?);
        check_positions(&directory, &log_state, &applied, &shelf).await?;
        let machine = Machine::<A>::new(conn, catalogue.clone(), Arc::clone(&shelf), applied, hold.clone());
        let announcements = machine.announcements();
        let store = start_log(&directory.log(), log, &log_state, hold);
        let channels = Channels::default();
        let contacts = Contacts::default();
        let network = Network::new(options.peer.id, channels.clone(), contacts.clone());
        let raft = Raft::new(options.peer.id, Arc::new(config), network, store, machine)
            .await
            .map_err(|error| OpenError::Raft {
                dir: options.dir.clone(),
                reason: error.to_string(),
            })?;
        let stop = CancellationToken::new();
        let (views, leadership) = watch::channel(Leadership::default());
        tokio::spawn(leadership::follow(raft.server_metrics(), views, stop.clone()));
        let inner = Inner {
            readers: readers(&catalogue),
            options,
            raft,
            channels,
            contacts,
            leadership,
            stop,
            incarnation: log_state.incarnation,
            shelf,
            receiving: tokio::sync::Mutex::new(()),
            applied: announcements,
            catalogue,
            released: tokio::sync::Mutex::new(released),
            directory: Mutex::new(Some(directory)),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// This node as the others know it.
    pub fn me(&self) -> &PeerInfo {
        &self.inner.options.peer
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.inner.options.dir
    }

    /// Read-only connections to the catalogue. They show what this node has applied; for an answer that
    /// includes everything acknowledged before, call [`Node::linearize`] first.
    pub fn reader(&self) -> &SqlitePool {
        &self.inner.readers
    }

    /// Who leads, and every change of it.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// The index of the last applied entry; changes after each commit, when [`Node::reader`] shows it.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.inner.applied.clone()
    }

    /// Whether this node has ever been in a cluster. Cancel-safe.
    pub async fn is_initialized(&self) -> bool {
        // A node that has stopped was initialized, or nobody will miss the answer.
        self.inner.raft.is_initialized().await.unwrap_or(true)
    }

    /// Makes a cluster of this node alone and waits until it leads.
    ///
    /// Cancel-safe: the cluster may have been made all the same.
    pub async fn initialize(&self) -> Result<(), InitializeError> {
        let seat = Seat {
            peer: self.me().clone(),
            incarnation: self.inner.incarnation.clone(),
        };
        match self
            .inner
            .raft
            .initialize(BTreeMap::from([(seat.peer.id, seat)]))
            .await
        {
            Ok(()) => {}
            Err(RaftError::APIError(Refusal::NotAllowed(_))) => return Err(InitializeError::Already),
            Err(error) => {
                return Err(InitializeError::Stopped {
                    reason: error.to_string(),
                });
            }
        }
        self.lead_alone().await
    }

    /// Waits until the only member of a cluster leads it. Cancel-safe.
    pub async fn lead_alone(&self) -> Result<(), InitializeError> {
        let mut leadership = self.leadership();
        match tokio::time::timeout(STOP, leadership.wait_for(|view| view.is_self)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(InitializeError::Stopped {
                reason: error.to_string(),
            }),
            Err(_) => Err(InitializeError::NoLeader { waited: STOP }),
        }
    }

    /// Waits until Raft has stopped by itself, which it does when the storage fails; says why. A process should
    /// then end: what it would answer is out of date. Cancel-safe.
    pub async fn failed(&self) -> String {
        let mut metrics = self.inner.raft.metrics();
        loop {
            if let Err(fatal) = &metrics.borrow_watched().running_state {
                return fatal.to_string();
            }
            if metrics.changed().await.is_err() {
                return "Raft has ended".to_owned();
            }
        }
    }

    /// Writes a consistent copy of the catalogue to `path`, which must not exist. Cancel-safe.
    pub async fn backup(&self, path: &Path) -> Result<(), sqlx::Error> {
        copy_database(&self.inner.catalogue, path).await
    }

    /// Listens on the node's own address and serves the other members until [`Node::shutdown`].
    ///
    /// Not cancel-safe: dropping it closes the connections; spawn it.
    pub async fn serve(self, handler: Arc<dyn PeerHandler>) -> Result<(), ServeError> {
        let listener = self.bind().await?;
        self.serve_on(listener, handler).await
    }

    /// Binds the address for [`Node::serve_on`], so that a port in use is noticed before anything else starts.
    pub async fn bind(&self) -> Result<TcpListener, ServeError> {
        let address = self.inner.options.peer_listen;
        TcpListener::bind(address)
            .await
            .map_err(|source| ServeError::Bind { address, source })
    }

    /// [`Node::serve`] on a socket that is bound already.
    pub async fn serve_on(
        self,
        listener: TcpListener,
        handler: Arc<dyn PeerHandler>,
    ) -> Result<(), ServeError> {
        self.serve_with(listener, handler, Routes::default()).await
    }

    /// [`Node::serve_on`] with further gRPC services of the application on the same port.
    pub async fn serve_with(
        self,
        listener: TcpListener,
        handler: Arc<dyn PeerHandler>,
        others: Routes,
    ) -> Result<(), ServeError> {
        let stop = self.inner.stop.clone();
        let incoming = TcpIncoming::from(listener)
            .with_nodelay(Some(true))
            .with_keepalive(Some(Duration::from_secs(15)));
        let serving = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(5)))
            .http2_keepalive_timeout(Some(Duration::from_secs(5)))
            .add_routes(others.add_service(PeerService::new(self, handler).into_server()))
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        let drained = async {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            result = serving => result.map_err(ServeError::Server),
            () = drained => Ok(()),
        }
    }

    /// Stops serving, stops Raft, closes the files. A second call does nothing.
    ///
    /// Not cancel-safe: the files may still be in use when it is dropped; await it to the end.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        match tokio::time::timeout(STOP, self.inner.raft.shutdown()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "Raft did not stop cleanly"),
            Err(_) => tracing::warn!("Raft did not stop in time"),
        }
        // A reader that somebody still has is closed with the process.
        if tokio::time::timeout(STOP, self.inner.readers.close())
            .await
            .is_err()
        {
            tracing::warn!("somebody still reads the catalogue");
        }
        let mut released = self.inner.released.lock().await;
        // Nothing is ever sent: it ends when the log's writer and the machine are gone.
        if tokio::time::timeout(STOP, released.recv()).await.is_err() {
            tracing::warn!("the files are still being written; the log makes up for what is cut off");
        }
        self.inner
            .directory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}
