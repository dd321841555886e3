//! A replica's copies for snapshots: files beside its data that share their blocks with it (reflink: XFS, btrfs).
//!
//! ```text
//! POOL_DIR/<volume>/s<snapshot>.r<replica>.data              whole and durable
//! POOL_DIR/<volume>/s<snapshot>.r<replica>.data.unfinished   an attempt that was cut short; the next one and the
//!                                                            removal of the snapshot take it away
//! ```
//!
//! A copy that does not share blocks would hold writers for as long as it takes to copy a volume: there is none.
//! None of this is for the data thread.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use stor_device::{blockdev, file};
use stor_replication::ids::{ReplicaId, SnapshotId};
use stor_replication::replica::SnapshotError;

use crate::failure;

/// Below this part of a pool's space no snapshot is begun: its volume goes on writing, and each write to a shared
/// block takes a new one.
const RESERVE: u64 = 20;

/// The copy of a replica whose data is `data`.
pub(crate) fn path_of(data: &Path, snapshot: SnapshotId, replica: ReplicaId) -> PathBuf {
    data.with_file_name(format!("s{snapshot}.r{replica}.data"))
}

/// What an attempt that was cut short has left.
pub(crate) fn unfinished(copy: &Path) -> PathBuf {
    copy.with_added_extension("unfinished")
}

/// Whether a copy could be made; nothing is left of the trial.
pub(super) fn may(data: &Path, copy: &Path) -> Result<(), SnapshotError> {
    if blockdev::is_block(data) {
        return Err(SnapshotError::Unsupported);
    }
    let directory = data.parent().unwrap_or(Path::new("/"));
    let space = file::space(directory).map_err(|error| told("look at the space of", directory, &error))?;
    if space.available < space.total / RESERVE {
        return Err(SnapshotError::NoSpace);
    }
    // Of nothing: whether blocks can be shared is asked of the file system, not how long it takes.
    let trial = unfinished(copy);
    let shared = clone_into(&trial, |to| {
        let from = tempfile_like(directory)?;
        rustix::fs::ioctl_ficlone(to, &from).map_err(io::Error::from)
    });
    let removed = remove(&trial);
    shared?;
    removed.map_err(|error| told("remove", &trial, &error))
}

/// A file without a name, to share nothing of.
fn tempfile_like(directory: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::TMPFILE.bits().cast_signed())
        .mode(0o600)
        .open(directory)
}

/// Makes the copy, in place of one that an earlier attempt made. It is whole and durable, or not there.
//= docs/replication.md#S2
pub(super) fn take(data: &Path, copy: &Path) -> Result<(), SnapshotError> {
    if blockdev::is_block(data) {
        return Err(SnapshotError::Unsupported);
    }
    let from = File::open(data).map_err(|error| told("open", data, &error))?;
    let new = unfinished(copy);
    let to = clone_into(&new, |to| {
        rustix::fs::ioctl_ficlone(to, &from).map_err(io::Error::from)
    })?;
    failure::point("copy-shared");
    to.sync_all().map_err(|error| told("flush", &new, &error))?;
    failure::point("copy-flushed");
    fs::rename(&new, copy).map_err(|error| told("name", copy, &error))?;
    failure::point("copy-named");
    let directory = copy.parent().unwrap_or(Path::new("/"));
    file::fsync_dir(directory).map_err(|error| told("flush", directory, &error))?;
    failure::point("copy-made");
    Ok(())
}

/// Makes a replica's first data of a copy: durable when done, but for its name. Blocks are shared from then on, and
/// neither needs the other.
pub(super) fn restore(copy: &Path, data: &Path, size: u64) -> io::Result<()> {
    let from = File::open(copy)?;
    let to = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(data)?;
    rustix::fs::ioctl_ficlone(&to, &from)?;
    failure::point("restore-shared");
    // One made while its replica had grown already, and the volume had not, is longer: there is nothing behind that.
    to.set_len(size)?;
    to.sync_all()?;
    failure::point("restore-flushed");
    Ok(())
}

fn clone_into(path: &Path, share: impl FnOnce(&File) -> io::Result<()>) -> Result<File, SnapshotError> {
    remove(path).map_err(|error| told("remove", path, &error))?;
    let to = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| told("make", path, &error))?;
    share(&to).map_err(|error| told("share blocks with", path, &error))?;
    Ok(to)
}

pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// In the state machine's terms; said here, once.
fn told(what: &'static str, path: &Path, error: &io::Error) -> SnapshotError {
    let unsupported = [
        Errno::OPNOTSUPP,
        Errno::NOSYS,
        Errno::NOTTY,
        Errno::INVAL,
        Errno::XDEV,
    ];
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SnapshotError::NoSpace,
        _ if unsupported
            .iter()
            .any(|no| error.raw_os_error() == Some(no.raw_os_error())) =>
        {
            SnapshotError::Unsupported
        }
        _ => SnapshotError::Failed,
    };
    tracing::warn!(path = %path.display(), %error, what, "no copy for a snapshot");
    kind
}
