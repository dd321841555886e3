//! The kernel's FUSE protocol for a file system of one regular file, `volume`, in the root directory: the
//! volume, for a loop device to stand on.
//!
//! Source: `include/uapi/linux/fuse.h` (the structures), `fs/fuse/dev.c` and `fs/fuse/file.c` (what is sent
//! when) and `drivers/block/loop.c` of Linux; versions 7.23 (Linux 3.15) to 7.45.
//!
//! ```text
//!  read(/dev/fuse, READ_BUFFER) ──► parse ──► Request ──► Connection::answer ──► Answer::Reply(bytes) ──► write
//!                                                                          ├──► Answer::Nothing
//!                                                                          └──► Answer::Data(…) ──► the volume
//!                                                            written / read_header / done / error ◄──┘
//! ```
//!
//! What the loop driver makes of block requests, so what has to be fast: READ and WRITE (direct and
//! asynchronous when the loop device has direct I/O on, many at once), FSYNC for a flush, FALLOCATE with
//! `PUNCH_HOLE` for discard and write zeroes, with `ZERO_RANGE` for write zeroes that keep the space. At
//! set-up it stats the file (LOOKUP, OPEN, GETATTR, sometimes STATX) and the file system (STATFS, whose block size
//! becomes the discard granularity). The rest of the operations is here for whoever lists the directory.
//!
//! Promises: fixed node ids and no file handles, so that nothing is lost with the process that serves; a
//! reply for everything that wants one; file data only in and out of the buffers of the caller.
//!
//! Left out: the page cache ([`Connection`] opens the file for direct I/O, the loop device brings its own),
//! write-back caching, splice, FUSE over io_uring, more than one file. Resizing by `truncate` is refused: a volume's
//! size is changed in the catalogue, after which [`Connection::set_size`] and [`notify_attributes`] tell the
//! kernel.
//!
//! # Reading and writing the descriptor
//!
//! One `read` gives one request. It fails with `ENOENT` when that request was taken back (read again), with `EAGAIN`
//! and `EINTR` as elsewhere, and with `ENODEV` when the file system is unmounted or the connection was aborted: the end.
//! For errors of `write` see [`written`] and its neighbours: `ENOENT` is none of ours.
//!
//! # Mounting
//!
//! `mount("stor", DIR, "fuse", MS_NOSUID | MS_NODEV, "fd=N,rootmode=40000,user_id=0,group_id=0,max_read=1048576")`
//! with a descriptor of `/dev/fuse`; [`mount_options`] has the string. The first request is INIT.
//!
//! # Taking over a connection
//!
//! The connection lives as long as any descriptor of it is open anywhere. When the process that served it dies and
//! another has kept the descriptor, requests the dead one had read and not answered are in the kernel still.
//! The new process makes a [`Connection::resumed`] from the [`Session`] the old one got at INIT (the caller keeps it
//! beside the descriptor), writes [`notify_resend`], and reads: the kernel gives those requests again, with
//! [`RESENT`] set in their unique number, and replies to them repeat that number as it is. Linux 6.9
//! and newer can; [`Session::can_resend`] says whether this one does. Where it can't, those
//! requests never end and the mount has to be aborted. Writes and discards may be done twice so, which is right for a
//! block device as long as nobody was answered in between, and nobody was.

mod connection;
mod directory;
mod reply;
mod request;
mod wire;

pub use connection::{Answer, Connection, Data, FILE_NAME, FILE_NODE, RefusedInit, Session, mount_options};
pub use reply::{Errno, done, error, notify_attributes, notify_resend, read_header, written};
pub use request::{Operation, Request, Unique, parse};
pub use wire::{MAX_IO, READ_BUFFER, RESENT};

/// What was read from `/dev/fuse` is no request. The kernel does not do this: close the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FuseError {
    /// Shorter than a request's header.
    #[error("{0} bytes were read from the FUSE device, less than a request's header")]
    Short(usize),
    /// The header's length is not that of what was read.
    #[error("a FUSE request says it has {announced} bytes, {read} were read")]
    Length {
        /// By its header.
        announced: u32,
        /// In fact.
        read: usize,
    },
    /// The operation's own structure is cut off.
    #[error("FUSE operation {opcode} came with too few bytes of arguments")]
    Arguments {
        /// The operation's number.
        opcode: u32,
    },
}
