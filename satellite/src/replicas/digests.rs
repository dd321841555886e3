//! What a range of a replica's data holds, in short. Not for the data thread: it reads, and computes.
//!
//! Holes are not read. A part that can't be read is told as that; only that nothing at all can be said of the range,
//! for want of memory mostly, is no answer.

use std::os::fd::AsFd;

use rustix::io::{Errno, pread};
use stor_device::Buf;
use stor_replication::digest::{self, Digests, Unit};
use stor_replication::range::ByteRange;

use super::extents;

/// The digests of a range from its beginning on, ended early when much was read.
pub(super) fn find(file: impl AsFd, range: ByteRange) -> Option<Digests> {
    let unit = digest::unit(range);
    let holes = holes(&file, range);
    let mut digests = Digests::default();
    // As the data are read for clients: past the page cache, which would tell what was written and not what is there.
    let mut buf = Buf::new(usize::try_from(unit).ok()?);
    let mut at = range.offset;
    while at < range.end() && u64::from(digests.read) < digest::MAX_READ {
        let part = ByteRange::new(at, unit.min(range.end() - at));
        at = part.end();
        let hole = holes
            .iter()
            .any(|hole| hole.offset <= part.offset && part.end() <= hole.end());
        if hole {
            digests.units.push(Unit::Zeroes);
            continue;
        }
        let bytes = buf.get_mut(..usize::try_from(part.len).ok()?)?;
        let told = match read(&file, bytes, part.offset) {
            Ok(()) => Unit::of(bytes),
            Err(Errno::NOMEM | Errno::AGAIN) => return None,
            Err(error) => {
                tracing::warn!(%error, offset = part.offset, length = part.len, "a part of a replica can't be read");
                Unit::Unreadable
            }
        };
        digests.read = digests
            .read
            .saturating_add(u32::try_from(part.len).unwrap_or(u32::MAX));
        digests.units.push(told);
    }
    Some(digests)
}

/// Parts that are known to be holes.
fn holes(file: impl AsFd, range: ByteRange) -> Vec<ByteRange> {
    let mut at = range.offset;
    let mut holes = Vec::new();
    for extent in extents::find(file, range) {
        let part = ByteRange::new(at, u64::from(extent.length));
        at = part.end();
        if extent.hole {
            holes.push(part);
        }
    }
    holes
}

fn read(file: impl AsFd, mut bytes: &mut [u8], mut offset: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match pread(&file, &mut *bytes, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => {
                bytes = bytes.get_mut(count..).unwrap_or_default();
                offset += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use stor_replication::range::BLOCK;

    use super::*;

    fn file() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(16 << 20).unwrap();
        file
    }

    #[test]
    fn holes_are_zeroes_and_cost_nothing() {
        let file = file();
        file.write_all_at(&[7; 4096], 1 << 20).unwrap();
        file.write_all_at(&[0; 4096], 2 << 20).unwrap();
        let all = find(&file, ByteRange::new(0, 16 << 20)).unwrap();
        assert_eq!(all.units.len(), 256);
        let mut block = vec![0; 64 << 10];
        block[..4096].fill(7);
        for (index, unit) in all.units.iter().enumerate() {
            let expected = if index == 16 {
                Unit::of(&block)
            } else {
                Unit::Zeroes
            };
            assert_eq!(*unit, expected, "block {index}");
        }
        assert!(u64::from(all.read) <= 2 * BLOCK, "holes were read: {}", all.read);
        let sectors = find(&file, ByteRange::new(1 << 20, BLOCK)).unwrap();
        assert_eq!(sectors.units.len(), 16);
        assert_eq!(
            (sectors.units[0], sectors.units[1]),
            (Unit::of(&[7; 4096]), Unit::Zeroes)
        );
    }

    #[test]
    fn much_data_is_told_in_parts() {
        let file = file();
        file.write_all_at(&vec![7; 4 << 20], 0).unwrap();
        let some = find(&file, ByteRange::new(0, 16 << 20)).unwrap();
        assert_eq!((some.units.len(), u64::from(some.read)), (4, digest::MAX_READ));
    }

    #[test]
    fn what_is_beyond_the_end_of_the_file_can_not_be_read() {
        let file = file();
        let some = find(&file, ByteRange::new((16 << 20) - 4096, 8192)).unwrap();
        assert_eq!(some.units, [Unit::Zeroes, Unit::Unreadable]);
    }
}
