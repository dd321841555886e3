//! Everything a client can ask to be changed, and the HTTP request it becomes. One table, so that a wish and
//! its dry run can't differ in anything but `?dry_run=true`.

use std::fmt::Write as _;

use reqwest::Method;
use serde::Serialize;

use crate::objects::{
    AttachmentSpec, ClassSpec, NodeChange, NodeSpec, OrphanRemoval, PoolChange, PoolSpec, ReplicaSpec,
    RestoreSpec, ScrubSpec, SnapshotsSpec, VolumeAdoption, VolumeChange, VolumeSpec,
};

/// A change somebody wants.
#[derive(Clone, Copy, Debug)]
#[expect(
    missing_docs,
    reason = "the fields are the path's names and the bodies of the API"
)]
pub enum Wish<'a> {
    /// Register a node.
    CreateNode(&'a NodeSpec),
    /// Change a node.
    ChangeNode { name: &'a str, change: &'a NodeChange },
    /// Forget a node.
    DeleteNode { name: &'a str, force: bool },
    /// Make a pool on a node.
    CreatePool(&'a PoolSpec),
    /// Change a pool on a node.
    ChangePool {
        name: &'a str,
        node: &'a str,
        change: &'a PoolChange,
    },
    /// Take a pool away from a node.
    DeletePool {
        name: &'a str,
        node: &'a str,
        force: bool,
    },
    /// Remove what belongs to nothing.
    RemoveOrphans {
        name: &'a str,
        node: &'a str,
        removal: &'a OrphanRemoval,
    },
    /// Make a class.
    CreateClass(&'a ClassSpec),
    /// Take a class away.
    DeleteClass { name: &'a str },
    /// Make a volume.
    CreateVolume(&'a VolumeSpec),
    /// Delete a volume.
    DeleteVolume { name: &'a str, force: bool },
    /// Make snapshots of one moment.
    CreateSnapshots(&'a SnapshotsSpec),
    /// Delete a snapshot.
    DeleteSnapshot { volume: &'a str, name: &'a str },
    /// Make a volume of a snapshot.
    Restore {
        volume: &'a str,
        name: &'a str,
        spec: &'a RestoreSpec,
    },
    /// Make a volume of what another holds.
    Clone { volume: &'a str, spec: &'a RestoreSpec },
    /// Make a volume what a snapshot of it holds.
    RollBack { volume: &'a str, name: &'a str },
    /// Make the catalogue say of a volume what its replicas say.
    AdoptVolume {
        name: &'a str,
        adoption: &'a VolumeAdoption,
    },
    /// Change a volume.
    ChangeVolume { name: &'a str, change: &'a VolumeChange },
    /// Compare all copies of a volume.
    Scrub { volume: &'a str, spec: &'a ScrubSpec },
    /// End that.
    CancelScrub { volume: &'a str },
    /// Take what was found for seen.
    AcknowledgeScrub { volume: &'a str },
    /// Give a volume one more replica.
    CreateReplica { volume: &'a str, spec: &'a ReplicaSpec },
    /// Take a replica away from a volume.
    DeleteReplica {
        volume: &'a str,
        replica: u32,
        force: bool,
    },
    /// Empty a node.
    DrainNode { name: &'a str },
    /// Let a node hold replicas again.
    UndrainNode { name: &'a str },
    /// Declare a node gone.
    LoseNode { name: &'a str },
    /// Attach a volume to a node.
    Attach {
        volume: &'a str,
        spec: &'a AttachmentSpec,
    },
    /// Detach a volume from a node.
    Detach {
        volume: &'a str,
        node: &'a str,
        force: bool,
    },
    /// Take a controller out.
    RemoveController { name: &'a str },
    /// Make a controller the leader.
    TransferLeader { name: &'a str },
}

pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Option<Vec<u8>>,
}

impl Wish<'_> {
    pub(super) fn request(&self, dry_run: bool) -> Request {
        let (method, path, body, force) = match self {
            Self::CreateNode(spec) => (Method::POST, "nodes".to_owned(), body(spec), false),
            Self::ChangeNode { name, change } => (
                Method::PATCH,
                format!("nodes/{}", segment(name)),
                body(change),
                false,
            ),
            Self::DeleteNode { name, force } => {
                (Method::DELETE, format!("nodes/{}", segment(name)), None, *force)
            }
            Self::CreatePool(spec) => (Method::POST, "pools".to_owned(), body(spec), false),
            Self::ChangePool { name, node, change } => (
                Method::PATCH,
                format!("pools/{}/nodes/{}", segment(name), segment(node)),
                body(change),
                false,
            ),
            Self::DeletePool { name, node, force } => (
                Method::DELETE,
                format!("pools/{}/nodes/{}", segment(name), segment(node)),
                None,
                *force,
            ),
            Self::RemoveOrphans { name, node, removal } => (
                Method::POST,
                format!("pools/{}/nodes/{}/remove-orphans", segment(name), segment(node)),
                body(removal),
                false,
            ),
            Self::CreateClass(spec) => (Method::POST, "classes".to_owned(), body(spec), false),
            Self::DeleteClass { name } => (Method::DELETE, format!("classes/{}", segment(name)), None, false),
            Self::CreateVolume(spec) => (Method::POST, "volumes".to_owned(), body(spec), false),
            Self::DeleteVolume { name, force } => {
                (Method::DELETE, format!("volumes/{}", segment(name)), None, *force)
            }
            Self::CreateSnapshots(spec) => (Method::POST, "snapshots".to_owned(), body(spec), false),
            Self::DeleteSnapshot { volume, name } => (Method::DELETE, snapshot(volume, name), None, false),
            Self::Restore { volume, name, spec } => (
                Method::POST,
                format!("{}/restore", snapshot(volume, name)),
                body(spec),
                false,
            ),
            Self::Clone { volume, spec } => (
                Method::POST,
                format!("volumes/{}/clone", segment(volume)),
                body(spec),
                false,
            ),
            Self::RollBack { volume, name } => (
                Method::POST,
                format!("{}/rollback", snapshot(volume, name)),
                None,
                false,
            ),
            Self::AdoptVolume { name, adoption } => (
                Method::POST,
                format!("volumes/{}/adopt", segment(name)),
                body(adoption),
                false,
            ),
            Self::ChangeVolume { name, change } => (
                Method::PATCH,
                format!("volumes/{}", segment(name)),
                body(change),
                false,
            ),
            Self::Scrub { volume, spec } => (
                Method::POST,
                format!("volumes/{}/scrub", segment(volume)),
                body(spec),
                false,
            ),
            Self::CancelScrub { volume } => (
                Method::DELETE,
                format!("volumes/{}/scrub", segment(volume)),
                None,
                false,
            ),
            Self::AcknowledgeScrub { volume } => (
                Method::POST,
                format!("volumes/{}/scrub/acknowledge", segment(volume)),
                None,
                false,
            ),
            Self::CreateReplica { volume, spec } => (
                Method::POST,
                format!("volumes/{}/replicas", segment(volume)),
                body(spec),
                false,
            ),
            Self::DeleteReplica {
                volume,
                replica,
                force,
            } => {
                let path = format!("volumes/{}/replicas/{replica}", segment(volume));
                (Method::DELETE, path, None, *force)
            }
            Self::DrainNode { name } => (
                Method::POST,
                format!("nodes/{}/drain", segment(name)),
                None,
                false,
            ),
            Self::UndrainNode { name } => (
                Method::POST,
                format!("nodes/{}/undrain", segment(name)),
                None,
                false,
            ),
            Self::LoseNode { name } => (Method::POST, format!("nodes/{}/lost", segment(name)), None, false),
            Self::Attach { volume, spec } => (
                Method::POST,
                format!("volumes/{}/attachments", segment(volume)),
                body(spec),
                false,
            ),
            Self::Detach { volume, node, force } => {
                let path = format!("volumes/{}/attachments/{}", segment(volume), segment(node));
                (Method::DELETE, path, None, *force)
            }
            Self::RemoveController { name } => (
                Method::DELETE,
                format!("controllers/{}", segment(name)),
                None,
                false,
            ),
            Self::TransferLeader { name } => (
                Method::POST,
                format!("controllers/{}/transfer-leader", segment(name)),
                None,
                false,
            ),
        };
        let query = match (dry_run, force) {
            (false, false) => "",
            (true, false) => "?dry_run=true",
            (false, true) => "?force=true",
            (true, true) => "?dry_run=true&force=true",
        };
        Request {
            method,
            path: format!("/api/v1/{path}{query}"),
            body,
        }
    }
}

pub(super) fn snapshot(volume: &str, name: &str) -> String {
    format!("snapshots/{}/{}", segment(volume), segment(name))
}

fn body<T: Serialize>(value: &T) -> Option<Vec<u8>> {
    // The API's objects have string keys and finite numbers only, so that this does not fail; if it ever
    // did, the server would refuse the missing body.
    serde_json::to_vec(value).ok()
}

/// A name as one segment of a path or value of a query: whatever a person typed, it stays one.
pub(super) fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'_' | b'~')
            || (byte == b'.' && text.len() > 2)
        {
            out.push(char::from(byte));
        } else if write!(out, "%{byte:02X}").is_err() {
            break; // a String takes everything
        }
    }
    out
}
