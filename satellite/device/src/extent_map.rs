//! What of a file's space is its own and what it shares with others, as its file system says (FIEMAP).
//!
//! Blocks on the disk: not for a data path.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Bytes of a file's space.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Space {
    /// All it refers to.
    pub allocated: u64,
    /// Of these, what no other file refers to: given back when the file goes.
    pub own: u64,
}

const BATCH: u32 = 256;
/// Larger maps are cut: half a million extents are read in a second or two, and then the numbers are a lower bound.
const MOST: usize = 500_000;
const SYNC: u32 = 1;
const LAST: u32 = 1;
const SHARED: u32 = 0x2000;
/// Written and not on the disk yet.
const DELAYED: u32 = 4;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    rest: [u32; 3],
}

#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; BATCH as usize],
}

const _: () = assert!(size_of::<Extent>() == 56 && size_of::<Map>() == 32 + 56 * BATCH as usize);

mod call {
    // The kernel's number is of the head alone.
    nix::ioctl_readwrite_bad!(fiemap, nix::request_code_readwrite!(b'f', 11, 32), super::Map);
}

/// Looks through a file's extents.
pub fn space(fd: impl AsFd) -> io::Result<Space> {
    let mut space = Space::default();
    let (mut start, mut seen) = (0, 0);
    let mut map = Box::new(Map {
        start,
        length: u64::MAX,
        flags: SYNC,
        mapped: 0,
        count: BATCH,
        reserved: 0,
        extents: [Extent::default(); BATCH as usize],
    });
    while seen < MOST {
        (map.start, map.length, map.mapped) = (start, u64::MAX - start, 0);
        // SAFETY: the descriptor is open for as long as `fd` lives, and the kernel writes at most `count` extents
        // behind the head, for which there is room.
        unsafe { call::fiemap(fd.as_fd().as_raw_fd(), &raw mut *map) }?;
        let found = map.extents.iter().take(map.mapped as usize);
        let mut last = map.mapped == 0;
        for extent in found {
            seen += 1;
            last |= extent.flags & LAST != 0;
            let next = extent.logical.saturating_add(extent.length);
            // One that does not move on would be read for ever.
            last |= next <= start;
            start = next;
            if extent.flags & DELAYED == 0 {
                space.allocated += extent.length;
                space.own += if extent.flags & SHARED == 0 {
                    extent.length
                } else {
                    0
                };
            }
        }
        if last {
            break;
        }
    }
    Ok(space)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_file_of_its_own_shares_nothing() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; 1 << 20]).unwrap();
        match space(&file) {
            Ok(space) => {
                assert!(space.allocated >= 1 << 20, "{space:?}");
                assert_eq!(space.allocated, space.own);
            }
            // tmpfs, for one, does not know.
            Err(error) => assert_eq!(error.raw_os_error(), Some(95), "{error}"),
        }
    }
}
