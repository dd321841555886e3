//! A generated image, for volumes that can't be mounted: random data that can be generated again.

use super::nbd::Nbd;
use crate::failure::Failure;

const BLOCK: usize = 1 << 20;
const BLOCKS: u64 = 128;

/// Block `number` of the image.
fn block(number: u64) -> Vec<u8> {
    let mut bytes = vec![0_u8; BLOCK];
    blake3::Hasher::new()
        .update(&number.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

fn offset(number: u64) -> u64 {
    number << 20
}

/// Writes it; answers its size.
pub(crate) fn write(nbd: &mut Nbd) -> Result<u64, Failure> {
    for number in 0..BLOCKS {
        nbd.write(offset(number), &block(number))?;
    }
    nbd.flush()?;
    Ok(offset(BLOCKS))
}

/// Reads it and compares; answers its size.
pub(crate) fn check(nbd: &mut Nbd) -> Result<u64, Failure> {
    let mut bytes = vec![0_u8; BLOCK];
    for number in 0..BLOCKS {
        nbd.read(offset(number), &mut bytes)?;
        if bytes != block(number) {
            return Err(Failure::failed(format!(
                "MiB {number} of the image is not as it was written"
            )));
        }
    }
    Ok(offset(BLOCKS))
}
