//! The objects of the API, as JSON shows them. `…Spec` is what a client sends to create one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The objects, ordered by name.
    pub items: Vec<T>,
    /// Pass as `?after=` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<String>,
}

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeKind {
    /// Has pools.
    Storage,
    /// Only attaches volumes.
    Diskless,
}

/// Whether a node's satellite is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Heartbeats arrive.
    Online,
    /// None arrived for the configured time.
    Offline,
    /// Registered, never seen.
    New,
}

/// Registers a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    /// See [`crate::name`].
    pub name: String,
    /// Host or address under which other nodes reach it.
    pub address: String,
    /// Storage or diskless.
    pub kind: NodeKind,
    /// Zone, rack, whatever placement goes by.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

/// Changes a node. Absent fields stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeChange {
    /// New values; an empty value removes the property.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

/// A machine with a satellite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where it is reached.
    pub address: String,
    /// Storage or diskless.
    pub kind: NodeKind,
    /// Observed.
    pub state: NodeState,
    /// Properties for placement.
    pub properties: BTreeMap<String, String>,
    /// `host:port` of its replica server, when it has told.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub data_address: Option<String>,
    /// Version of its satellite.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub version: Option<String>,
    /// Ways a device can reach this node's kernel.
    pub transports: Vec<Transport>,
    /// When it was last heard, if this controller's leader heard it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_seen: Option<String>,
    /// Catalogue revision of its last change.
    pub revision: u64,
}

/// A transport as a node's probe found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Transport {
    /// `fuse`, `socket`.
    pub name: String,
    /// Usable now.
    pub available: bool,
    /// What to do about it; empty when available.
    pub remedy: String,
}

/// A block device of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Disk {
    /// Node.
    pub node: String,
    /// `/dev/sdb`.
    pub path: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Model, as the kernel tells.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Spins.
    pub rotational: bool,
    /// Why it can't become a pool; empty when it can.
    pub in_use: String,
}

/// Makes a pool on one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolSpec {
    /// Pools of one name on several nodes are one pool to volumes.
    pub name: String,
    /// Node.
    pub node: String,
    /// Directory of a file pool.
    pub dir: String,
    /// Tags such as `nvme`.
    #[serde(default)]
    pub tags: Vec<String>,
    /// How many times the capacity may be promised to volumes; 0: the default (20).
    #[serde(default)]
    pub overprovision: f64,
}

/// Changes a pool on one node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolChange {
    /// Replaces the tags.
    #[serde(default)]
    pub tags: Option<Vec<String>>,
    /// Replaces the limit.
    #[serde(default)]
    pub overprovision: Option<f64>,
}

/// Whether a pool can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PoolState {
    /// Usable.
    Ready,
    /// Not yet reported by its node.
    Pending,
    /// Its node reports a fault.
    Failed,
    /// Its node is not connected.
    Offline,
}

/// Space on one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Pool {
    /// Name, shared between nodes.
    pub name: String,
    /// Node.
    pub node: String,
    /// `file`.
    pub kind: String,
    /// Directory.
    pub dir: String,
    /// Tags.
    pub tags: Vec<String>,
    /// Observed.
    pub state: PoolState,
    /// What is wrong; empty when nothing is.
    pub error: String,
    /// Bytes of the file system, as last reported.
    pub capacity_bytes: u64,
    /// Bytes free in it.
    pub free_bytes: u64,
    /// Bytes promised to replicas here.
    pub promised_bytes: u64,
    /// Limit of promised over capacity.
    pub overprovision: f64,
    /// How snapshots are made here: `reflink`, `copy`; empty while unknown.
    pub snapshots: String,
    /// Replicas here.
    pub replicas: u64,
    /// Catalogue revision of its last change.
    pub revision: u64,
}

/// A named template for volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassSpec {
    /// Name.
    pub name: String,
    /// Number of replicas; 0: the default (2).
    #[serde(default)]
    pub replicas: u8,
    /// Pool to carve from; absent: any.
    #[serde(default)]
    pub pool: Option<String>,
    /// Tags a pool must carry, all of them.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Transport for attaches; absent: by probe.
    #[serde(default)]
    pub transport: Option<String>,
    /// Node property whose values must all differ between replicas.
    #[serde(default)]
    pub spread: Option<String>,
    /// Node property whose value must be the same for all replicas.
    #[serde(default)]
    pub together: Option<String>,
}

/// A class as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Class {
    /// All that was asked for.
    #[serde(flatten)]
    pub spec: ClassSpec,
    /// Volumes made from it.
    pub volumes: u64,
    /// Catalogue revision of its last change.
    pub revision: u64,
}

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
}

/// Asks for a volume on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachmentSpec {
    /// Node.
    pub node: String,
    /// `fuse`, `socket`; absent: the class's, else the best the node has.
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

/// The catalogue as the leader has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CatalogueInfo {
    /// Identity of the cluster.
    pub cluster_id: String,
    /// Of this history; another one begins with each restore.
    pub history: String,
    /// Restores so far.
    pub generation: u64,
    /// When it was restored from a backup, if it was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub restored: Option<String>,
    /// Last entry applied.
    pub applied: u64,
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

/// Role of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ControllerRole {
    /// Leads.
    Leader,
    /// Votes.
    Follower,
    /// Receives, does not vote yet.
    Learner,
}

/// A controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Controller {
    /// Name.
    pub name: String,
    /// Raft id.
    pub id: u64,
    /// REST address, `http://host:port`.
    pub api_address: String,
    /// gRPC address, `http://host:port`.
    pub peer_address: String,
    /// Role.
    pub role: ControllerRole,
    /// The leader heard it lately.
    pub online: bool,
    /// Log entries it is behind the leader, where known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lag: Option<u64>,
}

/// Weight of an event or check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// For the record.
    Info,
    /// Someone should look.
    Warning,
    /// Something does not work.
    Error,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Rises by one.
    pub seq: u64,
    /// When.
    pub time: String,
    /// Weight.
    pub severity: Severity,
    /// `volume-created`, `replica-removed`, …
    pub kind: String,
    /// `volume/db1`, `node/s1`, …
    pub object: String,
    /// One sentence.
    pub message: String,
}

/// Overall health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum Health {
    /// Nothing to do.
    #[serde(rename = "HEALTH_OK")]
    Ok,
    /// Works, with less than full redundancy or headroom.
    #[serde(rename = "HEALTH_WARN")]
    Warn,
    /// Something does not work.
    #[serde(rename = "HEALTH_ERR")]
    Err,
}

/// One reason why health is not OK.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// `NODE_OFFLINE`, `VOLUME_DEGRADED`, …
    pub code: String,
    /// Weight.
    pub severity: Severity,
    /// One sentence.
    pub message: String,
    /// What it is about: `node/s1`, `volume/db1`.
    pub objects: Vec<String>,
    /// What to do.
    pub remedy: String,
}

/// The cluster on one screen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Identity of the cluster.
    pub cluster_id: String,
    /// Version of the controller that answered as leader.
    pub version: String,
    /// The worst of the checks.
    pub health: Health,
    /// Why.
    pub checks: Vec<Check>,
    /// Controllers.
    pub controllers: Vec<Controller>,
    /// Storage nodes, diskless nodes; online of all.
    pub nodes: StatusNodes,
    /// Pools by name, all nodes together.
    pub pools: Vec<StatusPool>,
    /// Volumes by state.
    pub volumes: BTreeMap<String, u64>,
    /// Running resyncs and other work, a line each.
    pub work: Vec<String>,
}

/// Node counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatusNodes {
    /// Storage nodes online.
    pub storage_online: u64,
    /// Storage nodes.
    pub storage: u64,
    /// Diskless nodes online.
    pub diskless_online: u64,
    /// Diskless nodes.
    pub diskless: u64,
}

/// A pool over all its nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatusPool {
    /// Name.
    pub name: String,
    /// Nodes that have it.
    pub nodes: u64,
    /// Bytes.
    pub capacity_bytes: u64,
    /// Bytes.
    pub free_bytes: u64,
}
