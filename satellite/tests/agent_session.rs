//! The session with the controllers, against controllers that do what the test says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod fake_controller;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fake_controller::{Manner, controller, leader, visit};
use stor_proto::satellite as proto;
use stor_proto::satellite::from_controller::Kind as FromController;
use stor_replication::catalogue::Change;
use stor_replication::ids::{Epoch, VolumeId};
use stor_satellite::agent::ask::{self, Asker, Reply};
use stor_satellite::agent::dial::Dialer;
use stor_satellite::agent::session::{Ends, Session, run_apart};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

/// The satellite's side.
struct Satellite {
    asker: Asker,
    status: watch::Sender<Option<Arc<proto::Status>>>,
    desired: mpsc::Receiver<proto::Desired>,
    directory: TempDir,
}

impl Satellite {
    fn dial(controllers: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let (asker, asks) = ask::channel();
        let (status, seen) = watch::channel(None);
        let (tell, desired) = mpsc::channel(4);
        let given = controllers.iter().map(|&address| address.to_owned()).collect();
        let dialer = Dialer::new(given, directory.path().join("controllers.json"));
        let hello = proto::Hello {
            protocol: 1,
            node: "s1".to_owned(),
            ..Default::default()
        };
        let session = Session::new(
            hello,
            dialer,
            Ends {
                status: seen,
                asks,
                desired: tell,
                removals: mpsc::channel(1).0,
            },
        );
        tokio::spawn(session.run());
        Self {
            asker,
            status,
            desired,
            directory,
        }
    }

    fn see(&self, revision: u64) {
        let status = proto::Status {
            desired_revision: revision,
            ..Default::default()
        };
        self.status.send_replace(Some(Arc::new(status)));
    }
}

fn volume() -> VolumeId {
    VolumeId(Uuid::from_u128(1))
}

fn row(epoch: u64) -> proto::Volume {
    proto::Volume {
        volume_id: volume().to_string(),
        name: "db".to_owned(),
        size_bytes: 4096,
        epoch,
        lineage: Uuid::from_u128(2).to_string(),
        min_in_sync: 1,
        ..Default::default()
    }
}

fn restart() -> Change {
    Change::Restart {
        owner: "s1".to_owned(),
        expect: Epoch(4),
    }
}

fn answer(id: u64, epoch: u64) -> FromController {
    FromController::Answer(proto::Answer {
        id,
        kind: Some(proto::answer::Kind::Volume(row(epoch))),
    })
}

fn refuse(id: u64, code: &str, volume: Option<proto::Volume>) -> FromController {
    let refused = proto::Refused {
        code: code.to_owned(),
        message: "no".to_owned(),
        volume,
    };
    FromController::Answer(proto::Answer {
        id,
        kind: Some(proto::answer::Kind::Refused(refused)),
    })
}

const QUIET: u32 = 60_000;

#[tokio::test]
async fn the_leader_is_found_through_those_that_do_not_lead() {
    let (leads, mut coming) = leader().await;
    let knows = controller(Manner::NameLeader(leads.clone())).await;
    let lost = controller(Manner::KnowNoLeader).await;
    // Nothing listens on the first.
    let dead = "http://127.0.0.1:1";
    let satellite = Satellite::dial(&[dead, &lost, &knows]);
    let mut visit = visit(&mut coming).await;
    let hello = visit.welcome(&[&leads, &knows], QUIET).await;
    assert_eq!((hello.protocol, hello.node.as_str()), (1, "s1"));
    // Known to have been kept once the satellite has said something after Welcome.
    satellite.see(1);
    visit.hear_status().await;
    let kept = std::fs::read_to_string(satellite.directory.path().join("controllers.json")).unwrap();
    assert_eq!(
        serde_json::from_str::<Vec<String>>(&kept).unwrap(),
        [leads, knows]
    );
}

#[tokio::test]
async fn controllers_of_the_last_session_are_dialled_too() {
    let (leads, mut coming) = leader().await;
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("controllers.json");
    std::fs::write(&file, serde_json::to_string(&[&leads]).unwrap()).unwrap();
    let dialer = Dialer::new(vec!["http://127.0.0.1:1".to_owned()], file);
    let (_asker, asks) = ask::channel();
    let (_status, status) = watch::channel(None);
    let (desired, _desired) = mpsc::channel(1);
    let hello = proto::Hello::default();
    tokio::spawn(
        Session::new(
            hello,
            dialer,
            Ends {
                status,
                asks,
                desired,
                removals: mpsc::channel(1).0,
            },
        )
        .run(),
    );
    visit(&mut coming).await.hear_hello().await;
}

/// What a controller is behind that can hang: connections are taken, and nothing comes through any more.
async fn hangs_later(controller: &str) -> (String, watch::Sender<bool>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let to = controller.trim_start_matches("http://").to_owned();
    let (hang, hangs) = watch::channel(false);
    let dialled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&dialled);
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let (to, mut hangs) = (to.clone(), hangs.clone());
            tokio::spawn(async move {
                let mut far = TcpStream::connect(&to).await.unwrap();
                let copied = tokio::io::copy_bidirectional(&mut near, &mut far);
                let hung = tokio::select! {
                    _ = copied => false,
                    hangs = hangs.wait_for(|hangs| *hangs) => hangs.is_ok(),
                };
                if hung {
                    // Both connections stay open.
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    (address, hang, dialled)
}

#[tokio::test]
async fn a_controller_that_hangs_is_left_for_another_though_it_is_named() {
    let (leads, mut coming) = leader().await;
    let (hung, hang, dialled) = hangs_later(&leads).await;
    let names_it = controller(Manner::NameLeader(hung.clone())).await;
    let (next, mut coming_next) = leader().await;
    let satellite = Satellite::dial(&[&hung, &names_it, &next]);
    let mut first = visit(&mut coming).await;
    first.welcome(&[], QUIET).await;
    assert_eq!(dialled.load(Ordering::SeqCst), 1);
    hang.send(true).unwrap();
    let mut second = visit(&mut coming_next).await;
    second.welcome(&[], QUIET).await;
    assert_eq!(dialled.load(Ordering::SeqCst), 1, "it was dialled again");
    satellite.see(1);
    while second.hear_status().await.desired_revision != 1 {}
}

/// Whatever else the agent waits for, and with whatever it keeps its threads.
#[test]
fn a_session_of_its_own_thread_goes_on_while_the_agent_hangs() {
    let controllers = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (leads, mut coming) = controllers.block_on(leader());
    let agent = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    agent.block_on(async {
        let directory = TempDir::new().unwrap();
        let (_asker, asks) = ask::channel();
        let (_status, status) = watch::channel(Some(Arc::new(proto::Status::default())));
        let (desired, _desired) = mpsc::channel(1);
        let ends = Ends {
            status,
            asks,
            desired,
            removals: mpsc::channel(1).0,
        };
        let dialer = Dialer::new(vec![leads], directory.path().join("controllers.json"));
        let session = Session::new(proto::Hello::default(), dialer, ends);
        let _apart = run_apart(session).unwrap();
        // From here on, the only thread of the agent's runtime does not come back.
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        controllers.spawn(async move {
            let mut visit = visit(&mut coming).await;
            visit.welcome(&[], 50).await;
            for _ in 0..5 {
                visit.hear_status().await;
            }
            tell.send(()).unwrap();
        });
        told.recv_timeout(fake_controller::PATIENCE).unwrap();
    });
}

#[tokio::test]
async fn a_status_is_told_on_every_change_and_at_every_heartbeat() {
    let (leads, mut coming) = leader().await;
    let satellite = Satellite::dial(&[&leads]);
    let mut visit = visit(&mut coming).await;
    visit.welcome(&[], QUIET).await;
    for revision in 1..4 {
        satellite.see(revision);
        // The one before may come once more: with the first heartbeat, which is at the beginning.
        while visit.hear_status().await.desired_revision != revision {}
    }
    let mut visit = {
        drop(visit);
        let mut visit = fake_controller::visit(&mut coming).await;
        visit.welcome(&[], 50).await;
        visit
    };
    for _ in 0..3 {
        assert_eq!(
            visit.hear_status().await.desired_revision,
            3,
            "nothing changed, and it is told all the same"
        );
    }
}

#[tokio::test]
async fn the_desired_state_arrives() {
    let (leads, mut coming) = leader().await;
    let mut satellite = Satellite::dial(&[&leads]);
    let mut visit = visit(&mut coming).await;
    visit.welcome(&[], QUIET).await;
    visit
        .say(FromController::Desired(proto::Desired {
            revision: 7,
            ..Default::default()
        }))
        .await;
    assert_eq!(satellite.desired.recv().await.unwrap().revision, 7);
}

#[tokio::test]
async fn a_question_is_asked_on_every_session_until_it_is_answered() {
    let (leads, mut coming) = leader().await;
    let satellite = Satellite::dial(&[&leads]);
    let asker = satellite.asker.clone();
    let asked = tokio::spawn(async move { asker.ask(volume(), restart()).await });
    let mut ids = Vec::new();
    for _ in 0..3 {
        let mut visit = visit(&mut coming).await;
        visit.welcome(&[], QUIET).await;
        let request = visit.hear_request().await;
        let change = proto::ChangeView {
            volume_id: volume().to_string(),
            change: Some(proto::change_view::Change::Restart(proto::Restart {
                expect_epoch: 4,
            })),
        };
        assert_eq!(request.kind, Some(proto::request::Kind::Change(change)));
        ids.push(request.id);
    }
    assert!(
        ids.iter().all(|id| *id == ids[0]),
        "one question, one number: {ids:?}"
    );
    let mut visit = visit(&mut coming).await;
    visit.welcome(&[], QUIET).await;
    let id = visit.hear_request().await.id;
    // An answer to nothing, and one that cannot be read, are no answers.
    visit.say(answer(id + 100, 9)).await;
    let mut unreadable = row(9);
    unreadable.lineage = "x".to_owned();
    let kind = Some(proto::answer::Kind::Volume(unreadable));
    visit
        .say(FromController::Answer(proto::Answer { id, kind }))
        .await;
    visit.say(answer(id, 5)).await;
    match asked.await.unwrap().unwrap() {
        Reply::Row(volume) => assert_eq!(volume.row.view.epoch, Epoch(5)),
        other @ Reply::Refused { .. } => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_leader_that_leads_no_more_gives_no_answer() {
    let (leads, mut coming) = leader().await;
    let satellite = Satellite::dial(&[&leads]);
    let asker = satellite.asker.clone();
    let asked = tokio::spawn(async move { asker.ask(volume(), restart()).await });
    let mut first = visit(&mut coming).await;
    first.welcome(&[], QUIET).await;
    let id = first.hear_request().await.id;
    first.say(refuse(id, "not-leader", None)).await;
    let mut second = visit(&mut coming).await;
    second.welcome(&[], QUIET).await;
    assert_eq!(second.hear_request().await.id, id);
    second.say(refuse(id, "not-found", None)).await;
    let refused = Reply::Refused {
        code: "not-found".to_owned(),
        message: "no".to_owned(),
        volume: None,
    };
    assert_eq!(asked.await.unwrap(), Ok(refused));
}

#[tokio::test]
async fn a_question_nobody_waits_for_is_forgotten() {
    let (leads, mut coming) = leader().await;
    let satellite = Satellite::dial(&[&leads]);
    let asker = satellite.asker.clone();
    let asked = tokio::spawn(async move { asker.ask(volume(), restart()).await });
    let mut first = visit(&mut coming).await;
    first.welcome(&[], QUIET).await;
    let forgotten = first.hear_request().await.id;
    asked.abort();
    assert!(asked.await.unwrap_err().is_cancelled());
    drop(first);
    let mut second = visit(&mut coming).await;
    second.welcome(&[], QUIET).await;
    let asker = satellite.asker.clone();
    tokio::spawn(async move { asker.ask(volume(), restart()).await });
    assert_ne!(second.hear_request().await.id, forgotten);
}

#[tokio::test]
async fn a_refusal_comes_with_the_row_as_it_is() {
    let (leads, mut coming) = leader().await;
    let satellite = Satellite::dial(&[&leads]);
    let asker = satellite.asker.clone();
    let asked = tokio::spawn(async move { asker.ask(volume(), restart()).await });
    let mut visit = visit(&mut coming).await;
    visit.welcome(&[], QUIET).await;
    let id = visit.hear_request().await.id;
    visit.say(refuse(id, "view-changed", Some(row(6)))).await;
    match asked.await.unwrap().unwrap() {
        Reply::Refused {
            code,
            volume: Some(volume),
            ..
        } => {
            assert_eq!((code.as_str(), volume.row.view.epoch), ("view-changed", Epoch(6)));
        }
        other => panic!("{other:?}"),
    }
}
