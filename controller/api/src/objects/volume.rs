//! Volumes with their replicas and attachments, where they are placed, and what is left of them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Makes a volume. Asking again with the same values answers the same volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// Name.
    pub name: String,
    /// Bytes; rounded up to a multiple of 4096.
    pub size_bytes: u64,
    /// Class whose values fill what is absent here.
    #[serde(default)]
    pub class: Option<String>,
    /// Number of replicas.
    #[serde(default)]
    pub replicas: Option<u8>,
    /// Pool.
    #[serde(default)]
    pub pool: Option<String>,
    /// Tags a pool must carry.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Node property to spread over.
    #[serde(default)]
    pub spread: Option<String>,
    /// Node property to stay together in.
    #[serde(default)]
    pub together: Option<String>,
    /// The in-sync set never shrinks below this; absent: 1 of up to 2, 2 of 3 and more.
    #[serde(default)]
    pub min_in_sync: Option<u8>,
}

/// Life of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// Its replicas are being made.
    Creating,
    /// Every replica is in sync.
    Healthy,
    /// Some replica is not in sync.
    Degraded,
    /// Nothing was heard yet of it: the controller that leads has begun to a moment ago, and nodes have not dialled it.
    Unknown,
    /// Its engine waits (a member is unreachable and can't be removed, or the catalogue is).
    Suspended,
    /// It can't be served; see `reason`.
    Failed,
    /// The catalogue is older than its data, or may be: it is locked until that is settled (`storctl volume adopt`).
    CatalogueBehind,
    /// Its replicas are being removed.
    Deleting,
}

/// State of a replica as a user sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicaState {
    /// Its files are being made.
    Creating,
    /// Has every acknowledged write.
    InSync,
    /// Misses writes and waits.
    Stale,
    /// Is being brought up to date.
    Syncing,
    /// Its node is not connected.
    Offline,
    /// Its node reports that it can't be used.
    Failed,
    /// Is being removed.
    Deleting,
}

/// One copy of a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Replica {
    /// Volume it belongs to.
    pub volume: String,
    /// Number within the volume, never used twice.
    pub id: u32,
    /// Node.
    pub node: String,
    /// Pool.
    pub pool: String,
    /// What it is doing.
    pub state: ReplicaState,
    /// Member of the in-sync set.
    pub in_sync: bool,
    /// Why it is not in sync or failed; empty otherwise.
    pub reason: String,
    /// Space it takes, truth of the file system.
    pub allocated_bytes: u64,
    /// How far it is in sync, 0 to 100: 100 for a member of the in-sync set; null while it is behind and no resync runs.
    #[serde(default)]
    pub resync_percent: Option<f64>,
    /// Bytes the running resync still has to copy.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub resync_left_bytes: Option<u64>,
    /// It is to go, as soon as the volume's engine can do without it.
    #[serde(default)]
    pub leaving: bool,
    /// Number of the replica whose place it takes once it is in sync.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub replaces: Option<u32>,
}

/// Life of a scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ScrubState {
    /// Copies are being compared, or will be; see `reason`.
    Running,
    /// Everything was compared.
    Complete,
    /// Ended because so much differed.
    TooMuch,
    /// Somebody ended it.
    Cancelled,
    /// Given up, as it did not come to its end in time.
    Overdue,
}

/// The comparison of all copies of a volume that is under way, or was the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Scrub {
    /// Rises with each scrub of the volume.
    pub run: u64,
    /// Where it is in its life.
    pub state: ScrubState,
    /// Why it does not go on now; empty otherwise.
    pub reason: String,
    /// The cluster began it by itself.
    pub scheduled: bool,
    /// What differs is only told.
    pub check_only: bool,
    /// How far it is, 0 to 100.
    pub percent: f64,
    /// Bytes compared.
    pub compared_bytes: u64,
    /// Bytes a second it may read of each replica.
    pub bytes_per_second: u64,
    /// Places that differed or could not be read.
    pub found: u32,
    /// Of these, where it could not be known which copy is right.
    pub chosen: u32,
    /// Made equal.
    pub mended: u32,
    /// Still differ.
    pub remaining: u32,
    /// When it began.
    pub begun: String,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ended: Option<String>,
    /// When all copies were last compared to the end.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_complete: Option<String>,
    /// Places found by this and earlier ones that nobody acknowledged; a scrub that finds nothing takes them back.
    pub unacknowledged: u64,
}

/// Begins a scrub.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScrubSpec {
    /// Only tell what differs, change nothing.
    #[serde(default)]
    pub check_only: bool,
    /// Bytes a second to read of each replica; absent: as the cluster does.
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
}

/// Gives a volume one more replica. What is absent is chosen by the rules the volume was made with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplicaSpec {
    /// Node.
    #[serde(default)]
    pub node: Option<String>,
    /// Pool.
    #[serde(default)]
    pub pool: Option<String>,
    /// Number of the replica whose place it takes: that one goes when this one is in sync.
    #[serde(default)]
    pub replaces: Option<u32>,
}

/// Changes a volume: one thing of it at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeChange {
    /// Bytes, not fewer than it has; rounded up to a multiple of 4096.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// I/O waits rather than go on with fewer copies in sync. Not more than are in sync now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_in_sync: Option<u8>,
}

/// Asks for a volume on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachmentSpec {
    /// Node.
    pub node: String,
    /// `ublk`, `nbd`, `fuse`, `socket`; absent: the class's, else the best the node has.
    #[serde(default)]
    pub transport: Option<String>,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
    /// Take it from the node that has it; its engine is fenced.
    #[serde(default)]
    pub force: bool,
}

/// State of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AttachmentState {
    /// The engine is being started.
    Attaching,
    /// Serves.
    Attached,
    /// I/O waits.
    Suspended,
    /// Cannot serve.
    Failed,
    /// The engine is being stopped.
    Detaching,
    /// Its node is not connected: what it does is not known.
    Unknown,
}

/// The right of one node to use a volume, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Attachment {
    /// Volume.
    pub volume: String,
    /// Node.
    pub node: String,
    /// How the device reaches the kernel.
    pub transport: String,
    /// Refuses writes.
    pub read_only: bool,
    /// Device path on the node; empty for `socket`.
    pub device: String,
    /// For NBD clients on the node; empty for other transports.
    pub nbd_uri: String,
    /// Epoch of its engine.
    pub epoch: u64,
    /// What it is doing.
    pub state: AttachmentState,
    /// Why it is not attached; empty otherwise.
    pub reason: String,
    /// Since the engine began.
    pub counters: Counters,
}

/// What an engine has done since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counters {
    /// Requests.
    pub reads: u64,
    /// Bytes.
    pub read_bytes: u64,
    /// Requests.
    pub writes: u64,
    /// Bytes.
    pub written_bytes: u64,
    /// Requests.
    pub flushes: u64,
    /// Bytes copied to replicas that had missed writes.
    pub resynced_bytes: u64,
    /// Bytes copied to make members equal after an unclean end.
    pub repaired_bytes: u64,
    /// Snapshots made.
    #[serde(default)]
    pub snapshots: u64,
    /// How long writes were held for the last one, made or not: microseconds.
    #[serde(default)]
    pub held_last_us: u64,
    /// The longest of these times.
    #[serde(default)]
    pub held_longest_us: u64,
}

/// A block device kept as replicas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Name.
    pub name: String,
    /// Identity.
    pub id: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Bytes it will have, while it grows.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub growing_to_bytes: Option<u64>,
    /// Class it was made from.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub class: Option<String>,
    /// Life and health.
    pub state: VolumeState,
    /// Why it is not healthy; empty otherwise.
    pub reason: String,
    /// Epoch of the last engine.
    pub epoch: u64,
    /// Number of changes of the in-sync set.
    pub config: u64,
    /// Least in-sync replicas.
    pub min_in_sync: u8,
    /// Its copies.
    pub replicas: Vec<Replica>,
    /// Where it is used.
    pub attachments: Vec<Attachment>,
    /// The comparison of all its copies that is under way, or was the last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scrub: Option<Scrub>,
    /// When it was made.
    pub created: String,
    /// Catalogue revision of its last change.
    pub revision: u64,
}

/// Adopts a volume from its replicas, after the catalogue was restored from an old backup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeAdoption {
    /// Identity of a volume that the catalogue does not know; it gets the name in the path. Absent: the volume of
    /// that name.
    #[serde(default)]
    pub id: Option<String>,
    /// Also when not everything was heard that could hold later data.
    #[serde(default)]
    pub force: bool,
}

/// One node's fate in a placement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlacementVerdict {
    /// Node.
    pub node: String,
    /// Pool considered there; empty when the node has none.
    pub pool: String,
    /// Gets a replica.
    pub chosen: bool,
    /// The first rule that ruled it out, in words; empty when chosen.
    pub reason: String,
}

/// What a create would do (`?dry_run=true`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// What would happen, a line each.
    pub steps: Vec<String>,
    /// Every node and why it was or wasn't taken; empty for plans that place nothing.
    pub placement: Vec<PlacementVerdict>,
}

/// What became of a volume that was deleted by force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Deletion {
    /// The volume; its name is free again.
    pub name: String,
    /// Its id.
    pub id: String,
    /// What its nodes still have of it, all of it: those that are connected remove it in a moment.
    pub left_behind: Vec<Tombstone>,
}

/// Whether a node can remove what is left of a deleted volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TombstoneState {
    /// It is about to.
    Removing,
    /// It is not connected, and does when it is back.
    Offline,
    /// It reports that it can't.
    Failed,
}

/// A replica of a deleted volume, which its node has not removed yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tombstone {
    /// Name the volume had.
    pub volume: String,
    /// Id it had.
    pub volume_id: String,
    /// Number of the replica.
    pub replica: u32,
    /// Node.
    pub node: String,
    /// Pool.
    pub pool: String,
    /// Size the volume had.
    pub size_bytes: u64,
    /// Space it takes there as last reported; null when that was not heard. Never more than the size.
    pub allocated_bytes: Option<u64>,
    /// What the node is doing about it.
    pub state: TombstoneState,
    /// Why it is still there; empty while it is being removed.
    pub reason: String,
    /// When the volume was deleted.
    pub deleted: String,
}
