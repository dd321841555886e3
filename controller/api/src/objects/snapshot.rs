//! Snapshots of volumes, what they are made into, and where their copies are.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Names a snapshot to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotSpec {
    /// Volume.
    pub volume: String,
    /// Name, of its own among the volume's snapshots.
    pub name: String,
}

/// Makes snapshots; several are of one moment, and become ready together or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotsSpec {
    /// At least one, each of another volume, 64 at most.
    pub snapshots: Vec<SnapshotSpec>,
}

/// Makes a volume of a snapshot. Asking again with the same values answers the same volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreSpec {
    /// Name of the new volume.
    pub name: String,
    /// Number of replicas; absent: as many as the snapshot has copies.
    #[serde(default)]
    pub replicas: Option<u8>,
    /// The in-sync set never shrinks below this; absent: 1 of up to 2, 2 of 3 and more.
    #[serde(default)]
    pub min_in_sync: Option<u8>,
}

/// Life of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotState {
    /// Is being made.
    Creating,
    /// There.
    Ready,
    /// Was not made; see `reason`.
    Failed,
    /// Its copies are being removed.
    Deleting,
}

/// State of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotCopyState {
    /// Is being made.
    Creating,
    /// There.
    Present,
    /// Is being made anew, of another one.
    Copying,
    /// Should be there and is not.
    Missing,
    /// Its node reports that something can't be done with it.
    Failed,
    /// Its node is not connected.
    Offline,
    /// Is being removed.
    Deleting,
}

/// A replica's copy of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotCopy {
    /// Replica it was made for.
    pub replica: u32,
    /// Node.
    pub node: String,
    /// Pool.
    pub pool: String,
    /// State.
    pub state: SnapshotCopyState,
    /// What is wrong with it; empty otherwise.
    pub reason: String,
    /// Space it refers to; absent while its node has not told.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub allocated_bytes: Option<u64>,
    /// Space of these that nothing else refers to: given back when it goes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub own_bytes: Option<u64>,
    /// While it is made anew: bytes that are known to be equal to the one it is made of.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub copied_bytes: Option<u64>,
}

/// What a volume held at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Volume.
    pub volume: String,
    /// Name.
    pub name: String,
    /// Identity.
    pub id: String,
    /// Bytes of the volume at that time.
    pub size_bytes: u64,
    /// Life.
    pub state: SnapshotState,
    /// Why it failed, or what is wrong with it; empty otherwise.
    pub reason: String,
    /// When it was asked for.
    pub created: String,
    /// Identity of those asked for together.
    pub group: String,
    /// Its copies.
    pub copies: Vec<SnapshotCopy>,
    /// Copies there would be if every replica of the volume had one.
    pub wanted_copies: u64,
    /// Catalogue revision of its last change.
    pub revision: u64,
}
