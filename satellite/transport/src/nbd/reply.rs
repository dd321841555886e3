//! Replies of the transmission phase.
//!
//! Headers are arrays, so that a reply with data is one `writev` of the header and the caller's buffer.
//! [`success`], [`refusal`] and [`failure`] choose between simple and structured by what was negotiated; the
//! others are for callers that know.

use zerocopy::byteorder::network_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::negotiation::{ContextId, Negotiated};
use super::request::{Command, Cookie, ErrorCode, Refusal, Request};

/// Most extents in one reply to `BLOCK_STATUS`. A shorter reply than asked for is allowed, and clients ask on.
pub const MAX_EXTENTS: usize = 4096;

/// Longest message in an error chunk.
const MAX_MESSAGE: usize = 1024;

const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668E_33EF;

const NONE: u16 = 0;
const OFFSET_DATA: u16 = 1;
const OFFSET_HOLE: u16 = 2;
const BLOCK_STATUS: u16 = 5;
const ERROR: u16 = (1 << 15) | 1;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Simple {
    magic: U32,
    error: U32,
    cookie: U64,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Chunk {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    length: U32,
}

impl Chunk {
    fn new(cookie: Cookie, kind: u16, done: bool, length: u32) -> Self {
        Self {
            magic: STRUCTURED_REPLY_MAGIC.into(),
            flags: u16::from(done).into(),
            kind: kind.into(),
            cookie: cookie.0.into(),
            length: length.into(),
        }
    }
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct DataChunk {
    chunk: Chunk,
    offset: U64,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct HoleChunk {
    chunk: Chunk,
    offset: U64,
    length: U32,
}

/// A simple reply, with or without an error. A read's data follows, when there was no error.
pub fn simple(cookie: Cookie, error: Option<ErrorCode>) -> [u8; 16] {
    let error = error.map_or(0, |error| error as u32);
    let wire = Simple {
        magic: SIMPLE_REPLY_MAGIC.into(),
        error: error.into(),
        cookie: cookie.0.into(),
    };
    zerocopy::transmute!(wire)
}

/// `OFFSET_DATA`: `length` bytes of data follow, not zero and not beyond the request. `done`: nothing more comes
/// for this request, and nothing can fail any more.
pub fn read_data(cookie: Cookie, done: bool, offset: u64, length: u32) -> [u8; 28] {
    // A chunk has at most the export's largest payload, far from the limit.
    let chunk = Chunk::new(cookie, OFFSET_DATA, done, length.saturating_add(8));
    zerocopy::transmute!(DataChunk {
        chunk,
        offset: offset.into()
    })
}

/// `OFFSET_HOLE`: `length` bytes of zeroes, not zero and not beyond the request.
pub fn hole(cookie: Cookie, done: bool, offset: u64, length: u32) -> [u8; 32] {
    let chunk = Chunk::new(cookie, OFFSET_HOLE, done, 12);
    zerocopy::transmute!(HoleChunk {
        chunk,
        offset: offset.into(),
        length: length.into()
    })
}

/// `NONE`: the request is done. As all chunks, only where structured replies were negotiated.
pub fn none(cookie: Cookie) -> [u8; 20] {
    zerocopy::transmute!(Chunk::new(cookie, NONE, true, 0))
}

/// Done; for everything that has no data in its reply. A simple reply even where structured ones were
/// negotiated, which the protocol allows and which is four bytes less.
pub fn success(cookie: Cookie) -> [u8; 16] {
    simple(cookie, None)
}

/// Appends the reply to a request that [`Request::check`] refused.
pub fn refusal(negotiated: &Negotiated, cookie: Cookie, refusal: Refusal, out: &mut Vec<u8>) {
    failure(negotiated, cookie, refusal.error, refusal.why, out);
}

/// Appends the reply to a request that failed. `why` is for people and is lost in a simple reply.
pub fn failure(negotiated: &Negotiated, cookie: Cookie, error: ErrorCode, why: &str, out: &mut Vec<u8>) {
    if !negotiated.structured {
        out.extend(simple(cookie, Some(error)));
        return;
    }
    let why = why
        .get(..why.floor_char_boundary(MAX_MESSAGE))
        .unwrap_or_default();
    // Fits: cut to MAX_MESSAGE just above.
    let length = u16::try_from(why.len()).unwrap_or(0);
    out.extend_from_slice(Chunk::new(cookie, ERROR, true, 6 + u32::from(length)).as_bytes());
    out.extend((error as u32).to_be_bytes());
    out.extend(length.to_be_bytes());
    out.extend_from_slice(why.as_bytes());
}

/// What `base:allocation` says of an extent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum ExtentState {
    /// Allocated, or not known.
    Data = 0,
    /// Not allocated; reads as zeroes.
    Hole = 0b11,
    /// Allocated; reads as zeroes.
    Zero = 0b10,
}

/// A part of the range a `BLOCK_STATUS` request asks for; they follow each other from its offset on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Length, bytes.
    pub length: u64,
    /// What it is.
    pub state: ExtentState,
}

/// Appends the reply to a `BLOCK_STATUS` request. Extents of the same state are joined, the rest is cut at the end of
/// the request, at [`MAX_EXTENTS`], and at the first one when the client asked for one. Without any extent, the
/// whole range is said to be data, which is always true enough.
pub fn block_status(
    context: ContextId,
    request: &Request,
    extents: impl IntoIterator<Item = Extent>,
    out: &mut Vec<u8>,
) {
    let most = if request.command == (Command::BlockStatus { req_one: true }) {
        1
    } else {
        MAX_EXTENTS
    };
    let mut left = request.length;
    let mut descriptors: Vec<(u32, ExtentState)> = Vec::new();
    for extent in extents {
        let length = u32::try_from(extent.length).unwrap_or(u32::MAX).min(left);
        if length == 0 {
            continue;
        }
        if let Some((before, _)) = descriptors.last_mut().filter(|(_, state)| *state == extent.state) {
            *before += length;
        } else if descriptors.len() == most {
            break;
        } else {
            descriptors.push((length, extent.state));
        }
        left -= length;
        if left == 0 {
            break;
        }
    }
    if descriptors.is_empty() {
        descriptors.push((request.length, ExtentState::Data));
    }
    // Fits: at most MAX_EXTENTS.
    let count = u32::try_from(descriptors.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(Chunk::new(request.cookie, BLOCK_STATUS, true, 4 + 8 * count).as_bytes());
    out.extend(context.0.to_be_bytes());
    for (length, state) in descriptors {
        out.extend(length.to_be_bytes());
        out.extend((state as u32).to_be_bytes());
    }
}
