//! The messages between an engine and a replica, and their form on the wire.
//!
//! One TCP connection per engine and replica. Each message is a header of [`HEADER`] bytes and
//! `payload` bytes behind it; all numbers are little-endian. Answers carry the request's `op` and may
//! come in any order; requests take effect in the order sent as far as views, maps and fences go.
//!
//! ```text
//!  0 magic "StW1"      4 version u8   5 kind u8   6 flags u16
//!  8 volume [16]      24 epoch u64   32 config u64
//! 40 op u64           48 offset u64  56 length u32   60 payload u32
//! 64 replica u32      68 status u16  70 zero u16     72 payload crc32c   76 header crc32c
//! ```
//!
//! Every message names volume, replica, epoch and config (R14): an answer or a request that reaches
//! another process behind a re-used address is refused by identity, not by luck.

use crc_fast::CrcAlgorithm;
use thiserror::Error;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::digest;
use crate::extents::{EXTENT, MAX_EXTENTS};
use crate::ids::{ConfigSeq, Epoch, OpId, ReplicaId, View, VolumeId};
use crate::range::{ByteRange, MAX_REQUEST};
use crate::right::RightRefusal;

/// Bytes of a header.
pub const HEADER: usize = 80;
/// Version spoken here. A peer with another one is refused with [`WireError::Version`].
pub const VERSION: u8 = 1;
/// Largest payload: the largest write.
pub const MAX_PAYLOAD: u32 = MAX_REQUEST;
const MAGIC: u32 = u32::from_le_bytes(*b"StW1");

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Raw {
    magic: U32,
    version: u8,
    kind: u8,
    flags: U16,
    volume: [u8; 16],
    epoch: U64,
    config: U64,
    op: U64,
    offset: U64,
    length: U32,
    payload: U32,
    replica: U32,
    status: U16,
    zero: U16,
    payload_crc: U32,
    header_crc: U32,
}

const _: () = assert!(size_of::<Raw>() == HEADER);

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident($repr:ty) { $($(#[$vdoc:meta])* $variant:ident = $value:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[repr($repr)]
        pub enum $name { $($(#[$vdoc])* $variant = $value),+ }

        impl TryFrom<$repr> for $name {
            type Error = WireError;

            fn try_from(value: $repr) -> Result<Self, WireError> {
                match value {
                    $($value => Ok(Self::$variant),)+
                    other => Err(WireError::Code { field: stringify!($name), value: u64::from(other) }),
                }
            }
        }
    };
}

codes!(
    /// What a message asks for.
    Kind(u8) {
        /// Fence older epochs and promise to serve this one (R4). Payload: the signed right to it (R14), at most
        /// [`MAX_RIGHT`] bytes. Answered with an [`crate::info::Info`].
        Open = 1,
        /// Store the view, the in-sync set and who is absent since when. Payload: [`crate::info::Roster`].
        StoreView = 2,
        /// Write the payload at `offset`.
        Write = 3,
        /// Make `length` bytes at `offset` read as zeroes.
        Zero = 4,
        /// Read `length` bytes at `offset`; the answer carries them.
        Read = 5,
        /// Make everything answered before durable.
        Flush = 6,
        /// Answer: renews the lease (R6) and shows life.
        Ping = 7,
        /// Regions of the payload (u32 each; none: all) are equal everywhere and durable: their dirty bits
        /// may go (R7).
        Clean = 8,
        /// A page of a map: `offset` is the first word, the answer's payload the words. `length` names the
        /// absent replica, whose map must begin at the config in the payload (u64), or is [`DIRTY_MAP`].
        GetMap = 9,
        /// Blocks of the payload (first and count, u64 each) of the map of the absent replica `length` were
        /// copied to it and flushed there (R10).
        ClearMap = 10,
        /// OR the payload's words from word `offset` into the map of the absent replica `length`, which
        /// begins at config `since` (payload's first u64); durable when answered.
        PutMap = 11,
        /// The engine ends in order: gives its lease back.
        Close = 12,
        /// Which parts of `length` bytes at `offset` are holes; the answer's payload are [`crate::extents`], of
        /// the whole range or a beginning of it.
        Extents = 13,
        /// Whether a copy of the snapshot could be made: nothing is changed. Payload: the snapshot's id.
        MaySnapshot = 14,
        /// Make a copy of all that is held now, as the snapshot of that id, in place of any of an earlier attempt;
        /// durable when answered (S2). Payload: the snapshot's id.
        Snapshot = 15,
        /// From another satellite: read a copy of a snapshot on this connection, and nothing else (S6). Payload: the
        /// snapshot's id and the signed right to it; no promise is asked for and none is disturbed. The answer's
        /// `offset` is the copy's size.
        OpenCopy = 24,
        /// Digests of the blocks of `length` bytes at `offset` of that copy, [`DIGEST`] bytes each; zeroes for a block of zeroes.
        CopyDigests = 25,
        /// Read `length` bytes at `offset` of that copy.
        CopyRead = 26,
        /// What `length` bytes at `offset` hold, in short; the answer's payload is a [`crate::digest`] of the whole
        /// range or a beginning of it.
        Digest = 16,
    }
);

codes!(
    /// How a request ended.
    Status(u16) {
        /// Done. Requests carry it too.
        Ok = 0,
        /// A newer epoch has been promised; `epoch` tells which.
        Fenced = 1,
        /// The request's view is not the one stored here.
        WrongView = 2,
        /// Not opened on this connection.
        NotOpen = 3,
        /// No such replica here, or its identity differs.
        WrongReplica = 4,
        /// The disk failed; final for this opening of it (R15).
        DiskFailed = 5,
        /// A read failed; the block may be rewritten.
        MediaError = 6,
        /// The pool is full.
        NoSpace = 7,
        /// Malformed or out of range.
        Invalid = 8,
        /// There is no such map here: unknown, not clean (R11).
        NoMap = 9,
        /// What is stored belongs to another history.
        WrongLineage = 10,
        /// An Open without a right to it; `length` says why ([`crate::right::RightRefusal`]).
        NotAuthorised = 11,
        /// This snapshot is not to be made here, as far as is known here: the catalogue may say so a moment later.
        SnapshotUnknown = 12,
        /// No copies without copying can be made here.
        SnapshotUnsupported = 13,
        /// The copy could not be made. Says nothing of the replica itself.
        SnapshotFailed = 14,
    }
);

impl Kind {
    /// Changes nothing, and may be asked of another member instead.
    pub fn is_read(self) -> bool {
        matches!(self, Self::Read | Self::Extents)
    }
}

/// Bits of [`Header::flags`].
pub mod flags {
    /// An answer.
    pub const REPLY: u16 = 1;
    /// Durable when answered.
    pub const FUA: u16 = 2;
    /// Open: this replica is in the in-sync set.
    pub const MEMBER: u16 = 4;
    /// Zero: give the space back.
    pub const DISCARD: u16 = 8;
    /// StoreView: what the replica holds is right, whatever it had lost before (R8).
    pub const WHOLE: u16 = 16;
    /// Every bit that has a meaning.
    pub const ALL: u16 = REPLY | FUA | MEMBER | DISCARD | WHOLE;
}

/// A message without its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What it asks for, or answers.
    pub kind: Kind,
    /// See [`flags`].
    pub flags: u16,
    /// Volume.
    pub volume: VolumeId,
    /// Replica.
    pub replica: ReplicaId,
    /// Epoch and config under which it is asked.
    pub view: View,
    /// Ties an answer to its request.
    pub op: OpId,
    /// Meaning depends on the kind.
    pub offset: u64,
    /// Meaning depends on the kind; bytes for data.
    pub length: u32,
    /// How it ended.
    pub status: Status,
}

impl Header {
    /// Bytes it is about, for the kinds that touch data.
    pub fn range(&self) -> ByteRange {
        ByteRange::new(self.offset, u64::from(self.length))
    }

    /// Whether it is an answer.
    pub fn is_reply(&self) -> bool {
        self.flags & flags::REPLY != 0
    }

    /// Whether it must be durable when answered.
    pub fn fua(&self) -> bool {
        self.flags & flags::FUA != 0
    }

    /// The answer to this request.
    #[must_use]
    pub fn reply(&self, status: Status) -> Self {
        Self {
            flags: self.flags | flags::REPLY,
            status,
            ..*self
        }
    }

    /// The answer to an Open without a right to it.
    #[must_use]
    pub fn refuse_right(&self, why: RightRefusal) -> Self {
        Self {
            length: why.code(),
            ..self.reply(Status::NotAuthorised)
        }
    }

    /// As bytes, for a payload of `payload` bytes with checksum `payload_crc`.
    pub fn encode(&self, payload: u32, payload_crc: u32) -> [u8; HEADER] {
        let mut raw = Raw {
            magic: U32::new(MAGIC),
            version: VERSION,
            kind: self.kind as u8,
            flags: U16::new(self.flags),
            volume: self.volume.0.into_bytes(),
            epoch: U64::new(self.view.epoch.0),
            config: U64::new(self.view.config.0),
            op: U64::new(self.op.0),
            offset: U64::new(self.offset),
            length: U32::new(self.length),
            payload: U32::new(payload),
            replica: U32::new(self.replica.0),
            status: U16::new(self.status as u16),
            zero: U16::ZERO,
            payload_crc: U32::new(payload_crc),
            header_crc: U32::ZERO,
        };
        raw.header_crc = U32::new(header_crc(&raw));
        let mut bytes = [0; HEADER];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }
}

/// A header with what it says of its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Framed {
    /// The message.
    pub header: Header,
    /// Bytes that follow.
    pub payload: u32,
    /// Their checksum.
    pub payload_crc: u32,
}

/// Bytes that are not a message. The connection they came on is of no more use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum WireError {
    /// Not this protocol.
    #[error("not a Stor replication message (magic {0:#010x})")]
    Magic(u32),
    /// Another version.
    #[error("protocol version {0}, this side speaks {VERSION}")]
    Version(u8),
    /// Damaged on the way.
    #[error("header checksum {found:#010x} does not match {computed:#010x}")]
    HeaderChecksum {
        /// In the header.
        found: u32,
        /// Of the header.
        computed: u32,
    },
    /// Damaged on the way.
    #[error("payload checksum {found:#010x}, {expected:#010x} was announced")]
    PayloadChecksum {
        /// Of what came.
        found: u32,
        /// In the header.
        expected: u32,
    },
    /// A number without meaning.
    #[error("{field} {value} is not known")]
    Code {
        /// Which.
        field: &'static str,
        /// The number.
        value: u64,
    },
    /// Larger than allowed.
    #[error("payload of {0} bytes, at most {MAX_PAYLOAD} are allowed")]
    TooLong(u32),
    /// A field that does not go with the kind.
    #[error("malformed {0:?} message")]
    Malformed(Kind),
}

impl TryFrom<&[u8; HEADER]> for Framed {
    type Error = WireError;

    fn try_from(bytes: &[u8; HEADER]) -> Result<Self, WireError> {
        let raw = Raw::read_from_bytes(bytes).map_err(|_| WireError::Magic(0))?;
        if raw.magic.get() != MAGIC {
            return Err(WireError::Magic(raw.magic.get()));
        }
        let (found, computed) = (raw.header_crc.get(), header_crc(&raw));
        if found != computed && !defect!(HeaderNotChecked) {
            return Err(WireError::HeaderChecksum { found, computed });
        }
        if raw.version != VERSION {
            return Err(WireError::Version(raw.version));
        }
        if raw.flags.get() & !flags::ALL != 0 {
            return Err(WireError::Code {
                field: "flags",
                value: u64::from(raw.flags.get()),
            });
        }
        if raw.payload.get() > MAX_PAYLOAD {
            return Err(WireError::TooLong(raw.payload.get()));
        }
        let header = Header {
            kind: Kind::try_from(raw.kind)?,
            flags: raw.flags.get(),
            volume: VolumeId(uuid::Uuid::from_bytes(raw.volume)),
            replica: ReplicaId(raw.replica.get()),
            view: View {
                epoch: Epoch(raw.epoch.get()),
                config: ConfigSeq(raw.config.get()),
            },
            op: OpId(raw.op.get()),
            offset: raw.offset.get(),
            length: raw.length.get(),
            status: Status::try_from(raw.status.get())?,
        };
        let framed = Self {
            header,
            payload: raw.payload.get(),
            payload_crc: raw.payload_crc.get(),
        };
        if framed.well_formed() {
            Ok(framed)
        } else {
            Err(WireError::Malformed(header.kind))
        }
    }
}

impl Framed {
    /// The payload's checksum, if it is what was sent.
    //= docs/replication.md#R14
    pub fn check(&self, payload: &[u8]) -> Result<u32, WireError> {
        let (found, expected) = (crc32c(payload), self.payload_crc);
        if found == expected || defect!(PayloadNotChecked) {
            Ok(found)
        } else {
            Err(WireError::PayloadChecksum { found, expected })
        }
    }

    /// A write carries exactly its data, a good read answer too; nothing else that touches data carries any.
    fn well_formed(&self) -> bool {
        let header = &self.header;
        let data = if header.status == Status::Ok {
            header.length
        } else {
            0
        };
        match (header.kind, header.is_reply()) {
            (Kind::Write, false) => self.payload == header.length && header.status == Status::Ok,
            (Kind::Read | Kind::CopyRead, true) => self.payload == data,
            (Kind::Extents, true) => self.payload as usize <= MAX_EXTENTS * EXTENT,
            (Kind::Digest, true) => self.payload as usize <= digest::MAX_ANSWER,
            (
                Kind::Write
                | Kind::Zero
                | Kind::Flush
                | Kind::Ping
                | Kind::Close
                | Kind::ClearMap
                | Kind::Clean
                | Kind::StoreView
                | Kind::PutMap
                | Kind::MaySnapshot
                | Kind::Snapshot
                | Kind::OpenCopy,
                true,
            )
            | (
                Kind::Read
                | Kind::Extents
                | Kind::Zero
                | Kind::Flush
                | Kind::Ping
                | Kind::Close
                | Kind::CopyDigests
                | Kind::CopyRead
                | Kind::Digest,
                false,
            ) => self.payload == 0,
            (Kind::Open, false) => self.payload <= MAX_RIGHT,
            (Kind::OpenCopy, false) => (SNAPSHOT_ID..=SNAPSHOT_ID + MAX_RIGHT).contains(&self.payload),
            (Kind::MaySnapshot | Kind::Snapshot, false) => self.payload == SNAPSHOT_ID,
            (Kind::Open | Kind::GetMap | Kind::CopyDigests, true)
            | (Kind::GetMap | Kind::StoreView | Kind::Clean | Kind::ClearMap | Kind::PutMap, false) => {
                self.payload <= MAX_CONTROL
            }
        }
    }
}

/// [`Header::length`] of a [`Kind::GetMap`] for the dirty map.
pub const DIRTY_MAP: u32 = u32::MAX;

/// Bytes of a snapshot's id.
pub const SNAPSHOT_ID: u32 = 16;

/// Bytes of a block's digest.
pub const DIGEST: usize = 32;

/// Largest right in an Open.
pub const MAX_RIGHT: u32 = 512;

/// Largest payload of a message that carries no data.
pub const MAX_CONTROL: u32 = 1 << 20;

/// CRC32C (Castagnoli), as on the wire and in every stored page.
pub fn crc32c(bytes: &[u8]) -> u32 {
    u32::try_from(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) & 0xffff_ffff).unwrap_or_default()
}

fn header_crc(raw: &Raw) -> u32 {
    let bytes = raw.as_bytes();
    crc32c(bytes.get(..HEADER - 4).unwrap_or_default())
}
