//! A client's request between its transport and the engine: who asked, what for.

use std::collections::HashMap;

use stor_replication::engine::{IoError, Request};
use stor_replication::ids::IoId;
use stor_replication::range::ByteRange;
use stor_transport::fuse::Unique;
use stor_transport::nbd::{Cookie, Request as BlockStatus};

use crate::data::Data;

/// Client requests under way at once; clients' further ones stay in their sockets. Four times the usual
/// deepest queue (128 of a loop device), and with [`MAX_BYTES`] the bound of this process's memory.
pub(super) const MAX_REQUESTS: usize = 512;
/// Bytes of writes under way at once. One request more than this is always let in.
pub(super) const MAX_BYTES: usize = 32 << 20;

/// Who is to be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asker {
    /// An NBD client.
    Nbd {
        client: u64,
        cookie: Cookie,
        what: Answer,
    },
    /// The kernel's FUSE.
    Fuse { unique: Unique, what: Answer },
    /// The kernel, on a ublk device.
    Ublk { tag: u16, what: Answer },
}

/// What the answer looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// Data from this offset.
    Read { offset: u64 },
    /// That this many bytes are written.
    Written { len: u32 },
    /// That it is done.
    Done,
    /// What is a hole, in answer to this.
    Extents(BlockStatus),
}

/// How a request went.
pub(super) type Outcome = Result<Option<Data>, IoError>;

#[derive(Debug)]
struct Asked {
    asker: Asker,
    /// Parts still under way: a large discard is cut up.
    parts: u32,
    bytes: usize,
    failed: Option<IoError>,
}

/// Requests under way.
#[derive(Debug, Default)]
pub(super) struct Requests {
    next: u64,
    parts: HashMap<IoId, u64>,
    asked: HashMap<u64, Asked>,
    next_asked: u64,
    bytes: usize,
}

impl Requests {
    /// No more may come in now.
    pub(super) fn is_full(&self) -> bool {
        self.parts.len() >= MAX_REQUESTS || self.bytes >= MAX_BYTES
    }

    /// Takes a request in, under one number, or several when it is longer than the engine takes at once.
    pub(super) fn add(&mut self, asker: Asker, request: Request<Data>) -> Vec<(IoId, Request<Data>)> {
        let parts = cut(request);
        let bytes = parts.iter().map(size).sum();
        let number = self.next_asked;
        self.next_asked += 1;
        let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        self.asked.insert(
            number,
            Asked {
                asker,
                parts: count,
                bytes,
                failed: None,
            },
        );
        self.bytes += bytes;
        parts
            .into_iter()
            .map(|part| {
                let io = IoId(self.next);
                self.next += 1;
                self.parts.insert(io, number);
                (io, part)
            })
            .collect()
    }

    /// A part ended; when it was the last, who is to be told what.
    pub(super) fn complete(&mut self, io: IoId, outcome: Outcome) -> Option<(Asker, Outcome)> {
        let number = self.parts.remove(&io)?;
        let asked = self.asked.get_mut(&number)?;
        asked.parts -= 1;
        let data = outcome.unwrap_or_else(|error| {
            asked.failed = Some(error);
            None
        });
        if asked.parts > 0 {
            return None;
        }
        let asked = self.asked.remove(&number)?;
        self.bytes -= asked.bytes;
        Some((asked.asker, asked.failed.map_or(Ok(data), Err)))
    }
}

fn size(request: &Request<Data>) -> usize {
    match request {
        Request::Read(range) => usize::try_from(range.len).unwrap_or(usize::MAX),
        Request::Write { data, .. } => data.len(),
        Request::Zero { .. } | Request::Flush | Request::Extents(_) => 0,
    }
}

/// Zeroing has no payload and may be asked for 4 GiB at once; the replicas take 32 MiB.
fn cut(request: Request<Data>) -> Vec<Request<Data>> {
    const STEP: u64 = 32 << 20;
    match request {
        Request::Zero { range, discard, fua } if range.len > STEP => (0..range.len.div_ceil(STEP))
            .map(|index| {
                let offset = range.offset + index * STEP;
                let range = ByteRange::new(offset, STEP.min(range.end() - offset));
                Request::Zero { range, discard, fua }
            })
            .collect(),
        other => vec![other],
    }
}
