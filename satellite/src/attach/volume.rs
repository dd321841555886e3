//! The task of one volume on this node: carries out what [`super::plan`] decides, keeps the connection to
//! the engine and relays its proposals to the catalogue.
//!
//! One task owns everything about the volume. It never waits for the engine, a device or a controller:
//! each of them answers with an event.

mod device_work;
mod engine;
mod proposals;
mod report;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use stor_proto::satellite as proto;
use stor_replication::catalogue::Change;
use stor_replication::ids::{Epoch, VolumeId};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::device::{ALL_NBD, DeviceError, NbdWish};
use super::link::{Link, LinkEvent};
use super::plan::{self, Access, Device, Engine, Facts, Goal, Step};
use super::process::{self, ProcessId};
use super::{Context, Wanted};
use crate::agent::ask::Reply;
use crate::agent::desired::{TransportKind, WantedEngine};
use crate::agent::row::Volume;
use crate::control;

/// A device operation is called slow after this.
const DEVICE_IS_SLOW: Duration = Duration::from_secs(10);

/// News of links and processes.
const EVENTS: usize = 64;

/// The engine's process and what it said.
#[derive(Debug)]
struct Running {
    process: ProcessId,
    epoch: Epoch,
    since: Instant,
    served: bool,
    stopping: Option<Instant>,
    ended: bool,
    link: Option<Link>,
    /// The present link is connected: what the engine said last may still be in it.
    up: bool,
    /// The process has ended, so.
    exited: Option<String>,
    /// It said hello on the present link.
    greeted: bool,
    configured: Option<control::Config>,
    report: Option<control::Report>,
    watcher: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

#[derive(Debug)]
enum Event {
    Wanted,
    Mode,
    Link(LinkEvent),
    Ended {
        process: ProcessId,
        how: String,
    },
    Answered(Purpose, Reply),
    Device(DeviceDone),
    /// An nbd device lost a connection.
    LinkDead(u32),
    Dial,
    Time,
    AgentEnds,
}

/// A process that ended, and how.
type End = (ProcessId, String);

#[derive(Clone, Debug)]
enum Purpose {
    Ours(Change),
    Engine { id: u64, change: Change },
}

#[derive(Debug)]
enum DeviceDone {
    Mounted(Result<OwnedFd, DeviceError>),
    /// And whether it was made read-only.
    Attached(Result<PathBuf, DeviceError>, bool),
    /// With the number of the nbd device, and whether it was made read-only.
    Connected(Result<(PathBuf, u32), DeviceError>, bool),
    Down(Result<(), DeviceError>),
    /// To so many bytes.
    Resized(Result<(), DeviceError>, u64),
}

/// The task's state.
#[derive(Debug)]
pub(super) struct VolumeTask {
    context: Arc<Context>,
    volume: VolumeId,
    wanted: watch::Receiver<Wanted>,
    halt: watch::Receiver<bool>,
    status: watch::Sender<Option<proto::EngineStatus>>,
    /// The last wish that named an engine.
    engine: Option<WantedEngine>,
    latest: Option<Volume>,
    used: Epoch,
    running: Option<Running>,
    failures: u32,
    not_before: Instant,
    /// How the last engine ended, when it was not asked to.
    last_end: String,
    connection: Option<Arc<OwnedFd>>,
    connection_epoch: Option<Epoch>,
    device: Device,
    device_path: Option<PathBuf>,
    loop_read_only: Option<bool>,
    /// Bytes the loop device is known to have.
    device_size: u64,
    /// Number of the device, when it is one of nbd.
    nbd: Option<u32>,
    dead_links: Option<broadcast::Receiver<u32>>,
    /// A connection was lost while the device was being connected.
    relink: bool,
    device_error: String,
    device_not_before: Instant,
    operations: JoinSet<DeviceDone>,
    operation_since: Option<Instant>,
    questions: JoinSet<Option<(Purpose, Reply)>>,
    relayed: BTreeMap<u64, AbortHandle>,
    asking: bool,
    ask_not_before: Instant,
    refused: String,
    clean: Option<Epoch>,
    given_up: Option<Epoch>,
    links: u64,
    dial_at: Option<Instant>,
    link_events: (mpsc::Sender<LinkEvent>, mpsc::Receiver<LinkEvent>),
    ends: (mpsc::Sender<End>, mpsc::Receiver<End>),
}

impl VolumeTask {
    pub(super) fn new(
        context: Arc<Context>,
        volume: VolumeId,
        wanted: watch::Receiver<Wanted>,
        halt: watch::Receiver<bool>,
        status: watch::Sender<Option<proto::EngineStatus>>,
    ) -> Self {
        let now = Instant::now();
        let used = process::used_epoch(&context.paths, volume);
        let dead_links = context.devices.links();
        Self {
            context,
            volume,
            wanted,
            halt,
            status,
            engine: None,
            latest: None,
            used,
            running: None,
            failures: 0,
            not_before: now,
            last_end: String::new(),
            connection: None,
            connection_epoch: None,
            device: Device::Unknown,
            device_path: None,
            loop_read_only: None,
            device_size: 0,
            nbd: None,
            dead_links,
            relink: false,
            device_error: String::new(),
            device_not_before: now,
            operations: JoinSet::new(),
            operation_since: None,
            questions: JoinSet::new(),
            relayed: BTreeMap::new(),
            asking: false,
            ask_not_before: now,
            refused: String::new(),
            clean: None,
            given_up: None,
            links: 0,
            dial_at: None,
            link_events: mpsc::channel(EVENTS),
            ends: mpsc::channel(EVENTS),
        }
    }

    /// Runs until nothing of the volume is here. `adopted`: its engine, when one was found running.
    /// Not cancel-safe: only the end of the agent cancels it.
    pub(super) async fn run(mut self, adopted: Option<ProcessId>) {
        self.take_wanted();
        self.find_device();
        if let Some(process) = adopted {
            tracing::info!(volume = %self.volume, %process, "found the volume's engine running");
            let epoch = self.used;
            self.now_running(process, epoch, None);
        }
        loop {
            let until = loop {
                let now = Instant::now();
                self.sync_configuration();
                match plan::next(&self.facts(), now) {
                    Step::Rest(until) => break until,
                    Step::Forget => {
                        self.forget();
                        return;
                    }
                    step => self.carry_out(step, now),
                }
            };
            self.publish();
            match self.event(until).await {
                Event::AgentEnds => return,
                event => self.apply(event),
            }
        }
    }

    fn facts(&self) -> Facts {
        let engine = match &self.running {
            None => Engine::Absent {
                not_before: self.not_before,
            },
            Some(running) => Engine::Running {
                epoch: running.epoch,
                serving: running.served,
                stopping: running.stopping,
                ended: running.ended,
            },
        };
        Facts {
            node: self.context.node.clone(),
            goal: self.goal(),
            row: self.latest.as_ref().map(|volume| volume.row.clone()),
            used: self.used,
            engine,
            device: self.device.clone(),
            connection: self.connection.is_some(),
            nbd: self.nbd.is_some(),
            ready: self
                .running
                .as_ref()
                .and_then(|running| running.report.as_ref())
                .is_some_and(|report| {
                    matches!(report.state, control::State::Serving | control::State::Failed)
                }),
            connection_epoch: self.connection_epoch,
            loop_read_only: self.loop_read_only,
            device_behind: self.served_size() > self.device_size,
            device_not_before: self.device_not_before,
            device_busy: self.operation_since.is_some(),
            asking: self.asking,
            ask_not_before: self.ask_not_before,
            clean: self.clean,
            given_up: self.given_up,
        }
    }

    fn goal(&self) -> Goal {
        match &*self.wanted.borrow() {
            Wanted::Unknown => Goal::Unknown,
            Wanted::Nothing => Goal::Nothing,
            Wanted::Engine(engine) if engine.stop => Goal::Stop(access(engine)),
            Wanted::Engine(_) if *self.halt.borrow() => Goal::Halt,
            Wanted::Engine(engine) => Goal::Serve(access(engine)),
        }
    }

    async fn event(&mut self, until: Option<Instant>) -> Event {
        let slow = self
            .operation_since
            .map(|since| since + DEVICE_IS_SLOW)
            .filter(|at| *at > Instant::now());
        let wake = [until, slow].into_iter().flatten().min();
        tokio::select! {
            changed = self.wanted.changed() => if changed.is_ok() { Event::Wanted } else { Event::AgentEnds },
            changed = self.halt.changed() => if changed.is_ok() { Event::Mode } else { Event::AgentEnds },
            Some(event) = self.link_events.1.recv() => Event::Link(event),
            Some((process, how)) = self.ends.1.recv() => Event::Ended { process, how },
            Some(answered) = self.questions.join_next() => match answered {
                Ok(Some((purpose, reply))) => Event::Answered(purpose, reply),
                Ok(None) => Event::AgentEnds,
                // A question withdrawn.
                Err(_) => Event::Time,
            },
            Some(done) = self.operations.join_next() => match done {
                Ok(done) => Event::Device(done),
                Err(error) => Event::Device(DeviceDone::Down(Err(DeviceError::Failed(error.to_string())))),
            },
            index = lost(&mut self.dead_links) => Event::LinkDead(index),
            () = at(self.dial_at) => Event::Dial,
            () = at(wake) => Event::Time,
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Wanted => self.take_wanted(),
            Event::Mode | Event::Time | Event::AgentEnds => {}
            Event::Link(event) => self.link_event(event),
            Event::Ended { process, how } => self.engine_exited(process, how),
            Event::Answered(purpose, reply) => self.answered(purpose, reply),
            Event::Device(done) => self.device_done(done),
            Event::LinkDead(index) => self.link_dead(index),
            Event::Dial => self.dial(),
        }
        self.settle_end();
    }

    fn take_wanted(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        let Wanted::Engine(engine) = wanted else {
            return;
        };
        let mut volume = engine.volume.clone();
        if let Some(latest) = &self.latest
            && rank(latest) > rank(&volume)
        {
            // The row is from before an answer we have had; the addresses are newer all the same, and the right
            // is if it is to the same epoch.
            if latest.row.view.epoch > volume.row.view.epoch {
                volume.right = latest.right.clone();
            }
            volume.row = latest.row.clone();
        }
        self.take_row(volume);
        self.engine = Some(*engine);
    }

    fn take_row(&mut self, mut volume: Volume) {
        if volume.name.is_empty()
            && let Some(latest) = &self.latest
        {
            // An answer about a volume that is being deleted has none.
            volume.name.clone_from(&latest.name);
        }
        let epoch = volume.row.view.epoch;
        if self
            .latest
            .as_ref()
            .is_none_or(|latest| latest.row.view.epoch < epoch)
        {
            self.ask_not_before = Instant::now();
            self.refused.clear();
        }
        self.latest = Some(volume);
    }

    fn carry_out(&mut self, step: Step, now: Instant) {
        tracing::debug!(volume = %self.volume, ?step, "next");
        match step {
            Step::Rest(_) | Step::Forget => {}
            Step::AskRestart { expect } => {
                let owner = self.context.node.clone();
                self.ask_ours(Change::Restart { owner, expect });
            }
            Step::AskDetach { expect, clean } => self.ask_ours(Change::Detach { expect, clean }),
            Step::Find => self.find_device(),
            Step::Mount => {
                let volume = self.volume;
                self.operate(now, move |devices| DeviceDone::Mounted(devices.mount(volume)));
            }
            Step::Attach => {
                let (volume, name) = (self.volume, self.name());
                let read_only = self.engine.as_ref().is_some_and(|engine| engine.read_only);
                if self.is_by_nbd() {
                    self.connect_nbd(now, name, read_only);
                    return;
                }
                self.operate(now, move |devices| {
                    DeviceDone::Attached(devices.attach(volume, &name, read_only), read_only)
                });
            }
            Step::Resize => {
                let (volume, size) = (self.volume, self.served_size());
                self.operate(now, move |devices| {
                    DeviceDone::Resized(devices.resize(volume), size)
                });
            }
            Step::TakeDown { force } => {
                let (volume, name) = (self.volume, self.name());
                self.operate(now, move |devices| {
                    DeviceDone::Down(devices.take_down(volume, &name, force))
                });
            }
            Step::DropConnection => {
                self.connection = None;
                // Nobody is to be sent to what is dead now.
                self.device_path = None;
            }
            Step::Spawn { epoch } => self.spawn(epoch, now),
            Step::StopEngine => self.stop_engine(now),
            Step::Kill => self.kill(now),
        }
    }

    fn is_by_nbd(&self) -> bool {
        let wanted = self.engine.as_ref().map(|engine| engine.transport);
        wanted == Some(TransportKind::Nbd)
    }

    fn connect_nbd(&mut self, now: Instant, name: String, read_only: bool) {
        let size = self.latest.as_ref().map_or(0, |volume| volume.row.size);
        let (volume, wish) = (
            self.volume,
            NbdWish {
                name,
                size,
                read_only,
            },
        );
        self.relink = false;
        self.operate(now, move |devices| {
            DeviceDone::Connected(devices.connect(volume, &wish), read_only)
        });
    }

    /// Bytes the engine serves, as it said last.
    fn served_size(&self) -> u64 {
        let report = self.running.as_ref().and_then(|running| running.report.as_ref());
        report.map_or(0, |report| report.size)
    }

    fn name(&self) -> String {
        self.latest
            .as_ref()
            .map(|volume| volume.name.clone())
            .unwrap_or_default()
    }

    fn publish(&self) {
        let status = report::status(self);
        let changed = self.status.send_if_modified(|known| {
            let changed = *known != status;
            *known = status;
            changed
        });
        if changed {
            self.context.changed.notify_one();
        }
    }

    fn forget(&mut self) {
        if let Err(error) = self.context.paths.remove_engine(self.volume) {
            tracing::warn!(volume = %self.volume, %error, "what the engine left could not be removed");
        }
        self.status.send_replace(None);
        self.context.changed.notify_one();
    }
}

fn access(engine: &WantedEngine) -> Access {
    Access {
        transport: engine.transport,
        read_only: engine.read_only,
    }
}

fn rank(volume: &Volume) -> (Epoch, u64) {
    (volume.row.view.epoch, volume.row.revision)
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// The next nbd device that loses a connection. Cancel-safe.
async fn lost(links: &mut Option<broadcast::Receiver<u32>>) -> u32 {
    let Some(receiver) = links else {
        return std::future::pending().await;
    };
    match receiver.recv().await {
        Ok(index) => index,
        Err(broadcast::error::RecvError::Lagged(_)) => ALL_NBD,
        Err(broadcast::error::RecvError::Closed) => {
            *links = None;
            std::future::pending().await
        }
    }
}
