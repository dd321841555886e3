//! What satellites and the leader say to each other.

use stor_api::objects::{NodeKind, ReplicaState, VolumeState};
use stor_proto::satellite::{
    Add, ChangeView, Detach, Ejected, Remove, Restart, answer, change_view, request,
};

use stor_replication::ids::{Epoch, VolumeId};
use stor_right::{Asked, Keyring, PublicKey, Seconds, TrustedKey};

use crate::controllers::{cluster, diskless, node, storage, until};
use crate::satellite::Satellite;
use crate::volumes::{on, spec};

fn volume(answer: stor_proto::satellite::Answer) -> stor_proto::satellite::Volume {
    match answer.kind.unwrap() {
        // A right is of its moment: nothing to be compared.
        answer::Kind::Volume(volume) => stor_proto::satellite::Volume {
            right: Vec::new(),
            ..volume
        },
        answer::Kind::Refused(refused) => panic!("{refused:?}"),
    }
}

/// No volume has this id.
const NOBODYS: &str = "00000000-0000-0000-0000-000000000009";

fn detach(volume_id: &str) -> request::Kind {
    request::Kind::Change(ChangeView {
        volume_id: volume_id.into(),
        change: Some(change_view::Change::Detach(Detach::default())),
    })
}

fn refused(answer: stor_proto::satellite::Answer) -> stor_proto::satellite::Refused {
    match answer.kind.unwrap() {
        answer::Kind::Refused(mut refused) => {
            if let Some(volume) = &mut refused.volume {
                volume.right.clear();
            }
            refused
        }
        answer::Kind::Volume(volume) => panic!("{volume:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_node_is_told_what_to_do() {
    let (_root, controllers) = cluster(1).await;
    let stranger = Satellite::start("s7", vec![controllers[0].peer]);
    until("it is refused", async || {
        let refused = stranger.inside.lock().unwrap().refused.clone();
        // Before, the controller may not lead yet.
        refused.is_some_and(|status| status.code() == tonic::Code::NotFound)
    })
    .await;
    let status = stranger.inside.lock().unwrap().refused.clone().unwrap();
    assert!(status.message().contains("storctl node create s7"), "{status:?}");
    let client = controllers[0].client();
    client.create_node(&node("s7", NodeKind::Storage)).await.unwrap();
    until("it is taken in", async || {
        stranger.inside.lock().unwrap().desired.is_some()
    })
    .await;
    client.delete_node("s7", false).await.unwrap();
    for controller in controllers {
        controller.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_names_the_leader_and_a_second_session_replaces_the_first() {
    let (_root, controllers) = cluster(3).await;
    let client = controllers[0].client();
    client.create_node(&node("s1", NodeKind::Storage)).await.unwrap();
    let first = Satellite::start("s1", vec![controllers[2].peer]);
    until("it found the leader", async || {
        first.inside.lock().unwrap().desired.is_some()
    })
    .await;
    let status = first.inside.lock().unwrap().refused.clone().unwrap();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert_eq!(
        status.metadata().get("stor-leader").unwrap().to_str().unwrap(),
        format!("http://{}", controllers[0].peer)
    );
    let sessions = first.inside.lock().unwrap().sessions;
    let second = Satellite::start("s1", vec![controllers[0].peer]);
    until("the second is served", async || {
        second.inside.lock().unwrap().desired.is_some()
    })
    .await;
    until("the first was ended and came again", async || {
        first.inside.lock().unwrap().sessions > sessions
    })
    .await;
    for controller in controllers {
        controller.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_change_views_and_learn_outcomes() {
    let (_root, controllers) = cluster(1).await;
    let client = controllers[0].client();
    let satellites = storage(&controllers, 2).await;
    let k1 = diskless(&controllers, "k1").await;
    client.create_volume(&spec("db1")).await.unwrap();
    client.attach("db1", &on("k1")).await.unwrap();
    let id = client.volume("db1").await.unwrap().id;

    let remove = |config| {
        let members = vec![Ejected {
            replica: 1,
            reason: "timed-out".into(),
        }];
        change_view::Change::Remove(Remove {
            expect_epoch: 1,
            expect_config: config,
            members,
        })
    };
    let by_other = refused(satellites[0].change(&id, remove(0)).await);
    assert_eq!(by_other.code, "not-owner");
    let row = volume(k1.change(&id, remove(0)).await);
    assert_eq!(
        (row.config, row.members[1].in_sync, row.members[1].reason.as_str()),
        (1, false, "timed-out")
    );
    let again = refused(k1.change(&id, remove(0)).await);
    assert_eq!(
        (again.code.as_str(), again.volume.unwrap()),
        ("view-changed", row.clone())
    );
    let seen = client.volume("db1").await.unwrap();
    assert_eq!(
        (seen.state, seen.replicas[1].state),
        (VolumeState::Degraded, ReplicaState::Stale)
    );

    let too_few = change_view::Change::Remove(Remove {
        expect_epoch: 1,
        expect_config: 1,
        members: vec![Ejected {
            replica: 0,
            reason: "timed-out".into(),
        }],
    });
    assert_eq!(refused(k1.change(&id, too_few).await).code, "too-few-in-sync");
    let add = change_view::Change::Add(Add {
        expect_epoch: 1,
        expect_config: 1,
        replica: 1,
    });
    let row = volume(k1.change(&id, add).await);
    assert_eq!((row.config, row.members[1].joined_config), (2, 2));
    let row = volume(
        k1.change(&id, change_view::Change::Restart(Restart { expect_epoch: 1 }))
            .await,
    );
    assert_eq!(row.epoch, 2);
    until("the new epoch is desired", async || {
        k1.desired()
            .engines
            .first()
            .is_some_and(|e| e.volume.as_ref().unwrap().epoch == 2)
    })
    .await;
    assert_eq!(refused(k1.ask(detach(NOBODYS)).await).code, "not-found");
    assert_eq!(refused(k1.ask(detach("db1")).await).code, "malformed");
    let revisions = k1.inside.lock().unwrap().revisions.clone();
    assert!(revisions.is_sorted(), "{revisions:?}");
    for controller in controllers {
        controller.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detached_volume_is_healed_and_given_to_whoever_wants_it() {
    let (_root, controllers) = cluster(1).await;
    let client = controllers[0].client();
    let satellites = storage(&controllers, 2).await;
    let k1 = diskless(&controllers, "k1").await;
    client.create_volume(&spec("db1")).await.unwrap();
    client.attach("db1", &on("k1")).await.unwrap();
    let id = client.volume("db1").await.unwrap().id;
    // The engine goes without its word: the members may differ.
    client.detach("db1", "k1", true).await.unwrap();
    let healing = || {
        satellites[0]
            .desired()
            .engines
            .first()
            .is_some_and(|e| e.transport == "none")
    };
    until("s1 heals it", async || healing()).await;
    let volume = client.volume("db1").await.unwrap();
    assert!(
        volume.attachments.is_empty(),
        "healing is the cluster's own affair"
    );
    assert!(
        client
            .status()
            .await
            .unwrap()
            .work
            .iter()
            .any(|line| line.contains("up to date"))
    );
    until("it ends by itself", async || !healing()).await;
    until("it was clean", async || {
        // Refused, for it is not attached; the refusal shows the row.
        let row = refused(k1.ask(detach(&id)).await).volume.unwrap();
        row.clean && row.owner.is_empty()
    })
    .await;

    client.attach("db1", &on("k1")).await.unwrap();
    client.detach("db1", "k1", true).await.unwrap();
    until("s1 heals it again", async || healing()).await;
    let attachment = client.attach("db1", &on("k1")).await.unwrap();
    assert_eq!(attachment.node, "k1", "a user comes first");
    until("the healer stopped", async || !healing()).await;
    for controller in controllers {
        controller.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_whose_data_is_newer_than_the_catalogue_is_locked() {
    let (_root, controllers) = cluster(1).await;
    let client = controllers[0].client();
    let satellites = storage(&controllers, 2).await;
    let k1 = diskless(&controllers, "k1").await;
    let id = client.create_volume(&spec("db1")).await.unwrap().id;
    satellites[1].inside.lock().unwrap().stored_epoch = 7;
    until("it is noticed", async || {
        let checks = client.status().await.unwrap().checks;
        checks.iter().any(|check| check.code == "CATALOGUE_BEHIND")
    })
    .await;
    match client.attach("db1", &on("k1")).await.unwrap_err() {
        stor_api::client::Error::Conflict(problem) => assert_eq!(problem.code(), "catalogue-behind"),
        other => panic!("{other:?}"),
    }
    satellites[1].inside.lock().unwrap().stored_epoch = 0;
    until("it can be attached again", async || {
        client.attach("db1", &on("k1")).await.is_ok()
    })
    .await;
    // Nor does it count up to an epoch that may be in use.
    satellites[1].inside.lock().unwrap().stored_epoch = 7;
    until("it is noticed again", async || {
        let checks = client.status().await.unwrap().checks;
        checks.iter().any(|check| check.code == "CATALOGUE_BEHIND")
    })
    .await;
    let restart = change_view::Change::Restart(Restart { expect_epoch: 1 });
    assert_eq!(refused(k1.change(&id, restart).await).code, "catalogue-behind");
    for controller in controllers {
        controller.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_at_once_are_all_answered() {
    let (_root, controllers) = cluster(1).await;
    let satellites = storage(&controllers, 1).await;
    let asks = (0..1000).map(|_| satellites[0].ask(detach(NOBODYS)));
    for answer in futures_util::future::join_all(asks).await {
        assert_eq!(refused(answer).code, "not-found");
    }
    for controller in controllers {
        controller.running.stop().await;
    }
}

/// What a replica's node makes of the keys it was told.
fn keyring(satellite: &Satellite) -> Keyring {
    let trusted = |key: stor_proto::satellite::SigningKey| TrustedKey {
        key: PublicKey(key.public.try_into().unwrap()),
        retired: key.retired,
    };
    Keyring::new(satellite.desired().keys.into_iter().map(trusted).collect())
}

/// The statement of a right to a volume and an epoch never opened before, if it is a good one.
fn granted(keys: &Keyring, right: &[u8], id: &str, epoch: u64) -> Option<stor_right::Statement> {
    let asked = Asked {
        volume: VolumeId(id.parse().unwrap()),
        epoch: Epoch(epoch),
        fenced: Epoch(0),
    };
    let granted = keys.verify(right, asked, Seconds::now());
    granted.ok().map(|granted| granted.statement)
}

fn desired_right(satellite: &Satellite) -> Vec<u8> {
    let engine = satellite.desired().engines.into_iter().next();
    engine
        .and_then(|engine| engine.volume)
        .map(|volume| volume.right)
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_has_a_right_that_replicas_take_whoever_leads() {
    let (_root, mut controllers) = cluster(3).await;
    let urls: Vec<String> = controllers
        .iter()
        .map(crate::controllers::Controller::url)
        .collect();
    let client = crate::controllers::client(&urls);
    let satellites = storage(&controllers, 2).await;
    let k1 = diskless(&controllers, "k1").await;
    client.create_volume(&spec("db1")).await.unwrap();
    client.attach("db1", &on("k1")).await.unwrap();
    let id = client.volume("db1").await.unwrap().id;
    until("every controller's key is told", async || {
        keyring(&satellites[0]).keys().len() == 3
    })
    .await;
    let before = keyring(&satellites[0]);
    assert!(before.keys().iter().all(|key| !key.retired));
    assert_eq!(keyring(&k1), before);

    let first = desired_right(&k1);
    let statement = granted(&before, &first, &id, 1).unwrap();
    assert_eq!((statement.node.as_str(), statement.read_only), ("k1", false));
    let life = statement.expires.0 - statement.issued.0;
    assert_eq!(life, stor_controller::rights::LIFE.as_secs());
    assert_eq!(granted(&before, &first, &id, 2), None);

    // The answer that gives a new epoch gives the right to it; nobody else gets one.
    let restart = change_view::Change::Restart(Restart { expect_epoch: 1 });
    let answered = k1.change(&id, restart).await;
    let answer::Kind::Volume(told) = answered.kind.unwrap() else {
        panic!("refused")
    };
    assert!(granted(&before, &told.right, &id, 2).is_some());
    // The row in the refusal of somebody else's request.
    let told = refused(satellites[0].ask(detach(&id)).await).volume.unwrap();
    assert!(
        told.right.is_empty(),
        "a right for a node that does not own the volume"
    );

    // Another leader signs with another key, which was told before it came to lead.
    until("the right to epoch 2", async || {
        granted(&before, &desired_right(&k1), &id, 2).is_some()
    })
    .await;
    let of_first = desired_right(&k1);
    controllers.remove(0).running.stop().await;
    until("the right of the next leader", async || {
        let right = desired_right(&k1);
        right[8..16] != of_first[8..16] && granted(&before, &right, &id, 2).is_some()
    })
    .await;

    // Its key goes with the controller; what it signed stays good where it was opened before.
    let gone = client.controllers().await.unwrap();
    let gone = gone.iter().find(|controller| controller.name == "c1").unwrap();
    client.remove_controller(&gone.name).await.unwrap();
    until("its key is retired", async || {
        keyring(&satellites[0]).keys()[0].retired
    })
    .await;
    assert_eq!(granted(&keyring(&satellites[0]), &of_first, &id, 2), None);
    for controller in controllers {
        controller.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_in_anything_that_is_kept_or_told() {
    let (root, controllers) = cluster(1).await;
    let client = controllers[0].client();
    let _satellites = storage(&controllers, 2).await;
    let k1 = diskless(&controllers, "k1").await;
    client.create_volume(&spec("db1")).await.unwrap();
    client.attach("db1", &on("k1")).await.unwrap();
    until("it has its right", async || !desired_right(&k1).is_empty()).await;
    let right = desired_right(&k1);
    // Long enough that none of them is found by chance in bytes that are random.
    assert!(right.len() >= 57 + 64, "{} bytes", right.len());
    let secret = std::fs::read(controllers[0].dir.join("signing-key.p8")).unwrap();
    // The private half as PKCS#8 holds it, and how a database or JSON would write it.
    let seed = &secret[16..48];
    let hex = PublicKey(seed.try_into().unwrap()).to_string();
    for controller in controllers {
        controller.running.stop().await;
    }
    let json = serde_json::to_string(&seed).unwrap();
    let has = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    let mut looked = 0;
    for entry in std::fs::read_dir(root.path().join("c1")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() || path.ends_with("signing-key.p8") {
            continue;
        }
        let bytes = match std::fs::read(&path) {
            // SQLite takes its write-ahead log away when the last connection is closed, which may be just now.
            Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => continue,
            read => read.unwrap(),
        };
        for part in [seed, hex.as_bytes(), json.as_bytes(), &right[57..]] {
            assert!(!has(&bytes, part), "{} holds a secret", path.display());
        }
        looked += 1;
    }
    assert!(looked >= 3, "{looked} files");
}
