//! One thread's sockets and disk files behind one queue of completions.
//!
//! A [`Reactor`] takes operations, each with a token of the caller, and hands back a [`Completion`] for every
//! one of them, success or not, exactly once. Nothing is submitted before [`Reactor::wait`], which does it with
//! one system call together with the waiting. Two backends behave the same: io_uring, and epoll with a few
//! threads for the disk where io_uring is not allowed (container seccomp profiles, RHEL 9).
//!
//! Operations own their memory until they complete, so nothing can be freed under the kernel's hands.
//! Deadlines of operations are the caller's business: close the descriptor and its operations come back.
//! Order between operations is not promised; whoever needs it waits for the first before starting the second.

mod core;
mod disk;
mod epoll;
mod gather;
mod op;
mod piece;
mod ring;
mod slot;
mod uring;
mod waker;

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
use thiserror::Error;

use self::core::Core;
use self::epoll::Epoll;
use self::op::Kind;
use self::piece::Outgoing;
use self::slot::{Nature, Slots, set_nonblocking};
use self::uring::Uring;
use crate::buffer::{Buf, Shared};

pub use self::op::{DriverCommand, Sync};
pub use self::piece::{INLINE_MAX, Inline, Piece};
pub use self::slot::Fd;
pub use self::waker::Waker;

/// Operations that move data and are under way at the same time; more wait their turn inside.
pub const MAX_MOVING: usize = 4096;

/// Operations accepted altogether, waiting and under way; one more completes with `ENOBUFS`.
pub const MAX_OPS: usize = 65_536;

/// Which backend to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// io_uring where the kernel has what we need, epoll otherwise.
    #[default]
    Auto,
    /// io_uring or an error.
    IoUring,
    /// epoll and a few threads for disk files.
    Epoll,
}

/// Why there is no reactor.
#[derive(Debug, Error)]
pub enum ReactorError {
    /// The kernel refuses to make a ring.
    #[error(
        "cannot set up io_uring: {0}; allow it (sysctl kernel.io_uring_disabled=0, the container's seccomp \
         profile) or use the epoll backend"
    )]
    SetUpRing(#[source] io::Error),
    /// The kernel is too old.
    #[error("this kernel's io_uring lacks {0}; use the epoll backend or a kernel of 5.15 or later")]
    RingLacks(&'static str),
    /// No epoll descriptor.
    #[error("cannot set up epoll: {0}")]
    SetUpEpoll(#[source] io::Error),
    /// No eventfd for wake-ups.
    #[error("cannot make an eventfd to be woken by: {0}")]
    MakeWaker(#[source] io::Error),
}

/// Whether io_uring can be used here, or why not: what [`Choice::Auto`] goes by.
pub fn io_uring_available() -> Result<(), ReactorError> {
    let waker = Waker::new().map_err(ReactorError::MakeWaker)?;
    Uring::new(waker).map(drop)
}

/// What an operation achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Bytes received, sent, read or written.
    Count(usize),
    /// A connection came in; it is registered under this name.
    Accepted(Fd),
    /// The connection stands.
    Connected(Fd),
    /// Done, with nothing to count.
    Done,
}

/// The end of an operation.
#[derive(Debug)]
pub struct Completion {
    /// As the caller gave it.
    pub token: u64,
    /// What came of it; `ECANCELED` if its descriptor was closed, `EBADF` if it had been closed before.
    pub result: io::Result<Outcome>,
    /// The buffer of a receive or read, on success and failure alike.
    pub buf: Option<Buf>,
}

enum Backend {
    Uring(Box<Uring>),
    Epoll(Box<Epoll>),
}

/// See the module's description. Belongs to the thread that made it.
pub struct Reactor {
    core: Core,
    backend: Backend,
    waker: Waker,
    fallback: Option<ReactorError>,
}

impl std::fmt::Debug for Reactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reactor")
            .field("backend", &self.backend())
            .field("operations", &self.core.ops.len())
            .finish_non_exhaustive()
    }
}

impl Reactor {
    /// Sets the backend up. Call it on the thread that will use the reactor: the ring is bound to it.
    pub fn new(choice: Choice) -> Result<Self, ReactorError> {
        let waker = Waker::new().map_err(ReactorError::MakeWaker)?;
        let mut fallback = None;
        let ring = match choice {
            Choice::Epoll => None,
            Choice::IoUring => Some(Uring::new(waker.clone())?),
            Choice::Auto => match Uring::new(waker.clone()) {
                Ok(ring) => Some(ring),
                Err(error) => {
                    tracing::info!(%error, "using epoll instead of io_uring");
                    fallback = Some(error);
                    None
                }
            },
        };
        let backend = match ring {
            Some(ring) => Backend::Uring(Box::new(ring)),
            None => Backend::Epoll(Box::new(Epoll::new(waker.clone())?)),
        };
        Ok(Self {
            core: Core::new(),
            backend,
            waker,
            fallback,
        })
    }

    /// `io_uring` or `epoll`.
    pub fn backend(&self) -> &'static str {
        match self.backend {
            Backend::Uring(_) => "io_uring",
            Backend::Epoll(_) => "epoll",
        }
    }

    /// Why io_uring was not taken although it was asked for first.
    pub fn fallback(&self) -> Option<&ReactorError> {
        self.fallback.as_ref()
    }

    /// Operations accepted whose completion was not yet handed out.
    pub fn in_flight(&self) -> usize {
        self.core.ops.len() + self.core.early.len()
    }

    /// What other threads wake [`Reactor::wait`] with.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Takes a descriptor over. Its blocking mode is set as the backend needs it, which is shared with every
    /// other descriptor of the same open file.
    pub fn register(&mut self, fd: OwnedFd) -> io::Result<Fd> {
        let nature = Nature::of(&fd)?;
        match (nature, &self.backend) {
            (Nature::Disk, _) => {}
            // Older kernels answer EAGAIN to an accept on a non-blocking listener instead of waiting.
            (Nature::Socket, Backend::Uring(_)) => set_nonblocking(&fd, false)?,
            // Without it io_uring would hand the read to a worker thread that blocks in it.
            _ => set_nonblocking(&fd, true)?,
        }
        Ok(self.core.slots.insert(fd))
    }

    /// The descriptor behind a name, to ask or set what sockets and files have (addresses, buffer sizes).
    /// Reading from it or changing its blocking mode would disturb the reactor.
    pub fn descriptor(&mut self, fd: Fd) -> Option<BorrowedFd<'_>> {
        self.core.slots.get_mut(fd).and_then(|slot| slot.fd())
    }

    /// Gives a descriptor up. Its name is stale from now on; operations under way on it are cancelled and
    /// complete (`ECANCELED` unless they were done already), then it is closed. A stale name is ignored.
    pub fn close(&mut self, fd: Fd) {
        if !self.core.slots.retire(fd) {
            return;
        }
        let on_it: Vec<_> = self
            .core
            .ops
            .on_slot(fd.index)
            // A driver's command names no memory, and may not end before its descriptor is closed.
            .map(|(id, op)| (id, op.started && !matches!(op.kind, Kind::Driver(_))))
            .collect();
        for (id, started) in on_it {
            let under_way = started
                && match &mut self.backend {
                    Backend::Uring(ring) => ring.cancel(id),
                    Backend::Epoll(_) => Epoll::is_running(&self.core, id),
                };
            if !under_way {
                self.core.cancelled(id);
            }
        }
        if let Backend::Epoll(epoll) = &mut self.backend {
            epoll.forget(&mut self.core, fd.index);
        }
        self.core.slots.release(fd.index);
    }

    /// Waits for one connection on a listening socket. TCP connections get TCP_NODELAY.
    pub fn accept(&mut self, fd: Fd, token: u64) {
        self.core.admit(fd, token, Kind::Accept);
    }

    /// Connects over TCP, with TCP_NODELAY. The name can be closed to give up; it is usable once the
    /// completion came, and goes stale if that is an error.
    pub fn connect(&mut self, addr: SocketAddr, token: u64) -> Fd {
        match self.tcp_socket(addr) {
            Ok(fd) => {
                self.core.admit(
                    fd,
                    token,
                    Kind::Connect {
                        addr: Box::new(addr.into()),
                        started: false,
                    },
                );
                fd
            }
            Err(error) => {
                self.core.refuse(token, Kind::PollIn, error);
                Slots::DEAD
            }
        }
    }

    fn tcp_socket(&mut self, addr: SocketAddr) -> io::Result<Fd> {
        let family = if addr.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let mut flags = SocketFlags::CLOEXEC;
        if matches!(self.backend, Backend::Epoll(_)) {
            flags |= SocketFlags::NONBLOCK;
        }
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        Ok(self.core.slots.insert(socket))
    }

    /// Receives into `buf[from..]`, as much as is there but at least one byte; 0 is the end of the stream.
    pub fn recv(&mut self, fd: Fd, buf: Buf, from: usize, token: u64) {
        let kind = Kind::Recv { buf, from };
        match &kind {
            Kind::Recv { buf, .. } if from < buf.len() => self.core.admit(fd, token, kind),
            _ => self.core.refuse(token, kind, invalid()),
        }
    }

    /// Sends all pieces in order; completes with their total length when the last byte is in the socket's
    /// buffer. One send per descriptor at a time: a second one is refused with `EBUSY`.
    pub fn send(&mut self, fd: Fd, pieces: Vec<Piece>, token: u64) {
        match Outgoing::new(pieces) {
            Some(out) if out.left() == 0 => self.core.early(token, Ok(Outcome::Count(0)), None),
            Some(out) => self.core.admit_send(fd, token, out),
            None => self.core.refuse(token, Kind::PollIn, invalid()),
        }
    }

    /// An empty vector for a send, recycled from an earlier one.
    pub fn pieces(&mut self) -> Vec<Piece> {
        self.core.spare.pop().unwrap_or_default()
    }

    /// Reads `len` bytes of a file into the start of `buf`; fewer only at the end of the file.
    pub fn read_at(&mut self, fd: Fd, buf: Buf, offset: u64, len: usize, token: u64) {
        let fits = len <= buf.len() && fits_in_file(offset, len);
        let kind = Kind::ReadAt {
            buf,
            offset,
            len,
            done: 0,
        };
        if fits {
            self.core.admit(fd, token, kind);
        } else {
            self.core.refuse(token, kind, invalid());
        }
    }

    /// Writes a range of a buffer to a file, all of it.
    pub fn write_at(
        &mut self,
        fd: Fd,
        data: Shared,
        range: Range<usize>,
        offset: u64,
        sync: Sync,
        token: u64,
    ) {
        let fits = data.get(range.clone()).is_some() && fits_in_file(offset, range.len());
        let kind = Kind::WriteAt {
            data,
            range,
            offset,
            done: 0,
            sync,
        };
        if fits {
            self.core.admit(fd, token, kind);
        } else {
            self.core.refuse(token, kind, invalid());
        }
    }

    /// Puts all completed writes of a file on stable storage.
    pub fn datasync(&mut self, fd: Fd, token: u64) {
        self.core.admit(fd, token, Kind::Datasync);
    }

    /// Frees a range of a file; it reads as zeroes afterwards and the size stays.
    pub fn punch_hole(&mut self, fd: Fd, offset: u64, len: u64, token: u64) {
        self.core.admit(fd, token, Kind::PunchHole { offset, len });
    }

    /// Frees a range of a block device whose discarded chunks read as zeroes (a thin volume): whole chunks of
    /// `chunk` bytes are given back, what is left of others is overwritten with zeroes. `chunk` 0: all of it is.
    pub fn discard(&mut self, fd: Fd, offset: u64, len: u64, chunk: u64, token: u64) {
        self.core.admit(fd, token, Kind::Discard { offset, len, chunk });
    }

    /// Makes a range of a file read as zeroes and keeps it allocated; the size stays. Completes with
    /// `EOPNOTSUPP` where the file system cannot (block devices and punching a hole always can).
    pub fn zero_range(&mut self, fd: Fd, offset: u64, len: u64, token: u64) {
        self.core.admit(fd, token, Kind::ZeroRange { offset, len });
    }

    /// One plain read into `buf`, for /dev/fuse, eventfds and pipes; waits until there is something.
    pub fn read_stream(&mut self, fd: Fd, buf: Buf, token: u64) {
        self.core.admit(fd, token, Kind::ReadStream { buf });
    }

    /// All pieces in ONE `writev`, as /dev/fuse wants it; refused with `EINVAL` if there are more than
    /// 64 of them. Completes with what that call returned.
    pub fn write_stream(&mut self, fd: Fd, pieces: Vec<Piece>, token: u64) {
        match Outgoing::new(pieces) {
            Some(out) if (1..=piece::PARTS_AT_ONCE).contains(&out.parts()) => {
                self.core.admit(fd, token, Kind::WriteStream { out });
            }
            _ => self.core.refuse(token, Kind::PollIn, invalid()),
        }
    }

    /// Completes when the descriptor has something to read or was hung up.
    pub fn poll_in(&mut self, fd: Fd, token: u64) {
        self.core.admit(fd, token, Kind::PollIn);
    }

    /// Gives a driver a command; completes with what it answers, which may be long after. Refused with
    /// `EOPNOTSUPP` where the backend is not io_uring.
    pub fn driver(&mut self, fd: Fd, command: DriverCommand, token: u64) {
        let kind = Kind::Driver(command);
        match self.backend {
            Backend::Uring(_) => self.core.admit(fd, token, kind),
            Backend::Epoll(_) => self.core.refuse(token, kind, rustix::io::Errno::OPNOTSUPP.into()),
        }
    }

    /// Submits everything queued and waits for at least one completion, a wake-up or the timeout (`None`: as
    /// long as it takes); adds all completions there are to `out`. May return early with none.
    pub fn wait(&mut self, timeout: Option<Duration>, out: &mut Vec<Completion>) -> io::Result<()> {
        let before = out.len();
        out.append(&mut self.core.early);
        match &mut self.backend {
            Backend::Uring(ring) => ring.wait(&mut self.core, timeout, before, out),
            Backend::Epoll(epoll) => epoll.wait(&mut self.core, timeout, before, out),
        }
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        match &mut self.backend {
            Backend::Uring(ring) => ring.shut_down(&mut self.core),
            Backend::Epoll(epoll) => epoll.shut_down(&mut self.core),
        }
    }
}

fn invalid() -> io::Error {
    rustix::io::Errno::INVAL.into()
}

fn fits_in_file(offset: u64, len: usize) -> bool {
    u64::try_from(len).is_ok_and(|len| {
        u32::try_from(len).is_ok()
            && offset
                .checked_add(len)
                .is_some_and(|end| i64::try_from(end).is_ok())
    })
}
