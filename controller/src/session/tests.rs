use std::collections::BTreeMap;

use stor_proto::satellite::{self as proto, change_view};
use stor_replication::catalogue::{Change, EjectReason, Member, MemberState, Refusal, VolumeRow};
use stor_replication::ids::{ConfigSeq, Epoch, Lineage, ReplicaId, View, VolumeId};
use uuid::Uuid;

use super::desired::desired;
use super::wire::{self, Malformed};
use crate::catalogue::command::{PoolKind, Purpose, VolumeWish};
use crate::catalogue::row::{Attachment, Place, PoolOn, ReplicaPhase, Volume, VolumePhase};

fn volume() -> Volume {
    let id = VolumeId(Uuid::from_u128(1));
    let member = |node: &str, state, joined| Member {
        node: node.into(),
        joined,
        state,
        leaving: false,
    };
    let stale = MemberState::Stale {
        since: Some(ConfigSeq(4)),
        reason: EjectReason::CacheLost,
    };
    let place = |phase| Place {
        pool: "sp01".into(),
        phase,
        replaces: None,
    };
    Volume {
        row: VolumeRow {
            volume: id,
            size: 4096,
            revision: 9,
            view: View {
                epoch: Epoch(3),
                config: ConfigSeq(4),
            },
            owner: Some("k1".into()),
            clean: false,
            clean_before: true,
            lineage: Lineage(Uuid::from_u128(2)),
            min_in_sync: 1,
            replicas: BTreeMap::from([
                (
                    ReplicaId(0),
                    member("s1", MemberState::InSync, Some(ConfigSeq(0))),
                ),
                (ReplicaId(1), member("s2", stale, Some(ConfigSeq(2)))),
            ]),
        },
        name: "db1".into(),
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
        places: BTreeMap::from([
            (ReplicaId(0), place(ReplicaPhase::Ready)),
            (ReplicaId(1), place(ReplicaPhase::Creating)),
        ]),
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

fn addresses() -> wire::Addresses {
    BTreeMap::from([("s1".into(), "10.0.0.1:3371".into())])
}

#[test]
fn a_storage_node_is_told_of_its_replicas_only() {
    let volume = volume();
    let told = desired(
        "s1",
        9,
        vec![PoolOn {
            name: "sp01".into(),
            kind: PoolKind::File,
            dir: "/p".into(),
            devices: Vec::new(),
            adopt: false,
            wipe: false,
            ready: true,
        }],
        std::slice::from_ref(&volume),
        &addresses(),
    );
    assert_eq!(
        (
            told.revision,
            told.pools.len(),
            told.replicas.len(),
            told.engines.len()
        ),
        (9, 1, 1, 0)
    );
    assert!(!told.replicas[0].create && !told.replicas[0].delete && !told.replicas[0].in_sync);
    let told = desired("s2", 9, Vec::new(), std::slice::from_ref(&volume), &addresses());
    assert!(told.replicas[0].create, "its files are to be made");
    assert!(
        !told.replicas[0].in_sync,
        "it was removed meanwhile: it must not begin as a member"
    );
    let mut new = volume;
    new.row.replicas.get_mut(&ReplicaId(1)).unwrap().state = MemberState::InSync;
    let told = desired("s2", 9, Vec::new(), &[new], &addresses());
    assert!(told.replicas[0].create && told.replicas[0].in_sync);
}

#[test]
fn an_owner_is_told_of_its_engine() {
    let mut volume = volume();
    let told = desired("k1", 9, Vec::new(), &[volume.clone()], &addresses());
    let engine = &told.engines[0];
    assert!(!engine.stop);
    let row = engine.volume.as_ref().unwrap();
    assert_eq!((row.epoch, row.config, row.owner.as_str()), (3, 4, "k1"));
    assert_eq!(row.members[0].address, "10.0.0.1:3371");
    let stale = &row.members[1];
    assert_eq!(
        (
            stale.in_sync,
            stale.ever_in_sync,
            stale.since_config,
            stale.joined_config
        ),
        (false, true, 4, 2)
    );
    assert_eq!(
        (stale.reason.as_str(), stale.address.as_str()),
        ("cache-lost", "")
    );
    volume.attachment.as_mut().unwrap().detaching = true;
    assert!(desired("k1", 9, Vec::new(), &[volume], &addresses()).engines[0].stop);
}

fn ask(change: change_view::Change) -> proto::ChangeView {
    proto::ChangeView {
        volume_id: Uuid::from_u128(1).to_string(),
        change: Some(change),
    }
}

#[test]
fn a_change_speaks_for_its_own_node() {
    let restart = ask(change_view::Change::Restart(proto::Restart { expect_epoch: 3 }));
    let (_, change) = wire::change(&restart, "k1").unwrap();
    assert_eq!(
        change,
        Change::Restart {
            owner: "k1".into(),
            expect: Epoch(3)
        }
    );
}

#[test]
fn every_reason_survives_the_wire_and_others_are_refused() {
    use EjectReason::{CacheLost, Disagrees, DiskFailed, New, NoSpace, Operator, TimedOut, Unreachable};
    let remove = |reason: &str| {
        let members = vec![proto::Ejected {
            replica: 1,
            reason: reason.into(),
        }];
        ask(change_view::Change::Remove(proto::Remove {
            expect_epoch: 3,
            expect_config: 4,
            members,
        }))
    };
    for reason in [
        New,
        Unreachable,
        TimedOut,
        DiskFailed,
        NoSpace,
        CacheLost,
        Disagrees,
        Operator,
    ] {
        match wire::change(&remove(&reason.to_string()), "k1").unwrap().1 {
            Change::Remove { members, .. } => assert_eq!(members, [(ReplicaId(1), reason)]),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        wire::change(&remove("bored"), "k1"),
        Err(Malformed::Reason("bored".into()))
    );
    let nothing = proto::ChangeView {
        volume_id: Uuid::from_u128(1).to_string(),
        change: None,
    };
    assert_eq!(wire::change(&nothing, "k1"), Err(Malformed::Empty));
    let elsewhere = proto::ChangeView {
        volume_id: "db1".into(),
        ..remove("new")
    };
    assert_eq!(
        wire::change(&elsewhere, "k1"),
        Err(Malformed::VolumeId("db1".into()))
    );
}

#[test]
fn refusal_codes_are_those_of_its_json() {
    let refusals = [
        Refusal::Attached { node: "k1".into() },
        Refusal::NotAttached,
        Refusal::NotOwner { owner: "k1".into() },
        Refusal::ViewChanged {
            expected: View::default(),
            current: View::default(),
        },
        Refusal::TooFewInSync { left: 0, min: 1 },
        Refusal::NoSuchReplica {
            replica: ReplicaId(0),
        },
        Refusal::NothingToDo {
            replica: ReplicaId(0),
        },
    ];
    for refusal in refusals {
        let json = serde_json::to_value(&refusal).unwrap();
        assert_eq!(json["refusal"], wire::refusal_code(&refusal));
    }
}
