//! Where bytes lie: ranges, the 64 KiB blocks of out-of-sync maps and the 1 MiB regions of dirty maps.

use std::fmt;

/// Smallest unit of a request: everything is aligned to it.
pub const SECTOR: u64 = 4096;
/// Bytes behind one bit of an out-of-sync map.
pub const BLOCK: u64 = 64 << 10;
/// Bytes behind one bit of a dirty map.
pub const REGION: u64 = 1 << 20;
/// Blocks in a region.
pub const BLOCKS_PER_REGION: u64 = REGION / BLOCK;
/// Largest volume. Bounds the maps' place in the metadata file.
pub const MAX_VOLUME: u64 = 64 << 40;
/// Largest request, bytes. NBD's customary limit.
pub const MAX_REQUEST: u32 = 32 << 20;

/// `len` bytes from `offset`. Never empty in a request that touches data.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

impl ByteRange {
    /// A range.
    pub const fn new(offset: u64, len: u64) -> Self {
        Self { offset, len }
    }

    /// The byte after the last.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// Whether the two share a byte.
    pub fn overlaps(self, other: Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }

    /// Whether it is one a replica can serve: aligned, not empty, inside `size`, not too long.
    pub fn valid_for(self, size: u64) -> bool {
        self.lies_in(size) && self.len <= u64::from(MAX_REQUEST)
    }

    /// Whether it is aligned, not empty, inside `size`.
    pub fn lies_in(self, size: u64) -> bool {
        self.len > 0
            && self.offset.is_multiple_of(SECTOR)
            && self.len.is_multiple_of(SECTOR)
            && self.offset.checked_add(self.len).is_some_and(|end| end <= size)
    }

    /// Indices of the units of `unit` bytes it touches.
    pub fn units(self, unit: u64) -> std::ops::Range<u64> {
        if self.len == 0 {
            return 0..0;
        }
        self.offset / unit..(self.end() - 1) / unit + 1
    }

    /// Indices of the regions it touches.
    pub fn regions(self) -> std::ops::Range<u64> {
        let of = if defect!(RegionOffByOne) {
            Self::new(self.offset, self.len.min(SECTOR))
        } else {
            self
        };
        of.units(REGION)
    }

    /// Indices of the blocks it touches.
    pub fn blocks(self) -> std::ops::Range<u64> {
        let of = if defect!(BlockOffByOne) {
            Self::new(self.offset, self.len.min(SECTOR))
        } else {
            self
        };
        of.units(BLOCK)
    }

    /// Bytes of the blocks `blocks` in a volume of `size`: the last may be short.
    pub fn of_blocks(blocks: std::ops::Range<u64>, size: u64) -> Self {
        let start = blocks.start.saturating_mul(BLOCK).min(size);
        let end = blocks.end.saturating_mul(BLOCK).min(size);
        Self::new(start, end.saturating_sub(start))
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.len)
    }
}
