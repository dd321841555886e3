//! Messages as bytes: every one must survive the wire as it is, and one damaged on the way must not be
//! believed.

use std::sync::Arc;

use stor_replication::body::Body;
use stor_replication::ids::Epoch;
use stor_replication::wire::{Framed, HEADER, Header, WireError, crc32c};

use super::disk::{BLOCK, Data};
use super::rng::Rng;

/// A message on its way, as bytes.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    header: [u8; HEADER],
    /// Of data, eight bytes stand for each 4 KiB.
    payload: Vec<u8>,
    /// The sender of data, which no real message tells: for the checks.
    data: Option<Epoch>,
}

impl Frame {
    pub(crate) fn new(header: &Header, body: &Body<Data>) -> Self {
        let (payload, length, data) = match body {
            Body::None => (Vec::new(), 0, None),
            Body::Data(data) => {
                let bytes = data.blocks.iter().flat_map(|block| block.to_le_bytes()).collect();
                (bytes, data.blocks.len() as u64 * BLOCK, Some(data.epoch))
            }
            Body::Bytes(bytes) => (bytes.clone(), bytes.len() as u64, None),
        };
        // As a shell does: no payload has no checksum.
        let crc = if payload.is_empty() { 0 } else { crc32c(&payload) };
        let header = header.encode(u32::try_from(length).unwrap(), crc);
        Self {
            header,
            payload,
            data,
        }
    }

    /// What the receiver makes of it.
    pub(crate) fn read(&self) -> Result<(Header, Body<Data>), WireError> {
        let framed = Framed::try_from(&self.header)?;
        if framed.payload == 0 {
            return Ok((framed.header, Body::None));
        }
        framed.check(&self.payload)?;
        let body = match self.data {
            Some(epoch) => {
                let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
                let blocks: Arc<[u64]> = self.payload.chunks(8).map(word).collect();
                Body::Data(Data { epoch, blocks })
            }
            None => Body::Bytes(self.payload.clone()),
        };
        Ok((framed.header, body))
    }

    /// One bit turns over.
    pub(crate) fn damage(&mut self, rng: &mut Rng) {
        // As often in the header as in the payload, whose length says nothing about real ones.
        let bytes = if self.payload.is_empty() || rng.chance(50) {
            &mut self.header[..]
        } else {
            &mut self.payload[..]
        };
        let at = rng.index(bytes.len());
        bytes[at] ^= 1 << rng.below(8);
    }
}
