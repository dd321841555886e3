//! The content of a block that says of itself which write it is of.
//!
//! ```text
//! 0 magic  8 slot u64  16 number u64  24 bytes that depend on slot and number  4088 crc64 of all before
//! ```

use anyhow::{bail, ensure};
use crc_fast::{CrcAlgorithm, checksum};

/// Bytes of a block.
pub const BLOCK: usize = 4096;
const MAGIC: &[u8; 8] = b"stortest";
const BODY: usize = BLOCK - 8;

/// What write `number` puts into `slot`. Numbers begin at 1: a block of zeroes is number 0.
pub fn fill(slot: u64, number: u64) -> Vec<u8> {
    let mut block = Vec::with_capacity(BLOCK);
    block.extend_from_slice(MAGIC);
    block.extend_from_slice(&slot.to_le_bytes());
    block.extend_from_slice(&number.to_le_bytes());
    let mut state = slot.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ number.wrapping_mul(0xD1B5_4A32_D192_ED03) | 1;
    while block.len() < BODY {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        block.extend_from_slice(&state.to_le_bytes());
    }
    block.extend_from_slice(&checksum(CrcAlgorithm::Crc64Nvme, &block).to_le_bytes());
    block
}

/// Which write a block is of. An error for a block no write has put there.
pub fn number(slot: u64, block: &[u8]) -> anyhow::Result<u64> {
    ensure!(block.len() == BLOCK, "{} bytes are no block", block.len());
    if block.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let word = |at: usize| {
        let mut bytes = [0_u8; 8];
        bytes
            .iter_mut()
            .zip(block.iter().skip(at))
            .for_each(|(to, from)| *to = *from);
        u64::from_le_bytes(bytes)
    };
    ensure!(
        block.starts_with(MAGIC),
        "slot {slot} holds something nobody wrote"
    );
    if word(8) != slot {
        bail!("slot {slot} holds what was written to slot {}", word(8));
    }
    let number = word(16);
    ensure!(
        block == fill(slot, number),
        "slot {slot} holds a torn or damaged write {number}"
    );
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::unwrap_used, clippy::indexing_slicing)]
    fn a_block_tells_its_write_and_damage_is_seen() {
        let block = fill(7, 3);
        assert_eq!(block.len(), BLOCK);
        assert_eq!(number(7, &block).unwrap(), 3);
        assert_eq!(number(7, &[0; BLOCK]).unwrap(), 0);
        assert!(number(8, &block).is_err());
        for at in [0, 9, 17, 100, 4095] {
            let mut damaged = block.clone();
            damaged[at] ^= 1;
            assert!(number(7, &damaged).is_err(), "byte {at}");
        }
        let mut torn = block;
        torn[2048..].copy_from_slice(&fill(7, 2)[2048..]);
        assert!(number(7, &torn).is_err());
    }
}
