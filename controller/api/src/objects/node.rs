//! Nodes, and what they have.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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

/// How a node is emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeLeaving {
    /// Its replicas move to other nodes.
    Drain,
    /// It was declared gone: its replicas are replaced.
    Lost,
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
    /// It is being emptied.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub leaving: Option<NodeLeaving>,
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
    /// `ublk`, `nbd`, `fuse`, `socket`.
    pub name: String,
    /// Usable now.
    pub available: bool,
    /// What to do about it; empty when available.
    pub remedy: String,
}

/// A file system of a node on which a pool could be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Mount {
    /// Node.
    pub node: String,
    /// Where it is mounted.
    pub path: String,
    /// `xfs`, `ext4`.
    pub filesystem: String,
    /// Bytes.
    pub capacity_bytes: u64,
    /// Bytes free.
    pub free_bytes: u64,
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
    /// Nobody uses it: with consent, what speaks against it can be overwritten.
    #[serde(default)]
    pub wipeable: bool,
}
