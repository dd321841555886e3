//! Replies and notifications.
//!
//! Each is to be written to `/dev/fuse` with one `write` or `writev`. Such a write may fail with `ENOENT`: the
//! kernel no longer waits for that reply (its caller was killed, the mount was aborted), which is no error of ours.
//! `ENODEV` says that the file system is gone.

use zerocopy::{Immutable, IntoBytes};

use super::request::Unique;
use super::wire::{self, InvalInode, OutHeader, WriteOut};

/// Why a request failed: a Linux error number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(i32);

impl Errno {
    /// Not permitted.
    pub const PERM: Self = Self(1);
    /// No such file.
    pub const NOENT: Self = Self(2);
    /// The volume could not do it.
    pub const IO: Self = Self(5);
    /// No such device: the volume was taken away.
    pub const NODEV: Self = Self(19);
    /// Makes no sense.
    pub const INVAL: Self = Self(22);
    /// Beyond the end, or no space in the pool.
    pub const NOSPC: Self = Self(28);
    /// A write to a read-only volume.
    pub const ROFS: Self = Self(30);
    /// Not known here; the kernel does not ask again.
    pub const NOSYS: Self = Self(38);
    /// Protocol error.
    pub const PROTO: Self = Self(71);
    /// Not known here in this form.
    pub const OPNOTSUPP: Self = Self(95);

    /// From a system call's error number. The kernel refuses replies with numbers outside of 1 to 511, which
    /// become [`Errno::IO`].
    pub fn from_raw(number: i32) -> Self {
        if (1..512).contains(&number) {
            Self(number)
        } else {
            Self::IO
        }
    }

    /// The number.
    pub fn raw(self) -> i32 {
        self.0
    }
}

fn header(unique: Unique, error: i32, body: usize) -> OutHeader {
    // All bodies are of at most MAX_IO bytes.
    let len = u32::try_from(size_of::<OutHeader>() + body).unwrap_or(u32::MAX);
    OutHeader {
        len,
        error,
        unique: unique.0,
    }
}

/// Done; for FSYNC and FALLOCATE.
pub fn done(unique: Unique) -> [u8; 16] {
    zerocopy::transmute!(header(unique, 0, 0))
}

/// Failed.
pub fn error(unique: Unique, error: Errno) -> [u8; 16] {
    zerocopy::transmute!(header(unique, -error.0, 0))
}

/// All `len` bytes of a WRITE are written.
pub fn written(unique: Unique, len: u32) -> [u8; 24] {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Reply(OutHeader, WriteOut);
    let body = WriteOut {
        size: len,
        padding: 0,
    };
    zerocopy::transmute!(Reply(header(unique, 0, size_of::<WriteOut>()), body))
}

/// Before the `len` bytes a READ read, in the same `writev`.
pub fn read_header(unique: Unique, len: u32) -> [u8; 16] {
    zerocopy::transmute!(header(unique, 0, usize::try_from(len).unwrap_or(usize::MAX - 16)))
}

/// A reply with a body.
pub(super) fn with_body(unique: Unique, body: &[u8]) -> Vec<u8> {
    let mut reply = header(unique, 0, body.len()).as_bytes().to_vec();
    reply.extend_from_slice(body);
    reply
}

/// «Give me again what was read and not answered.» Linux before 6.9 refuses the write with `EINVAL`.
pub fn notify_resend() -> [u8; 16] {
    zerocopy::transmute!(header(Unique(0), wire::NOTIFY_RESEND, 0))
}

/// «The file's attributes have changed.» After [`Connection::set_size`](super::Connection::set_size); the kernel then
/// asks for them at the next `stat` of the file, which has to come before `LOOP_SET_CAPACITY`. The write fails
/// with `ENOENT` when the kernel does not know the file yet, which is as good.
pub fn notify_attributes() -> [u8; 40] {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Notification(OutHeader, InvalInode);
    // A negative offset leaves cached data alone.
    let body = InvalInode {
        ino: super::FILE_NODE,
        off: -1,
        len: 0,
    };
    let header = header(Unique(0), wire::NOTIFY_INVAL_INODE, size_of::<InvalInode>());
    zerocopy::transmute!(Notification(header, body))
}
