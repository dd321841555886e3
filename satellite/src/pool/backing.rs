//! What every kind of pool can do: the interface between the agent and the places of replicas.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use stor_replication::disk::Superblock;
use stor_replication::ids::{CacheId, ReplicaId, SnapshotId, VolumeId};
use uuid::Uuid;

use super::lvm::room::{Part, ThinRoom};
use super::lvm::run::Lvm;
use super::lvm::{self, ThinPool};
use super::probe::Snapshots;
use super::replica::{self, ReplicaFiles, finish_deletions};
use super::{Kind, Opener, Pool, PoolError, PoolSpec, Usage};
use crate::replicas::snapshot;

/// Volume and replica.
pub type Key = (VolumeId, ReplicaId);

/// Where the replicas of a pool are, for whoever makes and opens them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Room {
    /// Files in a directory.
    Directory(PathBuf),
    /// Thin volumes.
    Thin(ThinRoom),
}

impl Room {
    /// What names the pool: no two of a node share it.
    pub fn place(&self) -> PathBuf {
        match self {
            Self::Directory(path) => path.clone(),
            Self::Thin(room) => room.path(),
        }
    }

    /// Where a replica's data and metadata are.
    pub fn replica(&self, (volume, replica): Key) -> (PathBuf, PathBuf) {
        match self {
            Self::Directory(path) => {
                let files = ReplicaFiles::of(path, volume, replica);
                (files.data, files.meta)
            }
            Self::Thin(room) => (
                room.device(volume, replica, Part::Data),
                room.device(volume, replica, Part::Meta),
            ),
        }
    }

    /// Where the copy of a replica's data for a snapshot is.
    pub fn copy(&self, (volume, snapshot, replica): (VolumeId, SnapshotId, ReplicaId)) -> PathBuf {
        match self {
            Self::Directory(path) => {
                let data = ReplicaFiles::of(path, volume, replica).data;
                snapshot::path_of(&data, snapshot, replica)
            }
            Self::Thin(room) => room.copy(volume, snapshot, replica),
        }
    }
}

/// A pool that was found good. Blocks on the disk: for threads made for that. Every call may be repeated.
pub trait Backing: fmt::Debug + Send {
    /// Where it is, as the catalogue says it.
    fn path(&self) -> &Path;
    /// Its identity.
    fn id(&self) -> Uuid;
    /// Where its replicas are.
    fn room(&self) -> Room;
    /// How snapshots are made.
    fn snapshots(&self) -> Snapshots;
    /// Identity of the volatile state under it: the same as long as the kernel runs and no drive was away.
    fn cache(&self, boot: &str) -> CacheId;
    /// Whether the path still leads to what was opened.
    fn is_in_place(&self) -> bool;
    /// Looks at its space now; what the others tell is as of then.
    fn usage(&mut self) -> Result<Usage, PoolError>;
    /// Why nothing new can be put into it now, if so.
    fn obstacle(&self, usage: Usage) -> Option<PoolError>;
    /// Goes on with removals that a crash cut short; how many there were.
    fn finish_deletions(&mut self) -> Result<usize, PoolError>;
    /// Makes replicas that are there usable, all at once where that is cheaper.
    fn activate(&mut self, wanted: &BTreeSet<Key>) -> Result<(), PoolError>;
    /// Whether a replica is there.
    fn is_made(&self, key: Key) -> bool;
    /// Makes what the replica server needs to make or open a replica; the bytes it has.
    fn prepare(&mut self, key: Key) -> Result<u64, PoolError>;
    /// Removes a replica that nobody has open.
    fn delete(&mut self, key: Key) -> Result<(), PoolError>;
    /// Every replica there is.
    fn list(&self) -> Result<Vec<Key>, PoolError>;
    /// What a replica that is not served says of itself, or why it can't be read.
    fn superblock(&self, key: Key) -> Result<Superblock, String>;
    /// Gives up what is empty, so that it can become another pool; whether it was.
    fn retire(self: Box<Self>) -> Result<bool, PoolError>;
}

/// Checks a pool and takes it.
pub fn open(spec: &PoolSpec, lvm: &Lvm, opener: &Opener) -> Result<Box<dyn Backing>, PoolError> {
    Ok(match &spec.kind {
        Kind::File => Box::new(Pool::open(spec, opener)?),
        Kind::Thin(thin) => Box::new(ThinPool::open(spec, thin, lvm, opener)?),
    })
}

/// Gives up what is left of a pool that can't be opened any more, because giving it up was cut short. `error` is why.
pub fn give_up_rest(spec: &PoolSpec, lvm: &Lvm, opener: &Opener, error: PoolError) -> Result<(), PoolError> {
    match (&spec.kind, error) {
        (Kind::Thin(thin), _) => Ok(lvm::give_up_rest(spec, thin, lvm, opener)?),
        // Its marker is the last thing that goes.
        (Kind::File, PoolError::MarkerGone { .. } | PoolError::Missing { .. }) => Ok(()),
        (Kind::File, error) => Err(error),
    }
}

impl Backing for Pool {
    fn path(&self) -> &Path {
        Pool::path(self)
    }

    fn id(&self) -> Uuid {
        Pool::id(self)
    }

    fn room(&self) -> Room {
        Room::Directory(Pool::path(self).to_owned())
    }

    fn snapshots(&self) -> Snapshots {
        Pool::snapshots(self)
    }

    fn cache(&self, boot: &str) -> CacheId {
        Pool::cache(self, boot)
    }

    fn is_in_place(&self) -> bool {
        Pool::is_in_place(self)
    }

    fn usage(&mut self) -> Result<Usage, PoolError> {
        Pool::usage(self)
    }

    fn obstacle(&self, usage: Usage) -> Option<PoolError> {
        Pool::obstacle(self, usage)
    }

    fn finish_deletions(&mut self) -> Result<usize, PoolError> {
        Ok(finish_deletions(Pool::path(self))?)
    }

    fn activate(&mut self, _: &BTreeSet<Key>) -> Result<(), PoolError> {
        Ok(())
    }

    fn is_made(&self, (volume, replica): Key) -> bool {
        ReplicaFiles::of(Pool::path(self), volume, replica).meta.exists()
    }

    fn prepare(&mut self, (volume, replica): Key) -> Result<u64, PoolError> {
        let files = ReplicaFiles::of(Pool::path(self), volume, replica);
        files.prepare()?;
        Ok(files.allocated()?)
    }

    fn delete(&mut self, (volume, replica): Key) -> Result<(), PoolError> {
        Ok(ReplicaFiles::of(Pool::path(self), volume, replica).delete()?)
    }

    fn list(&self) -> Result<Vec<Key>, PoolError> {
        Ok(replica::list(Pool::path(self))?)
    }

    fn superblock(&self, (volume, replica): Key) -> Result<Superblock, String> {
        replica::superblock(Pool::path(self), volume, replica)
    }

    fn retire(self: Box<Self>) -> Result<bool, PoolError> {
        Pool::retire(*self)
    }
}
