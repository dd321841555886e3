//! Opening a node's files, and every reason not to run on them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{SqliteConnection, SqlitePool};
use tokio::sync::mpsc;

use crate::database::{self, CATALOGUE, DatabaseError};
use crate::directory::Directory;
use crate::entry::LogId;
use crate::log::{LogStore, Shared};
use crate::log_file::{LogFileError, LogState};
use crate::machine::Hold;
use crate::snapshot::Shelf;
use crate::state::{self, Applied};
use crate::{Application, DirectoryError, log_writer};

/// Connections of [`crate::Node::reader`]; each is a thread, opened when needed.
const READERS: u32 = 4;
/// An idle reader is closed after this long.
const READER_IDLE: Duration = Duration::from_mins(1);

/// Why a node does not start. Nothing has been changed that was there.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A file is damaged.
    #[error(
        "{} is corrupted: {what}. Remove this controller from the cluster and let it join again with an empty \
         directory and a new id; an old copy of the directory must not be put back, because it has forgotten \
         what this controller acknowledged", path.display()
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

pub(crate) async fn open_catalogue<A: Application>(
    path: &Path,
) -> Result<(SqliteConnection, Applied), OpenError> {
    let mut conn = database::open(path, CATALOGUE).await?;
    database::migrate(&mut conn, path, A::migrator()).await?;
    state::create(&mut conn).await.map_err(database::sqlite(path))?;
    let applied = state::load(&mut conn).await.map_err(database::sqlite(path))?;
    Ok((conn, applied))
}

/// The three files must be of one piece; openraft would take a lost one for a fresh start.
pub(crate) async fn check_positions(
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

pub(crate) fn start_log(path: &Path, conn: SqliteConnection, state: &LogState, hold: Hold) -> LogStore {
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

pub(crate) fn readers(catalogue: &Path) -> SqlitePool {
    SqlitePoolOptions::new()
        .max_connections(READERS)
        .min_connections(0)
        .idle_timeout(READER_IDLE)
        .acquire_timeout(Duration::from_secs(10))
        .connect_lazy_with(database::options(catalogue).read_only(true))
}
