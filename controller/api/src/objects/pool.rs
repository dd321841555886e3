//! Pools, and the classes of volumes carved from them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Makes a pool on one node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolSpec {
    /// Pools of one name on several nodes are one pool to volumes.
    pub name: String,
    /// Node.
    pub node: String,
    /// Directory of a file pool; empty for another kind.
    #[serde(default)]
    pub dir: String,
    /// `VG/POOL` of an LVM thin pool; with `devices`, the names of what is made of them.
    #[serde(default)]
    pub lvm_thin: String,
    /// Unused disks of which a volume group and a thin pool are made.
    #[serde(default)]
    pub devices: Vec<String>,
    /// Consent to use a volume group that Stor did not make.
    #[serde(default)]
    pub adopt: bool,
    /// Consent to overwrite what is on the devices. What is in use is never overwritten.
    #[serde(default)]
    pub wipe: bool,
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
    /// `file`, `lvm-thin`.
    pub kind: String,
    /// Directory; `VG/POOL` of an LVM thin pool.
    pub dir: String,
    /// Disks it was made of.
    #[serde(default)]
    pub devices: Vec<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// Observed.
    pub state: PoolState,
    /// What is wrong; empty when nothing is.
    pub error: String,
    /// Names the file system it is on: pools with the same value share their space. Empty while unknown.
    #[serde(default)]
    pub filesystem: String,
    /// Bytes of the file system, as last reported.
    pub capacity_bytes: u64,
    /// Bytes free in it.
    pub free_bytes: u64,
    /// Of an LVM thin pool: bytes of its metadata, as last reported.
    #[serde(default)]
    pub metadata_capacity_bytes: u64,
    /// Of an LVM thin pool: bytes of it in use. When it is full, the pool is read-only.
    #[serde(default)]
    pub metadata_used_bytes: u64,
    /// Bytes promised to replicas here.
    pub promised_bytes: u64,
    /// Limit of promised over capacity.
    pub overprovision: f64,
    /// How snapshots are made here: `reflink`, `thin`, `copy`; empty while unknown.
    pub snapshots: String,
    /// Replicas here.
    pub replicas: u64,
    /// Its node has looked through it for what belongs to nothing.
    #[serde(default)]
    pub checked: bool,
    /// Catalogue revision of its last change.
    pub revision: u64,
}

/// Something in a pool that belongs to no replica or snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Orphan {
    /// Node.
    pub node: String,
    /// Pool.
    pub pool: String,
    /// Name within the pool.
    pub name: String,
    /// What it is.
    pub what: String,
    /// Bytes it has.
    pub bytes: u64,
}

/// What is to be removed of that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OrphanRemoval {
    /// Names within the pool.
    pub names: Vec<String>,
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
    /// Days between scrubs of its volumes; 0: none but those asked for; absent: as the cluster does.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scrub_days: Option<u16>,
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
