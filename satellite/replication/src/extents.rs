//! Which parts of a range hold data and which are holes, that is: read as zeroes and take no space.
//!
//! On the wire: for each extent its length and state, u32 each, little-endian; they follow each other from
//! the beginning of the range. A list may end before the range does.

use crate::info::Reader;

/// Longest range asked for at once. Its lock keeps writers out for as long as the answer takes.
pub const MAX_RANGE: u32 = 1 << 30;
/// Most extents in one answer: bounds its size and the time it takes.
pub const MAX_EXTENTS: usize = 4096;
/// Bytes of an extent on the wire.
pub(crate) const EXTENT: usize = 8;

const DATA: u32 = 0;
const HOLE: u32 = 1;

/// A part of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Bytes, not zero.
    pub length: u32,
    /// Reads as zeroes and takes no space. Otherwise nothing is said of what it reads as.
    pub hole: bool,
}

impl Extent {
    /// What is true of every range.
    pub fn data(length: u64) -> Self {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        Self { length, hole: false }
    }
}

/// As bytes; what is beyond [`MAX_EXTENTS`] is left out.
pub fn encode(extents: &[Extent]) -> Vec<u8> {
    let bytes = |extent: &Extent| {
        let state = if extent.hole { HOLE } else { DATA };
        [extent.length.to_le_bytes(), state.to_le_bytes()].concat()
    };
    extents.iter().take(MAX_EXTENTS).flat_map(bytes).collect()
}

/// From bytes, for a range of `length` bytes. `None`: they do not describe a beginning of it.
pub fn decode(bytes: &[u8], length: u64) -> Option<Vec<Extent>> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(EXTENT) || bytes.len() > MAX_EXTENTS * EXTENT {
        return None;
    }
    let mut from = Reader(bytes);
    let mut extents = Vec::new();
    let mut total = 0;
    while let (Some(length), Some(state)) = (from.u32(), from.u32()) {
        let hole = match state {
            DATA => false,
            HOLE => true,
            _ => return None,
        };
        total += u64::from(length);
        if length == 0 {
            return None;
        }
        extents.push(Extent { length, hole });
    }
    (total <= length).then_some(extents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let extents = [
            Extent::data(4096),
            Extent {
                length: 8192,
                hole: true,
            },
        ];
        assert_eq!(decode(&encode(&extents), 12288), Some(extents.to_vec()));
        assert_eq!(decode(&encode(&extents), 1 << 20), Some(extents.to_vec()));
        let many = vec![Extent::data(1); MAX_EXTENTS + 1];
        assert_eq!(
            decode(&encode(&many), 1 << 20).map(|all| all.len()),
            Some(MAX_EXTENTS)
        );
    }

    #[test]
    fn what_is_no_list_says_nothing() {
        let good = encode(&[Extent::data(4096)]);
        assert_eq!(decode(&[], 4096), None, "none at all");
        assert_eq!(decode(&good[..7], 4096), None, "cut off");
        assert_eq!(decode(&good, 4095), None, "longer than what was asked for");
        assert_eq!(decode(&encode(&[Extent::data(0)]), 4096), None, "empty");
        let mut odd = good;
        odd[4] = 2;
        assert_eq!(decode(&odd, 4096), None, "a state nobody knows");
        assert_eq!(
            decode(&vec![1; (MAX_EXTENTS + 1) * EXTENT], u64::MAX),
            None,
            "too many"
        );
    }
}
