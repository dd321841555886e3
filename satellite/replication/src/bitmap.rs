//! A plain bitmap of fixed length: dirty maps (a bit per region) and out-of-sync maps (a bit per block).
//!
//! Bits outside the length do not exist: reading one says `false`, setting one does nothing. Whoever
//! must not miss a bit checks the length first.

use std::ops::Range;

use crate::range::BLOCKS_PER_REGION;

/// See the module.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Bitmap {
    words: Vec<u64>,
    bits: u64,
    ones: u64,
}

impl Bitmap {
    /// All clear.
    pub fn new(bits: u64) -> Self {
        let words = usize::try_from(bits.div_ceil(64)).unwrap_or(usize::MAX);
        Self {
            words: vec![0; words],
            bits,
            ones: 0,
        }
    }

    /// All set.
    pub fn full(bits: u64) -> Self {
        let mut map = Self::new(bits);
        map.set_range(0..bits);
        map
    }

    /// Gives it another number of bits, not fewer; those that are new are clear, or set.
    pub fn grow(&mut self, bits: u64, set: bool) {
        let from = self.bits;
        if bits <= from {
            return;
        }
        let words = usize::try_from(bits.div_ceil(64)).unwrap_or(usize::MAX);
        self.words.resize(words, 0);
        self.bits = bits;
        if set {
            self.set_range(from..bits);
        }
    }

    /// Number of bits.
    pub fn len(&self) -> u64 {
        self.bits
    }

    /// It has no bits at all.
    pub fn is_empty(&self) -> bool {
        self.bits == 0
    }

    /// No bit is set.
    pub fn is_clear(&self) -> bool {
        self.ones == 0
    }

    /// Number of set bits.
    pub fn count(&self) -> u64 {
        self.ones
    }

    /// Whether `bit` is set.
    pub fn get(&self, bit: u64) -> bool {
        bit < self.bits && self.word(bit / 64) >> (bit % 64) & 1 == 1
    }

    /// Sets `bit`; says whether it was clear.
    pub fn set(&mut self, bit: u64) -> bool {
        self.put(bit, true)
    }

    /// Clears `bit`; says whether it was set.
    pub fn clear(&mut self, bit: u64) -> bool {
        self.put(bit, false)
    }

    /// Sets all of `range`; says whether any was clear.
    pub fn set_range(&mut self, range: Range<u64>) -> bool {
        let mut changed = false;
        for bit in range {
            changed |= self.set(bit);
        }
        changed
    }

    /// Clears all of `range`.
    pub fn clear_range(&mut self, range: Range<u64>) {
        for bit in range {
            self.clear(bit);
        }
    }

    /// Whether any of `range` is set.
    pub fn any(&self, mut range: Range<u64>) -> bool {
        self.ones > 0 && range.any(|bit| self.get(bit))
    }

    /// Whether all of `range` are set.
    pub fn all(&self, mut range: Range<u64>) -> bool {
        range.all(|bit| self.get(bit))
    }

    /// The first set bit at or after `from`.
    pub fn next_set(&self, from: u64) -> Option<u64> {
        if self.ones == 0 || from >= self.bits {
            return None;
        }
        let mut index = from / 64;
        let mut word = self.word(index) & (u64::MAX << (from % 64));
        loop {
            if word != 0 {
                return Some(index * 64 + u64::from(word.trailing_zeros())).filter(|bit| *bit < self.bits);
            }
            index += 1;
            if index * 64 >= self.bits {
                return None;
            }
            word = self.word(index);
        }
    }

    /// The set bits, rising.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let bit = self.next_set(from)?;
            from = bit + 1;
            Some(bit)
        })
    }

    /// Sets every bit that `other` has.
    pub fn or(&mut self, other: &Self) {
        let bits: Vec<u64> = other.iter().collect();
        for bit in bits {
            self.set(bit);
        }
    }

    /// A dirty map's regions as a map of blocks, for a volume of `blocks` blocks.
    #[must_use]
    pub fn regions_to_blocks(&self, blocks: u64) -> Self {
        let mut map = Self::new(blocks);
        for region in self.iter() {
            map.set_range(region * BLOCKS_PER_REGION..(region + 1) * BLOCKS_PER_REGION);
        }
        map
    }

    /// The words from `first`, at most `count`, as little-endian bytes.
    pub fn bytes(&self, first: u64, count: usize) -> Vec<u8> {
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        self.words
            .iter()
            .skip(first)
            .take(count)
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    /// Sets the bits that `bytes` has, read as little-endian words from word `first` on.
    pub fn or_bytes(&mut self, first: u64, bytes: &[u8]) {
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            let mut word = u64::from_le_bytes(word);
            while word != 0 {
                let index = first.saturating_add(index as u64).saturating_mul(64);
                self.set(index.saturating_add(u64::from(word.trailing_zeros())));
                word &= word - 1;
            }
        }
    }

    fn word(&self, index: u64) -> u64 {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.words.get(index))
            .copied()
            .unwrap_or(0)
    }

    fn put(&mut self, bit: u64, value: bool) -> bool {
        if bit >= self.bits || self.get(bit) == value {
            return false;
        }
        let Some(word) = usize::try_from(bit / 64)
            .ok()
            .and_then(|index| self.words.get_mut(index))
        else {
            return false;
        };
        *word ^= 1 << (bit % 64);
        if value {
            self.ones += 1;
        } else {
            self.ones -= 1;
        }
        true
    }
}
