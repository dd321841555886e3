//! What the status says of all of it.

use super::*;

#[test]
fn health_names_every_reason_worst_first() {
    let leader = || vec![controller("c1", ControllerRole::Leader, true)];
    let cluster = Cluster::new();
    let well = status(&volume(), &cluster.seen(), leader());
    assert_eq!((well.health, well.checks.len()), (Health::Ok, 0));
    assert_eq!((well.nodes.storage_online, well.nodes.diskless_online), (2, 1));
    assert_eq!((well.pools[0].nodes, well.pools[0].capacity_bytes), (2, 2000));
    assert_eq!(well.volumes, BTreeMap::from([("healthy".into(), 1)]));

    let lost = status(&volume(), &cluster.without("s2"), leader());
    assert_eq!(lost.health, Health::Warn);
    assert_eq!(
        codes(&lost),
        [
            ("NODE_OFFLINE", Severity::Warning),
            ("VOLUME_DEGRADED", Severity::Warning)
        ]
    );
    assert!(lost.checks[0].message.contains("last seen then"));

    for (free, expected) in [
        (201, None),
        (200, Some(Severity::Warning)),
        (100, Some(Severity::Error)),
        (50, Some(Severity::Error)),
        (0, Some(Severity::Error)),
    ] {
        let mut filling = Cluster::new();
        filling.s1.pools[0].free_bytes = free;
        let status = status(&volume(), &filling.seen(), leader());
        let expected: Vec<_> = expected
            .into_iter()
            .map(|severity| ("POOL_FULL", severity))
            .collect();
        assert_eq!(codes(&status), expected, "{free} of 1000 free");
    }

    let mut bad = Cluster::new();
    bad.s1.pools[0].error = "read-only".into();
    bad.s1.replicas[0].state = Reported::Failed.into();
    bad.s2.replicas[0].stored_epoch = 9;
    bad.k1.engines = vec![engine(EngineState::Suspended)];
    let controllers = vec![
        controller("c1", ControllerRole::Leader, true),
        controller("c2", ControllerRole::Follower, false),
    ];
    let worst = status(&volume(), &bad.seen(), controllers);
    assert_eq!(worst.health, Health::Err);
    assert_eq!(
        codes(&worst),
        [
            ("CATALOGUE_BEHIND", Severity::Error),
            ("POOL_FAILED", Severity::Error),
            ("REPLICA_FAILED", Severity::Error),
            ("VOLUME_SUSPENDED", Severity::Error),
            ("CONTROLLERS_EVEN", Severity::Warning),
            ("CONTROLLER_DOWN", Severity::Warning),
        ]
    );
    assert!(
        worst
            .checks
            .iter()
            .all(|check| !check.message.is_empty() && !check.remedy.is_empty())
    );
}

/// What helps depends on what is wrong with each replica, not on the volume.
#[test]
fn the_remedy_is_that_of_what_is_wrong() {
    let remedy = |row: &row::Volume, seen: &Observations| {
        let status = status(row, seen, Vec::new());
        let found = status
            .checks
            .into_iter()
            .find(|check| check.code == "VOLUME_DEGRADED");
        found.unwrap().remedy
    };
    let mut cluster = Cluster::new();
    assert_eq!(
        remedy(&volume(), &cluster.without("s2")),
        "bring s2 back; what is missing is copied by itself"
    );
    let mut full = volume();
    full.row.replicas.get_mut(&ReplicaId(1)).unwrap().state = MemberState::Stale {
        since: Some(ConfigSeq(1)),
        reason: EjectReason::NoSpace,
    };
    let told = remedy(&full, &cluster.seen());
    assert!(told.starts_with("make room in pool sp01 on s2"), "{told}");

    let report = &mut cluster.s2.replicas[0];
    report.state = Reported::Failed.into();
    report.error = "both copies of the superblock are damaged".into();
    let told = remedy(&volume(), &cluster.seen());
    assert!(told.starts_with("look at pool sp01 on node s2"), "{told}");
    cluster.s2.replicas[0].beyond_help = true;
    let command = "storctl replica remove db1 --id 1, then storctl replica add db1";
    let told = remedy(&volume(), &cluster.seen());
    assert!(told.contains(command) && !told.contains("bring"), "{told}");
    let shown = show::volume(&volume(), &cluster.seen());
    assert!(shown.replicas[1].reason.contains(command), "{:?}", shown.replicas);
    // Of the last one that has every write, nobody is told to remove it.
    let mut last = volume();
    last.row.replicas.get_mut(&ReplicaId(0)).unwrap().state = MemberState::Stale {
        since: Some(ConfigSeq(1)),
        reason: EjectReason::TimedOut,
    };
    let shown = status(&last, &cluster.seen(), Vec::new());
    let text = format!("{:?}", shown.checks);
    assert!(!text.contains("replica remove"), "{text}");
    assert!(
        text.contains("bring back the files of the replica on s2"),
        "{text}"
    );
}

#[test]
fn work_is_told_a_line_each() {
    let mut healing = volume();
    stale(&mut healing);
    healing.row.owner = Some("s1".into());
    healing.attachment.as_mut().unwrap().purpose = Purpose::Healing;
    let mut cluster = Cluster::new();
    cluster.s1.engines = vec![EngineStatus {
        syncing: vec![SyncProgress {
            replica: 1,
            total_bytes: 2 << 20,
            done_bytes: 1 << 20,
        }],
        ..engine(EngineState::Serving)
    }];
    assert_eq!(
        status(&healing, &cluster.seen(), Vec::new()).work,
        [
            "volume db1: node s1 brings its replicas up to date",
            "volume db1: replica on s2 50.0 % in sync, 1.0 MiB left",
        ]
    );
}

#[test]
fn an_attach_or_detach_under_way_is_work_with_its_reason() {
    let mut cluster = Cluster::new();
    cluster.k1.engines[0] = EngineStatus {
        reason: "device is in use".into(),
        ..engine(EngineState::Starting)
    };
    let work = |row: &row::Volume, seen: &Observations| status(row, seen, Vec::new()).work;
    assert_eq!(
        work(&volume(), &cluster.seen()),
        ["volume db1: being attached on k1: device is in use"]
    );
    let mut detaching = volume();
    detaching.attachment.as_mut().unwrap().detaching = true;
    assert_eq!(
        work(&detaching, &cluster.seen()),
        ["volume db1: being detached from k1: device is in use"]
    );
    let gone = work(&detaching, &cluster.without("k1"));
    assert!(gone[0].contains("k1 is not connected; its engine is taken for lost after 30 s"));
}

#[test]
fn what_goes_wrong_in_many_places_is_told_once() {
    let cluster = Cluster::new();
    let seen = cluster.without("s2");
    let shown = |count: usize| -> Vec<(String, usize)> {
        let rows = vec![volume(); count];
        let volumes: Vec<_> = rows.iter().map(|row| show::volume(row, &seen)).collect();
        let status = show::status(show::Facts {
            cluster_id: "id".into(),
            controllers: Vec::new(),
            nodes: &[],
            pools: &[],
            rows: &rows,
            volumes: &volumes,
            tombstones: &[],
            snapshots: &[],
            seen: &seen,
            node_rows: &[],
            history: None,
        });
        let degraded = status
            .checks
            .into_iter()
            .filter(|check| check.code == "VOLUME_DEGRADED");
        degraded
            .map(|check| (check.message, check.objects.len()))
            .collect()
    };
    assert_eq!(shown(4).len(), 4);
    let folded = shown(9);
    assert_eq!((folded.len(), folded[0].1), (1, 9));
    assert!(folded[0].0.ends_with("; and 8 more like this"), "{folded:?}");
}

#[test]
fn what_is_left_of_a_deleted_volume_is_told_until_it_is_gone() {
    let left = |node: &str, replica| row::Tombstone {
        volume: volume().row.volume,
        replica: ReplicaId(replica),
        name: "old".into(),
        node: node.into(),
        pool: "sp01".into(),
        size: 4096,
        lineage: volume().row.lineage,
        allocated: None,
        deleted: "then".into(),
    };
    let mut cluster = Cluster::new();
    let shown = show::tombstone(&left("s1", 0), &cluster.seen());
    assert_eq!(
        (shown.state, shown.reason.as_str()),
        (TombstoneState::Removing, "")
    );
    assert!(shown.allocated_bytes.is_some(), "as last reported");
    cluster.s1.replicas[0].state = Reported::Failed.into();
    cluster.s1.replicas[0].error = "the disk hangs".into();
    let seen = cluster.without("s2");
    let both = [left("s1", 0), left("s2", 1)].map(|row| show::tombstone(&row, &seen));
    assert_eq!(
        both.each_ref().map(|one| (one.state, one.reason.as_str())),
        [
            (TombstoneState::Failed, "the disk hangs"),
            (TombstoneState::Offline, "node s2 is not connected")
        ]
    );
    let nodes = [show::node(&node_row("s1", Some("0.1.0")), &seen)];
    let status = show::status(show::Facts {
        cluster_id: "id".into(),
        controllers: Vec::new(),
        nodes: &nodes,
        pools: &[],
        rows: &[],
        volumes: &[],
        tombstones: &both,
        snapshots: &[],
        seen: &seen,
        node_rows: &[],
        history: None,
    });
    assert_eq!(
        codes(&status),
        [
            ("LEFT_BEHIND", Severity::Warning),
            ("LEFT_BEHIND", Severity::Info)
        ]
    );
    assert_eq!(
        status.checks[1].message,
        "pool sp01 on s2 still has 1 replica that is not wanted any more: removed when the node is back"
    );
}
