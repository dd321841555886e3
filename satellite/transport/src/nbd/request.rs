//! Requests of the transmission phase: reading them, and telling which may not be done and why.

use zerocopy::byteorder::network_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::NbdError;
use super::export::Export;
use super::negotiation::Negotiated;

/// Length of a request on the wire, without the payload of a write.
pub const REQUEST_BYTES: usize = 28;

const REQUEST_MAGIC: u32 = 0x2560_9513;

const FUA: u16 = 1;
const NO_HOLE: u16 = 1 << 1;
const DF: u16 = 1 << 2;
const REQ_ONE: u16 = 1 << 3;
const FAST_ZERO: u16 = 1 << 4;

/// The client's name for a request, repeated in its replies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Cookie(pub u64);

/// What a client wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Read. `df`: in one chunk.
    Read {
        /// At most one content chunk in the reply.
        df: bool,
    },
    /// Write; the payload follows the request.
    Write,
    /// Close when everything before it is answered. Has no reply.
    Disconnect,
    /// Make durable what was answered before.
    Flush,
    /// The range may lose its content.
    Trim,
    /// The range reads as zeroes from now on.
    WriteZeroes {
        /// Keep the space.
        no_hole: bool,
        /// Fail with [`ErrorCode::NotSupported`] where it would be as slow as writing.
        fast: bool,
    },
    /// Which parts of the range are holes.
    BlockStatus {
        /// One extent is enough.
        req_one: bool,
    },
    /// Read ahead; not offered.
    Cache,
    /// Not known here, with its number.
    Unknown(u16),
}

/// A request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Repeat it in the reply.
    pub cookie: Cookie,
    /// What to do.
    pub command: Command,
    /// Answer only when what was written is durable.
    pub fua: bool,
    /// First byte.
    pub offset: u64,
    /// Length, bytes.
    pub length: u32,
    /// Flags that are unknown or do not belong to the command; [`Request::check`] refuses them.
    pub stray_flags: u16,
}

/// `NBD_E*`: why a request failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum ErrorCode {
    /// A write to a read-only export.
    NotPermitted = 1,
    /// The volume could not do it.
    Io = 5,
    /// No memory. «SHOULD NOT» be used.
    NoMemory = 12,
    /// The request makes no sense.
    Invalid = 22,
    /// A write beyond the end, or no space in the pool.
    NoSpace = 28,
    /// Too long for one reply.
    Overflow = 75,
    /// See [`Command::WriteZeroes`].
    NotSupported = 95,
    /// The server ends.
    Shutdown = 108,
}

/// A request that is not to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// For the client.
    pub error: ErrorCode,
    /// For people; sent with structured replies.
    pub why: &'static str,
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct WireRequest {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    length: U32,
}

/// Reads a request. Only a wrong magic number is an error: everything else can be answered, and is refused by
/// [`Request::check`].
pub fn parse_request(bytes: &[u8; REQUEST_BYTES]) -> Result<Request, NbdError> {
    let wire: WireRequest = zerocopy::transmute!(*bytes);
    if wire.magic != REQUEST_MAGIC {
        return Err(NbdError::RequestMagic(wire.magic.get()));
    }
    let flags = wire.flags.get();
    let has = |flag: u16| flags & flag != 0;
    // FUA is «valid for all commands», even where it says nothing.
    let (command, own_flags) = match wire.command.get() {
        0 => (Command::Read { df: has(DF) }, DF),
        1 => (Command::Write, 0),
        2 => (Command::Disconnect, 0),
        3 => (Command::Flush, 0),
        4 => (Command::Trim, 0),
        5 => (Command::Cache, 0),
        6 => (
            Command::WriteZeroes {
                no_hole: has(NO_HOLE),
                fast: has(FAST_ZERO),
            },
            NO_HOLE | FAST_ZERO,
        ),
        7 => (
            Command::BlockStatus {
                req_one: has(REQ_ONE),
            },
            REQ_ONE,
        ),
        number => (Command::Unknown(number), 0),
    };
    Ok(Request {
        cookie: Cookie(wire.cookie.get()),
        command,
        fua: has(FUA),
        offset: wire.offset.get(),
        length: wire.length.get(),
        stray_flags: flags & !(FUA | own_flags),
    })
}

impl Request {
    /// Bytes that follow the request on the wire. They follow a refused write too: read over them, or close
    /// when that is more than the caller cares to read (a refused write may announce up to 4 GiB).
    pub fn payload_len(&self) -> u32 {
        if self.command == Command::Write {
            self.length
        } else {
            0
        }
    }

    /// Whether the request may be done on this export by a client that negotiated this.
    pub fn check(&self, export: &Export, negotiated: &Negotiated) -> Result<(), Refusal> {
        if self.stray_flags != 0 {
            return Err(invalid(
                "a flag that is unknown, or does not belong to this command",
            ));
        }
        match self.command {
            // Their offset and length say nothing.
            Command::Disconnect | Command::Flush => Ok(()),
            Command::Read { df } => {
                if df && !negotiated.structured {
                    return Err(invalid("DF without structured replies"));
                }
                self.check_range(export, ErrorCode::Invalid)?;
                let too_long = if negotiated.structured {
                    ErrorCode::Overflow
                } else {
                    ErrorCode::Invalid
                };
                self.check_payload(export, too_long)
            }
            Command::Write => {
                check_writable(export)?;
                self.check_range(export, ErrorCode::NoSpace)?;
                self.check_payload(export, ErrorCode::Invalid)
            }
            Command::Trim => {
                check_writable(export)?;
                if !export.trim {
                    return Err(invalid("TRIM was not offered"));
                }
                self.check_range(export, ErrorCode::Invalid)
            }
            Command::WriteZeroes { fast, .. } => {
                check_writable(export)?;
                if !export.write_zeroes || (fast && !export.fast_zero) {
                    return Err(invalid("this way of WRITE_ZEROES was not offered"));
                }
                self.check_range(export, ErrorCode::NoSpace)
            }
            Command::BlockStatus { .. } => {
                if negotiated.meta_base_allocation.is_none() {
                    return Err(invalid("BLOCK_STATUS without a metadata context"));
                }
                self.check_range(export, ErrorCode::Invalid)
            }
            Command::Cache => Err(invalid("CACHE was not offered")),
            Command::Unknown(_) => Err(invalid("this command is not known here")),
        }
    }

    fn check_range(&self, export: &Export, beyond_end: ErrorCode) -> Result<(), Refusal> {
        if self.length == 0 {
            return Err(invalid("the length is zero"));
        }
        let end = self.offset.checked_add(u64::from(self.length));
        if end.is_none_or(|end| end > export.size) {
            return Err(Refusal {
                error: beyond_end,
                why: "the range ends beyond the end of the export",
            });
        }
        let aligned = self.offset.is_multiple_of(u64::from(export.min_block))
            && self.length.is_multiple_of(export.min_block);
        if !aligned {
            return Err(invalid("the range is not aligned to the smallest block"));
        }
        Ok(())
    }

    fn check_payload(&self, export: &Export, too_long: ErrorCode) -> Result<(), Refusal> {
        if self.length > export.max_block {
            return Err(Refusal {
                error: too_long,
                why: "longer than the largest payload",
            });
        }
        Ok(())
    }
}

fn check_writable(export: &Export) -> Result<(), Refusal> {
    if export.read_only {
        return Err(Refusal {
            error: ErrorCode::NotPermitted,
            why: "the export is read-only",
        });
    }
    Ok(())
}

fn invalid(why: &'static str) -> Refusal {
    Refusal {
        error: ErrorCode::Invalid,
        why,
    }
}
