//! What to do next for one volume: a pure function of what is wanted and what is there.
//!
//! It is asked after every event, so that there is no state to be in: a crash of the agent at any instant
//! is answered by looking at what is there and asking again.
//!
//! ```text
//! serve:  new epoch if the present one was used → remove a device that does not fit → mount (fuse, ublk) → spawn
//!         → (engine serves) → attach; an nbd device again whenever it has lost a connection
//! stop:   take the device down → stop the engine → give the right up → rest
//! none:   stop the engine, at once → drop the FUSE connection → take the device down → forget
//! halt:   take the device down → stop the engine → rest (the right is kept)
//! ```
//!
//! A device outlives its engine only from one epoch to the very next: in between, nobody can have written
//! to the volume. What waits in an older one, and the file system mounted on it, is of a volume that may
//! have changed since, and must never reach it.

use std::time::Duration;

use stor_replication::catalogue::VolumeRow;
use stor_replication::ids::Epoch;
use tokio::time::Instant;

use crate::agent::desired::TransportKind;

/// For an engine that has no right any more: what it still holds is not acknowledged and never will be.
pub const SHORT_GRACE: Duration = Duration::from_secs(2);

/// For an engine that is to drain and flush. One that cannot (its replicas are away) is ended then: what
/// it had acknowledged is on the replicas, what it had not is the writer's to repeat.
pub const LONG_GRACE: Duration = Duration::from_mins(1);

/// How the volume is to be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// By what.
    pub transport: TransportKind,
    /// Writes are refused.
    pub read_only: bool,
}

/// What should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Goal {
    /// Not known yet: change nothing.
    Unknown,
    /// Run.
    Serve(Access),
    /// End in order and give the right up.
    Stop(Access),
    /// Nothing of it should be here.
    Nothing,
    /// The node stops: end in order, keep the right.
    Halt,
}

/// The engine process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Engine {
    /// There is none; the next one may be started at this time.
    Absent {
        /// Back-off.
        not_before: Instant,
    },
    /// There is one.
    Running {
        /// What it was started for.
        epoch: Epoch,
        /// It has said that it serves.
        serving: bool,
        /// It was told to stop, then; or said that it ends.
        stopping: Option<Instant>,
        /// It said that it ends: nothing is left to wait for.
        ended: bool,
    },
}

/// The device, as far as the transport has one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Device {
    /// It could not be seen what is there.
    Unknown,
    /// Nothing is there.
    None,
    /// The FUSE mount; an nbd device that is not, or not wholly, connected to the present engine; a ublk device whose
    /// requests do not go to it yet.
    Mounted,
    /// The loop device, too; an nbd or ublk device that is connected.
    Attached,
}

/// All the plan depends on.
#[derive(Clone, Debug)]
pub struct Facts {
    /// This node.
    pub node: String,
    /// What should be.
    pub goal: Goal,
    /// The catalogue's row, the latest seen.
    pub row: Option<VolumeRow>,
    /// Last epoch an engine was started under here.
    pub used: Epoch,
    /// The process.
    pub engine: Engine,
    /// The device.
    pub device: Device,
    /// The agent holds the FUSE connection.
    pub connection: bool,
    /// The device is one of this driver: it waits in the kernel for an engine.
    pub waits: Option<TransportKind>,
    /// The ublk device can be taken by a new engine: none has been started since it was seen to.
    pub free: bool,
    /// The engine answers I/O at this moment, be it with errors, and is not only known to have begun.
    pub ready: bool,
    /// Last epoch whose engine had that connection or that nbd or ublk device, if any had.
    pub connection_epoch: Option<Epoch>,
    /// How the device was made, if there is one: whether writes are refused.
    pub loop_read_only: Option<bool>,
    /// The engine serves more bytes than the device is known to have, which can have them.
    pub device_behind: bool,
    /// Nothing is done with the device before: back-off after an error.
    pub device_not_before: Instant,
    /// Something is being done with the device; not in between.
    pub device_busy: bool,
    /// A question of ours is open.
    pub asking: bool,
    /// Nothing is asked before: back-off after a refusal.
    pub ask_not_before: Instant,
    /// The engine of this epoch said that it ended clean.
    pub clean: Option<Epoch>,
    /// The right of this epoch was given up, or had been taken.
    pub given_up: Option<Epoch>,
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Nothing, until something happens or the time has come.
    Rest(Option<Instant>),
    /// Ask for a new epoch.
    AskRestart {
        /// The one that was used.
        expect: Epoch,
    },
    /// Give the right up.
    AskDetach {
        /// Of this epoch.
        expect: Epoch,
        /// Its engine said so.
        clean: bool,
    },
    /// Look what is there of the device.
    Find,
    /// Mount FUSE; or make the ublk device, or have it wait for a new engine.
    Mount,
    /// Start the engine.
    Spawn {
        /// Under this epoch.
        epoch: Epoch,
    },
    /// Tell the engine to stop.
    StopEngine,
    /// End the engine.
    Kill,
    /// Put the loop device on; or connect the nbd or ublk device.
    Attach,
    /// Have the device take the volume's new size over.
    Resize,
    /// Close the FUSE connection: what waits in the kernel fails.
    DropConnection,
    /// Take the device away.
    TakeDown {
        /// Even when it is used.
        force: bool,
    },
    /// Nothing is left: remove the traces.
    Forget,
}

/// Decides.
pub fn next(facts: &Facts, now: Instant) -> Step {
    match facts.goal {
        Goal::Unknown => Step::Rest(None),
        Goal::Serve(access) => serve(facts, access, now),
        Goal::Stop(access) => stop(facts, access, now),
        Goal::Nothing => clear(facts, now),
        Goal::Halt => halt(facts, now),
    }
}

fn serve(facts: &Facts, access: Access, now: Instant) -> Step {
    let Some(row) = &facts.row else {
        return Step::Rest(None);
    };
    let fuse = access.transport == TransportKind::Fuse;
    let ublk = access.transport == TransportKind::Ublk;
    match &facts.engine {
        Engine::Running {
            stopping: Some(_), ..
        } => end(facts, SHORT_GRACE, now),
        // Its right has ended: somebody gave the volume, and be it to this node, a later epoch.
        Engine::Running { epoch, .. } if *epoch < row.view.epoch => end(facts, SHORT_GRACE, now),
        _ if facts.device == Device::Unknown => with_device(facts, Step::Find, now),
        // Its mount or device is gone. It has no way to a new one.
        Engine::Running { .. } if (fuse || ublk) && facts.device == Device::None && !facts.device_busy => {
            end(facts, SHORT_GRACE, now)
        }
        Engine::Running { serving: true, .. } if fuse && facts.device == Device::Mounted => {
            with_device(facts, Step::Attach, now)
        }
        Engine::Running { serving: true, .. }
            if fuse && facts.device == Device::Attached && facts.device_behind =>
        {
            with_device(facts, Step::Resize, now)
        }
        Engine::Running { .. } if ublk || access.transport == TransportKind::Nbd => connect(facts, now),
        Engine::Running { .. } => Step::Rest(None),
        Engine::Absent { not_before } => {
            if row.owner.as_ref() != Some(&facts.node) {
                return Step::Rest(None);
            }
            if row.view.epoch <= facts.used {
                let expect = row.view.epoch;
                return ask(facts, Step::AskRestart { expect }, now);
            }
            if !fits(facts, access, row) {
                return remove(facts, now);
            }
            if fuse && facts.device == Device::None || ublk && !facts.free {
                return with_device(facts, Step::Mount, now);
            }
            if now < *not_before {
                return Step::Rest(Some(*not_before));
            }
            Step::Spawn {
                epoch: row.view.epoch,
            }
        }
    }
}

/// Whether an engine of the row's epoch may go on with what is there.
fn fits(facts: &Facts, access: Access, row: &VolumeRow) -> bool {
    let kind = facts.waits.unwrap_or(TransportKind::Fuse);
    let attached_so =
        access.transport == kind && facts.loop_read_only.is_none_or(|is| is == access.read_only);
    match (&facts.device, facts.connection || facts.waits.is_some()) {
        (Device::None, false) => true,
        // Either without the other is dead; nothing revives it.
        (Device::None, true) | (_, false) => false,
        // It was attached in another way since: no engine would answer its I/O, or not all of it.
        (_, true) if !attached_so => false,
        // With an epoch in between, somebody else may have written.
        (_, true) => facts
            .connection_epoch
            .is_none_or(|last| last.0.checked_add(1) == Some(row.view.epoch.0)),
    }
}

/// Connects an nbd or ublk device. Not while I/O waits for replicas: the kernel would give connections of nbd up for
/// being slow, again and again, and send everything anew each time.
fn connect(facts: &Facts, now: Instant) -> Step {
    match facts.device {
        _ if !facts.ready => Step::Rest(None),
        Device::Attached if facts.device_behind => with_device(facts, Step::Resize, now),
        Device::Attached => Step::Rest(None),
        _ => with_device(facts, Step::Attach, now),
    }
}

fn remove(facts: &Facts, now: Instant) -> Step {
    if facts.connection {
        return Step::DropConnection;
    }
    with_device(facts, Step::TakeDown { force: true }, now)
}

fn stop(facts: &Facts, access: Access, now: Instant) -> Step {
    if facts.device == Device::Unknown {
        return with_device(facts, Step::Find, now);
    }
    if facts.device != Device::None {
        let waits = facts.waits.is_some();
        return match (&facts.engine, facts.connection || waits) {
            (Engine::Running { stopping: None, .. }, _) if waits && facts.device == Device::Mounted => {
                serve(facts, access, now)
            }
            // What was written to the device and has not left the kernel needs an engine to go to.
            (Engine::Absent { .. }, true) => serve(facts, access, now),
            (Engine::Absent { .. }, false) => with_device(facts, Step::TakeDown { force: true }, now),
            (Engine::Running { .. }, _) => with_device(facts, Step::TakeDown { force: false }, now),
        };
    }
    if let Engine::Running { .. } = facts.engine {
        return end(facts, LONG_GRACE, now);
    }
    let Some(row) = &facts.row else {
        return Step::Rest(None);
    };
    let ours = row.owner.as_ref() == Some(&facts.node);
    if !ours || facts.given_up == Some(row.view.epoch) {
        return Step::Rest(None);
    }
    let expect = row.view.epoch;
    let clean = facts.clean == Some(expect);
    ask(facts, Step::AskDetach { expect, clean }, now)
}

fn clear(facts: &Facts, now: Instant) -> Step {
    if let Engine::Running { .. } = facts.engine {
        return end(facts, SHORT_GRACE, now);
    }
    if facts.connection {
        return Step::DropConnection;
    }
    if facts.device == Device::Unknown {
        return with_device(facts, Step::Find, now);
    }
    if facts.device != Device::None || facts.device_busy {
        return with_device(facts, Step::TakeDown { force: true }, now);
    }
    Step::Forget
}

fn halt(facts: &Facts, now: Instant) -> Step {
    if facts.device == Device::Unknown && matches!(facts.engine, Engine::Running { .. }) {
        return with_device(facts, Step::Find, now);
    }
    if facts.device != Device::None && matches!(facts.engine, Engine::Running { .. }) {
        if facts.waits.is_some() && facts.device == Device::Mounted {
            // What was written to it has to reach the engine first.
            return connect(facts, now);
        }
        return with_device(facts, Step::TakeDown { force: false }, now);
    }
    if let Engine::Running { .. } = facts.engine {
        return end(facts, LONG_GRACE, now);
    }
    Step::Rest(None)
}

fn end(facts: &Facts, grace: Duration, now: Instant) -> Step {
    match facts.engine {
        Engine::Running { stopping: None, .. } => Step::StopEngine,
        Engine::Running {
            stopping: Some(since),
            ended,
            ..
        } => {
            let end = since + if ended { SHORT_GRACE } else { grace };
            if now >= end {
                Step::Kill
            } else {
                Step::Rest(Some(end))
            }
        }
        Engine::Absent { .. } => Step::Rest(None),
    }
}

fn with_device(facts: &Facts, step: Step, now: Instant) -> Step {
    if facts.device_busy {
        return Step::Rest(None);
    }
    if now < facts.device_not_before {
        return Step::Rest(Some(facts.device_not_before));
    }
    step
}

fn ask(facts: &Facts, step: Step, now: Instant) -> Step {
    if facts.asking {
        return Step::Rest(None);
    }
    if now < facts.ask_not_before {
        return Step::Rest(Some(facts.ask_not_before));
    }
    step
}

#[cfg(test)]
mod tests;
