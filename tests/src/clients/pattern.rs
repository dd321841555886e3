//! Content that is the same for the same seed and compresses to nothing: data with holes in it.

use std::fs::File;
use std::io::{BufWriter, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use anyhow::Context as _;

/// A run of data or of nothing is this long, bytes.
const RUN: u64 = 256 << 10;

/// Makes a file of `size` bytes: runs of data that depend on `seed`, every fourth one left out.
pub fn write_pattern(path: &Path, size: u64, seed: u64) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    file.set_len(size)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    // xorshift64; any odd seed will do.
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for (number, start) in (0..size).step_by(usize::try_from(RUN)?).enumerate() {
        if number % 4 == 3 {
            continue;
        }
        out.seek(SeekFrom::Start(start))?;
        for _ in 0..RUN.min(size - start) / 8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            out.write_all(&state.to_le_bytes())?;
        }
    }
    out.flush().with_context(|| format!("writing {}", path.display()))
}
