//! Replicas that come and go, nodes that are emptied, volumes that grow.

use super::*;

/// A third node, whose pool is entry `revision`.
async fn with_third() -> (Catalogue, u64) {
    let mut c = with_volume().await;
    for (node, replica) in [("s1", 0), ("s2", 1)] {
        c.run(observed(node, 1, replica)).await.unwrap();
    }
    c.run(node("s3", NodeKind::Storage)).await.unwrap();
    c.run(Action::CreatePool(pool_wish("s3"))).await.unwrap();
    let revision = c.index;
    (c, revision)
}

fn place(revision: u64, replaces: Option<u32>) -> Action {
    Action::PlaceReplica {
        volume: id(1),
        placement: Placement {
            node: "s3".into(),
            pool: "sp01".into(),
            pool_revision: revision,
            promise_limit: 100 * GIB,
        },
        replaces: replaces.map(ReplicaId),
    }
}

fn leave(replica: u32) -> Action {
    Action::LeaveReplica {
        volume: id(1),
        replica: ReplicaId(replica),
    }
}

async fn replicas(c: &mut Catalogue) -> Vec<(u32, String, bool, bool)> {
    let volume = c.volume("v1").await;
    let one = |(id, m): (&ReplicaId, &stor_replication::catalogue::Member)| {
        (id.0, m.node.clone(), m.state == MemberState::InSync, m.leaving)
    };
    volume.row.replicas.iter().map(one).collect()
}

async fn left(c: &mut Catalogue) -> Vec<(u32, String)> {
    let left = load::tombstones(&mut c.conn, None).await.unwrap();
    left.into_iter().map(|one| (one.replica.0, one.node)).collect()
}

fn of(id: u32, node: &str, in_sync: bool, leaving: bool) -> (u32, String, bool, bool) {
    (id, node.to_owned(), in_sync, leaving)
}

/// v1 attached on k1, with the third replica made and about to be added.
async fn moving() -> Catalogue {
    let (mut c, revision) = with_third().await;
    row(c.run(Action::Attach(attach(1, "k1", 0))).await);
    row(c.run(place(revision, Some(0))).await);
    c.run(observed("s3", 1, 2)).await.unwrap();
    c
}

fn add(member: u32, config: u64) -> Action {
    let expect = View {
        epoch: Epoch(1),
        config: ConfigSeq(config),
    };
    let member = ReplicaId(member);
    change(1, Change::Add { expect, member }, "k1")
}

fn remove(member: u32, config: u64, reason: EjectReason) -> Action {
    let expect = View {
        epoch: Epoch(1),
        config: ConfigSeq(config),
    };
    let members = vec![(ReplicaId(member), reason)];
    change(1, Change::Remove { expect, members }, "k1")
}

#[tokio::test]
async fn one_moves_and_there_are_never_fewer_in_sync() {
    let mut c = moving().await;
    assert_eq!(
        replicas(&mut c).await,
        [
            of(0, "s1", true, false),
            of(1, "s2", true, false),
            of(2, "s3", false, false)
        ]
    );
    let told = row(c.run(add(2, 0)).await);
    assert!(
        told.replicas[&ReplicaId(0)].leaving,
        "the engine hears it with the addition"
    );
    assert_eq!(
        replicas(&mut c).await,
        [
            of(0, "s1", true, true),
            of(1, "s2", true, false),
            of(2, "s3", true, false)
        ]
    );
    let before = c.desired("s1").await;
    let told = row(c.run(remove(0, 1, EjectReason::Operator)).await);
    assert!(!told.replicas.contains_key(&ReplicaId(0)));
    assert_eq!(
        replicas(&mut c).await,
        [of(1, "s2", true, false), of(2, "s3", true, false)]
    );
    assert_eq!(left(&mut c).await, [(0, "s1".into())]);
    assert!(c.desired("s1").await > before, "its node removes it");
    c.run(gone("s1", 1, 0)).await.unwrap();
    assert_eq!(left(&mut c).await, []);
}

#[tokio::test]
async fn one_that_fell_out_meanwhile_goes_with_the_addition() {
    let mut c = moving().await;
    row(c.run(remove(0, 0, EjectReason::Unreachable)).await);
    row(c.run(add(2, 1)).await);
    assert_eq!(
        replicas(&mut c).await,
        [of(1, "s2", true, false), of(2, "s3", true, false)]
    );
    assert_eq!(left(&mut c).await, [(0, "s1".into())]);
}

#[tokio::test]
async fn asked_again_nothing_changes_and_a_move_is_taken_back() {
    let (mut c, revision) = with_third().await;
    row(c.run(place(revision, Some(0))).await);
    assert_eq!(c.run(place(revision, Some(0))).await, Ok(Outcome::Unchanged));
    row(c.run(leave(2)).await);
    assert_eq!(
        replicas(&mut c).await,
        [of(0, "s1", true, false), of(1, "s2", true, false)]
    );
    row(c.run(Action::Attach(attach(1, "k1", 0))).await);
    row(c.run(leave(0)).await);
    assert_eq!(c.run(leave(0)).await, Ok(Outcome::Unchanged));
    assert!(matches!(c.run(leave(7)).await, Err(Refused::View { .. })));
    let too_few = c.run(leave(1)).await;
    assert!(matches!(
        too_few,
        Err(Refused::View {
            refusal: Refusal::TooFewInSync { left: 0, min: 1 },
            ..
        })
    ));
}

#[tokio::test]
async fn a_number_is_never_used_again() {
    let (mut c, revision) = with_third().await;
    for number in 2..5 {
        row(c.run(place(revision, None)).await);
        assert!(replicas(&mut c).await.contains(&of(number, "s3", false, false)));
        row(c.run(leave(number)).await);
        c.run(gone("s3", 1, number)).await.unwrap();
        assert_eq!(left(&mut c).await, []);
    }
}

#[tokio::test]
async fn a_detached_volume_lets_go_at_once() {
    let (mut c, _) = with_third().await;
    row(c.run(leave(1)).await);
    assert_eq!(replicas(&mut c).await, [of(0, "s1", true, false)]);
    assert_eq!(c.volume("v1").await.row.view.config, ConfigSeq(1));
}

#[tokio::test]
async fn what_was_presumed_of_the_pool_must_hold() {
    let (mut c, revision) = with_third().await;
    assert!(matches!(
        c.run(place(revision - 1, None)).await,
        Err(Refused::PlacementStale { .. })
    ));
    assert!(matches!(
        c.run(place(revision, Some(9))).await,
        Err(Refused::View { .. })
    ));
}

#[tokio::test]
async fn a_node_is_emptied_and_used_again() {
    let (mut c, _) = with_third().await;
    let empty = |leaving| Action::EmptyNode {
        name: "s1".into(),
        leaving,
    };
    for how in [Some(Leaving::Drain), Some(Leaving::Lost), None] {
        assert_eq!(c.run(empty(how)).await, Ok(Outcome::Changed));
        assert_eq!(c.run(empty(how)).await, Ok(Outcome::Unchanged));
        let node = load::node(&mut c.conn, "s1").await.unwrap().unwrap();
        assert_eq!(node.leaving, how);
    }
}

#[tokio::test]
async fn since_when_a_node_is_away_is_known_to_every_leader() {
    let (mut c, _) = with_third().await;
    let connection = |online| Action::NodeConnection {
        name: "s1".into(),
        online,
    };
    c.run(connection(true)).await.unwrap();
    c.run(connection(false)).await.unwrap();
    let at = c.log.last().unwrap().at.clone();
    let node = load::node(&mut c.conn, "s1").await.unwrap().unwrap();
    assert_eq!(node.offline_since, Some(at));
    c.run(connection(true)).await.unwrap();
    let node = load::node(&mut c.conn, "s1").await.unwrap().unwrap();
    assert_eq!(node.offline_since, None);
}

#[tokio::test]
async fn replicas_grow_before_the_volume() {
    let (mut c, _) = with_third().await;
    let resize = |size| Action::ResizeVolume {
        name: "v1".into(),
        expect: None,
        size,
        pools: volume(1).placements,
    };
    assert!(
        matches!(c.run(resize(5 * GIB)).await, Err(Refused::View { .. })),
        "smaller"
    );
    assert!(matches!(
        c.run(resize(200 * GIB)).await,
        Err(Refused::PlacementStale { .. })
    ));
    let before = c.desired("s1").await;
    assert_eq!(c.run(resize(20 * GIB)).await, Ok(Outcome::Changed));
    assert_eq!(c.run(resize(20 * GIB)).await, Ok(Outcome::Unchanged));
    assert!(c.desired("s1").await > before);
    let grows = c.volume("v1").await;
    assert_eq!((grows.row.size, grows.grow_to), (10 * GIB, Some(20 * GIB)));
    let pool = load::pool(&mut c.conn, "sp01", "s1").await.unwrap().unwrap();
    assert_eq!(pool.promised, 20 * GIB, "nobody else gets the room");
    let grow = Action::GrowVolume {
        volume: id(1),
        size: 20 * GIB,
    };
    row(c.run(grow.clone()).await);
    let grown = c.volume("v1").await;
    assert_eq!((grown.row.size, grown.grow_to), (20 * GIB, None));
    assert_eq!(c.run(grow).await, Ok(Outcome::Unchanged));
}

#[tokio::test]
async fn the_least_in_sync_can_be_lowered_and_raised_to_what_is_there() {
    let (mut c, _) = with_third().await;
    let set = |least| Action::SetLeastInSync {
        name: "v1".into(),
        expect: None,
        least,
    };
    let before = c.volume("v1").await.row;
    let there = u8::try_from(before.in_sync().count()).unwrap();
    assert!(
        matches!(c.run(set(there + 1)).await, Err(Refused::View { .. })),
        "I/O would stop at once"
    );
    assert_eq!(c.run(set(there)).await, Ok(Outcome::Changed));
    assert_eq!(c.run(set(there)).await, Ok(Outcome::Unchanged));
    let raised = c.volume("v1").await.row;
    assert_eq!(raised.min_in_sync, there);
    assert!(
        raised.revision > before.revision,
        "engines take no row that is not newer"
    );
    assert_eq!(c.run(set(1)).await, Ok(Outcome::Changed));
    assert_eq!(c.volume("v1").await.row.min_in_sync, 1);
}
