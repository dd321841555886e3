//! Snapshots: made together, failed together, removed with their last copy; volumes made of them and gone back to them.

use stor_replication::catalogue::SnapshotTrouble;
use stor_replication::ids::SnapshotId;

use super::*;
use crate::catalogue::snapshot::{self, CopyPhase, SnapshotPhase};

fn snap(n: u128) -> SnapshotId {
    SnapshotId(Uuid::from_u128(500 + n))
}

/// Snapshot n of volume v<n>, for each of `volumes`, as one batch.
fn ask(batch: u128, name: &str, volumes: &[u128]) -> Action {
    Action::CreateSnapshots {
        batch: Uuid::from_u128(batch),
        snapshots: volumes
            .iter()
            .map(|n| NewSnapshot {
                id: SnapshotId(Uuid::from_u128(500 + 10 * batch + n)),
                volume: format!("v{n}"),
                name: name.into(),
            })
            .collect(),
    }
}

fn of(batch: u128, n: u128) -> SnapshotId {
    snap(10 * batch + n)
}

fn ready(id: SnapshotId, n: u128, expect: View) -> Action {
    let change = Change::SnapshotReady {
        expect,
        snapshot: id,
        members: vec![ReplicaId(0), ReplicaId(1)],
    };
    change_of(n, change)
}

fn change_of(n: u128, change: Change) -> Action {
    super::change(n, change, "k1")
}

async fn one(c: &mut Catalogue, id: SnapshotId) -> snapshot::Snapshot {
    snapshot::snapshot(&mut c.conn, id).await.unwrap().unwrap()
}

/// Volume v1, attached on k1 under epoch 1.
async fn attached() -> Catalogue {
    let mut c = with_volume().await;
    row(c.run(Action::Attach(attach(1, "k1", 0))).await);
    c
}

fn view() -> View {
    View {
        epoch: Epoch(1),
        config: ConfigSeq(0),
    }
}

/// The same with snapshot v1@a, ready, and v1 detached.
async fn with_snapshot() -> Catalogue {
    let mut c = attached().await;
    assert_eq!(c.run(ask(1, "a", &[1])).await, Ok(Outcome::Created));
    row(c.run(ready(of(1, 1), 1, view())).await);
    let detach = Change::Detach {
        expect: Epoch(1),
        clean: true,
    };
    row(c.run(change_of(1, detach)).await);
    c
}

fn copy_gone(id: SnapshotId, node: &str, replica: u32) -> Action {
    Action::CopiesObserved {
        node: node.into(),
        gone: vec![(id, ReplicaId(replica))],
        made: Vec::new(),
    }
}

#[tokio::test]
async fn it_is_ready_when_the_engine_of_that_view_says_so() {
    let mut c = attached().await;
    let before = (c.desired("s1").await, c.desired("k1").await);
    assert_eq!(c.run(ask(1, "a", &[1])).await, Ok(Outcome::Created));
    assert!(c.desired("s1").await > before.0 && c.desired("k1").await > before.1);
    assert_eq!(
        c.run(ask(2, "a", &[1])).await,
        Ok(Outcome::Unchanged),
        "asked again"
    );
    let id = of(1, 1);
    assert_eq!(one(&mut c, id).await.phase, SnapshotPhase::Creating);
    let old = View {
        epoch: Epoch(0),
        config: ConfigSeq(0),
    };
    assert!(c.run(ready(id, 1, old)).await.is_err(), "of another epoch");
    let incomplete = Change::SnapshotReady {
        expect: view(),
        snapshot: id,
        members: vec![ReplicaId(0)],
    };
    assert!(c.run(change_of(1, incomplete)).await.is_err(), "without a member");
    row(c.run(ready(id, 1, view())).await);
    let made = one(&mut c, id).await;
    assert_eq!(made.phase, SnapshotPhase::Ready);
    assert!(made.copies.values().all(|copy| copy.phase == CopyPhase::Ready));
    row(c.run(ready(id, 1, view())).await);
    let late = Change::SnapshotFailed {
        expect: Epoch(1),
        snapshot: id,
        why: SnapshotTrouble::TimedOut,
        replica: None,
    };
    assert!(
        c.run(change_of(1, late)).await.is_err(),
        "what is ready does not fail"
    );
    assert_eq!(one(&mut c, id).await.phase, SnapshotPhase::Ready);
}

#[tokio::test]
async fn of_a_batch_all_are_ready_or_none() {
    let mut c = attached().await;
    c.run(Action::CreateVolume(volume(2))).await.unwrap();
    for (node, replica) in [("s1", 0), ("s2", 1)] {
        c.run(observed(node, 2, replica)).await.unwrap();
    }
    row(c.run(Action::Attach(attach(2, "k1", 0))).await);
    assert_eq!(c.run(ask(1, "a", &[1, 2])).await, Ok(Outcome::Created));
    assert!(one(&mut c, of(1, 1)).await.holds());
    assert!(
        c.run(ready(of(1, 1), 1, view())).await.is_err(),
        "not before all hold their writes"
    );
    let go = |batch| Action::GoSnapshots {
        batch: Uuid::from_u128(batch),
    };
    assert_eq!(c.run(go(1)).await, Ok(Outcome::Changed));
    row(c.run(ready(of(1, 1), 1, view())).await);
    assert_eq!(one(&mut c, of(1, 1)).await.phase, SnapshotPhase::Taken);
    row(c.run(ready(of(1, 2), 2, view())).await);
    for n in [1, 2] {
        assert_eq!(one(&mut c, of(1, n)).await.phase, SnapshotPhase::Ready);
    }
    // And one that fails takes along what the other has.
    assert_eq!(c.run(ask(2, "b", &[1, 2])).await, Ok(Outcome::Created));
    assert_eq!(c.run(go(2)).await, Ok(Outcome::Changed));
    row(c.run(ready(of(2, 1), 1, view())).await);
    let failed = Change::SnapshotFailed {
        expect: Epoch(1),
        snapshot: of(2, 2),
        why: SnapshotTrouble::NotSupported,
        replica: Some(ReplicaId(1)),
    };
    row(c.run(change_of(2, failed)).await);
    for n in [1, 2] {
        let void = one(&mut c, of(2, n)).await;
        assert_eq!(void.phase, SnapshotPhase::Failed);
        assert!(
            void.reason.contains("node s2") && void.reason.contains("reflink"),
            "{}",
            void.reason
        );
        assert!(void.copies.values().all(|copy| copy.phase == CopyPhase::Deleting));
    }
    // Asked for again under the same name: what failed is forgotten with its last copy.
    assert_eq!(c.run(ask(3, "b", &[1])).await, Ok(Outcome::Created));
    for (node, replica) in [("s1", 0), ("s2", 1)] {
        c.run(copy_gone(of(2, 1), node, replica)).await.unwrap();
    }
    assert!(snapshot::snapshot(&mut c.conn, of(2, 1)).await.unwrap().is_none());
    let named = snapshot::snapshot_named(&mut c.conn, "v1", "b").await.unwrap();
    assert_eq!(named.unwrap().id, of(3, 1));
}

#[tokio::test]
async fn it_goes_with_its_last_copy_and_the_volume_after_it() {
    let mut c = with_snapshot().await;
    let id = of(1, 1);
    let delete = |name: &str| Action::DeleteVolume {
        name: name.into(),
        expect: None,
        gone: false,
        force: None,
    };
    assert!(matches!(c.run(delete("v1")).await, Err(Refused::InUse { .. })));
    let remove = Action::DeleteSnapshot {
        snapshot: id,
        expect: None,
    };
    assert_eq!(c.run(remove.clone()).await, Ok(Outcome::Changed));
    assert_eq!(c.run(remove).await, Ok(Outcome::Unchanged));
    assert_eq!(
        c.run(copy_gone(id, "s2", 0)).await,
        Ok(Outcome::Unchanged),
        "that one is on s1"
    );
    c.run(copy_gone(id, "s1", 0)).await.unwrap();
    assert_eq!(one(&mut c, id).await.copies.len(), 1);
    c.run(copy_gone(id, "s2", 1)).await.unwrap();
    assert!(snapshot::snapshot(&mut c.conn, id).await.unwrap().is_none());
    assert_eq!(c.run(delete("v1")).await, Ok(Outcome::Changed));
}

#[tokio::test]
async fn after_a_restore_nothing_is_made_in_place_of_what_may_be_ready() {
    let mut c = attached().await;
    c.run(ask(1, "a", &[1])).await.unwrap();
    c.run(Action::BeginHistory(NewHistory {
        id: Uuid::from_u128(88),
        backup_index: 9,
        backup_at: "2026-01-01T00:00:00Z".into(),
    }))
    .await
    .unwrap();
    let kept = one(&mut c, of(1, 1)).await;
    assert_eq!(kept.phase, SnapshotPhase::Failed);
    assert!(kept.copies.values().all(|copy| copy.phase == CopyPhase::Ready));
}

#[tokio::test]
async fn a_node_or_pool_with_copies_is_not_forgotten() {
    let mut c = with_snapshot().await;
    let force = Action::DeleteVolume {
        name: "v1".into(),
        expect: None,
        gone: false,
        force: Some(ForcedDelete {
            expect: Epoch(1),
            allocated: Vec::new(),
        }),
    };
    assert!(
        matches!(c.run(force).await, Err(Refused::InUse { .. })),
        "not by force either"
    );
    let pool = |force| Action::DeletePool {
        name: "sp01".into(),
        node: "s1".into(),
        expect: None,
        force,
        refused: None,
    };
    assert!(matches!(c.run(pool(false)).await, Err(Refused::InUse { .. })));
}

#[tokio::test]
async fn a_volume_begins_as_a_snapshot() {
    let mut c = with_snapshot().await;
    let id = of(1, 1);
    let restore = |copies: Vec<Option<ReplicaId>>| {
        Action::RestoreSnapshot(Restore {
            new: volume(3),
            snapshot: id,
            copies,
        })
    };
    assert!(
        matches!(
            c.run(restore(vec![Some(ReplicaId(1)), None])).await,
            Err(Refused::PlacementStale { .. })
        ),
        "that copy is on the other node"
    );
    let some = restore(vec![Some(ReplicaId(0)), None]);
    assert_eq!(c.run(some.clone()).await, Ok(Outcome::Created));
    assert_eq!(c.run(some).await, Ok(Outcome::Unchanged));
    let sources = snapshot::sources_on(&mut c.conn, "s1").await.unwrap();
    assert_eq!(
        (sources.len(), sources[0].snapshot, sources[0].replica),
        (1, id, ReplicaId(0))
    );
    assert!(snapshot::sources_on(&mut c.conn, "s2").await.unwrap().is_empty());
    let remove = Action::DeleteSnapshot {
        snapshot: id,
        expect: None,
    };
    assert!(matches!(c.run(remove.clone()).await, Err(Refused::InUse { .. })));
    // The one that gets everything from the first is not waited for.
    c.run(observed("s1", 3, 0)).await.unwrap();
    let made = c.volume("v3").await;
    assert_eq!(made.phase, VolumePhase::Available);
    assert_eq!(made.row.in_sync().collect::<Vec<_>>(), [ReplicaId(0)]);
    assert_eq!(
        c.run(remove).await,
        Ok(Outcome::Changed),
        "it shares blocks and needs no snapshot"
    );
}

#[tokio::test]
async fn a_volume_goes_back_with_new_replicas_of_a_new_history() {
    let mut c = with_snapshot().await;
    let back = |expect: u64, copies: &[u32]| {
        Action::RollBack(RollBack {
            volume: id(1),
            snapshot: of(1, 1),
            expect: Epoch(expect),
            lineage: Lineage(Uuid::from_u128(77)),
            copies: copies.iter().copied().map(ReplicaId).collect(),
        })
    };
    assert!(c.run(back(0, &[0, 1])).await.is_err(), "somebody had it since");
    assert!(c.run(back(1, &[])).await.is_err(), "nobody has a copy");
    let before = c.volume("v1").await;
    assert_eq!(c.run(back(1, &[0])).await, Ok(Outcome::Changed));
    assert_eq!(c.run(back(1, &[0])).await, Ok(Outcome::Unchanged));
    let after = c.volume("v1").await;
    assert_eq!(after.phase, VolumePhase::Creating);
    assert!(after.row.view.epoch > before.row.view.epoch && after.row.view.config > before.row.view.config);
    assert_eq!(after.row.lineage, Lineage(Uuid::from_u128(77)));
    assert_eq!(
        after.row.replicas.keys().copied().collect::<Vec<_>>(),
        [ReplicaId(2), ReplicaId(3)]
    );
    assert_eq!(after.row.in_sync().collect::<Vec<_>>(), [ReplicaId(2)]);
    assert_eq!(load::tombstones(&mut c.conn, None).await.unwrap().len(), 2);
    c.run(observed("s1", 1, 2)).await.unwrap();
    assert_eq!(c.volume("v1").await.phase, VolumePhase::Available);
    row(c
        .run(Action::Attach(attach(1, "k1", after.row.view.epoch.0)))
        .await);
    assert!(
        c.run(back(after.row.view.epoch.0 + 1, &[0])).await.is_ok(),
        "done already"
    );
    let again = Action::RollBack(RollBack {
        volume: id(1),
        snapshot: of(1, 1),
        expect: Epoch(after.row.view.epoch.0 + 1),
        lineage: Lineage(Uuid::from_u128(78)),
        copies: vec![ReplicaId(0)],
    });
    assert!(
        matches!(c.run(again).await, Err(Refused::InUse { .. })),
        "it is attached"
    );
}

#[tokio::test]
async fn going_back_uses_no_number_of_a_replica_that_left() {
    let mut c = with_snapshot().await;
    c.run(node("s3", NodeKind::Storage)).await.unwrap();
    c.run(Action::CreatePool(pool_wish("s3"))).await.unwrap();
    let placement = Placement {
        node: "s3".into(),
        pool: "sp01".into(),
        pool_revision: c.index,
        promise_limit: 100 * GIB,
    };
    let place = Action::PlaceReplica {
        volume: id(1),
        placement,
        replaces: None,
    };
    row(c.run(place).await);
    let leave = Action::LeaveReplica {
        volume: id(1),
        replica: ReplicaId(2),
    };
    c.run(leave).await.unwrap();
    c.run(gone("s3", 1, 2)).await.unwrap();
    let volume = c.volume("v1").await;
    assert!(!volume.row.replicas.contains_key(&ReplicaId(2)));
    let back = Action::RollBack(RollBack {
        volume: id(1),
        snapshot: of(1, 1),
        expect: volume.row.view.epoch,
        lineage: Lineage(Uuid::from_u128(77)),
        copies: vec![ReplicaId(0)],
    });
    assert_eq!(c.run(back).await, Ok(Outcome::Changed));
    let after = c.volume("v1").await;
    assert_eq!(
        after.row.replicas.keys().copied().collect::<Vec<_>>(),
        [ReplicaId(3), ReplicaId(4)]
    );
}
