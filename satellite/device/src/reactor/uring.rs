//! The io_uring backend: one ring, one system call per wait.
//!
//! Memory safety rests on two rules: an entry points only into memory owned by its [`Op`](super::op::Op) or by
//! this struct, and an operation leaves [`Core`] only after its completion was reaped (or, when a ring cannot be drained
//! at the end, is leaked). The kernel reads message headers and addresses while it submits
//! (IORING_FEAT_SUBMIT_STABLE), but gathers live as long as their operation all the same.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::squeue::Entry;
use io_uring::types::{FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, types};
use nix::libc;

use super::core::Core;
use super::disk::{DiskPool, Job, Work};
use super::gather::Gathers;
use super::op::{Kind, OpId, Return, Sync};
use super::piece::{Outgoing, PARTS_AT_ONCE};
use super::ring::{GENERATIONS, Generation, check};
use super::waker::Waker;
use super::{Completion, ReactorError};

/// How long dropping waits for the kernel to let go of memory. Longer than any disk's own timeout.
const DRAIN_LIMIT: Duration = Duration::from_mins(1);

/// Marks of entries that are no operation; operations' ids keep the topmost bit free.
const WAKE: u64 = 1 << 63;
const CANCEL: u64 = WAKE | 1;

/// "Wait for readiness first": IORING_RECVSEND_POLL_FIRST.
const POLL_FIRST: u16 = 1;

const FALLOC_KEEP_SIZE: i32 = 0x01;
const FALLOC_PUNCH_HOLE: i32 = 0x02;
const FALLOC_ZERO_RANGE: i32 = 0x10;

pub(super) struct Uring {
    ring: IoUring,
    waker: Waker,
    /// Where the armed read puts the eventfd's counter. Nobody reads it.
    wake_count: Box<u64>,
    wake_armed: bool,
    cancels: VecDeque<OpId>,
    /// Entries in the kernel whose completion was not reaped yet.
    in_kernel: usize,
    poll_first: bool,
    reaped: Vec<(u64, i32, u32)>,
    gathers: Gathers,
    /// For what the ring has no operation for.
    disk: DiskPool,
    disk_done: Vec<(OpId, io::Result<usize>)>,
}

impl Uring {
    pub(super) fn new(waker: Waker) -> Result<Self, ReactorError> {
        let mut refusal = None;
        for generation in GENERATIONS {
            match generation.set_up() {
                Ok(ring) => return Self::with_ring(ring, generation == Generation::Deferring, waker),
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        let refusal = refusal.unwrap_or_else(|| io::ErrorKind::Unsupported.into());
        Err(ReactorError::SetUpRing(refusal))
    }

    fn with_ring(ring: IoUring, modern: bool, waker: Waker) -> Result<Self, ReactorError> {
        check(&ring)?;
        Ok(Self {
            ring,
            disk: DiskPool::new(waker.clone()),
            disk_done: Vec::new(),
            waker,
            wake_count: Box::new(0),
            wake_armed: false,
            cancels: VecDeque::new(),
            in_kernel: 0,
            poll_first: modern,
            reaped: Vec::new(),
            gathers: Gathers::default(),
        })
    }

    /// Asks for an operation to end early. Its completion comes in any case.
    pub(super) fn cancel(&mut self, id: OpId) -> bool {
        self.cancels.push_back(id);
        true
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
            self.queue(core, out)?;
            let block = out.len() == before;
            self.enter(block, left)?;
            let woken = self.reap(core, out);
            if woken || out.len() > before {
                return Ok(());
            }
            left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(());
            }
        }
    }

    /// Fills the submission queue, submitting when it runs full.
    fn queue(&mut self, core: &mut Core, out: &mut Vec<Completion>) -> io::Result<()> {
        if !self.wake_armed && self.room()? {
            let fd = types::Fd(self.waker.event().as_raw_fd());
            let entry = opcode::Read::new(fd, std::ptr::from_mut(&mut *self.wake_count).cast(), 8);
            self.push(&entry.build().user_data(WAKE));
            self.wake_armed = true;
        }
        while !self.cancels.is_empty() && self.room()? {
            if let Some(id) = self.cancels.pop_front() {
                self.push(&opcode::AsyncCancel::new(id.to_bits()).build().user_data(CANCEL));
            }
        }
        while core.has_ready() && self.room()? {
            let Some(id) = core.next() else { break };
            if let Some(job) = discard(core, id) {
                if let Err(error) = self.disk.submit(job) {
                    core.settle(id, Err(error), out);
                }
                continue;
            }
            match self.entry(core, id) {
                Some(entry) => self.push(&entry.user_data(id.to_bits())),
                None => core.settle(id, Err(io::ErrorKind::InvalidInput.into()), out),
            }
        }
        Ok(())
    }

    /// Whether one more entry fits, after submitting if need be.
    fn room(&mut self) -> io::Result<bool> {
        if !self.ring.submission().is_full() {
            return Ok(true);
        }
        tolerate(self.ring.submit())?;
        Ok(!self.ring.submission().is_full())
    }

    fn push(&mut self, entry: &Entry) {
        // SAFETY: all pointers in the entry lead into the operation's own memory, into its gather or into
        // `wake_count`; all of these live until the completion is reaped (see the module's description).
        let pushed = unsafe { self.ring.submission().push(entry) };
        debug_assert!(pushed.is_ok(), "room() was asked before");
        self.in_kernel += usize::from(pushed.is_ok());
    }

    /// Builds the entry of an operation.
    fn entry(&mut self, core: &mut Core, id: OpId) -> Option<Entry> {
        let op = core.ops.get_mut(id)?;
        let slot = core.slots.at(op.slot)?;
        let fd = types::Fd(slot.raw()?);
        Some(match &mut op.kind {
            Kind::Accept => {
                let none = std::ptr::null_mut();
                opcode::Accept::new(fd, none, std::ptr::null_mut())
                    .flags(libc::SOCK_CLOEXEC)
                    .build()
            }
            Kind::Connect { addr, .. } => opcode::Connect::new(fd, addr.as_ptr().cast(), addr.len()).build(),
            Kind::Recv { buf, from } => {
                let room = buf.get_mut(*from..).unwrap_or_default();
                let hint = if self.poll_first && !slot.more_to_read {
                    POLL_FIRST
                } else {
                    0
                };
                opcode::Recv::new(fd, room.as_mut_ptr(), length(room.len()))
                    .ioprio(hint)
                    .build()
            }
            Kind::Send { out } => self.send_entry(fd, id, out)?,
            Kind::ReadAt {
                buf,
                offset,
                len,
                done,
            } => {
                let room = buf.get_mut(*done..*len).unwrap_or_default();
                let at = *offset + *done as u64;
                opcode::Read::new(fd, room.as_mut_ptr(), length(room.len()))
                    .offset(at)
                    .build()
            }
            Kind::WriteAt {
                data,
                range,
                offset,
                done,
                sync,
            } => {
                let rest = data.get(range.start + *done..range.end).unwrap_or_default();
                let at = *offset + *done as u64;
                let flags = if *sync == Sync::Dsync { libc::RWF_DSYNC } else { 0 };
                opcode::Write::new(fd, rest.as_ptr(), length(rest.len()))
                    .offset(at)
                    .rw_flags(flags)
                    .build()
            }
            Kind::Datasync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            Kind::PunchHole { offset, len } => {
                let mode = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE;
                opcode::Fallocate::new(fd, *len)
                    .offset(*offset)
                    .mode(mode)
                    .build()
            }
            Kind::ZeroRange { offset, len } => {
                let mode = FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE;
                opcode::Fallocate::new(fd, *len)
                    .offset(*offset)
                    .mode(mode)
                    .build()
            }
            // It went to a thread.
            Kind::Discard { .. } => return None,
            Kind::ReadStream { buf } => {
                let (start, len) = (buf.as_mut_ptr(), length(buf.len()));
                opcode::Read::new(fd, start, len).offset(u64::MAX).build()
            }
            Kind::WriteStream { out } => {
                let gather = self.gathers.of(id)?;
                let count = gather.fill(out);
                opcode::Writev::new(fd, gather.parts.as_ptr(), length(count))
                    .offset(u64::MAX)
                    .build()
            }
            Kind::PollIn => opcode::PollAdd::new(fd, u32::from(libc::POLLIN.unsigned_abs())).build(),
            Kind::Driver(command) => opcode::UringCmd16::new(fd, command.code)
                .cmd(command.bytes)
                .build(),
        })
    }

    /// MSG_WAITALL lets newer kernels go on after a partial send by themselves.
    fn send_entry(&mut self, fd: types::Fd, id: OpId, out: &Outgoing) -> Option<Entry> {
        // With more to come right after, half a packet need not leave yet.
        let more = if out.parts() > PARTS_AT_ONCE {
            libc::MSG_MORE
        } else {
            0
        };
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL | more;
        if out.parts() == 1
            && let Some(part) = out.remaining().next()
        {
            return Some(
                opcode::Send::new(fd, part.as_ptr(), length(part.len()))
                    .flags(flags)
                    .build(),
            );
        }
        let gather = self.gathers.of(id)?;
        gather.fill(out);
        Some(
            opcode::SendMsg::new(fd, &raw const gather.message)
                .flags(flags.unsigned_abs())
                .build(),
        )
    }

    /// Submits and, if `block`, waits for a completion. No call at all when there is nothing to do either way.
    fn enter(&mut self, block: bool, timeout: Option<Duration>) -> io::Result<()> {
        let arrived = !self.ring.completion().is_empty();
        let want = usize::from(block && !arrived && timeout != Some(Duration::ZERO));
        if want == 0 {
            let queue = self.ring.submission();
            if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
                return Ok(());
            }
        }
        match timeout.filter(|_| want > 0) {
            Some(timeout) => {
                let limit = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&limit);
                tolerate(self.ring.submitter().submit_with_args(want, &args))
            }
            None => tolerate(self.ring.submit_and_wait(want)),
        }
    }

    /// Takes in all completions; answers whether somebody woke us.
    fn reap(&mut self, core: &mut Core, out: &mut Vec<Completion>) -> bool {
        let mut woken = false;
        let mut reaped = std::mem::take(&mut self.reaped);
        reaped.extend(
            self.ring
                .completion()
                .map(|entry| (entry.user_data(), entry.result(), entry.flags())),
        );
        for (mark, result, flags) in reaped.drain(..) {
            self.in_kernel -= 1;
            match mark {
                WAKE => {
                    self.wake_armed = false;
                    self.waker.taken();
                    woken = true;
                    self.take_discarded(core, out);
                }
                CANCEL => {}
                _ => self.completed(core, OpId::from_bits(mark), result, flags, out),
            }
        }
        self.reaped = reaped;
        woken
    }

    /// Takes in what the threads have done.
    fn take_discarded(&mut self, core: &mut Core, out: &mut Vec<Completion>) {
        let mut done = std::mem::take(&mut self.disk_done);
        self.disk.take_done(&mut done);
        for (id, result) in done.drain(..) {
            core.settle(id, result.map(Return::Count), out);
        }
        self.disk_done = done;
    }

    fn completed(&mut self, core: &mut Core, id: OpId, result: i32, flags: u32, out: &mut Vec<Completion>) {
        self.gathers.release(id);
        let Some(op) = core.ops.get_mut(id) else { return };
        let is_accept = matches!(op.kind, Kind::Accept);
        if matches!(op.kind, Kind::Recv { .. })
            && let Some(slot) = core.slots.at(op.slot)
        {
            slot.more_to_read = cqueue::sock_nonempty(flags);
        }
        let result = match usize::try_from(result) {
            Err(_) => Err(io::Error::from_raw_os_error(-result)),
            // SAFETY: a successful accept made this descriptor for us and nobody else knows it.
            Ok(_) if is_accept => Ok(Return::Socket(unsafe { OwnedFd::from_raw_fd(result) })),
            Ok(count) => Ok(Return::Count(count)),
        };
        core.settle(id, result, out);
    }

    /// Cancels everything and waits until the kernel has let go of all memory.
    pub(super) fn shut_down(&mut self, core: &mut Core) {
        self.cancels = core
            .ops
            .iter()
            .filter(|(_, op)| op.started)
            .map(|(id, _)| id)
            .collect();
        // A driver may keep a command until the ring is gone. The kernel has none of our memory with it.
        let waiting: Vec<_> = core
            .ops
            .iter()
            .filter(|(_, op)| !op.started || matches!(op.kind, Kind::Driver(_)))
            .map(|(id, _)| id)
            .collect();
        for id in waiting {
            core.cancelled(id);
        }
        for index in core.ops.iter().map(|(_, op)| op.slot).collect::<Vec<_>>() {
            // So that what was cut short is not taken up again.
            core.slots.retire(core.slots.name(index));
        }
        if !self.disk.stop(DRAIN_LIMIT) {
            return self.leak(core);
        }
        let mut discarded = Vec::new();
        self.take_discarded(core, &mut discarded);
        self.waker.wake();
        let deadline = Instant::now() + DRAIN_LIMIT;
        let mut armed = self.wake_armed;
        while core.ops.len() > 0 || armed {
            // Nothing is ready, so this queues cancellations only; the wake-up is not armed again.
            self.wake_armed = true;
            let outcome = self
                .queue(core, &mut discarded)
                .and_then(|()| self.enter(self.in_kernel > 0, Some(Duration::from_secs(1))));
            armed &= !self.reap(core, &mut discarded);
            discarded.clear();
            if outcome.is_err() || Instant::now() > deadline {
                return self.leak(core);
            }
        }
    }

    /// The last resort with a disk that never answers: memory is lost rather than written to after it was freed.
    fn leak(&mut self, core: &mut Core) {
        tracing::error!(
            operations = core.ops.len(),
            "the kernel did not end all operations: their buffers are left behind"
        );
        Box::leak(Box::new((
            std::mem::take(&mut core.ops),
            std::mem::take(&mut self.gathers),
            std::mem::take(&mut self.wake_count),
            self.waker.clone(),
        )));
    }
}

/// The operation, if it is one for a thread.
fn discard(core: &mut Core, id: OpId) -> Option<Job> {
    let op = core.ops.get_mut(id)?;
    let &mut Kind::Discard { offset, len, chunk } = &mut op.kind else {
        return None;
    };
    let fd = core.slots.at(op.slot)?.raw()?;
    let work = Work::Discard { offset, len, chunk };
    Some(Job { id, fd, work })
}

/// Errors of `io_uring_enter` after which everything is still in order: the time is up, a signal came, or the
/// kernel wants completions to be reaped first.
fn tolerate(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        },
    }
}

/// Lengths were checked to fit when the operation was admitted; a longer receive is simply shorter.
fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::super::{Fd, Piece};
    use super::*;
    use crate::Buf;

    /// Rings as older kernels make them behave like the newest, as far as one kernel can show it.
    #[test]
    fn every_generation_of_ring_carries_data() {
        for generation in GENERATIONS {
            let ring = match generation.set_up() {
                Ok(ring) => ring,
                Err(error) => {
                    stor_skip::skipped("uring", format_args!("{generation:?} rings: {error}"));
                    continue;
                }
            };
            let mut uring = Uring::with_ring(ring, false, Waker::new().unwrap()).unwrap();
            let mut core = Core::new();
            let (one, two) = UnixStream::pair().unwrap();
            let (one, two): (Fd, Fd) = (core.slots.insert(one.into()), core.slots.insert(two.into()));
            core.admit(
                two,
                1,
                Kind::Recv {
                    buf: Buf::new(100),
                    from: 0,
                },
            );
            core.admit_send(
                one,
                2,
                Outgoing::new(vec![Piece::copy(b"abc"), Piece::copy(b"def")]).unwrap(),
            );
            let mut out = Vec::new();
            while out.len() < 2 {
                uring
                    .wait(&mut core, Some(Duration::from_secs(30)), out.len(), &mut out)
                    .unwrap();
            }
            out.sort_by_key(|completion| completion.token);
            assert_eq!(&out[0].buf.as_ref().unwrap()[..6], b"abcdef", "{generation:?}");
            // Left in flight for the end.
            core.admit(
                two,
                3,
                Kind::Recv {
                    buf: Buf::new(100),
                    from: 0,
                },
            );
            uring.wait(&mut core, Some(Duration::ZERO), 2, &mut out).unwrap();
            uring.shut_down(&mut core);
            assert_eq!((core.ops.len(), out.len()), (0, 2), "{generation:?}");
        }
    }
}
