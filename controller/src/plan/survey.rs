//! What the planner goes by, out of the catalogue's rows and what nodes report.

use super::together::together;
use super::{Node, Pool, Report, Wish};
use crate::catalogue::command::{ClassWish, Leaving, NodeKind, VolumeWish};
use crate::catalogue::row;
use crate::observed::Observations;

/// Replicas of a volume that does not say how many.
pub const DEFAULT_REPLICAS: u8 = 2;

/// All nodes as the planner sees them.
pub fn nodes(nodes: &[row::Node], pools: &[row::Pool], seen: &Observations) -> Vec<Node> {
    let pools = together(pools.to_vec(), seen);
    let one = |node: &row::Node| Node {
        name: node.name.clone(),
        diskless: node.kind == NodeKind::Diskless,
        online: seen.online(&node.name),
        barred: node.leaving.map(|leaving| {
            match leaving {
                Leaving::Drain => "the node is being drained",
                Leaving::Lost => "the node was declared lost",
            }
            .to_owned()
        }),
        properties: node.properties.clone(),
        pools: pools
            .iter()
            .filter(|pool| pool.wish.node == node.name)
            .map(|row| pool(row, seen))
            .collect(),
    };
    nodes.iter().map(one).collect()
}

fn pool(row: &row::Pool, seen: &Observations) -> Pool {
    let heard = seen.node(&row.wish.node);
    let report = heard.and_then(|heard| heard.pools.get(&row.wish.name));
    Pool {
        name: row.wish.name.clone(),
        revision: row.revision,
        tags: row.wish.tags.clone(),
        promised: row.promised,
        replicas: row.replicas,
        overprovision_milli: row.wish.overprovision_milli,
        report: match report {
            None => Report::None,
            Some(report) if !report.error.is_empty() => Report::Failed(report.error.clone()),
            Some(report) => Report::Space {
                capacity: report.capacity_bytes,
                free: report.free_bytes,
            },
        },
    }
}

/// What is to be placed for a volume, with what its class fills in.
pub fn wish(wish: &VolumeWish, class: Option<&ClassWish>) -> Wish {
    let replicas = wish
        .replicas
        .or(class.map(|class| class.replicas))
        .unwrap_or(DEFAULT_REPLICAS);
    let from_class = |own: &Option<String>, of: fn(&ClassWish) -> &Option<String>| {
        own.clone().or_else(|| class.and_then(|class| of(class).clone()))
    };
    Wish {
        size: wish.size,
        replicas: usize::from(replicas),
        pool: from_class(&wish.pool, |class| &class.pool),
        tags: if wish.tags.is_empty() {
            class.map(|class| class.tags.clone()).unwrap_or_default()
        } else {
            wish.tags.clone()
        },
        spread: from_class(&wish.spread, |class| &class.spread),
        together: from_class(&wish.together, |class| &class.together),
    }
}
