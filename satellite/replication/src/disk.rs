//! What a replica keeps about itself: superblock, dirty map and out-of-sync maps in a metadata file.
//!
//! Everything is in pages of [`PAGE`] bytes, each with magic, kind, index, sequence number and CRC32C, and
//! each kept twice, A and B, written in turn: a torn write leaves the other copy. The copy with the higher
//! sequence number that checks out is the page. The file is sparse; a place is fixed by what it holds:
//!
//! ```text
//! page 0, 1                         superblock A, B
//! page 2 ..                         dirty map: page i at 2 + 2 i (A) and the next (B)
//! page 2 + 2 D + 2 O s ..           out-of-sync map in slot s, likewise
//! ```
//!
//! with `D` and `O` the pages that a map of the largest volume takes. A page:
//!
//! ```text
//! 0 magic "StP1"  4 version u8  5 kind u8  6 zero u16  8 index u64  16 seq u64  24 replica u32  28 zero u32
//! 32 volume [16]  48 zero [12]  60 crc32c of the page without these four bytes  64 body [4032]
//! ```
//!
//! What can't be read is never taken for clean: a superblock with no good copy makes the replica
//! unusable, a map page with no good copy counts as all ones, a page never written as all zeroes (R11).

use thiserror::Error;

use crate::ids::{CacheId, ConfigSeq, Epoch, Lineage, Loss, OpId, ReplicaId, View, VolumeId};
use crate::info::Reader;
use crate::range::{BLOCK, MAX_VOLUME, REGION};
use crate::wire::crc32c;

/// Bytes of a page. Disks write this much whole or, if not, the other copy is still there.
pub const PAGE: usize = 4096;
/// Bytes of a page's body.
pub const BODY: usize = PAGE - HEAD;
/// Words of a map in one page.
pub const WORDS: u64 = (BODY / 8) as u64;
/// Bits of a map in one page.
pub const BITS: u64 = WORDS * 64;
/// Out-of-sync maps one replica can keep.
pub const SLOTS: usize = crate::catalogue::MAX_REPLICAS - 1;
/// Format written here.
pub const VERSION: u8 = 1;

const HEAD: usize = 64;
const MAGIC: u32 = u32::from_le_bytes(*b"StP1");
const DIRTY_PAGES: u64 = (MAX_VOLUME / REGION).div_ceil(BITS);
const SLOT_PAGES: u64 = (MAX_VOLUME / BLOCK).div_ceil(BITS);

const _: () = assert!(BODY == 4032 && HEAD + BODY == PAGE);

/// Which page: fixes its place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PageId {
    /// The superblock.
    Superblock,
    /// Page of the dirty map.
    Dirty(u64),
    /// Page of the out-of-sync map in a slot.
    OutOfSync(u8, u64),
}

impl PageId {
    /// Byte offset of copy A (`second` false) or B.
    pub fn offset(self, second: bool) -> u64 {
        let page = match self {
            Self::Superblock => 0,
            Self::Dirty(index) => 2 + 2 * index,
            Self::OutOfSync(slot, index) => {
                2 + 2 * DIRTY_PAGES + 2 * SLOT_PAGES * u64::from(slot) + 2 * index
            }
        };
        (page + u64::from(second)) * PAGE as u64
    }

    fn kind(self) -> u8 {
        match self {
            Self::Superblock => 1,
            Self::Dirty(_) => 2,
            Self::OutOfSync(..) => 3,
        }
    }

    fn index(self) -> u64 {
        match self {
            Self::Superblock => 0,
            Self::Dirty(index) => index,
            Self::OutOfSync(slot, index) => u64::from(slot) << 48 | index,
        }
    }
}

/// A page's bytes.
pub type Page = Box<[u8; PAGE]>;

/// Makes a page. A body longer than [`BODY`] is a defect of the caller and is cut.
pub fn encode_page(id: PageId, volume: VolumeId, replica: ReplicaId, seq: u64, body: &[u8]) -> Page {
    let mut bytes = Vec::with_capacity(PAGE);
    bytes.extend(MAGIC.to_le_bytes());
    bytes.extend([VERSION, id.kind(), 0, 0]);
    bytes.extend(id.index().to_le_bytes());
    bytes.extend(seq.to_le_bytes());
    bytes.extend(replica.0.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(volume.0.as_bytes());
    bytes.extend([0; 16]);
    bytes.extend(body.iter().take(BODY));
    bytes.resize(PAGE, 0);
    let mut page: Page = Box::new([0; PAGE]);
    page.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    let crc = page_crc(&page);
    page.iter_mut()
        .skip(60)
        .zip(crc.to_le_bytes())
        .for_each(|(to, from)| *to = from);
    page
}

/// One copy of a page as it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Copy<'a> {
    /// Never written: all zeroes, or beyond the file's end.
    Blank,
    /// Good.
    Good {
        /// Sequence number.
        seq: u64,
        /// Body.
        body: &'a [u8],
    },
    /// Written, and not readable or not ours.
    Bad,
    /// Made by a later version of this program.
    Newer(u8),
}

/// Reads one copy of a page. Identity counts: a page of another replica or place is [`Copy::Bad`].
pub fn decode_copy(bytes: &[u8], id: PageId, volume: VolumeId, replica: ReplicaId) -> Copy<'_> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Copy::Blank;
    }
    let Some(page) = bytes.first_chunk::<PAGE>() else {
        return Copy::Bad;
    };
    let mut from = Reader(page);
    let (Some(magic), Some(kind), Some(_), Some(index), Some(seq), Some(owner), Some(_), Some(of)) = (
        from.u32(),
        from.u16(),
        from.u16(),
        from.u64(),
        from.u64(),
        from.u32(),
        from.u32(),
        from.uuid(),
    ) else {
        return Copy::Bad;
    };
    let [version, kind] = kind.to_le_bytes();
    let mut stored = Reader(page.get(60..64).unwrap_or_default());
    if magic != MAGIC || (stored.u32() != Some(page_crc(page)) && !defect!(PageNotChecked)) {
        return Copy::Bad;
    }
    if version > VERSION {
        return Copy::Newer(version);
    }
    if (kind, index, owner, of) != (id.kind(), id.index(), replica.0, volume.0) {
        return Copy::Bad;
    }
    Copy::Good {
        seq,
        body: page.get(HEAD..).unwrap_or_default(),
    }
}

/// The page that two copies make, with its sequence number, which tells where the next write goes: an
/// even number is in A, an odd one in B.
pub fn newest<'a>(a: Copy<'a>, b: Copy<'a>) -> Copy<'a> {
    match (a, b) {
        (Copy::Newer(version), _) | (_, Copy::Newer(version)) => Copy::Newer(version),
        (Copy::Good { seq: first, .. }, Copy::Good { seq: second, .. }) => {
            if first >= second {
                a
            } else {
                b
            }
        }
        (Copy::Good { .. }, Copy::Blank | Copy::Bad) => a,
        (Copy::Blank | Copy::Bad, Copy::Good { .. }) => b,
        (Copy::Blank, Copy::Blank) => Copy::Blank,
        // A damaged copy beside a blank one may be a torn first write, or a page that was once good.
        (Copy::Bad, _) | (_, Copy::Bad) => Copy::Bad,
    }
}

fn page_crc(page: &[u8; PAGE]) -> u32 {
    let mut copy = *page;
    copy.iter_mut().skip(60).take(4).for_each(|byte| *byte = 0);
    crc32c(&copy)
}

/// The superblock's contents.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Bytes the replica can hold. Written when it is made or grown.
    pub size: u64,
    /// History of its data. Written when it is made, and by the operator's force.
    pub lineage: Lineage,
    /// Engines of an older epoch are refused (R4). Durable before the promise is given.
    pub fence: Epoch,
    /// View last stored by an engine. Read after a crash to tell what this copy can vouch for.
    pub view: View,
    /// The in-sync set of `view`, rising.
    pub in_sync: Vec<ReplicaId>,
    /// Volatile state when an engine last opened it: differs from now, then writes acknowledged since may be
    /// gone (R8, R9).
    pub cache: CacheId,
    /// When it lost acknowledged writes, if it has not been made equal to a better copy since (R8). Durable
    /// before the promise to the engine that found it out, cleared when an engine says so; outlives engines
    /// that do not get that far.
    pub loss: Loss,
    /// The disk failed in this opening (R15); the next one begins with a lost cache.
    pub failed: bool,
    /// How often it was opened after a failure. Part of the identity of its volatile state: kept, so that a
    /// restart without a failure does not look like a loss.
    pub failures: u64,
    /// Out-of-sync maps: absent replica and config where the map begins, by slot.
    pub maps: Vec<Option<(ReplicaId, ConfigSeq)>>,
}

/// Why a replica's metadata can't be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FormatError {
    /// Both copies are damaged or of another replica.
    #[error(
        "both copies of the superblock are damaged or belong to another replica; replace this replica, its \
         data is not trusted"
    )]
    Superblock,
    /// There is none at all.
    #[error("there is no superblock; the file was emptied or never finished")]
    Empty,
    /// A later version of this program made it.
    #[error("the replica has format {0}, this version knows {VERSION}; upgrade this satellite")]
    Newer(u8),
}

impl Superblock {
    /// As a page body.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.extend(self.size.to_le_bytes());
        out.extend(self.lineage.0.as_bytes());
        out.extend(self.fence.0.to_le_bytes());
        out.extend(self.view.epoch.0.to_le_bytes());
        out.extend(self.view.config.0.to_le_bytes());
        out.extend(self.cache.0.as_bytes());
        out.push(u8::from(self.failed));
        out.extend(self.loss.epoch.0.to_le_bytes());
        out.extend(self.failures.to_le_bytes());
        out.push(u8::try_from(self.in_sync.len()).unwrap_or(u8::MAX));
        self.in_sync
            .iter()
            .for_each(|replica| out.extend(replica.0.to_le_bytes()));
        for slot in 0..SLOTS {
            let (replica, since) = self.maps.get(slot).copied().flatten().unwrap_or_default();
            out.push(u8::from(self.maps.get(slot).is_some_and(Option::is_some)));
            out.extend(replica.0.to_le_bytes());
            out.extend(since.0.to_le_bytes());
        }
        // Where it is missing the page ends in zeroes: older than any other loss of that epoch.
        out.extend(self.loss.op.0.to_le_bytes());
        out
    }

    /// From a page body whose checksum held. A size no volume can have is damage too: maps are made by it.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut from = Reader(body);
        let mut superblock = Self {
            size: from.u64().filter(|size| *size <= MAX_VOLUME)?,
            lineage: Lineage(from.uuid()?),
            fence: Epoch(from.u64()?),
            view: View {
                epoch: Epoch(from.u64()?),
                config: ConfigSeq(from.u64()?),
            },
            cache: CacheId(from.uuid()?),
            failed: from.flag()?,
            loss: Loss {
                epoch: Epoch(from.u64()?),
                op: OpId(0),
            },
            failures: from.u64()?,
            in_sync: Vec::new(),
            maps: Vec::new(),
        };
        let (count, rest) = from.0.split_first()?;
        from.0 = rest;
        superblock.in_sync = (0..*count)
            .map(|_| from.u32().map(ReplicaId))
            .collect::<Option<Vec<_>>>()?;
        for _ in 0..SLOTS {
            let used = from.flag()?;
            let entry = (ReplicaId(from.u32()?), ConfigSeq(from.u64()?));
            superblock.maps.push(used.then_some(entry));
        }
        superblock.loss.op = OpId(from.u64()?);
        Some(superblock)
    }

    /// That of a replica just made. `member` names it when the volume is new and all its replicas are empty.
    pub fn fresh(size: u64, lineage: Lineage, cache: CacheId, member: Option<ReplicaId>) -> Self {
        Self {
            size,
            lineage,
            fence: Epoch(0),
            view: View::default(),
            in_sync: member.into_iter().collect(),
            cache,
            failed: false,
            loss: Loss::NONE,
            failures: 0,
            maps: vec![None; SLOTS],
        }
    }
}

/// Reads the superblock from its two copies.
pub fn decode_superblock(
    a: &[u8],
    b: &[u8],
    volume: VolumeId,
    replica: ReplicaId,
) -> Result<(u64, Superblock), FormatError> {
    let id = PageId::Superblock;
    match newest(
        decode_copy(a, id, volume, replica),
        decode_copy(b, id, volume, replica),
    ) {
        Copy::Good { seq, body } => Superblock::decode(body)
            .map(|superblock| (seq, superblock))
            .ok_or(FormatError::Superblock),
        Copy::Blank => Err(FormatError::Empty),
        Copy::Bad => Err(FormatError::Superblock),
        Copy::Newer(version) => Err(FormatError::Newer(version)),
    }
}
