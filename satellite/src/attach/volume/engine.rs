//! The engine of a volume: its process and the link to it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use stor_replication::ids::Epoch;
use tokio::process::Child;
use tokio::time::Instant;

use super::super::link::{Link, LinkEvent, News};
use super::super::plan::Goal;
use super::super::process::{self, ProcessId};
use super::{Running, VolumeTask};
use crate::agent::desired::TransportKind;
use crate::control::{self, FromEngine, State, ToEngine, Transport};

/// Back-off after an engine ended: the first pause and the longest.
const ENGINE_BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// An engine that lived this long was not part of a series of failures.
const ENGINE_IS_WELL: Duration = Duration::from_secs(30);

/// Between attempts of a link whose other end is a stranger.
pub(super) const STRANGER: Duration = Duration::from_secs(1);

/// How often a process that is no child of ours is looked at.
const LOOK: Duration = Duration::from_millis(50);

impl VolumeTask {
    pub(super) fn spawn(&mut self, epoch: Epoch, now: Instant) {
        // Before anything can go wrong: an epoch is for one attempt, whatever became of it.
        self.used = epoch;
        self.clean = None;
        self.free = false;
        if self.connection.is_some() || self.driver.is_some() {
            self.connection_epoch = Some(epoch);
        }
        let context = Arc::clone(&self.context);
        let spawned = process::spawn(
            &context.engine_program,
            &context.paths,
            self.volume,
            epoch,
            self.connection.as_deref(),
        );
        match spawned {
            Ok((process, child)) => {
                tracing::info!(volume = %self.volume, %epoch, %process, "engine started");
                self.now_running(process, epoch, Some(child));
            }
            Err(error) => {
                self.last_end = error.to_string();
                tracing::error!(volume = %self.volume, %epoch, %error, "the engine could not be started");
                self.back_off(now);
            }
        }
    }

    pub(super) fn now_running(&mut self, process: ProcessId, epoch: Epoch, child: Option<Child>) {
        let ends = self.ends.0.clone();
        let watcher = tokio::spawn(async move {
            let how = how_it_ended(process, child).await;
            // The task is gone when this fails, and with it the interest.
            drop(ends.send((process, how)).await);
        })
        .abort_handle();
        self.running = Some(Running {
            process,
            epoch,
            since: Instant::now(),
            served: false,
            stopping: None,
            ended: false,
            link: None,
            up: false,
            exited: None,
            greeted: false,
            configured: None,
            report: None,
            watcher,
        });
        self.dial();
    }

    pub(super) fn dial(&mut self) {
        self.dial_at = None;
        let Some(running) = &mut self.running else {
            return;
        };
        self.links += 1;
        let socket = self.context.paths.control_socket(self.volume);
        running.up = false;
        running.greeted = false;
        running.configured = None;
        running.link = Some(Link::start(self.links, socket, self.link_events.0.clone()));
    }

    pub(super) fn lose_link(&mut self, again: Duration) {
        for (_, relayed) in std::mem::take(&mut self.relayed) {
            relayed.abort();
        }
        if let Some(running) = &mut self.running {
            running.link = None;
            running.up = false;
            running.greeted = false;
            running.configured = None;
            self.dial_at = Some(Instant::now() + again);
        }
    }

    pub(super) fn link_event(&mut self, event: LinkEvent) {
        let Some(running) = &mut self.running else {
            return;
        };
        if running.link.as_ref().map(Link::number) != Some(event.link) {
            return;
        }
        match event.news {
            News::Up { pid } if pid != 0 && pid != running.process.pid() => {
                tracing::warn!(volume = %self.volume, pid, "a stranger listens on the engine's control socket");
                self.lose_link(STRANGER);
            }
            News::Up { .. } => running.up = true,
            News::Message(message, descriptor) => self.heard(*message, descriptor),
            News::Lost(error) => {
                tracing::debug!(volume = %self.volume, %error, "link to the engine lost");
                self.lose_link(LOOK);
            }
        }
    }

    pub(super) fn heard(&mut self, message: FromEngine, descriptor: Option<OwnedFd>) {
        let Some(running) = &mut self.running else {
            return;
        };
        match message {
            FromEngine::Hello { volume, epoch } => {
                if volume != self.volume {
                    tracing::error!(volume = %self.volume, other = %volume, "the engine is of another volume");
                    self.lose_link(STRANGER);
                    return;
                }
                if let Some(epoch) = epoch {
                    running.epoch = epoch;
                    self.used = self.used.max(epoch);
                }
                running.greeted = true;
                if self.connection.is_none()
                    && let Some(descriptor) = descriptor
                {
                    self.connection = Some(Arc::new(descriptor));
                    self.connection_epoch = Some(running.epoch);
                }
                if running.stopping.is_some() {
                    self.send(&ToEngine::Stop);
                }
            }
            FromEngine::Report(report) => {
                running.served |= report.state == State::Serving;
                running.report = Some(report);
            }
            FromEngine::Propose { id, change } => self.relay(id, change),
            FromEngine::Stopped { clean } => {
                let epoch = running.epoch;
                tracing::info!(volume = %self.volume, %epoch, clean, "the engine says that it ends");
                running.ended = true;
                running.stopping.get_or_insert_with(Instant::now);
                self.clean = clean.then_some(epoch);
            }
        }
    }

    pub(super) fn send(&mut self, message: &ToEngine) {
        let Some(running) = &self.running else {
            return;
        };
        if let Some(link) = &running.link
            && running.greeted
            && !link.send(message)
        {
            tracing::warn!(volume = %self.volume, "the engine does not read what it is told");
            self.lose_link(STRANGER);
        }
    }

    /// Tells the engine what it has to know when that has changed.
    pub(super) fn sync_configuration(&mut self) {
        let (Some(running), Some(volume), Some(engine)) = (&self.running, &self.latest, &self.engine) else {
            return;
        };
        let goal = self.goal();
        let of_its_epoch = volume.row.view.epoch == running.epoch;
        if matches!(goal, Goal::Unknown | Goal::Nothing) || !of_its_epoch || !running.greeted {
            return;
        }
        let transport = match engine.transport {
            TransportKind::Fuse => Transport::Fuse,
            TransportKind::Ublk => match self.driver {
                Some((TransportKind::Ublk, device)) => Transport::Ublk {
                    device,
                    mark: super::super::ublk::mark(&self.context.paths, self.volume),
                },
                // It is about to be ended.
                _ => return,
            },
            TransportKind::Nbd => Transport::Nbd {
                path: self.context.paths.nbd_socket(self.volume),
            },
            TransportKind::None => Transport::None,
            TransportKind::Socket => Transport::Socket {
                path: self.context.paths.nbd_socket(self.volume),
            },
        };
        let config = control::Config {
            name: volume.name.clone(),
            epoch: running.epoch,
            row: volume.row.clone(),
            addresses: volume.addresses.clone(),
            transport,
            read_only: engine.read_only,
            snapshot: engine.snapshot,
            scrub: engine.scrub,
            right: volume.right.clone(),
        };
        if running.configured.as_ref() == Some(&config) {
            return;
        }
        self.send(&ToEngine::Configure(config.clone()));
        if let Some(running) = &mut self.running {
            running.configured = Some(config);
        }
    }

    pub(super) fn stop_engine(&mut self, now: Instant) {
        if let Some(running) = &mut self.running {
            tracing::info!(volume = %self.volume, epoch = %running.epoch, "stopping the engine");
            running.stopping = Some(now);
        }
        self.send(&ToEngine::Stop);
    }

    pub(super) fn kill(&mut self, now: Instant) {
        let Some(running) = &mut self.running else {
            return;
        };
        let process = running.process;
        tracing::warn!(volume = %self.volume, %process, "the engine did not end in time and is killed");
        // Again after the same time: the process may be stuck in the kernel.
        running.stopping = Some(now);
        if let Err(error) = process.kill(self.volume, &self.context.paths) {
            tracing::error!(volume = %self.volume, %process, %error, "the engine cannot be killed");
        }
    }

    pub(super) fn engine_exited(&mut self, process: ProcessId, how: String) {
        if let Some(running) = self.running.as_mut().filter(|running| running.process == process) {
            running.exited = Some(how);
        }
    }

    /// Draws the conclusions from the end of the process, once all that it said before is heard: whether it
    /// ended clean is the last thing an engine says.
    pub(super) fn settle_end(&mut self) {
        let ended = |running: &mut Running| running.exited.is_some() && !running.up;
        if let Some(mut running) = self.running.take_if(ended)
            && let Some(how) = running.exited.take()
        {
            self.engine_ended(running, &how);
        }
    }

    fn engine_ended(&mut self, running: Running, how: &str) {
        let epoch = running.epoch;
        let asked = running.stopping.is_some();
        if running.since.elapsed() >= ENGINE_IS_WELL {
            self.failures = 0;
        }
        drop(running);
        self.unlinked();
        self.lose_link(Duration::ZERO);
        self.used = self.used.max(epoch);
        if asked {
            tracing::info!(volume = %self.volume, %epoch, how, "the engine has ended");
            self.last_end.clear();
        } else {
            tracing::warn!(volume = %self.volume, %epoch, how, "the engine has died");
            process::note_in_log(
                &self.context.paths,
                self.volume,
                &format!("the engine of epoch {epoch} died: {how}"),
            );
            self.last_end = format!("the engine died ({how})");
            self.back_off(Instant::now());
        }
    }

    pub(super) fn back_off(&mut self, now: Instant) {
        let (first, longest) = ENGINE_BACK_OFF;
        self.not_before = now + first.saturating_mul(1 << self.failures.min(10)).min(longest);
        self.failures = self.failures.saturating_add(1);
    }
}

async fn how_it_ended(process: ProcessId, child: Option<Child>) -> String {
    if let Some(mut child) = child {
        return match child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
    }
    while process.is_alive() {
        tokio::time::sleep(LOOK).await;
    }
    "how is not known".to_owned()
}
