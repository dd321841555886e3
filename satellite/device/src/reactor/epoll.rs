//! The epoll backend: edge-triggered readiness for everything that has it, threads for disk files.
//!
//! An operation is tried at once; only when it would block does it wait for an edge. A descriptor joins the
//! epoll set on its first wait and stays there until it is closed.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags};

use super::core::Core;
use super::disk::{DiskPool, Job, Work};
use super::op::{Kind, Op, OpId, Return};
use super::piece::{Outgoing, PARTS_AT_ONCE};
use super::slot::Slot;
use super::waker::Waker;
use super::{Completion, ReactorError};

/// Events taken per call.
const EVENTS: usize = 256;
/// Waits answered from operations that were ready at once before other descriptors are looked at again, so
/// that one busy connection saves system calls without starving the rest.
const QUICK_TURNS: u32 = 16;
/// Mark of the waker's event; slots are 32 bits.
const WAKE: u64 = u64::MAX;
/// As with io_uring: how long dropping waits for disk operations.
const DRAIN_LIMIT: Duration = Duration::from_mins(1);

pub(super) struct Epoll {
    set: OwnedFd,
    waker: Waker,
    events: Vec<epoll::Event>,
    disk: DiskPool,
    disk_done: Vec<(OpId, io::Result<usize>)>,
    quick_turns: u32,
}

impl Epoll {
    pub(super) fn new(waker: Waker) -> Result<Self, ReactorError> {
        let set =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| ReactorError::SetUpEpoll(e.into()))?;
        epoll::add(
            &set,
            waker.event(),
            epoll::EventData::new_u64(WAKE),
            epoll::EventFlags::IN,
        )
        .map_err(|e| ReactorError::SetUpEpoll(e.into()))?;
        Ok(Self {
            set,
            disk: DiskPool::new(waker.clone()),
            waker,
            events: Vec::with_capacity(EVENTS),
            disk_done: Vec::new(),
            quick_turns: 0,
        })
    }

    /// Whether a started operation is in a thread's hands; anything else can be completed right away.
    pub(super) fn is_running(core: &Core, id: OpId) -> bool {
        core.ops.get(id).is_some_and(|op| is_disk(&op.kind))
    }

    /// Takes a descriptor that is being closed out of the set.
    pub(super) fn forget(&mut self, core: &mut Core, slot: u32) {
        let Some(slot) = core.slots.at(slot) else { return };
        slot.readiness.readers.clear();
        slot.readiness.writers.clear();
        if slot.readiness.watched
            && let Some(fd) = slot.fd()
            && let Err(error) = epoll::delete(&self.set, fd)
        {
            tracing::warn!(%error, "cannot take a descriptor out of the epoll set");
        }
        slot.readiness.watched = false;
    }

    pub(super) fn wait(
        &mut self,
        core: &mut Core,
        timeout: Option<Duration>,
        before: usize,
        out: &mut Vec<Completion>,
    ) -> io::Result<()> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut left = timeout;
        loop {
            while let Some(id) = core.next() {
                self.start(core, id, out);
            }
            let something = out.len() > before;
            if something && self.quick_turns < QUICK_TURNS {
                self.quick_turns += 1;
                return Ok(());
            }
            self.quick_turns = 0;
            let woken = self.collect(core, if something { Some(Duration::ZERO) } else { left }, out)?;
            if woken || out.len() > before {
                return Ok(());
            }
            left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(());
            }
        }
    }

    /// Waits for events and carries out what they allow; answers whether somebody woke us.
    fn collect(
        &mut self,
        core: &mut Core,
        timeout: Option<Duration>,
        out: &mut Vec<Completion>,
    ) -> io::Result<bool> {
        // A time too long for the kernel's type is as good as none.
        let limit = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        self.events.clear();
        match epoll::wait(&self.set, spare_capacity(&mut self.events), limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut woken = false;
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            if event.data.u64() == WAKE {
                woken = true;
                self.woken(core, out)?;
            } else if let Ok(slot) = u32::try_from(event.data.u64()) {
                Self::ready(core, slot, event.flags, out);
            }
        }
        self.events = events;
        Ok(woken)
    }

    fn woken(&mut self, core: &mut Core, out: &mut Vec<Completion>) -> io::Result<()> {
        match rustix::io::read(self.waker.event(), &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.waker.taken();
        let mut done = std::mem::take(&mut self.disk_done);
        self.disk.take_done(&mut done);
        for (id, result) in done.drain(..) {
            core.settle(id, result.map(Return::Count), out);
        }
        self.disk_done = done;
        Ok(())
    }

    /// Carries on with the operations an edge was awaited for, as far as it goes.
    fn ready(core: &mut Core, index: u32, flags: epoll::EventFlags, out: &mut Vec<Completion>) {
        use epoll::EventFlags as Flag;
        let Some(slot) = core.slots.at(index) else { return };
        let ended = flags.intersects(Flag::ERR | Flag::HUP);
        slot.readiness.hung_up |= ended || flags.contains(Flag::RDHUP);
        slot.readiness.readable |= ended || flags.intersects(Flag::IN | Flag::RDHUP);
        slot.readiness.writable |= ended || flags.contains(Flag::OUT);
        for reading in [true, false] {
            while let Some(slot) = core.slots.at(index)
                && let Some(id) = slot.readiness.first(reading)
            {
                let Some(result) = Self::attempt(core, id) else {
                    break;
                };
                if let Some(slot) = core.slots.at(index) {
                    slot.readiness.queue(reading).pop_front();
                }
                core.settle(id, result, out);
            }
        }
    }

    /// Begins an operation: a disk operation goes to a thread, everything else is tried.
    fn start(&mut self, core: &mut Core, id: OpId, out: &mut Vec<Completion>) {
        let Some(op) = core.ops.get_mut(id) else { return };
        let Some(slot) = core.slots.at(op.slot) else {
            return;
        };
        if let Some(work) = disk_work(op) {
            let queued = match slot.raw() {
                Some(fd) => self.disk.submit(Job { id, fd, work }),
                None => Err(Errno::BADF.into()),
            };
            if let Err(error) = queued {
                core.settle(id, Err(error), out);
            }
            return;
        }
        let reading = is_reading(&op.kind);
        // Behind others of its kind it must wait its turn, or bytes would come in the wrong order.
        if slot.readiness.queue(reading).is_empty()
            && let Some(result) = Self::attempt(core, id)
        {
            return core.settle(id, result, out);
        }
        if let Err(error) = self.park(core, id, reading) {
            core.settle(id, Err(error), out);
        }
    }

    /// Lets an operation wait for the next edge.
    fn park(&mut self, core: &mut Core, id: OpId, reading: bool) -> io::Result<()> {
        use epoll::EventFlags as Flag;
        let Some(op) = core.ops.get_mut(id) else {
            return Ok(());
        };
        let (index, Some(slot)) = (op.slot, core.slots.at(op.slot)) else {
            return Ok(());
        };
        if !slot.readiness.watched
            && let Some(fd) = slot.fd()
        {
            let edges = Flag::IN | Flag::OUT | Flag::RDHUP | Flag::ET;
            epoll::add(&self.set, fd, epoll::EventData::new_u64(u64::from(index)), edges)?;
            slot.readiness.watched = true;
        }
        slot.readiness.queue(reading).push_back(id);
        Ok(())
    }

    /// Tries an operation without blocking; `None` if it would.
    fn attempt(core: &mut Core, id: OpId) -> Option<io::Result<Return>> {
        let op = core.ops.get_mut(id)?;
        let slot = core.slots.at(op.slot)?;
        let reading = is_reading(&op.kind);
        if !slot.readiness.may_try(reading) {
            return None;
        }
        let asked = if let Kind::Recv { buf, from } = &op.kind {
            buf.len() - from
        } else {
            0
        };
        let result = loop {
            match perform(op, slot) {
                Err(Errno::INTR) => {}
                result => break result,
            }
        };
        match result {
            Err(Errno::AGAIN | Errno::INPROGRESS) => {
                slot.readiness.exhausted(reading);
                None
            }
            // A short receive emptied the socket: the next one need not try before the next edge.
            Ok(Return::Count(count))
                if count < asked && !slot.readiness.hung_up && slot.readiness.watched =>
            {
                slot.readiness.exhausted(reading);
                Some(Ok(Return::Count(count)))
            }
            result => Some(result.map_err(Into::into)),
        }
    }

    /// Waits until no thread touches our buffers any more.
    pub(super) fn shut_down(&mut self, core: &mut Core) {
        if !self.disk.stop(DRAIN_LIMIT) {
            tracing::error!("a disk operation does not end: its buffer is left behind");
            Box::leak(Box::new((
                std::mem::take(&mut core.ops),
                std::mem::take(&mut core.slots),
            )));
        }
    }
}

fn is_disk(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::ReadAt { .. }
            | Kind::WriteAt { .. }
            | Kind::Datasync
            | Kind::PunchHole { .. }
            | Kind::ZeroRange { .. }
            | Kind::Discard { .. }
    )
}

fn is_reading(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Accept | Kind::Recv { .. } | Kind::ReadStream { .. } | Kind::PollIn
    )
}

fn disk_work(op: &mut Op) -> Option<Work> {
    Some(match &mut op.kind {
        Kind::ReadAt {
            buf,
            offset,
            len,
            done,
        } => {
            let room = buf.get_mut(*done..*len).unwrap_or_default();
            Work::Read {
                start: room.as_mut_ptr(),
                len: room.len(),
                offset: *offset + *done as u64,
            }
        }
        Kind::WriteAt {
            data,
            range,
            offset,
            done,
            sync,
        } => {
            let rest = data.get(range.start + *done..range.end).unwrap_or_default();
            let offset = *offset + *done as u64;
            Work::Write {
                start: rest.as_ptr(),
                len: rest.len(),
                offset,
                sync: *sync,
            }
        }
        Kind::Datasync => Work::Datasync,
        Kind::PunchHole { offset, len } => Work::PunchHole {
            offset: *offset,
            len: *len,
        },
        Kind::ZeroRange { offset, len } => Work::ZeroRange {
            offset: *offset,
            len: *len,
        },
        Kind::Discard { offset, len, chunk } => Work::Discard {
            offset: *offset,
            len: *len,
            chunk: *chunk,
        },
        _ => return None,
    })
}

/// The system call of an operation. Never one of a disk.
fn perform(op: &mut Op, slot: &Slot) -> Result<Return, Errno> {
    let fd = slot.fd().ok_or(Errno::BADF)?;
    match &mut op.kind {
        Kind::Accept => {
            net::accept_with(fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).map(Return::Socket)
        }
        Kind::Connect { addr, started } => {
            if std::mem::replace(started, true) {
                // Woken after EINPROGRESS: how it ended stands in the socket.
                if !poll_now(fd, PollFlags::OUT)? {
                    return Err(Errno::AGAIN);
                }
                net::sockopt::socket_error(fd)??;
            } else {
                net::connect(fd, &addr.as_socket().ok_or(Errno::AFNOSUPPORT)?)?;
            }
            Ok(Return::Count(0))
        }
        Kind::Recv { buf, from } => {
            let room = buf.get_mut(*from..).unwrap_or_default();
            net::recv(fd, room, RecvFlags::empty()).map(|(count, _)| Return::Count(count))
        }
        Kind::Send { out } => send(fd, out).map(Return::Count),
        Kind::ReadStream { buf } => rustix::io::read(fd, &mut **buf).map(Return::Count),
        Kind::WriteStream { out } => {
            let mut parts = [IoSlice::new(&[]); PARTS_AT_ONCE];
            let count = out.slices(&mut parts);
            rustix::io::writev(fd, parts.get(..count).unwrap_or_default()).map(Return::Count)
        }
        Kind::PollIn => {
            if poll_now(fd, PollFlags::IN)? {
                Ok(Return::Count(0))
            } else {
                Err(Errno::AGAIN)
            }
        }
        _ => Err(Errno::INVAL),
    }
}

fn send(fd: impl AsFd, out: &Outgoing) -> Result<usize, Errno> {
    let mut parts = [IoSlice::new(&[]); PARTS_AT_ONCE];
    let count = out.slices(&mut parts);
    let parts = parts.get(..count).unwrap_or_default();
    net::sendmsg(
        fd,
        parts,
        &mut SendAncillaryBuffer::default(),
        SendFlags::NOSIGNAL,
    )
}

fn poll_now(fd: impl AsFd, flags: PollFlags) -> Result<bool, Errno> {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    Ok(poll(&mut [PollFd::new(&fd, flags)], Some(&now))? > 0)
}
