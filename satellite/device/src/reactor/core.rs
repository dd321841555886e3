//! What both backends share: the operations, the descriptors, the queue, and what a result leads to.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::sockopt;

use super::op::{Kind, Next, Op, OpId, Ops, Return};
use super::piece::{Outgoing, Piece};
use super::slot::{Fd, Slots};
use super::{Completion, MAX_MOVING, MAX_OPS, Outcome};
use crate::buffer::Buf;

/// Emptied vectors of pieces kept for later sends, and the largest kept.
const SPARE_VECTORS: usize = 32;
const SPARE_CAPACITY: usize = 64;

#[derive(Debug)]
pub(super) struct Core {
    pub(super) ops: Ops,
    pub(super) slots: Slots,
    /// Operations not yet given to the backend. May name some that are gone.
    ready: VecDeque<OpId>,
    /// Completions of operations that never reached the kernel.
    pub(super) early: Vec<Completion>,
    /// Started operations that move data.
    moving: usize,
    pub(super) spare: Vec<Vec<Piece>>,
}

impl Core {
    pub(super) fn new() -> Self {
        Self {
            ops: Ops::default(),
            slots: Slots::default(),
            ready: VecDeque::new(),
            early: Vec::new(),
            moving: 0,
            spare: Vec::new(),
        }
    }

    /// Queues an operation.
    pub(super) fn admit(&mut self, fd: Fd, token: u64, kind: Kind) {
        if self.ops.len() >= MAX_OPS {
            return self.refuse(token, kind, Errno::NOBUFS.into());
        }
        let Some(slot) = self.slots.get_mut(fd) else {
            return self.refuse(token, kind, Errno::BADF.into());
        };
        slot.ops += 1;
        let id = self.ops.insert(Op {
            token,
            slot: fd.index,
            started: false,
            kind,
        });
        self.ready.push_back(id);
    }

    /// Queues a send, unless one is in flight on this descriptor.
    pub(super) fn admit_send(&mut self, fd: Fd, token: u64, out: Outgoing) {
        if let Some(slot) = self.slots.get_mut(fd)
            && self.ops.len() < MAX_OPS
        {
            debug_assert!(!slot.sending, "a second send on one descriptor");
            if slot.sending {
                return self.refuse(token, Kind::Send { out }, Errno::BUSY.into());
            }
            slot.sending = true;
        }
        self.admit(fd, token, Kind::Send { out });
    }

    /// Answers an operation that cannot be started.
    pub(super) fn refuse(&mut self, token: u64, kind: Kind, error: io::Error) {
        let (buf, pieces) = kind.into_parts();
        self.keep(pieces);
        self.early(token, Err(error), buf);
    }

    pub(super) fn early(&mut self, token: u64, result: io::Result<Outcome>, buf: Option<Buf>) {
        self.early.push(Completion { token, result, buf });
    }

    /// The next operation for the backend, if it may start one now.
    pub(super) fn next(&mut self) -> Option<OpId> {
        while let Some(&id) = self.ready.front() {
            let Some(op) = self.ops.get_mut(id).filter(|op| !op.started) else {
                self.ready.pop_front();
                continue;
            };
            if !op.kind.is_idle() {
                if self.moving >= MAX_MOVING {
                    return None;
                }
                self.moving += 1;
            }
            op.started = true;
            self.ready.pop_front();
            return Some(id);
        }
        None
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Takes a result in: the operation goes on or its completion is added to `done`.
    pub(super) fn settle(&mut self, id: OpId, result: io::Result<Return>, done: &mut Vec<Completion>) {
        let Some(op) = self.ops.get_mut(id) else { return };
        if !op.kind.is_idle() {
            self.moving -= 1;
        }
        let result = match op.advance(result) {
            Next::Finished(result) => result,
            Next::Again if self.slots.at(op.slot).is_some_and(|slot| !slot.closing) => {
                op.started = false;
                // First in the queue: it is older than everything there.
                return self.ready.push_front(id);
            }
            Next::Again => Err(Errno::CANCELED.into()),
        };
        if let Some(op) = self.ops.remove(id) {
            let completion = self.complete(op, result);
            done.push(completion);
        }
    }

    /// Completes an operation that the kernel does not know (any more), because its descriptor is closed.
    pub(super) fn cancelled(&mut self, id: OpId) {
        let Some(op) = self.ops.remove(id) else { return };
        if op.started && !op.kind.is_idle() {
            self.moving -= 1;
        }
        let completion = self.complete(op, Err(Errno::CANCELED.into()));
        self.early.push(completion);
    }

    fn complete(&mut self, op: Op, result: io::Result<Return>) -> Completion {
        let mut closing = true;
        if let Some(slot) = self.slots.at(op.slot) {
            slot.ops -= 1;
            slot.sending &= !matches!(op.kind, Kind::Send { .. });
            closing = slot.closing;
        }
        let result = match (&op.kind, result) {
            (Kind::Connect { .. }, Ok(_)) if !closing => Ok(Outcome::Connected(self.slots.name(op.slot))),
            (Kind::Accept, Ok(Return::Socket(socket))) if !closing => {
                Ok(Outcome::Accepted(self.accepted(socket)))
            }
            // Nobody would look for the connection of a listener that is closed: it ends here.
            (Kind::Connect { .. } | Kind::Accept, Ok(_)) => Err(Errno::CANCELED.into()),
            (Kind::Connect { .. }, Err(error)) => {
                self.slots.retire(self.slots.name(op.slot));
                Err(error)
            }
            (Kind::Datasync | Kind::PunchHole { .. } | Kind::ZeroRange { .. } | Kind::PollIn, Ok(_)) => {
                Ok(Outcome::Done)
            }
            (_, Ok(Return::Count(count))) => Ok(Outcome::Count(count)),
            (_, Ok(Return::Socket(_))) => Ok(Outcome::Done),
            (_, Err(error)) => Err(error),
        };
        self.slots.release(op.slot);
        let (buf, pieces) = op.kind.into_parts();
        self.keep(pieces);
        Completion {
            token: op.token,
            result,
            buf,
        }
    }

    fn accepted(&mut self, socket: OwnedFd) -> Fd {
        // Fails on unix sockets, which have nothing to delay.
        if let Err(error) = sockopt::set_tcp_nodelay(&socket, true) {
            tracing::trace!(%error, "no TCP_NODELAY on an accepted connection");
        }
        self.slots.insert(socket)
    }

    fn keep(&mut self, pieces: Option<Vec<Piece>>) {
        if let Some(pieces) = pieces
            && pieces.capacity() <= SPARE_CAPACITY
            && pieces.capacity() > 0
            && self.spare.len() < SPARE_VECTORS
        {
            self.spare.push(pieces);
        }
    }
}
