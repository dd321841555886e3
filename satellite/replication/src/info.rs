//! The small payloads: what a replica tells of itself when it is opened, and the roster it stores.

use uuid::Uuid;

use crate::catalogue::MAX_REPLICAS;
use crate::ids::{CacheId, ConfigSeq, Epoch, Lineage, Loss, OpId, ReplicaId, View};

/// A replica's answer to [`crate::wire::Kind::Open`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Info {
    /// Volatile state now (R9).
    pub cache: CacheId,
    /// When it lost acknowledged writes, if it was not made good since (R8).
    pub loss: Loss,
    /// The view it had stored before this engine came.
    pub stored: View,
    /// Whether that view's in-sync set held this replica.
    pub in_sync: bool,
    /// History of its data.
    pub lineage: Lineage,
    /// Bytes it can hold.
    pub size: u64,
    /// Set bits of its dirty map.
    pub dirty: u64,
    /// Absent replicas it keeps a map for, and the config where each begins.
    pub maps: Vec<(ReplicaId, ConfigSeq)>,
}

/// Who is in sync and who is absent since when, for [`crate::wire::Kind::StoreView`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Roster {
    /// The in-sync set, and the replica about to join it, rising.
    pub in_sync: Vec<ReplicaId>,
    /// Replicas that were in the set, and the config that removed each.
    pub absent: Vec<(ReplicaId, ConfigSeq)>,
}

impl Info {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(80 + self.maps.len() * 12);
        out.extend(self.cache.0.as_bytes());
        out.push(u8::from(self.in_sync));
        out.extend(self.loss.epoch.0.to_le_bytes());
        out.extend(self.loss.op.0.to_le_bytes());
        out.extend(self.stored.epoch.0.to_le_bytes());
        out.extend(self.stored.config.0.to_le_bytes());
        out.extend(self.lineage.0.as_bytes());
        out.extend(self.size.to_le_bytes());
        out.extend(self.dirty.to_le_bytes());
        put_absent(&mut out, &self.maps);
        out
    }

    /// From bytes; `None` if they are not what [`Info::encode`] makes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        let info = Self {
            cache: CacheId(from.uuid()?),
            in_sync: from.flag()?,
            loss: Loss {
                epoch: Epoch(from.u64()?),
                op: OpId(from.u64()?),
            },
            stored: View {
                epoch: Epoch(from.u64()?),
                config: ConfigSeq(from.u64()?),
            },
            lineage: Lineage(from.uuid()?),
            size: from.u64()?,
            dirty: from.u64()?,
            maps: from.absent()?,
        };
        from.0.is_empty().then_some(info)
    }
}

impl Roster {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(
            u16::try_from(self.in_sync.len())
                .unwrap_or(u16::MAX)
                .to_le_bytes(),
        );
        for replica in &self.in_sync {
            out.extend(replica.0.to_le_bytes());
        }
        put_absent(&mut out, &self.absent);
        out
    }

    /// From bytes; `None` if they are not what [`Roster::encode`] makes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        let count = from.u16().filter(|count| usize::from(*count) <= MAX_REPLICAS)?;
        let in_sync = (0..count)
            .map(|_| from.u32().map(ReplicaId))
            .collect::<Option<_>>()?;
        let roster = Self {
            in_sync,
            absent: from.absent()?,
        };
        from.0.is_empty().then_some(roster)
    }
}

fn put_absent(out: &mut Vec<u8>, absent: &[(ReplicaId, ConfigSeq)]) {
    out.extend(u16::try_from(absent.len()).unwrap_or(u16::MAX).to_le_bytes());
    for (replica, since) in absent {
        out.extend(replica.0.to_le_bytes());
        out.extend(since.0.to_le_bytes());
    }
}

/// Takes little-endian numbers off the front of bytes from outside.
#[derive(Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    pub(crate) fn uuid(&mut self) -> Option<Uuid> {
        self.take().map(Uuid::from_bytes)
    }

    pub(crate) fn digest(&mut self) -> Option<[u8; 32]> {
        self.take()
    }

    pub(crate) fn flag(&mut self) -> Option<bool> {
        match self.take()? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }

    pub(crate) fn absent(&mut self) -> Option<Vec<(ReplicaId, ConfigSeq)>> {
        let count = self.u16().filter(|count| usize::from(*count) <= MAX_REPLICAS)?;
        (0..count)
            .map(|_| Some((ReplicaId(self.u32()?), ConfigSeq(self.u64()?))))
            .collect()
    }
}
