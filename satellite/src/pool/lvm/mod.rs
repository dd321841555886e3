//! Pools of kind `lvm-thin`: an LVM thin pool in which each replica has two thin volumes.
//!
//! ```text
//! VG       tags: stor, stor.made (its disks were given to Stor), stor.making (not complete yet)
//! VG/POOL  tags: stor, stor.id=…, stor.node=…, stor.pool=…, stor.cluster=…   whose pool it is
//! ```
//!
//! The tags are to a thin pool what `stor-pool.json` is to a directory: they keep two nodes or pools apart, and tell
//! a pool that is away from one that was never made. A volume group that Stor did not make is refused unless the
//! pool was made with consent to it. The truth about space is the kernel's.

mod make;
pub mod report;
pub mod room;
pub mod run;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use stor_replication::disk::{PAGE, Superblock, decode_superblock};
use stor_replication::ids::CacheId;
use thiserror::Error;
use uuid::Uuid;

use self::report::{Fill, Group, Lv, Mapped};
use self::room::{Pair, Part, ThinRoom, owner};
use self::run::Lvm;
use super::backing::{Backing, Key, Room};
use super::command::CommandError;
use super::disk::{self, DiskError, Looks};
use super::drive::{self, Drive};
use super::probe::Snapshots;
use super::{FULL_BELOW, Opener, PoolError, PoolSpec, Usage};

/// Nothing new is put into a pool whose metadata is fuller than this, in percent: when it is full, the pool is
/// read-only and its replicas fail.
pub const METADATA_FULL_PERCENT: u64 = 90;

/// What is asked of a thin pool.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Thin {
    /// Volume group.
    pub group: String,
    /// Thin pool in it.
    pub pool: String,
    /// Disks to make it of, if it has to be made.
    pub devices: Vec<Device>,
    /// It was never seen ready: it may be made.
    pub make: bool,
    /// Consent to a volume group that Stor did not make.
    pub adopt: bool,
    /// Consent to overwrite what is on the disks.
    pub wipe: bool,
}

/// A disk, as it was seen when it was chosen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Device {
    /// `/dev/…`.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// As the device says.
    pub model: String,
    /// As the device says.
    pub serial: String,
}

/// Goes on with giving up a thin pool that was made of disks, wherever that was cut short.
pub fn give_up_rest(spec: &PoolSpec, thin: &Thin, lvm: &Lvm, opener: &Opener) -> Result<(), ThinError> {
    let room = ThinRoom {
        lvm: lvm.clone(),
        group: thin.group.clone(),
        pool: thin.pool.clone(),
    };
    let disks = make::Disks {
        tells_of: &make::tells_of,
        wipe: &make::wipe_ends,
    };
    make::unmake_rest(&room, spec, thin, opener, disks)
}

/// Why a thin pool, or a replica in it, can't be used.
#[derive(Debug, Error)]
pub enum ThinError {
    /// See [`CommandError`].
    #[error(transparent)]
    Command(#[from] CommandError),
    /// See [`DiskError`].
    #[error(transparent)]
    Disks(#[from] DiskError),
    /// No volume group.
    #[error(
        "there is no volume group {group} on this node; name one that is there, or give disks to make it of"
    )]
    NoGroup {
        /// Its name.
        group: String,
    },
    /// It was there.
    #[error(
        "the volume group {group} is away, although this node has used {group}/{pool} as a pool: are its disks there?"
    )]
    Gone {
        /// Its name.
        group: String,
        /// The thin pool.
        pool: String,
    },
    /// Disks of it are away.
    #[error("{count} of the disks of volume group {group} are away; bring them back (`vgs {group}`, `pvs`)")]
    MissingDisks {
        /// Its name.
        group: String,
        /// How many.
        count: u64,
    },
    /// Somebody else's.
    #[error(
        "Stor did not make the volume group {group}; to use a thin pool in it beside what else is there, say so with --adopt"
    )]
    Foreign {
        /// Its name.
        group: String,
    },
    /// The name of the new one is taken.
    #[error(
        "there is a volume group {group} already, which is not this pool's; choose another name with --lvm-thin VG/POOL, or use \
             what is there without --device"
    )]
    Taken {
        /// Its name.
        group: String,
    },
    /// Another pool's.
    #[error("{group}/{pool} is pool {used_as} of node {node}{}", cluster.as_ref().map_or_else(String::new, |id| format!(" of cluster {id}")))]
    Used {
        /// The volume group.
        group: String,
        /// The thin pool.
        pool: String,
        /// The name it is used by.
        used_as: String,
        /// The node that uses it.
        node: String,
        /// The cluster, if it is another.
        cluster: Option<String>,
    },
    /// Not the one that was used.
    #[error(
        "{group}/{pool} is another thin pool than the one this node has used (id {found}, expected {expected}): are the right disks there?"
    )]
    Exchanged {
        /// The volume group.
        group: String,
        /// The thin pool.
        pool: String,
        /// In its tags.
        found: String,
        /// On record.
        expected: Uuid,
    },
    /// No such volume, or something else.
    #[error(
        "{group}/{pool} is {found}, not a thin pool; make one (`lvcreate --type thin-pool`) or name another"
    )]
    NotThin {
        /// The volume group.
        group: String,
        /// The name.
        pool: String,
        /// What it is.
        found: String,
    },
    /// Replicas would differ, and see what others had written.
    #[error("{group}/{pool} does not zero its chunks; set that: lvchange --zero y {group}/{pool}")]
    NotZeroing {
        /// The volume group.
        group: String,
        /// The thin pool.
        pool: String,
    },
    /// A disk that can't be taken.
    #[error("{path} can't be used: it {why}")]
    Disk {
        /// The disk.
        path: String,
        /// What speaks against it.
        why: String,
    },
    /// A disk that is another one now.
    #[error("{path} is not the disk that was chosen: it is {found} now, and was {expected}")]
    OtherDisk {
        /// The path.
        path: String,
        /// What is there.
        found: String,
        /// What was.
        expected: String,
    },
    /// It could not be overwritten.
    #[error("cannot wipe {path}: {source}")]
    Wipe {
        /// The disk.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Out of order.
    #[error(
        "the thin pool {group}/{pool} is {state}; nothing can be written to it before it is repaired: see `lvconvert --repair` in lvmthin(7)"
    )]
    Broken {
        /// The volume group.
        group: String,
        /// The thin pool.
        pool: String,
        /// In the kernel's words.
        state: String,
    },
    /// The kernel does not know it.
    #[error("the thin pool {group}/{pool} is not active and can't be activated")]
    Inactive {
        /// The volume group.
        group: String,
        /// The thin pool.
        pool: String,
    },
    /// No room for maps.
    #[error(
        "the metadata of the thin pool {group}/{pool} is {percent} % full (nothing new from {METADATA_FULL_PERCENT} % on); \
             grow it: lvextend --poolmetadatasize +SIZE {group}/{pool}"
    )]
    MetadataFull {
        /// The volume group.
        group: String,
        /// The thin pool.
        pool: String,
        /// How full.
        percent: u64,
    },
    /// No room.
    #[error(
        "the thin pool {group}/{pool} is full ({free} bytes free); add a disk (vgextend, lvextend) or free some space"
    )]
    Full {
        /// The volume group.
        group: String,
        /// The thin pool.
        pool: String,
        /// What is left.
        free: u64,
    },
    /// /dev does not lead to it.
    #[error("{} does not lead to the volume {volume}; is /dev the machine's own?", path.display())]
    Node {
        /// The node.
        path: PathBuf,
        /// The volume.
        volume: String,
    },
    /// In another pool.
    #[error("{volume} is in the thin pool {pool}, not in this one; nothing was touched")]
    Elsewhere {
        /// The volume.
        volume: String,
        /// The pool.
        pool: String,
    },
}

/// What is in a thin pool, as last looked at.
#[derive(Debug, Default)]
struct View {
    pool: Lv,
    replicas: BTreeMap<Key, Pair>,
    /// What else is in the pool: snapshots, and what is not ours.
    others: Vec<Lv>,
    mapped: Mapped,
    fill: Fill,
}

/// A thin pool that was found good.
#[derive(Debug)]
pub struct ThinPool {
    name: String,
    path: PathBuf,
    room: ThinRoom,
    id: Uuid,
    view: View,
    drives: Vec<Drive>,
}

impl ThinPool {
    /// Checks the thin pool and takes it; makes it where that is asked for and was never done.
    pub fn open(spec: &PoolSpec, thin: &Thin, lvm: &Lvm, opener: &Opener) -> Result<Self, PoolError> {
        let room = ThinRoom {
            lvm: lvm.clone(),
            group: thin.group.clone(),
            pool: thin.pool.clone(),
        };
        let disks = || disk::look(Looks { loops: true });
        make::make_if_asked(&room, thin, spec, opener, &disks)?;
        let id = make::take(&room, thin, spec, opener)?;
        let mut pool = Self {
            name: spec.name.clone(),
            path: spec.path.clone(),
            room,
            id,
            view: View::default(),
            drives: Vec::new(),
        };
        pool.look()?;
        pool.drives = pool.drives_now();
        Ok(pool)
    }

    /// Looks anew.
    fn look(&mut self) -> Result<(), ThinError> {
        let (group, pool) = (self.room.group.clone(), self.room.pool.clone());
        let all = report::volumes(&self.room.lvm, &group)?;
        let Some(found) = all.iter().find(|lv| lv.name == pool) else {
            return Err(ThinError::Gone { group, pool });
        };
        missing(&found.group)?;
        let found = found.clone();
        let (mut replicas, mut others) = (BTreeMap::<Key, Pair>::new(), Vec::new());
        for lv in all.into_iter().filter(|lv| lv.pool == pool) {
            if let Some((volume, replica, part)) = owner(&lv.name) {
                let pair = replicas.entry((volume, replica)).or_default();
                match part {
                    Part::Data => pair.data = Some(lv),
                    Part::Meta => pair.meta = Some(lv),
                }
            } else {
                others.push(lv);
            }
        }
        let (mapped, fill) = self.room.mapped()?;
        self.view = View {
            pool: found,
            replicas,
            others,
            mapped,
            fill,
        };
        Ok(())
    }

    /// The drives that the thin pool is on, below all that is mapped.
    fn drives_now(&self) -> Vec<Drive> {
        self.view
            .pool
            .device
            .map(|(major, minor)| drive::below(rustix::fs::makedev(major, minor)))
            .unwrap_or_default()
    }

    fn is_ours(&self) -> Result<(), PoolError> {
        let found = self.view.pool.tagged("stor.id").unwrap_or_default();
        if found == self.id.to_string() {
            return Ok(());
        }
        Err(ThinError::Exchanged {
            group: self.room.group.clone(),
            pool: self.room.pool.clone(),
            found: if found.is_empty() { "none" } else { found }.to_owned(),
            expected: self.id,
        }
        .into())
    }
}

/// Refuses a volume group of which disks are away.
fn missing(group: &Group) -> Result<(), ThinError> {
    if group.missing > 0 {
        return Err(ThinError::MissingDisks {
            group: group.name.clone(),
            count: group.missing,
        });
    }
    Ok(())
}

impl Backing for ThinPool {
    fn path(&self) -> &Path {
        &self.path
    }

    fn id(&self) -> Uuid {
        self.id
    }

    fn room(&self) -> Room {
        Room::Thin(self.room.clone())
    }

    fn snapshots(&self) -> Snapshots {
        Snapshots::Thin
    }

    fn cache(&self, boot: &str) -> CacheId {
        super::cache_id(boot, &self.drives, self.id)
    }

    fn is_in_place(&self) -> bool {
        self.drives_now() == self.drives
    }

    fn usage(&mut self) -> Result<Usage, PoolError> {
        self.look()?;
        let (used, all) = self.view.fill.data;
        let capacity = self.view.pool.size;
        let chunk = capacity.checked_div(all).unwrap_or(0);
        let (meta_used, meta_all) = self.view.fill.metadata;
        let page = self.view.pool.metadata_size.checked_div(meta_all).unwrap_or(0);
        let (major, minor) = self.view.pool.device.unwrap_or_default();
        Ok(Usage {
            capacity,
            free: capacity.saturating_sub(used.saturating_mul(chunk)),
            device: rustix::fs::makedev(major, minor),
            metadata_capacity: self.view.pool.metadata_size,
            metadata_used: meta_used.saturating_mul(page),
        })
    }

    fn obstacle(&self, usage: Usage) -> Option<PoolError> {
        let (group, pool) = (self.room.group.clone(), self.room.pool.clone());
        if let Err(error) = self.is_ours() {
            return Some(error);
        }
        let fill = &self.view.fill;
        let state = match fill.mode.as_str() {
            _ if fill.needs_check => "in need of a check",
            "ro" => "read-only",
            "Fail" => "failed",
            _ => "",
        };
        let percent = fill.metadata.0.saturating_mul(100) / fill.metadata.1.max(1);
        let error = if !state.is_empty() {
            let state = state.to_owned();
            ThinError::Broken { group, pool, state }
        } else if percent >= METADATA_FULL_PERCENT {
            ThinError::MetadataFull { group, pool, percent }
        } else if usage.free < FULL_BELOW {
            let free = usage.free;
            ThinError::Full { group, pool, free }
        } else {
            return None;
        };
        Some(error.into())
    }

    fn finish_deletions(&mut self) -> Result<usize, PoolError> {
        let begun: Vec<_> = self
            .view
            .replicas
            .values()
            .filter(|pair| pair.is_deleted())
            .collect();
        for pair in &begun {
            self.room.remove(pair)?;
        }
        let finished = begun.len();
        self.view.replicas.retain(|_, pair| !pair.is_deleted());
        Ok(finished)
    }

    fn activate(&mut self, wanted: &BTreeSet<Key>) -> Result<(), PoolError> {
        let parts = |view: &View| -> Vec<Lv> {
            let ready = view.replicas.iter().filter(|(key, _)| wanted.contains(key));
            ready
                .filter(|(_, pair)| pair.is_ready())
                .flat_map(|(_, pair)| pair.parts().cloned())
                .chain([view.pool.clone()])
                .collect()
        };
        let before = parts(&self.view);
        if self.room.activate(&before.iter().collect::<Vec<_>>())? {
            self.look()?;
        }
        let mut now = parts(&self.view);
        // A pool that has volumes has no node of its own.
        now.retain(|lv| lv.name != self.room.pool);
        self.room.make_nodes(&now.iter().collect::<Vec<_>>());
        Ok(())
    }

    fn is_made(&self, key: Key) -> bool {
        self.view.replicas.get(&key).is_some_and(Pair::is_ready)
    }

    fn prepare(&mut self, key: Key) -> Result<u64, PoolError> {
        let Some(pair) = self.view.replicas.get(&key).filter(|pair| pair.is_ready()) else {
            // The server makes it, or finds it missing.
            return Ok(0);
        };
        for lv in pair.parts() {
            self.room.check_node(lv)?;
        }
        Ok(self.room.allocated(&self.view.mapped, pair))
    }

    fn delete(&mut self, key: Key) -> Result<(), PoolError> {
        let pair = self.room.find(key.0, key.1)?;
        self.room.remove(&pair)?;
        self.view.replicas.remove(&key);
        Ok(())
    }

    fn list(&self) -> Result<Vec<Key>, PoolError> {
        let ready = self.view.replicas.iter().filter(|(_, pair)| pair.is_ready());
        Ok(ready.map(|(key, _)| *key).collect())
    }

    fn superblock(&self, (volume, replica): Key) -> Result<Superblock, String> {
        let told = |error: ThinError| error.to_string();
        let pair = self.room.find(volume, replica).map_err(told)?;
        let metas: Vec<_> = pair.meta.iter().collect();
        self.room.activate(&metas).map_err(told)?;
        let path = self.room.device(volume, replica, Part::Meta);
        let cannot = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
        let file = std::fs::File::open(&path).map_err(cannot)?;
        let mut bytes = Vec::with_capacity(2 * PAGE);
        file.take(2 * PAGE as u64)
            .read_to_end(&mut bytes)
            .map_err(cannot)?;
        let (first, second) = bytes.split_at_checked(PAGE).unwrap_or((&bytes, &[]));
        decode_superblock(first, second, volume, replica)
            .map(|(_, superblock)| superblock)
            .map_err(|error| format!("{}: {error}", path.display()))
    }

    fn retire(self: Box<Self>) -> Result<bool, PoolError> {
        if !self.view.replicas.is_empty() || self.view.others.iter().any(|lv| lv.has(room::OURS)) {
            return Ok(false);
        }
        tracing::debug!(pool = self.name, "the thin pool is given up");
        make::unmake(&self.room, &make::wipe_ends)?;
        Ok(true)
    }
}
