//! The descriptors a reactor owns, under names that go stale when a descriptor is closed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};

use super::op::OpId;

/// A descriptor registered with a reactor. Using one that was closed is an error, never another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fd {
    pub(super) index: u32,
    generation: u32,
}

/// What kind of file it is, as far as the backends treat them differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nature {
    Socket,
    /// Regular file or block device: always ready, blocks for as long as the disk takes.
    Disk,
    /// Everything else that can be polled: /dev/fuse, eventfds, pipes.
    Stream,
}

impl Nature {
    pub(super) fn of(fd: impl AsFd) -> io::Result<Self> {
        Ok(match FileType::from_raw_mode(fstat(fd)?.st_mode) {
            FileType::Socket => Self::Socket,
            FileType::RegularFile | FileType::BlockDevice => Self::Disk,
            _ => Self::Stream,
        })
    }
}

/// Sets or clears O_NONBLOCK, if it is not as wanted.
pub(super) fn set_nonblocking(fd: impl AsFd, wanted: bool) -> io::Result<()> {
    let flags = fcntl_getfl(fd.as_fd())?;
    if flags.contains(OFlags::NONBLOCK) != wanted {
        fcntl_setfl(fd, flags ^ OFlags::NONBLOCK)?;
    }
    Ok(())
}

#[derive(Debug, Default)]
pub(super) struct Slot {
    generation: u32,
    fd: Option<OwnedFd>,
    /// Operations that need the descriptor to stay open.
    pub(super) ops: u32,
    pub(super) closing: bool,
    /// A send is in flight: a second one would mix its bytes into the first.
    pub(super) sending: bool,
    /// The last receive left bytes behind, so the next one will find some at once (io_uring).
    pub(super) more_to_read: bool,
    pub(super) readiness: Readiness,
}

impl Slot {
    pub(super) fn raw(&self) -> Option<RawFd> {
        self.fd.as_ref().map(AsRawFd::as_raw_fd)
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }
}

/// What the epoll backend knows of a descriptor.
#[derive(Debug)]
pub(super) struct Readiness {
    pub(super) watched: bool,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The peer closed its side: there will be no further edge, reads must go on until they say so.
    pub(super) hung_up: bool,
    pub(super) readers: VecDeque<OpId>,
    pub(super) writers: VecDeque<OpId>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            watched: false,
            readable: true,
            writable: true,
            hung_up: false,
            readers: VecDeque::new(),
            writers: VecDeque::new(),
        }
    }
}

impl Readiness {
    pub(super) fn queue(&mut self, reading: bool) -> &mut VecDeque<OpId> {
        if reading {
            &mut self.readers
        } else {
            &mut self.writers
        }
    }

    pub(super) fn first(&self, reading: bool) -> Option<OpId> {
        if reading {
            self.readers.front().copied()
        } else {
            self.writers.front().copied()
        }
    }

    pub(super) fn may_try(&self, reading: bool) -> bool {
        if reading {
            self.readable || self.hung_up
        } else {
            self.writable
        }
    }

    /// Nothing more goes in this direction before the next edge.
    pub(super) fn exhausted(&mut self, reading: bool) {
        if reading {
            self.readable = false;
        } else {
            self.writable = false;
        }
    }
}

/// All descriptors of a reactor.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Slots {
    pub(super) fn insert(&mut self, fd: OwnedFd) -> Fd {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let mut generation = 0;
        if let Some(slot) = self.slots.get_mut(index as usize) {
            generation = slot.generation;
            *slot = Slot {
                generation,
                fd: Some(fd),
                ..Slot::default()
            };
        }
        Fd { index, generation }
    }

    /// A name that no descriptor has.
    pub(super) const DEAD: Fd = Fd {
        index: u32::MAX,
        generation: u32::MAX,
    };

    /// The slot, if the name is still good.
    pub(super) fn get_mut(&mut self, fd: Fd) -> Option<&mut Slot> {
        self.slots
            .get_mut(fd.index as usize)
            .filter(|slot| slot.generation == fd.generation && slot.fd.is_some() && !slot.closing)
    }

    pub(super) fn at(&mut self, index: u32) -> Option<&mut Slot> {
        self.slots.get_mut(index as usize)
    }

    /// The current name of a slot.
    pub(super) fn name(&self, index: u32) -> Fd {
        Fd {
            index,
            generation: self
                .slots
                .get(index as usize)
                .map_or(u32::MAX, |slot| slot.generation),
        }
    }

    /// Makes the name stale. The descriptor stays open until [`Slots::release`].
    pub(super) fn retire(&mut self, fd: Fd) -> bool {
        match self.get_mut(fd) {
            Some(slot) => {
                slot.closing = true;
                slot.generation = slot.generation.wrapping_add(1);
                true
            }
            None => false,
        }
    }

    /// Closes the descriptor of a retired slot when nothing uses it any more.
    pub(super) fn release(&mut self, index: u32) {
        if let Some(slot) = self.slots.get_mut(index as usize)
            && slot.closing
            && slot.ops == 0
            && slot.fd.take().is_some()
        {
            self.free.push(index);
        }
    }
}
