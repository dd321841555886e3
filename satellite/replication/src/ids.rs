//! The numbers and names of the protocol, each its own type.
//!
//! Nothing here knows about files, sockets or clocks. A bare `u64` in a signature of this crate is a
//! defect: an epoch is not a config, an offset is not a length.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The number after this one. Saturates: the last value is never left, so a peer that
            /// sends it cannot make the sequence wrap.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Counts the engines a volume has had: raised in the catalogue by every attach, engine restart
    /// and takeover. A replica refuses any engine of an older epoch (R4, R5).
    Epoch(u64)
);
number!(
    /// Counts the changes of the in-sync set of a volume.
    ConfigSeq(u64)
);
number!(
    /// One copy of a volume. Unique within its volume and never used again, so that nothing kept
    /// about an old replica can be taken for knowledge about a new one.
    ReplicaId(u32)
);
number!(
    /// A comparison of all copies of a volume, counted within it: each one that is begun has the next number.
    ScrubRun(u64)
);
number!(
    /// A client request inside one engine. The shell keeps the request's buffer under this number.
    IoId(u64)
);
number!(
    /// A message from an engine to a replica, answered by the same number. Unique within an epoch.
    OpId(u64)
);
number!(
    /// A TCP connection as the shell of a replica knows it; never used again within the process.
    ConnId(u64)
);

uuid_id!(
    /// A volume's identity; its name may change, this may not.
    VolumeId
);
uuid_id!(
    /// A snapshot's identity. Made anew for each one that is asked for.
    SnapshotId
);
uuid_id!(
    /// The identity of the data's history. Changes only when an operator forces a replica to be
    /// taken as the truth; replicas of different lineages share nothing.
    Lineage
);
uuid_id!(
    /// Identity of the volatile state under a replica: kernel boot and opening of the device. It
    /// changes when acknowledged but unflushed writes may have been lost, and only then: the restart
    /// of a satellite keeps it.
    CacheId
);

/// When a replica was found to have lost acknowledged writes: by which engine, with which message. Of two replicas
/// the one that lost something longer ago has all that the other has: what was acknowledged since, it has as well.
/// Ordered so; [`Loss::NONE`] comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Loss {
    /// The engine.
    pub epoch: Epoch,
    /// Its message: engines number them in the order sent, whoever they are for.
    pub op: OpId,
}

impl Loss {
    /// Nothing is missing.
    pub const NONE: Self = Self {
        epoch: Epoch(0),
        op: OpId(0),
    };
}

/// A point in a volume's life: who may write (`epoch`) and which replicas must have it (`config`).
/// Ordered by epoch first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct View {
    /// Which engine.
    pub epoch: Epoch,
    /// Which in-sync set.
    pub config: ConfigSeq,
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.config)
    }
}
