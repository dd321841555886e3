//! Snapshots as somebody asks for them, and what must hold of each that is ready: its copies are equal on every block,
//! and each block is what a read of it would have been, begun when it was asked for and ended when it was ready.

use std::collections::BTreeMap;

use stor_replication::catalogue::{Change, Refusal};
use stor_replication::engine::{self, SnapshotAsk};
use stor_replication::ids::{ReplicaId, SnapshotId};
use stor_replication::replica::{self, SnapshotError};
use uuid::Uuid;

use super::disk::Running;
use super::recopies::Recopies;
use super::world::{MS, SECOND, World};

/// How long one may take before whoever asked gives it up.
const PATIENCE: u64 = 30 * SECOND;

/// One that is ready.
pub(crate) struct Ready {
    pub(crate) members: Vec<ReplicaId>,
    pub(crate) content: Vec<u64>,
}

impl Snapshots {
    pub(crate) fn new(seed: u64) -> Self {
        let recopies = Recopies::new(seed);
        Self {
            recopies,
            ..Self::default()
        }
    }

    /// When the one that is to be made was asked for: what could be read since may be in it.
    pub(crate) fn begun(&self) -> Option<u64> {
        self.wanted.map(|(_, begun, _)| begun)
    }

    /// Nobody wants the one that is being made any more.
    pub(crate) fn give_up(&mut self) {
        self.wanted = None;
    }

    /// A replica's disk was replaced by an older copy of it.
    pub(crate) fn forget(&mut self, replica: ReplicaId) {
        for ready in self.ready.values_mut() {
            ready.members.retain(|member| *member != replica);
        }
    }
}

/// What the catalogue keeps of snapshots.
#[derive(Default)]
pub(crate) struct Snapshots {
    /// The one that is to be made: since when it is asked for, in the oracle's time and the world's.
    wanted: Option<(SnapshotId, u64, u64)>,
    pub(crate) ready: BTreeMap<SnapshotId, Ready>,
    pub(crate) failed: u64,
    /// Copies made anew, and those under way.
    pub(crate) recopied: u64,
    pub(crate) recopies: Recopies,
    asked: u128,
}

impl World {
    /// Asks for snapshots, and tells engines what is asked for, now and then something old.
    pub(crate) fn tend_snapshots(&mut self) {
        if self.finished {
            return;
        }
        let next = self.rng.spread(20 * MS, SECOND);
        self.after(next, super::world::What::Snapshot);
        self.tend_recopies();
        let now = self.now;
        if let Some((snapshot, _, since)) = self.snapshots.wanted
            && now - since > PATIENCE
        {
            self.log(|| format!("snapshot {snapshot} is given up"));
            self.snapshots.wanted = None;
        }
        if self.snapshots.wanted.is_none()
            && !self.quiet
            && !self.scrubs.rotting
            && self.rng.chance(self.plan.snapshots)
        {
            self.snapshots.asked += 1;
            let id = SnapshotId(Uuid::from_u128(self.snapshots.asked));
            self.log(|| format!("snapshot {id} is asked for"));
            self.snapshots.wanted = Some((id, self.tick(), now));
        }
        let hold = self.rng.chance(20);
        let ask = self
            .snapshots
            .wanted
            .map(|(snapshot, ..)| SnapshotAsk { snapshot, hold });
        let engines: Vec<u64> = self.engines.keys().copied().collect();
        for engine in engines {
            if self.rng.chance(70) && self.wrong.is_none() {
                self.engine_event(engine, engine::Event::Snapshot(ask));
            }
        }
    }

    pub(crate) fn snapshot_done(&mut self, node: usize, op: u64, running: &Running) {
        let (_, disk) = self.nodes[node].store.as_mut().unwrap();
        let result = if disk.full {
            Err(SnapshotError::NoSpace)
        } else if disk.broken {
            Err(SnapshotError::Failed)
        } else if self.rng.chance(2) {
            Err(SnapshotError::Unknown)
        } else {
            disk.finish(&mut self.rng, running)
                .map_or(Err(SnapshotError::Failed), |_| Ok(()))
        };
        self.replica_event(node, replica::Event::SnapshotDone { op, result });
    }

    /// Only one that is being made can become ready or fail.
    pub(crate) fn snapshot_wanted(&self, change: &Change) -> Result<(), Refusal> {
        let (Change::SnapshotReady { snapshot, .. } | Change::SnapshotFailed { snapshot, .. }) = change
        else {
            return Ok(());
        };
        let known = self.snapshots.ready.contains_key(snapshot);
        match self.snapshots.wanted {
            Some((wanted, ..)) if wanted == *snapshot => Ok(()),
            // Asked again: its answer was lost.
            _ if known && matches!(change, Change::SnapshotReady { .. }) => Ok(()),
            _ => Err(Refusal::NoSuchSnapshot { snapshot: *snapshot }),
        }
    }

    pub(crate) fn snapshot_told(&mut self, change: &Change) {
        let Some((wanted, begun, _)) = self.snapshots.wanted else {
            return;
        };
        match change {
            Change::SnapshotReady {
                snapshot, members, ..
            } if *snapshot == wanted => {
                self.snapshots.wanted = None;
                self.snapshot_ready(wanted, begun, members);
            }
            Change::SnapshotFailed { snapshot, .. } if *snapshot == wanted => {
                self.snapshots.wanted = None;
                self.snapshots.failed += 1;
            }
            _ => {}
        }
    }

    fn snapshot_ready(&mut self, snapshot: SnapshotId, begun: u64, members: &[ReplicaId]) {
        let at = self.tick();
        let Some(content) = members.iter().find_map(|member| self.copy_of(*member, snapshot)) else {
            return self.violate(format!("snapshot {snapshot} is ready and nowhere"));
        };
        let lossy = self.ever_wiped;
        for (block, content) in (0..).zip(&content) {
            if lossy && self.ever_bad.contains(&block) {
                continue;
            }
            if let Err(wrong) = self.oracle.read(begun, at, block, *content) {
                return self.violate(format!("snapshot {snapshot} of {members:?}: {wrong}"));
            }
        }
        let members = members.to_vec();
        self.snapshots.ready.insert(snapshot, Ready { members, content });
        self.check_snapshots();
    }

    fn copy_of(&self, replica: ReplicaId, snapshot: SnapshotId) -> Option<Vec<u64>> {
        let node = self.node_of(replica)?;
        self.nodes[node].store.as_ref()?.1.snapshot(snapshot)
    }

    /// Every copy of every snapshot that is ready is what it was when it became ready.
    pub(crate) fn check_snapshots(&mut self) {
        let mut wrong = None;
        for (snapshot, ready) in &self.snapshots.ready {
            for member in &ready.members {
                if self.node_of(*member).is_none() {
                    continue;
                }
                let Some(copy) = self.copy_of(*member, *snapshot) else {
                    wrong = Some(format!(
                        "snapshot {snapshot} is ready, and replica {member} has no copy"
                    ));
                    continue;
                };
                let differs = (0..)
                    .zip(copy.iter().zip(&ready.content))
                    .find(|(_, (a, b))| a != b);
                if let Some((block, (is, was))) = differs {
                    wrong = Some(format!(
                        "snapshot {snapshot}: block {block} is {is} at replica {member}, {was} when it became ready"
                    ));
                }
            }
        }
        if let Some(wrong) = wrong {
            self.violate(wrong);
        }
    }
}
