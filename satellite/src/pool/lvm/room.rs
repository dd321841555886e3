//! The thin volumes of replicas: their names, how one is made, found again and removed.
//!
//! ```text
//! VG/stor.<volume id>.r<replica>.data   the volume's bytes
//! VG/stor.<volume id>.r<replica>.meta   superblock, dirty map, out-of-sync maps
//!     tags of the latter: stor.ready    both are whole; without it they are leftovers of a making
//!                         stor.deleted  a removal has begun
//! ```
//!
//! A replica exists while its `.meta` is tagged `stor.ready` and not `stor.deleted`: each a single change of LVM's
//! metadata, so that a crash in the middle never leaves half a replica that looks whole.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use stor_replication::ids::{ReplicaId, SnapshotId, VolumeId};
use uuid::Uuid;

use super::ThinError;
use super::report::{self, Fill, Lv, Mapped};
use super::run::Lvm;

/// On everything that is ours.
pub const OURS: &str = "stor";
const READY: &str = "stor.ready";
const DELETED: &str = "stor.deleted";
/// End of the name of what is being made.
const UNFINISHED: &str = "unfinished";

/// Which of a replica's two.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// The volume's bytes.
    Data,
    /// Superblock and maps.
    Meta,
}

/// A thin pool as the place of replicas.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ThinRoom {
    /// How LVM is asked.
    pub lvm: Lvm,
    /// Volume group.
    pub group: String,
    /// Thin pool in it.
    pub pool: String,
}

/// A replica's volumes, as far as they are there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pair {
    /// See [`Part::Data`].
    pub data: Option<Lv>,
    /// See [`Part::Meta`].
    pub meta: Option<Lv>,
}

impl Pair {
    /// The replica exists.
    pub fn is_ready(&self) -> bool {
        self.meta
            .as_ref()
            .is_some_and(|meta| meta.has(READY) && !meta.has(DELETED))
    }

    /// Its removal has begun.
    pub fn is_deleted(&self) -> bool {
        self.meta.as_ref().is_some_and(|meta| meta.has(DELETED))
    }

    /// What is there of it.
    pub fn parts(&self) -> impl Iterator<Item = &Lv> {
        self.data.iter().chain(&self.meta)
    }
}

impl ThinRoom {
    /// The pool's own place: what names it in `pool list`, and no two pools of a node share.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.group).join(&self.pool)
    }

    /// Name of a replica's volume.
    pub fn name(volume: VolumeId, replica: ReplicaId, part: Part) -> String {
        let end = match part {
            Part::Data => "data",
            Part::Meta => "meta",
        };
        format!("stor.{}.r{replica}.{end}", volume.0.simple())
    }

    /// The device of a replica's volume.
    pub fn device(&self, volume: VolumeId, replica: ReplicaId, part: Part) -> PathBuf {
        self.node(&Self::name(volume, replica, part))
    }

    /// The device of a snapshot of a replica's data.
    pub fn copy(&self, volume: VolumeId, snapshot: SnapshotId, replica: ReplicaId) -> PathBuf {
        self.node(&Self::copy_name(volume, snapshot, replica))
    }

    /// Name of a snapshot of a replica's data.
    pub fn copy_name(volume: VolumeId, snapshot: SnapshotId, replica: ReplicaId) -> String {
        format!("stor.{}.s{}.r{replica}", volume.0.simple(), snapshot.0.simple())
    }

    /// Name of a copy for a snapshot that is being made anew of another one.
    pub fn unfinished(copy: &str) -> String {
        format!("{copy}.{UNFINISHED}")
    }

    /// The device of a volume.
    pub fn node(&self, name: &str) -> PathBuf {
        Path::new("/dev").join(&self.group).join(name)
    }

    fn full(&self, name: &str) -> String {
        format!("{}/{name}", self.group)
    }

    /// Looks for a replica's volumes.
    pub fn find(&self, volume: VolumeId, replica: ReplicaId) -> Result<Pair, ThinError> {
        let all = report::volumes(&self.lvm, &self.group)?;
        let find = |part| {
            let name = Self::name(volume, replica, part);
            all.iter().find(|lv| lv.name == name).cloned()
        };
        let pair = Pair {
            data: find(Part::Data),
            meta: find(Part::Meta),
        };
        // The same name in another pool of the group: not ours to touch.
        if let Some(lv) = pair.parts().find(|lv| lv.pool != self.pool) {
            return Err(ThinError::Elsewhere {
                volume: self.full(&lv.name),
                pool: self.full(&lv.pool),
            });
        }
        Ok(pair)
    }

    /// Makes an empty thin volume, ready to be written to.
    pub fn carve(&self, name: &str, size: u64) -> Result<(), ThinError> {
        let size = format!("{size}b");
        let arguments = [
            "--wipesignatures",
            "n",
            "--type",
            "thin",
            "--virtualsize",
            &size,
            "--thinpool",
            &self.pool,
            "--name",
            name,
            "--addtag",
            OURS,
            &self.group,
        ];
        Ok(self.lvm.change("lvcreate", &arguments)?)
    }

    /// Makes a volume that shares all chunks with another; both are their own from then on.
    pub fn share(&self, from: &str, name: &str) -> Result<(), ThinError> {
        let from = self.full(from);
        let arguments = [
            "--snapshot",
            "--setactivationskip",
            "n",
            "--name",
            name,
            "--addtag",
            OURS,
            &from,
        ];
        Ok(self.lvm.change("lvcreate", &arguments)?)
    }

    /// Makes a volume larger; of one that is large enough nothing is done.
    pub fn extend(&self, lv: &Lv, size: u64) -> Result<(), ThinError> {
        if lv.size >= size {
            return Ok(());
        }
        let size = format!("{size}b");
        Ok(self
            .lvm
            .change("lvextend", &["--size", &size, &self.full(&lv.name)])?)
    }

    /// Gives a volume another name.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), ThinError> {
        Ok(self.lvm.change("lvrename", &[&self.group, from, to])?)
    }

    /// Removes a volume that is there.
    pub fn discard(&self, name: &str) -> Result<(), ThinError> {
        Ok(self.lvm.change("lvremove", &[&self.full(name)])?)
    }

    /// The volume of this name in the pool.
    pub fn named(&self, name: &str) -> Result<Option<Lv>, ThinError> {
        let all = report::volumes(&self.lvm, &self.group)?;
        Ok(all.into_iter().find(|lv| lv.name == name && lv.pool == self.pool))
    }

    /// How full the pool is.
    pub fn fill(&self) -> Result<Fill, ThinError> {
        Ok(self.mapped()?.1)
    }

    /// What the kernel says of the group's volumes, and of the pool. While another command changes something in the pool it
    /// is without a table for a moment: one that is not there is looked for again.
    pub fn mapped(&self) -> Result<(Mapped, Fill), ThinError> {
        for again in (0..LOOKS).rev() {
            let mapped = Mapped::read(&self.lvm.status()?);
            if let Some(fill) = mapped.pool(&self.group, &self.pool).cloned() {
                return Ok((mapped, fill));
            }
            if again > 0 {
                std::thread::sleep(LOOK_AGAIN);
            }
        }
        Err(ThinError::Inactive {
            group: self.group.clone(),
            pool: self.pool.clone(),
        })
    }

    /// Both volumes of a replica are whole: from now on it exists.
    pub fn finish(&self, volume: VolumeId, replica: ReplicaId) -> Result<(), ThinError> {
        let name = self.full(&Self::name(volume, replica, Part::Meta));
        Ok(self.lvm.change("lvchange", &["--addtag", READY, &name])?)
    }

    /// Removes what is there of a replica. Nothing may have it open. Doing it again, or after a crash in the middle,
    /// is the same as doing it once.
    pub fn remove(&self, pair: &Pair) -> Result<(), ThinError> {
        if let Some(meta) = pair.meta.as_ref().filter(|_| pair.is_ready()) {
            self.lvm
                .change("lvchange", &["--addtag", DELETED, &self.full(&meta.name)])?;
        }
        for lv in pair.parts() {
            self.lvm.change("lvremove", &[&self.full(&lv.name)])?;
        }
        Ok(())
    }

    /// Activates what is not active, and lets go on what a command that was cut short left suspended. Returns whether
    /// anything was done.
    pub fn activate(&self, volumes: &[&Lv]) -> Result<bool, ThinError> {
        let mut done = false;
        for (arguments, is_due) in [
            (
                ["--activate", "y"].as_slice(),
                (|lv: &Lv| !lv.active) as fn(&Lv) -> bool,
            ),
            (["--refresh"].as_slice(), |lv| lv.suspended),
        ] {
            let due: Vec<_> = volumes
                .iter()
                .filter(|lv| is_due(lv))
                .map(|lv| self.full(&lv.name))
                .collect();
            for some in due.chunks(MOST_AT_ONCE) {
                let mut all = arguments.to_vec();
                all.extend(some.iter().map(String::as_str));
                self.lvm.change("lvchange", &all)?;
                done = true;
            }
        }
        Ok(done)
    }

    /// Makes the nodes in /dev that are missing or wrong.
    pub fn make_nodes(&self, volumes: &[&Lv]) {
        if volumes.iter().all(|lv| self.has_node(lv)) {
            return;
        }
        // It may say it failed for what is not ours to look at; the nodes are looked at before they are used.
        if let Err(error) = self.lvm.change("vgmknodes", &[&self.group]) {
            tracing::debug!(%error, "nodes in /dev");
        }
    }

    /// Whether the node in /dev is the one of this volume, by the kernel's number.
    fn has_node(&self, lv: &Lv) -> bool {
        let Some((major, minor)) = lv.device else {
            return false;
        };
        fs::metadata(self.node(&lv.name)).is_ok_and(|metadata| {
            metadata.file_type().is_block_device() && metadata.rdev() == rustix::fs::makedev(major, minor)
        })
    }

    /// Refuses a volume whose node in /dev is missing or that of something else.
    pub fn check_node(&self, lv: &Lv) -> Result<(), ThinError> {
        if lv.active && self.has_node(lv) {
            return Ok(());
        }
        Err(ThinError::Node {
            path: self.node(&lv.name),
            volume: self.full(&lv.name),
        })
    }

    /// Bytes of the pool that a replica has.
    pub fn allocated(&self, mapped: &Mapped, pair: &Pair) -> u64 {
        pair.parts()
            .filter_map(|lv| mapped.allocated(&self.group, &lv.name))
            .sum()
    }
}

/// How often a pool is looked for that the kernel does not show, and the time between.
const LOOKS: u32 = 6;
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// Volumes named in one command: far below the longest command line.
const MOST_AT_ONCE: usize = 256;

/// Whose a volume is, by its name.
pub fn owner(name: &str) -> Option<(VolumeId, ReplicaId, Part)> {
    let mut words = name.strip_prefix("stor.")?.split('.');
    let volume = VolumeId(Uuid::try_parse(words.next()?).ok()?);
    let replica = ReplicaId(words.next()?.strip_prefix('r')?.parse().ok()?);
    let part = match words.next()? {
        "data" => Part::Data,
        "meta" => Part::Meta,
        _ => return None,
    };
    words.next().is_none().then_some((volume, replica, part))
}

/// Whose copy for which snapshot a volume is, or will be, by its name.
pub fn owner_of_copy(name: &str) -> Option<(VolumeId, SnapshotId, ReplicaId)> {
    let name = name
        .strip_suffix(UNFINISHED)
        .map_or(name, |rest| rest.strip_suffix('.').unwrap_or(name));
    let mut words = name.strip_prefix("stor.")?.split('.');
    let volume = VolumeId(Uuid::try_parse(words.next()?).ok()?);
    let snapshot = SnapshotId(Uuid::try_parse(words.next()?.strip_prefix('s')?).ok()?);
    let replica = ReplicaId(words.next()?.strip_prefix('r')?.parse().ok()?);
    words.next().is_none().then_some((volume, snapshot, replica))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_whose_it_is() {
        let (volume, replica) = (VolumeId(Uuid::from_u128(0x0c49)), ReplicaId(12));
        for part in [Part::Data, Part::Meta] {
            let name = ThinRoom::name(volume, replica, part);
            assert_eq!(owner(&name), Some((volume, replica, part)), "{name}");
            assert!(name.len() <= 54, "{name}");
        }
        let snapshot = SnapshotId(Uuid::from_u128(3));
        let copy = ThinRoom::copy_name(volume, snapshot, replica);
        assert_eq!(
            (owner(&copy), owner_of_copy(&copy)),
            (None, Some((volume, snapshot, replica)))
        );
        let unfinished = ThinRoom::unfinished(&copy);
        assert_eq!(owner_of_copy(&unfinished), Some((volume, snapshot, replica)));
        assert!(unfinished.len() <= 100, "{unfinished}");
        for other in [
            "thin",
            "stor.x.r1.data",
            "stor.00000000000000000000000000000c49.r1.data.more",
            "stor.1.r1.data",
        ] {
            assert_eq!(owner(other), None, "{other}");
        }
    }

    #[test]
    fn a_replica_is_there_from_the_one_tag_to_the_other() {
        let meta = |tags: &[&str]| Pair {
            data: None,
            meta: Some(Lv {
                tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
                ..Lv::default()
            }),
        };
        assert!(!meta(&[OURS]).is_ready());
        assert!(meta(&[OURS, READY]).is_ready());
        assert!(!meta(&[OURS, READY, DELETED]).is_ready());
        assert!(meta(&[OURS, READY, DELETED]).is_deleted());
        assert!(!Pair::default().is_ready());
    }
}
