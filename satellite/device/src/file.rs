//! Data files and what their file system can do.
//!
//! Everything here blocks and belongs to the control path; the data path hands the opened descriptor to the
//! [reactor](crate::reactor).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc;
use rustix::fs::{
    AtFlags, FallocateFlags, SeekFrom, StatxFlags, fallocate, fstat, ioctl_ficlone, seek, statx,
};
use rustix::io::Errno;
use thiserror::Error;

use crate::blockdev;
use crate::buffer::{ALIGN, Buf};

/// How a data file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenData {
    /// It is there; read and write.
    Existing,
    /// It is there; read only.
    ReadOnly,
    /// It is not there yet: make it, sparse, of this many bytes. Durable only after [`fsync_dir`].
    Create {
        /// Bytes.
        size: u64,
    },
}

/// Why a data file could not be opened.
#[derive(Debug, Error)]
pub enum OpenDataError {
    /// The file system cannot do direct I/O.
    #[error(
        "the file system of {path} lacks direct I/O (O_DIRECT), which keeps data out of the page cache; \
         put the pool on XFS, ext4, btrfs or a block device"
    )]
    NoDirectIo {
        /// The file.
        path: PathBuf,
    },
    /// `open` failed.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The new file cannot have this size.
    #[error("cannot make {path} {size} bytes long: {source}; is it larger than the file system allows?")]
    SetSize {
        /// The file.
        path: PathBuf,
        /// Bytes asked for.
        size: u64,
        /// What the system said.
        source: io::Error,
    },
    /// Its block size cannot be found out.
    #[error("cannot find out the block size of {path}: {source}")]
    Inspect {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// An open data file or block device.
#[derive(Debug)]
pub struct DataFile {
    /// Opened with O_DIRECT; for [`Reactor::register`](crate::Reactor::register).
    pub fd: OwnedFd,
    /// Offsets and lengths of direct I/O are multiples of this.
    pub block_size: u32,
    /// Bytes.
    pub size: u64,
    /// Of a block device: the chunks in which it takes discards, in bytes; zero when it takes none.
    pub discards: Option<u64>,
}

/// Opens a file or block device for direct I/O; a block device for nobody else. A file that cannot be made completely is removed again.
pub fn open_data(path: &Path, how: OpenData) -> Result<DataFile, OpenDataError> {
    let block = blockdev::is_block(path);
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(how != OpenData::ReadOnly)
        .custom_flags(libc::O_DIRECT | if block { libc::O_EXCL } else { 0 });
    if matches!(how, OpenData::Create { .. }) {
        options.create_new(true).mode(0o600);
    }
    let opened = options.open(path).map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) => OpenDataError::NoDirectIo { path: path.into() },
        _ => OpenDataError::Open {
            path: path.into(),
            source,
        },
    });
    // With EINVAL the kernel has made the file before it looked at the flag.
    let made = matches!(how, OpenData::Create { .. }) && !matches!(opened, Err(OpenDataError::Open { .. }));
    let result = opened.and_then(|file| prepare(file, path, how));
    if result.is_err()
        && made
        && let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a data file that could not be completed");
    }
    result
}

fn prepare(file: File, path: &Path, how: OpenData) -> Result<DataFile, OpenDataError> {
    if let OpenData::Create { size } = how {
        file.set_len(size).map_err(|source| OpenDataError::SetSize {
            path: path.into(),
            size,
            source,
        })?;
    }
    let inspect = |source: io::Error| OpenDataError::Inspect {
        path: path.into(),
        source,
    };
    let size = seek(&file, SeekFrom::End(0)).map_err(|e| inspect(e.into()))?;
    let block_size = block_size(&file, size).map_err(inspect)?;
    let block_size = block_size.ok_or_else(|| OpenDataError::NoDirectIo { path: path.into() })?;
    let is_block = file.metadata().map_err(inspect)?.file_type().is_block_device();
    let discards = is_block
        .then(|| blockdev::discard_chunk(&file))
        .transpose()
        .map_err(inspect)?;
    Ok(DataFile {
        fd: file.into(),
        block_size,
        size,
        discards,
    })
}

/// The unit of direct I/O on an open file; `None` if it cannot do any.
fn block_size(file: &File, size: u64) -> io::Result<Option<u32>> {
    let stat = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    if stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 {
        return Ok(Some(stat.stx_dio_offset_align).filter(|align| *align > 0));
    }
    // Before Linux 6.1: try the smallest there is. Where there is nothing to read 4096 is always right.
    if size < 1024 {
        return Ok(Some(4096));
    }
    let mut sector = Buf::new(512);
    match rustix::io::pread(file, &mut sector[..], 512) {
        Ok(_) => Ok(Some(512)),
        Err(Errno::INVAL) => Ok(Some(4096)),
        Err(error) => Err(error.into()),
    }
}

/// Bytes the file system has allocated for an open file: the truth about thin usage.
pub fn allocated_bytes(file: impl AsFd) -> io::Result<u64> {
    // st_blocks counts 512 byte units whatever the file system's blocks are.
    Ok(u64::try_from(fstat(file)?.st_blocks).unwrap_or(0) * 512)
}

/// As [`allocated_bytes`], for a file that is not open.
pub fn allocated_bytes_of(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.blocks() * 512)
}

/// Makes the entries of a directory durable: files created, renamed or removed in it.
pub fn fsync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Space of a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// Not used by any file.
    pub free: u64,
    /// What a process without special rights may still take.
    pub available: u64,
}

/// The space of the file system this path is on.
pub fn space(path: &Path) -> io::Result<Space> {
    let stat = rustix::fs::statvfs(path)?;
    let unit = stat.f_frsize;
    Ok(Space {
        total: stat.f_blocks.saturating_mul(unit),
        free: stat.f_bfree.saturating_mul(unit),
        available: stat.f_bavail.saturating_mul(unit),
    })
}

/// Whether files in this directory can share their blocks (reflink), found out by doing it.
pub fn supports_reflink(dir: &Path) -> io::Result<bool> {
    let (from, to) = (nameless_file(dir)?, nameless_file(dir)?);
    answer(ioctl_ficlone(&to, &from))
}

/// Whether files in this directory can give space back (hole punching), found out by doing it.
pub fn supports_punch_hole(dir: &Path) -> io::Result<bool> {
    let file = nameless_file(dir)?;
    answer(fallocate(
        &file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        0,
        ALIGN as u64,
    ))
}

fn answer(tried: Result<(), Errno>) -> io::Result<bool> {
    match tried {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY | Errno::INVAL | Errno::XDEV) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A file with two pages of data whose name is gone already.
fn nameless_file(dir: &Path) -> io::Result<File> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        ".stor-probe-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    let path = dir.join(name);
    let mut file = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)?;
    fs::remove_file(&path)?;
    file.write_all(&[0x5a; 2 * ALIGN])?;
    Ok(file)
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
