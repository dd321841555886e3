//! The copies of a detached volume, compared as files.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::super::place::cannot;
use crate::failure::Failure;

const CHUNK: u64 = 1 << 20;

/// Where a file pool keeps a replica's data.
pub(crate) fn data_file(pool: &Path, volume: &str, replica: u32) -> PathBuf {
    pool.join(volume).join(format!("r{replica}.data"))
}

/// What was compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Same {
    pub(crate) copies: usize,
    /// Bytes in chunks that are not all zero.
    pub(crate) data: u64,
}

/// Reads all files side by side; a file that ends before `size` goes on with zeros, as its volume does.
pub(crate) fn compare(files: &[(String, PathBuf)], size: u64) -> Result<Same, Failure> {
    let mut copies = Vec::new();
    for (node, path) in files {
        let file = File::open(path).map_err(|e| cannot("open", path, &e))?;
        copies.push(Copy {
            node,
            path,
            file,
            bytes: vec![0; usize::try_from(CHUNK).unwrap_or(0)],
        });
    }
    // Slices are compared by memcmp; bytes one by one are slow in a debug build.
    let zeros = vec![0_u8; usize::try_from(CHUNK).unwrap_or(0)];
    let mut data = 0;
    let mut offset = 0;
    while offset < size {
        let length = CHUNK.min(size - offset);
        for copy in &mut copies {
            copy.read(length).map_err(|e| cannot("read", copy.path, &e))?;
        }
        if let Some((first, others)) = copies.split_first() {
            if let Some(other) = others.iter().find(|other| other.bytes != first.bytes) {
                return Err(first.differs_from(other, offset));
            }
            if first.bytes != zeros {
                data += length;
            }
        }
        offset += length;
    }
    Ok(Same {
        copies: copies.len(),
        data,
    })
}

/// One copy, and the chunk of it that is compared.
struct Copy<'a> {
    node: &'a str,
    path: &'a Path,
    file: File,
    bytes: Vec<u8>,
}

impl Copy<'_> {
    fn differs_from(&self, other: &Self, offset: u64) -> Failure {
        let at = self
            .bytes
            .iter()
            .zip(&other.bytes)
            .position(|(a, b)| a != b)
            .unwrap_or(0);
        let at = offset + u64::try_from(at).unwrap_or(0);
        Failure::failed(format!("the copies on {} and {} differ", self.node, other.node))
            .why(format!("first at byte {at}"))
    }

    /// Reads the next `length` bytes; what the file does not have, and the rest of the chunk, is zeros.
    fn read(&mut self, length: u64) -> std::io::Result<()> {
        let wanted = usize::try_from(length).unwrap_or(0).min(self.bytes.len());
        let mut have = 0;
        while let Some(rest) = self.bytes.get_mut(have..wanted).filter(|rest| !rest.is_empty()) {
            match self.file.read(rest) {
                Ok(0) => break,
                Ok(count) => have += count,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if let Some(rest) = self.bytes.get_mut(have..) {
            rest.fill(0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_is_found_and_a_short_file_is_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let size = 3 * CHUNK + 4096;
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            (name.to_owned(), path)
        };
        let mut bytes = vec![0_u8; usize::try_from(size).unwrap()];
        bytes[5] = 1;
        let (a, short) = (file("s1", &bytes), file("s2", &bytes[..4096]));
        let same = compare(&[a.clone(), short], size).unwrap();
        assert_eq!(
            same,
            Same {
                copies: 2,
                data: CHUNK
            }
        );
        bytes[2_500_000] = 9;
        let failure = compare(&[a, file("s3", &bytes)], size).unwrap_err();
        assert!(
            failure.what.contains("s1 and s3") && failure.why.contains("2500000"),
            "{failure:?}"
        );
    }
}
