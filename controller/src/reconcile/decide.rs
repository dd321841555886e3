//! What reports mean for replicas, nodes and detaches.

use std::collections::BTreeMap;
use std::time::Duration;

use stor_proto::satellite::ReplicaState;

use crate::catalogue::Action;
use crate::catalogue::load::Moving;
use crate::catalogue::row::{Node, ReplicaPhase, Volume};
use crate::observed::Observations;

/// Replicas that were being made and are there, or were being removed and are gone; one command per node.
pub(super) fn replicas(moving: &[Moving], seen: &Observations) -> Vec<Action> {
    let mut by_node: BTreeMap<&str, (Vec<_>, Vec<_>)> = BTreeMap::new();
    for replica in moving {
        let Some(report) = seen.replica(&replica.node, replica.volume, replica.replica) else {
            continue;
        };
        let (ready, gone) = by_node.entry(&replica.node).or_default();
        match (replica.phase, report.state()) {
            (ReplicaPhase::Creating, ReplicaState::Ready) => ready.push((replica.volume, replica.replica)),
            (ReplicaPhase::Deleting, ReplicaState::Deleted) => gone.push((replica.volume, replica.replica)),
            _ => {}
        }
    }
    by_node
        .into_iter()
        .filter(|(_, (ready, gone))| !ready.is_empty() || !gone.is_empty())
        .map(|(node, (ready, gone))| Action::ReplicasObserved {
            node: node.to_owned(),
            ready,
            gone,
        })
        .collect()
}

/// Pools that were asked for and can be used; one command per node. `unready`: name and node.
pub(super) fn pools(unready: &[(String, String)], seen: &Observations) -> Vec<Action> {
    let mut by_node: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (pool, node) in unready {
        let report = seen.node(node).and_then(|heard| heard.pools.get(pool));
        if report.is_some_and(|report| report.error.is_empty()) {
            by_node.entry(node).or_default().push(pool.clone());
        }
    }
    by_node
        .into_iter()
        .map(|(node, ready)| Action::PoolsObserved {
            node: node.to_owned(),
            ready,
        })
        .collect()
}

/// Nodes whose connection is not what was last recorded. That one is gone is not said before all had the time to
/// dial a new leader, and not of one that never came.
pub(super) fn connections(nodes: &[Node], seen: &Observations, settled: bool) -> Vec<Action> {
    nodes
        .iter()
        .filter_map(|node| {
            let online = seen.online(&node.name);
            let news = if online {
                node.online != Some(true)
            } else {
                settled && node.online == Some(true)
            };
            news.then(|| Action::NodeConnection {
                name: node.name.clone(),
                online,
            })
        })
        .collect()
}

/// Detaches whose engine can't be asked: its node is gone for long. The next engine fences it.
pub(super) fn lost_owners(detaching: &[Volume], seen: &Observations, led: Duration) -> Vec<Action> {
    detaching
        .iter()
        .filter(|volume| {
            volume
                .row
                .owner
                .as_ref()
                .is_some_and(|owner| seen.lost(owner, led))
        })
        .map(|volume| Action::Detach {
            volume: volume.row.volume,
            expect: volume.row.view.epoch,
            force: true,
        })
        .collect()
}
