//! What satellites report: heartbeats, free space, progress. Kept in memory of the leader only; a new
//! leader hears it anew within seconds.
//!
//! Each report is complete, so that the newest one of a node replaces all before it. Readers take a cheap
//! [`Observations`] and join it with rows of the catalogue; nothing here is ever written there as it is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use stor_proto::satellite::{
    Disk, EngineStatus, Mount, PoolStatus, ReplicaStatus, SnapshotCopyStatus, Status,
};
use stor_replication::catalogue::VolumeRow;
use stor_replication::ids::{ConfigSeq, Epoch, ReplicaId, SnapshotId, View, VolumeId};
use tokio::sync::watch;
use uuid::Uuid;

use crate::catalogue::is_above;

/// How often a satellite reports.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// A node not heard for this long is offline: three heartbeats and some slack for a busy machine.
pub const OFFLINE_AFTER: Duration = Duration::from_secs(4);

/// An engine is taken for lost with its node when that was not heard for this long. Much longer than
/// [`OFFLINE_AFTER`]: its agent may only be restarting while the engine serves on, and to be taken for lost costs an
/// unclean end. Whoever can't wait says force.
pub const LOST_AFTER: Duration = Duration::from_secs(30);

/// A node that is not registered goes on dialling; not heard for so long, it has given up.
const STRANGER: Duration = Duration::from_mins(1);
/// Unregistered nodes remembered; more are no more help.
const MOST_STRANGERS: usize = 64;

/// The last report of one node.
#[derive(Clone, Debug)]
pub struct Heard {
    /// When, on this machine's clock.
    pub at: Instant,
    /// When, for people.
    pub time: String,
    /// Pools by name.
    pub pools: BTreeMap<String, PoolStatus>,
    /// Replicas.
    pub replicas: HashMap<(VolumeId, ReplicaId), ReplicaStatus>,
    /// Engines.
    pub engines: HashMap<VolumeId, EngineStatus>,
    /// Copies of snapshots.
    pub copies: HashMap<(SnapshotId, ReplicaId), SnapshotCopyStatus>,
    /// Replicas of which something was found damaged when they were opened, and was done without.
    pub mended: Vec<(VolumeId, ReplicaId)>,
    /// Block devices.
    pub disks: Vec<Disk>,
    /// File systems that could hold pools.
    pub mounts: Vec<Mount>,
    /// History of the desired state it acts on.
    pub history: String,
    /// Whether all its pools were looked through for replicas that nobody asked for.
    pub searched: bool,
}

impl Heard {
    /// Indexes a report. Entries without a valid volume id are dropped: nothing of ours has such a name.
    pub fn new(status: Status, at: Instant, time: String) -> Self {
        let id = |text: &str| Uuid::from_str(text).ok().map(VolumeId);
        let mended = status
            .replicas
            .iter()
            .filter(|replica| !replica.mended.is_empty());
        let mended = mended
            .filter_map(|replica| Some((id(&replica.volume_id)?, ReplicaId(replica.replica))))
            .collect();
        Self {
            mended,
            at,
            time,
            pools: status
                .pools
                .into_iter()
                .map(|pool| (pool.name.clone(), pool))
                .collect(),
            replicas: status
                .replicas
                .into_iter()
                .filter_map(|replica| Some(((id(&replica.volume_id)?, ReplicaId(replica.replica)), replica)))
                .collect(),
            engines: status
                .engines
                .into_iter()
                .filter_map(|engine| Some((id(&engine.volume_id)?, engine)))
                .collect(),
            copies: status
                .snapshots
                .into_iter()
                .filter_map(|copy| {
                    let id = Uuid::from_str(&copy.snapshot_id).ok().map(SnapshotId)?;
                    Some(((id, ReplicaId(copy.replica)), copy))
                })
                .collect(),
            disks: status.disks,
            mounts: status.mounts,
            history: status.history,
            searched: status.searched,
        }
    }
}

/// All reports at one moment.
#[derive(Clone, Debug)]
pub struct Observations {
    nodes: BTreeMap<String, Arc<Heard>>,
    now: Instant,
    presumed: BTreeSet<String>,
    strangers: Vec<String>,
    /// How long whoever took these has listened.
    listened: Duration,
}

impl Observations {
    /// From reports by node.
    pub fn new(nodes: BTreeMap<String, Arc<Heard>>, now: Instant) -> Self {
        Self {
            nodes,
            now,
            presumed: BTreeSet::new(),
            strangers: Vec::new(),
            listened: Duration::MAX,
        }
    }

    /// By a leader that has led only so long.
    #[must_use]
    pub fn listened(mut self, listened: Duration) -> Self {
        self.listened = listened;
        self
    }

    /// Whether nothing is known of a node: it was not heard by this leader, who does not lead for long enough for that to
    /// mean anything.
    pub fn unheard(&self, node: &str) -> bool {
        !self.nodes.contains_key(node) && self.listened < LOST_AFTER
    }

    /// Nodes that dialled in lately and are not registered.
    pub fn strangers(&self) -> &[String] {
        &self.strangers
    }

    /// Takes nodes for online that were not heard yet: those the catalogue last recorded as online, while a new
    /// leader waits for them to dial it.
    #[must_use]
    pub fn presuming(mut self, nodes: Vec<String>) -> Self {
        self.presumed = nodes
            .into_iter()
            .filter(|node| !self.nodes.contains_key(node))
            .collect();
        self
    }

    /// The last report of a node, however old.
    pub fn last(&self, node: &str) -> Option<&Heard> {
        self.nodes.get(node).map(Arc::as_ref)
    }

    /// The report of a node that is online.
    pub fn node(&self, node: &str) -> Option<&Heard> {
        self.last(node)
            .filter(|heard| self.now.saturating_duration_since(heard.at) < OFFLINE_AFTER)
    }

    /// Whether it was heard lately, or is presumed to be heard soon.
    pub fn online(&self, node: &str) -> bool {
        self.node(node).is_some() || self.presumed.contains(node)
    }

    /// Whether a node was silent for so long that its engines are taken for lost; `led` is how long this leader has
    /// listened.
    pub fn lost(&self, node: &str, led: Duration) -> bool {
        let silent = self
            .last(node)
            .map_or(led, |heard| self.now.saturating_duration_since(heard.at));
        silent >= LOST_AFTER
    }

    /// What a node that is online reports of a replica.
    pub fn replica(&self, node: &str, volume: VolumeId, replica: ReplicaId) -> Option<&ReplicaStatus> {
        self.node(node)?.replicas.get(&(volume, replica))
    }

    /// What a node that is online reports of a copy of a snapshot.
    pub fn copy(&self, node: &str, snapshot: SnapshotId, replica: ReplicaId) -> Option<&SnapshotCopyStatus> {
        self.node(node)?.copies.get(&(snapshot, replica))
    }

    /// A node whose replica has stored a view above the row's: the catalogue lost entries, for instance by being
    /// restored from a backup. Whatever it says of in-sync replicas may be wrong.
    pub fn ahead_of<'a>(&self, row: &'a VolumeRow) -> Option<(&'a str, View)> {
        row.replicas.iter().find_map(|(id, member)| {
            let report = self.replica(&member.node, row.volume, *id)?;
            let stored = View {
                epoch: Epoch(report.stored_epoch),
                config: ConfigSeq(report.stored_config),
            };
            is_above(stored, row.view).then_some((member.node.as_str(), stored))
        })
    }

    /// What a node that is online reports of an engine, when it is the one of `epoch`.
    pub fn engine(&self, node: &str, volume: VolumeId, epoch: u64) -> Option<&EngineStatus> {
        self.node(node)?
            .engines
            .get(&volume)
            .filter(|engine| engine.epoch == epoch)
    }

    /// Whether a node is presumed to come.
    pub fn awaits(&self) -> bool {
        !self.presumed.is_empty()
    }

    /// Nodes heard so far.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Heard)> {
        self.nodes
            .iter()
            .map(|(name, heard)| (name.as_str(), heard.as_ref()))
    }
}

/// The reports as they come in.
#[derive(Debug)]
pub struct Observed {
    nodes: Mutex<BTreeMap<String, Arc<Heard>>>,
    strangers: Mutex<BTreeMap<String, Instant>>,
    changes: watch::Sender<u64>,
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            nodes: Mutex::default(),
            strangers: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }
}

impl Observed {
    /// Takes a report.
    pub fn hear(&self, node: &str, heard: Heard) {
        self.lock().insert(node.to_owned(), Arc::new(heard));
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Notes that a node dialled in that is not registered.
    pub fn stranger(&self, node: &str) {
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        strangers.retain(|_, seen| seen.elapsed() < STRANGER);
        if strangers.len() < MOST_STRANGERS || strangers.contains_key(node) {
            strangers.insert(node.to_owned(), Instant::now());
        }
    }

    /// Forgets everything: what was heard by an earlier leadership says nothing about now.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Forgets a deleted node.
    pub fn forget(&self, node: &str) {
        self.lock().remove(node);
    }

    /// All there is now.
    pub fn look(&self) -> Observations {
        let mut look = Observations::new(self.lock().clone(), Instant::now());
        let strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        look.strangers = strangers
            .iter()
            .filter(|(node, seen)| seen.elapsed() < STRANGER && !look.nodes.contains_key(*node))
            .map(|(node, _)| node.clone())
            .collect();
        look
    }

    /// Moves with every report.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Heard>>> {
        // A panic while it was held can't have left the map half changed.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
