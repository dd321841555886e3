//! Volumes attached to this node: their engines and devices.
//!
//! Each has a task of its own, so that a hanging device or a slow engine holds up nobody else. What a
//! task does is decided by [`plan`], a pure function; the rest carries it out.
//!
//! Engines are no children in lifetime: they go on when the agent ends, and the next agent finds them by
//! their command lines and control sockets.

pub mod device;
pub mod kernel;
pub mod leftovers;
pub mod link;
mod nbd;
pub mod plan;
pub mod process;
pub mod transports;
mod ublk;
mod users;
mod volume;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use stor_proto::satellite as proto;
use stor_replication::ids::VolumeId;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::device::Devices;
use self::process::ProcessId;
use self::volume::VolumeTask;
use crate::agent::ask::Asker;
use crate::agent::desired::{Desired, WantedEngine};
use crate::agent::state_dir::Paths;

/// How long the stop of a node waits for devices that are used and engines that drain.
const HALT_DEADLINE: Duration = Duration::from_secs(15);

/// How often the halt looks whether it is done.
const HALT_LOOK: Duration = Duration::from_millis(20);

/// What the tasks of volumes share.
#[derive(Debug)]
pub struct Context {
    /// This node.
    pub node: String,
    /// Where things are.
    pub paths: Paths,
    /// The program that is run as an engine.
    pub engine_program: PathBuf,
    /// Where the catalogue is asked.
    pub asker: Asker,
    /// The kernel's side.
    pub devices: Arc<dyn Devices>,
    /// Rung when the status of any volume changed.
    pub changed: Arc<Notify>,
}

/// What is wanted of one volume here.
#[derive(Clone, PartialEq, Debug)]
enum Wanted {
    /// No controller has said yet, and the disk does not know.
    Unknown,
    /// An engine, or its orderly end.
    Engine(Box<WantedEngine>),
    /// Nothing.
    Nothing,
}

#[derive(Debug)]
struct Volume {
    wanted: watch::Sender<Wanted>,
    status: watch::Receiver<Option<proto::EngineStatus>>,
    task: JoinHandle<()>,
}

/// The volumes of this node.
#[derive(Debug)]
pub struct Volumes {
    context: Arc<Context>,
    halt: watch::Sender<bool>,
    tasks: BTreeMap<VolumeId, Volume>,
    /// Volumes that are wanted have no task yet: it could not be seen which engines run.
    unstarted: bool,
}

impl Volumes {
    /// Finds what an agent before left running, and goes on with it. Nothing is stopped or taken away
    /// before [`Volumes::set`] has said what is wanted.
    pub fn find(context: Arc<Context>) -> std::io::Result<Self> {
        let mut volumes = Self {
            halt: watch::Sender::new(false),
            tasks: BTreeMap::new(),
            unstarted: false,
            context,
        };
        for (volume, process) in process::running(&volumes.context.paths)? {
            volumes.start(volume, Wanted::Unknown, Some(process));
        }
        // Whatever cannot be looked at now is looked at again when the volume is wanted.
        for volume in leftovers::volumes(&volumes.context) {
            if !volumes.tasks.contains_key(&volume) {
                volumes.start(volume, Wanted::Unknown, None);
            }
        }
        Ok(volumes)
    }

    fn start(&mut self, volume: VolumeId, wanted: Wanted, adopted: Option<ProcessId>) {
        let wanted = watch::Sender::new(wanted);
        let (told, status) = watch::channel(None);
        let task = VolumeTask::new(
            Arc::clone(&self.context),
            volume,
            wanted.subscribe(),
            self.halt.subscribe(),
            told,
        );
        let task = tokio::spawn(task.run(adopted));
        self.tasks.insert(volume, Volume { wanted, status, task });
    }

    /// Says what is wanted. Returns at once; the tasks make it so.
    pub fn set(&mut self, desired: &Desired) {
        for (volume, known) in &self.tasks {
            let wanted = match desired.engines.get(volume) {
                Some(engine) => Wanted::Engine(Box::new(engine.clone())),
                None => Wanted::Nothing,
            };
            known.wanted.send_if_modified(|now| {
                let changed = *now != wanted;
                *now = wanted;
                changed
            });
        }
        // One that ended in order has nothing here; if the volume is wanted again, it begins anew.
        self.tasks.retain(|_, volume| !volume.task.is_finished());
        let new = |volume: &&VolumeId| !self.tasks.contains_key(volume);
        let new: Vec<_> = desired.engines.keys().filter(new).copied().collect();
        if new.is_empty() {
            self.unstarted = false;
            return;
        }
        // One that ended otherwise has left its engine running: a second one must never be started.
        let running: BTreeMap<_, _> = match process::running(&self.context.paths) {
            Ok(running) => running.into_iter().collect(),
            Err(error) => {
                if !std::mem::replace(&mut self.unstarted, true) {
                    tracing::error!(%error, "cannot see which engines run; no volume is started before");
                }
                return;
            }
        };
        self.unstarted = false;
        for volume in new {
            if let Some(engine) = desired.engines.get(&volume) {
                let wanted = Wanted::Engine(Box::new(engine.clone()));
                self.start(volume, wanted, running.get(&volume).copied());
            }
        }
    }

    /// The status of every volume.
    pub fn status(&self) -> Vec<proto::EngineStatus> {
        self.tasks
            .values()
            .filter_map(|volume| volume.status.borrow().clone())
            .collect()
    }

    /// Whether a task has ended or could not be started: [`Volumes::set`] should be called again.
    pub fn any_ended(&self) -> bool {
        self.unstarted || self.tasks.values().any(|volume| volume.task.is_finished())
    }

    /// Stops the node's engines in order: devices down, drained, flushed. The volumes stay attached. A
    /// device that is used keeps its engine: what uses it waits until the node is started again.
    /// Not cancel-safe: call it only at the end.
    pub async fn halt(&mut self) {
        self.halt.send_replace(true);
        let deadline = Instant::now() + HALT_DEADLINE;
        loop {
            match process::running(&self.context.paths) {
                Ok(running) if running.is_empty() => return,
                Ok(running) if Instant::now() >= deadline => {
                    for (volume, process) in running {
                        let reason = self.reason(volume);
                        tracing::warn!(%volume, %process, reason, "this engine is left running");
                    }
                    return;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot see which engines run");
                    return;
                }
            }
            tokio::time::sleep(HALT_LOOK).await;
        }
    }

    fn reason(&self, volume: VolumeId) -> String {
        let status = self
            .tasks
            .get(&volume)
            .and_then(|volume| volume.status.borrow().clone());
        status.map(|status| status.reason).unwrap_or_default()
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        for volume in self.tasks.values() {
            volume.task.abort();
        }
    }
}
