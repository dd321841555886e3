//! Answering requests: all that do not touch data are answered here, the others are handed to the caller with their
//! ranges checked and cut at the end of the volume.
//!
//! Holds no state but the volume's size and what INIT agreed on, on purpose: whoever takes over a connection
//! needs nothing else ([`Connection::resumed`]).

use std::ops::Range;

use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes;

use super::directory::{self, VALIDITY};
use super::reply::{self, Errno};
use super::request::{Operation, Request, Unique};
use super::wire::{
    self, AttrOut, InitOut, MAJOR, MAX_IO, MINOR, OLDEST_MINOR, OPEN_DIRECT_IO, OPEN_PARALLEL_DIRECT_WRITES,
    OpenOut, ROOT, init_flag,
};

/// Name of the one file.
pub const FILE_NAME: &str = "volume";

/// Its node id, which is its inode number as well.
pub const FILE_NODE: u64 = 2;

/// Most requests the kernel has under way that nobody waits for one by one, as all of a loop device's with direct
/// I/O are. Its default of 12 would be the queue depth of the device.
const MAX_BACKGROUND: u16 = 256;

/// From here on the kernel tells its writers to slow down.
const CONGESTION: u16 = 192;

/// `O_ACCMODE`.
const ACCESS_MODE: u32 = 3;

/// What INIT agreed on. Keep it beside the connection's descriptor: the kernel says it once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Session {
    /// Minor version both sides speak.
    pub minor: u32,
    /// Abilities both sides have, `FUSE_*` of INIT.
    pub flags: u64,
}

impl Session {
    /// Whether [`notify_resend`](super::notify_resend) works.
    pub fn can_resend(self) -> bool {
        self.flags & init_flag::HAS_RESEND != 0
    }
}

/// A kernel that can't be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the kernel speaks FUSE {major}.{minor}, at least {MAJOR}.{OLDEST_MINOR} is needed: use a newer kernel, or \
     another transport"
)]
pub struct RefusedInit {
    /// The kernel's.
    pub major: u32,
    /// The kernel's.
    pub minor: u32,
}

/// What is to be done about a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Write these bytes, in one piece.
    Reply(Vec<u8>),
    /// The first one: write these bytes, in one piece, and keep the session.
    Started(Vec<u8>, Session),
    /// Write these bytes, in one piece; nothing will come of this mount.
    Refused(Vec<u8>, RefusedInit),
    /// The kernel waits for no reply.
    Nothing,
    /// Do it, then reply.
    Data(Data),
}

/// A request for the volume. Ranges lie within it and are not empty, but may have any alignment the opener of the
/// file chose; a loop device keeps to its logical block size.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Data {
    /// Reply by [`read_header`](super::read_header) and the data.
    Read {
        /// For the reply.
        unique: Unique,
        /// First byte.
        offset: u64,
        /// At most [`MAX_IO`].
        len: u32,
    },
    /// Reply by [`written`](super::written).
    Write {
        /// For the reply.
        unique: Unique,
        /// First byte.
        offset: u64,
        /// Where the data is in the buffer that was parsed; at most [`MAX_IO`] bytes.
        payload: Range<usize>,
    },
    /// Everything answered before is to be durable. Reply by [`done`](super::done).
    Flush {
        /// For the reply.
        unique: Unique,
    },
    /// The range reads as zeroes from now on, and its space is free: `fallocate` promises both. Reply by
    /// [`done`](super::done).
    Discard {
        /// For the reply.
        unique: Unique,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The range reads as zeroes from now on, and keeps its space. Reply by [`done`](super::done).
    Zero {
        /// For the reply.
        unique: Unique,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// One mounted volume.
#[derive(Clone, Debug)]
pub struct Connection {
    size: u64,
    read_only: bool,
    session: Option<Session>,
}

/// The options of `mount` for a connection on this descriptor.
pub fn mount_options(descriptor: i32) -> String {
    format!("fd={descriptor},rootmode=40000,user_id=0,group_id=0,max_read={MAX_IO}")
}

impl Connection {
    /// A mount that has just been made.
    pub fn new(size: u64, read_only: bool) -> Self {
        Self {
            size,
            read_only,
            session: None,
        }
    }

    /// A mount that another process served before: see the module's head. The size and mode are the volume's
    /// of now.
    pub fn resumed(size: u64, read_only: bool, session: Session) -> Self {
        Self {
            size,
            read_only,
            session: Some(session),
        }
    }

    /// What INIT agreed on; `None` before it.
    pub fn session(&self) -> Option<Session> {
        self.session
    }

    /// The volume has grown. Write [`notify_attributes`](super::notify_attributes) next.
    pub fn set_size(&mut self, size: u64) {
        self.size = size;
    }

    /// Answers a request, or says what has to be done first.
    pub fn answer(&mut self, request: &Request<'_>) -> Answer {
        let unique = request.unique;
        match self.decide(request) {
            Ok(answer) => answer,
            Err(errno) => Answer::Reply(reply::error(unique, errno).to_vec()),
        }
    }

    fn decide(&mut self, request: &Request<'_>) -> Result<Answer, Errno> {
        let unique = request.unique;
        let node = request.node;
        let body = |body: &[u8]| Ok(Answer::Reply(reply::with_body(unique, body)));
        match request.operation {
            Operation::Init {
                major,
                minor,
                max_readahead,
                flags,
            } => Ok(self.start(unique, major, minor, max_readahead, flags)),
            Operation::Lookup { name } => {
                if node != ROOT || name != FILE_NAME.as_bytes() {
                    return Err(Errno::NOENT);
                }
                body(directory::entry(self.attributes(FILE_NODE)?).as_bytes())
            }
            Operation::Forget => Ok(Answer::Nothing),
            Operation::GetAttr => body(self.attr_out(node)?.as_bytes()),
            Operation::SetAttr { ownership, size } => {
                // Times may be set and are not kept: nothing looks at them.
                if ownership || size.is_some_and(|size| node != FILE_NODE || size != self.size) {
                    return Err(Errno::PERM);
                }
                body(self.attr_out(node)?.as_bytes())
            }
            Operation::Open { flags } => {
                self.attributes(node)?;
                if self.read_only && flags & ACCESS_MODE != 0 {
                    return Err(Errno::ROFS);
                }
                body(open_out(OPEN_DIRECT_IO | OPEN_PARALLEL_DIRECT_WRITES).as_bytes())
            }
            Operation::OpenDir => body(open_out(0).as_bytes()),
            Operation::ReadDir { offset, size } => body(&directory::list(offset, size)),
            Operation::StatFs => body(directory::statfs(self.size).as_bytes()),
            Operation::Release | Operation::FsyncDir | Operation::Destroy => body(&[]),
            Operation::ChangeName => Err(Errno::PERM),
            // Flush: closing promises nothing, and what was answered is on every replica. Interrupt: a block device's
            // requests are not interrupted. Access, and all the others: the kernel has its own
            // answer. None of these is asked again.
            Operation::Flush | Operation::Interrupt | Operation::Access | Operation::Other(_) => {
                Err(Errno::NOSYS)
            }
            Operation::Read { offset, size } => self.read(unique, node, offset, size),
            Operation::Write { offset, ref payload } => self.write(unique, node, offset, payload),
            Operation::Fsync => {
                on_file(node)?;
                Ok(Answer::Data(Data::Flush { unique }))
            }
            Operation::Fallocate { offset, length, mode } => {
                on_file(node)?;
                self.fallocate(unique, offset, length, mode)
            }
        }
    }

    fn start(&mut self, unique: Unique, major: u32, minor: u32, max_readahead: u32, flags: u64) -> Answer {
        let mut out = InitOut {
            major: MAJOR,
            minor: MINOR,
            max_readahead,
            flags: 0,
            max_background: MAX_BACKGROUND,
            congestion_threshold: CONGESTION,
            max_write: MAX_IO,
            // Times are not kept, so their grain says nothing.
            time_gran: 1,
            // In pages of 4 KiB; with larger ones, max_write and the mount's max_read are what limits.
            max_pages: u16::try_from(MAX_IO / 4096).unwrap_or(256),
            map_alignment: 0,
            flags2: 0,
            unused: [0; 7],
        };
        if major > MAJOR {
            // The kernel then comes again with our major version.
            return Answer::Reply(reply::with_body(unique, out.as_bytes()));
        }
        if major < MAJOR || minor < OLDEST_MINOR {
            let refusal = RefusedInit { major, minor };
            return Answer::Refused(reply::error(unique, Errno::PROTO).to_vec(), refusal);
        }
        let flags = flags
            & (init_flag::ASYNC_READ
                | init_flag::BIG_WRITES
                | init_flag::ASYNC_DIO
                | init_flag::PARALLEL_DIROPS
                | init_flag::MAX_PAGES
                | init_flag::INIT_EXT
                | init_flag::HAS_RESEND);
        let [low, high] = [flags, flags >> 32].map(|half| u32::try_from(half & 0xFFFF_FFFF).unwrap_or(0));
        out.flags = low;
        out.flags2 = high;
        let session = Session {
            minor: minor.min(MINOR),
            flags,
        };
        self.session = Some(session);
        Answer::Started(reply::with_body(unique, out.as_bytes()), session)
    }

    fn attributes(&self, node: u64) -> Result<wire::Attr, Errno> {
        directory::attributes(node, self.size, self.read_only).ok_or(Errno::NOENT)
    }

    fn attr_out(&self, node: u64) -> Result<AttrOut, Errno> {
        Ok(AttrOut {
            attr_valid: VALIDITY,
            attr_valid_nsec: 0,
            padding: 0,
            attr: self.attributes(node)?,
        })
    }

    fn read(&self, unique: Unique, node: u64, offset: u64, size: u32) -> Result<Answer, Errno> {
        on_file(node)?;
        if size > MAX_IO {
            return Err(Errno::INVAL);
        }
        let left = self.size.saturating_sub(offset);
        let len = u32::try_from(left).unwrap_or(u32::MAX).min(size);
        if len == 0 {
            return Ok(Answer::Reply(reply::read_header(unique, 0).to_vec()));
        }
        Ok(Answer::Data(Data::Read { unique, offset, len }))
    }

    fn write(&self, unique: Unique, node: u64, offset: u64, payload: &Range<usize>) -> Result<Answer, Errno> {
        on_file(node)?;
        self.check_writable()?;
        let len = u32::try_from(payload.len())
            .ok()
            .filter(|len| *len <= MAX_IO)
            .ok_or(Errno::INVAL)?;
        if offset
            .checked_add(u64::from(len))
            .is_none_or(|end| end > self.size)
        {
            return Err(Errno::NOSPC);
        }
        if len == 0 {
            return Ok(Answer::Reply(reply::written(unique, 0).to_vec()));
        }
        Ok(Answer::Data(Data::Write {
            unique,
            offset,
            payload: payload.clone(),
        }))
    }

    fn fallocate(&self, unique: Unique, offset: u64, length: u64, mode: u32) -> Result<Answer, Errno> {
        const DISCARD: u32 = wire::FALLOC_PUNCH_HOLE | wire::FALLOC_KEEP_SIZE;
        const ZERO_KEEPING_SIZE: u32 = wire::FALLOC_ZERO_RANGE | wire::FALLOC_KEEP_SIZE;

        self.check_writable()?;
        // With KEEP_SIZE, what lies beyond the end is nobody's; without it, the file would have to grow.
        let len = length.min(self.size.saturating_sub(offset));
        let data = match mode {
            DISCARD => Data::Discard { unique, offset, len },
            ZERO_KEEPING_SIZE => Data::Zero { unique, offset, len },
            wire::FALLOC_ZERO_RANGE if len == length => Data::Zero { unique, offset, len },
            wire::FALLOC_ZERO_RANGE => return Err(Errno::NOSPC),
            _ => return Err(Errno::OPNOTSUPP),
        };
        if len == 0 {
            return Ok(Answer::Reply(reply::done(unique).to_vec()));
        }
        Ok(Answer::Data(data))
    }

    fn check_writable(&self) -> Result<(), Errno> {
        if self.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }
}

fn open_out(open_flags: u32) -> OpenOut {
    OpenOut {
        handle: 0,
        open_flags,
        padding: 0,
    }
}

/// Data is in the file only.
fn on_file(node: u64) -> Result<(), Errno> {
    if node == FILE_NODE {
        Ok(())
    } else {
        Err(Errno::INVAL)
    }
}
