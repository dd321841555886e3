//! A backup, a cluster made of it, and what its volumes may do before everybody was heard.

use std::path::{Path, PathBuf};

use stor_api::backup;
use stor_api::client::{Client, Error};
use stor_api::objects::{Health, VolumeAdoption, VolumeState};
use stor_controller::restore::{FailedRestore, restore};
use stor_controller::server::{self, Running};
use stor_controller::settings::{Settings, SettingsError, Wanted};
use stor_proto::satellite::{ReplicaState, ReplicaStatus, Restart, Stored, change_view};
use stor_raft::Timing;

use crate::controllers::{Controller, client, cluster, diskless, storage, until};
use crate::satellite::Satellite;
use crate::volumes::{on, spec};

async fn back_up(client: &Client, path: &Path) -> backup::Description {
    let mut file = std::fs::File::create(path).unwrap();
    client.backup(false, &mut file).await.unwrap();
    backup::check(path).unwrap()
}

/// The place of the old first controller, for a new one.
fn wanted(old: &Controller, name: &str) -> Wanted {
    Wanted {
        name: name.into(),
        peer_listen: old.peer,
        api_listen: old.running.api(),
        peer_address: None,
        api_address: None,
    }
}

async fn restored(dir: &Path, wanted: Wanted, file: &Path) -> Running {
    let (settings, _) = restore(dir, wanted, file, false, Timing::fast()).await.unwrap();
    server::start(dir, &settings, Timing::fast()).await.unwrap()
}

async fn state(client: &Client, name: &str) -> (VolumeState, String) {
    let volume = client.volume(name).await.unwrap();
    (volume.state, volume.reason)
}

fn code(error: &Error) -> String {
    match error {
        Error::Conflict(problem) => problem.code().to_owned(),
        other => panic!("{other:?}"),
    }
}

/// Waits until nothing is left to be heard of the time before.
async fn settled(client: &Client) {
    until("all is settled", async || {
        !checks(client).await.contains(&"CATALOGUE_RESTORED".to_owned())
    })
    .await;
}

async fn checks(client: &Client) -> Vec<String> {
    let status = client.status().await.unwrap();
    status.checks.into_iter().map(|check| check.code).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_from_any_controller_holds_everything_that_was_acknowledged() {
    let (root, controllers) = cluster(3).await;
    for n in 0..6 {
        let (writer, asked) = (&controllers[n % 3], &controllers[(n + 1) % 3]);
        let name = format!("s{n}");
        let node = crate::controllers::node(&name, stor_api::objects::NodeKind::Storage);
        writer.client().create_node(&node).await.unwrap();
        let path = root.path().join("backup");
        let of = back_up(&asked.client(), &path).await;
        assert!(of.complete && of.controller == format!("c{}", (n + 1) % 3 + 1));
        assert_eq!(of.controllers, ["c1", "c2", "c3"]);
        let bytes = std::fs::read(&path).unwrap();
        let has = bytes.windows(name.len()).any(|part| part == name.as_bytes());
        assert!(has, "{name} was acknowledged and is not in the backup");
    }
    let left = controllers
        .iter()
        .flat_map(|c| std::fs::read_dir(&c.dir).unwrap());
    let drafts = left.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_str().unwrap().starts_with("backup-")
    });
    assert_eq!(drafts.count(), 0, "drafts are left");
    for controller in controllers {
        controller.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_restored_beside_a_living_cluster_or_over_another() {
    let (root, controllers) = cluster(1).await;
    let file = root.path().join("backup");
    back_up(&controllers[0].client(), &file).await;
    let dir = root.path().join("new");
    let mut elsewhere = wanted(&controllers[0], "n1");
    elsewhere.peer_listen = ([127, 0, 0, 1], 1).into();
    let alive = restore(&dir, elsewhere.clone(), &file, false, Timing::fast())
        .await
        .unwrap_err();
    assert!(
        matches!(&alive, FailedRestore::Alive { names } if names == &["c1"]),
        "{alive}"
    );
    // Cut off at any moment, it can't be run and is begun anew; with another file it is refused.
    let unfinished = Settings::load(&dir).unwrap_err();
    assert!(
        matches!(unfinished, SettingsError::Incomplete { .. }),
        "{unfinished}"
    );
    let plain = Settings::begin(&dir, elsewhere.clone()).unwrap_err();
    assert!(matches!(plain, SettingsError::Restoring { .. }), "{plain}");
    for left in ["log.db", "catalogue.db", "catalogue.restored", "restore.tmp"] {
        std::fs::write(dir.join(left), b"half").unwrap();
    }
    let other = root.path().join("other");
    back_up(&controllers[0].client(), &other).await;
    let refused = restore(&dir, elsewhere.clone(), &other, true, Timing::fast())
        .await
        .unwrap_err();
    assert!(
        matches!(refused, FailedRestore::Settings(SettingsError::Restoring { .. })),
        "{refused}"
    );
    restore(&dir, elsewhere.clone(), &file, true, Timing::fast())
        .await
        .unwrap();
    let again = restore(&dir, elsewhere.clone(), &file, true, Timing::fast())
        .await
        .unwrap_err();
    assert!(
        matches!(again, FailedRestore::Settings(SettingsError::Present { .. })),
        "{again}"
    );
    // Not over what is there.
    std::fs::create_dir(root.path().join("used")).unwrap();
    std::fs::write(root.path().join("used/log.db"), b"x").unwrap();
    let over = restore(
        &root.path().join("used"),
        elsewhere.clone(),
        &file,
        true,
        Timing::fast(),
    )
    .await;
    assert!(
        matches!(over, Err(FailedRestore::Settings(SettingsError::Occupied { .. }))),
        "{over:?}"
    );
    // Nor anything out of a file that is not whole; and then nothing is begun.
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let fresh = root.path().join("fresh");
    let damaged = restore(&fresh, elsewhere, &file, true, Timing::fast())
        .await
        .unwrap_err();
    assert!(matches!(damaged, FailedRestore::Backup(_)), "{damaged}");
    assert!(!fresh.exists());
    for controller in controllers {
        controller.running.stop().await;
    }
}

/// A cluster with db1 in use before the backup and after it, and db2 made after it, then restored.
struct After {
    _root: tempfile::TempDir,
    client: Client,
    satellites: Vec<Satellite>,
    running: Running,
    id: String,
    _k1: Satellite,
}

async fn after() -> After {
    let (root, controllers) = cluster(1).await;
    let client = client(&[controllers[0].url()]);
    let satellites = storage(&controllers, 3).await;
    let k1 = diskless(&controllers, "k1").await;
    let id = client.create_volume(&spec("db1")).await.unwrap().id;
    let file: PathBuf = root.path().join("backup");
    back_up(&client, &file).await;
    // Nobody has looked through all pools before the test says what is in them.
    searched(&satellites, false);
    let dir = root.path().join("new");
    let new = wanted(&controllers[0], "n1");
    for controller in controllers {
        controller.running.stop().await;
    }
    let running = restored(&dir, new, &file).await;
    After {
        _root: root,
        client,
        satellites,
        running,
        id,
        _k1: k1,
    }
}

fn searched(satellites: &[Satellite], searched: bool) {
    for satellite in satellites {
        satellite.inside.lock().unwrap().unsearched = !searched;
    }
}

fn node_of(shown: &stor_api::objects::Volume, number: u32) -> usize {
    let node = &shown.replicas.iter().find(|r| r.id == number).unwrap().node;
    node.trim_start_matches('s').parse::<usize>().unwrap() - 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_right_is_unlocked_once_every_storage_node_was_heard() {
    let After {
        _root,
        client,
        mut satellites,
        running,
        _k1,
        ..
    } = after().await;
    // One node that holds nothing of it stays silent: it may have got a replica since.
    let shown = client.volume("db1").await.unwrap();
    let held: Vec<usize> = [0, 1].map(|number| node_of(&shown, number)).to_vec();
    let other = (0..3).find(|node| !held.contains(node)).unwrap();
    for node in held {
        satellites[node].inside.lock().unwrap().unsearched = false;
    }
    until("the others were heard", async || {
        let status = client.status().await.unwrap();
        status.nodes.storage_online == 3
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(state(&client, "db1").await.0, VolumeState::CatalogueBehind);
    let refused = client.attach("db1", &on("k1")).await.unwrap_err();
    assert_eq!(code(&refused), "catalogue-behind");
    let refused = client.delete_volume("db1", true).await.unwrap_err();
    assert_eq!(code(&refused), "catalogue-behind");
    let refused = client
        .adopt_volume("db1", &VolumeAdoption::default())
        .await
        .unwrap_err();
    assert_eq!(code(&refused), "catalogue-behind", "not without everybody");
    assert!(checks(&client).await.contains(&"CATALOGUE_RESTORED".to_owned()));

    satellites[other].inside.lock().unwrap().unsearched = false;
    until("it is unlocked", async || {
        state(&client, "db1").await.0 == VolumeState::Healthy
    })
    .await;
    settled(&client).await;
    client.attach("db1", &on("k1")).await.unwrap();
    satellites.clear();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_went_on_is_locked_and_adopted_at_its_highest_view() {
    let After {
        _root,
        client,
        satellites,
        running,
        id,
        _k1,
    } = after().await;
    let shown = client.volume("db1").await.unwrap();
    let holder = node_of(&shown, 0);
    let size = shown.size_bytes;
    let told = satellites[holder].desired().replicas;
    let lineage = told
        .iter()
        .find(|replica| replica.volume_id == id)
        .unwrap()
        .lineage
        .clone();
    let held = move |volume: &str, number: u32, epoch: u64, config: u64, in_sync: &[u32]| ReplicaStatus {
        volume_id: volume.to_owned(),
        replica: number,
        state: ReplicaState::Found.into(),
        stored_epoch: epoch,
        stored_config: config,
        stored: Some(Stored {
            fence_epoch: epoch,
            size_bytes: size,
            lineage: lineage.clone(),
            in_sync: in_sync.to_vec(),
            pool: "sp01".into(),
        }),
        ..ReplicaStatus::default()
    };
    // The other replica left at config 4; and a volume was made that the backup does not know.
    let stranger = "0191d5b4-0000-7000-8000-0000000000aa";
    satellites[holder].inside.lock().unwrap().holds =
        vec![held(&id, 0, 7, 4, &[0]), held(stranger, 0, 2, 1, &[0])];
    searched(&satellites, true);
    until("it is noticed", async || {
        let checks = checks(&client).await;
        checks.contains(&"CATALOGUE_BEHIND".to_owned()) && checks.contains(&"REPLICA_UNKNOWN".to_owned())
    })
    .await;
    assert_eq!(client.status().await.unwrap().health, Health::Err);
    let refused = client.attach("db1", &on("k1")).await.unwrap_err();
    assert_eq!(code(&refused), "catalogue-behind");
    // An engine of the time before goes on with what it has: it gets neither an outcome nor a row.
    let restart = change_view::Change::Restart(Restart { expect_epoch: 7 });
    match satellites[holder].change(&id, restart).await.kind {
        Some(stor_proto::satellite::answer::Kind::Refused(refused)) => {
            assert_eq!(
                (refused.code.as_str(), refused.volume),
                ("catalogue-behind", None)
            );
        }
        other => panic!("{other:?}"),
    }
    until("every node was heard", async || {
        client
            .adopt_volume("db1", &VolumeAdoption::default())
            .await
            .is_ok()
    })
    .await;
    let adopted = client.volume("db1").await.unwrap();
    assert!(adopted.epoch > 7 && adopted.config > 4, "{adopted:?}");
    let in_sync: Vec<u32> = adopted
        .replicas
        .iter()
        .filter(|r| r.in_sync)
        .map(|r| r.id)
        .collect();
    assert_eq!(in_sync, [0], "the set of the highest view");
    let again = client
        .adopt_volume("db1", &VolumeAdoption::default())
        .await
        .unwrap_err();
    assert_eq!(code(&again), "state", "there is nothing more to adopt");

    let unknown = VolumeAdoption {
        id: Some(stranger.to_owned()),
        force: false,
    };
    let taken = client.adopt_volume("db1", &unknown).await.unwrap_err();
    assert_eq!(code(&taken), "exists");
    let named = client.adopt_volume("found", &unknown).await.unwrap();
    assert_eq!((named.id.as_str(), named.size_bytes), (stranger, size));
    settled(&client).await;
    drop(satellites);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_was_deleted_since_is_shown_as_gone_and_not_made_again() {
    let After {
        _root,
        client,
        satellites,
        running,
        id,
        _k1,
    } = after().await;
    let shown = client.volume("db1").await.unwrap();
    for number in [0, 1] {
        let missing = ReplicaStatus {
            volume_id: id.clone(),
            replica: number,
            state: ReplicaState::Missing.into(),
            ..ReplicaStatus::default()
        };
        satellites[node_of(&shown, number)].inside.lock().unwrap().holds = vec![missing];
    }
    searched(&satellites, true);
    until("it is noticed", async || {
        checks(&client).await.contains(&"VOLUME_GONE".to_owned())
    })
    .await;
    let nothing = client
        .adopt_volume("db1", &VolumeAdoption::default())
        .await
        .unwrap_err();
    assert_eq!(code(&nothing), "catalogue-behind");
    for satellite in &satellites {
        let made = satellite.desired().replicas.iter().any(|replica| replica.create);
        assert!(!made, "it must not be made again");
    }
    client.delete_volume("db1", false).await.unwrap();
    for satellite in &satellites {
        satellite.inside.lock().unwrap().holds.clear();
    }
    until("it is forgotten", async || client.volume("db1").await.is_err()).await;
    drop(satellites);
    running.stop().await;
}
