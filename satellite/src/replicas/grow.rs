//! A replica's files made larger. Every step can be repeated: the superblock tells the size, and it is raised last, by
//! the state machine.

use std::fs::{self, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileTypeExt as _;

use stor_replication::disk::{BITS, PAGE, PageId};
use stor_replication::range::REGION;

use super::{ReplicaSpec, thin};
use crate::failure;
use crate::pool::backing::Room;

/// Makes room for `spec.size` bytes in a replica that has `from`, durably. May take a while: not for the data thread.
//= docs/replication.md#G3
pub(super) fn grow(spec: &ReplicaSpec, from: u64) -> io::Result<()> {
    if let Room::Thin(room) = &spec.room {
        thin::grow(spec, room).map_err(io::Error::other)?;
    }
    grow_data(spec)?;
    failure::point("grown-data");
    // Zeroes where the dirty map goes on: a bit that is set for the first time must not have to find space. Nobody
    // has written there before the superblock has the new size.
    let pages = |size: u64| size.div_ceil(REGION).div_ceil(BITS);
    let (first, end) = (pages(from), pages(spec.size));
    if first == end {
        return Ok(());
    }
    let mut meta = OpenOptions::new().write(true).open(&spec.meta)?;
    meta.seek(SeekFrom::Start(PageId::Dirty(first).offset(false)))?;
    for _ in 0..2 * (end - first) {
        meta.write_all(&[0; PAGE])?;
    }
    meta.sync_all()?;
    failure::point("grown-meta");
    Ok(())
}

fn grow_data(spec: &ReplicaSpec) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(&spec.data)?;
    let kind = fs::metadata(&spec.data)?.file_type();
    if kind.is_block_device() {
        // LVM has made it larger; here it is seen whether the kernel knows.
        let has = (&file).seek(SeekFrom::End(0))?;
        if has < spec.size {
            let what = format!("{} has {has} bytes yet", spec.data.display());
            return Err(io::Error::other(what));
        }
        return Ok(());
    }
    if file.metadata()?.len() < spec.size {
        file.set_len(spec.size)?;
        file.sync_all()?;
    }
    Ok(())
}
