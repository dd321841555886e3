//! The task of one volume on this node: carries out what [`super::plan`] decides, keeps the connection to
//! the engine and relays its proposals to the catalogue.
//!
//! One task owns everything about the volume. It never waits for the engine, a device or a controller:
//! each of them answers with an event.

mod device_work;
mod engine;
mod facts;
mod proposals;
mod report;
mod steps;

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

use super::device::{ALL_NBD, Connected, DeviceError, Wish};
use super::link::{Link, LinkEvent};
use super::plan::{self, Device, Step};
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
    /// The number of a ublk device, and whether it is new; and whether it was made read-only.
    Made(Result<(u32, bool), DeviceError>, bool),
    /// An nbd or ublk device, and what it was to be.
    Connected(Result<Connected, DeviceError>, Wish),
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
    /// Bytes the device is known to have.
    device_size: u64,
    /// Why the device cannot be resized, once that was tried.
    fixed: String,
    /// Driver and number of the device, when it is one of nbd or ublk.
    driver: Option<(TransportKind, u32)>,
    /// See [`plan::Facts::free`].
    free: bool,
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
            fixed: String::new(),
            driver: None,
            free: false,
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
