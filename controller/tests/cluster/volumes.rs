//! A volume's life: made, attached, moved, detached, deleted.

use stor_api::client::{Error, Filter, Wish};
use stor_api::objects::{
    AttachmentSpec, AttachmentState, ClassSpec, Health, NodeKind, ReplicaState, TombstoneState, Volume,
    VolumeSpec, VolumeState,
};

use crate::controllers::{cluster, diskless, node, pool, storage, until};
use crate::satellite::Satellite;

pub(crate) fn spec(name: &str) -> VolumeSpec {
    VolumeSpec {
        name: name.into(),
        size_bytes: (1 << 30) - 1,
        class: None,
        replicas: None,
        pool: None,
        tags: Vec::new(),
        spread: None,
        together: None,
        min_in_sync: None,
    }
}

pub(crate) fn on(node: &str) -> AttachmentSpec {
    AttachmentSpec {
        node: node.into(),
        transport: None,
        read_only: false,
        force: false,
    }
}

fn nodes(volume: &Volume) -> Vec<&str> {
    volume.replicas.iter().map(|r| r.node.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_create_to_delete() {
    let (_root, controllers) = cluster(1).await;
    let client = controllers[0].client();
    let satellites = storage(&controllers, 3).await;
    let k1 = diskless(&controllers, "k1").await;

    let volume = client.create_volume(&spec("db1")).await.unwrap();
    assert_eq!(
        (volume.size_bytes, volume.min_in_sync, nodes(&volume)),
        (1 << 30, 1, vec!["s1", "s2"])
    );
    // Attached at once: the controller waits for the replicas itself.
    let attachment = client.attach("db1", &on("k1")).await.unwrap();
    assert_eq!(
        (attachment.transport.as_str(), attachment.epoch),
        ("socket", 1),
        "fuse is not available"
    );
    until("it is attached", async || {
        let volume = client.volume("db1").await.unwrap();
        volume.attachments[0].state == AttachmentState::Attached && volume.state == VolumeState::Healthy
    })
    .await;
    let volume = client.volume("db1").await.unwrap();
    assert_eq!(volume.attachments[0].nbd_uri, "nbd+unix:///db1?socket=/run/db1");
    assert!(
        volume
            .replicas
            .iter()
            .all(|r| r.state == ReplicaState::InSync && r.allocated_bytes == 4096)
    );
    let engine = &k1.desired().engines[0];
    let members = &engine.volume.as_ref().unwrap().members;
    assert_eq!(
        members.iter().map(|m| m.address.as_str()).collect::<Vec<_>>(),
        ["127.0.0.1:3s1", "127.0.0.1:3s2"]
    );

    let second = client.create_volume(&spec("db2")).await.unwrap();
    assert_eq!(nodes(&second)[0], "s3", "the emptiest first");

    assert_eq!(
        client.attach("db1", &on("k1")).await.unwrap().epoch,
        1,
        "asked again"
    );
    match client.attach("db1", &on("s1")).await.unwrap_err() {
        Error::Conflict(problem) => {
            assert_eq!(problem.code(), "attached");
            assert!(
                problem.title.contains("k1") && problem.remedy.contains("force"),
                "{problem:?}"
            );
        }
        other => panic!("{other:?}"),
    }
    let taken = client
        .attach(
            "db1",
            &AttachmentSpec {
                force: true,
                ..on("s1")
            },
        )
        .await
        .unwrap();
    assert_eq!((taken.node.as_str(), taken.epoch), ("s1", 2));
    until("the old engine is stopped", async || {
        k1.desired().engines.is_empty()
    })
    .await;

    assert!(matches!(
        client.delete_volume("db1", false).await,
        Err(Error::Conflict(_))
    ));
    assert!(matches!(
        client.detach("db1", "k1", false).await,
        Err(Error::NotFound { .. })
    ));
    client.detach("db1", "s1", false).await.unwrap();
    until("it is detached", async || {
        client.volume("db1").await.unwrap().attachments.is_empty()
    })
    .await;
    client.delete_volume("db1", false).await.unwrap();
    until("it is gone", async || {
        matches!(client.volume("db1").await, Err(Error::NotFound { .. }))
    })
    .await;
    until("the satellites forgot it", async || {
        satellites
            .iter()
            .all(|s| s.desired().replicas.iter().all(|r| r.volume_name != "db1"))
    })
    .await;
    let kinds: Vec<String> = client
        .events(0)
        .await
        .unwrap()
        .into_iter()
        .map(|e| e.kind)
        .collect();
    for kind in [
        "volume-created",
        "volume-ready",
        "volume-attached",
        "volume-fenced",
        "volume-detached",
        "volume-deleted",
    ] {
        assert!(kinds.iter().any(|k| k == kind), "{kind} is missing in {kinds:?}");
    }
    for controller in controllers {
        controller.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_say_why() {
    let (_root, controllers) = cluster(1).await;
    let client = controllers[0].client();
    let satellites = storage(&controllers, 2).await;
    let _k1 = diskless(&controllers, "k1").await;

    let three = VolumeSpec {
        replicas: Some(3),
        ..spec("db1")
    };
    match client.create_volume(&three).await.unwrap_err() {
        Error::Invalid(problem) => {
            assert_eq!(problem.code(), "no-placement");
            assert_eq!(
                problem.title,
                "volume db1 can't be placed: 2 of 3 replicas possible"
            );
            let reasons: Vec<(&str, &str)> = problem
                .placement
                .iter()
                .map(|v| (v.node.as_str(), v.reason.as_str()))
                .collect();
            assert_eq!(
                reasons,
                [
                    ("k1", "the node is diskless"),
                    ("s1", "it could hold one, but not enough others can"),
                    ("s2", "it could hold one, but not enough others can"),
                ]
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(client.volume("db1").await, Err(Error::NotFound { .. })));

    client.create_volume(&spec("db1")).await.unwrap();
    client.create_volume(&spec("db1")).await.unwrap();
    let larger = VolumeSpec {
        size_bytes: 2 << 30,
        ..spec("db1")
    };
    assert!(matches!(client.create_volume(&larger).await, Err(Error::Conflict(p)) if p.code() == "exists"));
    for wrong in [
        VolumeSpec {
            size_bytes: 0,
            ..spec("db9")
        },
        VolumeSpec {
            size_bytes: u64::MAX,
            ..spec("db9")
        },
        VolumeSpec {
            replicas: Some(0),
            ..spec("db9")
        },
        VolumeSpec {
            replicas: Some(9),
            ..spec("db9")
        },
        VolumeSpec {
            min_in_sync: Some(3),
            ..spec("db9")
        },
        VolumeSpec {
            min_in_sync: Some(0),
            ..spec("db9")
        },
        VolumeSpec {
            name: "../x".into(),
            ..spec("db9")
        },
        VolumeSpec {
            name: String::new(),
            ..spec("db9")
        },
        VolumeSpec {
            tags: vec!["a b".into()],
            ..spec("db9")
        },
    ] {
        assert!(
            matches!(client.create_volume(&wrong).await, Err(Error::Invalid(_))),
            "{wrong:?}"
        );
    }
    let unknown_class = VolumeSpec {
        class: Some("gold".into()),
        ..spec("db9")
    };
    assert!(matches!(
        client.create_volume(&unknown_class).await,
        Err(Error::NotFound { .. })
    ));

    assert!(matches!(
        client.attach("nope", &on("k1")).await,
        Err(Error::NotFound { .. })
    ));
    assert!(matches!(
        client.attach("db1", &on("k9")).await,
        Err(Error::NotFound { .. })
    ));
    let fuse = AttachmentSpec {
        transport: Some("fuse".into()),
        ..on("k1")
    };
    match client.attach("db1", &fuse).await.unwrap_err() {
        Error::Invalid(problem) => assert_eq!(problem.remedy, "load the module fuse"),
        other => panic!("{other:?}"),
    }
    let unknown = AttachmentSpec {
        transport: Some("tape".into()),
        ..on("k1")
    };
    assert!(matches!(
        client.attach("db1", &unknown).await,
        Err(Error::Invalid(_))
    ));
    client.create_node(&node("k2", NodeKind::Diskless)).await.unwrap();
    match client.attach("db1", &on("k2")).await.unwrap_err() {
        Error::Conflict(problem) => assert_eq!(problem.code(), "node-offline"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(client.delete_node("s1", false).await, Err(Error::Conflict(p)) if p.code() == "in-use"));
    assert!(matches!(
        client.create_pool(&pool("k1")).await,
        Err(Error::Conflict(_))
    ));
    for dir in ["relative", "/", "/a/../b", "/a//b", ""] {
        let wrong = stor_api::objects::PoolSpec {
            dir: dir.into(),
            ..pool("s1")
        };
        assert!(
            matches!(client.create_pool(&wrong).await, Err(Error::Invalid(_))),
            "{dir}"
        );
    }
    drop(satellites);
    for controller in controllers {
        controller.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_class_fills_in_and_a_plan_changes_nothing() {
    use stor_api::client::Wish;
    let (_root, controllers) = cluster(1).await;
    let client = controllers[0].client();
    let _satellites = storage(&controllers, 3).await;
    let class = ClassSpec {
        name: "safe".into(),
        replicas: 3,
        pool: Some("sp01".into()),
        tags: Vec::new(),
        transport: Some("socket".into()),
        spread: None,
        together: None,
        scrub_days: None,
    };
    client.create_class(&class).await.unwrap();
    let safe = VolumeSpec {
        class: Some("safe".into()),
        ..spec("db1")
    };
    let plan = client.plan(&Wish::CreateVolume(&safe)).await.unwrap();
    assert_eq!(plan.steps.len(), 4, "{:?}", plan.steps);
    assert!(plan.placement.iter().all(|verdict| verdict.chosen));
    assert!(client.volumes(&Filter::default()).await.unwrap().is_empty());
    let volume = client.create_volume(&safe).await.unwrap();
    assert_eq!((volume.replicas.len(), volume.min_in_sync), (3, 2));
    let plan = client.plan(&Wish::CreateVolume(&safe)).await.unwrap();
    assert!(plan.steps.is_empty(), "it is there: {:?}", plan.steps);
    assert!(
        client
            .plan(&Wish::DeleteNode {
                name: "s1",
                force: false
            })
            .await
            .is_err()
    );
    let plan = client
        .plan(&Wish::DeleteVolume {
            name: "db1",
            force: false,
        })
        .await
        .unwrap();
    assert_eq!(plan.steps.len(), 3);
    assert_eq!(client.class("safe").await.unwrap().volumes, 1);
    let on_s2 = Filter {
        node: Some("s2".into()),
        volume: None,
    };
    assert_eq!(client.volumes(&on_s2).await.unwrap().len(), 1);
    assert_eq!(client.replicas(&on_s2).await.unwrap().len(), 1);
    assert_eq!(client.disks(&on_s2).await.unwrap()[0].path, "/dev/sdb");
    for controller in controllers {
        controller.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_node_is_told_and_does_not_hold_up_a_detach() {
    let (_root, controllers) = cluster(1).await;
    let client = controllers[0].client();
    let mut satellites = storage(&controllers, 2).await;
    let k1 = diskless(&controllers, "k1").await;
    client.create_volume(&spec("db1")).await.unwrap();
    client.attach("db1", &on("k1")).await.unwrap();
    until("all is well", async || {
        client.status().await.unwrap().health == Health::Ok
    })
    .await;

    drop(k1);
    satellites.pop();
    until("the nodes are missed", async || {
        let checks = client.status().await.unwrap().checks;
        checks.iter().filter(|c| c.code == "NODE_OFFLINE").count() == 2
    })
    .await;
    let status = client.status().await.unwrap();
    assert_eq!(status.health, Health::Warn);
    assert!(
        status.checks.iter().any(|c| c.code == "VOLUME_DEGRADED"),
        "{:?}",
        status.checks
    );
    assert!(status.checks.iter().all(|c| !c.remedy.is_empty()));
    let volume = client.volume("db1").await.unwrap();
    assert_eq!(volume.attachments[0].state, AttachmentState::Unknown);
    assert_eq!(volume.replicas[1].state, ReplicaState::Offline);
    client.detach("db1", "k1", false).await.unwrap();
    let waiting = client.volume("db1").await.unwrap().attachments;
    assert!(
        waiting[0].reason.contains("with force at once"),
        "its engine may serve on: {waiting:?}"
    );
    let work = client.status().await.unwrap().work;
    assert!(
        work.iter().any(|line| line.contains("being detached from k1")),
        "{work:?}"
    );
    client.detach("db1", "k1", true).await.unwrap();
    until("the detach went on without its engine", async || {
        client.volume("db1").await.unwrap().attachments.is_empty()
    })
    .await;
    until("that the node went is told", async || {
        let events = client.events(0).await.unwrap();
        events
            .iter()
            .any(|e| e.kind == "node-offline" && e.object == "node/k1")
    })
    .await;
    for controller in controllers {
        controller.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_use_on_a_connected_node_is_not_deleted_and_a_detach_is_not_undone() {
    let (_root, controllers) = cluster(1).await;
    let client = controllers[0].client();
    let _satellites = storage(&controllers, 2).await;
    let k1 = diskless(&controllers, "k1").await;
    client.create_volume(&spec("db1")).await.unwrap();
    k1.inside.lock().unwrap().stuck = true;
    client.attach("db1", &on("k1")).await.unwrap();
    match client.delete_volume("db1", true).await.unwrap_err() {
        Error::Conflict(problem) => {
            assert_eq!(problem.code(), "attached");
            assert!(problem.remedy.contains("detach it from k1"), "{problem:?}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(client.volume("db1").await.unwrap().attachments.len(), 1);
    client.detach("db1", "k1", false).await.unwrap();
    for node in ["k1", "s1"] {
        match client.attach("db1", &on(node)).await.unwrap_err() {
            Error::Conflict(problem) => {
                assert_eq!(problem.code(), "detaching");
                assert!(
                    problem.title.contains("being detached from node k1"),
                    "{problem:?}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
    k1.inside.lock().unwrap().stuck = false;
    until("it is detached", async || {
        client.volume("db1").await.unwrap().attachments.is_empty()
    })
    .await;
    client.delete_volume("db1", true).await.unwrap();
    for controller in controllers {
        controller.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_delete_leaves_what_an_absent_node_has() {
    let (_root, controllers) = cluster(1).await;
    let client = controllers[0].client();
    let mut satellites = storage(&controllers, 2).await;
    let old = client.create_volume(&spec("db1")).await.unwrap();
    until("it is there", async || {
        client.volume("db1").await.unwrap().state == VolumeState::Healthy
    })
    .await;
    drop(satellites.pop());
    until("s2 is missed", async || {
        client.volume("db1").await.unwrap().replicas[1].state == ReplicaState::Offline
    })
    .await;
    client.delete_volume("db1", false).await.unwrap();
    until("s1 did its part", async || {
        let volume = client.volume("db1").await.unwrap();
        volume.state == VolumeState::Deleting && nodes(&volume) == ["s2"]
    })
    .await;
    let waiting = client.volume("db1").await.unwrap();
    assert_eq!(waiting.reason, "waits: node s2 is not connected");
    let plan = client
        .plan(&Wish::DeleteVolume {
            name: "db1",
            force: true,
        })
        .await
        .unwrap();
    assert_eq!(
        plan.steps,
        ["leave the replica on node s2 behind (pool sp01, 4.0 KiB) until the node is back"]
    );

    client.delete_volume("db1", true).await.unwrap();
    assert!(matches!(client.volume("db1").await, Err(Error::NotFound { .. })));
    let left = client.tombstones(&Filter::default()).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(
        (
            left[0].volume_id.as_str(),
            left[0].node.as_str(),
            left[0].pool.as_str()
        ),
        (old.id.as_str(), "s2", "sp01")
    );
    assert_eq!(
        (left[0].allocated_bytes, left[0].state),
        (Some(4096), TombstoneState::Offline)
    );
    let checks = client.status().await.unwrap().checks;
    assert!(checks.iter().any(|c| c.code == "LEFT_BEHIND"), "{checks:?}");
    // Its name is free at once.
    let one = VolumeSpec {
        replicas: Some(1),
        ..spec("db1")
    };
    assert_ne!(client.create_volume(&one).await.unwrap().id, old.id);

    // The node that comes back is told to remove what it has, and nothing else.
    let back = Satellite::start("s2", vec![controllers[0].peer]);
    until("s2 has removed it", async || {
        client.tombstones(&Filter::default()).await.unwrap().is_empty()
    })
    .await;
    until("it is not asked again", async || {
        back.desired().replicas.is_empty()
    })
    .await;
    assert_eq!(client.volume("db1").await.unwrap().replicas.len(), 1);
    for controller in controllers {
        controller.running.stop().await;
    }
}
