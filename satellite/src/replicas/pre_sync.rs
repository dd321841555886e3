//! What a replica held before it was brought up to date: a clone of its data file (R13).
//!
//! A replica that catches up is inconsistent at every moment until it is done. Should all others be lost
//! meanwhile, its last consistent state, old as it is, is better than nothing. The clone shares its blocks with
//! the data (reflink: XFS, btrfs) and costs what the resync overwrites.
//!
//! There is one at most: of the moment the replica was last in sync. It goes when the replica is in sync again,
//! or when the pool has no room. None of this is for the data thread.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use stor_device::file;

/// End of the clone's name, after that of the data file.
pub(crate) const END: &str = "pre-sync";
const UNFINISHED: &str = "pre-sync.unfinished";
/// Of the pool's space, this part must be left free should the resync overwrite everything: below it, a pool is
/// nearly full by anybody's measure.
const RESERVE: u64 = 10;

/// How it went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    /// It is there.
    Yes,
    /// The file system can't share blocks.
    NoReflink,
    /// The pool has not enough room.
    NoRoom,
}

/// Where it is.
pub(crate) fn path_of(data: &Path) -> PathBuf {
    data.with_added_extension(END)
}

/// Every file there may be of it.
pub(crate) fn paths_of(data: &Path) -> [PathBuf; 2] {
    [path_of(data), data.with_added_extension(UNFINISHED)]
}

/// Takes it, in place of an older one. It is durable and whole, or not there. Nothing may write to the data
/// meanwhile that is not to be in it.
pub(super) fn take(data: &Path) -> io::Result<Taken> {
    if stor_device::blockdev::is_block(data) {
        return Ok(Taken::NoReflink);
    }
    drop_all(data)?;
    let from = File::open(data)?;
    let directory = data.parent().unwrap_or(Path::new("/"));
    let space = file::space(directory)?;
    let most = from.metadata()?.blocks().saturating_mul(512);
    if space.available.saturating_sub(most) < space.total / RESERVE {
        return Ok(Taken::NoRoom);
    }
    let unfinished = data.with_added_extension(UNFINISHED);
    let to = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&unfinished)?;
    match rustix::fs::ioctl_ficlone(&to, &from) {
        Ok(()) => {}
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY | Errno::INVAL | Errno::XDEV) => {
            fs::remove_file(&unfinished)?;
            return Ok(Taken::NoReflink);
        }
        Err(error) => {
            // What is left of it is removed before the next one, and with the replica.
            return Err(error.into());
        }
    }
    to.sync_all()?;
    fs::rename(&unfinished, path_of(data))?;
    file::fsync_dir(directory)?;
    Ok(Taken::Yes)
}

/// Removes it, and what an attempt may have left.
pub(super) fn drop_all(data: &Path) -> io::Result<()> {
    for path in paths_of(data) {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether any of it is there.
pub(super) fn exists(data: &Path) -> bool {
    paths_of(data).iter().any(|path| path.exists())
}

/// What a served replica knows of it. See [`Keeper::next`].
#[derive(Debug, Default)]
pub(super) struct Keeper {
    /// There may be one.
    there: bool,
    /// It was taken, or could not be, of the present state: whoever waits for it may go on.
    settled: bool,
    /// It has to make room.
    unwanted: bool,
    /// Something is being done about it.
    busy: bool,
}

/// What is to be done about it now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// Take it.
    Take,
    /// Remove it.
    Drop,
    /// Engines that wait to open the replica go on.
    GoOn,
    /// Nothing.
    Wait,
}

impl Keeper {
    pub(super) fn new(there: bool) -> Self {
        Self {
            there,
            ..Self::default()
        }
    }

    /// What to do, and that it is being done. `in_sync`: the replica is, as its superblock says; `opening`: an
    /// engine waits to open it as one that is not. The first of these opens ends what the replica held.
    //= docs/replication.md#R13
    pub(super) fn next(&mut self, in_sync: bool, opening: bool) -> Next {
        if self.busy {
            return Next::Wait;
        }
        if opening && in_sync && !self.settled {
            self.busy = true;
            return Next::Take;
        }
        if opening {
            return Next::GoOn;
        }
        if !in_sync {
            self.settled = false;
        }
        if self.there && (in_sync || self.unwanted) {
            self.busy = true;
            return Next::Drop;
        }
        Next::Wait
    }

    /// It was taken, or not.
    pub(super) fn taken(&mut self, there: bool) {
        *self = Self {
            there,
            settled: true,
            ..Self::default()
        };
    }

    /// It was removed, or could not be: tried again at the next opening of the replica.
    pub(super) fn dropped(&mut self) {
        *self = Self::default();
    }

    /// The pool is full.
    pub(super) fn make_room(&mut self) {
        self.unwanted = self.there;
    }
}

#[cfg(test)]
#[path = "pre_sync_tests.rs"]
mod tests;
