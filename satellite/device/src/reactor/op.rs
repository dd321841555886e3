//! Operations in progress: what each one needs, and what a result of the kernel means for it.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use socket2::SockAddr;

use super::piece::{Outgoing, Piece};
use crate::buffer::{Buf, Shared};

/// Whether a write is on stable storage when it completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// It may sit in a volatile cache.
    No,
    /// Data, and what is needed to find it, is on stable storage (`RWF_DSYNC`).
    Dsync,
}

/// A command of a device's driver (`IORING_OP_URING_CMD`) that names no memory: made only by this crate's modules
/// that know the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriverCommand {
    pub(super) code: u32,
    pub(super) bytes: [u8; 16],
}

impl DriverCommand {
    pub(crate) fn new(code: u32, bytes: [u8; 16]) -> Self {
        Self { code, bytes }
    }
}

/// What is to be done. Owns all memory the kernel is given, so that nothing can free it under way.
#[derive(Debug)]
pub(super) enum Kind {
    Accept,
    /// `started` is for epoll: the socket is connecting already.
    Connect {
        addr: Box<SockAddr>,
        started: bool,
    },
    Recv {
        buf: Buf,
        from: usize,
    },
    Send {
        out: Outgoing,
    },
    ReadAt {
        buf: Buf,
        offset: u64,
        len: usize,
        done: usize,
    },
    WriteAt {
        data: Shared,
        range: Range<usize>,
        offset: u64,
        done: usize,
        sync: Sync,
    },
    Datasync,
    PunchHole {
        offset: u64,
        len: u64,
    },
    ZeroRange {
        offset: u64,
        len: u64,
    },
    /// Of a block device that has no holes to punch: see [`crate::blockdev`].
    Discard {
        offset: u64,
        len: u64,
        chunk: u64,
    },
    ReadStream {
        buf: Buf,
    },
    WriteStream {
        out: Outgoing,
    },
    PollIn,
    Driver(DriverCommand),
}

impl Kind {
    /// Whether it may wait for the other side as long as it likes; such operations are not counted against
    /// those that move data.
    pub(super) fn is_idle(&self) -> bool {
        matches!(
            self,
            Self::Accept
                | Self::Connect { .. }
                | Self::Recv { .. }
                | Self::ReadStream { .. }
                | Self::PollIn
                | Self::Driver(_)
        )
    }

    /// What the caller gets back: its buffer, or an emptied vector of pieces for the reactor to reuse.
    pub(super) fn into_parts(self) -> (Option<Buf>, Option<Vec<Piece>>) {
        match self {
            Self::Recv { buf, .. } | Self::ReadAt { buf, .. } | Self::ReadStream { buf } => (Some(buf), None),
            Self::Send { out } | Self::WriteStream { out } => (None, Some(out.recycle())),
            _ => (None, None),
        }
    }
}

/// Names an operation for as long as it lives; a later one in the same place has another `seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpId {
    pub(super) index: u32,
    pub(super) seq: u32,
}

impl OpId {
    pub(super) fn to_bits(self) -> u64 {
        u64::from(self.seq) << 32 | u64::from(self.index)
    }

    #[expect(clippy::cast_possible_truncation, reason = "takes the two halves apart")]
    pub(super) fn from_bits(bits: u64) -> Self {
        Self {
            index: bits as u32,
            seq: (bits >> 32) as u32,
        }
    }
}

/// An operation and where it stands.
#[derive(Debug)]
pub(super) struct Op {
    pub(super) token: u64,
    /// The slot of the descriptor it works on.
    pub(super) slot: u32,
    /// Handed to the backend; otherwise it still waits in the reactor's queue.
    pub(super) started: bool,
    pub(super) kind: Kind,
}

/// What a system call returned.
#[derive(Debug)]
pub(super) enum Return {
    Count(usize),
    Socket(OwnedFd),
}

/// What follows from it.
#[derive(Debug)]
pub(super) enum Next {
    /// The same operation goes on with the rest.
    Again,
    Finished(io::Result<Return>),
}

impl Op {
    /// Takes the kernel's answer in.
    pub(super) fn advance(&mut self, result: io::Result<Return>) -> Next {
        let count = match result {
            Ok(Return::Count(count)) => count,
            Ok(socket) => return Next::Finished(Ok(socket)),
            Err(error) => return self.failed(error),
        };
        match &mut self.kind {
            Kind::Send { out } => {
                out.advance(count);
                match (out.left(), count) {
                    (0, _) => finished(out.total()),
                    (_, 0) => Next::Finished(Err(io::ErrorKind::WriteZero.into())),
                    _ => Next::Again,
                }
            }
            Kind::ReadAt { len, done, .. } => {
                *done += count;
                if count == 0 || *done >= *len {
                    finished(*done)
                } else {
                    Next::Again
                }
            }
            Kind::WriteAt { range, done, .. } => {
                *done += count;
                match (*done >= range.len(), count) {
                    (true, _) => finished(*done),
                    (false, 0) => Next::Finished(Err(io::ErrorKind::WriteZero.into())),
                    _ => Next::Again,
                }
            }
            _ => finished(count),
        }
    }

    fn failed(&self, error: io::Error) -> Next {
        let errno = Errno::from_io_error(&error);
        match (&self.kind, errno) {
            (Kind::Connect { .. }, _) => Next::Finished(Err(error)),
            (_, Some(Errno::INTR)) => Next::Again,
            // The end of a file that is no multiple of the sector: direct I/O cannot go on from there.
            (Kind::ReadAt { done, .. }, Some(Errno::INVAL)) if *done % 512 != 0 => finished(*done),
            _ => Next::Finished(Err(error)),
        }
    }
}

fn finished(count: usize) -> Next {
    Next::Finished(Ok(Return::Count(count)))
}

/// All operations, in places that are used again.
#[derive(Debug, Default)]
pub(super) struct Ops {
    places: Vec<Place>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place {
    seq: u32,
    op: Option<Op>,
}

impl Ops {
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, op: Op) -> OpId {
        if let Some(index) = self.free.pop()
            && let Some(place) = usize::try_from(index).ok().and_then(|at| self.places.get_mut(at))
        {
            place.seq = place.seq.wrapping_add(1) & SEQ_MASK;
            place.op = Some(op);
            return OpId {
                index,
                seq: place.seq,
            };
        }
        let index = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        self.places.push(Place { seq: 0, op: Some(op) });
        OpId { index, seq: 0 }
    }

    pub(super) fn get(&self, id: OpId) -> Option<&Op> {
        let place = self.places.get(id.index as usize)?;
        if place.seq == id.seq {
            place.op.as_ref()
        } else {
            None
        }
    }

    pub(super) fn get_mut(&mut self, id: OpId) -> Option<&mut Op> {
        let place = self.places.get_mut(id.index as usize)?;
        if place.seq == id.seq {
            place.op.as_mut()
        } else {
            None
        }
    }

    pub(super) fn remove(&mut self, id: OpId) -> Option<Op> {
        let place = self
            .places
            .get_mut(id.index as usize)
            .filter(|place| place.seq == id.seq)?;
        let op = place.op.take()?;
        self.free.push(id.index);
        Some(op)
    }

    /// The operations on one descriptor.
    pub(super) fn on_slot(&self, slot: u32) -> impl Iterator<Item = (OpId, &Op)> {
        self.iter().filter(move |(_, op)| op.slot == slot)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (OpId, &Op)> {
        self.places.iter().zip(0_u32..).filter_map(|(place, index)| {
            place.op.as_ref().map(|op| {
                (
                    OpId {
                        index,
                        seq: place.seq,
                    },
                    op,
                )
            })
        })
    }
}

/// Keeps the topmost bit of a packed id free for the backends' own markers.
const SEQ_MASK: u32 = 0x7fff_ffff;
