//! Rows in doubt after a restore: trusted once everything that could know more was heard, locked for good when
//! something does.

use std::collections::BTreeSet;

use crate::behind::{Findings, Standing, standing};
use crate::catalogue::Action;
use crate::catalogue::command::NodeKind;
use crate::catalogue::row::{History, Node, Volume, VolumePhase};
use crate::observed::Observations;

/// Rows of one command.
const BATCH: usize = 256;

/// What to do about `doubted` rows, which are all there are; `known` are all volumes of the catalogue.
pub(super) fn decide(
    doubted: &[Volume],
    known: &BTreeSet<stor_replication::ids::VolumeId>,
    nodes: &[Node],
    history: &History,
    seen: &Observations,
) -> Vec<Action> {
    let id = history.id.to_string();
    let findings = Findings::of(nodes, seen, &id);
    let right: Vec<_> = doubted
        .iter()
        .filter(|volume| volume.phase != VolumePhase::Deleting)
        .filter(|volume| standing(volume, &findings) == Standing::Right)
        .map(|volume| (volume.row.volume, volume.row.view))
        .take(BATCH)
        .collect();
    if !right.is_empty() {
        return vec![Action::TrustVolumes { volumes: right }];
    }
    let all_heard = nodes
        .iter()
        .all(|node| seen.node(&node.name).is_some_and(|heard| heard.history == id));
    let strays = nodes
        .iter()
        .filter_map(|node| seen.node(&node.name))
        .any(|heard| {
            let mut engines = heard.engines.keys();
            engines.any(|volume| !known.contains(volume))
        });
    let settled = history.unsettled
        && doubted.is_empty()
        && findings.unheard.is_empty()
        && findings.unknown(known).is_empty()
        && all_heard
        && !strays
        && nodes.iter().any(|node| node.kind == NodeKind::Storage);
    if settled {
        return vec![Action::SettleHistory { history: history.id }];
    }
    Vec::new()
}
