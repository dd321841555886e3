//! An engine process and two replica servers, with the test in the place of agent and catalogue.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use stor_replication::catalogue::{Member, MemberState, VolumeRow, decide};
use stor_replication::ids::{CacheId, ConfigSeq, Epoch, Lineage, ReplicaId, View, VolumeId};
use stor_right::{Keyring, Seconds, SignedRight, Signer, Statement, TrustedKey};
use stor_satellite::control::{Config, FromEngine, Report, State, ToEngine, Transport};
use stor_satellite::pool::backing::Room;
use stor_satellite::replicas::{ReplicaSpec, ReplicaState, Server};
use stor_transport::nbd::client::Client;
use tempfile::TempDir;
use uuid::Uuid;

const SIZE: u64 = 64 << 20;

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Replica servers in this process, each with one replica of the volume.
struct Storage {
    servers: Vec<Server>,
    specs: Vec<ReplicaSpec>,
    volume: VolumeId,
    lineage: Lineage,
    signer: Signer,
}

impl Storage {
    fn new(dir: &Path, count: u32) -> Self {
        let (volume, lineage) = (VolumeId(Uuid::new_v4()), Lineage(Uuid::new_v4()));
        let mut storage = Self {
            servers: Vec::new(),
            specs: Vec::new(),
            volume,
            lineage,
            signer: Signer::generate().unwrap().0,
        };
        let trusted = TrustedKey {
            key: storage.signer.public(),
            retired: false,
        };
        for number in 1..=count {
            let spec = ReplicaSpec {
                volume,
                replica: ReplicaId(number),
                room: Room::Directory(dir.to_owned()),
                data: dir.join(format!("r{number}.data")),
                meta: dir.join(format!("r{number}.meta")),
                size: SIZE,
                lineage,
                create: Some(true),
                cache: CacheId(Uuid::new_v4()),
                source: None,
                snapshots: std::collections::BTreeSet::new(),
            };
            let server = Server::start("127.0.0.1:0".parse().unwrap()).unwrap();
            server.trust(Keyring::new(vec![trusted]));
            server.set(vec![spec.clone()]);
            wait_for("the replica", || {
                let report = server.report();
                let state = report.first().map(|replica| replica.state.clone());
                assert!(!matches!(state, Some(ReplicaState::Failed(_))), "{state:?}");
                (state == Some(ReplicaState::Ready)).then_some(())
            });
            storage.servers.push(server);
            storage.specs.push(spec);
        }
        storage
    }

    /// What a controller would sign, `ago` before now.
    fn right(&self, epoch: Epoch, ago: Duration) -> SignedRight {
        let issued = Seconds(Seconds::now().0 - ago.as_secs());
        self.signer.sign(&Statement {
            volume: self.volume,
            epoch,
            node: "k1".to_owned(),
            read_only: false,
            issued,
            expires: issued.after(Duration::from_mins(10)),
        })
    }

    fn row(&self) -> VolumeRow {
        let member = |spec: &ReplicaSpec| Member {
            node: format!("s{}", spec.replica),
            joined: Some(ConfigSeq(0)),
            state: MemberState::InSync,
            leaving: false,
        };
        VolumeRow {
            volume: self.volume,
            size: SIZE,
            revision: 1,
            view: View {
                epoch: Epoch(1),
                config: ConfigSeq(0),
            },
            owner: Some("k1".to_owned()),
            clean: false,
            clean_before: true,
            lineage: self.lineage,
            min_in_sync: 1,
            replicas: self
                .specs
                .iter()
                .map(|spec| (spec.replica, member(spec)))
                .collect::<BTreeMap<_, _>>(),
        }
    }
}

/// The engine process, and the test's end of its control socket.
struct Engine {
    child: Child,
    control: UnixStream,
    row: VolumeRow,
    report: Option<Report>,
    socket: PathBuf,
    config: Option<Config>,
}

impl Engine {
    fn start(dir: &Path, storage: &Storage, row: VolumeRow) -> Self {
        let right = storage.right(row.view.epoch, Duration::ZERO);
        Self::start_with(dir, storage, row, right)
    }

    fn start_with(dir: &Path, storage: &Storage, row: VolumeRow, right: SignedRight) -> Self {
        let path = dir.join("control.sock");
        let log = std::fs::File::create(dir.join("engine.log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_stor-satellite"))
            .args(["engine", "--volume", &row.volume.to_string(), "--control"])
            .arg(&path)
            .stderr(log)
            .spawn()
            .unwrap();
        let control = wait_for("the control socket", || UnixStream::connect(&path).ok());
        control.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let socket = dir.join("nbd.sock");
        let addresses = storage.specs.iter().zip(&storage.servers);
        let config = Config {
            name: "vol".to_owned(),
            epoch: row.view.epoch,
            row: row.clone(),
            addresses: addresses
                .map(|(spec, server)| (spec.replica, server.address().to_string()))
                .collect(),
            transport: Transport::Socket { path: socket.clone() },
            read_only: false,
            snapshot: None,
            scrub: None,
            right,
        };
        let mut engine = Self {
            child,
            control,
            row,
            report: None,
            socket,
            config: None,
        };
        engine.tell(&ToEngine::Configure(config.clone()));
        engine.config = Some(config);
        engine
    }

    /// The right is renewed.
    fn renew(&mut self, right: SignedRight) {
        let config = self.config.take().unwrap();
        let config = Config { right, ..config };
        self.tell(&ToEngine::Configure(config.clone()));
        self.config = Some(config);
    }

    /// The kernel is its client from now on.
    fn serve_kernel(&mut self) {
        let path = self.socket.clone();
        let config = self.config.take().unwrap();
        let config = Config {
            transport: Transport::Nbd { path },
            ..config
        };
        self.tell(&ToEngine::Configure(config.clone()));
        self.config = Some(config);
    }

    fn client(&self) -> Client<UnixStream> {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Client::negotiate(stream, "vol").unwrap()
    }

    /// Stops its clock, or lets it go on.
    fn pause(&self, pause: bool) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        let signal = if pause { Signal::STOP } else { Signal::CONT };
        kill_process(pid, signal).unwrap();
        wait_for("the engine's clock", || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
            let state = stat.rsplit_once(')').unwrap().1.trim_start().chars().next();
            ((state == Some('T')) == pause).then_some(())
        });
    }

    fn tell(&mut self, message: &ToEngine) {
        let text = serde_json::to_vec(message).unwrap();
        self.control
            .write_all(&u32::try_from(text.len()).unwrap().to_le_bytes())
            .unwrap();
        self.control.write_all(&text).unwrap();
    }

    /// Takes the engine's next message; answers its proposals as the catalogue would.
    fn hear(&mut self) -> FromEngine {
        let mut length = [0; 4];
        self.control.read_exact(&mut length).unwrap();
        let mut text = vec![0; u32::from_le_bytes(length) as usize];
        self.control.read_exact(&mut text).unwrap();
        let message: FromEngine = serde_json::from_slice(&text).unwrap();
        match &message {
            FromEngine::Propose { id, change } => {
                let refusal = match decide(&self.row, change) {
                    Ok(row) => {
                        self.row = row;
                        None
                    }
                    Err(refusal) => Some(refusal),
                };
                let (id, row) = (*id, self.row.clone());
                self.tell(&ToEngine::Outcome { id, row, refusal });
            }
            FromEngine::Report(report) => self.report = Some(report.clone()),
            FromEngine::Hello { .. } | FromEngine::Stopped { .. } => {}
        }
        message
    }

    fn wait_serving(&mut self) {
        while self.report.as_ref().map(|report| report.state) != Some(State::Serving) {
            self.hear();
        }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///vol?socket={}", self.socket.display())
    }

    /// Stops it in order; whether it ended clean. No replica may have been removed meanwhile.
    fn stop(mut self) -> bool {
        assert_eq!(
            self.row.in_sync().count(),
            self.row.replicas.len(),
            "{:?}",
            self.row
        );
        self.tell(&ToEngine::Stop);
        let clean = loop {
            if let FromEngine::Stopped { clean } = self.hear() {
                break clean;
            }
        };
        assert!(self.child.wait().unwrap().success());
        clean
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Ended already where the test went well.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn directory() -> TempDir {
    // Not /tmp, which may be a tmpfs without direct I/O.
    tempfile::tempdir_in("/var/tmp").unwrap()
}

#[test]
fn what_a_client_writes_is_on_every_replica_and_reads_back() {
    let dir = directory();
    let storage = Storage::new(dir.path(), 2);
    let mut engine = Engine::start(dir.path(), &storage, storage.row());
    engine.wait_serving();
    let image = dir.path().join("image");
    let bytes: Vec<u8> = (0..SIZE / 8)
        .flat_map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes())
        .collect();
    std::fs::write(&image, &bytes).unwrap();
    let back = dir.path().join("back");
    run("nbdcopy", &[image.to_str().unwrap(), &engine.uri()]);
    run("nbdcopy", &[&engine.uri(), back.to_str().unwrap()]);
    assert!(
        std::fs::read(&back).unwrap() == bytes,
        "what was read back differs"
    );
    assert!(engine.stop(), "not clean");
    for spec in &storage.specs {
        assert!(
            std::fs::read(&spec.data).unwrap() == bytes,
            "{} differs",
            spec.data.display()
        );
    }
}

#[test]
fn requests_of_a_connection_that_the_kernel_has_given_up_are_not_begun() {
    let dir = directory();
    let storage = Storage::new(dir.path(), 2);
    let mut engine = Engine::start(dir.path(), &storage, storage.row());
    engine.serve_kernel();
    engine.wait_serving();
    let mut slow = engine.client();
    slow.write(0, &[1; 4096]).unwrap();
    engine.pause(true);
    slow.send_write(0, &[2; 4096]).unwrap();
    // What the kernel does when an answer takes too long; it sends the same on another connection then.
    slow.stream().shutdown(Shutdown::Both).unwrap();
    engine.pause(false);
    let mut next = engine.client();
    next.write(4096, &[3; 4096]).unwrap();
    let mut found = [0; 4096];
    next.read(0, &mut found).unwrap();
    assert_eq!(found[0], 1, "a request was begun that may have been overtaken");
    drop((slow, next));
    assert!(engine.stop(), "not clean");
}

#[test]
fn fio_verifies_at_depth() {
    let dir = directory();
    let storage = Storage::new(dir.path(), 2);
    let mut engine = Engine::start(dir.path(), &storage, storage.row());
    engine.wait_serving();
    let uri = format!("--uri={}", engine.uri());
    let common = [
        "--ioengine=nbd",
        &uri,
        "--name=verify",
        "--rw=randwrite",
        "--size=64m",
        "--verify=crc32c",
    ];
    for depth in ["--iodepth=1", "--iodepth=32"] {
        let mut args: Vec<&str> = common.to_vec();
        args.extend([
            depth,
            "--bsrange=4k-64k",
            "--io_size=32m",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--end_fsync=1",
            "--bs_unaligned=0",
        ]);
        args.push("--blockalign=4k");
        run("fio", &args);
    }
    assert!(engine.stop(), "not clean");
    let first = std::fs::read(&storage.specs[0].data).unwrap();
    assert!(
        first == std::fs::read(&storage.specs[1].data).unwrap(),
        "replicas differ"
    );
}

#[test]
fn an_engine_that_was_killed_is_followed_by_one_with_a_new_epoch() {
    let dir = directory();
    let storage = Storage::new(dir.path(), 2);
    let mut engine = Engine::start(dir.path(), &storage, storage.row());
    engine.wait_serving();
    run("qemu-io", &["-f", "raw", "-c", "write -P 7 0 1M", &engine.uri()]);
    engine.child.kill().unwrap();
    let mut row = engine.row.clone();
    drop(engine);
    row.view.epoch = Epoch(2);
    row.revision += 1;
    row.clean_before = false;
    let mut engine = Engine::start(dir.path(), &storage, row);
    engine.wait_serving();
    run("qemu-io", &["-f", "raw", "-c", "read -P 7 0 1M", &engine.uri()]);
    assert!(engine.stop(), "not clean");
}

#[test]
fn a_replica_is_served_only_when_nobody_else_has_its_files() {
    let dir = directory();
    let storage = Storage::new(dir.path(), 1);
    let held = storage.servers.into_iter().next().unwrap();
    let spec = storage.specs[0].clone();
    let second = Server::start("127.0.0.1:0".parse().unwrap()).unwrap();
    second.set(vec![spec.clone()]);
    // The first one's turn to be looked at has come and gone several times when this long has passed.
    for _ in 0..100 {
        std::thread::sleep(Duration::from_millis(5));
        assert!(
            second
                .report()
                .iter()
                .all(|replica| replica.state == ReplicaState::Opening),
            "{:?}",
            second.report()
        );
    }
    held.set(Vec::new());
    wait_for("the files to be free", || {
        second
            .report()
            .iter()
            .any(|replica| replica.state == ReplicaState::Ready)
            .then_some(())
    });
}

/// What a replica has stored about itself.
fn superblock(spec: &ReplicaSpec) -> Vec<u8> {
    // Both copies; the rest is holes for a large part.
    let mut bytes = vec![0; 2 * stor_replication::disk::PAGE];
    std::fs::File::open(&spec.meta)
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    bytes
}

#[test]
fn an_engine_without_a_good_right_waits_says_why_and_goes_on_once_it_has_one() {
    let dir = directory();
    let storage = Storage::new(dir.path(), 2);
    let before: Vec<_> = storage.specs.iter().map(superblock).collect();
    let hour = Duration::from_hours(1);
    let expired = storage.right(Epoch(1), hour);
    let mut engine = Engine::start_with(dir.path(), &storage, storage.row(), expired);
    for (right, told) in [
        (SignedRight::default(), "there is none"),
        (storage.right(Epoch(2), Duration::ZERO), "it is for another epoch"),
        (storage.right(Epoch(1), hour), "it has expired"),
    ] {
        engine.renew(right);
        while engine
            .report
            .as_ref()
            .is_none_or(|report| !report.reason.contains(told))
        {
            engine.hear();
        }
        let report = engine.report.clone().unwrap();
        assert_eq!(report.state, State::Starting, "{report:?}");
        assert!(
            report
                .reason
                .contains("on node s1 refuses the right to this epoch"),
            "{report:?}"
        );
    }
    let after: Vec<_> = storage.specs.iter().map(superblock).collect();
    assert!(before == after, "a refused Open was stored");
    engine.renew(storage.right(Epoch(1), Duration::ZERO));
    engine.wait_serving();
    assert!(engine.stop(), "not clean");
}

/// Nobody may be there to renew it: what is attached goes on over a restart of a replica's satellite.
#[test]
fn an_expired_right_opens_the_epoch_it_opened_before() {
    let dir = directory();
    let mut storage = Storage::new(dir.path(), 2);
    let mut engine = Engine::start(dir.path(), &storage, storage.row());
    engine.wait_serving();
    engine.renew(storage.right(Epoch(1), Duration::from_hours(24)));
    let old = storage.servers.remove(0);
    old.set(Vec::new());
    wait_for("the replica to be closed", || {
        old.report().is_empty().then_some(())
    });
    old.set(vec![storage.specs[0].clone()]);
    wait_for("the replica", || {
        let report = old.report();
        report
            .iter()
            .any(|replica| replica.state == ReplicaState::Ready)
            .then_some(())
    });
    run(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 7 0 1M", "-c", "flush", &engine.uri()],
    );
    assert!(engine.stop(), "not clean, or a replica was removed");
}
