//! Volumes made of what another one holds: one wish, whoever carries it out.

use stor_replication::ids::SnapshotId;

use super::*;
use crate::catalogue::command::CloneWish;
use crate::catalogue::snapshot::{self, Snapshot, SnapshotPhase};

fn snap(n: u128) -> SnapshotId {
    SnapshotId(Uuid::from_u128(700 + n))
}

/// v1 is to be cloned as v`into`; the n-th time somebody asks.
fn clone(n: u128, into: u128, replicas: Option<u8>) -> Action {
    Action::CloneVolume {
        batch: Uuid::from_u128(800 + n),
        snapshot: NewSnapshot {
            id: snap(n),
            volume: "v1".into(),
            name: format!("clone-v{into}"),
        },
        into: CloneWish {
            id: VolumeId(Uuid::from_u128(900 + n)),
            name: format!("v{into}"),
            lineage: Lineage(Uuid::from_u128(950 + n)),
            replicas,
            min_in_sync: None,
        },
    }
}

async fn one(c: &mut Catalogue, n: u128) -> Option<Snapshot> {
    snapshot::snapshot(&mut c.conn, snap(n)).await.unwrap()
}

async fn ready(c: &mut Catalogue, n: u128) {
    let change = Change::SnapshotReady {
        expect: View {
            epoch: Epoch(1),
            config: ConfigSeq(0),
        },
        snapshot: snap(n),
        members: vec![ReplicaId(0), ReplicaId(1)],
    };
    row(c.run(super::change(1, change, "k1")).await);
}

/// What the leader makes of it.
fn restore(n: u128, into: u128) -> Action {
    Action::RestoreSnapshot(Restore {
        new: NewVolume {
            id: VolumeId(Uuid::from_u128(900 + n)),
            ..volume(into)
        },
        snapshot: snap(n),
        copies: vec![Some(ReplicaId(0)), Some(ReplicaId(1))],
    })
}

fn delete(n: u128) -> Action {
    Action::DeleteSnapshot {
        snapshot: snap(n),
        expect: None,
    }
}

async fn attached() -> Catalogue {
    let mut c = with_volume().await;
    row(c.run(Action::Attach(attach(1, "k1", 0))).await);
    c
}

/// Asked once more, nothing changes.
async fn again(c: &mut Catalogue) {
    assert_eq!(c.run(clone(2, 3, None)).await, Ok(Outcome::Unchanged));
    assert!(one(c, 2).await.is_none());
}

#[tokio::test]
async fn asked_again_at_any_step_it_is_the_same_one() {
    let mut c = attached().await;
    assert_eq!(c.run(clone(1, 3, None)).await, Ok(Outcome::Created));
    again(&mut c).await;
    assert!(matches!(
        c.run(clone(3, 3, Some(1))).await,
        Err(Refused::Exists { .. })
    ));
    ready(&mut c, 1).await;
    again(&mut c).await;
    let waits = one(&mut c, 1).await.unwrap();
    assert!(waits.clone.is_some() && !waits.clone_made);
    assert_eq!(c.run(restore(1, 3)).await, Ok(Outcome::Created));
    assert_eq!(c.run(restore(1, 3)).await, Ok(Outcome::Unchanged));
    again(&mut c).await;
    assert!(one(&mut c, 1).await.unwrap().clone_made);
    assert!(
        matches!(c.run(delete(1)).await, Err(Refused::InUse { .. })),
        "it is being made of it"
    );
    for (node, replica) in [("s1", 0), ("s2", 1)] {
        let made = Action::ReplicasObserved {
            node: node.into(),
            ready: vec![(VolumeId(Uuid::from_u128(901)), ReplicaId(replica))],
            gone: Vec::new(),
        };
        c.run(made).await.unwrap();
    }
    assert_eq!(c.run(delete(1)).await, Ok(Outcome::Changed));
    again(&mut c).await;
    // A volume of that name that was not made of it is another thing.
    c.run(Action::CreateVolume(volume(4))).await.unwrap();
    assert!(matches!(
        c.run(clone(5, 4, None)).await,
        Err(Refused::Exists { .. })
    ));
}

#[tokio::test]
async fn what_can_not_be_made_is_undone_and_says_why() {
    let mut c = attached().await;
    c.run(clone(1, 3, None)).await.unwrap();
    let fail = |n| Action::FailClone {
        snapshot: snap(n),
        why: "no room".into(),
    };
    assert_eq!(
        c.run(fail(1)).await,
        Ok(Outcome::Unchanged),
        "it is not known yet"
    );
    ready(&mut c, 1).await;
    assert_eq!(c.run(fail(1)).await, Ok(Outcome::Changed));
    let failed = one(&mut c, 1).await.unwrap();
    assert_eq!(
        (failed.phase, failed.reason.as_str()),
        (SnapshotPhase::Failed, "no room")
    );
    assert!(matches!(c.run(restore(1, 3)).await, Err(Refused::State { .. })));
    assert_eq!(
        c.run(clone(2, 3, None)).await,
        Ok(Outcome::Created),
        "another attempt"
    );
    ready(&mut c, 2).await;
    c.run(restore(2, 3)).await.unwrap();
    assert_eq!(c.run(fail(2)).await, Ok(Outcome::Unchanged), "it was made");
}
