//! Nodes that are emptied: drained, declared lost, or away for so long that they are taken for lost. Each of their
//! replicas gets another one in its place; when that is in sync, the catalogue itself lets the old one go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stor_replication::catalogue::MemberState;
use stor_replication::ids::ReplicaId;

use crate::catalogue::Action;
use crate::catalogue::command::{ClassWish, Leaving, NodeKind};
use crate::catalogue::row::{Node, Volume, VolumePhase};
use crate::observed::Observations;
use crate::plan::{self, Asked};
use crate::policy::Policy;

/// Replicas that are replaced at the same time: each is a full copy.
const AT_ONCE: usize = 16;

/// A node that is to hold nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Empty {
    /// Its name.
    pub node: String,
    /// It is gone: what it has can't be waited for.
    pub lost: bool,
}

/// Which nodes are to be emptied now.
pub fn nodes(
    rows: &[Node],
    seen: &Observations,
    policy: Policy,
    settled: bool,
    now: jiff::Timestamp,
) -> Vec<Empty> {
    let storage = || rows.iter().filter(|node| node.kind == NodeKind::Storage);
    let away = storage().filter(|node| !seen.online(&node.name)).count();
    let automatic = settled && policy.may_replace(away, storage().count());
    let one = |node: &Node| {
        let lost = match node.leaving {
            Some(Leaving::Drain) => false,
            Some(Leaving::Lost) => true,
            None if automatic && !seen.online(&node.name) && is_overdue(node, policy, now) => true,
            None => return None,
        };
        let node = node.name.clone();
        Some(Empty { node, lost })
    };
    storage().filter_map(one).collect()
}

/// Away for longer than the policy allows.
fn is_overdue(node: &Node, policy: Policy, now: jiff::Timestamp) -> bool {
    let since = node.offline_since.as_ref().and_then(|at| at.parse().ok());
    let (Some(since), Some(limit)) = (since, policy.replace_after) else {
        return false;
    };
    let away = now.duration_since(since);
    Duration::try_from(away).is_ok_and(|away| away >= limit)
}

/// One replica of a node that is emptied, and what becomes of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// The volume.
    pub volume: String,
    /// The replica.
    pub replica: ReplicaId,
    /// Where it is.
    pub node: String,
    /// What is done about it, or why nothing can be.
    pub fate: Fate,
}

/// See [`Step`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It is to be replaced: where, by which command.
    Replace(Box<Action>, String, String),
    /// It is being replaced, by the replica on this node.
    UnderWay(String),
    /// Nothing can be done.
    Stuck(String),
}

/// What becomes of every replica on `empty` nodes. `volumes`: those with a replica there.
pub fn steps(
    empty: &[Empty],
    volumes: &[Volume],
    classes: &BTreeMap<String, ClassWish>,
    mut nodes: Vec<plan::Node>,
) -> Vec<Step> {
    let mut steps = Vec::new();
    for node in &mut nodes {
        if empty.iter().any(|empty| empty.node == node.name) {
            node.barred
                .get_or_insert_with(|| "the node is away for too long".to_owned());
        }
    }
    for volume in volumes {
        for (replica, member) in &volume.row.replicas {
            let Some(of) = empty.iter().find(|empty| empty.node == member.node) else {
                continue;
            };
            let fate = fate(volume, *replica, of, empty, classes, &mut nodes);
            steps.push(Step {
                volume: volume.name.clone(),
                replica: *replica,
                node: member.node.clone(),
                fate,
            });
        }
    }
    steps
}

fn fate(
    volume: &Volume,
    replica: ReplicaId,
    of: &Empty,
    empty: &[Empty],
    classes: &BTreeMap<String, ClassWish>,
    nodes: &mut [plan::Node],
) -> Fate {
    let node_of = |id: &ReplicaId| {
        volume
            .row
            .replicas
            .get(id)
            .map_or("?", |member| member.node.as_str())
    };
    if volume
        .row
        .replicas
        .get(&replica)
        .is_some_and(|member| member.leaving)
    {
        return Fate::UnderWay("its engine lets it go".into());
    }
    let successor = volume
        .places
        .iter()
        .find(|(_, place)| place.replaces == Some(replica));
    if let Some((id, _)) = successor {
        return Fate::UnderWay(format!(
            "the replica on {} takes its place when it is in sync",
            node_of(id)
        ));
    }
    if volume.phase != VolumePhase::Available || volume.doubt {
        return Fate::Stuck("the volume is being made, deleted, or locked".into());
    }
    let gone: BTreeSet<&str> = empty.iter().filter(|e| e.lost).map(|e| e.node.as_str()).collect();
    let source = volume
        .row
        .replicas
        .values()
        .any(|member| member.state == MemberState::InSync && !gone.contains(member.node.as_str()));
    if of.lost && !source {
        return Fate::Stuck("no other replica has all writes".into());
    }
    let class = volume.wish.class.as_ref().and_then(|class| classes.get(class));
    let asked = Asked {
        replaces: Some(replica),
        ..Asked::default()
    };
    match plan::further(volume, class, &asked, nodes) {
        Err(refusal) => {
            let each: Vec<String> = refusal
                .verdicts
                .iter()
                .map(|verdict| format!("{}: {}", verdict.node, verdict.reason))
                .collect();
            Fate::Stuck(each.join("; "))
        }
        Ok(placement) => {
            let Some(placement) = plan::placed(placement) else {
                return Fate::Stuck("no place".into());
            };
            let size = volume.row.size.max(volume.grow_to.unwrap_or(0));
            take(nodes, &placement.node, &placement.pool, size);
            let (node, pool) = (placement.node.clone(), placement.pool.clone());
            let action = Action::PlaceReplica {
                volume: volume.row.volume,
                placement,
                replaces: Some(replica),
            };
            Fate::Replace(Box::new(action), node, pool)
        }
    }
}

/// What one replica takes is not there for the next.
fn take(nodes: &mut [plan::Node], node: &str, pool: &str, size: u64) {
    let pools = nodes
        .iter_mut()
        .filter(|one| one.name == node)
        .flat_map(|one| &mut one.pools);
    for pool in pools.filter(|one| one.name == pool) {
        pool.promised = pool.promised.saturating_add(size);
        pool.replicas += 1;
    }
}

/// The commands for some of the steps: never more than [`AT_ONCE`] copies at a time.
pub fn actions(steps: Vec<Step>) -> Vec<Action> {
    let under_way = steps
        .iter()
        .filter(|step| matches!(step.fate, Fate::UnderWay(_)))
        .count();
    let replace = |step: Step| match step.fate {
        Fate::Replace(action, ..) => Some(*action),
        Fate::UnderWay(_) | Fate::Stuck(_) => None,
    };
    steps
        .into_iter()
        .filter_map(replace)
        .take(AT_ONCE.saturating_sub(under_way))
        .collect()
}
