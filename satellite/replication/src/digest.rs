//! What a replica holds, told in short, so that copies can be compared without being sent.
//!
//! A range is told unit by unit: of at most one block of 64 KiB its sectors, of a longer one its blocks. What takes
//! no space is not read, and counts like zeroes that were written. A unit that can't be read is told as that: it is
//! no failure of the answer.
//!
//! On the wire: how many bytes were read for it, u32; then for each unit its state, u32, and the 32 bytes of its
//! digest, zero where it has none; little-endian. A list may end before the range does: reading takes time, and
//! writers wait for it.

use crate::info::Reader;
use crate::range::{BLOCK, ByteRange, SECTOR};

/// Longest range asked for at once.
pub const MAX_RANGE: u32 = 16 << 20;
/// A replica reads about this much for one answer.
pub const MAX_READ: u64 = 256 << 10;
/// Most units in one answer.
pub const MAX_UNITS: usize = 256;
const _: () = assert!(MAX_RANGE as u64 == MAX_UNITS as u64 * BLOCK);
/// Bytes of a unit on the wire, and before the first.
const UNIT: usize = 36;
const HEAD: usize = 4;
/// Longest answer.
pub(crate) const MAX_ANSWER: usize = HEAD + MAX_UNITS * UNIT;

const ZEROES: u32 = 0;
const DATA: u32 = 1;
const UNREADABLE: u32 = 2;

/// What is told of a unit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Unit {
    /// Nothing but zeroes, whether they take space or not.
    Zeroes,
    /// BLAKE3 of its bytes.
    Data([u8; 32]),
    /// It could not be read.
    Unreadable,
}

impl Unit {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        if bytes.iter().all(|byte| *byte == 0) {
            Self::Zeroes
        } else {
            Self::Data(*blake3::hash(bytes).as_bytes())
        }
    }
}

/// An answer: of the range asked for, or a beginning of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Digests {
    /// Bytes read for it.
    pub read: u32,
    /// In order.
    pub units: Vec<Unit>,
}

/// Bytes told by one unit of an answer about `range`; the last one may be shorter.
pub fn unit(range: ByteRange) -> u64 {
    if range.len > BLOCK { BLOCK } else { SECTOR }
}

/// Whether `range` can be asked about, in a volume of `size`.
pub fn may_ask(range: ByteRange, size: u64) -> bool {
    range.lies_in(size) && range.len <= u64::from(MAX_RANGE) && range.offset.is_multiple_of(unit(range))
}

/// As bytes; what is beyond [`MAX_UNITS`] is left out.
pub fn encode(digests: &Digests) -> Vec<u8> {
    let mut bytes = digests.read.to_le_bytes().to_vec();
    for unit in digests.units.iter().take(MAX_UNITS) {
        let (state, digest) = match unit {
            Unit::Zeroes => (ZEROES, [0; 32]),
            Unit::Data(digest) => (DATA, *digest),
            Unit::Unreadable => (UNREADABLE, [0; 32]),
        };
        bytes.extend(state.to_le_bytes());
        bytes.extend(digest);
    }
    bytes
}

/// From bytes, for `range`. `None`: they do not describe a beginning of it.
pub fn decode(bytes: &[u8], range: ByteRange) -> Option<Digests> {
    let most = usize::try_from(range.len.div_ceil(unit(range))).ok()?;
    let mut from = Reader(bytes);
    let read = from.u32()?;
    let mut units = Vec::new();
    while let Some(state) = from.u32() {
        let digest = from.digest()?;
        units.push(match state {
            ZEROES => Unit::Zeroes,
            DATA => Unit::Data(digest),
            UNREADABLE => Unit::Unreadable,
            _ => return None,
        });
    }
    let whole = from.0.is_empty() && !units.is_empty() && units.len() <= most.min(MAX_UNITS);
    whole.then_some(Digests { read, units })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Digests {
        let units = vec![Unit::of(&[7; 4096]), Unit::of(&[0; 4096]), Unit::Unreadable];
        Digests { read: 8192, units }
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = encode(&some());
        assert_eq!(decode(&bytes, ByteRange::new(0, BLOCK)), Some(some()));
        assert_eq!(decode(&bytes, ByteRange::new(0, 3 * SECTOR)), Some(some()));
        assert_eq!(decode(&bytes, ByteRange::new(0, 1 << 20)), Some(some()));
        let units = vec![Unit::Zeroes; MAX_UNITS + 1];
        let many = encode(&Digests { read: 0, units });
        assert_eq!(many.len(), MAX_ANSWER);
    }

    #[test]
    fn what_is_no_answer_says_nothing() {
        let (good, block) = (encode(&some()), ByteRange::new(0, BLOCK));
        assert_eq!(decode(&[], block), None, "none at all");
        assert_eq!(decode(&good[..4], block), None, "no unit");
        assert_eq!(decode(&good[..good.len() - 1], block), None, "cut off");
        assert_eq!(
            decode(&good, ByteRange::new(0, 2 * SECTOR)),
            None,
            "longer than what was asked for"
        );
        let mut odd = good;
        odd[4] = 3;
        assert_eq!(decode(&odd, block), None, "a state nobody knows");
    }

    #[test]
    fn zeroes_are_zeroes_whoever_wrote_them() {
        assert_eq!(Unit::of(&[0; 4096]), Unit::Zeroes);
        assert_ne!(Unit::of(&[1; 4096]), Unit::of(&[2; 4096]));
    }

    #[test]
    fn ranges_are_asked_for_in_whole_units() {
        let size = (1 << 20) + 4096;
        assert!(may_ask(ByteRange::new(4096, BLOCK), size));
        assert!(
            may_ask(ByteRange::new(BLOCK, size - BLOCK), size),
            "the last one may be short"
        );
        assert!(
            !may_ask(ByteRange::new(4096, 2 * BLOCK), size),
            "begins within a block"
        );
        assert!(!may_ask(ByteRange::new(0, size + 4096), size), "beyond the end");
        assert!(
            !may_ask(ByteRange::new(0, u64::from(MAX_RANGE) + BLOCK), 1 << 40),
            "too long"
        );
    }
}
