//! A new cluster of one out of a copy of another cluster's catalogue.
//!
//! The copy becomes the first snapshot of a log that begins behind it, so that the node opens as one that was
//! filled by a leader. Promises: the members of the old cluster are no members of the new one, and their ids
//! never come back; indexes of the new log lie above every index the old log can have reached, so that no revision
//! means two things; a crash at any moment leaves a directory that [`discard`] empties and that no node runs on
//! by mistake, as long as the caller notes the end only after [`restore`].
//! Does not do: deciding whether the old cluster is gone. Whoever calls has to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use openraft::impls::leader_id_std::LeaderId;
use sqlx::{Connection, SqliteConnection};

use crate::database::{self, CATALOGUE, DatabaseError};
use crate::directory::{Directory, sync_directory};
use crate::entry::{Membership, StoredMembership, Vote, log_id};
use crate::log_file::{self, LogFileError};
use crate::peer::Seat;
use crate::snapshot::{self, remove_draft};
use crate::state::{self, Applied};
use crate::{Application, DirectoryError, PeerInfo};

/// The new log begins so far above the copy's last entry: no cluster makes as many entries after a backup (it would
/// take 13 years at 10,000 a second).
const BEYOND: u64 = 1 << 32;

/// What a copy of a catalogue says of the cluster it is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The last entry in it.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// The members at that entry.
    pub members: Vec<PeerInfo>,
}

/// No cluster was made of the copy. What was there before is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The directory can't be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// It is a controller's already.
    #[error("{} is there already; restore into an empty directory", path.display())]
    Occupied {
        /// What was found.
        path: PathBuf,
    },
    /// The copy can't be used.
    #[error("the backup can't be used: {0}")]
    Unusable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The copy is of no cluster that ever worked.
    #[error("the backup holds no cluster: nothing was ever agreed on in it")]
    Empty,
    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A new database could not be written.
    #[error("cannot make {}: {source}", path.display())]
    Make {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<DatabaseError> for RestoreError {
    fn from(error: DatabaseError) -> Self {
        Self::Unusable(error.into())
    }
}

/// Looks at a copy of a catalogue: checks that it is whole, ours, and of no later version than this program.
///
/// Cancel-safe.
pub async fn examine<A: Application>(copy: &Path) -> Result<Origin, RestoreError> {
    let mut conn = database::open_sealed(copy, CATALOGUE).await?;
    database::check_version(&mut conn, copy, A::migrator()).await?;
    let applied = state::load(&mut conn).await.map_err(database::sqlite(copy))?;
    conn.close().await.map_err(database::sqlite(copy))?;
    origin(&applied)
}

fn origin(applied: &Applied) -> Result<Origin, RestoreError> {
    let last = applied.last.ok_or(RestoreError::Empty)?;
    let nodes = applied.membership.membership().nodes();
    Ok(Origin {
        index: last.index,
        term: last.leader_id.term,
        members: nodes.map(|(_, seat)| seat.peer.clone()).collect(),
    })
}

/// Makes the files of a cluster whose only member is `me` in `dir`, from `copy`, which is left alone. The node is
/// then opened like any other; it elects itself.
///
/// Not cancel-safe: what it has begun is to be emptied by [`discard`].
pub async fn restore<A: Application>(dir: &Path, me: &PeerInfo, copy: &Path) -> Result<Origin, RestoreError> {
    let directory = Directory::open(dir)?;
    for path in [directory.log(), directory.catalogue()] {
        if path.exists() {
            return Err(RestoreError::Occupied { path });
        }
    }
    let draft = directory.snapshots().join("restored.tmp");
    copy_file(copy, &draft)?;
    let origin = examine::<A>(&draft).await?;
    let last = log_id(origin.term, origin.index.saturating_add(BEYOND));
    let making = |error: LogFileError| RestoreError::Make {
        path: directory.log(),
        source: error.into(),
    };
    let (mut log, found) = log_file::open(&directory.log(), me.id).await.map_err(making)?;
    let failed = |source: sqlx::Error| RestoreError::Make {
        path: directory.log(),
        source: source.into(),
    };
    log_file::purge(&mut log, &last).await.map_err(failed)?;
    // No vote is older than the log it stands for: the next election begins after the term of the backup.
    let vote = Vote {
        leader_id: LeaderId {
            term: origin.term,
            voted_for: me.id,
        },
        committed: false,
    };
    log_file::save_vote(&mut log, &vote).await.map_err(failed)?;
    log_file::checkpoint(&mut log).await.map_err(failed)?;
    log.close().await.map_err(failed)?;
    let seat = Seat {
        peer: me.clone(),
        incarnation: found.incarnation,
    };
    begin_anew::<A>(&draft, seat, last).await?;
    let snapshot = directory.snapshots().join(snapshot::name(Some(&last)));
    let catalogue = directory.path().join("catalogue.restored");
    copy_file(&draft, &catalogue)?;
    rename(&catalogue, &directory.catalogue())?;
    rename(&draft, &snapshot)?;
    for dir in [directory.snapshots(), directory.path().to_owned()] {
        sync_directory(&dir).map_err(|source| RestoreError::Write { path: dir, source })?;
    }
    Ok(origin)
}

/// Brings the draft to this program's tables, and writes the only member and the position into it.
async fn begin_anew<A: Application>(
    draft: &Path,
    seat: Seat,
    last: crate::entry::LogId,
) -> Result<(), RestoreError> {
    // Without a write-ahead log, so that one file remains.
    let options = database::options(draft)
        .journal_mode(sqlx::sqlite::SqliteJournalMode::Delete)
        .synchronous(sqlx::sqlite::SqliteSynchronous::Full);
    let sqlite = || database::sqlite(draft);
    let mut conn = SqliteConnection::connect_with(&options).await.map_err(sqlite())?;
    database::migrate(&mut conn, draft, A::migrator()).await?;
    state::create(&mut conn).await.map_err(sqlite())?;
    let before = state::load(&mut conn).await.map_err(sqlite())?;
    let id = seat.peer.id;
    let members =
        Membership::new(vec![BTreeSet::from([id])], BTreeMap::from([(id, seat)])).map_err(|error| {
            RestoreError::Make {
                path: draft.to_owned(),
                source: error.into(),
            }
        })?;
    let members = StoredMembership::new(Some(last), members);
    let mut transaction = conn.begin().await.map_err(sqlite())?;
    state::save_membership(&mut transaction, &before.membership, &members)
        .await
        .map_err(sqlite())?;
    state::save_last(&mut transaction, &last)
        .await
        .map_err(sqlite())?;
    transaction.commit().await.map_err(sqlite())?;
    conn.close().await.map_err(sqlite())?;
    sync(draft)
}

/// Empties a directory in which a [`restore`] was cut off. Only for directories the caller knows to hold nothing
/// else.
pub fn discard(dir: &Path) -> Result<(), RestoreError> {
    let directory = Directory::open(dir)?;
    let failed = |path: PathBuf| move |source| RestoreError::Write { path, source };
    for path in [
        directory.log(),
        directory.catalogue(),
        directory.path().join("catalogue.restored"),
    ] {
        remove_draft(&path).map_err(failed(path.clone()))?;
    }
    let snapshots = directory.snapshots();
    for entry in std::fs::read_dir(&snapshots).map_err(failed(snapshots.clone()))? {
        let path = entry.map_err(failed(snapshots.clone()))?.path();
        std::fs::remove_file(&path).map_err(failed(path.clone()))?;
    }
    sync_directory(directory.path()).map_err(failed(directory.path().to_owned()))
}

fn copy_file(from: &Path, to: &Path) -> Result<(), RestoreError> {
    let failed = |source| RestoreError::Write {
        path: to.to_owned(),
        source,
    };
    remove_draft(to).map_err(failed)?;
    std::fs::copy(from, to).map_err(failed)?;
    sync(to)
}

fn sync(path: &Path) -> Result<(), RestoreError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|source| RestoreError::Write {
            path: path.to_owned(),
            source,
        })
}

fn rename(from: &Path, to: &Path) -> Result<(), RestoreError> {
    std::fs::rename(from, to).map_err(|source| RestoreError::Write {
        path: to.to_owned(),
        source,
    })
}
