//! Several controllers: any answers, and none that answers is lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use stor_api::client::{Error, Filter};
use stor_api::objects::{ControllerRole, VolumeSpec};
use stor_controller::server;
use stor_controller::settings::Settings;
use stor_raft::Timing;

use crate::controllers::{Controller, PATIENCE, client, cluster, storage, until};
use crate::volumes::spec;

async fn leader(controllers: &[Controller]) -> usize {
    let mut at = None;
    until("somebody leads", async || {
        at = controllers.iter().position(|c| c.running.cluster().leads());
        at.is_some()
    })
    .await;
    at.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_controller_answers_every_request_and_reads_what_was_written() {
    let (_root, controllers) = cluster(3).await;
    let _satellites = storage(&controllers, 2).await;
    for n in 0..6 {
        let (writer, reader) = (&controllers[n % 3], &controllers[(n + 1) % 3]);
        let name = format!("v{n}");
        writer.client().create_volume(&spec(&name)).await.unwrap();
        assert_eq!(reader.client().volume(&name).await.unwrap().name, name);
        assert_eq!(
            reader.client().volumes(&Filter::default()).await.unwrap().len(),
            n + 1
        );
    }
    let seen = controllers[1].client().controllers().await.unwrap();
    assert_eq!(
        seen.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(),
        ["c1", "c2", "c3"]
    );
    assert!(seen.iter().all(|c| c.online));
    assert_eq!(
        seen.iter().filter(|c| c.role == ControllerRole::Leader).count(),
        1
    );
    for controller in controllers {
        controller.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_answered_create_is_lost_when_the_leader_goes() {
    let (_root, mut controllers) = cluster(3).await;
    let _satellites = storage(&controllers, 3).await;
    let urls: Vec<String> = controllers.iter().map(Controller::url).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            // Each begins with another controller.
            let mut urls = urls.clone();
            urls.rotate_left(writer % 3);
            let (client, stop) = (client(&urls), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut answered = BTreeMap::new();
                for n in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let volume = client
                        .create_volume(&spec(&format!("w{writer}-{n}")))
                        .await
                        .unwrap();
                    answered.insert(volume.name, volume.id);
                }
                answered
            })
        })
        .collect();
    let reader = client(&urls);
    let count = async || reader.volumes(&Filter::default()).await.unwrap().len();
    until("creates flow", async || count().await >= 20).await;
    let gone = controllers.remove(leader(&controllers).await);
    gone.running.stop_now().await;
    let before = count().await;
    until("creates flow again", async || count().await >= before + 20).await;
    stop.store(true, Ordering::SeqCst);
    let mut answered = BTreeMap::new();
    for writer in writers {
        answered.extend(writer.await.unwrap());
    }
    let mut stored = BTreeMap::new();
    for volume in reader.volumes(&Filter::default()).await.unwrap() {
        assert!(
            stored.insert(volume.name, volume.id).is_none(),
            "a volume is there twice"
        );
    }
    assert_eq!(
        stored, answered,
        "each answered create is there, once, as it was answered"
    );
    for controller in controllers {
        controller.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_and_controllers_are_removed() {
    let (_root, controllers) = cluster(3).await;
    let satellites = storage(&controllers, 2).await;
    let urls: Vec<String> = controllers.iter().map(Controller::url).collect();
    let client = client(&urls);
    client.transfer_leader("c2").await.unwrap();
    until("c2 leads", async || controllers[1].running.cluster().leads()).await;
    until("the satellites are there again", async || {
        client
            .nodes()
            .await
            .unwrap()
            .iter()
            .all(crate::controllers::online)
    })
    .await;
    client
        .create_volume(&VolumeSpec {
            replicas: Some(1),
            ..spec("db1")
        })
        .await
        .unwrap();
    assert!(matches!(
        client.transfer_leader("c9").await,
        Err(Error::NotFound { .. })
    ));
    // The leader itself: it hands over first.
    client.remove_controller("c2").await.unwrap();
    let names: Vec<String> = client
        .controllers()
        .await
        .unwrap()
        .into_iter()
        .map(|c| c.name)
        .collect();
    assert_eq!(names, ["c1", "c3"]);
    assert_eq!(client.volume("db1").await.unwrap().name, "db1");
    drop(satellites);
    for controller in controllers {
        controller.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_comes_back_with_what_it_had() {
    let (_root, controllers) = cluster(1).await;
    let satellites = storage(&controllers, 2).await;
    let client = controllers[0].client();
    let made = client.create_volume(&spec("db1")).await.unwrap();
    drop(satellites);
    let controller = controllers.into_iter().next().unwrap();
    let dir = controller.dir.clone();
    // A second start in the same place is refused and leaves the first alone.
    let settings = Settings::load(&dir).unwrap();
    let twice = server::start(&dir, &settings, Timing::fast()).await.unwrap_err();
    assert!(twice.to_string().contains("--api-listen"), "{twice}");
    let mut elsewhere = settings.clone();
    elsewhere.api_listen = ([127, 0, 0, 1], 0).into();
    let locked = server::start(&dir, &elsewhere, Timing::fast()).await.unwrap_err();
    assert!(!locked.to_string().is_empty());
    assert_eq!(client.volume("db1").await.unwrap().id, made.id);
    controller.running.stop().await;
    let again = server::start(&dir, &settings, Timing::fast()).await.unwrap();
    assert_eq!(client.volume("db1").await.unwrap().id, made.id);
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_requests_fail_with_a_reason() {
    let (_root, mut controllers) = cluster(3).await;
    let last = controllers.remove(1);
    for controller in controllers {
        controller.running.stop_now().await;
    }
    let http = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
    let get = async |path: &str| http.get(format!("{}{path}", last.url())).send().await.unwrap();
    let answer = get("/api/v1/status").await;
    assert_eq!(answer.status().as_u16(), 503);
    let problem: stor_api::problem::Problem = answer.json().await.unwrap();
    assert_eq!(problem.code(), "no-quorum");
    assert_eq!(problem.title, "no quorum: controller c2 cannot reach c1, c3");
    assert!(problem.remedy.contains("start the controllers"));
    let ready = get("/readyz").await;
    assert_eq!(ready.status().as_u16(), 503);
    assert!(ready.text().await.unwrap().contains("cannot reach c1, c3"));
    let create = http
        .post(format!("{}/api/v1/nodes", last.url()))
        .body("{\"name\":\"s1\",\"address\":\"a\",\"kind\":\"storage\"}")
        .send()
        .await
        .unwrap();
    let problem: stor_api::problem::Problem = create.json().await.unwrap();
    assert_eq!(problem.code(), "no-quorum", "nothing was done, and it says so");
    assert_eq!(get("/healthz").await.status(), 200);
    last.running.stop_now().await;
}
