use std::sync::Arc;

use stor_proto::satellite::{EngineStatus, SnapshotCopyStatus, Status};
use stor_replication::catalogue::VolumeRow;
use stor_replication::ids::{ConfigSeq, Epoch, Lineage, ReplicaId, SnapshotId, View};

use super::*;
use crate::catalogue::command::{Purpose, VolumeWish};
use crate::catalogue::row::{Attachment, VolumePhase};
use crate::catalogue::snapshot::Copy;
use crate::observed::Heard;

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

/// Snapshot n of volume n, of a batch of two.
fn snapshot(n: u128, phase: SnapshotPhase) -> Snapshot {
    let copy = Copy {
        node: "s1".into(),
        pool: "sp01".into(),
        phase: CopyPhase::Creating,
    };
    Snapshot {
        id: SnapshotId(id(100 + n)),
        volume: VolumeId(id(n)),
        volume_name: format!("v{n}"),
        name: "a".into(),
        size: 4096,
        phase,
        reason: String::new(),
        batch: id(7),
        batch_size: 2,
        go: false,
        queued: 5,
        created: String::new(),
        revision: 5,
        clone: None,
        clone_made: false,
        copies: BTreeMap::from([(ReplicaId(0), copy)]),
    }
}

/// Volume n, attached on k1 under epoch 1.
fn volume(n: u128) -> Volume {
    Volume {
        row: VolumeRow {
            volume: VolumeId(id(n)),
            size: 4096,
            revision: 3,
            view: View {
                epoch: Epoch(1),
                config: ConfigSeq(0),
            },
            owner: Some("k1".into()),
            clean: false,
            clean_before: true,
            lineage: Lineage(id(9)),
            min_in_sync: 1,
            replicas: BTreeMap::new(),
        },
        name: format!("v{n}"),
        phase: VolumePhase::Available,
        wish: VolumeWish {
            size: 4096,
            class: None,
            replicas: None,
            pool: None,
            tags: Vec::new(),
            spread: None,
            together: None,
            min_in_sync: None,
        },
        created: String::new(),
        places: BTreeMap::new(),
        attachment: Some(Attachment {
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

/// k1 reports how far each engine is, s1 copies that are gone.
fn seen(now: Instant, stages: [&str; 2], gone: &[u128]) -> Observations {
    let engines = (1..).zip(stages).map(|(n, stage)| EngineStatus {
        volume_id: id(n).to_string(),
        epoch: 1,
        snapshot_id: id(100 + n).to_string(),
        snapshot_stage: stage.into(),
        ..EngineStatus::default()
    });
    let copies = gone.iter().map(|n| SnapshotCopyStatus {
        volume_id: id(*n).to_string(),
        snapshot_id: id(100 + n).to_string(),
        state: SnapshotCopyState::Deleted.into(),
        ..SnapshotCopyStatus::default()
    });
    let heard = |status| Arc::new(Heard::new(status, now, String::new()));
    let nodes = [
        (
            "k1".to_owned(),
            heard(Status {
                engines: engines.collect(),
                ..Status::default()
            }),
        ),
        (
            "s1".to_owned(),
            heard(Status {
                snapshots: copies.collect(),
                ..Status::default()
            }),
        ),
    ];
    Observations::new(BTreeMap::from(nodes), now)
}

#[test]
fn a_batch_goes_on_when_every_engine_holds_its_writes() {
    let now = Instant::now();
    let both = [1, 2].map(|n| snapshot(n, SnapshotPhase::Creating));
    let attached = [volume(1), volume(2)];
    let decide = |stages| Batches::default().decide(&both, &attached, &seen(now, stages, &[]), now);
    assert_eq!(decide(["held", "holding"]), []);
    assert_eq!(decide(["held", "held"]), [Action::GoSnapshots { batch: id(7) }]);
    let mut other_epoch = attached.clone();
    other_epoch[1].row.view.epoch = Epoch(2);
    let seen = seen(now, ["held", "held"], &[]);
    let actions = Batches::default().decide(&both, &other_epoch, &seen, now);
    assert_eq!(actions, [], "an older engine holds nothing any more");
}

#[test]
fn one_that_takes_a_minute_is_given_up_and_says_what_it_waited_for() {
    let (mut batches, start) = (Batches::default(), Instant::now());
    let both = [1, 2].map(|n| snapshot(n, SnapshotPhase::Creating));
    let attached = [volume(1), volume(2)];
    let mut at = |seconds| {
        let now = start + Duration::from_secs(seconds);
        batches.decide(&both, &attached, &seen(now, ["waiting", "held"], &[]), now)
    };
    assert_eq!(at(0), []);
    assert_eq!(at(59), []);
    let why = "the replicas of volume v1 in sync are not all there and equal".to_owned();
    assert_eq!(at(60), [Action::FailSnapshots { batch: id(7), why }]);
}

#[test]
fn copies_that_are_gone_are_struck_off() {
    let now = Instant::now();
    let mut one = snapshot(1, SnapshotPhase::Failed);
    let decide = |one: &Snapshot| {
        let seen = seen(now, ["", ""], &[1]);
        Batches::default().decide(std::slice::from_ref(one), &[], &seen, now)
    };
    assert_eq!(decide(&one), [], "it is not to be removed");
    for copy in one.copies.values_mut() {
        copy.phase = CopyPhase::Deleting;
    }
    let gone = Action::CopiesObserved {
        node: "s1".into(),
        gone: vec![(one.id, ReplicaId(0))],
        made: Vec::new(),
    };
    assert_eq!(decide(&one), [gone]);
}
