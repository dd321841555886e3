//! The objects of the API, as JSON shows them. `…Spec` is what a client sends to create one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod node;
mod pool;
mod snapshot;
mod volume;

pub use node::{Disk, Mount, Node, NodeChange, NodeKind, NodeLeaving, NodeSpec, NodeState, Transport};
pub use pool::{Class, ClassSpec, Orphan, OrphanRemoval, Pool, PoolChange, PoolSpec, PoolState};
pub use snapshot::{
    RestoreSpec, Snapshot, SnapshotCopy, SnapshotCopyState, SnapshotSpec, SnapshotState, SnapshotsSpec,
};
pub use volume::{
    Attachment, AttachmentSpec, AttachmentState, Counters, Deletion, PlacementVerdict, Plan, Replica,
    ReplicaSpec, ReplicaState, Scrub, ScrubSpec, ScrubState, Tombstone, TombstoneState, Volume,
    VolumeAdoption, VolumeChange, VolumeSpec, VolumeState,
};

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The objects, ordered by name.
    pub items: Vec<T>,
    /// Pass as `?after=` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<String>,
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
    /// File systems it is on; fewer than nodes where satellites of one machine share one.
    #[serde(default)]
    pub filesystems: u64,
    /// Bytes.
    pub capacity_bytes: u64,
    /// Bytes.
    pub free_bytes: u64,
}
