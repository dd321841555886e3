//! Volumes deleted by force and what is left of them; pools that never came to be.

use super::*;

fn forced(n: u128, epoch: u64) -> Action {
    Action::DeleteVolume {
        name: format!("v{n}"),
        expect: None,
        gone: false,
        force: Some(ForcedDelete {
            expect: Epoch(epoch),
            allocated: vec![(ReplicaId(1), 3 * GIB)],
        }),
    }
}

async fn left(c: &mut Catalogue) -> Vec<(String, Option<u64>)> {
    let tombstones = load::tombstones(&mut c.conn, None).await.unwrap();
    tombstones
        .into_iter()
        .map(|one| {
            (
                format!("{} of {} on {}/{}", one.replica, one.name, one.node, one.pool),
                one.allocated,
            )
        })
        .collect()
}

async fn kinds(c: &mut Catalogue) -> Vec<String> {
    let events = load::events(&mut c.conn, 0, 1000).await.unwrap();
    events.into_iter().map(|event| event.kind).collect()
}

#[tokio::test]
async fn a_volume_goes_at_once_and_its_name_is_free() {
    let mut c = with_volume().await;
    let before = (c.desired("s1").await, c.desired("s2").await);
    assert_eq!(c.run(forced(1, 0)).await, Ok(Outcome::Changed));
    assert!(load::volume_named(&mut c.conn, "v1").await.unwrap().is_none());
    assert_eq!(
        left(&mut c).await,
        [
            ("0 of v1 on s1/sp01".into(), None),
            ("1 of v1 on s2/sp01".into(), Some(3 * GIB))
        ]
    );
    assert!(
        c.desired("s1").await > before.0 && c.desired("s2").await > before.1,
        "both are told"
    );
    assert!(matches!(c.run(forced(1, 0)).await, Err(Refused::NoSuch { .. })));
    let again = NewVolume {
        id: id(2),
        ..volume(1)
    };
    assert_eq!(c.run(Action::CreateVolume(again)).await, Ok(Outcome::Created));

    // To a node it is a replica to be removed like any other.
    let moving = load::moving(&mut c.conn).await.unwrap();
    let removed: Vec<_> = moving.iter().filter(|m| m.volume == id(1)).collect();
    assert_eq!(removed.len(), 2);
    assert!(removed.iter().all(|m| m.phase == ReplicaPhase::Deleting));
    assert_eq!(
        c.run(gone("s1", 1, 1)).await,
        Ok(Outcome::Unchanged),
        "not its replica"
    );
    assert_eq!(c.run(gone("s2", 1, 1)).await, Ok(Outcome::Changed));
    assert_eq!(
        c.run(gone("s2", 1, 1)).await,
        Ok(Outcome::Unchanged),
        "reported again"
    );
    assert_eq!(left(&mut c).await, [("0 of v1 on s1/sp01".into(), None)]);
    assert_eq!(c.volume("v1").await.row.volume, id(2), "the new one is another");
}

#[tokio::test]
async fn force_ends_a_deletion_that_waits() {
    let mut c = with_volume().await;
    let plain = Action::DeleteVolume {
        name: "v1".into(),
        expect: None,
        gone: false,
        force: None,
    };
    assert_eq!(c.run(plain).await, Ok(Outcome::Changed));
    assert_eq!(c.run(gone("s1", 1, 0)).await, Ok(Outcome::Changed));
    assert_eq!(c.run(forced(1, 0)).await, Ok(Outcome::Changed));
    assert_eq!(left(&mut c).await, [("1 of v1 on s2/sp01".into(), Some(3 * GIB))]);
    assert!(load::volume_named(&mut c.conn, "v1").await.unwrap().is_none());
}

#[tokio::test]
async fn force_cuts_off_whom_the_proposer_saw_and_nobody_else() {
    let mut c = with_volume().await;
    row(c.run(Action::Attach(attach(1, "k1", 0))).await);
    assert!(matches!(
        c.run(forced(1, 0)).await,
        Err(Refused::View {
            refusal: Refusal::ViewChanged { .. },
            ..
        })
    ));
    let before = c.desired("k1").await;
    assert_eq!(c.run(forced(1, 1)).await, Ok(Outcome::Changed));
    assert!(c.desired("k1").await > before, "its engine is to end");
}

#[tokio::test]
async fn what_is_left_goes_with_its_node_or_pool() {
    let mut c = with_volume().await;
    c.run(forced(1, 0)).await.unwrap();
    let pool = |force| Action::DeletePool {
        name: "sp01".into(),
        node: "s1".into(),
        expect: None,
        force,
        refused: None,
    };
    assert_eq!(
        c.run(pool(false)).await.unwrap_err().to_string(),
        "pool sp01 on s1 is in use: it still has 1 replica of deleted volumes to remove"
    );
    assert_eq!(c.run(pool(true)).await, Ok(Outcome::Changed));
    assert_eq!(left(&mut c).await.len(), 1);
    let node = |force| Action::DeleteNode {
        name: "s2".into(),
        expect: None,
        force,
    };
    assert_eq!(
        c.run(node(false)).await.unwrap_err().to_string(),
        "node s2 is in use: it has 1 pool"
    );
    assert_eq!(c.run(node(true)).await, Ok(Outcome::Changed));
    assert!(left(&mut c).await.is_empty());
    assert!(
        load::pools(&mut c.conn).await.unwrap().is_empty(),
        "its pools went with it"
    );
    let told = kinds(&mut c).await;
    assert_eq!(
        told.iter().filter(|kind| *kind == "replica-left-behind").count(),
        2
    );
}

#[tokio::test]
async fn a_node_with_replicas_is_not_given_up_by_force() {
    let mut c = with_volume().await;
    let node = Action::DeleteNode {
        name: "s2".into(),
        expect: None,
        force: true,
    };
    assert_eq!(
        c.run(node).await.unwrap_err().to_string(),
        "node s2 is in use: it holds 1 replica"
    );
}

#[tokio::test]
async fn a_pool_is_told_of_once_when_its_node_has_it_or_refuses_it() {
    let mut c = cluster().await;
    let ready = |node: &str| Action::PoolsObserved {
        node: node.into(),
        ready: vec!["sp01".into()],
    };
    assert!(!kinds(&mut c).await.contains(&"pool-created".into()));
    assert_eq!(c.run(ready("s1")).await, Ok(Outcome::Changed));
    assert_eq!(c.run(ready("s1")).await, Ok(Outcome::Unchanged));
    assert_eq!(c.run(ready("k1")).await, Ok(Outcome::Unchanged), "it has none");
    for node in ["s1", "s2"] {
        let delete = Action::DeletePool {
            name: "sp01".into(),
            node: node.into(),
            expect: None,
            force: false,
            refused: Some("/pools does not exist".into()),
        };
        assert_eq!(c.run(delete).await, Ok(Outcome::Changed));
    }
    let events = load::events(&mut c.conn, 0, 1000).await.unwrap();
    let told: Vec<(&str, &str)> = events
        .iter()
        .filter(|event| event.kind.starts_with("pool"))
        .map(|event| (event.kind.as_str(), event.message.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("pool-created", "Pool sp01 was created on node s1 in /pools/s1."),
            (
                "pool-deleted",
                "Pool sp01 on node s1 was deleted; its directory was left as it is."
            ),
            (
                "pool-refused",
                "Pool sp01 was not made: node s2 can't use /pools/s2: /pools does not exist."
            ),
        ]
    );
}
