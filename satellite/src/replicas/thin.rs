//! Making a replica in a thin pool.
//!
//! Both thin volumes are made, the metadata is written and flushed, and then one tag says that the replica is
//! there ([`crate::pool::lvm::room`]). What an attempt that was cut short has left is removed by the next.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::io::pwrite;
use stor_device::{Buf, blockdev};
use stor_replication::disk::PAGE;
use stor_replication::ids::{ReplicaId, SnapshotId, VolumeId};
use stor_replication::replica::SnapshotError;

use super::ReplicaSpec;
use super::open::{OpenError, at, first_pages};
use crate::failure;
use crate::pool::lvm::room::{Part, ThinRoom};
use crate::pool::lvm::{METADATA_FULL_PERCENT, ThinError};

/// Makes the volumes, if asked and needed. Takes LVM's time.
pub(super) fn make_if_asked(spec: &ReplicaSpec, room: &ThinRoom) -> Result<(), OpenError> {
    let found = room.find(spec.volume, spec.replica)?;
    if found.is_ready() {
        return Ok(());
    }
    let Some(in_sync) = spec.create else {
        return Err(OpenError::Missing);
    };
    room.remove(&found)?;
    let (pages, whole) = first_pages(spec, in_sync);
    let name = |part| ThinRoom::name(spec.volume, spec.replica, part);
    match &spec.source {
        None => room.carve(&name(Part::Data), spec.size)?,
        Some(copy) => restore(room, copy, &name(Part::Data), spec.size)?,
    }
    room.carve(&name(Part::Meta), whole)?;
    let made = room.find(spec.volume, spec.replica)?;
    let parts: Vec<_> = made.parts().collect();
    room.make_nodes(&parts);
    for part in parts {
        room.check_node(part)?;
    }
    write(&spec.meta, &pages).map_err(at("write", &spec.meta))?;
    failure::point("replica-meta");
    Ok(room.finish(spec.volume, spec.replica)?)
}

/// Whether the replica is there.
pub(super) fn exists(spec: &ReplicaSpec, room: &ThinRoom) -> Result<bool, ThinError> {
    Ok(room.find(spec.volume, spec.replica)?.is_ready())
}

/// Makes a replica's first data of a copy for a snapshot: a snapshot of that, as large as the volume is.
fn restore(room: &ThinRoom, copy: &Path, name: &str, size: u64) -> Result<(), ThinError> {
    let from = copy
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    room.share(from, name)?;
    match room.named(name)? {
        Some(made) => room.extend(&made, size),
        // It was just made; whoever took it away is found out about when the replica is looked at.
        None => Ok(()),
    }
}

/// Makes a replica's data as large as its volume is to be.
pub(super) fn grow(spec: &ReplicaSpec, room: &ThinRoom) -> Result<(), ThinError> {
    let name = ThinRoom::name(spec.volume, spec.replica, Part::Data);
    match room.named(&name)? {
        Some(lv) => room.extend(&lv, spec.size),
        // Its absence is found out about by whoever writes to it.
        None => Ok(()),
    }
}

/// Of the pool's space, this part must be left for a snapshot to be begun: see [`super::snapshot`].
const RESERVE: u64 = 20;

/// Whether a copy for a snapshot could be made.
pub(super) fn may_copy(room: &ThinRoom) -> Result<(), SnapshotError> {
    let fill = room.fill().map_err(|error| told(room, &error))?;
    let (used, all) = fill.data;
    let (meta_used, meta_all) = fill.metadata;
    let full = all.saturating_sub(used) < all / RESERVE
        || meta_used.saturating_mul(100) >= meta_all.saturating_mul(METADATA_FULL_PERCENT);
    if full {
        return Err(SnapshotError::NoSpace);
    }
    Ok(())
}

/// Makes the copy, in place of one that an earlier attempt made. LVM has the kernel flush what is under way and
/// makes it durable.
//= docs/replication.md#S2
pub(super) fn copy(
    room: &ThinRoom,
    volume: VolumeId,
    snapshot: SnapshotId,
    replica: ReplicaId,
) -> Result<(), SnapshotError> {
    let name = ThinRoom::copy_name(volume, snapshot, replica);
    let made = room.named(&name).and_then(|earlier| {
        if earlier.is_some() {
            room.discard(&name)?;
        }
        room.share(&ThinRoom::name(volume, replica, Part::Data), &name)
    });
    made.map_err(|error| told(room, &error))
}

fn told(room: &ThinRoom, error: &ThinError) -> SnapshotError {
    tracing::warn!(pool = %room.path().display(), %error, "no copy for a snapshot");
    SnapshotError::Failed
}

fn write(path: &Path, pages: &[u8]) -> std::io::Result<()> {
    let device = blockdev::open_exclusive(path)?;
    let mut buf = Buf::new(pages.len().next_multiple_of(PAGE));
    buf.iter_mut().zip(pages).for_each(|(to, from)| *to = *from);
    let mut done = 0;
    while let Some(rest) = buf.get(done..).filter(|rest| !rest.is_empty()) {
        match pwrite(device.as_fd(), rest, done as u64)? {
            0 => return Err(std::io::ErrorKind::WriteZero.into()),
            count => done += count,
        }
    }
    device.sync_all()
}
