//! Decisions taken off the front of an input, so that whatever it holds means something.

/// What is left of an input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// Zeroes when there are no more.
    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let part = self.some(N);
        array.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
        array
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// At most so many.
    pub(crate) fn some(&mut self, count: usize) -> &'a [u8] {
        let (part, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        part
    }

    /// A number that is often one of those at which things change.
    pub(crate) fn number(&mut self, size: u64) -> u64 {
        match self.byte() {
            0 => 0,
            1 => size,
            2 => size.wrapping_sub(4096),
            3 => u64::MAX,
            4 => 1 << 63,
            byte @ 5..=127 => u64::from(byte) * 4096,
            byte @ 128..=200 => u64::from(byte) << 20,
            _ => self.u64(),
        }
    }
}
