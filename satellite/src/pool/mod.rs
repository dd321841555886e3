//! Pools: where the replicas of volumes are. [`backing`] is what all kinds have in common, [`lvm`] the kind
//! `lvm-thin`; here is the kind `file`, a directory in which replicas are sparse files.
//!
//! [`Pool::open`] refuses a directory that cannot hold replicas safely, and says why and what to do.
//! [`Pool::usage`] tells the truth of the file system, not an estimate.
//!
//! Everything here blocks on the disk; the agent calls it from threads made for that, so that one sick
//! disk holds up its own pool only.

pub mod backing;
pub mod command;
pub mod disk;
mod drive;
pub mod lvm;
pub mod marker;
pub mod mounts;
pub mod orphans;
pub mod probe;
pub mod replica;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use stor_replication::ids::CacheId;
use thiserror::Error;
use uuid::Uuid;

use self::drive::Drive;
use self::lvm::{Thin, ThinError};
use self::marker::{MARKER, Marker, MarkerError};
use self::probe::Snapshots;
use self::replica::FilesError;

/// Below this much free space a file system counts as full: enough for the metadata that the replicas in
/// it still have to write, too little for another one.
pub const FULL_BELOW: u64 = 16 << 20;

/// For tests: makes every pool's volatile state look like another one, as after a power cut.
pub const TEST_CACHE_ID: &str = "STOR_TEST_CACHE_ID";

/// Why a directory is no pool, or cannot be used as one now.
#[derive(Debug, Error)]
pub enum PoolError {
    /// Nothing is at the path.
    #[error("{} does not exist; make the directory, or mount the disk that holds it", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// A file, a device.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// What it is.
        path: PathBuf,
    },
    /// The path depends on where the satellite was started.
    #[error("{} is not an absolute path", path.display())]
    Relative {
        /// The path.
        path: PathBuf,
    },
    /// Nothing can be written.
    #[error("{} is read-only; mount its file system writable, and check the kernel's log for disk errors", path.display())]
    ReadOnly {
        /// The directory.
        path: PathBuf,
    },
    /// No `O_DIRECT`: acknowledged writes would be in the page cache only.
    #[error("the file system of {} has no direct I/O (O_DIRECT), which a pool needs; use ext4, XFS or btrfs", path.display())]
    NoDirectIo {
        /// The directory.
        path: PathBuf,
    },
    /// The marker names another pool or node.
    #[error("{} is already pool {pool} of node {node}; use another directory, or, when that pool is no \
             more, delete {}/{MARKER}", path.display(), path.display())]
    Used {
        /// The directory.
        path: PathBuf,
        /// The pool.
        pool: String,
        /// Its node.
        node: String,
    },
    /// A pool around it: each would count the other's replicas as its own space, and look for its own in them.
    #[error("{} is inside {}, which is pool {pool} of node {node}; use a directory beside it", path.display(), outer.display())]
    Nested {
        /// The directory.
        path: PathBuf,
        /// The pool's directory around it.
        outer: PathBuf,
        /// The pool.
        pool: String,
        /// Its node.
        node: String,
    },
    /// Another process holds it.
    #[error("{} is in use by another running satellite", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The node has used this pool before, and now its marker is gone.
    #[error("{} has no {MARKER} although this node has used it as pool {pool}: is its file system mounted?", path.display())]
    MarkerGone {
        /// The directory.
        path: PathBuf,
        /// The pool.
        pool: String,
    },
    /// The marker is that of another directory.
    #[error("{} is another directory than the one this node has used as pool {pool} (its {MARKER} has id \
             {found}, expected {expected}): is the right file system mounted?", path.display())]
    Exchanged {
        /// The directory.
        path: PathBuf,
        /// The pool.
        pool: String,
        /// What the marker says.
        found: Uuid,
        /// What was recorded.
        expected: Uuid,
    },
    /// No room.
    #[error("the file system of {} is full ({free} bytes free); free some space or grow it", path.display())]
    Full {
        /// The directory.
        path: PathBuf,
        /// What is left.
        free: u64,
    },
    /// See [`MarkerError`].
    #[error(transparent)]
    Marker(#[from] MarkerError),
    /// See [`FilesError`].
    #[error(transparent)]
    Files(#[from] FilesError),
    /// See [`ThinError`].
    #[error(transparent)]
    Thin(#[from] ThinError),
    /// The system refused something else.
    #[error("cannot {doing} {}: {source}", path.display())]
    System {
        /// What was tried.
        doing: &'static str,
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What the catalogue says of a pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolSpec {
    /// Its name, the same on every node.
    pub name: String,
    /// The directory; of a thin pool, `/dev/VG/POOL`.
    pub path: PathBuf,
    /// What kind it is of.
    pub kind: Kind,
}

/// The kinds of pools.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Kind {
    /// A directory.
    #[default]
    File,
    /// An LVM thin pool.
    Thin(Thin),
}

/// Who opens a pool, and what it knows about it.
#[derive(Clone, Debug, Default)]
pub struct Opener {
    /// This node.
    pub node: String,
    /// The cluster it is in; empty while that is not known.
    pub cluster: String,
    /// Id of the marker, when this node has used the pool at this path before.
    pub known: Option<Uuid>,
    /// Names of all pools of this node.
    pub pools: Vec<String>,
}

/// Space in a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Of the file system.
    pub capacity: u64,
    /// Of the file system, for us.
    pub free: u64,
    /// The kernel's number of the file system, or of the thin pool.
    pub device: u64,
    /// Of a thin pool: bytes of its metadata.
    pub metadata_capacity: u64,
    /// Of a thin pool: bytes of it in use.
    pub metadata_used: u64,
}

/// A directory that was found good. Held until dropped: no other process can open it.
#[derive(Debug)]
pub struct Pool {
    spec: PoolSpec,
    marker: Marker,
    drive: Drive,
    snapshots: Snapshots,
    _lock: File,
}

impl Pool {
    /// Checks the directory and takes it. Writes the marker at the first use.
    pub fn open(spec: &PoolSpec, opener: &Opener) -> Result<Self, PoolError> {
        let path = spec.path.as_path();
        if !path.is_absolute() {
            return Err(PoolError::Relative {
                path: path.to_owned(),
            });
        }
        let metadata = fs::metadata(path).map_err(|source| look_error(path, source))?;
        if !metadata.is_dir() {
            return Err(PoolError::NotADirectory {
                path: path.to_owned(),
            });
        }
        let lock = replica::lock(path).map_err(|source| system("lock", path, source))?;
        let Some(lock) = lock else {
            return Err(locked(spec, opener));
        };
        let found = check_marker(spec, opener, marker::read(path)?)?;
        if found.is_none() {
            not_nested(path)?;
        }
        let usage = usage(path)?;
        let abilities = probe::probe(path).map_err(|source| write_error(path, source, usage.free));
        let (marker, snapshots) = match (found, abilities) {
            (_, Ok(abilities)) if !abilities.direct => {
                return Err(PoolError::NoDirectIo {
                    path: path.to_owned(),
                });
            }
            (Some(marker), Ok(abilities)) => (marker, abilities.snapshots),
            // What is there is served as long as it can be read; `usage` goes on saying what is wrong.
            (Some(marker), Err(PoolError::Full { .. } | PoolError::ReadOnly { .. })) => {
                (marker, Snapshots::Copy)
            }
            (None, Ok(_)) if usage.free < FULL_BELOW => {
                return Err(PoolError::Full {
                    path: path.to_owned(),
                    free: usage.free,
                });
            }
            (None, Ok(abilities)) => {
                let marker = Marker::new(&opener.node, &spec.name);
                marker::write(path, &marker)?;
                (marker, abilities.snapshots)
            }
            (_, Err(error)) => return Err(error),
        };
        Ok(Self {
            spec: spec.clone(),
            marker,
            drive: Drive::under(path, &metadata),
            snapshots,
            _lock: lock,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.spec.path
    }

    /// Id in the marker.
    pub fn id(&self) -> Uuid {
        self.marker.id
    }

    /// How snapshots are made.
    pub fn snapshots(&self) -> Snapshots {
        self.snapshots
    }

    /// Capacity and free space now.
    pub fn usage(&self) -> Result<Usage, PoolError> {
        usage(self.path())
    }

    /// Why nothing new can be put into the pool now, if so.
    pub fn obstacle(&self, usage: Usage) -> Option<PoolError> {
        let path = self.path().to_owned();
        let read_only = rustix::fs::statvfs(self.path())
            .is_ok_and(|info| info.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
        if read_only {
            return Some(PoolError::ReadOnly { path });
        }
        match marker::read(self.path()) {
            Ok(Some(marker)) if marker.id == self.marker.id => {}
            Ok(Some(marker)) => {
                return Some(PoolError::Exchanged {
                    path,
                    pool: self.spec.name.clone(),
                    found: marker.id,
                    expected: self.marker.id,
                });
            }
            Ok(None) => {
                let pool = self.spec.name.clone();
                return Some(PoolError::MarkerGone { path, pool });
            }
            Err(error) => return Some(error.into()),
        }
        (usage.free < FULL_BELOW).then_some(PoolError::Full {
            path,
            free: usage.free,
        })
    }

    /// Whether the path still leads to the file system that was opened. Another one may have been mounted
    /// there since, or the same one again.
    pub fn is_in_place(&self) -> bool {
        // What cannot be looked at is no other file system; the error shows when it is used.
        fs::metadata(self.path()).map_or(true, |metadata| {
            Drive::under(self.path(), &metadata) == self.drive
        })
    }

    /// Identity of the volatile state under the pool: the same as long as the kernel runs and the file
    /// system is on the same drive, which was not away in between. With [`TEST_CACHE_ID`] set, that text stands for the kernel's boot.
    pub fn cache(&self, boot: &str) -> CacheId {
        cache_id(boot, &[self.drive], self.marker.id)
    }

    /// Gives the directory back when no volume is left in it, so that it can become another pool.
    /// Returns whether it was.
    pub fn retire(self) -> Result<bool, PoolError> {
        if replica::has_volumes(self.path())? {
            return Ok(false);
        }
        marker::remove(self.path()).map_err(|source| system("remove the marker of", self.path(), source))?;
        Ok(true)
    }
}

/// Identity of the volatile state of a pool on these drives.
fn cache_id(boot: &str, drives: &[Drive], pool: Uuid) -> CacheId {
    let mut hash = blake3::Hasher::new();
    let boot = std::env::var(TEST_CACHE_ID).unwrap_or_else(|_| boot.to_owned());
    hash.update(boot.as_bytes());
    for drive in drives {
        hash.update(&drive.device.to_le_bytes());
        hash.update(&drive.appearance.to_le_bytes());
    }
    hash.update(pool.as_bytes());
    let mut id = [0; 16];
    hash.finalize_xof().fill(&mut id);
    CacheId(uuid::Builder::from_custom_bytes(id).into_uuid())
}

fn check_marker(
    spec: &PoolSpec,
    opener: &Opener,
    found: Option<Marker>,
) -> Result<Option<Marker>, PoolError> {
    let path = spec.path.clone();
    let pool = spec.name.clone();
    match (found, opener.known) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(PoolError::MarkerGone { path, pool }),
        (Some(marker), _) if marker.node != opener.node => Err(PoolError::Used {
            path,
            pool: marker.pool,
            node: marker.node,
        }),
        (Some(marker), _) if marker.pool != spec.name => {
            // A pool of ours that was deleted; when nothing is left of it, its marker is a leftover.
            if opener.pools.contains(&marker.pool) || replica::has_volumes(&path)? {
                return Err(PoolError::Used {
                    path,
                    pool: marker.pool,
                    node: marker.node,
                });
            }
            marker::remove(&path).map_err(|source| system("remove the marker of", &path, source))?;
            Ok(None)
        }
        (Some(marker), Some(expected)) if marker.id != expected => Err(PoolError::Exchanged {
            path,
            pool,
            found: marker.id,
            expected,
        }),
        (Some(marker), _) => Ok(Some(marker)),
    }
}

/// A directory that is to become a pool must not be in one.
fn not_nested(path: &Path) -> Result<(), PoolError> {
    // By whatever links it is reached.
    let real = path.canonicalize().map_err(|source| look_error(path, source))?;
    for outer in real.ancestors().skip(1) {
        // One that can't be read says nothing against it; it may be anybody's.
        if let Ok(Some(marker)) = marker::read(outer) {
            return Err(PoolError::Nested {
                path: path.to_owned(),
                outer: outer.to_owned(),
                pool: marker.pool,
                node: marker.node,
            });
        }
    }
    Ok(())
}

/// Whose the directory is that somebody else holds, as far as its marker says it.
fn locked(spec: &PoolSpec, opener: &Opener) -> PoolError {
    let path = spec.path.clone();
    match marker::read(&path) {
        Ok(Some(marker)) if marker.node != opener.node || marker.pool != spec.name => PoolError::Used {
            path,
            pool: marker.pool,
            node: marker.node,
        },
        _ => PoolError::Locked { path },
    }
}

fn usage(path: &Path) -> Result<Usage, PoolError> {
    let info = rustix::fs::statvfs(path).map_err(|error| system("look at", path, error.into()))?;
    let metadata = fs::metadata(path).map_err(|source| look_error(path, source))?;
    Ok(Usage {
        device: metadata.dev(),
        capacity: info.f_frsize.saturating_mul(info.f_blocks),
        // Blocks kept for root are not counted: a pool must not use up what the system lives on.
        free: info.f_frsize.saturating_mul(info.f_bavail),
        ..Usage::default()
    })
}

fn system(doing: &'static str, path: &Path, source: io::Error) -> PoolError {
    PoolError::System {
        doing,
        path: path.to_owned(),
        source,
    }
}

fn look_error(path: &Path, source: io::Error) -> PoolError {
    match source.kind() {
        io::ErrorKind::NotFound => PoolError::Missing {
            path: path.to_owned(),
        },
        io::ErrorKind::NotADirectory => PoolError::NotADirectory {
            path: path.to_owned(),
        },
        _ => system("look at", path, source),
    }
}

fn write_error(path: &Path, source: io::Error, free: u64) -> PoolError {
    match source.kind() {
        io::ErrorKind::StorageFull => PoolError::Full {
            path: path.to_owned(),
            free,
        },
        io::ErrorKind::ReadOnlyFilesystem => PoolError::ReadOnly {
            path: path.to_owned(),
        },
        _ => system("write a file in", path, source),
    }
}
