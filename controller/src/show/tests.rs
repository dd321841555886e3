//! What is shown of rows and reports: a volume on two nodes, used on a third, and what they report.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

use crate::catalogue::command::{NodeKind, PoolKind, PoolWish, Purpose, VolumeWish};
use crate::catalogue::row;
use crate::observed::{Heard, LOST_AFTER, OFFLINE_AFTER, Observations};
use crate::show;

mod health;
mod nodes;
mod volumes;

fn id() -> VolumeId {
    VolumeId(Uuid::from_u128(1))
}

/// Volume db1 on s1 and s2, attached on k1 under epoch 3.
fn volume() -> row::Volume {
    let member = |node: &str| Member {
        node: node.into(),
        joined: Some(ConfigSeq(0)),
        state: MemberState::InSync,
        leaving: false,
    };
    let place = row::Place {
        pool: "sp01".into(),
        phase: row::ReplicaPhase::Ready,
        replaces: None,
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
        grow_to: None,
        scrub: None,
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
        leaving: None,
        offline_since: None,
        desired: 0,
        revision: 1,
    }
}

fn pool_row(node: &str) -> row::Pool {
    row::Pool {
        wish: PoolWish {
            name: "sp01".into(),
            node: node.into(),
            kind: PoolKind::File,
            dir: "/p".into(),
            devices: Vec::new(),
            adopt: false,
            wipe: false,
            tags: Vec::new(),
            overprovision_milli: 1_500,
        },
        promised: 7,
        replicas: 1,
        ready: true,
        revision: 2,
    }
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
        snapshots: &[],
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
