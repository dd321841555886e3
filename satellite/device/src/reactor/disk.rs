//! A few threads that do disk operations for the epoll backend, where a file is always "ready" and blocks, and for
//! io_uring those that it has no operation for.
//!
//! Threads start when there is work for them and none idle, stay until the reactor is dropped, and report
//! through the reactor's [`Waker`].

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::{ReadWriteFlags, pread, pwrite, pwritev2};

use super::op::{OpId, Sync};
use super::waker::Waker;

/// Enough to keep one disk busy; the queue behind them is bounded by the reactor's limit of operations.
const THREADS: usize = 4;

/// Work for a thread. `start` and `fd` stay valid until the result was taken: see [`DiskPool::submit`].
pub(super) struct Job {
    pub(super) id: OpId,
    pub(super) fd: RawFd,
    pub(super) work: Work,
}

pub(super) enum Work {
    Read {
        start: *mut u8,
        len: usize,
        offset: u64,
    },
    Write {
        start: *const u8,
        len: usize,
        offset: u64,
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
    Discard {
        offset: u64,
        len: u64,
        chunk: u64,
    },
}

// SAFETY: the pointers lead into buffers that nobody touches until the result is taken (DiskPool::submit).
unsafe impl Send for Job {}

pub(super) struct DiskPool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    work_came: Condvar,
    work_ended: Condvar,
    waker: Waker,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    done: Vec<(OpId, io::Result<usize>)>,
    idle: usize,
    busy: usize,
    stopping: bool,
}

impl Shared {
    /// A thread that panicked holding the lock left nothing half done: every change is one push or pop.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DiskPool {
    pub(super) fn new(waker: Waker) -> Self {
        let shared = Shared {
            state: Mutex::default(),
            work_came: Condvar::new(),
            work_ended: Condvar::new(),
            waker,
        };
        Self {
            shared: Arc::new(shared),
            threads: Vec::new(),
        }
    }

    /// Queues a job. Whoever calls this keeps the job's descriptor open and its memory alive and untouched
    /// until [`DiskPool::take_done`] returned its result or [`DiskPool::stop`] said that all threads are through.
    pub(super) fn submit(&mut self, job: Job) -> io::Result<()> {
        let mut state = self.shared.lock();
        let starved = state.jobs.len() >= state.idle;
        if starved && self.threads.len() < THREADS {
            let shared = Arc::clone(&self.shared);
            let name = format!("stor-disk-{}", self.threads.len());
            match std::thread::Builder::new()
                .name(name)
                .stack_size(64 << 10)
                .spawn(move || serve(&shared))
            {
                Ok(thread) => self.threads.push(thread),
                Err(error) if self.threads.is_empty() => return Err(error),
                Err(error) => tracing::warn!(%error, "cannot start one more disk thread"),
            }
        }
        state.jobs.push_back(job);
        drop(state);
        self.shared.work_came.notify_one();
        Ok(())
    }

    /// Moves the results there are to `into`.
    pub(super) fn take_done(&self, into: &mut Vec<(OpId, io::Result<usize>)>) {
        if !self.threads.is_empty() {
            into.append(&mut self.shared.lock().done);
        }
    }

    /// Drops what is queued and waits for what is running; whether all threads let go in time.
    pub(super) fn stop(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        state.stopping = true;
        state.jobs.clear();
        self.shared.work_came.notify_all();
        while state.busy > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.work_ended.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a disk thread panicked");
            }
        }
        true
    }
}

fn serve(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        if let Some(job) = state.jobs.pop_front() {
            state.busy += 1;
            drop(state);
            let result = perform(&job);
            state = shared.lock();
            state.busy -= 1;
            state.done.push((job.id, result));
            shared.waker.wake();
            if state.stopping {
                shared.work_ended.notify_all();
            }
        } else if state.stopping {
            return;
        } else {
            state.idle += 1;
            // Endless on purpose: a thread without work has nothing else to do, and `stop` ends it.
            state = shared
                .work_came
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

fn perform(job: &Job) -> io::Result<usize> {
    // SAFETY: the descriptor stays open until our result is taken (DiskPool::submit).
    let fd = unsafe { BorrowedFd::borrow_raw(job.fd) };
    match job.work {
        Work::Read { start, len, offset } => {
            // SAFETY: initialised memory of `len` bytes that nobody else touches meanwhile (DiskPool::submit).
            let room = unsafe { std::slice::from_raw_parts_mut(start, len) };
            Ok(pread(fd, room, offset)?)
        }
        Work::Write {
            start,
            len,
            offset,
            sync,
        } => {
            // SAFETY: initialised memory of `len` bytes that nobody writes to meanwhile (DiskPool::submit).
            let data = unsafe { std::slice::from_raw_parts(start, len) };
            Ok(match sync {
                Sync::No => pwrite(fd, data, offset)?,
                Sync::Dsync => pwritev2(fd, &[io::IoSlice::new(data)], offset, ReadWriteFlags::DSYNC)?,
            })
        }
        Work::Datasync => Ok(fdatasync(fd).map(|()| 0)?),
        Work::PunchHole { offset, len } => Ok(fallocate(
            fd,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            offset,
            len,
        )
        .map(|()| 0)?),
        Work::Discard { offset, len, chunk } => crate::blockdev::free(fd, offset, len, chunk).map(|()| 0),
        Work::ZeroRange { offset, len } => Ok(fallocate(
            fd,
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            offset,
            len,
        )
        .map(|()| 0)?),
    }
}
