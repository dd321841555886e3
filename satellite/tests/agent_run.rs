//! The program itself, `stor-satellite run`, as a storage node under a controller that the test plays.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod fake_controller;

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use fake_controller::{Visit, leader, visit};
use stor_proto::satellite as proto;
use stor_proto::satellite::from_controller::Kind as FromController;
use tempfile::TempDir;
use tokio::sync::mpsc;
use uuid::Uuid;

const NODE: &str = "s1";

/// Heartbeats come often: a test sees the status soon whatever it waits for.
const HEARTBEAT: u32 = 100;

struct Satellite {
    child: Child,
}

impl Drop for Satellite {
    fn drop(&mut self) {
        // Already ended in the tests that end it.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Satellite {
    fn signal(mut self, signal: rustix::process::Signal) -> std::process::ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
        self.child.wait().unwrap()
    }
}

fn command(state: &Path, node: &str, controller: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stor-satellite"));
    command.args([
        "run",
        "--node",
        node,
        "--data-listen",
        "127.0.0.1:0",
        "--controller",
        controller,
    ]);
    command
        .arg("--state-dir")
        .arg(state)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn start(state: &Path, controller: &str) -> Satellite {
    let mut command = command(state, NODE, controller);
    Satellite {
        child: command.stderr(Stdio::inherit()).spawn().unwrap(),
    }
}

fn refused(state: &Path, node: &str) -> Output {
    let output = command(state, node, "http://127.0.0.1:1").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    output
}

struct World {
    directory: TempDir,
    controller: String,
    coming: mpsc::Receiver<Visit>,
    volume: Uuid,
}

impl World {
    async fn new() -> Self {
        let (controller, coming) = leader().await;
        let directory = TempDir::new().unwrap();
        fs::create_dir(directory.path().join("pool")).unwrap();
        Self {
            directory,
            controller,
            coming,
            volume: Uuid::new_v4(),
        }
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn start(&self) -> Satellite {
        start(&self.state(), &self.controller)
    }

    async fn session(&mut self) -> (Visit, proto::Hello) {
        let mut visit = visit(&mut self.coming).await;
        let hello = visit.welcome(&[], HEARTBEAT).await;
        (visit, hello)
    }

    fn pool(&self, name: &str) -> proto::Pool {
        proto::Pool {
            name: name.to_owned(),
            kind: "file".to_owned(),
            path: self.directory.path().join(name).display().to_string(),
            ..Default::default()
        }
    }

    fn replica(&self) -> proto::Replica {
        proto::Replica {
            volume_id: self.volume.to_string(),
            volume_name: "db".to_owned(),
            replica: 0,
            pool: "pool".to_owned(),
            size_bytes: 64 << 20,
            lineage: Uuid::from_u128(5).to_string(),
            create: true,
            in_sync: true,
            delete: false,
            source: None,
        }
    }

    fn files(&self) -> [PathBuf; 2] {
        let directory = self.directory.path().join("pool").join(self.volume.to_string());
        [directory.join("r0.data"), directory.join("r0.meta")]
    }
}

fn desired(revision: u64, pools: Vec<proto::Pool>, replicas: Vec<proto::Replica>) -> FromController {
    FromController::Desired(proto::Desired {
        revision,
        pools,
        replicas,
        ..Default::default()
    })
}

async fn until(visit: &mut Visit, reached: impl Fn(&proto::Status) -> bool) -> proto::Status {
    let mut last = None;
    let found = tokio::time::timeout(fake_controller::PATIENCE, async {
        loop {
            let status = visit.hear_status().await;
            if reached(&status) {
                return status;
            }
            last = Some(status);
        }
    });
    match found.await {
        Ok(status) => status,
        Err(late) => panic!("{late}; last: {last:#?}"),
    }
}

async fn replica_is(visit: &mut Visit, state: proto::ReplicaState) -> proto::ReplicaStatus {
    let status = until(visit, |status| {
        status.replicas.iter().any(|replica| replica.state() == state)
    })
    .await;
    status.replicas[0].clone()
}

#[tokio::test]
async fn a_replica_is_made_served_and_deleted() {
    let mut world = World::new().await;
    let _satellite = world.start();
    let (mut visit, hello) = world.session().await;
    assert_eq!((hello.node.as_str(), hello.protocol), (NODE, 1));
    TcpStream::connect(&hello.data_address).unwrap();
    assert!(
        hello
            .transports
            .iter()
            .any(|probe| probe.name == "socket" && probe.available)
    );
    let mut replica = world.replica();
    visit
        .say(desired(1, vec![world.pool("pool")], vec![replica.clone()]))
        .await;
    let status = replica_is(&mut visit, proto::ReplicaState::Ready).await;
    assert_eq!(
        (status.volume_id.clone(), status.replica),
        (world.volume.to_string(), 0)
    );
    assert!(world.files().iter().all(|file| file.exists()));
    let status = until(&mut visit, |status| {
        status.pools.iter().any(|pool| pool.capacity_bytes > 0)
    })
    .await;
    assert_eq!((status.desired_revision, status.pools[0].error.as_str()), (1, ""));
    assert!(status.pools[0].free_bytes > 0 && !status.pools[0].snapshots.is_empty());
    (replica.create, replica.delete) = (false, true);
    visit
        .say(desired(2, vec![world.pool("pool")], vec![replica]))
        .await;
    replica_is(&mut visit, proto::ReplicaState::Deleted).await;
    assert!(world.files().iter().all(|file| !file.exists()));
    visit.say(desired(3, Vec::new(), Vec::new())).await;
    until(&mut visit, |status| {
        status.desired_revision == 3 && status.pools.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_replica_that_was_there_once_is_not_made_again() {
    let mut world = World::new().await;
    let satellite = world.start();
    let (mut visit, _) = world.session().await;
    visit
        .say(desired(1, vec![world.pool("pool")], vec![world.replica()]))
        .await;
    replica_is(&mut visit, proto::ReplicaState::Ready).await;
    drop(satellite);
    fs::remove_dir_all(world.files()[0].parent().unwrap()).unwrap();
    let _satellite = world.start();
    let (mut visit, _) = world.session().await;
    // The controller has not heard that it was ready, and asks for it to be made still.
    visit
        .say(desired(1, vec![world.pool("pool")], vec![world.replica()]))
        .await;
    replica_is(&mut visit, proto::ReplicaState::Missing).await;
    assert!(world.files().iter().all(|file| !file.exists()));
}

#[tokio::test]
async fn nothing_is_made_in_a_mount_point_whose_disk_is_away() {
    let mut world = World::new().await;
    let satellite = world.start();
    let (mut visit, _) = world.session().await;
    visit.say(desired(1, vec![world.pool("pool")], Vec::new())).await;
    until(&mut visit, |status| !status.pools.is_empty()).await;
    drop(satellite);
    let pool = world.directory.path().join("pool");
    fs::rename(&pool, world.directory.path().join("unmounted")).unwrap();
    fs::create_dir(&pool).unwrap();
    let _satellite = world.start();
    let (mut visit, _) = world.session().await;
    visit
        .say(desired(2, vec![world.pool("pool")], vec![world.replica()]))
        .await;
    let status = replica_is(&mut visit, proto::ReplicaState::Failed).await;
    assert!(
        status.error.contains("is its file system mounted?"),
        "{}",
        status.error
    );
    assert_eq!(fs::read_dir(&pool).unwrap().count(), 0);
}

#[tokio::test]
async fn one_bad_pool_does_not_stop_the_other() {
    let mut world = World::new().await;
    let _satellite = world.start();
    let (mut visit, _) = world.session().await;
    let mut lost = world.replica();
    (lost.volume_id, lost.pool) = (Uuid::from_u128(1).to_string(), "missing".to_owned());
    let mut nowhere = world.replica();
    (nowhere.volume_id, nowhere.pool) = (Uuid::from_u128(2).to_string(), "unheard-of".to_owned());
    let pools = vec![world.pool("missing"), world.pool("pool")];
    visit
        .say(desired(1, pools, vec![lost, nowhere, world.replica()]))
        .await;
    let own = world.volume.to_string();
    let status = until(&mut visit, |status| {
        let ready = status
            .replicas
            .iter()
            .any(|replica| replica.state() == proto::ReplicaState::Ready);
        ready && status.replicas.len() == 3 && status.pools.len() == 2
    })
    .await;
    let error = |volume: &str| {
        let replica = status
            .replicas
            .iter()
            .find(|replica| replica.volume_id == volume)
            .unwrap();
        (replica.state(), replica.error.clone())
    };
    assert_eq!(error(&own), (proto::ReplicaState::Ready, String::new()));
    let (state, text) = error(&Uuid::from_u128(1).to_string());
    assert!(
        state == proto::ReplicaState::Failed && text.contains("does not exist"),
        "{text}"
    );
    let (state, text) = error(&Uuid::from_u128(2).to_string());
    assert_eq!(
        (state, text.as_str()),
        (proto::ReplicaState::Failed, "this node has no pool unheard-of")
    );
    let pool = |name: &str| {
        status
            .pools
            .iter()
            .find(|pool| pool.name == name)
            .unwrap()
            .error
            .clone()
    };
    assert_eq!(pool("pool"), "");
    assert!(pool("missing").contains("does not exist"), "{}", pool("missing"));
}

#[tokio::test]
async fn replicas_are_served_without_any_controller() {
    let mut world = World::new().await;
    let satellite = world.start();
    let (mut visit, _) = world.session().await;
    visit
        .say(desired(1, vec![world.pool("pool")], vec![world.replica()]))
        .await;
    replica_is(&mut visit, proto::ReplicaState::Ready).await;
    drop(satellite);
    let satellite = start(&world.state(), "http://127.0.0.1:1");
    let data = world.files()[0].clone();
    let served = tokio::time::timeout(fake_controller::PATIENCE, async {
        while !has_open(satellite.child.id(), &data) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    served.await.expect("the replica is not opened");
}

fn has_open(pid: u32, file: &Path) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    open.filter_map(Result::ok)
        .any(|open| fs::read_link(open.path()).is_ok_and(|target| target == file))
}

#[tokio::test]
async fn signals_end_it_in_order() {
    use rustix::process::Signal;
    let mut world = World::new().await;
    for signal in [Signal::TERM, Signal::INT] {
        let satellite = world.start();
        world.session().await;
        assert!(satellite.signal(signal).success(), "{signal:?}");
    }
}

#[tokio::test]
async fn what_cannot_run_says_why() {
    let mut world = World::new().await;
    let satellite = world.start();
    world.session().await;
    let said = |output: Output| String::from_utf8(output.stderr).unwrap();
    let text = said(refused(&world.state(), NODE));
    let pid = satellite.child.id();
    assert!(
        text.contains(&format!("is in use by another stor-satellite (pid {pid})")),
        "{text}"
    );
    drop(satellite);
    let text = said(refused(&world.state(), "s9"));
    assert!(
        text.contains("belongs to node s1, this satellite was started as s9"),
        "{text}"
    );
    fs::write(world.state().join("satellite.json"), r#"{"version":7}"#).unwrap();
    let text = said(refused(&world.state(), NODE));
    assert!(
        text.contains("has version 7, this stor-satellite reads up to 1"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1, "{text}");
}
