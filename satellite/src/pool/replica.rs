//! The files of the replicas in a pool's directory.
//!
//! ```text
//! POOL_DIR/stor-pool.json                 whose pool it is
//! POOL_DIR/<volume id>/r<replica>.data    the volume's bytes, sparse, at their own offsets
//! POOL_DIR/<volume id>/r<replica>.meta    superblock, dirty map, out-of-sync maps
//! POOL_DIR/<volume id>/r<replica>.data.pre-sync   what it held before it is brought up to date
//! POOL_DIR/<volume id>/r<replica>.meta.deleted   what is left of the metadata of a replica in deletion
//! ```
//!
//! The replica server makes and opens the two files; here is what comes before (the directory) and after
//! (the removal). A removal begins with the rename of the metadata: from then on the replica cannot be
//! opened, so that a crash in the middle never leaves half a replica that looks whole.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use stor_replication::disk::{PAGE, Superblock, decode_superblock};
use stor_replication::ids::{ReplicaId, VolumeId};
use thiserror::Error;
use uuid::Uuid;

use crate::agent::durable::sync_directory;
use crate::failure;
use crate::replicas::pre_sync_files;

/// End of the name of the metadata of a replica in deletion.
const TOMBSTONE: &str = ".deleted";

/// Where a replica's files are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaFiles {
    directory: PathBuf,
    /// The data.
    pub data: PathBuf,
    /// Superblock and maps.
    pub meta: PathBuf,
}

/// What could not be done with a replica's files.
#[derive(Debug, Error)]
#[error("cannot {doing} {}: {source}", path.display())]
pub struct FilesError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FilesError {
    fn new(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self {
            doing,
            path: path.to_owned(),
            source,
        }
    }
}

impl ReplicaFiles {
    /// The paths of a replica.
    pub fn of(pool: &Path, volume: VolumeId, replica: ReplicaId) -> Self {
        let directory = pool.join(volume.to_string());
        Self {
            data: directory.join(format!("r{replica}.data")),
            meta: directory.join(format!("r{replica}.meta")),
            directory,
        }
    }

    fn tombstone(&self) -> PathBuf {
        let mut path = self.meta.clone().into_os_string();
        path.push(TOMBSTONE);
        path.into()
    }

    /// Makes the directory the server will make the files in.
    pub fn prepare(&self) -> Result<(), FilesError> {
        let fail = |source| FilesError::new("make the directory", &self.directory, source);
        match fs::DirBuilder::new().mode(0o700).create(&self.directory) {
            Ok(()) => {
                let pool = self.directory.parent().unwrap_or(Path::new("/"));
                sync_directory(pool).map_err(fail)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(fail(error)),
        }
    }

    /// Bytes the file system gave to both files; zero when there are none.
    pub fn allocated(&self) -> Result<u64, FilesError> {
        let mut bytes = 0u64;
        for path in [&self.data, &self.meta] {
            match fs::metadata(path) {
                // The unit of st_blocks is 512 bytes on every file system.
                Ok(metadata) => bytes = bytes.saturating_add(metadata.blocks().saturating_mul(512)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(FilesError::new("look at", path, error)),
            }
        }
        Ok(bytes)
    }

    /// Removes the replica. Nothing may have its files open. Doing it again, or after a crash in the
    /// middle, is the same as doing it once.
    pub fn delete(&self) -> Result<(), FilesError> {
        let tombstone = self.tombstone();
        match fs::rename(&self.meta, &tombstone) {
            Ok(()) => {
                // Before any byte of the data goes: the rename must not be what a power cut undoes.
                sync_directory(&self.directory)
                    .map_err(|error| FilesError::new("sync", &self.directory, error))?;
                failure::point("replica-buried");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(FilesError::new("rename", &self.meta, error)),
        }
        for path in pre_sync_files(&self.data).iter().chain([&self.data, &tombstone]) {
            remove_file(path)?;
            failure::point("replica-file-removed");
        }
        match fs::remove_dir(&self.directory) {
            Ok(()) => {
                let pool = self.directory.parent().unwrap_or(Path::new("/"));
                sync_directory(pool).map_err(|error| FilesError::new("sync", pool, error))
            }
            // Another replica of the volume, made to replace this one, may be in it.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => sync_directory(&self.directory)
                .map_err(|error| FilesError::new("sync", &self.directory, error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(FilesError::new("remove the directory", &self.directory, error)),
        }
    }
}

fn remove_file(path: &Path) -> Result<(), FilesError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FilesError::new("remove", path, error)),
        _ => Ok(()),
    }
}

/// Goes on with removals that a crash cut short. Returns how many there were.
pub fn finish_deletions(pool: &Path) -> Result<usize, FilesError> {
    let mut finished = 0;
    for directory in volume_directories(pool)? {
        let entries = fs::read_dir(&directory).map_err(|error| FilesError::new("list", &directory, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| FilesError::new("list", &directory, error))?;
            let Some((volume, replica)) = tombstone_of(&directory, &entry.file_name()) else {
                continue;
            };
            ReplicaFiles::of(pool, volume, replica).delete()?;
            finished += 1;
        }
    }
    Ok(finished)
}

fn tombstone_of(directory: &Path, name: &std::ffi::OsStr) -> Option<(VolumeId, ReplicaId)> {
    numbered(directory, name, concat!(".meta", ".deleted"))
}

/// The replica that a file in a volume's directory is of, by its name.
fn numbered(directory: &Path, name: &std::ffi::OsStr, end: &str) -> Option<(VolumeId, ReplicaId)> {
    let volume = VolumeId(Uuid::parse_str(directory.file_name()?.to_str()?).ok()?);
    let number = name.to_str()?.strip_prefix('r')?.strip_suffix(end)?;
    Some((volume, ReplicaId(number.parse().ok()?)))
}

/// Whether any volume's directory is in the pool.
pub fn has_volumes(pool: &Path) -> Result<bool, FilesError> {
    Ok(!volume_directories(pool)?.is_empty())
}

/// Every replica whose metadata is in the pool.
pub fn list(pool: &Path) -> Result<Vec<(VolumeId, ReplicaId)>, FilesError> {
    let mut found = Vec::new();
    for directory in volume_directories(pool)? {
        let entries = fs::read_dir(&directory).map_err(|error| FilesError::new("list", &directory, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| FilesError::new("list", &directory, error))?;
            found.extend(numbered(&directory, &entry.file_name(), ".meta"));
        }
    }
    Ok(found)
}

/// Reads what a replica that is not served says of itself. Nothing is written or locked.
pub fn superblock(pool: &Path, volume: VolumeId, replica: ReplicaId) -> Result<Superblock, String> {
    let path = ReplicaFiles::of(pool, volume, replica).meta;
    let told = |error: io::Error| format!("cannot read {}: {error}", path.display());
    let mut bytes = Vec::with_capacity(2 * PAGE);
    let file = File::open(&path).map_err(told)?;
    file.take(2 * PAGE as u64).read_to_end(&mut bytes).map_err(told)?;
    let (first, second) = bytes.split_at_checked(PAGE).unwrap_or((&bytes, &[]));
    decode_superblock(first, second, volume, replica)
        .map(|(_, superblock)| superblock)
        .map_err(|error| format!("{}: {error}", path.display()))
}

fn volume_directories(pool: &Path) -> Result<Vec<PathBuf>, FilesError> {
    let fail = |error| FilesError::new("list", pool, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(pool).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let is_volume = entry
            .file_name()
            .to_str()
            .is_some_and(|name| Uuid::parse_str(name).is_ok());
        if is_volume && entry.file_type().map_err(fail)?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Holds a pool's directory for this process: a second satellite on it is refused.
pub(super) fn lock(directory: &Path) -> io::Result<Option<File>> {
    let file = File::open(directory)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
