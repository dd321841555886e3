//! A catalogue that is older than the data: what shows it, and the operator's way out.
//!
//! After a restore from a backup every row is in doubt. [`Findings`] gather what the nodes say of volumes, whether
//! the catalogue knows them or not; [`standing`] tells what that means for a row, [`adoption`] what the row
//! would have to be. Pure: rows and observations in, verdicts out.
//!
//! Promises: a row is held for right only when every storage node was heard in this history and looked through all
//! of its pools, and nothing of the volume is above the row or unknown to it. Does not do: guessing. What was not
//! heard counts as possibly later.

mod adopt;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use stor_proto::satellite::{EngineStatus, ReplicaState, ReplicaStatus};
use stor_replication::ids::{ConfigSeq, Epoch, ReplicaId, View, VolumeId};

pub use adopt::{Adopting, Cannot, adoption};

use crate::catalogue::command::NodeKind;
use crate::catalogue::is_above;
use crate::catalogue::row::{Node, ReplicaPhase, Volume};
use crate::observed::Observations;

/// A replica that a node reports.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// Where.
    pub node: &'a str,
    /// Which.
    pub replica: ReplicaId,
    /// What its node says.
    pub report: &'a ReplicaStatus,
}

impl Found<'_> {
    /// The highest epoch and config it has stored.
    pub fn view(&self) -> View {
        let fence = self.report.stored.as_ref().map_or(0, |stored| stored.fence_epoch);
        View {
            epoch: Epoch(self.report.stored_epoch.max(fence)),
            config: ConfigSeq(self.report.stored_config),
        }
    }

    /// Whether its files are there and could be read.
    pub fn is_there(&self) -> bool {
        matches!(self.report.state(), ReplicaState::Ready | ReplicaState::Found)
    }
}

/// All that nodes say, by volume.
#[derive(Debug, Default)]
pub struct Findings<'a> {
    replicas: BTreeMap<VolumeId, Vec<Found<'a>>>,
    engines: BTreeMap<VolumeId, Vec<(&'a str, &'a EngineStatus)>>,
    /// Why something may be that was not heard, a line for each node.
    pub unheard: Vec<String>,
}

impl<'a> Findings<'a> {
    /// What `seen` holds, for the history of that id.
    pub fn of(nodes: &'a [Node], seen: &'a Observations, history: &str) -> Self {
        let mut findings = Self::default();
        for node in nodes {
            let name = node.name.as_str();
            let Some(heard) = seen.node(name) else {
                if node.kind == NodeKind::Storage {
                    findings.unheard.push(format!("node {name} is not connected"));
                }
                continue;
            };
            if node.kind == NodeKind::Storage && heard.history != history {
                findings
                    .unheard
                    .push(format!("node {name} has not taken the restored catalogue yet"));
            } else if node.kind == NodeKind::Storage && !heard.searched {
                let failed: Vec<&str> = heard
                    .pools
                    .values()
                    .filter(|pool| !pool.error.is_empty())
                    .map(|pool| pool.name.as_str())
                    .collect();
                let which = if failed.is_empty() {
                    String::new()
                } else {
                    format!(" ({} failed)", failed.join(", "))
                };
                findings.unheard.push(format!(
                    "node {name} has not looked through all of its pools{which}"
                ));
            }
            for ((volume, replica), report) in &heard.replicas {
                let found = Found {
                    node: name,
                    replica: *replica,
                    report,
                };
                findings.replicas.entry(*volume).or_default().push(found);
            }
            for (volume, engine) in &heard.engines {
                findings.engines.entry(*volume).or_default().push((name, engine));
            }
        }
        for stranger in seen.strangers() {
            findings.unheard.push(format!(
                "node {stranger} dials in and is not registered: storctl node create {stranger} ADDRESS"
            ));
        }
        for found in findings.replicas.values_mut() {
            found.sort_by_key(|found| (found.replica, found.node));
        }
        findings
    }

    /// Replicas of a volume, by number.
    pub fn replicas(&self, volume: VolumeId) -> &[Found<'a>] {
        self.replicas.get(&volume).map_or(&[], Vec::as_slice)
    }

    /// Engines of a volume.
    pub fn engines(&self, volume: VolumeId) -> &[(&'a str, &'a EngineStatus)] {
        self.engines.get(&volume).map_or(&[], Vec::as_slice)
    }

    /// Volumes of which replicas are there that no row in `known` speaks of.
    pub fn unknown(&self, known: &BTreeSet<VolumeId>) -> Vec<(VolumeId, Vec<Found<'a>>)> {
        self.replicas
            .iter()
            .filter(|(volume, _)| !known.contains(volume))
            .map(|(volume, found)| {
                let there = found.iter().filter(|found| found.is_there()).copied().collect();
                (*volume, there)
            })
            .filter(|(_, found): &(_, Vec<_>)| !found.is_empty())
            .collect()
    }
}

/// What the findings mean for a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Everything was heard and nothing is later.
    Right,
    /// Something is later than the row, or unknown to it; in words.
    Behind(String),
    /// Every node was heard, and nothing of the volume is left.
    Gone,
    /// Not everything was heard; in words, a line each.
    Waits(Vec<String>),
}

/// Compares a row with what was found.
pub fn standing(volume: &Volume, findings: &Findings<'_>) -> Standing {
    let row = &volume.row;
    let found = findings.replicas(row.volume);
    for one in found.iter().filter(|found| found.is_there()) {
        let view = one.view();
        if is_above(view, row.view) {
            return Standing::Behind(format!(
                "the replica on node {} is at view {view}, the catalogue at {}",
                one.node, row.view
            ));
        }
        let member = row.replicas.get(&one.replica);
        if member.is_none_or(|member| member.node != one.node) {
            return Standing::Behind(format!(
                "the catalogue does not know replica {} on node {}",
                one.replica, one.node
            ));
        }
    }
    for (node, engine) in findings.engines(row.volume) {
        if engine.epoch > row.view.epoch.0 {
            return Standing::Behind(format!(
                "an engine of epoch {} runs on node {node}, the catalogue knows {}",
                engine.epoch, row.view.epoch
            ));
        }
    }
    let mut waits = findings.unheard.clone();
    let mut missing = Vec::new();
    for (id, member) in &row.replicas {
        let report = found.iter().find(|f| f.replica == *id && f.node == member.node);
        match report.map(|found| found.report.state()) {
            Some(ReplicaState::Ready | ReplicaState::Found) => {}
            Some(ReplicaState::Missing | ReplicaState::Deleted) => missing.push(member.node.as_str()),
            Some(ReplicaState::Failed | ReplicaState::Unspecified) => {
                waits.push(format!("the replica on node {} can't be read", member.node));
            }
            None if is_removal(volume, *id) => {}
            None => waits.push(format!("node {} has not reported its replica", member.node)),
        }
    }
    if !waits.is_empty() {
        Standing::Waits(waits)
    } else if missing.is_empty() {
        Standing::Right
    } else if found.iter().any(Found::is_there) {
        Standing::Behind(format!("the replica on {} is gone", missing.join(", ")))
    } else {
        Standing::Gone
    }
}

fn is_removal(volume: &Volume, id: ReplicaId) -> bool {
    volume
        .places
        .get(&id)
        .is_some_and(|place| place.phase == ReplicaPhase::Deleting)
}

/// The same in short for lists, from what is at hand; `None` when nothing speaks against the row.
pub fn in_short(volume: &Volume, seen: &Observations) -> Option<String> {
    let row = &volume.row;
    if let Some((node, stored)) = seen.ahead_of(row) {
        return Some(format!(
            "the replica on node {node} is at view {stored}, the catalogue at {}",
            row.view
        ));
    }
    if !volume.doubt {
        return None;
    }
    let gone: Vec<&str> = row
        .replicas
        .iter()
        .filter(|(id, member)| {
            let report = seen.replica(&member.node, row.volume, **id);
            report.is_some_and(|report| report.state() == ReplicaState::Missing)
        })
        .map(|(_, member)| member.node.as_str())
        .collect();
    Some(if gone.is_empty() {
        "the catalogue was restored, and not all that may know more of the volume was heard".to_owned()
    } else {
        format!("the replica on {} is gone", gone.join(", "))
    })
}
