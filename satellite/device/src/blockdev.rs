//! Block devices: taking one for oneself, and giving space of a thin volume back.
//!
//! A thin volume has no holes to punch (`fallocate` answers `EOPNOTSUPP`). What it has is the discard of whole
//! chunks, which read as zeroes afterwards; the kernel passes over a chunk that is discarded in part, so that
//! such parts are overwritten with zeroes here. That makes a discard read the same on every replica.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::libc;
use rustix::fs::fstat;

use crate::buffer::Buf;

mod call {
    //! `include/uapi/linux/fs.h`
    nix::ioctl_write_ptr_bad!(discard, nix::request_code_none!(0x12, 119), [u64; 2]);
    nix::ioctl_none_bad!(reread_partitions, nix::request_code_none!(0x12, 95));
    nix::ioctl_write_ptr_bad!(zero_out, nix::request_code_none!(0x12, 127), [u64; 2]);
}

/// Zeroes written at a time where a device is wiped.
const WIPED_AT_ONCE: usize = 1 << 20;

/// Whether something at the path is a block device. What can't be looked at is none.
pub fn is_block(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
}

/// The chunks in which a device takes discards, in bytes; zero when it takes none, or is no block device.
pub fn discard_chunk(fd: impl AsFd) -> io::Result<u64> {
    let stat = fstat(fd)?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_block_device() {
        return Ok(0);
    }
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let read = |name: &str| -> io::Result<u64> {
        let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/queue/{name}"))?;
        text.trim()
            .parse()
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    };
    if read("discard_max_bytes")? == 0 {
        return Ok(0);
    }
    read("discard_granularity")
}

/// A device that nobody mounts or claims as long as this is held.
#[derive(Debug)]
pub struct Claim(File);

/// Claims a device; `None`: it is mounted, or part of another device. Everything written to it is on its server
/// then. Waits for that, as long as it takes.
pub fn claim(path: &Path) -> io::Result<Option<Claim>> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(path);
    let file = match opened {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(None),
        other => other?,
    };
    file.sync_all()?;
    Ok(Some(Claim(file)))
}

impl Claim {
    /// Gives it back.
    pub fn release(self) {
        drop(self.0);
    }
}

/// Opens a block device for direct I/O and for nobody else: not while it is mounted, part of something else, or
/// open in this way.
pub fn open_exclusive(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT | libc::O_EXCL)
        .open(path)
}

/// Overwrites a range with zeroes; of a thin volume it takes space.
pub fn zero(fd: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: the argument is an array of two numbers, as the call wants it; the descriptor is open.
    unsafe { call::zero_out(fd.as_fd().as_raw_fd(), &raw const range) }?;
    Ok(())
}

/// Gives a range back, where a device takes discards in chunks of `chunk` bytes; the rest of it is overwritten with
/// zeroes. See [`Reactor::discard`](crate::Reactor::discard).
pub fn free(fd: BorrowedFd<'_>, offset: u64, len: u64, chunk: u64) -> io::Result<()> {
    let end = offset
        .checked_add(len)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let whole = whole_chunks(offset, end, chunk);
    let Some((from, to)) = whole else {
        return zero(fd, offset, len);
    };
    let range = [from, to - from];
    // SAFETY: the argument is an array of two numbers, as the call wants it; the descriptor is open.
    match unsafe { call::discard(fd.as_raw_fd(), &raw const range) } {
        Ok(_) => {}
        Err(nix::errno::Errno::EOPNOTSUPP) => return zero(fd, offset, len),
        Err(errno) => return Err(errno.into()),
    }
    for (start, end) in [(offset, from), (to, end)] {
        if start < end {
            zero(fd, start, end - start)?;
        }
    }
    Ok(())
}

/// The whole chunks within a range, from and to.
fn whole_chunks(offset: u64, end: u64, chunk: u64) -> Option<(u64, u64)> {
    if chunk == 0 {
        return None;
    }
    let from = offset.checked_next_multiple_of(chunk)?;
    let to = end - end % chunk;
    (from < to).then_some((from, to))
}

/// Whether somebody has the device for itself: a mount, a mapped device, whoever opened it so.
pub fn is_claimed(path: &Path) -> io::Result<bool> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(path);
    match opened {
        Ok(_) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Overwrites the beginning and the end of a disk with zeroes, `bytes` each, where everything has what it is
/// recognised by, and has the kernel forget its partitions. Fails while anybody uses it or one of them.
pub fn wipe(path: &Path, bytes: u64) -> io::Result<()> {
    let device = open_exclusive(path)?;
    let size = rustix::fs::seek(&device, rustix::fs::SeekFrom::End(0))?;
    let zeroes = Buf::new(WIPED_AT_ONCE);
    let unit = zeroes.len() as u64;
    let last = size.saturating_sub(bytes) / unit * unit;
    for (mut at, end) in [(0, bytes.min(size)), (last, size)] {
        while at < end {
            let len = usize::try_from((end - at).min(unit)).unwrap_or(WIPED_AT_ONCE);
            let piece = zeroes.get(..len).unwrap_or_default();
            let written = rustix::io::pwrite(&device, piece, at)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            at += written as u64;
        }
    }
    device.sync_all()?;
    // SAFETY: the call takes no pointer; the descriptor is open.
    match unsafe { call::reread_partitions(device.as_raw_fd()) } {
        // A device that has no partitions says so.
        Ok(_) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOTTY) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_chunks_are_given_back() {
        let chunk = 65_536;
        assert_eq!(whole_chunks(0, chunk, chunk), Some((0, chunk)));
        assert_eq!(
            whole_chunks(4096, 3 * chunk + 4096, chunk),
            Some((chunk, 3 * chunk))
        );
        assert_eq!(whole_chunks(4096, chunk + 4096, chunk), None);
        assert_eq!(whole_chunks(0, chunk - 4096, chunk), None);
        assert_eq!(whole_chunks(0, 10 * chunk, 0), None);
        assert_eq!(whole_chunks(u64::MAX - 10, u64::MAX, chunk), None);
    }

    #[test]
    fn a_file_takes_no_discards() {
        assert_eq!(discard_chunk(tempfile::tempfile().unwrap()).unwrap(), 0);
    }
}
