//! Pools that share a file system (satellites on one machine, two pools of one node) share its space: each of them is
//! held to the over-provisioning limit with what is promised in all of them.
//!
//! What a create carries as the most that may be promised in a pool counts that pool alone: volumes placed at one moment
//! in two pools of one file system may pass the limit by as much as was placed.

use std::collections::BTreeMap;

use crate::catalogue::row;
use crate::observed::Observations;

/// The pools, with what is promised on their file systems for what is promised in them.
pub(super) fn together(mut pools: Vec<row::Pool>, seen: &Observations) -> Vec<row::Pool> {
    let filesystem = |pool: &row::Pool| {
        let heard = seen.last(&pool.wish.node)?;
        let report = heard.pools.get(&pool.wish.name)?;
        (!report.filesystem.is_empty()).then_some(report.filesystem.as_str())
    };
    let mut promised: BTreeMap<&str, u64> = BTreeMap::new();
    for pool in &pools {
        if let Some(filesystem) = filesystem(pool) {
            let sum = promised.entry(filesystem).or_default();
            *sum = sum.saturating_add(pool.promised);
        }
    }
    for pool in &mut pools {
        let sum = filesystem(pool).and_then(|filesystem| promised.get(filesystem));
        pool.promised = sum.copied().unwrap_or(pool.promised);
    }
    pools
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use stor_proto::satellite::{PoolStatus, Status};

    use super::*;
    use crate::catalogue::command::{PoolKind, PoolWish};
    use crate::observed::Heard;

    #[test]
    fn what_is_promised_on_a_file_system_counts_in_each_pool_on_it() {
        let pool = |node: &str, promised| row::Pool {
            wish: PoolWish {
                name: "sp01".into(),
                node: node.into(),
                kind: PoolKind::File,
                dir: "/p".into(),
                devices: Vec::new(),
                adopt: false,
                wipe: false,
                tags: Vec::new(),
                overprovision_milli: 1_000,
            },
            promised,
            replicas: 1,
            ready: true,
            revision: 2,
        };
        let now = Instant::now();
        let heard = |filesystem: &str| {
            let status = Status {
                pools: vec![PoolStatus {
                    name: "sp01".into(),
                    filesystem: filesystem.into(),
                    ..PoolStatus::default()
                }],
                ..Status::default()
            };
            Arc::new(Heard::new(status, now, String::new()))
        };
        let nodes = [
            ("s1", "m1/fd"),
            ("s2", "m1/fd"),
            ("s3", "m2/fd"),
            ("s4", ""),
            ("s5", ""),
        ];
        let nodes = nodes.map(|(node, filesystem)| (node.to_owned(), heard(filesystem)));
        let seen = Observations::new(BTreeMap::from(nodes), now);
        let pools = [("s1", 1), ("s2", 2), ("s3", 4), ("s4", 8), ("s5", 16), ("s6", 32)];
        let pools = pools.map(|(node, promised)| pool(node, promised)).to_vec();
        let counted: Vec<u64> = together(pools, &seen).iter().map(|pool| pool.promised).collect();
        assert_eq!(
            counted,
            [3, 3, 4, 8, 16, 32],
            "unknown file systems are each their own"
        );
    }
}
