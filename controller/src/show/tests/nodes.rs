//! Nodes and their pools.

use super::*;

#[test]
fn nodes_and_pools_show_what_is_known() {
    let cluster = Cluster::new();
    let node = |name, version| show::node(&node_row(name, version), &cluster.seen());
    assert_eq!(node("s1", Some("0.1.0")).state, NodeState::Online);
    assert_eq!(node("s9", Some("0.1.0")).state, NodeState::Offline);
    assert_eq!(node("s9", None).state, NodeState::New);
    assert_eq!(node("s1", None).last_seen.as_deref(), Some("then"));
    let shown = show::pool(&pool_row("s1"), &cluster.seen());
    assert_eq!(
        (shown.state, shown.capacity_bytes, shown.free_bytes),
        (PoolState::Ready, 1000, 500)
    );
    assert!((shown.overprovision - 1.5).abs() < f64::EPSILON);
    let silent = show::pool(&pool_row("s1"), &cluster.without("s1"));
    assert_eq!(
        (silent.state, silent.capacity_bytes),
        (PoolState::Offline, 1000),
        "as last heard"
    );
    assert_eq!(
        show::pool(&pool_row("k1"), &cluster.seen()).state,
        PoolState::Pending
    );
    let mut broken = Cluster::new();
    broken.s1.pools[0].error = "read-only".into();
    let shown = show::pool(&pool_row("s1"), &broken.seen());
    assert_eq!(
        (shown.state, shown.error.as_str()),
        (PoolState::Failed, "read-only")
    );
}

#[test]
fn a_file_system_that_pools_share_is_counted_once() {
    let capacity = |s1: &str, s2: &str| {
        let mut cluster = Cluster::new();
        cluster.s1.pools[0].filesystem = s1.into();
        cluster.s2.pools[0].filesystem = s2.into();
        let status = status(&volume(), &cluster.seen(), Vec::new());
        let pool = &status.pools[0];
        (pool.nodes, pool.filesystems, pool.capacity_bytes, pool.free_bytes)
    };
    assert_eq!(capacity("m1/fd", "m1/fd"), (2, 1, 1000, 500));
    assert_eq!(
        capacity("m1/fd", "m2/fd"),
        (2, 2, 2000, 1000),
        "the same number on another machine"
    );
    assert_eq!(capacity("", ""), (2, 2, 2000, 1000), "not told");
}
