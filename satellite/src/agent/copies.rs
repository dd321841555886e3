//! The copies for snapshots in the node's pools, as the controllers want them: kept, or removed. They are made by the
//! replica server, when an engine asks for one that is listed here.
//!
//! Nothing is removed that is not named to be: a catalogue that was restored from a backup does not know all.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use stor_device::extent_map::{self, Space};
use stor_device::file;
use stor_proto::satellite as proto;
use stor_replication::ids::{ReplicaId, SnapshotId, VolumeId};
use stor_right::SignedRight;

use super::row::{self, RowError};
use crate::failure;
use crate::pool::replica::ReplicaFiles;
use crate::replicas::snapshot;

/// Whose copy of which snapshot.
pub type CopyKey = (VolumeId, SnapshotId, ReplicaId);

/// What should become of a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyWish {
    /// An engine may have it made.
    Make,
    /// It is made anew, of another one.
    Recopy,
    /// It is there and stays.
    Keep,
    /// Remove it.
    Delete,
}

/// A copy the node should hold, or have no more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WantedCopy {
    /// Pool it is in.
    pub pool: String,
    /// What should become of it.
    pub wish: CopyWish,
    /// Of what, for [`CopyWish::Recopy`].
    pub recopy: Option<Recopied>,
}

/// What a copy is made anew of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recopied {
    /// Bytes of the snapshot.
    pub size: u64,
    /// By the replicas that have one: `host:port` of their nodes' replica servers.
    pub sources: Vec<(ReplicaId, String)>,
    /// To read them.
    pub right: SignedRight,
}

/// Where a replica's first data come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// Volume the snapshot is of.
    pub volume: VolumeId,
    /// Snapshot.
    pub snapshot: SnapshotId,
    /// Whose copy, in the same pool.
    pub replica: ReplicaId,
}

/// What was found of a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// It is there.
    There(Space),
    /// It is not.
    Missing,
    /// It was removed.
    Deleted,
}

/// Reads a copy from the controllers' message.
pub fn wanted(from: proto::SnapshotCopy) -> Result<(CopyKey, WantedCopy), RowError> {
    let key = (
        row::volume_id(&from.volume_id)?,
        row::snapshot_id(&from.snapshot_id)?,
        ReplicaId(from.replica),
    );
    let recopy = from.recopy.map(recopied).transpose()?;
    let wish = match (from.delete, from.may_make) {
        (true, _) => CopyWish::Delete,
        (false, true) => CopyWish::Make,
        (false, false) if recopy.is_some() => CopyWish::Recopy,
        (false, false) => CopyWish::Keep,
    };
    let pool = from.pool;
    Ok((key, WantedCopy { pool, wish, recopy }))
}

fn recopied(from: proto::Recopy) -> Result<Recopied, RowError> {
    let source = |source: proto::CopySource| (ReplicaId(source.replica), source.address);
    Ok(Recopied {
        size: row::size(from.size_bytes)?,
        sources: from.sources.into_iter().map(source).collect(),
        right: SignedRight::new(from.right),
    })
}

/// Reads where a replica's first data come from.
pub fn source(from: &proto::SnapshotSource) -> Result<Source, RowError> {
    Ok(Source {
        volume: row::volume_id(&from.volume_id)?,
        snapshot: row::snapshot_id(&from.snapshot_id)?,
        replica: ReplicaId(from.replica),
    })
}

/// Between measurements of one copy: how much of it is shared changes with every write to the volume, and to look
/// takes long where it is in many pieces.
const MEASURE: Duration = Duration::from_secs(20);

/// Looks after the copies in one pool of kind `file`. Blocks on the disk.
#[derive(Debug, Default)]
pub struct Copies {
    measured: BTreeMap<CopyKey, (Instant, Space)>,
}

impl Copies {
    /// Does what is wanted of the copies in the directory and tells what there is.
    pub fn look(
        &mut self,
        pool: &Path,
        work: &BTreeMap<CopyKey, CopyWish>,
    ) -> BTreeMap<CopyKey, Result<Found, String>> {
        self.measured.retain(|key, _| work.contains_key(key));
        work.iter()
            .map(|(key, wish)| {
                let done = match wish {
                    CopyWish::Delete => delete(pool, *key).map(|()| Found::Deleted),
                    CopyWish::Make | CopyWish::Recopy | CopyWish::Keep => self.measure(pool, *key),
                };
                let (volume, snapshot, replica) = key;
                let told = |error: io::Error| {
                    format!("snapshot {snapshot} of replica {replica} of volume {volume}: {error}")
                };
                (*key, done.map_err(told))
            })
            .collect()
    }

    fn measure(&mut self, pool: &Path, key: CopyKey) -> io::Result<Found> {
        let path = snapshot::path_of(&data(pool, key), key.1, key.2);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
            Err(error) => return Err(error),
        };
        let now = Instant::now();
        if let Some((at, space)) = self.measured.get(&key)
            && now.duration_since(*at) < MEASURE
        {
            return Ok(Found::There(*space));
        }
        let space = extent_map::space(&file)?;
        self.measured.insert(key, (now, space));
        Ok(Found::There(space))
    }
}

fn data(pool: &Path, (volume, _, replica): CopyKey) -> std::path::PathBuf {
    ReplicaFiles::of(pool, volume, replica).data
}

/// Removes a copy, and the volume's directory with the last of what was in it. Doing it again is the same.
fn delete(pool: &Path, key: CopyKey) -> io::Result<()> {
    let copy = snapshot::path_of(&data(pool, key), key.1, key.2);
    failure::point("copy-to-go");
    snapshot::remove(&copy)?;
    failure::point("copy-removed");
    snapshot::remove(&snapshot::unfinished(&copy))?;
    let directory = copy.parent().unwrap_or(pool);
    match fs::remove_dir(directory) {
        Ok(()) => file::fsync_dir(pool),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => file::fsync_dir(directory),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
