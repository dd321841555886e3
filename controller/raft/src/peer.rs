//! Who a member of the cluster is and where it is found.

use serde::{Deserialize, Serialize};

/// A member as the others know it; part of every membership entry of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PeerInfo {
    /// Names one member, with one log, for the whole life of the cluster; never used again.
    pub id: u64,
    /// For people.
    pub name: String,
    /// `host:port` on which it serves [`crate::Node::serve`].
    pub peer_address: String,
    /// Where it serves its API, as the application wants it; not used by this crate.
    pub api_address: String,
}

impl std::fmt::Display for PeerInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.peer_address)
    }
}

/// A member's place in the membership: who it is, and with which log.
///
/// The incarnation is made with the log. A node that comes back with an empty directory has the old id but
/// another incarnation, and is not spoken to: it has forgotten its votes, and what it once acknowledged would be
/// counted for a majority though it is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seat {
    #[serde(flatten)]
    pub(crate) peer: PeerInfo,
    pub(crate) incarnation: String,
}
