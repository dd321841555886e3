//! The protocols by which a volume reaches a kernel or a VM: NBD and FUSE, without I/O.
//!
//! [`nbd`] is the server's side of the NBD protocol, as QEMU, libnbd, `nbd-client` and the kernel speak it.
//! [`fuse`] is a file system of exactly one file, the volume, as the kernel's FUSE and its loop driver
//! drive it.
//!
//! Both are parsers, encoders and small state machines over byte slices. They own no descriptor, thread,
//! clock or buffer beyond a few words, never wait and never touch the volume's data: whoever reads and
//! writes the socket or `/dev/fuse` passes bytes in, does the I/O that is asked for, and sends the bytes
//! that come back. Nothing a client or a kernel sends makes them panic; what breaks the protocol is an
//! error value after which the connection is to be closed, what is merely refused has its reply.

pub mod fuse;
pub mod nbd;
