//! Every change the catalogue can go through. A [`Command`] is what the Raft log holds: it carries its time,
//! its ids and the state it presumes, so that applying it needs neither clock nor random numbers and a
//! repeated or late command is refused instead of doing harm.
//!
//! These types are stored: a field may be added with `#[serde(default)]`, never renamed or given another
//! meaning.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stor_replication::catalogue::Change;
use stor_replication::ids::{ConfigSeq, Epoch, Lineage, ReplicaId, SnapshotId, View, VolumeId};
use stor_right::PublicKey;
use uuid::Uuid;

/// An entry of the log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Command {
    /// When it was proposed, RFC 3339 in UTC; goes into events and `created`.
    pub at: String,
    /// What to change.
    pub action: Action,
}

/// What to change. `expect` of an object is its revision as the proposer saw it; `None`: whatever it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "action")]
pub enum Action {
    /// Gives the cluster its identity; done once, ignored afterwards.
    InitCluster {
        /// The identity.
        id: Uuid,
    },
    /// A controller signs rights with this key from now on; one it had before is retired. Only the public half:
    /// the log, snapshots and backups hold no secret.
    AddSigner {
        /// Controller, by its id in Raft.
        controller: u64,
        /// Its name, for the event.
        name: String,
        /// The key.
        key: PublicKey,
    },
    /// A controller is no more: its keys open no new epoch.
    RetireSigners {
        /// Controller, by its id in Raft.
        controller: u64,
    },
    /// A new node.
    RegisterNode(NodeWish),
    /// Sets properties; an empty value removes one.
    ChangeNode {
        /// Node.
        name: String,
        /// Revision.
        expect: Option<u64>,
        /// Values to set.
        properties: BTreeMap<String, String>,
    },
    /// Forgets a node that holds nothing.
    DeleteNode {
        /// Node.
        name: String,
        /// Revision.
        expect: Option<u64>,
        /// Give up its pools without replicas, and what it still has to remove of deleted volumes.
        #[serde(default)]
        force: bool,
    },
    /// What a satellite told in its first message.
    NodeSeen {
        /// Node.
        name: String,
        /// What it told.
        seen: Seen,
    },
    /// A node came or went. For the event only; nothing is decided by it.
    NodeConnection {
        /// Node.
        name: String,
        /// Connected.
        online: bool,
    },
    /// A pool on one node.
    CreatePool(PoolWish),
    /// Changes a pool on one node; `None` stays.
    ChangePool {
        /// Pool.
        name: String,
        /// Node.
        node: String,
        /// Revision.
        expect: Option<u64>,
        /// Replaces the tags.
        tags: Option<Vec<String>>,
        /// Replaces the limit.
        overprovision_milli: Option<u64>,
    },
    /// What a node reported of pools that it had not made before.
    PoolsObserved {
        /// Reporting node; pools of others are ignored.
        node: String,
        /// Can be used.
        ready: Vec<String>,
    },
    /// Forgets a pool without replicas; its directory is left alone.
    DeletePool {
        /// Pool.
        name: String,
        /// Node.
        node: String,
        /// Revision.
        expect: Option<u64>,
        /// Give up what the node still has to remove there of deleted volumes.
        #[serde(default)]
        force: bool,
        /// Why its node can't use it, when it says so. For the event of a pool that never came to be.
        #[serde(default)]
        refused: Option<String>,
    },
    /// A template.
    CreateClass(ClassWish),
    /// Removes a template; volumes made from it stay as they are.
    DeleteClass {
        /// Class.
        name: String,
        /// Revision.
        expect: Option<u64>,
    },
    /// A volume with its replicas where the planner put them.
    CreateVolume(NewVolume),
    /// Marks a detached volume and its replicas for removal.
    DeleteVolume {
        /// Volume.
        name: String,
        /// Revision.
        expect: Option<u64>,
        /// Every node was heard and nothing of it is left: nothing can be lost, though its row may be old.
        #[serde(default)]
        gone: bool,
        /// At once: what its nodes have of it becomes tombstones.
        #[serde(default)]
        force: Option<ForcedDelete>,
    },
    /// Snapshots of one moment: all become ready, or none.
    CreateSnapshots {
        /// Identity of the batch, made by the proposer.
        batch: Uuid,
        /// Which.
        snapshots: Vec<NewSnapshot>,
    },
    /// Every engine of the batch holds its writes.
    GoSnapshots {
        /// The batch.
        batch: Uuid,
    },
    /// They take too long, or can't be made.
    FailSnapshots {
        /// The batch.
        batch: Uuid,
        /// In words.
        why: String,
    },
    /// Marks a snapshot and its copies for removal.
    DeleteSnapshot {
        /// Which.
        snapshot: SnapshotId,
        /// Revision.
        expect: Option<u64>,
    },
    /// What a node reported of copies that are being removed.
    CopiesObserved {
        /// Reporting node; copies of others are ignored.
        node: String,
        /// Were to be removed and are gone.
        gone: Vec<(SnapshotId, ReplicaId)>,
        /// Were to be made anew and are there.
        #[serde(default)]
        made: Vec<(SnapshotId, ReplicaId)>,
    },
    /// A replica is to have a copy of a snapshot that is ready: it is made anew, of another one.
    RecopySnapshot {
        /// Which.
        snapshot: SnapshotId,
        /// Whose replica has none.
        replica: ReplicaId,
    },
    /// A copy where its volume has no replica any more is to go.
    DropCopy {
        /// Of which.
        snapshot: SnapshotId,
        /// The replica it is called after.
        replica: ReplicaId,
    },
    /// A volume is to be made of what another one holds: by a snapshot, which goes when it is there.
    CloneVolume {
        /// Identity of the batch, made by the proposer.
        batch: Uuid,
        /// The snapshot.
        snapshot: NewSnapshot,
        /// What is made of it.
        into: CloneWish,
    },
    /// What a snapshot was made for can't be made: it goes, and the reason is shown for a while.
    FailClone {
        /// The snapshot.
        snapshot: SnapshotId,
        /// In words.
        why: String,
    },
    /// A volume that begins as a snapshot.
    RestoreSnapshot(Restore),
    /// A detached volume becomes what a snapshot of it holds.
    RollBack(RollBack),
    /// What a node reported of replicas that are being made or removed.
    ReplicasObserved {
        /// Reporting node; replicas of others are ignored.
        node: String,
        /// There and served.
        ready: Vec<(VolumeId, ReplicaId)>,
        /// Were to be deleted and are gone.
        gone: Vec<(VolumeId, ReplicaId)>,
    },
    /// A node found metadata of a replica damaged and did without. For the event only; said once.
    ReplicaMended {
        /// Reporting node.
        node: String,
        /// Volume.
        volume: VolumeId,
        /// Replica.
        replica: ReplicaId,
        /// What was damaged, where, and what was done.
        what: String,
        /// When its node found it, RFC 3339.
        found: String,
    },
    /// An engine's node asks to move the view; see [`Change`].
    ChangeView {
        /// Volume.
        volume: VolumeId,
        /// What to change. Only [`Action::Attach`] attaches.
        change: Change,
        /// The node that asks; must be the owner.
        caller: String,
    },
    /// Gives the right to run the engine to a node.
    Attach(Attach),
    /// Takes it back.
    Detach {
        /// Volume.
        volume: VolumeId,
        /// Epoch the proposer saw.
        expect: Epoch,
        /// At once, without the engine's word: the next engine fences it. Otherwise the engine is asked
        /// to end and says so itself.
        force: bool,
    },
    /// The first entry after a restore from a backup: a new history begins, and nothing is held for known.
    BeginHistory(NewHistory),
    /// Replicas or engines show views above the rows': those rows are older than the data.
    DoubtVolumes {
        /// Volume and the view seen.
        seen: Vec<(VolumeId, View)>,
    },
    /// All that could hold a later view was heard, and does not: the rows are right.
    TrustVolumes {
        /// Volume and its view as compared.
        volumes: Vec<(VolumeId, View)>,
    },
    /// Every node was heard and nothing is left that this history does not know.
    SettleHistory {
        /// The history.
        history: Uuid,
    },
    /// Makes the row of a volume what its replicas say.
    AdoptVolume(Adoption),
    /// A further replica of a volume, which may be in use.
    PlaceReplica {
        /// Volume.
        volume: VolumeId,
        /// Where.
        placement: Placement,
        /// The one whose place it takes: that one leaves once this one is in sync.
        replaces: Option<ReplicaId>,
    },
    /// A replica is to go, as soon as nothing is lost by it.
    LeaveReplica {
        /// Volume.
        volume: VolumeId,
        /// Replica.
        replica: ReplicaId,
    },
    /// Empties a node, or takes that back.
    EmptyNode {
        /// Node.
        name: String,
        /// How; `None`: it may hold replicas again.
        leaving: Option<Leaving>,
    },
    /// A volume is to be larger.
    ResizeVolume {
        /// Volume.
        name: String,
        /// Revision.
        expect: Option<u64>,
        /// Bytes.
        size: u64,
        /// What was presumed of the pools of its replicas.
        pools: Vec<Placement>,
    },
    /// How many replicas must be in sync for a volume to be written is another number.
    SetLeastInSync {
        /// Volume.
        name: String,
        /// Revision.
        expect: Option<u64>,
        /// Replicas.
        least: u8,
    },
    /// All copies of a volume are to be compared.
    StartScrub {
        /// Volume.
        volume: String,
        /// The cluster wants it by itself.
        scheduled: bool,
        /// What differs is made equal.
        mend: bool,
        /// Bytes each replica may read a second.
        rate: u64,
    },
    /// The scrub under way ends.
    EndScrub {
        /// Volume.
        volume: String,
        /// Only this one; `None`: whichever.
        run: Option<u64>,
        /// It took too long; otherwise somebody wants it.
        overdue: bool,
    },
    /// Somebody has seen what scrubs found.
    AcknowledgeScrub {
        /// Volume.
        volume: String,
    },
    /// Every replica in sync reported this size: the volume has it.
    GrowVolume {
        /// Volume.
        volume: VolumeId,
        /// Bytes.
        size: u64,
    },
}

/// How a node is emptied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leaving {
    /// It is there: its replicas move away.
    Drain,
    /// It is gone: its replicas are replaced.
    Lost,
}

/// See [`Action::CreateSnapshots`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewSnapshot {
    /// Identity, made by the proposer.
    pub id: SnapshotId,
    /// Volume, by name.
    pub volume: String,
    /// Name.
    pub name: String,
}

/// See [`Action::CloneVolume`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CloneWish {
    /// Identity of the volume, made by the proposer.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// History of its data, made by the proposer.
    pub lineage: Lineage,
    /// Number of replicas; absent: as many as the snapshot has copies.
    pub replicas: Option<u8>,
    /// Least in-sync replicas.
    pub min_in_sync: Option<u8>,
}

impl CloneWish {
    /// The same is asked for, whoever made the ids.
    pub fn is_like(&self, other: &Self) -> bool {
        let asked = |one: &Self| (one.name.clone(), one.replicas, one.min_in_sync);
        asked(self) == asked(other)
    }
}

/// See [`Action::RestoreSnapshot`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Restore {
    /// The volume to be made, with the snapshot's size.
    pub new: NewVolume,
    /// What of.
    pub snapshot: SnapshotId,
    /// For each placement, whose copy in that pool it begins as; `None`: it gets everything by a resync.
    pub copies: Vec<Option<ReplicaId>>,
}

/// See [`Action::RollBack`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RollBack {
    /// The volume.
    pub volume: VolumeId,
    /// To what.
    pub snapshot: SnapshotId,
    /// Epoch the proposer saw: nobody attached it since.
    pub expect: Epoch,
    /// New history of its data.
    pub lineage: Lineage,
    /// Copies on nodes that are there, by the replicas that made them.
    pub copies: Vec<ReplicaId>,
}

/// See [`Action::BeginHistory`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewHistory {
    /// Identity, made by the proposer.
    pub id: Uuid,
    /// Last entry in the backup.
    pub backup_index: u64,
    /// When the backup was made.
    pub backup_at: String,
}

/// See [`Action::AdoptVolume`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Adoption {
    /// The volume.
    pub volume: VolumeId,
    /// Its name; a new one for a volume that the catalogue does not know.
    pub name: String,
    /// Revision of its row as the proposer saw it; `None`: there is none.
    pub expect: Option<u64>,
    /// Bytes.
    pub size: u64,
    /// History of its data.
    pub lineage: Lineage,
    /// Above every view seen.
    pub view: View,
    /// Least in-sync replicas.
    pub min_in_sync: u8,
    /// All its replicas from now on.
    pub replicas: Vec<AdoptedReplica>,
    /// Where its engine runs and goes on.
    pub owner: Option<AdoptedOwner>,
}

/// One replica of an [`Adoption`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AdoptedReplica {
    /// Number.
    pub replica: ReplicaId,
    /// Node.
    pub node: String,
    /// Pool there.
    pub pool: String,
    /// For a member of the in-sync set, the config it vouches for. The others get everything anew.
    pub joined: Option<ConfigSeq>,
}

/// The engine of an [`Adoption`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AdoptedOwner {
    /// Its node.
    pub node: String,
    /// How it serves the device.
    pub transport: String,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// For whom it runs.
    pub purpose: Purpose,
}

/// What a node is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeKind {
    /// Has pools.
    Storage,
    /// Only attaches.
    Diskless,
}

/// See [`Action::RegisterNode`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeWish {
    /// Name.
    pub name: String,
    /// Host under which others reach it.
    pub address: String,
    /// What for.
    pub kind: NodeKind,
    /// Properties for placement.
    pub properties: BTreeMap<String, String>,
}

/// See [`Action::NodeSeen`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// Of its replica server.
    pub data_address: Option<String>,
    /// Of its satellite.
    pub version: String,
    /// Kernel boot.
    pub boot_id: String,
    /// What its probe found.
    pub transports: Vec<Probe>,
}

/// A way a device can reach a node's kernel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Probe {
    /// `ublk`, `nbd`, `fuse`, `socket`.
    pub name: String,
    /// Usable.
    pub available: bool,
    /// What to do about it; empty when usable.
    pub remedy: String,
}

/// Kinds of pools.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolKind {
    /// A directory.
    #[default]
    File,
    /// An LVM thin pool.
    LvmThin,
}

impl PoolKind {
    /// As it is stored and told.
    pub fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::LvmThin => "lvm-thin",
        }
    }

    /// The kind of this word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::File, Self::LvmThin]
            .into_iter()
            .find(|kind| kind.word() == word)
    }
}

/// A disk as it was when it was chosen.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Device {
    /// `/dev/…`.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// As its node told.
    pub model: String,
    /// As its node told.
    pub serial: String,
}

/// See [`Action::CreatePool`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PoolWish {
    /// Pool.
    pub name: String,
    /// Node.
    pub node: String,
    /// What kind it is of.
    #[serde(default)]
    pub kind: PoolKind,
    /// Directory; `VG/POOL` of a thin pool.
    pub dir: String,
    /// Disks of which a thin pool is made.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// A volume group that Stor did not make may be used.
    #[serde(default)]
    pub adopt: bool,
    /// What is on the devices may be overwritten.
    #[serde(default)]
    pub wipe: bool,
    /// Tags, sorted, each once.
    pub tags: Vec<String>,
    /// Limit of promised over capacity, in thousandths: whole numbers are equal everywhere.
    pub overprovision_milli: u64,
}

/// See [`Action::CreateClass`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClassWish {
    /// Name.
    pub name: String,
    /// Number of replicas.
    pub replicas: u8,
    /// Pool to carve from.
    pub pool: Option<String>,
    /// Tags a pool must carry.
    pub tags: Vec<String>,
    /// Transport for attaches.
    pub transport: Option<String>,
    /// Property that must differ.
    pub spread: Option<String>,
    /// Property that must be the same.
    pub together: Option<String>,
    /// Days between scrubs; `None`: as the cluster does, 0: never.
    #[serde(default)]
    pub scrub_days: Option<u16>,
}

/// What a user asked for; kept to tell a repeated create from another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeWish {
    /// Bytes, rounded up.
    pub size: u64,
    /// Class.
    pub class: Option<String>,
    /// Number of replicas.
    pub replicas: Option<u8>,
    /// Pool.
    pub pool: Option<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// Property that must differ.
    pub spread: Option<String>,
    /// Property that must be the same.
    pub together: Option<String>,
    /// Least in-sync replicas.
    pub min_in_sync: Option<u8>,
}

/// See [`Action::DeleteVolume`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ForcedDelete {
    /// Epoch the proposer saw: nobody who attached the volume since is cut off.
    pub expect: Epoch,
    /// Bytes each replica takes on its node, where that was heard.
    pub allocated: Vec<(ReplicaId, u64)>,
}

/// See [`Action::CreateVolume`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewVolume {
    /// Identity, made by the proposer.
    pub id: VolumeId,
    /// Name.
    pub name: String,
    /// First history of the data.
    pub lineage: Lineage,
    /// What was asked for.
    pub wish: VolumeWish,
    /// Least in-sync replicas, decided.
    pub min_in_sync: u8,
    /// Where its replicas go; replica n is the n-th.
    pub placements: Vec<Placement>,
}

/// One replica as the planner placed it, with what it presumed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Placement {
    /// Node.
    pub node: String,
    /// Pool.
    pub pool: String,
    /// Revision of the pool the planner looked at.
    pub pool_revision: u64,
    /// The most that may be promised in it, this replica included. Keeps concurrent creates from
    /// promising the same space twice without making them refuse each other.
    pub promise_limit: u64,
}

/// See [`Action::Attach`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attach {
    /// Volume.
    pub volume: VolumeId,
    /// Node that gets it.
    pub node: String,
    /// Epoch the proposer saw.
    pub expect: Epoch,
    /// Take it from a present owner.
    pub force: bool,
    /// How the device is served.
    pub transport: String,
    /// Refuse writes.
    pub read_only: bool,
    /// For whom.
    pub purpose: Purpose,
}

/// For whom a volume is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Somebody uses it.
    User,
    /// The cluster brings its replicas up to date; gives way to a user at once.
    Healing,
}
