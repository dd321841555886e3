//! The catalogue's objects as they are stored.

use std::collections::BTreeMap;

use stor_replication::catalogue::VolumeRow;
use stor_replication::ids::{Lineage, ReplicaId, VolumeId};
use stor_right::PublicKey;
use uuid::Uuid;

use super::command::{ClassWish, Device, Leaving, NodeKind, PoolKind, PoolWish, Probe, Purpose, VolumeWish};
use super::scrub::Scrub;

/// A node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Where it is reached.
    pub address: String,
    /// What for.
    pub kind: NodeKind,
    /// Properties for placement.
    pub properties: BTreeMap<String, String>,
    /// `host:port` of its replica server. Written by `NodeSeen`; engines dial it.
    pub data_address: Option<String>,
    /// Version of its satellite; `None` until first seen.
    pub version: Option<String>,
    /// Kernel boot it was last seen in.
    pub boot_id: Option<String>,
    /// What its probe found.
    pub transports: Vec<Probe>,
    /// Last recorded connection state. For events only: the leader knows better from its sessions.
    pub online: Option<bool>,
    /// It is being emptied.
    pub leaving: Option<Leaving>,
    /// When it was last found gone; `None` while it is connected.
    pub offline_since: Option<String>,
    /// Index of the last entry that may have changed what it should hold.
    pub desired: u64,
    /// Index of the last entry that changed it.
    pub revision: u64,
}

/// A pool as its node is told of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolOn {
    /// Name.
    pub name: String,
    /// Kind.
    pub kind: PoolKind,
    /// Directory; `VG/POOL` of a thin pool.
    pub dir: String,
    /// Disks it is made of.
    pub devices: Vec<Device>,
    /// A volume group that Stor did not make may be used.
    pub adopt: bool,
    /// What is on the devices may be overwritten.
    pub wipe: bool,
    /// Its node has reported it usable once: it is not made again.
    pub ready: bool,
}

/// A pool on one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pool {
    /// What was asked for.
    pub wish: PoolWish,
    /// Bytes promised to replicas here.
    pub promised: u64,
    /// Replicas here.
    pub replicas: u64,
    /// Its node has reported once that it can be used.
    pub ready: bool,
    /// Index of the last entry that changed it.
    pub revision: u64,
}

/// A class.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Class {
    /// What was asked for.
    pub wish: ClassWish,
    /// Volumes made from it.
    pub volumes: u64,
    /// Index of the last entry that changed it.
    pub revision: u64,
}

/// A volume with its replicas and its attachment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Volume {
    /// What the data path depends on. Its `revision` is the index of the last entry that changed
    /// anything of the volume.
    pub row: VolumeRow,
    /// Name.
    pub name: String,
    /// Where in its life it is.
    pub phase: VolumePhase,
    /// What was asked for.
    pub wish: VolumeWish,
    /// When it was made.
    pub created: String,
    /// Beside each of `row.replicas`: where it lies.
    pub places: BTreeMap<ReplicaId, Place>,
    /// How the owner uses it; there exactly while there is an owner.
    pub attachment: Option<Attachment>,
    /// The row may be older than the data: nothing is decided by it before it is trusted again or adopted.
    pub doubt: bool,
    /// Size it is to have; its replicas have it first.
    pub grow_to: Option<u64>,
    /// The scrub under way, or the last.
    pub scrub: Option<Scrub>,
}

/// Which history of the catalogue this is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct History {
    /// Identity; the first one is named like the cluster.
    pub id: Uuid,
    /// Restores so far.
    pub generation: u64,
    /// When it was restored.
    pub restored: Option<String>,
    /// Not everything that an earlier history knew was heard yet.
    pub unsettled: bool,
}

/// Life of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VolumePhase {
    /// Its replicas are being made.
    Creating,
    /// Can be attached.
    Available,
    /// Its replicas are being removed; the row goes with the last of them.
    Deleting,
}

/// Where a replica lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Pool on the member's node.
    pub pool: String,
    /// Where in its life it is.
    pub phase: ReplicaPhase,
    /// The replica whose place it takes once it is in sync.
    pub replaces: Option<ReplicaId>,
}

/// Life of a replica's files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplicaPhase {
    /// To be made.
    Creating,
    /// Were made: their absence is a failure.
    Ready,
    /// To be removed.
    Deleting,
}

/// A replica of a volume that is gone, which its node has not removed yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tombstone {
    /// The volume's id.
    pub volume: VolumeId,
    /// Replica.
    pub replica: ReplicaId,
    /// The volume's name, which may be another volume's by now.
    pub name: String,
    /// Node.
    pub node: String,
    /// Pool.
    pub pool: String,
    /// The volume's size.
    pub size: u64,
    /// The history it belongs to.
    pub lineage: Lineage,
    /// Bytes it takes as last reported, where that was heard.
    pub allocated: Option<u64>,
    /// When the volume was deleted.
    pub deleted: String,
}

/// How a volume's owner uses it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// How the device is served.
    pub transport: String,
    /// Writes are refused.
    pub read_only: bool,
    /// For whom.
    pub purpose: Purpose,
    /// The engine is asked to end.
    pub detaching: bool,
}

/// A key rights are signed with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signer {
    /// Whose, by its id in Raft.
    pub controller: u64,
    /// The key.
    pub key: PublicKey,
    /// It opens no new epoch.
    pub retired: bool,
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Rises by one.
    pub seq: u64,
    /// When.
    pub time: String,
    /// `info`, `warning`, `error`.
    pub severity: String,
    /// `volume-created`, …
    pub kind: String,
    /// `volume/db1`, …
    pub object: String,
    /// One sentence.
    pub message: String,
}

macro_rules! words {
    ($name:ident { $($variant:ident = $word:literal),* $(,)? }) => {
        impl $name {
            /// As it is stored.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            /// From its stored form.
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

words!(NodeKind { Storage = "storage", Diskless = "diskless" });
words!(VolumePhase { Creating = "creating", Available = "available", Deleting = "deleting" });
words!(ReplicaPhase { Creating = "creating", Ready = "ready", Deleting = "deleting" });
words!(Leaving { Drain = "drain", Lost = "lost" });
words!(Purpose { User = "user", Healing = "healing" });
