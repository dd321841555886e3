//! What the plan is asked with: the task's knowledge, put together.

use super::super::Wanted;
use super::super::plan::{Access, Engine, Facts, Goal};
use super::VolumeTask;
use crate::agent::desired::WantedEngine;
use crate::control;

impl VolumeTask {
    pub(super) fn facts(&self) -> Facts {
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
            waits: self.driver.map(|(transport, _)| transport),
            free: self.free,
            ready: self
                .running
                .as_ref()
                .and_then(|running| running.report.as_ref())
                .is_some_and(|report| {
                    matches!(report.state, control::State::Serving | control::State::Failed)
                }),
            connection_epoch: self.connection_epoch,
            loop_read_only: self.loop_read_only,
            device_behind: self.served_size() > self.device_size && self.fixed.is_empty(),
            device_not_before: self.device_not_before,
            device_busy: self.operation_since.is_some(),
            asking: self.asking,
            ask_not_before: self.ask_not_before,
            clean: self.clean,
            given_up: self.given_up,
        }
    }

    pub(super) fn goal(&self) -> Goal {
        match &*self.wanted.borrow() {
            Wanted::Unknown => Goal::Unknown,
            Wanted::Nothing => Goal::Nothing,
            Wanted::Engine(engine) if engine.stop => Goal::Stop(access(engine)),
            Wanted::Engine(_) if *self.halt.borrow() => Goal::Halt,
            Wanted::Engine(engine) => Goal::Serve(access(engine)),
        }
    }

    /// Bytes the engine serves, as it said last.
    pub(super) fn served_size(&self) -> u64 {
        let report = self.running.as_ref().and_then(|running| running.report.as_ref());
        report.map_or(0, |report| report.size)
    }
}

fn access(engine: &WantedEngine) -> Access {
    Access {
        transport: engine.transport,
        read_only: engine.read_only,
    }
}
