//! The agent and its engines: real processes (`fake-engine`), a catalogue in memory, devices that are noted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod devices;
mod engines;
mod nbd;
mod ublk;

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
use stor_satellite::attach::device::{Connected, DeviceError, Devices, Found, Wish};
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
    /// Another node takes the volume by force, and this one takes it back the same way.
    fn taken_over_and_back(&self) {
        self.taken("k2", 1);
        self.taken(NODE, 2);
    }

    /// A node takes the volume by force from the engine of `epoch`.
    fn taken(&self, owner: &str, epoch: u64) {
        let mut row = self.row.lock().unwrap();
        let attach = Change::Attach {
            owner: owner.to_owned(),
            expect: Epoch(epoch),
            force: true,
        };
        *row = decide(&row, &attach).unwrap();
    }

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
    /// The device cannot be resized.
    fixed: Mutex<bool>,
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
    fn resize(&self, _: VolumeId, size: u64) -> Result<(), DeviceError> {
        self.note(&format!("resize to {size}"));
        if *self.fixed.lock().unwrap() {
            return Err(DeviceError::Fixed("it keeps its size".to_owned()));
        }
        Ok(())
    }

    fn make(&self, _: VolumeId, wish: &Wish) -> Result<(u32, bool), DeviceError> {
        let new = self.found.lock().unwrap().is_none();
        self.note(if new { "make" } else { "recover" });
        *self.found.lock().unwrap() = Some(Found::Ublk {
            index: 7,
            read_only: wish.read_only,
        });
        Ok((7, new))
    }

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

    fn connect(&self, _: VolumeId, wish: &Wish) -> Result<Connected, DeviceError> {
        let (index, read_only) = (7, wish.read_only);
        let found = if wish.transport == TransportKind::Ublk {
            self.note("start");
            Found::Ublk { index, read_only }
        } else {
            self.note("connect");
            Found::Nbd { index, read_only }
        };
        *self.found.lock().unwrap() = Some(found);
        Ok(Connected {
            path: Path::new("/dev/stor").join(&wish.name),
            index,
            size: wish.size,
        })
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
        leaving: false,
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
            scrub: None,
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
