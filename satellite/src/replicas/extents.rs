//! Where a replica's data file has holes, as its file system says. Not for the data thread: a file system may
//! have to read for it, and waits for a disk that hangs.
//!
//! A hole reads as zeroes; space that is reserved and was never written counts as one. Whatever is not known
//! (a file system without holes, an error, a file that is too short) is data.

use std::os::fd::AsFd;

use rustix::fs::{SeekFrom, fstat, seek};
use rustix::io::Errno;
use stor_replication::extents::{Extent, MAX_EXTENTS};
use stor_replication::range::{ByteRange, SECTOR};

/// The extents of a range from its beginning on: at most [`MAX_EXTENTS`], ended early where the file system
/// gives no answer. Lengths are whole sectors: a part of one that holds data makes it data.
pub(super) fn find(file: impl AsFd, range: ByteRange) -> Vec<Extent> {
    let end = range.end();
    // Beyond the end of a file everything would look like a hole.
    // A file that can't be asked has no holes.
    let size = fstat(&file)
        .ok()
        .and_then(|stat| u64::try_from(stat.st_size).ok());
    let mut extents = Vec::new();
    if size.is_none_or(|size| size < end) {
        return extents;
    }
    let mut at = range.offset;
    while at < end && extents.len() < MAX_EXTENTS {
        let data = match seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data.clamp(at, end),
            Err(Errno::NXIO) => end,
            Err(error) => {
                tracing::debug!(%error, "the file system does not tell what is a hole");
                break;
            }
        };
        let hole = if data == end { end } else { data - data % SECTOR };
        let next = if hole > at {
            hole
        } else {
            // From the data found: before it, in the same sector, may be the end of a hole.
            // Without an answer it is data to the end.
            let hole = seek(&file, SeekFrom::Hole(data)).unwrap_or(end);
            hole.max(data + 1).next_multiple_of(SECTOR).min(end)
        };
        extents.push(Extent {
            // At most the range's length, which fits.
            length: u32::try_from(next - at).unwrap_or(u32::MAX),
            hole: hole > at,
        });
        at = next;
    }
    extents
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn file() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(16 << 20).unwrap();
        file
    }

    fn found(file: &File, offset: u64, len: u64) -> Vec<(u32, bool)> {
        let extents = find(file, ByteRange::new(offset, len));
        extents
            .iter()
            .map(|extent| (extent.length, extent.hole))
            .collect()
    }

    #[test]
    fn holes_are_found_and_data_is() {
        let file = file();
        file.write_all_at(&[1; 8192], 4096).unwrap();
        file.write_all_at(&[1; 4096], 1 << 20).unwrap();
        file.sync_all().unwrap();
        let expected = [
            (4096, true),
            (8192, false),
            ((1 << 20) - 12288, true),
            (4096, false),
            ((1 << 20) - 4096, true),
        ];
        assert_eq!(found(&file, 0, 2 << 20), expected);
        assert_eq!(found(&file, 4096, 4096), [(4096, false)]);
        assert_eq!(found(&file, 8192, 8192), [(4096, false), (4096, true)]);
        assert_eq!(found(&file, 8 << 20, 8 << 20), [(8 << 20, true)]);
    }

    #[test]
    fn beyond_the_files_end_nothing_is_a_hole() {
        assert_eq!(found(&file(), 8 << 20, 9 << 20), []);
    }

    #[test]
    fn an_answer_has_a_largest_size() {
        let file = file();
        for page in (0..4096).step_by(2) {
            file.write_all_at(&[1; 4096], page * 4096).unwrap();
        }
        let all = found(&file, 0, 16 << 20);
        assert!(all.len() <= MAX_EXTENTS, "{}", all.len());
        let one_by_one = all.iter().filter(|(length, _)| *length == 4096).count();
        assert_eq!(one_by_one, 4096, "{:?}", &all[..8]);
    }
}
