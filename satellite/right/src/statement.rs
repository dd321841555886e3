//! What a right says, as bytes. All numbers are little-endian:
//!
//! ```text
//!  0 magic "StR1"      4 version u8   5 flags u8 (1: read-only)   6 zero u16
//!  8 key id [8]       16 volume [16]
//! 32 epoch u64        40 issued u64   48 expires u64              (seconds since 1970)
//! 56 length of the node's name u8, the name
//!  … Ed25519 signature [64] of everything before
//! ```
//!
//! The magic is signed too: a signature of anything else by the same key is no right.

use stor_replication::ids::{Epoch, VolumeId};
use stor_replication::right::RightRefusal;
use uuid::Uuid;

use crate::Seconds;

const MAGIC: &[u8; 4] = b"StR1";
/// Version written, and the newest that is read.
const VERSION: u8 = 1;
const READ_ONLY: u8 = 1;
/// Longest name of a node.
pub const MAX_NODE: usize = 255;
/// Bytes of a signature.
pub(crate) const SIGNATURE: usize = 64;
/// Longest right.
pub const MAX_RIGHT: usize = 57 + MAX_NODE + SIGNATURE;

const _: () = assert!(MAX_RIGHT <= stor_replication::wire::MAX_RIGHT as usize);

/// Names a public key: the beginning of its SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 8]);

impl std::fmt::Debug for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// What a right says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Statement {
    /// The volume it is for.
    pub volume: VolumeId,
    /// The epoch it is for, and no other.
    pub epoch: Epoch,
    /// The node that may run the engine. Replicas can hold it against a peer's certificate, where there is one.
    pub node: String,
    /// Clients of the engine may not write. The engine itself may: it makes copies equal under such an
    /// attachment too, so that replicas take this as information.
    pub read_only: bool,
    /// When it was signed, by the controller's clock.
    pub issued: Seconds,
    /// From then on it opens no new epoch.
    pub expires: Seconds,
}

impl Statement {
    /// The signed part. A node's name longer than [`MAX_NODE`] is a defect of the caller and is cut.
    pub(crate) fn encode(&self, key: KeyId) -> Vec<u8> {
        let node = self.node.as_bytes();
        let node = node.get(..MAX_NODE).unwrap_or(node);
        let mut out = Vec::with_capacity(MAX_RIGHT);
        out.extend(MAGIC);
        out.extend([VERSION, u8::from(self.read_only) * READ_ONLY, 0, 0]);
        out.extend(key.0);
        out.extend(self.volume.0.as_bytes());
        out.extend(self.epoch.0.to_le_bytes());
        out.extend(self.issued.0.to_le_bytes());
        out.extend(self.expires.0.to_le_bytes());
        out.push(u8::try_from(node.len()).unwrap_or(u8::MAX));
        out.extend(node);
        out
    }
}

/// A right taken apart. Nothing it says is true before its signature was checked.
#[derive(Debug)]
pub(crate) struct Parsed<'a> {
    pub(crate) key: KeyId,
    pub(crate) statement: Statement,
    pub(crate) signed: &'a [u8],
    pub(crate) signature: &'a [u8],
}

/// Takes a right apart.
pub(crate) fn parse(right: &[u8]) -> Result<Parsed<'_>, RightRefusal> {
    if right.is_empty() {
        return Err(RightRefusal::Absent);
    }
    let mut from = Bytes(right);
    let (Some(magic), Some([version])) = (from.take::<4>(), from.take::<1>()) else {
        return Err(RightRefusal::Malformed);
    };
    if magic != *MAGIC {
        return Err(RightRefusal::Malformed);
    }
    if version > VERSION {
        return Err(RightRefusal::Newer);
    }
    let (key, statement) = body(version, &mut from).ok_or(RightRefusal::Malformed)?;
    let signature = from.0;
    let signed = right.get(..right.len().saturating_sub(signature.len()));
    match signed {
        Some(signed) if signature.len() == SIGNATURE => Ok(Parsed {
            key,
            statement,
            signed,
            signature,
        }),
        _ => Err(RightRefusal::Malformed),
    }
}

fn body(version: u8, from: &mut Bytes<'_>) -> Option<(KeyId, Statement)> {
    let [flags] = from.take::<1>()?;
    let zero = from.take::<2>()?;
    if version == 0 || flags & !READ_ONLY != 0 || zero != [0; 2] {
        return None;
    }
    let key = KeyId(from.take::<8>()?);
    let volume = VolumeId(Uuid::from_bytes(from.take::<16>()?));
    let [epoch, issued, expires] = [from.take::<8>()?, from.take::<8>()?, from.take::<8>()?];
    let [length] = from.take::<1>()?;
    let (node, rest) = from.0.split_at_checked(usize::from(length))?;
    from.0 = rest;
    let statement = Statement {
        volume,
        epoch: Epoch(u64::from_le_bytes(epoch)),
        node: std::str::from_utf8(node).ok()?.to_owned(),
        read_only: flags & READ_ONLY != 0,
        issued: Seconds(u64::from_le_bytes(issued)),
        expires: Seconds(u64::from_le_bytes(expires)),
    };
    Some((key, statement))
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }
}
