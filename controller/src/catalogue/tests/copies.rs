//= docs/replication.md#S6
//= docs/replication.md#S7
//! Copies of snapshots that are ready: made anew where a replica has none, kept until every replica has its own.

use stor_replication::ids::SnapshotId;

use super::*;
use crate::catalogue::snapshot::{self, CopyPhase, Snapshot, SnapshotPhase};

fn snap() -> SnapshotId {
    SnapshotId(Uuid::from_u128(501))
}

fn view(config: u64) -> View {
    View {
        epoch: Epoch(1),
        config: ConfigSeq(config),
    }
}

async fn told(c: &mut Catalogue, what: Change) {
    row(c.run(change(1, what, "k1")).await);
}

async fn remove(c: &mut Catalogue, member: u32, config: u64, reason: EjectReason) {
    let members = vec![(ReplicaId(member), reason)];
    let expect = view(config);
    told(c, Change::Remove { expect, members }).await;
}

async fn add(c: &mut Catalogue, member: u32, config: u64) {
    let (expect, member) = (view(config), ReplicaId(member));
    told(c, Change::Add { expect, member }).await;
}

/// v1@a of these members, made in that config.
async fn make(c: &mut Catalogue, members: &[u32], config: u64) {
    let asked = Action::CreateSnapshots {
        batch: Uuid::from_u128(1),
        snapshots: vec![NewSnapshot {
            id: snap(),
            volume: "v1".into(),
            name: "a".into(),
        }],
    };
    assert_eq!(c.run(asked).await, Ok(Outcome::Created));
    let members = members.iter().copied().map(ReplicaId).collect();
    let (expect, snapshot) = (view(config), snap());
    told(
        c,
        Change::SnapshotReady {
            expect,
            snapshot,
            members,
        },
    )
    .await;
}

async fn one(c: &mut Catalogue) -> Snapshot {
    snapshot::snapshot(&mut c.conn, snap()).await.unwrap().unwrap()
}

/// By replica: where, and how far in its life.
async fn copies(c: &mut Catalogue) -> Vec<(u32, String, CopyPhase)> {
    let all = one(c).await.copies.into_iter();
    all.map(|(replica, copy)| (replica.0, copy.node, copy.phase))
        .collect()
}

fn at(replica: u32, node: &str, phase: CopyPhase) -> (u32, String, CopyPhase) {
    (replica, node.to_owned(), phase)
}

fn recopy(replica: u32) -> Action {
    Action::RecopySnapshot {
        snapshot: snap(),
        replica: ReplicaId(replica),
    }
}

fn drop_copy(replica: u32) -> Action {
    Action::DropCopy {
        snapshot: snap(),
        replica: ReplicaId(replica),
    }
}

fn seen(node: &str, gone: &[u32], made: &[u32]) -> Action {
    let of = |all: &[u32]| all.iter().map(|replica| (snap(), ReplicaId(*replica))).collect();
    Action::CopiesObserved {
        node: node.into(),
        gone: of(gone),
        made: of(made),
    }
}

async fn uneven(c: &mut Catalogue) -> bool {
    let found = snapshot::snapshots(&mut c.conn, snapshot::Which::Uneven)
        .await
        .unwrap();
    !found.is_empty()
}

/// v1 attached on k1, and a third node with a pool.
async fn attached() -> Catalogue {
    let mut c = with_volume().await;
    c.run(node("s3", NodeKind::Storage)).await.unwrap();
    c.run(Action::CreatePool(pool_wish("s3"))).await.unwrap();
    row(c.run(Action::Attach(attach(1, "k1", 0))).await);
    c
}

/// Its replica 1 moves to s3, as 2; where `config` is that of the volume.
async fn moved(c: &mut Catalogue, revision: u64, config: u64) {
    let placement = Placement {
        node: "s3".into(),
        pool: "sp01".into(),
        pool_revision: revision,
        promise_limit: 100 * GIB,
    };
    let place = Action::PlaceReplica {
        volume: id(1),
        placement,
        replaces: Some(ReplicaId(1)),
    };
    row(c.run(place).await);
    c.run(observed("s3", 1, 2)).await.unwrap();
    add(c, 2, config).await;
    remove(c, 1, config + 1, EjectReason::Operator).await;
}

#[tokio::test]
async fn a_replica_that_was_away_is_to_have_its_copy_when_it_is_in_sync_again() {
    use CopyPhase::{Creating, Deleting, Ready};
    let mut c = attached().await;
    remove(&mut c, 1, 0, EjectReason::Unreachable).await;
    make(&mut c, &[0], 1).await;
    // It may have one of an attempt that came to nothing.
    assert_eq!(copies(&mut c).await, [at(0, "s1", Ready), at(1, "s2", Deleting)]);
    assert_eq!(c.run(recopy(1)).await, Ok(Outcome::Unchanged), "that goes first");
    c.run(seen("s2", &[1], &[])).await.unwrap();
    assert_eq!(copies(&mut c).await, [at(0, "s1", Ready)]);
    assert!(!uneven(&mut c).await);
    assert!(
        matches!(c.run(recopy(1)).await, Err(Refused::State { .. })),
        "it is not in sync"
    );
    add(&mut c, 1, 1).await;
    assert!(uneven(&mut c).await);
    let before = c.desired("s2").await;
    assert_eq!(c.run(recopy(1)).await, Ok(Outcome::Changed));
    assert!(c.desired("s2").await > before, "its node hears of it");
    assert_eq!(copies(&mut c).await, [at(0, "s1", Ready), at(1, "s2", Creating)]);
    assert_eq!(c.run(recopy(1)).await, Ok(Outcome::Unchanged));
    assert!(matches!(c.run(drop_copy(1)).await, Err(Refused::State { .. })));
    assert_eq!(
        c.run(seen("s1", &[], &[1])).await,
        Ok(Outcome::Unchanged),
        "another's"
    );
    assert!(uneven(&mut c).await, "nobody says that it has one");
    assert_eq!(c.run(seen("s2", &[], &[1])).await, Ok(Outcome::Changed));
    assert_eq!(copies(&mut c).await, [at(0, "s1", Ready), at(1, "s2", Ready)]);
    assert!(!uneven(&mut c).await);
}

#[tokio::test]
async fn a_copy_stays_until_every_replica_has_its_own() {
    use CopyPhase::{Creating, Deleting, Ready};
    let mut c = attached().await;
    let revision = c.index - 1;
    make(&mut c, &[0, 1], 0).await;
    moved(&mut c, revision, 0).await;
    let old = [at(0, "s1", Ready), at(1, "s2", Ready)];
    assert_eq!(copies(&mut c).await, old, "it does not go with its replica");
    for replica in [0, 1] {
        let refused = c.run(drop_copy(replica)).await;
        assert!(
            matches!(refused, Err(Refused::State { .. })),
            "{replica}: {refused:?}"
        );
    }
    assert_eq!(c.run(recopy(2)).await, Ok(Outcome::Changed));
    assert!(c.run(drop_copy(1)).await.is_err(), "it is not there yet");
    c.run(seen("s3", &[], &[2])).await.unwrap();
    assert!(uneven(&mut c).await);
    assert_eq!(c.run(drop_copy(1)).await, Ok(Outcome::Changed));
    assert!(c.run(drop_copy(0)).await.is_err(), "its replica is there");
    assert_eq!(
        copies(&mut c).await,
        [at(0, "s1", Ready), at(1, "s2", Deleting), at(2, "s3", Ready)]
    );
    c.run(seen("s2", &[1], &[])).await.unwrap();
    assert_eq!(copies(&mut c).await, [at(0, "s1", Ready), at(2, "s3", Ready)]);
    assert!(!uneven(&mut c).await);
    // One that is being made goes at once with its replica.
    remove(&mut c, 2, 2, EjectReason::Unreachable).await;
    let drop = Action::LeaveReplica {
        volume: id(1),
        replica: ReplicaId(2),
    };
    row(c.run(drop).await);
    sqlx::query("UPDATE snapshot_copies SET phase = 'creating' WHERE replica = 2")
        .execute(&mut c.conn)
        .await
        .unwrap();
    assert_eq!(copies(&mut c).await[1], at(2, "s3", Creating));
    assert_eq!(c.run(drop_copy(2)).await, Ok(Outcome::Changed));
}

#[tokio::test]
async fn the_last_copy_is_lost_by_force_only_and_that_is_told() {
    let mut c = attached().await;
    let revision = c.index - 1;
    remove(&mut c, 0, 0, EjectReason::Unreachable).await;
    make(&mut c, &[1], 1).await;
    c.run(seen("s1", &[0], &[])).await.unwrap();
    moved(&mut c, revision, 1).await;
    c.run(gone("s2", 1, 1)).await.unwrap();
    assert_eq!(copies(&mut c).await, [at(1, "s2", CopyPhase::Ready)]);
    let pool = |force| Action::DeletePool {
        name: "sp01".into(),
        node: "s2".into(),
        expect: None,
        force,
        refused: None,
    };
    assert!(matches!(c.run(pool(false)).await, Err(Refused::InUse { .. })));
    assert_eq!(c.run(pool(true)).await, Ok(Outcome::Changed));
    let lost = one(&mut c).await;
    assert_eq!(lost.phase, SnapshotPhase::Failed);
    assert!(
        lost.reason.contains("node s2") && lost.copies.is_empty(),
        "{lost:?}"
    );
    let events = load::events(&mut c.conn, 0, 1000).await.unwrap();
    assert!(events.iter().any(|event| event.kind == "snapshot-lost"));
    assert!(matches!(c.run(recopy(2)).await, Err(Refused::State { .. })));
}

#[tokio::test]
async fn after_a_restore_a_copy_that_was_being_made_anew_is_not_taken_for_whole() {
    let mut c = attached().await;
    remove(&mut c, 1, 0, EjectReason::Unreachable).await;
    make(&mut c, &[0], 1).await;
    c.run(seen("s2", &[1], &[])).await.unwrap();
    add(&mut c, 1, 1).await;
    c.run(recopy(1)).await.unwrap();
    let history = NewHistory {
        id: Uuid::from_u128(88),
        backup_index: 9,
        backup_at: "2026-01-01T00:00:00Z".into(),
    };
    c.run(Action::BeginHistory(history)).await.unwrap();
    let kept = one(&mut c).await;
    assert_eq!(kept.phase, SnapshotPhase::Ready);
    assert_eq!(kept.copies[&ReplicaId(1)].phase, CopyPhase::Creating);
}
