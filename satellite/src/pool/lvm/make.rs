//! Making a thin pool out of disks, taking one that is there, and giving it back.
//!
//! Each step looks what is there and does what comes next, so that a step that was cut short is done again:
//!
//! ```text
//! disks ──► VG (stor.made, stor.making) ──► VG/POOL ──► errorwhenfull ──► VG/POOL (stor.id=…) ──► VG less stor.making
//! VG/POOL without replicas ──► VG (stor.making) ──► VG without POOL ──► no VG ──► disks without a trace of LVM
//! ```

use std::io::{self, Read as _};
use std::path::Path;

use uuid::Uuid;

use super::report::{self, Group, Lv};
use super::room::{OURS, ThinRoom};
use super::{Device, Thin, ThinError, missing};
use crate::pool::disk::{Disk, DiskError};
use crate::pool::{Opener, PoolSpec};

const MADE: &str = "stor.made";
const MAKING: &str = "stor.making";

/// Of a pool's size, this part is its metadata: 128 bytes for each chunk of 64 KiB. A mapping takes some 50 bytes where
/// the maps are half full; the rest is for snapshots.
const METADATA_PART: u64 = 512;
/// Metadata is at least and at most so large: less can't be repaired in practice, more can't be addressed.
const METADATA_SIZE: (u64, u64) = (16 << 20, 15 << 30);
/// The smallest chunk there is: what a replica is copied in.
const CHUNK: u64 = 64 << 10;
/// Chunks that the largest metadata has room for, with a reserve.
const MOST_CHUNKS: u64 = 200 << 20;
/// Overwritten at both ends of a disk that is wiped: partition tables, file systems, RAID and LVM all have what they
/// are recognised by there.
const WIPED: u64 = 2 << 20;
/// Where LVM keeps what it knows of a group, at the beginning of each disk.
const LVM_AREA: u64 = 1 << 20;

/// Makes the volume group and the thin pool of its disks, as far as that is still to do.
pub(super) fn make_if_asked(
    room: &ThinRoom,
    thin: &Thin,
    spec: &PoolSpec,
    opener: &Opener,
    disks: &dyn Fn() -> Result<Vec<Disk>, DiskError>,
) -> Result<(), ThinError> {
    if thin.devices.is_empty() || !thin.make || opener.known.is_some() {
        return Ok(());
    }
    let whose = whose(spec, opener);
    match report::group(&room.lvm, &room.group)? {
        None => make_group(room, thin, &whose, &disks()?)?,
        Some(group) if !whose.iter().all(|tag| group.has(tag)) => {
            return Err(ThinError::Taken {
                group: group.name.clone(),
            });
        }
        // Complete: whether the pool in it is good shows when it is taken.
        Some(group) if !group.has(MAKING) => return Ok(()),
        Some(group) => missing(&group)?,
    }
    let all = report::volumes(&room.lvm, &room.group)?;
    if !all.iter().any(|lv| is_pool(lv, room)) {
        // What a command that was cut short has left: nothing else can be in a group that was never complete.
        for lv in &all {
            if !is_hidden(&lv.name) {
                room.lvm
                    .change("lvremove", &[&format!("{}/{}", room.group, lv.name)])?;
            }
        }
        make_pool(room, thin)?;
    }
    Ok(())
}

fn is_pool(lv: &Lv, room: &ThinRoom) -> bool {
    lv.name == room.pool && lv.segment == "thin-pool"
}

/// A part of a thin pool, which LVM removes with it.
fn is_hidden(name: &str) -> bool {
    ["_tdata", "_tmeta", "_pmspare"]
        .iter()
        .any(|end| name.ends_with(end))
}

/// The tags that say whose pool it is, without its id.
fn whose(spec: &PoolSpec, opener: &Opener) -> Vec<String> {
    let mut tags = vec![
        format!("stor.node={}", opener.node),
        format!("stor.pool={}", spec.name),
    ];
    if !opener.cluster.is_empty() {
        tags.push(format!("stor.cluster={}", opener.cluster));
    }
    tags
}

fn make_group(room: &ThinRoom, thin: &Thin, whose: &[String], disks: &[Disk]) -> Result<(), ThinError> {
    // A disk in LVM's hands but in no group holds nothing: an earlier attempt may have left it so.
    let idle: Vec<_> = report::disks(&room.lvm)?
        .into_iter()
        .filter(|(_, group)| group.is_empty())
        .map(|(path, _)| path)
        .collect();
    for device in &thin.devices {
        let found = check(device, disks)?;
        let Some(why) = &found.in_use else { continue };
        if idle.contains(&device.path) {
            continue;
        }
        if !(thin.wipe && found.wipeable) {
            let why = why.clone();
            let path = device.path.clone();
            return Err(ThinError::Disk { path, why });
        }
        tracing::warn!(
            disk = device.path,
            model = found.model,
            serial = found.serial,
            why,
            "a disk is wiped"
        );
        wipe_ends(device.path.as_ref()).map_err(|source| ThinError::Wipe {
            path: device.path.clone(),
            source,
        })?;
    }
    let mut arguments = Vec::new();
    for tag in [OURS, MADE, MAKING]
        .into_iter()
        .chain(whose.iter().map(String::as_str))
    {
        arguments.extend(["--addtag", tag]);
    }
    arguments.push(&room.group);
    arguments.extend(thin.devices.iter().map(|device| device.path.as_str()));
    Ok(room.lvm.change("vgcreate", &arguments)?)
}

/// Overwrites both ends of a disk that nobody uses.
pub(super) fn wipe_ends(disk: &Path) -> io::Result<()> {
    stor_device::blockdev::wipe(disk, WIPED)
}

/// How a disk is wiped: [`wipe_ends`], but in tests, whose disks are none.
pub(super) type Wipe<'a> = &'a dyn Fn(&Path) -> io::Result<()>;

/// What is done with disks themselves, but in tests, whose disks are none.
#[derive(Clone, Copy)]
pub(super) struct Disks<'a> {
    /// See [`tells_of`].
    pub(super) tells_of: &'a dyn Fn(&Path, Uuid) -> bool,
    /// See [`wipe_ends`].
    pub(super) wipe: Wipe<'a>,
}

/// The disk at a path, if it is still the one that was chosen.
fn check<'a>(device: &Device, disks: &'a [Disk]) -> Result<&'a Disk, ThinError> {
    let path = device.path.clone();
    let Some(found) = disks.iter().find(|disk| disk.path == path) else {
        let why = "is not there".to_owned();
        return Err(ThinError::Disk { path, why });
    };
    let same = found.size == device.size && found.model == device.model && found.serial == device.serial;
    if same {
        return Ok(found);
    }
    let words =
        |size: u64, model: &str, serial: &str| format!("{size} bytes, model {model:?}, serial {serial:?}");
    Err(ThinError::OtherDisk {
        path,
        found: words(found.size, &found.model, &found.serial),
        expected: words(device.size, &device.model, &device.serial),
    })
}

fn make_pool(room: &ThinRoom, thin: &Thin) -> Result<(), ThinError> {
    let size: u64 = thin.devices.iter().map(|device| device.size).sum();
    let chunk = format!("{}b", chunk(size));
    let metadata = (size / METADATA_PART).clamp(METADATA_SIZE.0, METADATA_SIZE.1);
    let metadata = format!("{metadata}b");
    let arguments = [
        "--type",
        "thin-pool",
        "--extents",
        "100%FREE",
        "--poolmetadatasize",
        &metadata,
        "--chunksize",
        &chunk,
        "--zero",
        "y",
        "--discards",
        "passdown",
        "--addtag",
        OURS,
        "--name",
        &room.pool,
        &room.group,
    ];
    Ok(room.lvm.change("lvcreate", &arguments)?)
}

/// The smallest chunk with which the metadata can address so much.
fn chunk(size: u64) -> u64 {
    let mut chunk = CHUNK;
    while size / chunk > MOST_CHUNKS {
        chunk *= 2;
    }
    chunk
}

/// Takes a thin pool that is there; its id.
pub(super) fn take(
    room: &ThinRoom,
    thin: &Thin,
    spec: &PoolSpec,
    opener: &Opener,
) -> Result<Uuid, ThinError> {
    let (group, pool) = (room.group.clone(), room.pool.clone());
    let Some(found) = report::group(&room.lvm, &group)? else {
        return Err(match opener.known {
            Some(_) => ThinError::Gone { group, pool },
            None => ThinError::NoGroup { group },
        });
    };
    missing(&found)?;
    let all = report::volumes(&room.lvm, &group)?;
    let Some(lv) = all.into_iter().find(|lv| lv.name == pool) else {
        return Err(match opener.known {
            Some(_) => ThinError::Gone { group, pool },
            None => not_thin(group, pool, "not there"),
        });
    };
    if lv.segment != "thin-pool" {
        let what = format!("of type {}", lv.segment);
        return Err(not_thin(group, pool, &what));
    }
    if !lv.zeroes {
        return Err(ThinError::NotZeroing { group, pool });
    }
    let id = whose_is(&lv, room, spec, opener)?;
    let ours = id.is_some() || whose(spec, opener).iter().all(|tag| found.has(tag));
    if !ours && !thin.adopt {
        return Err(ThinError::Foreign { group });
    }
    let full = format!("{group}/{pool}");
    if lv.when_full != "error" {
        // It would hold writes back for a minute and look like a hang.
        room.lvm.change("lvchange", &["--errorwhenfull", "y", &full])?;
    }
    if !lv.active || lv.suspended {
        room.activate(&[&lv])?;
    }
    let id = match id {
        Some(id) => id,
        None => sign(room, spec, opener)?,
    };
    if found.has(MAKING) {
        room.lvm.change("vgchange", &["--deltag", MAKING, &group])?;
    }
    Ok(id)
}

fn not_thin(group: String, pool: String, found: &str) -> ThinError {
    let found = found.to_owned();
    ThinError::NotThin { group, pool, found }
}

/// The id in the tags, if they say it is this very pool; refuses those of another.
fn whose_is(lv: &Lv, room: &ThinRoom, spec: &PoolSpec, opener: &Opener) -> Result<Option<Uuid>, ThinError> {
    let (group, pool) = (room.group.clone(), room.pool.clone());
    let found = lv.tagged("stor.id");
    let id = found.and_then(|text| Uuid::try_parse(text).ok());
    if let Some(expected) = opener.known
        && id != Some(expected)
    {
        let found = found.unwrap_or("none").to_owned();
        return Err(ThinError::Exchanged {
            group,
            pool,
            found,
            expected,
        });
    }
    let told = |key| lv.tagged(key).unwrap_or_default().to_owned();
    let (node, used_as, cluster) = (told("stor.node"), told("stor.pool"), told("stor.cluster"));
    let other_cluster = !cluster.is_empty() && !opener.cluster.is_empty() && cluster != opener.cluster;
    if id.is_some() && (node != opener.node || used_as != spec.name || other_cluster) {
        return Err(ThinError::Used {
            group,
            pool,
            used_as,
            node,
            cluster: other_cluster.then_some(cluster),
        });
    }
    Ok(id)
}

/// Writes whose pool it is into its tags, in one change.
fn sign(room: &ThinRoom, spec: &PoolSpec, opener: &Opener) -> Result<Uuid, ThinError> {
    let id = Uuid::new_v4();
    let mut tags = whose(spec, opener);
    tags.extend([OURS.to_owned(), format!("stor.id={id}")]);
    let full = format!("{}/{}", room.group, room.pool);
    let mut arguments = Vec::new();
    for tag in &tags {
        arguments.extend(["--addtag", tag.as_str()]);
    }
    arguments.push(&full);
    room.lvm.change("lvchange", &arguments)?;
    Ok(id)
}

/// Gives an empty thin pool back. One that Stor made is removed with its volume group, so that its disks are unused
/// again; of another one only our tags go. What was cut short is done by doing it again.
pub(super) fn unmake(room: &ThinRoom, wipe: Wipe<'_>) -> Result<(), ThinError> {
    let Some(group) = report::group(&room.lvm, &room.group)? else {
        return Ok(());
    };
    let all = report::volumes(&room.lvm, &room.group)?;
    let others = |lv: &&Lv| lv.name != room.pool && !is_hidden(&lv.name);
    let full = format!("{}/{}", room.group, room.pool);
    if group.has(MADE) && !all.iter().any(|lv| others(&lv)) {
        return remove_group(room, &group, all.iter().any(|lv| is_pool(lv, room)), wipe);
    }
    let Some(lv) = all.iter().find(|lv| is_pool(lv, room)) else {
        return Ok(());
    };
    let mut arguments = Vec::new();
    for tag in lv
        .tags
        .iter()
        .filter(|tag| *tag == OURS || tag.starts_with("stor."))
    {
        arguments.extend(["--deltag", tag.as_str()]);
    }
    if arguments.is_empty() {
        return Ok(());
    }
    arguments.push(&full);
    Ok(room.lvm.change("lvchange", &arguments)?)
}

/// The same for one that can't be opened any more: its group is ours and was begun with, or its disks have what was
/// left of it.
pub(super) fn unmake_rest(
    room: &ThinRoom,
    spec: &PoolSpec,
    thin: &Thin,
    opener: &Opener,
    Disks { tells_of, wipe }: Disks<'_>,
) -> Result<(), ThinError> {
    if let Some(group) = report::group(&room.lvm, &room.group)? {
        let ours = group.has(MADE) && whose(spec, opener).iter().all(|tag| group.has(tag));
        if !ours || !group.has(MAKING) {
            // Complete, and it could not be opened for now; or another's.
            missing(&group)?;
            return if ours { Err(gone(room)) } else { Ok(()) };
        }
        let all = report::volumes(&room.lvm, &room.group)?;
        if all.iter().any(|lv| lv.name != room.pool && !is_hidden(&lv.name)) {
            return Ok(());
        }
        remove_group(room, &group, all.iter().any(|lv| is_pool(lv, room)), wipe)?;
    }
    let Some(id) = opener.known else { return Ok(()) };
    let in_none: Vec<String> = report::disks(&room.lvm)?
        .into_iter()
        .filter(|(_, group)| group.is_empty())
        .map(|(path, _)| path)
        .collect();
    for device in &thin.devices {
        let path = &device.path;
        if !tells_of(Path::new(path), id) {
            continue;
        }
        if in_none.contains(path) {
            room.lvm.change("pvremove", &[path])?;
        }
        // Refused while anybody uses it.
        wipe(Path::new(path)).map_err(|source| ThinError::Wipe {
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

fn gone(room: &ThinRoom) -> ThinError {
    let (group, pool) = (room.group.clone(), room.pool.clone());
    ThinError::Gone { group, pool }
}

/// What LVM has written at a disk's beginning names the pool. A disk that can't be read, or is not there, says nothing.
pub(super) fn tells_of(disk: &Path, id: Uuid) -> bool {
    let mut begin = Vec::new();
    let read = std::fs::File::open(disk).and_then(|file| file.take(LVM_AREA).read_to_end(&mut begin));
    let name = format!("stor.id={id}");
    read.is_ok() && begin.windows(name.len()).any(|part| part == name.as_bytes())
}

fn remove_group(room: &ThinRoom, group: &Group, has_pool: bool, wipe: Wipe<'_>) -> Result<(), ThinError> {
    let disks: Vec<_> = report::disks(&room.lvm)?
        .into_iter()
        .filter(|(_, of)| *of == group.name)
        .map(|(path, _)| path)
        .collect();
    if !group.has(MAKING) {
        room.lvm.change("vgchange", &["--addtag", MAKING, &group.name])?;
    }
    if has_pool {
        room.lvm
            .change("lvremove", &[&format!("{}/{}", room.group, room.pool)])?;
    }
    room.lvm.change("vgremove", &[&group.name])?;
    let mut arguments: Vec<&str> = Vec::new();
    arguments.extend(disks.iter().map(String::as_str));
    // What is left of it otherwise is the label of a disk in no group, which is taken for an unused one.
    room.lvm.change("pvremove", &arguments)?;
    // The label is gone; what it said of volumes is still there to be read.
    for path in disks {
        wipe(path.as_ref()).map_err(|source| ThinError::Wipe { path, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_grow_with_the_pool() {
        assert_eq!(chunk(1 << 30), CHUNK);
        assert_eq!(chunk(12 << 40), CHUNK);
        assert_eq!(chunk(20 << 40), 2 * CHUNK);
        assert!(chunk(u64::MAX) >= CHUNK);
    }
}
