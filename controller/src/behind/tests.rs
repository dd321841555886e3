//! Verdicts over reports, and the row that an adoption makes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::sync::Arc;
use std::time::Instant;

use stor_proto::satellite::{EngineStatus, ReplicaStatus, Status, Stored};
use stor_replication::catalogue::{Member, MemberState, VolumeRow};
use stor_replication::ids::Lineage;
use uuid::Uuid;

use super::*;
use crate::catalogue::command::{Purpose, VolumeWish};
use crate::catalogue::row::{Attachment, Place, VolumePhase};
use crate::observed::Heard;

const HISTORY: &str = "h1";
const ID: VolumeId = VolumeId(Uuid::from_u128(1));

fn node(name: &str) -> Node {
    Node {
        name: name.into(),
        address: "a".into(),
        kind: NodeKind::Storage,
        properties: [].into(),
        data_address: None,
        version: None,
        boot_id: None,
        transports: Vec::new(),
        online: Some(true),
        leaving: None,
        offline_since: None,
        desired: 0,
        revision: 0,
    }
}

/// Replicas 0 on s1 and 1 on s2, in sync, at view 5.3, attached on k1.
fn volume() -> Volume {
    let member = |node: &str| Member {
        node: node.into(),
        joined: Some(ConfigSeq(0)),
        state: MemberState::InSync,
        leaving: false,
    };
    let place = || Place {
        pool: "sp01".into(),
        phase: ReplicaPhase::Ready,
        replaces: None,
    };
    Volume {
        row: VolumeRow {
            volume: ID,
            size: 8192,
            revision: 9,
            view: view(5, 3),
            owner: Some("k1".into()),
            clean: false,
            clean_before: true,
            lineage: Lineage(Uuid::from_u128(2)),
            min_in_sync: 1,
            replicas: [(ReplicaId(0), member("s1")), (ReplicaId(1), member("s2"))].into(),
        },
        name: "db1".into(),
        phase: VolumePhase::Available,
        wish: VolumeWish {
            size: 8192,
            class: None,
            replicas: None,
            pool: None,
            tags: Vec::new(),
            spread: None,
            together: None,
            min_in_sync: None,
        },
        created: String::new(),
        places: [(ReplicaId(0), place()), (ReplicaId(1), place())].into(),
        attachment: Some(Attachment {
            transport: "socket".into(),
            read_only: false,
            purpose: Purpose::User,
            detaching: false,
        }),
        doubt: true,
        grow_to: None,
        scrub: None,
    }
}

fn view(epoch: u64, config: u64) -> View {
    View {
        epoch: Epoch(epoch),
        config: ConfigSeq(config),
    }
}

fn replica(number: u32, at: View, fence: u64, in_sync: &[u32]) -> ReplicaStatus {
    ReplicaStatus {
        volume_id: ID.to_string(),
        replica: number,
        state: ReplicaState::Ready.into(),
        stored_epoch: at.epoch.0,
        stored_config: at.config.0,
        stored: Some(Stored {
            fence_epoch: fence,
            size_bytes: 8192,
            lineage: Uuid::from_u128(2).to_string(),
            in_sync: in_sync.to_vec(),
            pool: "sp01".into(),
        }),
        ..ReplicaStatus::default()
    }
}

/// What the nodes s1 to s3 report; `None`: not connected.
struct World(Vec<(&'static str, Option<Status>)>);

fn world(reports: [Option<Vec<ReplicaStatus>>; 3]) -> World {
    let names = ["s1", "s2", "s3"];
    let status = |replicas| Status {
        replicas,
        history: HISTORY.into(),
        searched: true,
        ..Status::default()
    };
    World(names.into_iter().zip(reports.map(|r| r.map(status))).collect())
}

impl World {
    fn seen(&self) -> Observations {
        let heard = |status: &Status| Arc::new(Heard::new(status.clone(), Instant::now(), String::new()));
        let reports = self
            .0
            .iter()
            .filter_map(|(name, status)| status.as_ref().map(|status| ((*name).to_owned(), heard(status))));
        Observations::new(reports.collect(), Instant::now())
    }

    fn nodes() -> Vec<Node> {
        ["s1", "s2", "s3"].map(node).to_vec()
    }

    fn standing(&self) -> Standing {
        let (nodes, seen) = (Self::nodes(), self.seen());
        standing(&volume(), &Findings::of(&nodes, &seen, HISTORY))
    }

    fn adopt(&self, row: Option<&Volume>) -> Result<Adopting, Cannot> {
        let (nodes, seen) = (Self::nodes(), self.seen());
        adoption(ID, "db1", row, &Findings::of(&nodes, &seen, HISTORY))
    }
}

#[test]
fn a_row_is_right_only_when_every_node_was_heard() {
    let both = [0, 1];
    let same = || {
        [
            Some(vec![replica(0, view(5, 3), 5, &both)]),
            Some(vec![replica(1, view(4, 3), 5, &both)]),
            Some(Vec::new()),
        ]
    };
    assert_eq!(world(same()).standing(), Standing::Right);
    for away in 0..3 {
        let mut reports = same();
        reports[away] = None;
        assert!(
            matches!(world(reports).standing(), Standing::Waits(_)),
            "s{}",
            away + 1
        );
        let mut not_yet = world(same());
        not_yet.0[away].1.as_mut().unwrap().history = "h0".into();
        assert!(matches!(not_yet.standing(), Standing::Waits(_)));
        let mut not_searched = world(same());
        not_searched.0[away].1.as_mut().unwrap().searched = false;
        assert!(matches!(not_searched.standing(), Standing::Waits(_)));
    }
    let mut broken = same();
    broken[1].as_mut().unwrap()[0].state = ReplicaState::Failed.into();
    assert!(matches!(world(broken).standing(), Standing::Waits(_)));
}

#[test]
fn anything_later_locks_the_row() {
    let both = [0, 1];
    let later = [
        replica(0, view(6, 3), 6, &both),
        replica(0, view(5, 4), 5, &[0]),
        // Lower in the order of views, and still a later set.
        replica(0, view(4, 4), 4, &[0]),
        // Promised and nothing stored yet.
        replica(0, view(5, 3), 6, &both),
    ];
    let other = || Some(vec![replica(1, view(5, 3), 5, &both)]);
    for later in later {
        let world = world([Some(vec![later]), other(), Some(Vec::new())]);
        assert!(
            matches!(world.standing(), Standing::Behind(_)),
            "{world:?}",
            world = world.0
        );
    }
    let same = || Some(vec![replica(0, view(5, 3), 5, &both)]);
    let stranger = world([same(), other(), Some(vec![replica(2, view(0, 0), 0, &[])])]);
    assert!(matches!(stranger.standing(), Standing::Behind(_)));
    let mut engine = world([same(), other(), Some(Vec::new())]);
    engine.0[2].1.as_mut().unwrap().engines.push(EngineStatus {
        volume_id: ID.to_string(),
        epoch: 6,
        ..EngineStatus::default()
    });
    assert!(matches!(engine.standing(), Standing::Behind(_)));
    let missing = |number| ReplicaStatus {
        state: ReplicaState::Missing.into(),
        ..replica(number, view(0, 0), 0, &[])
    };
    let one_gone = world([Some(vec![missing(0)]), other(), Some(Vec::new())]);
    assert!(matches!(one_gone.standing(), Standing::Behind(_)));
    let gone = world([Some(vec![missing(0)]), Some(vec![missing(1)]), Some(Vec::new())]);
    assert_eq!(gone.standing(), Standing::Gone);
    let away = world([Some(vec![missing(0)]), Some(vec![missing(1)]), None]);
    assert!(
        matches!(away.standing(), Standing::Waits(_)),
        "s3 may have got them all"
    );
}

#[test]
fn the_highest_view_of_a_member_decides() {
    // Replica 1 left at config 4; what only it promised later decides nothing but the epoch.
    let reports = [
        Some(vec![replica(0, view(7, 4), 7, &[0])]),
        Some(vec![replica(1, view(5, 3), 9, &[0, 1])]),
        Some(Vec::new()),
    ];
    let row = volume();
    let adopting = world(reports).adopt(Some(&row)).unwrap();
    assert_eq!(adopting.risks, Vec::<String>::new());
    let adoption = adopting.adoption;
    assert_eq!(adoption.view, view(10, 5), "above all that was seen");
    assert_eq!(adoption.expect, Some(9));
    let joined: Vec<_> = adoption
        .replicas
        .iter()
        .map(|r| (r.node.as_str(), r.joined))
        .collect();
    assert_eq!(joined, [("s1", Some(ConfigSeq(4))), ("s2", None)]);
    assert_eq!(adoption.owner, None);

    // Without the one that knows, the other must not be taken for right without a word.
    let reports = [
        None,
        Some(vec![replica(1, view(5, 3), 5, &[0, 1])]),
        Some(Vec::new()),
    ];
    let adopting = world(reports).adopt(Some(&row)).unwrap();
    assert!(!adopting.risks.is_empty());
    let joined: Vec<_> = adopting
        .adoption
        .replicas
        .iter()
        .map(|r| (r.node.as_str(), r.joined))
        .collect();
    assert_eq!(
        joined,
        [("s1", Some(ConfigSeq(3))), ("s2", Some(ConfigSeq(3)))],
        "one that is away stays where it was"
    );
}

#[test]
fn an_engine_goes_on_where_it_runs_and_an_unknown_volume_gets_a_row() {
    let reports = [
        Some(vec![replica(0, view(7, 4), 7, &[0, 2])]),
        Some(vec![ReplicaStatus {
            state: ReplicaState::Missing.into(),
            ..replica(1, view(0, 0), 0, &[])
        }]),
        Some(vec![replica(2, view(7, 3), 7, &[0, 2])]),
    ];
    let mut world = world(reports);
    world.0[2].1.as_mut().unwrap().engines.push(EngineStatus {
        volume_id: ID.to_string(),
        epoch: 7,
        transport: "fuse".into(),
        read_only: true,
        ..EngineStatus::default()
    });
    let row = volume();
    let known = world.adopt(Some(&row)).unwrap();
    let owner = known.adoption.owner.clone().unwrap();
    assert_eq!(
        (owner.node.as_str(), owner.transport.as_str(), owner.read_only),
        ("s3", "fuse", true)
    );
    let nodes: Vec<&str> = known.adoption.replicas.iter().map(|r| r.node.as_str()).collect();
    assert_eq!(
        nodes,
        ["s1", "s3"],
        "the one that is gone is dropped, the unknown one taken"
    );
    let unknown = world.adopt(None).unwrap();
    assert_eq!(unknown.adoption.expect, None);
    assert_eq!(unknown.adoption.size, 8192);

    let none = world_without_members().adopt(None);
    assert_eq!(none, Err(Cannot::NoMember));
    // A lineage that can't be read is not made up: the replicas would refuse whoever came with another.
    assert_eq!(world_of_the_illegible().adopt(None), Err(Cannot::NoMember));
}

fn world_of_the_illegible() -> World {
    let mut illegible = replica(0, view(7, 4), 7, &[0]);
    illegible.stored.as_mut().unwrap().lineage = "nonsense".into();
    world([Some(vec![illegible]), Some(Vec::new()), Some(Vec::new())])
}

fn world_without_members() -> World {
    world([
        Some(vec![replica(0, view(7, 4), 7, &[])]),
        Some(Vec::new()),
        Some(Vec::new()),
    ])
}
