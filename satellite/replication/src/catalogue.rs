//! What the catalogue holds of one volume, and every change it may go through.
//!
//! [`decide`] is a pure function: the controller runs it inside the transaction that applies a Raft
//! entry, the simulation runs it directly. A change names the state it expects; when the row has moved
//! on, the change is refused and the refusal carries the current row, so that a proposer that never
//! heard its answer learns the outcome by asking again (R2, R3).
//!
//! Not here: pools, names, tags, placement. The controller keeps those beside this row.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{ConfigSeq, Epoch, Lineage, ReplicaId, ScrubRun, SnapshotId, View, VolumeId};
use crate::scrub::ScrubReport;

/// The most replicas one volume can have, present and absent together.
pub const MAX_REPLICAS: usize = 8;

/// The catalogue's row of one volume, as far as the data path depends on it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeRow {
    /// The volume.
    pub volume: VolumeId,
    /// Bytes; a multiple of 4096.
    pub size: u64,
    /// Raised by every change of this row; a later row always has a higher one.
    pub revision: u64,
    /// The current epoch and config. `(0, 0)` until the first attach.
    pub view: View,
    /// The node whose engine has the right of `view.epoch`, if any.
    pub owner: Option<String>,
    /// The last engine ended in order: nothing in flight, all flushed, no dirty region.
    pub clean: bool,
    /// `clean` as it stood when `view.epoch` began: tells the engine whether to wait for members
    /// that do not answer (R5) and what to expect of dirty maps (R8).
    pub clean_before: bool,
    /// History of the data.
    pub lineage: Lineage,
    /// The in-sync set never shrinks below this many; I/O is suspended instead (R16).
    pub min_in_sync: u8,
    /// Every replica of the volume.
    pub replicas: BTreeMap<ReplicaId, Member>,
}

/// One replica in a [`VolumeRow`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// The node that holds it.
    pub node: String,
    /// The config that last put it into the in-sync set; zero for the replicas a volume begins with,
    /// `None` for one that never was in it. A superblock older than this was restored from a copy.
    pub joined: Option<ConfigSeq>,
    /// Whether it has every acknowledged write.
    pub state: MemberState,
    /// It is in sync and to go: its engine removes it as soon as that is safe, and then it is no replica any more.
    #[serde(default)]
    pub leaving: bool,
}

/// What the catalogue says of a replica. `Syncing` is not here: progress is the engine's to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum MemberState {
    /// In the in-sync set.
    InSync,
    /// Left the set when `since` began; `None`: never was in it, so that it needs everything.
    Stale {
        /// The config that removed it.
        since: Option<ConfigSeq>,
        /// Why.
        reason: EjectReason,
    },
}

/// Why a replica left the in-sync set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EjectReason {
    /// Made later than the volume; waits for its first full copy.
    New,
    /// Its connection was lost and did not come back in time.
    Unreachable,
    /// A request got no answer within its deadline.
    TimedOut,
    /// Its disk failed a write or a flush (R15).
    DiskFailed,
    /// Its pool is full.
    NoSpace,
    /// It came back without the writes its disk had acknowledged (R9).
    CacheLost,
    /// It refused a request of the current view: what it has stored disagrees with the catalogue.
    Disagrees,
    /// The operator took it out.
    Operator,
}

impl fmt::Display for EjectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "new",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed-out",
            Self::DiskFailed => "disk-failed",
            Self::NoSpace => "no-space",
            Self::CacheLost => "cache-lost",
            Self::Disagrees => "disagrees",
            Self::Operator => "operator",
        })
    }
}

/// Why a snapshot was not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotTrouble {
    /// Writes were held for as long as they may be, and not every member had finished.
    TimedOut,
    /// The in-sync set, a connection to it or what it holds changed meanwhile.
    Disturbed,
    /// The file system or pool can't share blocks.
    NotSupported,
    /// No room.
    NoSpace,
    /// The copy could not be made or not be made durable.
    DiskFailed,
    /// The volume's engine ended.
    Stopped,
}

impl fmt::Display for SnapshotTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TimedOut => "timed-out",
            Self::Disturbed => "disturbed",
            Self::NotSupported => "not-supported",
            Self::NoSpace => "no-space",
            Self::DiskFailed => "disk-failed",
            Self::Stopped => "stopped",
        })
    }
}

/// A change somebody wants, with the state it presumes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "change")]
pub enum Change {
    /// Give the right to run an engine to `owner`, under a new epoch.
    Attach {
        /// Node that gets it.
        owner: String,
        /// Epoch the proposer saw.
        expect: Epoch,
        /// Take it from a present owner.
        force: bool,
    },
    /// The owner's engine process is gone; its next one needs a new epoch, always.
    Restart {
        /// Must be the present owner.
        owner: String,
        /// Epoch of the engine that ended.
        expect: Epoch,
    },
    /// The right of `expect` is given up. `clean` only when that engine said so itself.
    Detach {
        /// Epoch that ends.
        expect: Epoch,
        /// Drained, flushed, no dirty region left.
        clean: bool,
    },
    /// Take members out of the in-sync set (R2).
    Remove {
        /// View under which the engine acts.
        expect: View,
        /// Who and why.
        members: Vec<(ReplicaId, EjectReason)>,
    },
    /// Put a replica that has caught up into the in-sync set (R3).
    Add {
        /// View under which the engine acts.
        expect: View,
        /// Who.
        member: ReplicaId,
    },
    /// Every member has its copy of a snapshot (S4). Changes nothing of the row but its revision; what is kept of
    /// the snapshot beside the row becomes ready.
    SnapshotReady {
        /// View under which the copies were made.
        expect: View,
        /// Which.
        snapshot: SnapshotId,
        /// Who has a copy.
        members: Vec<ReplicaId>,
    },
    /// A snapshot was not made: copies there may be are to be removed.
    SnapshotFailed {
        /// Epoch of the engine that tried.
        expect: Epoch,
        /// Which.
        snapshot: SnapshotId,
        /// Why.
        why: SnapshotTrouble,
        /// At which replica, if at one.
        replica: Option<ReplicaId>,
    },
    /// How far the scrub of an engine is, and what it found. Changes nothing of the row but its revision.
    Scrubbed {
        /// Epoch of the engine.
        expect: Epoch,
        /// What it says.
        report: ScrubReport,
    },
    /// A further replica, empty: it is brought up to date like one that was away.
    Place {
        /// Its number, never used before in this volume.
        replica: ReplicaId,
        /// The node that holds it.
        node: String,
    },
    /// A replica is not wanted any more. One that is in sync goes when its engine can do without it.
    Leave {
        /// Who.
        replica: ReplicaId,
    },
    /// The volume is larger from now on. Every replica in sync must be, durably.
    Grow {
        /// Bytes.
        size: u64,
    },
}

/// Why a [`Change`] was not made. The row is as it was.
#[derive(Clone, PartialEq, Eq, Debug, Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "refusal")]
pub enum Refusal {
    /// Another node has the volume.
    #[error("the volume is attached on node {node}")]
    Attached {
        /// That node.
        node: String,
    },
    /// The volume is attached nowhere.
    #[error("the volume is not attached")]
    NotAttached,
    /// The caller is not the owner.
    #[error("node {owner} does not have the volume")]
    NotOwner {
        /// The caller.
        owner: String,
    },
    /// The row has moved on.
    #[error("the volume is at view {current}, the change expected {expected}")]
    ViewChanged {
        /// What the proposer saw.
        expected: View,
        /// What is.
        current: View,
    },
    /// The change would leave fewer in-sync replicas than allowed (R16).
    #[error("{left} in-sync replicas would be left, at least {min} are required")]
    TooFewInSync {
        /// How many would be left.
        left: usize,
        /// How many must be.
        min: usize,
    },
    /// No replica of that number.
    #[error("the volume has no replica {replica}")]
    NoSuchReplica {
        /// The number.
        replica: ReplicaId,
    },
    /// A member of the in-sync set has no copy of the snapshot (S4).
    #[error("replica {replica} is in sync and has no copy of snapshot {snapshot}")]
    SnapshotIncomplete {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The replica.
        replica: ReplicaId,
    },
    /// The snapshot is not wanted any more.
    #[error("snapshot {snapshot} is not being made")]
    NoSuchSnapshot {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// The scrub is not wanted any more, or the report was made already.
    #[error("report {report} of scrub {run} is not awaited")]
    NoSuchScrub {
        /// Which scrub.
        run: ScrubRun,
        /// Number of the report.
        report: u32,
    },
    /// A member to remove is not in the set, or one to add already is.
    #[error("replica {replica} is already in the state asked for")]
    NothingToDo {
        /// The replica.
        replica: ReplicaId,
    },
    /// No room for one more.
    #[error("the volume has {count} replicas; at most {MAX_REPLICAS} are possible")]
    TooManyReplicas {
        /// How many it has.
        count: usize,
    },
    /// Volumes don't shrink: nobody knows what is in the part that would go.
    #[error("the volume has {size} bytes and can't be made smaller")]
    Smaller {
        /// What it has.
        size: u64,
    },
}

impl VolumeRow {
    /// The in-sync set, in order.
    pub fn in_sync(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.replicas
            .iter()
            .filter(|(_, m)| m.state == MemberState::InSync)
            .map(|(id, _)| *id)
    }

    /// The smallest in-sync set allowed: `min_in_sync`, at least one, never more than there are replicas.
    pub fn least_in_sync(&self) -> usize {
        usize::from(self.min_in_sync).clamp(1, self.replicas.len().max(1))
    }
}

/// Decides a change: the row after it, or why it is refused.
pub fn decide(row: &VolumeRow, change: &Change) -> Result<VolumeRow, Refusal> {
    let mut next = row.clone();
    match change {
        Change::Attach { owner, expect, force } => {
            expect_epoch(row, *expect)?;
            if let Some(node) = &row.owner
                && !force
            {
                return Err(Refusal::Attached { node: node.clone() });
            }
            begin_epoch(row, &mut next, owner.clone());
        }
        Change::Restart { owner, expect } => {
            expect_epoch(row, *expect)?;
            match &row.owner {
                None => return Err(Refusal::NotAttached),
                Some(node) if node != owner => return Err(Refusal::NotOwner { owner: owner.clone() }),
                Some(_) => begin_epoch(row, &mut next, owner.clone()),
            }
        }
        Change::Detach { expect, clean } => {
            expect_epoch(row, *expect)?;
            if row.owner.is_none() {
                return Err(Refusal::NotAttached);
            }
            next.owner = None;
            next.clean = *clean;
        }
        Change::Remove { expect, members } => {
            expect_view(row, *expect)?;
            next.view.config = row.view.config.next();
            for (replica, reason) in members {
                let member = next
                    .replicas
                    .get_mut(replica)
                    .ok_or(Refusal::NoSuchReplica { replica: *replica })?;
                if member.state != MemberState::InSync {
                    return Err(Refusal::NothingToDo { replica: *replica });
                }
                member.state = MemberState::Stale {
                    since: Some(next.view.config),
                    reason: *reason,
                };
                //= docs/replication.md#G2
                if member.leaving {
                    next.replicas.remove(replica);
                }
            }
            let (left, min) = (next.in_sync().count(), row.least_in_sync());
            if left < min && !defect!(MinimumIgnored) {
                return Err(Refusal::TooFewInSync { left, min });
            }
        }
        Change::Add { expect, member } => {
            expect_view(row, *expect)?;
            let replica = *member;
            let member = next
                .replicas
                .get_mut(&replica)
                .ok_or(Refusal::NoSuchReplica { replica })?;
            if member.state == MemberState::InSync {
                return Err(Refusal::NothingToDo { replica });
            }
            member.state = MemberState::InSync;
            next.view.config = row.view.config.next();
            member.joined = Some(next.view.config);
        }
        //= docs/replication.md#S4
        Change::SnapshotReady {
            expect,
            snapshot,
            members,
        } => {
            if defect!(SnapshotOfAnyView) {
                expect_epoch(row, expect.epoch)?;
            } else {
                expect_view(row, *expect)?;
            }
            let lacking = row.in_sync().find(|replica| !members.contains(replica));
            if let Some(replica) = lacking.filter(|_| !defect!(SnapshotOfSome)) {
                let snapshot = *snapshot;
                return Err(Refusal::SnapshotIncomplete { snapshot, replica });
            }
        }
        Change::SnapshotFailed { expect, .. } | Change::Scrubbed { expect, .. } => {
            expect_epoch(row, *expect)?;
        }
        Change::Place { replica, node } => place(&mut next, *replica, node)?,
        Change::Leave { replica } => leave(row, &mut next, *replica)?,
        Change::Grow { size } => {
            if *size <= row.size {
                return Err(Refusal::Smaller { size: row.size });
            }
            next.size = *size;
        }
    }
    next.revision = row.revision.saturating_add(1);
    Ok(next)
}

fn place(next: &mut VolumeRow, replica: ReplicaId, node: &str) -> Result<(), Refusal> {
    if next.replicas.contains_key(&replica) {
        return Err(Refusal::NothingToDo { replica });
    }
    if next.replicas.len() >= MAX_REPLICAS {
        let count = next.replicas.len();
        return Err(Refusal::TooManyReplicas { count });
    }
    let state = MemberState::Stale {
        since: None,
        reason: EjectReason::New,
    };
    let member = Member {
        node: node.to_owned(),
        joined: None,
        state,
        leaving: false,
    };
    next.replicas.insert(replica, member);
    Ok(())
}

/// One that is not in sync goes at once. So does a member of a volume that ended in order and is attached nowhere: all
/// members are equal and durable. Otherwise only the engine knows whether those that stay have everything.
//= docs/replication.md#G2
fn leave(row: &VolumeRow, next: &mut VolumeRow, replica: ReplicaId) -> Result<(), Refusal> {
    let member = next
        .replicas
        .get_mut(&replica)
        .ok_or(Refusal::NoSuchReplica { replica })?;
    if member.state != MemberState::InSync {
        next.replicas.remove(&replica);
        return Ok(());
    }
    let at_once = row.owner.is_none() && row.clean;
    if member.leaving && !at_once {
        return Err(Refusal::NothingToDo { replica });
    }
    member.leaving = true;
    let stay = next.replicas.values();
    let left = stay
        .filter(|member| member.state == MemberState::InSync && !member.leaving)
        .count();
    let min = row.least_in_sync();
    if left < min {
        return Err(Refusal::TooFewInSync { left, min });
    }
    if at_once {
        next.replicas.remove(&replica);
        next.view.config = row.view.config.next();
    }
    Ok(())
}

fn begin_epoch(row: &VolumeRow, next: &mut VolumeRow, owner: String) {
    next.view.epoch = row.view.epoch.next();
    next.owner = Some(owner);
    next.clean_before = row.clean;
    next.clean = false;
}

fn expect_epoch(row: &VolumeRow, expect: Epoch) -> Result<(), Refusal> {
    expect_view(
        row,
        View {
            epoch: expect,
            config: row.view.config,
        },
    )
}

fn expect_view(row: &VolumeRow, expected: View) -> Result<(), Refusal> {
    if row.view == expected || defect!(AnyViewExpected) {
        Ok(())
    } else {
        Err(Refusal::ViewChanged {
            expected,
            current: row.view,
        })
    }
}
