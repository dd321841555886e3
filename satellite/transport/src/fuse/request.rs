//! Reading a request.

use std::ops::Range;

use zerocopy::FromBytes;

use super::FuseError;
use super::wire::{self, FallocateIn, InHeader, InitIn, OpenIn, RESENT, ReadIn, SetattrIn, WriteIn, opcode};

/// The kernel's name for a request, repeated in its reply bit by bit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Unique(pub u64);

impl Unique {
    /// Whether the kernel had given this request to somebody before.
    pub fn is_resent(self) -> bool {
        self.0 & RESENT != 0
    }
}

/// A request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    /// Repeat it in the reply.
    pub unique: Unique,
    /// The node it is about.
    pub node: u64,
    /// What to do.
    pub operation: Operation<'a>,
}

/// What the kernel wants. Offsets and lengths are as it sent them, unchecked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation<'a> {
    /// First request of a connection.
    Init {
        /// The kernel's.
        major: u32,
        /// The kernel's.
        minor: u32,
        /// Likewise; repeated in the reply.
        max_readahead: u32,
        /// What the kernel can do.
        flags: u64,
    },
    /// Find a name in a directory.
    Lookup {
        /// Without the zero at its end.
        name: &'a [u8],
    },
    /// The kernel forgot nodes. Has no reply.
    Forget,
    /// Attributes of a node.
    GetAttr,
    /// Change them.
    SetAttr {
        /// Mode, owner or group is among what is to change.
        ownership: bool,
        /// The new size.
        size: Option<u64>,
    },
    /// Open the file.
    Open {
        /// `O_*` as given to `open`.
        flags: u32,
    },
    /// Open the directory.
    OpenDir,
    /// List the directory.
    ReadDir {
        /// The cookie of the last entry that was seen.
        offset: u64,
        /// Most bytes of entries.
        size: u32,
    },
    /// Read from the file.
    Read {
        /// First byte.
        offset: u64,
        /// Length, bytes.
        size: u32,
    },
    /// Write to the file.
    Write {
        /// First byte.
        offset: u64,
        /// Where the data is in the buffer that was parsed.
        payload: Range<usize>,
    },
    /// Make the file durable.
    Fsync,
    /// Make the directory durable.
    FsyncDir,
    /// Close was called on a descriptor of the file.
    Flush,
    /// The last descriptor of an open is gone.
    Release,
    /// `fallocate`.
    Fallocate {
        /// First byte.
        offset: u64,
        /// Length, bytes.
        length: u64,
        /// `FALLOC_FL_*`.
        mode: u32,
    },
    /// Size and free space of the file system.
    StatFs,
    /// May the caller do this?
    Access,
    /// The caller of a request got a signal.
    Interrupt,
    /// The file system is unmounted.
    Destroy,
    /// Make, rename or remove a name.
    ChangeName,
    /// Everything else, with its number.
    Other(u32),
}

/// Reads what one `read` of `/dev/fuse` returned.
pub fn parse(buffer: &[u8]) -> Result<Request<'_>, FuseError> {
    let (header, body) = InHeader::read_from_prefix(buffer).map_err(|_| FuseError::Short(buffer.len()))?;
    if usize::try_from(header.len) != Ok(buffer.len()) {
        return Err(FuseError::Length {
            announced: header.len,
            read: buffer.len(),
        });
    }
    let operation = operation(header.opcode, body).ok_or(FuseError::Arguments {
        opcode: header.opcode,
    })?;
    Ok(Request {
        unique: Unique(header.unique),
        node: header.node,
        operation,
    })
}

/// `None` when the arguments are cut off.
fn operation(number: u32, body: &[u8]) -> Option<Operation<'_>> {
    Some(match number {
        opcode::INIT => init(body)?,
        opcode::LOOKUP => Operation::Lookup {
            name: body.strip_suffix(&[0])?,
        },
        opcode::FORGET | opcode::BATCH_FORGET => Operation::Forget,
        opcode::GETATTR => Operation::GetAttr,
        opcode::SETATTR => {
            let wire: SetattrIn = prefix(body)?;
            Operation::SetAttr {
                ownership: wire.valid & (wire::SET_MODE | wire::SET_UID | wire::SET_GID) != 0,
                size: (wire.valid & wire::SET_SIZE != 0).then_some(wire.size),
            }
        }
        opcode::OPEN => Operation::Open {
            flags: prefix::<OpenIn>(body)?.flags,
        },
        opcode::OPENDIR => Operation::OpenDir,
        opcode::READDIR => {
            let wire: ReadIn = prefix(body)?;
            Operation::ReadDir {
                offset: wire.offset,
                size: wire.size,
            }
        }
        opcode::READ => {
            let wire: ReadIn = prefix(body)?;
            Operation::Read {
                offset: wire.offset,
                size: wire.size,
            }
        }
        opcode::WRITE => {
            let wire: WriteIn = prefix(body)?;
            let start = size_of::<InHeader>() + size_of::<WriteIn>();
            let size = usize::try_from(wire.size).ok()?;
            (body.len() == size_of::<WriteIn>() + size).then_some(())?;
            Operation::Write {
                offset: wire.offset,
                payload: start..start + size,
            }
        }
        opcode::FSYNC => Operation::Fsync,
        opcode::FSYNCDIR => Operation::FsyncDir,
        opcode::FLUSH => Operation::Flush,
        opcode::RELEASE | opcode::RELEASEDIR => Operation::Release,
        opcode::FALLOCATE => {
            let wire: FallocateIn = prefix(body)?;
            Operation::Fallocate {
                offset: wire.offset,
                length: wire.length,
                mode: wire.mode,
            }
        }
        opcode::STATFS => Operation::StatFs,
        opcode::ACCESS => Operation::Access,
        opcode::INTERRUPT => Operation::Interrupt,
        opcode::DESTROY => Operation::Destroy,
        opcode::SYMLINK
        | opcode::MKNOD
        | opcode::MKDIR
        | opcode::UNLINK
        | opcode::RMDIR
        | opcode::RENAME
        | opcode::RENAME2
        | opcode::LINK
        | opcode::CREATE
        | opcode::TMPFILE => Operation::ChangeName,
        number => Operation::Other(number),
    })
}

fn init(body: &[u8]) -> Option<Operation<'static>> {
    let (wire, more) = InitIn::read_from_prefix(body).ok()?;
    let mut flags = u64::from(wire.flags);
    if flags & wire::init_flag::INIT_EXT != 0 {
        flags |= u64::from(prefix::<u32>(more)?) << 32;
    }
    Some(Operation::Init {
        major: wire.major,
        minor: wire.minor,
        max_readahead: wire.max_readahead,
        flags,
    })
}

fn prefix<T: FromBytes>(body: &[u8]) -> Option<T> {
    T::read_from_prefix(body).ok().map(|(wire, _)| wire)
}
