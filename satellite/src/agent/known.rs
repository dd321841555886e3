//! What this node has had: the identity of its pools, and the replicas that were seen ready once.
//!
//! It answers one question: may something be *made* here? The controllers ask for a replica to be made
//! until they hear that it is there. Were its files lost in between (a disk that is not mounted, a
//! directory somebody emptied), an empty replica would be made as a member of the in-sync set, and the
//! volume's data would be gone. What is written here was there once and is not made again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stor_replication::ids::{ReplicaId, VolumeId};
use thiserror::Error;
use uuid::Uuid;

use super::durable::{self, ReplaceError, Unreadable};
use crate::pool::lvm::{Device, Thin};
use crate::pool::{Kind, PoolSpec};

/// The newest version this program reads.
const VERSION: u32 = 1;

/// A pool as it was used first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KnownPool {
    /// The directory.
    pub path: PathBuf,
    /// Id of its marker.
    pub id: Uuid,
    /// It is an LVM thin pool, and the path is `/dev/VG/POOL`.
    #[serde(default)]
    pub thin: bool,
    /// Disks that were given to Stor to make it of.
    #[serde(default)]
    pub disks: Vec<String>,
}

impl KnownPool {
    /// As it is to be opened to be given up; `None` if the path is none.
    pub fn leaving(&self, name: &str) -> Option<PoolSpec> {
        let kind = if self.thin {
            let mut words = self.path.strip_prefix("/dev").ok()?.iter();
            let mut word = || words.next().and_then(|word| word.to_str()).map(str::to_owned);
            let device = |path: &String| Device {
                path: path.clone(),
                ..Device::default()
            };
            Kind::Thin(Thin {
                group: word()?,
                pool: word()?,
                devices: self.disks.iter().map(device).collect(),
                make: false,
                adopt: false,
                wipe: false,
            })
        } else {
            Kind::File
        };
        Some(PoolSpec {
            name: name.to_owned(),
            path: self.path.clone(),
            kind,
        })
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    pools: BTreeMap<String, KnownPool>,
    /// Replicas that were ready once and are not deleted.
    made: BTreeSet<(VolumeId, ReplicaId)>,
}

/// Why it could not be read or written.
#[derive(Debug, Error)]
pub enum KnownError {
    /// The system refused.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not what was written.
    #[error("{} is damaged ({source}). It records which replicas this node has had. Check that every pool's \
             file system is mounted, then delete the file and start again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Of a later release.
    #[error("{} has version {version}, this stor-satellite reads up to {VERSION}: install the newer release", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// What it says.
        version: u32,
    },
    /// See [`ReplaceError`].
    #[error(transparent)]
    Write(#[from] ReplaceError),
}

/// The record and its file.
#[derive(Debug)]
pub struct Known {
    path: PathBuf,
    content: Content,
}

impl Known {
    /// Reads the record; an absent file is an empty record.
    pub fn load(path: &Path) -> Result<Self, KnownError> {
        let path = path.to_owned();
        let content = match durable::read_record(&path, VERSION) {
            Ok(Some(content)) => content,
            Ok(None) => Content {
                version: VERSION,
                pools: BTreeMap::new(),
                made: BTreeSet::new(),
            },
            Err(Unreadable::Read(source)) => return Err(KnownError::Read { path, source }),
            Err(Unreadable::Damaged(source)) => return Err(KnownError::Damaged { path, source }),
            Err(Unreadable::Newer(version)) => return Err(KnownError::Newer { path, version }),
        };
        Ok(Self { path, content })
    }

    /// Id of the marker of a pool at this path, when it was used before.
    pub fn pool(&self, name: &str, path: &Path) -> Option<Uuid> {
        let known = self.content.pools.get(name)?;
        (known.path == path).then_some(known.id)
    }

    /// Every pool on record.
    pub fn pools(&self) -> impl Iterator<Item = (&String, &KnownPool)> {
        self.content.pools.iter()
    }

    /// Whether the replica was ready once.
    pub fn was_made(&self, volume: VolumeId, replica: ReplicaId) -> bool {
        self.content.made.contains(&(volume, replica))
    }

    /// Every replica on record.
    pub fn made(&self) -> impl Iterator<Item = (VolumeId, ReplicaId)> + '_ {
        self.content.made.iter().copied()
    }

    /// Changes the record and writes it when that made a difference.
    pub fn change(&mut self, changes: impl IntoIterator<Item = KnownChange>) -> Result<(), KnownError> {
        let mut content = self.content.clone();
        for change in changes {
            match change {
                KnownChange::Pool(name, pool) => {
                    content.pools.insert(name, pool);
                }
                KnownChange::NoPool(name) => {
                    content.pools.remove(&name);
                }
                KnownChange::Made(volume, replica) => {
                    content.made.insert((volume, replica));
                }
                KnownChange::Deleted(volume, replica) => {
                    content.made.remove(&(volume, replica));
                }
            }
        }
        if content == self.content {
            return Ok(());
        }
        let text = serde_json::to_vec(&content).map_err(|source| KnownError::Damaged {
            path: self.path.clone(),
            source,
        })?;
        durable::replace(&self.path, &text)?;
        self.content = content;
        Ok(())
    }
}

/// One change of the record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KnownChange {
    /// A pool was opened.
    Pool(String, KnownPool),
    /// A pool is no more.
    NoPool(String),
    /// A replica was ready.
    Made(VolumeId, ReplicaId),
    /// A replica was removed.
    Deleted(VolumeId, ReplicaId),
}
