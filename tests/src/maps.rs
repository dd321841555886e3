//! A replica's metadata as it is on disk, read from the outside by the description of its layout: pages of
//! 4096 bytes, twice each, a 64-byte head with the sequence number at 16, then the body.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use crc_fast::{CrcAlgorithm, checksum};

/// Bytes of a page.
pub const PAGE: usize = 4096;
const HEAD: usize = 64;
const VERSION: usize = 4;
const CHECKSUM: usize = 60;
const MAGIC: &[u8; 4] = b"StP1";

/// Offsets of the two copies of the superblock.
pub const SUPERBLOCK: [u64; 2] = [0, PAGE as u64];
/// Offsets of the two copies of the dirty map's first page: enough for 31 GiB.
pub const DIRTY: [u64; 2] = [2 * PAGE as u64, 3 * PAGE as u64];

/// Both copies of the superblock.
pub fn superblocks(metadata: &Path) -> anyhow::Result<[[u8; PAGE]; 2]> {
    let [first, second] = SUPERBLOCK;
    Ok([read_page(metadata, first)?.1, read_page(metadata, second)?.1])
}

/// Puts them back.
pub fn restore(metadata: &Path, superblocks: &[[u8; PAGE]; 2]) -> anyhow::Result<()> {
    for (offset, page) in SUPERBLOCK.into_iter().zip(superblocks) {
        let (file, _) = read_page(metadata, offset)?;
        file.write_all_at(page, offset)?;
    }
    Ok(())
}

/// Overwrites one copy of a page so that its checksum is wrong, as a torn or misdirected write does.
pub fn damage(metadata: &Path, offset: u64) -> anyhow::Result<()> {
    let (file, mut page) = read_page(metadata, offset)?;
    page.iter_mut()
        .skip(HEAD / 2)
        .step_by(3)
        .for_each(|byte| *byte ^= 0x5a);
    // A page that was never written is no page with a wrong checksum.
    page.iter_mut().zip(MAGIC).for_each(|(to, from)| *to = *from);
    Ok(file.write_all_at(&page, offset)?)
}

/// Makes one copy of a page look as if a program of format `version` had written it, checksum and all. `false`
/// when the page was never written.
pub fn make_version(metadata: &Path, offset: u64, version: u8) -> anyhow::Result<bool> {
    let (file, mut page) = read_page(metadata, offset)?;
    if page.iter().all(|byte| *byte == 0) {
        return Ok(false);
    }
    page.iter_mut()
        .skip(VERSION)
        .take(1)
        .for_each(|byte| *byte = version);
    page.iter_mut().skip(CHECKSUM).take(4).for_each(|byte| *byte = 0);
    let sum = u32::try_from(checksum(CrcAlgorithm::Crc32Iscsi, &page))?.to_le_bytes();
    page.iter_mut()
        .skip(CHECKSUM)
        .zip(sum)
        .for_each(|(to, from)| *to = from);
    file.write_all_at(&page, offset)?;
    Ok(true)
}

fn read_page(metadata: &Path, offset: u64) -> anyhow::Result<(File, [u8; PAGE])> {
    let file = File::options()
        .read(true)
        .write(true)
        .open(metadata)
        .with_context(|| format!("opening {}", metadata.display()))?;
    let mut page = [0_u8; PAGE];
    file.read_exact_at(&mut page, offset)
        .with_context(|| format!("reading {} at byte {offset}", metadata.display()))?;
    Ok((file, page))
}

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
