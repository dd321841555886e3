//! The row that the replicas of a volume speak for.
//!
//! The highest view that a member of its own in-sync set has stored decides: no write was acknowledged that not
//! every member of that set has (a set shrinks for good only once a remaining member has stored it, and one that
//! grows is written to before it counts). So the question is only whether a higher one can be somewhere that
//! was not heard.

use std::collections::{BTreeMap, BTreeSet};

use stor_proto::satellite::{ReplicaState, Stored};
use stor_replication::catalogue::MAX_REPLICAS;
use stor_replication::ids::{ConfigSeq, Epoch, Lineage, ReplicaId, View, VolumeId};

use super::{Findings, Found};
use crate::catalogue::command::{AdoptedOwner, AdoptedReplica, Adoption, Purpose};
use crate::catalogue::row::Volume;

/// What an adoption would do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Adopting {
    /// The command.
    pub adoption: Adoption,
    /// What was found and what becomes of it, a line each.
    pub steps: Vec<String>,
    /// What was not heard and may be lost by it, a line each. Empty: nothing can be.
    pub risks: Vec<String>,
}

/// Why a volume can't be adopted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Cannot {
    /// No replica that was heard is a member of its own in-sync set.
    #[error("no replica of it that can be read is in sync")]
    NoMember,
    /// Two nodes hold a replica of the same number.
    #[error("replica {replica} is on node {one} and on node {other}")]
    Twice {
        /// Number.
        replica: ReplicaId,
        /// Node.
        one: String,
        /// Node.
        other: String,
    },
    /// More than a volume may have.
    #[error("it has {0} replicas, more than a volume can have")]
    TooMany(usize),
}

/// A replica as it says of itself.
struct Told<'a> {
    found: Found<'a>,
    stored: &'a Stored,
    lineage: Lineage,
}

impl Told<'_> {
    fn is_member(&self) -> bool {
        self.stored.in_sync.contains(&self.found.replica.0)
    }

    /// As it was stored by an engine, without a fence that only promised.
    fn view(&self) -> View {
        View {
            epoch: Epoch(self.found.report.stored_epoch),
            config: ConfigSeq(self.found.report.stored_config),
        }
    }

    fn lineage(&self) -> Lineage {
        self.lineage
    }
}

/// Plans to adopt the volume `id` under `name`; `row` is what the catalogue has of it.
pub fn adoption(
    id: VolumeId,
    name: &str,
    row: Option<&Volume>,
    findings: &Findings<'_>,
) -> Result<Adopting, Cannot> {
    let told: Vec<Told<'_>> = findings
        .replicas(id)
        .iter()
        .filter(|found| found.is_there())
        .filter_map(|found| {
            let stored = found.report.stored.as_ref()?;
            // Without a lineage that can be read it is no replica that anything could be decided by.
            let lineage = stored.lineage.parse().map(Lineage).inspect_err(|error| {
                tracing::warn!(volume = %id, node = found.node, %error, "a replica of no lineage");
            });
            Some(Told {
                found: *found,
                stored,
                lineage: lineage.ok()?,
            })
        })
        .collect();
    check_numbers(&told)?;
    let best = told
        .iter()
        .filter(|told| told.is_member())
        .max_by_key(|told| (told.view(), told.found.replica))
        .ok_or(Cannot::NoMember)?;
    let set: BTreeSet<ReplicaId> = best.stored.in_sync.iter().map(|id| ReplicaId(*id)).collect();
    let view = above_all(id, row, findings);
    let gone = findings
        .replicas(id)
        .iter()
        .filter(|found| {
            matches!(
                found.report.state(),
                ReplicaState::Missing | ReplicaState::Deleted
            )
        })
        .map(|found| (found.replica, found.node))
        .collect();
    let replicas = members(&told, best, &set, row, &gone);
    if replicas.len() > MAX_REPLICAS {
        return Err(Cannot::TooMany(replicas.len()));
    }
    let adoption = Adoption {
        volume: id,
        name: name.to_owned(),
        expect: row.map(|row| row.row.revision),
        size: size(&told, &set, row),
        lineage: best.lineage(),
        view,
        min_in_sync: row.map_or(if replicas.len() < 3 { 1 } else { 2 }, |row| row.row.min_in_sync),
        owner: owner(id, row, findings),
        replicas,
    };
    Ok(Adopting {
        steps: steps(&told, best, &adoption, row),
        risks: risks(&told, best, &set, row, findings),
        adoption,
    })
}

fn check_numbers(told: &[Told<'_>]) -> Result<(), Cannot> {
    let mut nodes: BTreeMap<ReplicaId, &str> = BTreeMap::new();
    for told in told {
        if let Some(one) = nodes.insert(told.found.replica, told.found.node) {
            return Err(Cannot::Twice {
                replica: told.found.replica,
                one: one.to_owned(),
                other: told.found.node.to_owned(),
            });
        }
    }
    Ok(())
}

/// Above every epoch and config that anybody has.
fn above_all(id: VolumeId, row: Option<&Volume>, findings: &Findings<'_>) -> View {
    let replicas = findings.replicas(id).iter().map(Found::view);
    let engines = findings.engines(id).iter().map(|(_, engine)| View {
        epoch: Epoch(engine.epoch),
        config: ConfigSeq(0),
    });
    let mut view = row.map(|row| row.row.view).unwrap_or_default();
    for seen in replicas.chain(engines) {
        view.epoch = view.epoch.max(seen.epoch);
        view.config = view.config.max(seen.config);
    }
    View {
        epoch: view.epoch.next(),
        config: view.config.next(),
    }
}

/// Every replica that is there, and those of the row that were not heard; not what its node says is gone.
fn members(
    told: &[Told<'_>],
    best: &Told<'_>,
    set: &BTreeSet<ReplicaId>,
    row: Option<&Volume>,
    gone: &BTreeSet<(ReplicaId, &str)>,
) -> Vec<AdoptedReplica> {
    let mut replicas: BTreeMap<ReplicaId, AdoptedReplica> = BTreeMap::new();
    for one in told {
        let right = set.contains(&one.found.replica) && one.is_member() && one.lineage() == best.lineage();
        let replica = AdoptedReplica {
            replica: one.found.replica,
            node: one.found.node.to_owned(),
            pool: one.stored.pool.clone(),
            joined: right.then(|| one.view().config.min(best.view().config)),
        };
        replicas.insert(one.found.replica, replica);
    }
    for (id, member) in row.into_iter().flat_map(|row| &row.row.replicas) {
        let Some(place) = row.and_then(|row| row.places.get(id)) else {
            continue;
        };
        let is_gone = gone.contains(&(*id, member.node.as_str()));
        if replicas.contains_key(id) || is_gone {
            continue;
        }
        let replica = AdoptedReplica {
            replica: *id,
            node: member.node.clone(),
            pool: place.pool.clone(),
            // Whoever comes back must have stored about as much as the best one.
            joined: set.contains(id).then_some(best.view().config),
        };
        replicas.insert(*id, replica);
    }
    replicas.into_values().collect()
}

/// What every member can hold, never less than the row says.
fn size(told: &[Told<'_>], set: &BTreeSet<ReplicaId>, row: Option<&Volume>) -> u64 {
    let held = told
        .iter()
        .filter(|told| set.contains(&told.found.replica) && told.is_member())
        .map(|told| told.stored.size_bytes)
        .min()
        .unwrap_or(0);
    held.max(row.map_or(0, |row| row.row.size))
}

/// The engine that goes on: that of the highest epoch, if it runs somewhere.
fn owner(id: VolumeId, row: Option<&Volume>, findings: &Findings<'_>) -> Option<AdoptedOwner> {
    let newest = findings
        .replicas(id)
        .iter()
        .map(|found| found.view().epoch.0)
        .max();
    let (node, engine) = findings
        .engines(id)
        .iter()
        .max_by_key(|(_, engine)| engine.epoch)
        .filter(|(_, engine)| engine.epoch > 0 && Some(engine.epoch) >= newest)?;
    let known = row
        .and_then(|row| row.attachment.as_ref())
        .filter(|_| row.and_then(|row| row.row.owner.as_deref()) == Some(*node));
    let transport = match engine.transport.as_str() {
        "" => known.map(|known| known.transport.clone())?,
        transport => transport.to_owned(),
    };
    Some(AdoptedOwner {
        node: (*node).to_owned(),
        read_only: engine.read_only,
        purpose: if transport == "none" {
            Purpose::Healing
        } else {
            Purpose::User
        },
        transport,
    })
}

fn numbers(ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    ids.join(", ")
}

fn steps(told: &[Told<'_>], best: &Told<'_>, adoption: &Adoption, row: Option<&Volume>) -> Vec<String> {
    let mut steps = Vec::new();
    match row {
        Some(row) => steps.push(format!(
            "replace the row of volume {}, which is at view {}",
            row.name, row.row.view
        )),
        None => steps.push(format!(
            "give volume {} the name {}",
            adoption.volume, adoption.name
        )),
    }
    for one in told {
        let set = match one.stored.in_sync.as_slice() {
            [] => "is in no in-sync set".to_owned(),
            ids => format!("in-sync set {}", numbers(ids)),
        };
        let fence = match one.stored.fence_epoch {
            fence if fence > one.found.report.stored_epoch => format!(", promised epoch {fence}"),
            _ => String::new(),
        };
        steps.push(format!(
            "go by replica {} on {} in pool {}: view {}{fence}, {set}{}",
            one.found.replica,
            one.found.node,
            one.stored.pool,
            one.view(),
            if std::ptr::eq(one, best) {
                "; this one decides"
            } else {
                ""
            }
        ));
    }
    if let Some(row) = row {
        for (id, member) in &row.row.replicas {
            if !adoption.replicas.iter().any(|replica| replica.replica == *id) {
                steps.push(format!(
                    "drop replica {id} on {}, whose files are gone",
                    member.node
                ));
            }
        }
    }
    let of = |member: bool| -> Vec<&str> {
        let chosen = adoption
            .replicas
            .iter()
            .filter(|replica| replica.joined.is_some() == member);
        chosen.map(|replica| replica.node.as_str()).collect()
    };
    steps.push(format!(
        "make the row view {}, in sync: {}",
        adoption.view,
        of(true).join(", ")
    ));
    let stale = of(false);
    if !stale.is_empty() {
        steps.push(format!("copy everything anew to {}", stale.join(", ")));
    }
    steps.push(match &adoption.owner {
        Some(owner) => format!("leave it attached on {} with a new engine", owner.node),
        None => "leave it detached".to_owned(),
    });
    steps
}

fn risks(
    told: &[Told<'_>],
    best: &Told<'_>,
    set: &BTreeSet<ReplicaId>,
    row: Option<&Volume>,
    findings: &Findings<'_>,
) -> Vec<String> {
    let mut risks: Vec<String> = findings.unheard.clone();
    for (id, member) in row.into_iter().flat_map(|row| &row.row.replicas) {
        let reports = findings.replicas(best_volume(best));
        let report = reports.iter().find(|f| f.replica == *id && f.node == member.node);
        match report.map(|found| found.report.state()) {
            Some(
                ReplicaState::Ready | ReplicaState::Found | ReplicaState::Missing | ReplicaState::Deleted,
            ) => {}
            Some(ReplicaState::Failed | ReplicaState::Unspecified) => {
                risks.push(format!("the replica on node {} can't be read", member.node));
            }
            None => risks.push(format!("node {} has not reported its replica", member.node)),
        }
    }
    for id in set {
        if !told.iter().any(|told| told.found.replica == *id) {
            risks.push(format!("replica {id} of the in-sync set was not found"));
        }
    }
    let conflicting = told.iter().filter(|told| told.is_member()).any(|told| {
        let (one, other) = (told.view(), best.view());
        one.config > other.config || one.epoch > other.epoch || told.lineage() != best.lineage()
    });
    if conflicting {
        risks.push(
            "two replicas speak of different histories of the data; the others' is given up".to_owned(),
        );
    }
    risks
}

fn best_volume(best: &Told<'_>) -> VolumeId {
    // Reports without a valid id were dropped when they came.
    VolumeId(best.found.report.volume_id.parse().unwrap_or_default())
}
