//! Nodes, pools, classes and volumes: made, changed, refused, removed.

use super::*;

#[tokio::test]
async fn damaged_metadata_is_told_once_of_a_replica_that_is_there() {
    let mut c = cluster().await;
    c.run(Action::CreateVolume(volume(1))).await.unwrap();
    let mended = |node: &str, found: &str| Action::ReplicaMended {
        node: node.into(),
        volume: id(1),
        replica: ReplicaId(0),
        what: "copy A of the superblock was damaged at byte 0 of /p/r0.meta".into(),
        found: found.into(),
    };
    assert_eq!(c.run(mended("s1", "then")).await, Ok(Outcome::Changed));
    // Another leader tells it again.
    assert_eq!(c.run(mended("s1", "then")).await, Ok(Outcome::Unchanged));
    assert_eq!(c.run(mended("s2", "then")).await, Ok(Outcome::Unchanged));
    assert_eq!(c.run(mended("s1", "later")).await, Ok(Outcome::Changed));
    let events = load::events(&mut c.conn, 0, 100).await.unwrap();
    let told: Vec<_> = events
        .iter()
        .filter(|event| event.kind == "replica-mended")
        .collect();
    assert_eq!(told.len(), 2);
    assert!(told[0].message.contains("volume v1 on node s1") && told[0].message.contains("/p/r0.meta"));
}

#[tokio::test]
async fn creates_are_idempotent_and_differences_are_named() {
    let mut c = cluster().await;
    assert_eq!(c.run(node("s1", NodeKind::Storage)).await, Ok(Outcome::Unchanged));
    assert!(matches!(
        c.run(node("s1", NodeKind::Diskless)).await,
        Err(Refused::Exists { .. })
    ));
    assert_eq!(
        c.run(Action::CreatePool(pool_wish("s1"))).await,
        Ok(Outcome::Unchanged)
    );
    let other_dir = PoolWish {
        dir: "/elsewhere".into(),
        ..pool_wish("s1")
    };
    let refused = c.run(Action::CreatePool(other_dir)).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "pool sp01 on s1 exists already and differs: its directory is /pools/s1"
    );
    let same_dir = PoolWish {
        name: "sp02".into(),
        ..pool_wish("s1")
    };
    let refused = c.run(Action::CreatePool(same_dir)).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "pool sp01 on s1 exists already and differs: it has the directory /pools/s1"
    );
    for dir in ["/pools/s1/inner", "/pools"] {
        let nested = PoolWish {
            name: "sp02".into(),
            dir: dir.into(),
            ..pool_wish("s1")
        };
        let refused = c.run(Action::CreatePool(nested)).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            "node s1 has pool sp01 in /pools/s1, and one pool can't be inside another; give a directory beside it"
        );
    }
    let beside = PoolWish {
        name: "sp02".into(),
        dir: "/pools/s1-too".into(),
        ..pool_wish("s1")
    };
    let allowed = check(&mut c.conn, &Action::CreatePool(beside)).await.unwrap();
    assert_eq!(allowed, Ok(Outcome::Created));
    let diskless = c.run(Action::CreatePool(pool_wish("k1"))).await.unwrap_err();
    assert_eq!(diskless.to_string(), "node k1 is diskless and can't have pools");
    assert!(matches!(
        c.run(Action::CreatePool(pool_wish("s9"))).await,
        Err(Refused::NoSuch { .. })
    ));

    assert_eq!(c.run(Action::CreateVolume(volume(1))).await, Ok(Outcome::Created));
    // Another id: a retry that was planned again.
    let again = NewVolume {
        id: id(77),
        ..volume(1)
    };
    assert_eq!(c.run(Action::CreateVolume(again)).await, Ok(Outcome::Unchanged));
    let larger = NewVolume {
        wish: wish(11 * GIB),
        ..volume(1)
    };
    let refused = c.run(Action::CreateVolume(larger)).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "volume v1 exists already and differs: its size is 10.0 GiB (10737418240 bytes)"
    );

    let class = |replicas, transport: Option<&str>| {
        Action::CreateClass(ClassWish {
            name: "gold".into(),
            replicas,
            pool: None,
            tags: Vec::new(),
            transport: transport.map(str::to_owned),
            spread: None,
            together: None,
            scrub_days: None,
        })
    };
    assert_eq!(c.run(class(3, Some("fuse"))).await, Ok(Outcome::Created));
    for (other, difference) in [
        (class(2, Some("fuse")), "its number of replicas is 3"),
        (class(3, None), "its transport is fuse"),
    ] {
        let refused = c.run(other).await.unwrap_err().to_string();
        assert!(refused.ends_with(difference), "{refused}");
    }
}

#[tokio::test]
async fn a_stale_placement_is_refused() {
    let mut c = cluster().await;
    let mut changed = volume(1);
    changed.placements[1].pool_revision = 3;
    assert!(matches!(
        c.run(Action::CreateVolume(changed)).await,
        Err(Refused::PlacementStale { .. })
    ));
    let mut full = volume(1);
    full.placements[1].promise_limit = 10 * GIB - 1;
    assert!(matches!(
        c.run(Action::CreateVolume(full)).await,
        Err(Refused::PlacementStale { .. })
    ));
    // Two creates that were planned at the same time share the limit.
    let tight = |n| {
        let mut new = volume(n);
        for placement in &mut new.placements {
            placement.promise_limit = 15 * GIB;
        }
        Action::CreateVolume(new)
    };
    assert_eq!(c.run(tight(1)).await, Ok(Outcome::Created));
    let refused = c.run(tight(2)).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the placement is out of date: pool sp01 on s1 was promised to others"
    );
}

#[tokio::test]
async fn revisions_guard_changes() {
    let mut c = cluster().await;
    let set = |expect| Action::ChangeNode {
        name: "s1".into(),
        expect,
        properties: BTreeMap::from([("zone".into(), String::new()), ("rack".into(), "7".into())]),
    };
    assert!(matches!(
        c.run(set(Some(9))).await,
        Err(Refused::Revision {
            expected: 9,
            current: 1,
            ..
        })
    ));
    assert_eq!(c.run(set(Some(1))).await, Ok(Outcome::Changed));
    assert_eq!(c.run(set(None)).await, Ok(Outcome::Unchanged));
    let node = load::node(&mut c.conn, "s1").await.unwrap().unwrap();
    assert_eq!(node.properties, BTreeMap::from([("rack".into(), "7".into())]));
    assert_eq!(node.revision, 7);
}

#[tokio::test]
async fn what_is_in_use_stays() {
    let mut c = with_volume().await;
    let delete_node = |name: &str| Action::DeleteNode {
        name: name.into(),
        expect: None,
        force: false,
    };
    let delete_pool = || Action::DeletePool {
        name: "sp01".into(),
        node: "s1".into(),
        expect: None,
        force: false,
        refused: None,
    };
    assert_eq!(
        c.run(delete_node("s1")).await.unwrap_err().to_string(),
        "node s1 is in use: it holds 1 replica"
    );
    assert_eq!(
        c.run(delete_pool()).await.unwrap_err().to_string(),
        "pool sp01 on s1 is in use: it holds 1 replica"
    );
    row(c.run(Action::Attach(attach(1, "k1", 0))).await);
    assert_eq!(
        c.run(delete_node("k1")).await.unwrap_err().to_string(),
        "node k1 is in use: volume v1 is attached there"
    );
    let delete = || Action::DeleteVolume {
        name: "v1".into(),
        expect: None,
        gone: false,
        force: None,
    };
    assert_eq!(
        c.run(delete()).await.unwrap_err().to_string(),
        "volume v1 is in use: it is attached on node k1"
    );
    row(c
        .run(change(
            1,
            Change::Detach {
                expect: Epoch(1),
                clean: true,
            },
            "k1",
        ))
        .await);
    assert_eq!(c.run(delete_node("k1")).await, Ok(Outcome::Changed));

    assert_eq!(c.run(delete()).await, Ok(Outcome::Changed));
    assert_eq!(c.run(delete()).await, Ok(Outcome::Unchanged));
    assert!(matches!(
        c.run(Action::CreateVolume(volume(1))).await,
        Err(Refused::State { .. })
    ));
    assert!(matches!(
        c.run(Action::Attach(attach(1, "s1", 1))).await,
        Err(Refused::State { .. })
    ));
    assert_eq!(
        c.run(gone("s2", 1, 0)).await,
        Ok(Outcome::Unchanged),
        "s2 does not hold replica 0"
    );
    assert_eq!(c.run(gone("s1", 1, 0)).await, Ok(Outcome::Changed));
    assert_eq!(c.volume("v1").await.places.len(), 1);
    assert_eq!(
        c.run(gone("s1", 1, 0)).await,
        Ok(Outcome::Unchanged),
        "reported again"
    );
    assert_eq!(c.run(gone("s2", 1, 1)).await, Ok(Outcome::Changed));
    assert!(load::volume_named(&mut c.conn, "v1").await.unwrap().is_none());
    assert_eq!(c.run(delete_pool()).await, Ok(Outcome::Changed));
    assert_eq!(c.run(delete_node("s1")).await, Ok(Outcome::Changed));
}

#[tokio::test]
async fn nodes_are_told_what_concerns_them() {
    let mut c = with_volume().await;
    let before = (
        c.desired("s1").await,
        c.desired("s2").await,
        c.desired("k1").await,
    );
    row(c.run(Action::Attach(attach(1, "k1", 0))).await);
    assert_eq!(c.desired("k1").await, c.index);
    assert_eq!(
        (c.desired("s1").await, c.desired("s2").await),
        (before.0, before.1)
    );
    let seen = |address: &str| Action::NodeSeen {
        name: "s2".into(),
        seen: Seen {
            data_address: Some(address.into()),
            version: "0.1.0".into(),
            boot_id: "b".into(),
            transports: Vec::new(),
        },
    };
    assert_eq!(c.run(seen("10.0.0.2:3371")).await, Ok(Outcome::Changed));
    assert_eq!(c.desired("k1").await, c.index, "its engine dials s2");
    assert_eq!(c.run(seen("10.0.0.2:3371")).await, Ok(Outcome::Unchanged));
    let forced = Attach {
        force: true,
        ..attach(1, "s1", 1)
    };
    row(c.run(Action::Attach(forced)).await);
    assert_eq!(
        (c.desired("k1").await, c.desired("s1").await),
        (c.index, c.index),
        "one stops, one starts"
    );
    let since = load::desired_since(&mut c.conn, c.index - 1).await.unwrap();
    assert_eq!(since.len(), 2);
}
