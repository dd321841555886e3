//! The system calls of Stor's data path behind a safe interface.
//!
//! This is the only crate of the workspace in which `unsafe` may stand, so that everything above it (engine,
//! replica server, transports) is plain safe Rust. It knows files, sockets, loop, nbd, ublk and FUSE devices; it
//! knows nothing about volumes, replicas or protocols.

pub mod blockdev;
pub mod buffer;
pub mod clock;
mod devnode;
pub mod extent_map;
pub mod file;
pub mod fusemount;
pub mod loopdev;
pub mod nbddev;
mod netlink;
pub mod process;
pub mod reactor;
pub mod scm;
pub mod ublk;

pub use buffer::{Buf, BufPool, Shared};
pub use reactor::{Choice, Completion, Fd, Outcome, Piece, Reactor, ReactorError, Sync, Waker};
