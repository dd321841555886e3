//! The content of a copy of a snapshot, read and compared block by block. Blocks on the disk: not for the data thread.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, seek};
use rustix::io::{pread, pwrite};
use stor_device::{Buf, blockdev};
use stor_replication::range::ByteRange;
use stor_replication::recopy::{Digest, UNIT};

use super::extents;

/// An open copy: a file or a thin volume.
#[derive(Debug)]
pub(crate) struct Content {
    file: File,
    /// Bytes of the file or device.
    pub(crate) size: u64,
    /// Of a block device: the chunks in which it takes discards.
    chunk: Option<u64>,
}

impl Content {
    /// Opens one to be read.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::DIRECT.bits().cast_signed())
            .open(path)?;
        Self::of(file, path)
    }

    /// Opens one to be written to: a device for nobody else.
    pub(crate) fn open_to_write(path: &Path) -> io::Result<Self> {
        let file = if blockdev::is_block(path) {
            blockdev::open_exclusive(path)?
        } else {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(OFlags::DIRECT.bits().cast_signed())
                .open(path)?
        };
        Self::of(file, path)
    }

    fn of(file: File, path: &Path) -> io::Result<Self> {
        let size = seek(&file, SeekFrom::End(0))?;
        let chunk = if blockdev::is_block(path) {
            Some(blockdev::discard_chunk(&file)?)
        } else {
            None
        };
        Ok(Self { file, size, chunk })
    }

    /// Digests of the range's blocks, as the replication's core wants them.
    pub(crate) fn digests(&self, range: ByteRange) -> io::Result<Vec<Digest>> {
        let mut holes = Vec::new();
        let mut at = range.offset;
        for extent in extents::find(&self.file, range) {
            let end = at + u64::from(extent.length);
            if extent.hole {
                holes.push((at, end));
            }
            at = end;
        }
        let mut digests = Vec::new();
        let mut buf = Buf::new(length(UNIT)?);
        for unit in range.units(UNIT) {
            let from = (unit * UNIT).max(range.offset);
            let to = (unit * UNIT + UNIT).min(range.end());
            if holes.iter().any(|(begin, end)| *begin <= from && to <= *end) {
                digests.push(Digest::Zero);
                continue;
            }
            buf.set_len(length(to - from)?);
            self.fill(&mut buf, from)?;
            digests.push(digest(&buf));
        }
        Ok(digests)
    }

    /// What is there.
    pub(crate) fn read(&self, range: ByteRange) -> io::Result<Vec<u8>> {
        let mut buf = Buf::new(length(range.len)?);
        self.fill(&mut buf, range.offset)?;
        Ok(buf.to_vec())
    }

    fn fill(&self, buf: &mut Buf, offset: u64) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match pread(&self.file, rest, offset + done as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => done += count,
            }
        }
        Ok(())
    }

    /// Writes; durable with the next [`Content::flush`].
    pub(crate) fn write(&self, range: ByteRange, data: &[u8]) -> io::Result<()> {
        if data.len() as u64 != range.len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut buf = Buf::new(data.len());
        buf.copy_from_slice(data);
        let mut done = 0;
        while let Some(rest) = buf.get(done..).filter(|rest| !rest.is_empty()) {
            match pwrite(&self.file, rest, range.offset + done as u64)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => done += count,
            }
        }
        Ok(())
    }

    /// Has a range read as zeroes and gives its space back.
    pub(crate) fn free(&self, range: ByteRange) -> io::Result<()> {
        if let Some(chunk) = self.chunk {
            return blockdev::free(self.file.as_fd(), range.offset, range.len, chunk);
        }
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, hole, range.offset, range.len) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                self.write(range, &vec![0; length(range.len)?])
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Has it hold `size` bytes, and zeroes behind them if it is a device that is larger.
    pub(crate) fn cut(&mut self, size: u64) -> io::Result<()> {
        if self.chunk.is_none() {
            self.file.set_len(size)?;
        } else if self.size < size {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is smaller than the snapshot",
            ));
        } else if self.size > size {
            self.free(ByteRange::new(size, self.size - size))?;
        }
        self.size = self.size.max(size);
        Ok(())
    }

    /// Makes durable what was written.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

fn length(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn digest(bytes: &[u8]) -> Digest {
    if bytes.iter().all(|byte| *byte == 0) {
        Digest::Zero
    } else {
        Digest::Of(*blake3::hash(bytes).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 64 << 10;

    #[test]
    fn a_block_of_zeroes_is_a_hole_and_every_other_has_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copy");
        let file = File::create(&path).unwrap();
        file.set_len(3 * UNIT + 4096).unwrap();
        let content = Content::open_to_write(&path).unwrap();
        content
            .write(ByteRange::new(UNIT, 2 * UNIT), &vec![7; 2 * LEN])
            .unwrap();
        content.write(ByteRange::new(3 * UNIT, 4096), &[7; 4096]).unwrap();
        let all = ByteRange::new(0, 3 * UNIT + 4096);
        let found = content.digests(all).unwrap();
        let seven = digest(&vec![7; LEN]);
        assert_eq!(found, [Digest::Zero, seven, seven, digest(&[7; 4096])]);
        assert_ne!(found[1], found[3]);
        content.write(ByteRange::new(UNIT, 4096), &[0; 4096]).unwrap();
        content.free(ByteRange::new(2 * UNIT, UNIT)).unwrap();
        let found = content.digests(all).unwrap();
        assert!(found[1] != seven && found[1] != Digest::Zero);
        assert_eq!(found[2], Digest::Zero);
        assert_eq!(
            content.read(ByteRange::new(UNIT, 8192)).unwrap()[4095..4097],
            [0, 7]
        );
        assert!(content.read(ByteRange::new(3 * UNIT, 8192)).is_err());
    }
}
