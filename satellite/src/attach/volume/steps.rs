//! Carries out what the plan decides.

use stor_replication::catalogue::Change;
use tokio::time::Instant;

use super::super::device::Wish;
use super::super::plan::Step;
use super::{DeviceDone, VolumeTask};
use crate::agent::desired::TransportKind;

impl VolumeTask {
    pub(super) fn carry_out(&mut self, step: Step, now: Instant) {
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
                if self.transport() == Some(TransportKind::Ublk) {
                    let wish = self.wish(TransportKind::Ublk);
                    self.operate(now, move |devices| {
                        DeviceDone::Made(devices.make(volume, &wish), wish.read_only)
                    });
                    return;
                }
                self.operate(now, move |devices| DeviceDone::Mounted(devices.mount(volume)));
            }
            Step::Attach => self.attach(now),
            Step::Resize => {
                let (volume, size) = (self.volume, self.served_size());
                self.operate(now, move |devices| {
                    DeviceDone::Resized(devices.resize(volume, size), size)
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

    fn transport(&self) -> Option<TransportKind> {
        self.engine.as_ref().map(|engine| engine.transport)
    }

    /// What the device of a driver is to be.
    fn wish(&self, transport: TransportKind) -> Wish {
        Wish {
            transport,
            engine: self.running.as_ref().map_or(0, |running| running.process.pid()),
            name: self.name(),
            size: self.latest.as_ref().map_or(0, |volume| volume.row.size),
            read_only: self.engine.as_ref().is_some_and(|engine| engine.read_only),
        }
    }

    fn attach(&mut self, now: Instant) {
        let volume = self.volume;
        if let Some(transport @ (TransportKind::Nbd | TransportKind::Ublk)) = self.transport() {
            let wish = self.wish(transport);
            self.relink = false;
            self.operate(now, move |devices| {
                DeviceDone::Connected(devices.connect(volume, &wish), wish)
            });
            return;
        }
        let name = self.name();
        let read_only = self.engine.as_ref().is_some_and(|engine| engine.read_only);
        self.operate(now, move |devices| {
            DeviceDone::Attached(devices.attach(volume, &name, read_only), read_only)
        });
    }

    pub(super) fn name(&self) -> String {
        self.latest
            .as_ref()
            .map(|volume| volume.name.clone())
            .unwrap_or_default()
    }
}
