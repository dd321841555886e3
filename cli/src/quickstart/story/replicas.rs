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
    let mut open = Vec::new();
    for (node, path) in files {
        open.push((
            node,
            path,
            File::open(path).map_err(|e| cannot("open", path, &e))?,
        ));
    }
    // Slices are compared by memcmp, bytes one by one are slow in a debug build.
    let zeros = vec![0_u8; usize::try_from(CHUNK).unwrap_or(0)];
    let mut data = 0;
    let mut offset = 0;
    while offset < size {
        let length = CHUNK.min(size - offset);
        let mut first: Option<(&String, Vec<u8>)> = None;
        for (node, path, file) in &mut open {
            let bytes = chunk(file, length).map_err(|e| cannot("read", path, &e))?;
            match &first {
                None => first = Some((node, bytes)),
                Some((_, expected)) if *expected == bytes => {}
                Some((other, expected)) => {
                    let at = expected.iter().zip(&bytes).position(|(a, b)| a != b).unwrap_or(0);
                    let at = offset + u64::try_from(at).unwrap_or(0);
                    return Err(
                        Failure::failed(format!("the copies on {other} and {node} differ"))
                            .why(format!("first at byte {at}")),
                    );
                }
            }
        }
        if first.is_some_and(|(_, bytes)| !zeros.starts_with(&bytes)) {
            data += length;
        }
        offset += length;
    }
    Ok(Same {
        copies: open.len(),
        data,
    })
}

fn chunk(file: &mut File, length: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    bytes.resize(usize::try_from(length).unwrap_or(0), 0);
    Ok(bytes)
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
