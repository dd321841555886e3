//! Snapshots: whole copies of the catalogue, one SQLite file each, in `snapshots/`.
//!
//! A file is named `TERM-INDEX.db` after the last entry in it and is complete and synced before it gets that
//! name. What it contains is read from the file itself, never from its name. One is kept.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::storage::RaftSnapshotBuilder;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::Mutex;

use crate::database::{self, CATALOGUE, DatabaseError, sqlite};
use crate::directory::sync_directory;
use crate::entry::{LogId, Snapshot, SnapshotMeta, TypeConfig};
use crate::failure::OrFatal;
use crate::state;

/// A snapshot that can be read. The open file outlives its name: a newer snapshot may replace this one while
/// it is being sent.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotFile {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<File>,
}

impl SnapshotFile {
    /// Opens a complete file.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(File::open(path)?),
        })
    }
}

/// The directory of snapshots.
#[derive(Debug)]
pub(crate) struct Shelf {
    dir: PathBuf,
    current: Mutex<Option<(SnapshotMeta, SnapshotFile)>>,
}

impl Shelf {
    /// Finds the newest whole snapshot and removes everything else. A damaged one is dropped with a warning:
    /// whether the node can do without it is for the caller to see.
    pub(crate) async fn open(dir: &Path) -> Result<Self, DatabaseError> {
        let read = |source| DatabaseError::Read {
            path: dir.to_owned(),
            source,
        };
        let mut names: Vec<PathBuf> = std::fs::read_dir(dir)
            .map_err(read)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()
            .map_err(read)?;
        // Fixed-width hexadecimal: the greatest name is the newest.
        names.sort();
        let mut current = None;
        for path in names.into_iter().rev() {
            if current.is_none() && path.extension().is_some_and(|extension| extension == "db") {
                match describe(&path).await {
                    Ok(meta) => {
                        let file = SnapshotFile::open(&path).map_err(read)?;
                        current = Some((meta, file));
                        continue;
                    }
                    Err(error @ DatabaseError::Newer { .. }) => return Err(error),
                    Err(error) => tracing::warn!(%error, "a snapshot cannot be used and is removed"),
                }
            }
            std::fs::remove_file(&path).map_err(read)?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            current: Mutex::new(current),
        })
    }

    /// The current snapshot.
    pub(crate) async fn current(&self) -> Option<Snapshot> {
        let current = self.current.lock().await;
        current.as_ref().map(|(meta, file)| Snapshot {
            meta: meta.clone(),
            snapshot: file.clone(),
        })
    }

    /// Where a snapshot is put together. `maker` names the only one who uses that path.
    pub(crate) fn draft(&self, maker: &str) -> PathBuf {
        self.dir.join(format!("{maker}.tmp"))
    }

    /// Makes a complete draft the current snapshot, unless a newer one is there already. A file from elsewhere
    /// is copied, so that its owner keeps it.
    pub(crate) async fn publish(&self, draft: &Path, meta: &SnapshotMeta) -> io::Result<SnapshotFile> {
        let mut current = self.current.lock().await;
        if let Some((there, file)) = current.as_ref()
            && there.last_log_id >= meta.last_log_id
        {
            let snapshot = SnapshotFile::open(draft)?;
            if draft != file.path && draft.parent() == Some(self.dir.as_path()) {
                std::fs::remove_file(draft)?;
            }
            return Ok(snapshot);
        }
        let path = self.dir.join(name(meta.last_log_id.as_ref()));
        if draft.parent() == Some(self.dir.as_path()) {
            File::open(draft)?.sync_all()?;
            std::fs::rename(draft, &path)?;
        } else {
            let copy = self.draft("copied");
            std::fs::copy(draft, &copy)?;
            File::open(&copy)?.sync_all()?;
            std::fs::rename(&copy, &path)?;
        }
        sync_directory(&self.dir)?;
        let file = SnapshotFile::open(&path)?;
        if let Some((_, old)) = current.replace((meta.clone(), file.clone()))
            && old.path != path
        {
            std::fs::remove_file(&old.path)?;
        }
        Ok(file)
    }
}

/// Removes what an earlier attempt left. SQLite takes a journal beside a new file of the same name for its own.
pub(crate) fn remove_draft(draft: &Path) -> io::Result<()> {
    for suffix in ["", "-journal", "-wal", "-shm"] {
        let mut path = draft.as_os_str().to_owned();
        path.push(suffix);
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Of the file with everything up to `last`.
pub(crate) fn name(last: Option<&LogId>) -> String {
    let (term, index) = last.map_or((0, 0), |id| (id.leader_id.term, id.index));
    format!("{term:016x}-{index:016x}.db")
}

/// What a snapshot contains, from the file; the file is checked on the way.
pub(crate) async fn describe(path: &Path) -> Result<SnapshotMeta, DatabaseError> {
    let mut conn = database::open_sealed(path, CATALOGUE).await?;
    let applied = state::load(&mut conn).await.map_err(sqlite(path))?;
    conn.close().await.map_err(sqlite(path))?;
    Ok(applied.meta())
}

/// Writes one snapshot of the catalogue as it is when it runs.
#[derive(Debug)]
pub(crate) struct Builder {
    pub(crate) catalogue: PathBuf,
    pub(crate) shelf: Arc<Shelf>,
}

impl Builder {
    async fn build(&mut self) -> Result<Snapshot, io::Error> {
        let draft = self.shelf.draft("built");
        remove_draft(&draft)?;
        copy_database(&self.catalogue, &draft)
            .await
            .or_fatal("writing a snapshot")?;
        let meta = describe(&draft)
            .await
            .or_fatal("checking the snapshot just written")?;
        let snapshot = self.shelf.publish(&draft, &meta).await?;
        tracing::info!(last = ?meta.last_log_id.map(|id| id.index), "snapshot taken");
        Ok(Snapshot { meta, snapshot })
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        self.build().await.or_fatal("taking a snapshot")
    }
}

/// A consistent copy of a database that others use meanwhile; does not hold up the writer.
///
/// Never with `PRAGMA query_only`: `VACUUM INTO` then fails, though it only reads.
pub(crate) async fn copy_database(from: &Path, to: &Path) -> Result<(), sqlx::Error> {
    let options = database::options(from).read_only(true);
    let mut conn = SqliteConnection::connect_with(&options).await?;
    let target = to
        .to_str()
        .ok_or_else(|| sqlx::Error::Configuration("the path is not UTF-8".into()))?;
    sqlx::query("VACUUM INTO ?")
        .bind(target)
        .execute(&mut conn)
        .await?;
    conn.close().await
}
