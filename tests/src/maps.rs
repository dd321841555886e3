//! A replica's metadata as it is on disk, read from the outside by the description of its layout: pages of
//! 4096 bytes, twice each, a 64-byte head with the sequence number at 16, then the body.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, ensure};

/// Bytes of a page.
pub const PAGE: usize = 4096;
const HEAD: usize = 64;
const MAGIC: &[u8; 4] = b"StP1";

/// Offsets of the two copies of the superblock.
pub const SUPERBLOCK: [u64; 2] = [0, PAGE as u64];
/// Offsets of the two copies of the dirty map's first page: enough for 31 GiB.
pub const DIRTY: [u64; 2] = [2 * PAGE as u64, 3 * PAGE as u64];

/// Regions that are noted as written and not yet flushed everywhere.
pub fn dirty_regions(metadata: &Path) -> anyhow::Result<u32> {
    let file = File::open(metadata).with_context(|| format!("opening {}", metadata.display()))?;
    let mut newest: Option<(u64, u32)> = None;
    for offset in DIRTY {
        let mut page = [0_u8; PAGE];
        match file.read_exact_at(&mut page, offset) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => continue,
            other => other.context("reading the dirty map")?,
        }
        if page.iter().all(|byte| *byte == 0) {
            continue;
        }
        ensure!(page.starts_with(MAGIC), "no page at byte {offset}");
        let mut number = [0_u8; 8];
        number
            .iter_mut()
            .zip(page.iter().skip(16))
            .for_each(|(to, from)| *to = *from);
        let bits = page.iter().skip(HEAD).map(|byte| byte.count_ones()).sum();
        let found = (u64::from_le_bytes(number), bits);
        newest = newest.max(Some(found));
    }
    Ok(newest.map_or(0, |(_, bits)| bits))
}
