//! Waking a reactor from another thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// Wakes a reactor's [`wait`](super::Reactor::wait) from any thread. Cheap to clone; calling it while a
/// wake-up is already under way costs no system call.
#[derive(Debug, Clone)]
pub struct Waker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    event: OwnedFd,
    /// A wake-up was written and not yet taken in.
    pending: AtomicBool,
}

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            inner: Arc::new(Inner {
                event,
                pending: AtomicBool::new(false),
            }),
        })
    }

    /// Makes the current or the next `wait` return.
    pub fn wake(&self) {
        if self.inner.pending.swap(true, Ordering::SeqCst) {
            return;
        }
        // The counter holds 2^64 - 2 wake-ups and we add one at a time, so that it cannot be full.
        if let Err(error) = rustix::io::write(&self.inner.event, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "cannot wake a reactor");
        }
    }

    /// To be called when the event was read, before the caller of `wait` looks for what it was woken for.
    pub(super) fn taken(&self) {
        self.inner.pending.store(false, Ordering::SeqCst);
    }

    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.inner.event.as_fd()
    }
}
