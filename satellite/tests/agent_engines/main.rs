//! The agent and its engines: real processes (`fake-engine`), a catalogue in memory, devices that are noted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod nbd;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stor_proto::satellite::{EngineState, EngineStatus};
use stor_replication::catalogue::{Change, Member, MemberState, VolumeRow, decide};
use stor_replication::ids::{ConfigSeq, Epoch, Lineage, ReplicaId, View, VolumeId};
use stor_right::SignedRight;
use stor_satellite::agent::ask::{self, Ask, Reply};
use stor_satellite::agent::desired::{Desired, TransportKind, WantedEngine};
use stor_satellite::agent::row::Volume;
use stor_satellite::agent::state_dir::{Paths, StateDir};
use stor_satellite::attach::device::{DeviceError, Devices, Found, NbdWish};
use stor_satellite::attach::process::{self, ProcessId};
use stor_satellite::attach::{Context, Volumes};
use tempfile::TempDir;
use tokio::sync::{Notify, broadcast, mpsc};
use uuid::Uuid;

const NODE: &str = "k1";

/// Far above what anything here takes: reached only by a defect.
const PATIENCE: Duration = Duration::from_secs(30);

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// The catalogue of one volume.
#[derive(Debug)]
struct Catalogue {
    row: Mutex<VolumeRow>,
    asked: Mutex<Vec<Change>>,
    /// No controller answers.
    away: Mutex<bool>,
}

impl Catalogue {
    fn asked(&self) -> Vec<Change> {
        self.asked.lock().unwrap().clone()
    }

    fn row(&self) -> VolumeRow {
        self.row.lock().unwrap().clone()
    }

    async fn answer(self: Arc<Self>, name: String, mut asks: mpsc::Receiver<Ask>) {
        while let Some(ask) = asks.recv().await {
            while *self.away.lock().unwrap() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            self.asked.lock().unwrap().push(ask.change.clone());
            let mut row = self.row.lock().unwrap();
            let refused = match decide(&row, &ask.change) {
                Ok(next) => {
                    *row = next;
                    None
                }
                Err(refusal) => Some(refusal),
            };
            let volume = Box::new(Volume {
                name: name.clone(),
                row: row.clone(),
                addresses: Vec::new(),
                right: right_to(row.view.epoch),
            });
            let reply = match refused {
                None => Reply::Row(volume),
                Some(refusal) => Reply::Refused {
                    code: "refused".to_owned(),
                    message: refusal.to_string(),
                    volume: Some(volume),
                },
            };
            drop(ask.reply.send(reply));
        }
    }
}

/// Devices that are only noted. The FUSE connection is a pipe.
#[derive(Debug, Default)]
struct Noted {
    calls: Mutex<Vec<String>>,
    found: Mutex<Option<Found>>,
    busy: Mutex<bool>,
    /// How often it cannot be seen what is there.
    unseen: Mutex<usize>,
    links: Links,
}

/// Tells of lost nbd connections.
#[derive(Debug)]
struct Links(broadcast::Sender<u32>);

impl Default for Links {
    fn default() -> Self {
        Self(broadcast::Sender::new(16))
    }
}

impl Noted {
    fn note(&self, call: &str) {
        self.calls.lock().unwrap().push(call.to_owned());
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

impl Devices for Noted {
    fn find(&self, _: VolumeId) -> Result<Found, DeviceError> {
        let mut unseen = self.unseen.lock().unwrap();
        if *unseen > 0 {
            *unseen -= 1;
            return Err(DeviceError::Failed("too many open files".to_owned()));
        }
        Ok(self.found.lock().unwrap().clone().unwrap_or(Found::Nothing))
    }

    fn mount(&self, _: VolumeId) -> Result<OwnedFd, DeviceError> {
        self.note("mount");
        *self.found.lock().unwrap() = Some(Found::Mount);
        let (reader, _) = std::io::pipe().unwrap();
        Ok(reader.into())
    }

    fn attach(&self, _: VolumeId, name: &str, read_only: bool) -> Result<PathBuf, DeviceError> {
        self.note("attach");
        *self.found.lock().unwrap() = Some(Found::Loop { read_only });
        Ok(Path::new("/dev/stor").join(name))
    }

    fn connect(&self, _: VolumeId, wish: &NbdWish) -> Result<(PathBuf, u32), DeviceError> {
        self.note("connect");
        *self.found.lock().unwrap() = Some(Found::Nbd {
            index: 7,
            read_only: wish.read_only,
        });
        Ok((Path::new("/dev/stor").join(&wish.name), 7))
    }

    fn links(&self) -> Option<broadcast::Receiver<u32>> {
        Some(self.links.0.subscribe())
    }

    fn take_down(&self, _: VolumeId, _: &str, force: bool) -> Result<(), DeviceError> {
        if *self.busy.lock().unwrap() {
            return Err(DeviceError::Busy("/dev/loop7: mounted on /data".to_owned()));
        }
        self.note(if force { "force down" } else { "down" });
        *self.found.lock().unwrap() = None;
        Ok(())
    }

    fn leftovers(&self) -> Result<Vec<VolumeId>, DeviceError> {
        Ok(Vec::new())
    }
}

struct World {
    // Dropped first: the engines of a failed test are found by their state directory.
    engines: Reaper,
    volumes: Volumes,
    volume: VolumeId,
    name: &'static str,
    transport: TransportKind,
    read_only: bool,
    /// The desired right, in place of that of the epoch.
    right: Option<SignedRight>,
    catalogue: Arc<Catalogue>,
    devices: Arc<Noted>,
    paths: Paths,
    answering: tokio::task::JoinHandle<()>,
    _state: StateDir,
    _directory: TempDir,
}

/// Ends the engines of a test whatever its end.
struct Reaper(Paths);

impl Drop for Reaper {
    fn drop(&mut self) {
        for (volume, process) in process::running(&self.0).unwrap_or_default() {
            process.kill(volume, &self.0).unwrap();
        }
    }
}

fn fake_engine() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let target = test.parent().unwrap().parent().unwrap();
    let engine = target.join("examples/fake-engine");
    assert!(engine.exists(), "build the examples of this crate first");
    engine
}

/// Stands for the right to an epoch; nobody here checks it.
fn right_to(epoch: Epoch) -> SignedRight {
    SignedRight::new(epoch.0.to_le_bytes().to_vec())
}

fn first_row(volume: VolumeId) -> VolumeRow {
    let member = |node: &str| Member {
        node: node.to_owned(),
        joined: Some(ConfigSeq(0)),
        state: MemberState::InSync,
    };
    VolumeRow {
        volume,
        size: 1 << 30,
        revision: 1,
        view: View {
            epoch: Epoch(1),
            config: ConfigSeq(0),
        },
        owner: Some(NODE.to_owned()),
        clean: false,
        clean_before: true,
        lineage: Lineage(Uuid::new_v4()),
        min_in_sync: 1,
        replicas: BTreeMap::from([(ReplicaId(1), member("s1")), (ReplicaId(2), member("s2"))]),
    }
}

impl World {
    fn new(name: &'static str, transport: TransportKind) -> Self {
        // Shown with a failed test; the second one finds it there.
        drop(
            tracing_subscriber::fmt()
                .with_test_writer()
                .with_max_level(tracing::Level::DEBUG)
                .try_init(),
        );
        let directory = TempDir::new().unwrap();
        let state = StateDir::open(&directory.path().join("state"), NODE).unwrap();
        let paths = state.paths().clone();
        let volume = VolumeId(Uuid::new_v4());
        let catalogue = Arc::new(Catalogue {
            row: Mutex::new(first_row(volume)),
            asked: Mutex::default(),
            away: Mutex::default(),
        });
        let devices = Arc::new(Noted::default());
        let (volumes, answering) = agent(name, &paths, &catalogue, &devices);
        Self {
            engines: Reaper(paths.clone()),
            volumes,
            volume,
            name,
            transport,
            read_only: false,
            right: None,
            catalogue,
            devices,
            paths,
            answering,
            _state: state,
            _directory: directory,
        }
    }

    /// The agent is killed and another one started.
    async fn restart_agent(&mut self) {
        self.answering.abort();
        let (volumes, answering) = agent(self.name, &self.paths, &self.catalogue, &self.devices);
        (self.volumes, self.answering) = (volumes, answering);
        tokio::task::yield_now().await;
    }

    fn desire(&mut self, row: VolumeRow, stop: bool) {
        let volume = Volume {
            name: self.name.to_owned(),
            right: self.right.clone().unwrap_or_else(|| right_to(row.view.epoch)),
            row,
            addresses: Vec::new(),
        };
        let engine = WantedEngine {
            snapshot: None,
            transport: self.transport,
            read_only: self.read_only,
            stop,
            volume,
        };
        let engines = BTreeMap::from([(self.volume, engine)]);
        self.volumes.set(&Desired {
            engines,
            ..Desired::default()
        });
    }

    fn serve(&mut self) {
        let row = self.catalogue.row();
        self.desire(row, false);
    }

    fn stop(&mut self) {
        let row = self.catalogue.row();
        self.desire(row, true);
    }

    fn status(&self) -> Option<EngineStatus> {
        self.volumes.status().into_iter().next()
    }

    async fn state(&self, state: EngineState, epoch: u64) -> EngineStatus {
        let reached = |status: &EngineStatus| status.state() == state && status.epoch == epoch;
        until(&format!("{state:?} in epoch {epoch}"), || {
            tracing::trace!(status = ?self.status());
            self.status().filter(reached)
        })
        .await
    }

    fn processes(&self) -> Vec<ProcessId> {
        let running = process::running(&self.engines.0).unwrap();
        running.into_iter().map(|(_, process)| process).collect()
    }

    fn process(&self) -> ProcessId {
        let processes = self.processes();
        assert_eq!(processes.len(), 1, "{processes:?}");
        processes[0]
    }

    async fn gone(&self) {
        until("no engine runs", || self.processes().is_empty().then_some(())).await;
    }

    fn kill(&self) {
        self.process().kill(self.volume, &self.paths).unwrap();
    }

    fn heard(&self) -> String {
        let heard = self.paths.engine_sockets(self.volume).join("heard");
        std::fs::read_to_string(heard).unwrap_or_default()
    }

    fn restart(expect: u64) -> Change {
        Change::Restart {
            owner: NODE.to_owned(),
            expect: Epoch(expect),
        }
    }

    fn detach(expect: u64, clean: bool) -> Change {
        Change::Detach {
            expect: Epoch(expect),
            clean,
        }
    }
}

fn agent(
    name: &str,
    paths: &Paths,
    catalogue: &Arc<Catalogue>,
    devices: &Arc<Noted>,
) -> (Volumes, tokio::task::JoinHandle<()>) {
    let (asker, asks) = ask::channel();
    let answering = tokio::spawn(Arc::clone(catalogue).answer(name.to_owned(), asks));
    let context = Context {
        node: NODE.to_owned(),
        paths: paths.clone(),
        engine_program: fake_engine(),
        asker,
        devices: Arc::<Noted>::clone(devices),
        changed: Arc::new(Notify::new()),
    };
    (Volumes::find(Arc::new(context)).unwrap(), answering)
}

#[tokio::test]
async fn an_engine_is_started_under_the_epoch_of_the_catalogue() {
    let mut world = World::new("db", TransportKind::Socket);
    world.serve();
    let status = world.state(EngineState::Serving, 1).await;
    let socket = world.paths.nbd_socket(world.volume);
    assert_eq!(
        status.nbd_uri,
        format!("nbd+unix:///db?socket={}", socket.display())
    );
    assert_eq!(status.device, "");
    assert_eq!(world.catalogue.asked(), []);
    assert_eq!(process::used_epoch(&world.paths, world.volume), Epoch(1));
    let note = std::fs::read_to_string(world.paths.engine(world.volume).join("pid")).unwrap();
    assert!(note.starts_with(&format!("{} ", world.process().pid())), "{note}");
}

#[tokio::test]
async fn a_dead_engine_is_followed_by_one_of_a_new_epoch() {
    let mut world = World::new("db", TransportKind::Socket);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    world.kill();
    world.state(EngineState::Serving, 2).await;
    assert_eq!(world.catalogue.asked(), [World::restart(1)]);
    world.kill();
    world.state(EngineState::Serving, 3).await;
    assert_eq!(world.catalogue.asked(), [World::restart(1), World::restart(2)]);
}

#[tokio::test]
async fn an_engine_has_the_right_to_its_epoch_and_each_renewal_of_it() {
    let mut world = World::new("db", TransportKind::Socket);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    let heard = |world: &World, right: &SignedRight| {
        let told = format!("\"right\":{}", serde_json::to_string(right).unwrap());
        world.heard().contains(&told).then_some(())
    };
    until("the right to epoch 1", || heard(&world, &right_to(Epoch(1)))).await;
    let process = world.process();
    let renewed = SignedRight::new(vec![99; 4]);
    world.right = Some(renewed.clone());
    world.serve();
    until("the renewed right", || heard(&world, &renewed)).await;
    assert_eq!(world.process(), process);
    // What is desired is of before: the right to the new epoch comes with the answer that grants it.
    world.kill();
    world.state(EngineState::Serving, 2).await;
    until("the right to epoch 2", || heard(&world, &right_to(Epoch(2)))).await;
    world.serve();
    until("a right that is newer than the answer's", || {
        let last = world.heard().lines().last().unwrap_or_default().to_owned();
        last.contains("\"right\":[99,").then_some(())
    })
    .await;
}

#[tokio::test]
async fn no_epoch_is_used_twice_while_controllers_are_away() {
    let mut world = World::new("db", TransportKind::Socket);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    *world.catalogue.away.lock().unwrap() = true;
    world.kill();
    let status = world.state(EngineState::Starting, 1).await;
    assert!(status.reason.contains("the engine died"), "{status:?}");
    world.gone().await;
    // A new agent knows no more than the disk does: the epoch was used.
    world.restart_agent().await;
    world.serve();
    world.state(EngineState::Starting, 1).await;
    assert_eq!(world.processes(), []);
    *world.catalogue.away.lock().unwrap() = false;
    world.state(EngineState::Serving, 2).await;
}

#[tokio::test]
async fn a_restarted_agent_goes_on_with_the_engine_it_finds() {
    let mut world = World::new("db", TransportKind::Socket);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    let process = world.process();
    world.restart_agent().await;
    assert_eq!(
        world.status(),
        None,
        "nothing may be said before it is known what is wanted"
    );
    world.serve();
    world.state(EngineState::Serving, 1).await;
    assert_eq!(world.process(), process);
    assert_eq!(world.catalogue.asked(), []);
}

#[tokio::test]
async fn an_engine_is_left_alone_until_it_is_known_what_is_wanted() {
    let mut world = World::new("proposer", TransportKind::Socket);
    *world.catalogue.away.lock().unwrap() = true;
    world.serve();
    world.state(EngineState::Serving, 1).await;
    let process = world.process();
    world.restart_agent().await;
    *world.catalogue.away.lock().unwrap() = false;
    // Even so, its proposals get their outcome: I/O may be waiting for them.
    until("the outcome is heard", || {
        world.heard().contains("outcome").then_some(())
    })
    .await;
    assert_eq!(world.process(), process);
    world.volumes.set(&Desired::default());
    world.gone().await;
}

#[tokio::test]
async fn a_proposal_is_answered_with_what_the_catalogue_said() {
    let mut world = World::new("proposer", TransportKind::Socket);
    world.serve();
    until("the outcome is heard", || {
        world.heard().contains("outcome").then_some(())
    })
    .await;
    let row = world.catalogue.row();
    assert_eq!(row.in_sync().collect::<Vec<_>>(), [ReplicaId(1)]);
    let outcome = format!(
        r#""id":1,"row":{},"refusal":null"#,
        serde_json::to_string(&row).unwrap()
    );
    assert!(world.heard().contains(&outcome), "{}", world.heard());
}

#[tokio::test]
async fn a_stopped_engine_gives_its_right_up_and_says_whether_it_was_clean() {
    let mut world = World::new("db", TransportKind::Socket);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    world.stop();
    until("the right is given up", || {
        world.catalogue.row().owner.is_none().then_some(())
    })
    .await;
    assert_eq!(world.catalogue.asked(), [World::detach(1, true)]);
    world.gone().await;
    world.volumes.set(&Desired::default());
    until("nothing is left", || {
        (!world.paths.engine(world.volume).exists()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_engine_that_was_killed_did_not_end_clean() {
    let mut world = World::new("db", TransportKind::Socket);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    *world.catalogue.away.lock().unwrap() = true;
    world.kill();
    world.gone().await;
    world.restart_agent().await;
    *world.catalogue.away.lock().unwrap() = false;
    world.stop();
    until("the right is given up", || {
        world.catalogue.row().owner.is_none().then_some(())
    })
    .await;
    assert_eq!(world.catalogue.asked().last(), Some(&World::detach(1, false)));
}

#[tokio::test]
async fn an_engine_of_an_older_epoch_makes_room() {
    let mut world = World::new("db", TransportKind::Socket);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    let old = world.process();
    {
        let mut row = world.catalogue.row.lock().unwrap();
        let attach = Change::Attach {
            owner: NODE.to_owned(),
            expect: Epoch(1),
            force: true,
        };
        *row = decide(&row, &attach).unwrap();
    }
    world.serve();
    world.state(EngineState::Serving, 2).await;
    assert!(!old.is_alive());
    assert_eq!(
        world.catalogue.asked(),
        [],
        "the epoch was new; none had to be asked for"
    );
}

#[tokio::test]
async fn an_engine_that_does_not_stop_is_killed() {
    let mut world = World::new("deaf", TransportKind::Socket);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    world.volumes.set(&Desired::default());
    world.gone().await;
    until("nothing is left", || {
        (!world.paths.engine(world.volume).exists()).then_some(())
    })
    .await;
    assert!(world.heard().is_empty());
}

#[tokio::test]
async fn the_volume_of_another_node_is_not_started() {
    let mut world = World::new("db", TransportKind::Socket);
    let mut row = world.catalogue.row();
    row.owner = Some("k2".to_owned());
    world.desire(row, false);
    let status = world.state(EngineState::Starting, 1).await;
    assert_eq!(status.reason, "the volume is attached on node k2");
    assert_eq!(world.processes(), []);
}

#[tokio::test]
async fn a_device_comes_after_its_engine_and_goes_before_it() {
    let mut world = World::new("db", TransportKind::Fuse);
    world.serve();
    let status = world.state(EngineState::Serving, 1).await;
    assert_eq!(status.device, "/dev/stor/db");
    assert_eq!(world.devices.calls(), ["mount", "attach"]);
    *world.devices.busy.lock().unwrap() = true;
    world.stop();
    let reason = until("the reason is told", || {
        world.status().filter(|status| !status.reason.is_empty())
    })
    .await;
    assert_eq!(reason.state(), EngineState::Stopping);
    assert_eq!(
        reason.reason,
        "the device is in use: /dev/loop7: mounted on /data"
    );
    assert!(world.process().is_alive());
    assert!(
        !world.heard().contains("stop"),
        "the engine was stopped under a device that is used"
    );
    *world.devices.busy.lock().unwrap() = false;
    until("the right is given up", || {
        world.catalogue.row().owner.is_none().then_some(())
    })
    .await;
    assert_eq!(world.devices.calls(), ["mount", "attach", "down"]);
    assert_eq!(world.catalogue.asked(), [World::detach(1, true)]);
}

#[tokio::test]
async fn the_device_survives_the_engine_and_the_agent() {
    let mut world = World::new("db", TransportKind::Fuse);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    world.kill();
    world.state(EngineState::Serving, 2).await;
    assert_eq!(world.devices.calls(), ["mount", "attach"]);
    world.restart_agent().await;
    world.serve();
    world.state(EngineState::Serving, 2).await;
    // The new agent has the connection from the engine: it is handed to the next one.
    world.kill();
    world.state(EngineState::Serving, 3).await;
    assert!(
        !world.devices.calls().iter().any(|call| call.contains("down")),
        "{:?}",
        world.devices.calls()
    );
    assert_eq!(
        world
            .devices
            .calls()
            .iter()
            .filter(|call| *call == "mount")
            .count(),
        1
    );
}

#[tokio::test]
async fn a_device_that_could_not_be_seen_at_first_is_found() {
    let mut world = World::new("db", TransportKind::Fuse);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    let process = world.process();
    *world.devices.unseen.lock().unwrap() = 2;
    world.restart_agent().await;
    world.serve();
    let status = world.state(EngineState::Serving, 1).await;
    assert_eq!(status.device, "/dev/stor/db");
    assert_eq!(world.process(), process);
    assert_eq!(world.devices.calls(), ["mount", "attach", "attach"]);
}

#[tokio::test]
async fn a_dead_connection_is_cleared_away_before_a_new_one() {
    let mut world = World::new("db", TransportKind::Fuse);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    // Agent and engine die together: nobody has the connection any more.
    *world.catalogue.away.lock().unwrap() = true;
    world.kill();
    world.gone().await;
    world.restart_agent().await;
    *world.catalogue.away.lock().unwrap() = false;
    world.serve();
    world.state(EngineState::Serving, 2).await;
    assert_eq!(
        world.devices.calls(),
        ["mount", "attach", "force down", "mount", "attach"]
    );
}

#[tokio::test]
async fn a_device_does_not_outlive_a_take_over_by_another_node() {
    let mut world = World::new("db", TransportKind::Fuse);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    // All of it while nobody here hears of it.
    for (owner, epoch) in [("k2", 1), (NODE, 2)] {
        let mut row = world.catalogue.row.lock().unwrap();
        let attach = Change::Attach {
            owner: owner.to_owned(),
            expect: Epoch(epoch),
            force: true,
        };
        *row = decide(&row, &attach).unwrap();
    }
    world.serve();
    world.state(EngineState::Serving, 3).await;
    assert_eq!(
        world.devices.calls(),
        ["mount", "attach", "force down", "mount", "attach"]
    );
}

#[tokio::test]
async fn a_refusal_that_is_out_of_date_does_not_hide_what_is_in_the_way() {
    let mut world = World::new("db", TransportKind::Fuse);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    let before = world.catalogue.row();
    *world.catalogue.away.lock().unwrap() = true;
    world.kill();
    world.gone().await;
    for (owner, epoch) in [("k2", 1), (NODE, 2)] {
        let mut row = world.catalogue.row.lock().unwrap();
        let attach = Change::Attach {
            owner: owner.to_owned(),
            expect: Epoch(epoch),
            force: true,
        };
        *row = decide(&row, &attach).unwrap();
    }
    *world.devices.busy.lock().unwrap() = true;
    world.restart_agent().await;
    *world.catalogue.away.lock().unwrap() = false;
    world.desire(before, false);
    let told = |status: &EngineStatus| status.epoch == 3 && status.reason.contains("mounted on /data");
    until("who uses the device", || world.status().filter(told)).await;
    assert_eq!(world.catalogue.asked(), [World::restart(1)]);
}

#[tokio::test]
async fn a_device_goes_when_its_node_gets_the_volume_in_another_way() {
    let mut world = World::new("db", TransportKind::Fuse);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    let attach = |world: &World, epoch| {
        let mut row = world.catalogue.row.lock().unwrap();
        let attach = Change::Attach {
            owner: NODE.to_owned(),
            expect: Epoch(epoch),
            force: true,
        };
        *row = decide(&row, &attach).unwrap();
    };
    world.read_only = true;
    attach(&world, 1);
    // The new agent sees at the device how it was made.
    world.restart_agent().await;
    world.serve();
    world.state(EngineState::Serving, 2).await;
    let first = ["mount", "attach", "force down", "mount", "attach"];
    assert_eq!(world.devices.calls(), first);
    world.transport = TransportKind::Socket;
    attach(&world, 2);
    world.serve();
    let status = world.state(EngineState::Serving, 3).await;
    assert_eq!(status.device, "");
    assert_eq!(world.devices.calls(), [&first[..], &["force down"]].concat());
}

#[tokio::test]
async fn an_engine_is_found_again_when_the_task_of_its_volume_has_ended() {
    let mut world = World::new("proposer", TransportKind::Socket);
    // The task ends when there is nobody to ask.
    world.answering.abort();
    world.serve();
    until("the task has ended", || world.volumes.any_ended().then_some(())).await;
    let process = world.process();
    world.serve();
    world.state(EngineState::Serving, 1).await;
    assert_eq!(world.process(), process);
}

#[tokio::test]
async fn the_stop_of_a_node_ends_engines_and_keeps_their_rights() {
    let mut world = World::new("db", TransportKind::Fuse);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    world.volumes.halt().await;
    assert_eq!(world.processes(), []);
    assert_eq!(world.devices.calls(), ["mount", "attach", "down"]);
    assert_eq!(world.catalogue.asked(), []);
    assert_eq!(world.catalogue.row().owner.as_deref(), Some(NODE));
    world.restart_agent().await;
    world.serve();
    world.state(EngineState::Serving, 2).await;
}

#[tokio::test]
async fn the_traces_of_a_volume_that_is_no_more_wanted_go() {
    let mut world = World::new("db", TransportKind::Socket);
    world.paths.make_engine(world.volume).unwrap();
    process::record_epoch(&world.paths, world.volume, Epoch(7)).unwrap();
    world.restart_agent().await;
    assert!(world.paths.engine(world.volume).exists());
    world.volumes.set(&Desired::default());
    until("nothing is left", || {
        (!world.paths.engine(world.volume).exists()).then_some(())
    })
    .await;
}
