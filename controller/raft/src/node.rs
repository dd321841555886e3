//! A member of the cluster: its storage, its Raft, its server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::Raft;
use openraft::async_runtime::WatchReceiver;
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{SqliteConnection, SqlitePool};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::channel::Channels;
use crate::database::{self, CATALOGUE, DatabaseError};
use crate::directory::Directory;
use crate::entry::{LogId, TypeConfig};
use crate::log::{LogStore, Shared};
use crate::log_file::{LogFileError, LogState};
use crate::machine::{Hold, Machine};
use crate::network::Network;
use crate::service::PeerService;
use crate::snapshot::{Shelf, copy_database};
use crate::state::{self, Applied};
use crate::{
    Application, DirectoryError, Leadership, Options, PeerHandler, PeerInfo, leadership, log_file, log_writer,
};

/// Connections of [`Node::reader`]; each is a thread, opened when needed.
const READERS: u32 = 4;
/// An idle reader is closed after this long.
const READER_IDLE: Duration = Duration::from_secs(60);
/// The wait for tasks and transactions under way when the node stops.
const STOP: Duration = Duration::from_secs(10);
/// A server that is told to stop waits this long for calls under way.
const DRAIN: Duration = Duration::from_secs(2);

/// Why a node does not start. Nothing has been changed that was there.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A file is damaged.
    #[error(
        "{} is corrupted: {what}. Stop here: put back a backup of the whole directory, or remove this \
         controller from the cluster and let it join again with an empty directory", path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// A file was written by a newer version.
    #[error(
        "{} was written by a newer version of this program (schema {found}; this one knows up to {known}). \
         Start the newer version again; downgrading is not possible", path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A file of this name is there that is not ours.
    #[error("{} is a database of another program (application id {found:#x}); choose another directory", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its application id.
        found: i32,
    },
    /// The directory is another node's.
    #[error("{} belongs to the controller with id {found}, not {asked}", path.display())]
    OtherNode {
        /// The log.
        path: PathBuf,
        /// The id in it.
        found: String,
        /// The id asked for.
        asked: u64,
    },
    /// The log is gone, and with it the votes of this node.
    #[error(
        "{} is new, but {} holds data: the log was lost. A controller that has forgotten its votes must not go \
         on. Remove it from the cluster and let it join again with an empty directory",
        log.display(), catalogue.display()
    )]
    LogLost {
        /// The log.
        log: PathBuf,
        /// The catalogue.
        catalogue: PathBuf,
    },
    /// The catalogue ends before the log begins.
    #[error(
        "{} ends at entry {applied}, but the log begins behind entry {purged} and no snapshot fills the gap. \
         Remove this controller from the cluster and let it join again with an empty directory",
        catalogue.display()
    )]
    CatalogueBehind {
        /// The catalogue.
        catalogue: PathBuf,
        /// Its last entry.
        applied: u64,
        /// The last entry the log no longer has.
        purged: u64,
    },
    /// A file could not be read or written.
    #[error("cannot open {}: {source}", path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The timing makes no sense.
    #[error("the election timing is not usable: {0}")]
    Timing(#[source] openraft::ConfigError),
    /// Raft refused what was in the files.
    #[error("Raft does not start on {}: {reason}", dir.display())]
    Raft {
        /// The directory.
        dir: PathBuf,
        /// Why.
        reason: String,
    },
}

impl From<DatabaseError> for OpenError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Read { path, source } => Self::Storage {
                path,
                source: source.into(),
            },
            DatabaseError::Corrupt { path, what } => Self::Corrupt { path, what },
            DatabaseError::Foreign { path, found } => Self::Foreign { path, found },
            DatabaseError::Newer { path, found, known } => Self::Newer { path, found, known },
            DatabaseError::Sqlite { path, source } => Self::Storage {
                path,
                source: source.into(),
            },
        }
    }
}

impl From<LogFileError> for OpenError {
    fn from(error: LogFileError) -> Self {
        match error {
            LogFileError::Database(error) => error.into(),
            LogFileError::OtherNode { path, found, asked } => Self::OtherNode { path, found, asked },
        }
    }
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
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) stop: CancellationToken,
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
        let store = start_log(&directory.log(), log, log_state, hold);
        let channels = Channels::default();
        let network = Network {
            from: options.peer.id,
            channels: channels.clone(),
        };
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
            leadership,
            stop,
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

    /// Makes a cluster of this node alone and waits until it leads. Refused when there is one already.
    ///
    /// Cancel-safe: the cluster may have been made all the same.
    pub async fn initialize(&self) -> Result<(), OpenError> {
        let failed = |reason: String| OpenError::Raft {
            dir: self.inner.options.dir.clone(),
            reason,
        };
        let me = self.me().clone();
        self.inner
            .raft
            .initialize(BTreeMap::from([(me.id, me)]))
            .await
            .map_err(|error| failed(error.to_string()))?;
        let mut leadership = self.leadership();
        match tokio::time::timeout(STOP, leadership.wait_for(|view| view.is_self)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(failed(
                "the new cluster has not elected its only member".to_owned(),
            )),
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
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(%error, "Raft did not stop cleanly");
        }
        self.inner.readers.close().await;
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

async fn open_catalogue<A: Application>(path: &Path) -> Result<(SqliteConnection, Applied), OpenError> {
    let mut conn = database::open(path, CATALOGUE).await?;
    database::migrate(&mut conn, path, A::migrator()).await?;
    state::create(&mut conn).await.map_err(database::sqlite(path))?;
    let applied = state::load(&mut conn).await.map_err(database::sqlite(path))?;
    Ok((conn, applied))
}

/// The three files must be of one piece; openraft would take a lost one for a fresh start.
async fn check_positions(
    directory: &Directory,
    log: &LogState,
    applied: &Applied,
    shelf: &Shelf,
) -> Result<(), OpenError> {
    if log.vote.is_none() && log.last.is_none() && applied.last.is_some() {
        return Err(OpenError::LogLost {
            log: directory.log(),
            catalogue: directory.catalogue(),
        });
    }
    let snapshot: Option<LogId> = shelf
        .current()
        .await
        .and_then(|snapshot| snapshot.meta.last_log_id);
    let known = applied.last.max(snapshot);
    if let Some(purged) = log.purged
        && known < Some(purged)
    {
        return Err(OpenError::CatalogueBehind {
            catalogue: directory.catalogue(),
            applied: known.map_or(0, |id| id.index),
            purged: purged.index,
        });
    }
    Ok(())
}

pub(crate) fn start_log(path: &Path, conn: SqliteConnection, state: LogState, hold: Hold) -> LogStore {
    let file = SqlitePoolOptions::new()
        .max_connections(1)
        .min_connections(0)
        .idle_timeout(READER_IDLE)
        .connect_lazy_with(database::options(path).read_only(true));
    let shared = Arc::new(Shared::new(state, file));
    let (writer, queue) = mpsc::channel(log_writer::QUEUE);
    tokio::spawn(log_writer::run(conn, Arc::clone(&shared), queue, hold));
    LogStore::new(shared, writer)
}

fn readers(catalogue: &Path) -> SqlitePool {
    SqlitePoolOptions::new()
        .max_connections(READERS)
        .min_connections(0)
        .idle_timeout(READER_IDLE)
        .acquire_timeout(Duration::from_secs(10))
        .connect_lazy_with(database::options(catalogue).read_only(true))
}
