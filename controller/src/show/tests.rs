use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use stor_api::objects::{
    AttachmentState, Controller, ControllerRole, Health, NodeState, PoolState, ReplicaState, Severity,
    Status, TombstoneState, VolumeState,
};
use stor_proto::satellite::{
    EngineState, EngineStatus, PoolStatus, ReplicaState as Reported, ReplicaStatus, Status as Report,
    SyncProgress,
};
use stor_replication::catalogue::{EjectReason, Member, MemberState, VolumeRow};
use stor_replication::ids::{ConfigSeq, Epoch, Lineage, ReplicaId, View, VolumeId};
use uuid::Uuid;

use crate::catalogue::command::{NodeKind, PoolWish, Purpose, VolumeWish};
use crate::catalogue::row;
use crate::observed::{Heard, OFFLINE_AFTER, Observations};

fn id() -> VolumeId {
    VolumeId(Uuid::from_u128(1))
}

/// Volume db1 on s1 and s2, attached on k1 under epoch 3.
fn volume() -> row::Volume {
    let member = |node: &str| Member {
        node: node.into(),
        joined: Some(ConfigSeq(0)),
        state: MemberState::InSync,
    };
    let place = row::Place {
        pool: "sp01".into(),
        phase: row::ReplicaPhase::Ready,
    };
    row::Volume {
        row: VolumeRow {
            volume: id(),
            size: 1 << 20,
            revision: 9,
            view: View {
                epoch: Epoch(3),
                config: ConfigSeq(1),
            },
            owner: Some("k1".into()),
            clean: false,
            clean_before: true,
            lineage: Lineage(Uuid::from_u128(2)),
            min_in_sync: 1,
            replicas: BTreeMap::from([(ReplicaId(0), member("s1")), (ReplicaId(1), member("s2"))]),
        },
        name: "db1".into(),
        phase: row::VolumePhase::Available,
        wish: VolumeWish {
            size: 1 << 20,
            class: None,
            replicas: None,
            pool: None,
            tags: Vec::new(),
            spread: None,
            together: None,
            min_in_sync: None,
        },
        created: "2026-01-01T00:00:00.000Z".into(),
        places: BTreeMap::from([(ReplicaId(0), place.clone()), (ReplicaId(1), place)]),
        attachment: Some(row::Attachment {
            transport: "socket".into(),
            read_only: false,
            purpose: Purpose::User,
            detaching: false,
        }),
        doubt: false,
    }
}

fn stale(volume: &mut row::Volume) {
    volume.row.replicas.get_mut(&ReplicaId(1)).unwrap().state = MemberState::Stale {
        since: Some(ConfigSeq(1)),
        reason: EjectReason::TimedOut,
    };
}

/// What the nodes report; all of them are online.
struct Cluster {
    s1: Report,
    s2: Report,
    k1: Report,
    now: Instant,
}

impl Cluster {
    fn new() -> Self {
        let storage = |replica| Report {
            pools: vec![PoolStatus {
                name: "sp01".into(),
                capacity_bytes: 1000,
                free_bytes: 500,
                ..PoolStatus::default()
            }],
            replicas: vec![ReplicaStatus {
                volume_id: id().to_string(),
                replica,
                state: Reported::Ready.into(),
                allocated_bytes: 4096,
                ..ReplicaStatus::default()
            }],
            ..Report::default()
        };
        let k1 = Report {
            engines: vec![engine(EngineState::Serving)],
            ..Report::default()
        };
        Self {
            s1: storage(0),
            s2: storage(1),
            k1,
            now: Instant::now(),
        }
    }

    fn seen(&self) -> Observations {
        let heard = |report: &Report| Arc::new(Heard::new(report.clone(), self.now, "then".into()));
        let nodes = [("s1", &self.s1), ("s2", &self.s2), ("k1", &self.k1)];
        let nodes = nodes.map(|(name, report)| (name.to_owned(), heard(report)));
        Observations::new(BTreeMap::from(nodes), self.now)
    }

    /// The same, with `silent` last heard too long ago.
    fn without(&self, silent: &str) -> Observations {
        let later = self.now + OFFLINE_AFTER;
        let heard = |name: &str, report: &Report| {
            let at = if name == silent { self.now } else { later };
            (
                name.to_owned(),
                Arc::new(Heard::new(report.clone(), at, "then".into())),
            )
        };
        let nodes = [
            heard("s1", &self.s1),
            heard("s2", &self.s2),
            heard("k1", &self.k1),
        ];
        Observations::new(BTreeMap::from(nodes), later)
    }
}

fn engine(state: EngineState) -> EngineStatus {
    EngineStatus {
        volume_id: id().to_string(),
        epoch: 3,
        state: state.into(),
        device: "/dev/stor/db1".into(),
        ..EngineStatus::default()
    }
}

fn states(row: &row::Volume, seen: &Observations) -> (VolumeState, String, Vec<ReplicaState>) {
    let shown = super::volume(row, seen);
    let replicas = shown.replicas.iter().map(|replica| replica.state).collect();
    (shown.state, shown.reason, replicas)
}

#[test]
fn a_volume_is_as_its_replicas_and_engine_are() {
    use ReplicaState::{Creating, Deleting, Failed, InSync, Offline, Stale, Syncing};
    let cluster = Cluster::new();
    assert_eq!(
        states(&volume(), &cluster.seen()),
        (VolumeState::Healthy, String::new(), vec![InSync, InSync])
    );
    let reason = "replica on s2 is offline (node s2 is not connected)".to_owned();
    assert_eq!(
        states(&volume(), &cluster.without("s2")),
        (VolumeState::Degraded, reason, vec![InSync, Offline])
    );

    let mut ejected = volume();
    stale(&mut ejected);
    let reason = "replica on s2 is stale (left the set: timed-out)".to_owned();
    assert_eq!(
        states(&ejected, &cluster.seen()),
        (VolumeState::Degraded, reason, vec![InSync, Stale])
    );
    let (state, reason, _) = states(&ejected, &cluster.without("s1"));
    assert_eq!(state, VolumeState::Failed);
    assert!(
        reason.contains("s1 is not connected") && reason.contains("stale"),
        "{reason}"
    );

    let mut syncing = Cluster::new();
    syncing.k1.engines[0].syncing = vec![SyncProgress {
        replica: 1,
        total_bytes: 3000,
        done_bytes: 1000,
    }];
    let shown = super::volume(&ejected, &syncing.seen());
    assert_eq!(shown.replicas[1].state, Syncing);
    assert_eq!(shown.replicas[1].resync_percent, Some(33.3));
    assert_eq!(shown.replicas[1].resync_left_bytes, Some(2000));
    assert_eq!(shown.replicas[0].resync_percent, Some(100.0));
    assert_eq!(shown.replicas[0].resync_left_bytes, None);

    let mut broken = Cluster::new();
    broken.s2.replicas[0].state = Reported::Missing.into();
    let reason = "replica on s2 is failed (its files are missing)".to_owned();
    assert_eq!(
        states(&volume(), &broken.seen()),
        (VolumeState::Degraded, reason, vec![InSync, Failed])
    );

    let mut suspended = Cluster::new();
    suspended.k1.engines[0] = EngineStatus {
        reason: "waits for s1".into(),
        ..engine(EngineState::Suspended)
    };
    let (state, reason, _) = states(&volume(), &suspended.seen());
    assert_eq!((state, reason.as_str()), (VolumeState::Suspended, "waits for s1"));
    suspended.k1.engines[0].epoch = 2;
    assert_eq!(
        states(&volume(), &suspended.seen()).0,
        VolumeState::Healthy,
        "an older engine's word"
    );

    let mut new = volume();
    new.phase = row::VolumePhase::Creating;
    new.places.get_mut(&ReplicaId(0)).unwrap().phase = row::ReplicaPhase::Creating;
    let (state, reason, replicas) = states(&new, &cluster.seen());
    assert_eq!(
        (state, reason.as_str(), replicas[0]),
        (VolumeState::Creating, "", Creating)
    );
    let (_, reason, _) = states(&new, &cluster.without("s1"));
    assert_eq!(reason, "waits: node s1 is not connected");
    new.phase = row::VolumePhase::Deleting;
    new.places.get_mut(&ReplicaId(0)).unwrap().phase = row::ReplicaPhase::Deleting;
    let (state, reason, replicas) = states(&new, &cluster.without("s1"));
    assert_eq!((state, replicas[0]), (VolumeState::Deleting, Deleting));
    assert_eq!(reason, "waits: node s1 is not connected");
}

#[test]
fn an_attachment_is_as_its_engine_is() {
    let state = |row: &row::Volume, seen: &Observations| super::user_attachment(row, seen).unwrap().state;
    for (engine_state, expected) in [
        (EngineState::Starting, AttachmentState::Attaching),
        (EngineState::Serving, AttachmentState::Attached),
        (EngineState::Suspended, AttachmentState::Suspended),
        (EngineState::Fenced, AttachmentState::Failed),
        (EngineState::Failed, AttachmentState::Failed),
        (EngineState::Stopping, AttachmentState::Detaching),
    ] {
        let mut cluster = Cluster::new();
        cluster.k1.engines = vec![engine(engine_state)];
        assert_eq!(state(&volume(), &cluster.seen()), expected);
    }
    let mut cluster = Cluster::new();
    let shown = super::user_attachment(&volume(), &cluster.seen()).unwrap();
    assert_eq!(
        (shown.device.as_str(), shown.node.as_str(), shown.epoch),
        ("/dev/stor/db1", "k1", 3)
    );
    assert_eq!(state(&volume(), &cluster.without("k1")), AttachmentState::Unknown);
    cluster.k1.engines[0].epoch = 2;
    assert_eq!(state(&volume(), &cluster.seen()), AttachmentState::Attaching);
    let mut detaching = volume();
    detaching.attachment.as_mut().unwrap().detaching = true;
    assert_eq!(state(&detaching, &cluster.seen()), AttachmentState::Detaching);
    let mut healing = volume();
    healing.attachment.as_mut().unwrap().purpose = Purpose::Healing;
    assert!(super::user_attachment(&healing, &cluster.seen()).is_none());
    assert!(super::volume(&healing, &cluster.seen()).attachments.is_empty());
}

#[test]
fn a_new_leader_does_not_call_nodes_lost_that_were_there() {
    let nobody = Observations::new(BTreeMap::new(), Instant::now());
    assert_eq!(states(&volume(), &nobody).0, VolumeState::Failed);
    let presumed = nobody.presuming(vec!["s1".into(), "s2".into(), "k1".into()]);
    assert_eq!(states(&volume(), &presumed).0, VolumeState::Healthy);
    assert!(presumed.awaits());
    let attachment = super::user_attachment(&volume(), &presumed).unwrap();
    assert_eq!(
        attachment.state,
        AttachmentState::Unknown,
        "nobody told of the engine"
    );
    let heard = Cluster::new().without("s2").presuming(vec!["s2".into()]);
    assert_eq!(
        states(&volume(), &heard).0,
        VolumeState::Degraded,
        "it was heard, and fell silent"
    );
}

fn node_row(name: &str, version: Option<&str>) -> row::Node {
    row::Node {
        name: name.into(),
        address: "10.0.0.1".into(),
        kind: if name.starts_with('s') {
            NodeKind::Storage
        } else {
            NodeKind::Diskless
        },
        properties: BTreeMap::new(),
        data_address: None,
        version: version.map(str::to_owned),
        boot_id: None,
        transports: Vec::new(),
        online: None,
        desired: 0,
        revision: 1,
    }
}

fn pool_row(node: &str) -> row::Pool {
    row::Pool {
        wish: PoolWish {
            name: "sp01".into(),
            node: node.into(),
            dir: "/p".into(),
            tags: Vec::new(),
            overprovision_milli: 1_500,
        },
        promised: 7,
        replicas: 1,
        ready: true,
        revision: 2,
    }
}

#[test]
fn nodes_and_pools_show_what_is_known() {
    let cluster = Cluster::new();
    let node = |name, version| super::node(&node_row(name, version), &cluster.seen());
    assert_eq!(node("s1", Some("0.1.0")).state, NodeState::Online);
    assert_eq!(node("s9", Some("0.1.0")).state, NodeState::Offline);
    assert_eq!(node("s9", None).state, NodeState::New);
    assert_eq!(node("s1", None).last_seen.as_deref(), Some("then"));
    let shown = super::pool(&pool_row("s1"), &cluster.seen());
    assert_eq!(
        (shown.state, shown.capacity_bytes, shown.free_bytes),
        (PoolState::Ready, 1000, 500)
    );
    assert!((shown.overprovision - 1.5).abs() < f64::EPSILON);
    let silent = super::pool(&pool_row("s1"), &cluster.without("s1"));
    assert_eq!(
        (silent.state, silent.capacity_bytes),
        (PoolState::Offline, 1000),
        "as last heard"
    );
    assert_eq!(
        super::pool(&pool_row("k1"), &cluster.seen()).state,
        PoolState::Pending
    );
    let mut broken = Cluster::new();
    broken.s1.pools[0].error = "read-only".into();
    let shown = super::pool(&pool_row("s1"), &broken.seen());
    assert_eq!(
        (shown.state, shown.error.as_str()),
        (PoolState::Failed, "read-only")
    );
}

fn controller(name: &str, role: ControllerRole, online: bool) -> Controller {
    Controller {
        name: name.into(),
        id: 1,
        api_address: String::new(),
        peer_address: String::new(),
        role,
        online,
        lag: None,
    }
}

fn status(row: &row::Volume, seen: &Observations, controllers: Vec<Controller>) -> Status {
    let nodes = ["s1", "s2", "k1"].map(|name| super::node(&node_row(name, Some("0.1.0")), seen));
    let pools = ["s1", "s2"].map(|node| super::pool(&pool_row(node), seen));
    super::status(super::Facts {
        cluster_id: "id".into(),
        controllers,
        nodes: &nodes,
        pools: &pools,
        rows: std::slice::from_ref(row),
        volumes: &[super::volume(row, seen)],
        tombstones: &[],
        seen,
        node_rows: &[],
        history: None,
    })
}

fn codes(status: &Status) -> Vec<(&str, Severity)> {
    status
        .checks
        .iter()
        .map(|check| (check.code.as_str(), check.severity))
        .collect()
}

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

#[test]
fn what_goes_wrong_in_many_places_is_told_once() {
    let cluster = Cluster::new();
    let seen = cluster.without("s2");
    let shown = |count: usize| -> Vec<(String, usize)> {
        let rows = vec![volume(); count];
        let volumes: Vec<_> = rows.iter().map(|row| super::volume(row, &seen)).collect();
        let status = super::status(super::Facts {
            cluster_id: "id".into(),
            controllers: Vec::new(),
            nodes: &[],
            pools: &[],
            rows: &rows,
            volumes: &volumes,
            tombstones: &[],
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
fn a_deletion_says_for_whom_it_waits() {
    let mut deleting = volume();
    deleting.phase = row::VolumePhase::Deleting;
    for place in deleting.places.values_mut() {
        place.phase = row::ReplicaPhase::Deleting;
    }
    let mut cluster = Cluster::new();
    assert_eq!(states(&deleting, &cluster.seen()).0, VolumeState::Deleting);
    assert_eq!(super::volume(&deleting, &cluster.seen()).reason, "");
    cluster.s1.replicas[0].state = Reported::Failed.into();
    cluster.s1.replicas[0].error = "the disk hangs".into();
    let seen = cluster.without("s2");
    assert_eq!(
        super::volume(&deleting, &seen).reason,
        "waits: node s1: the disk hangs; node s2 is not connected"
    );
    let status = status(&deleting, &seen, Vec::new());
    assert!(codes(&status).contains(&("VOLUME_DELETING", Severity::Info)));
    assert!(
        status
            .work
            .iter()
            .any(|line| line.contains("being deleted, waits: node s1")),
        "{:?}",
        status.work
    );
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
    let shown = super::tombstone(&left("s1", 0), &cluster.seen());
    assert_eq!(
        (shown.state, shown.reason.as_str()),
        (TombstoneState::Removing, "")
    );
    assert!(shown.allocated_bytes.is_some(), "as last reported");
    cluster.s1.replicas[0].state = Reported::Failed.into();
    cluster.s1.replicas[0].error = "the disk hangs".into();
    let seen = cluster.without("s2");
    let both = [left("s1", 0), left("s2", 1)].map(|row| super::tombstone(&row, &seen));
    assert_eq!(
        both.each_ref().map(|one| (one.state, one.reason.as_str())),
        [
            (TombstoneState::Failed, "the disk hangs"),
            (TombstoneState::Offline, "node s2 is not connected")
        ]
    );
    let nodes = [super::node(&node_row("s1", Some("0.1.0")), &seen)];
    let status = super::status(super::Facts {
        cluster_id: "id".into(),
        controllers: Vec::new(),
        nodes: &nodes,
        pools: &[],
        rows: &[],
        volumes: &[],
        tombstones: &both,
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
        "pool sp01 on s2 still has 1 replica of deleted volumes: removed when the node is back"
    );
}
