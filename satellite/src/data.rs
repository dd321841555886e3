//! Bytes of a volume on their way through this process.

use std::ops::Range;

use stor_device::Shared;
use stor_replication::wire::crc32c;

/// A part of a buffer, with its checksum taken once: the same bytes go to several replicas.
#[derive(Clone, Debug)]
pub(crate) struct Data {
    pub(crate) buffer: Shared,
    pub(crate) range: Range<usize>,
    pub(crate) crc: u32,
}

impl Data {
    /// The part `range` of a buffer nobody changes any more.
    pub(crate) fn new(buffer: Shared, range: Range<usize>) -> Self {
        let crc = crc32c(buffer.get(range.clone()).unwrap_or_default());
        Self { buffer, range, crc }
    }

    /// A whole buffer.
    pub(crate) fn whole(buffer: Shared) -> Self {
        let end = buffer.len();
        Self::new(buffer, 0..end)
    }

    /// Number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.range.len()
    }
}
