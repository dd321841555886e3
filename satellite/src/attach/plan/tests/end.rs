//! What is to end, in order or at once.

use super::*;

#[test]
fn to_stop() {
    let now = Instant::now();
    let rest = Step::Rest(None);
    steps(
        &facts(Goal::Stop(FUSE), 3, 3, now),
        now,
        &[
            (
                "the device first",
                |f, _| (f.engine, f.device) = (running(3, None), Device::Attached),
                Step::TakeDown { force: false },
            ),
            (
                "then the engine",
                |f, _| f.engine = running(3, None),
                Step::StopEngine,
            ),
            (
                "which may drain",
                |f, now| f.engine = running(3, Some(now)),
                Step::Rest(Some(now + LONG_GRACE)),
            ),
            (
                "but not after it said that it ends",
                |f, now| {
                    f.engine = Engine::Running {
                        epoch: Epoch(3),
                        serving: true,
                        stopping: now.checked_sub(SHORT_GRACE),
                        ended: true,
                    }
                },
                Step::Kill,
            ),
            (
                "it ended clean",
                |f, _| f.clean = Some(Epoch(3)),
                Step::AskDetach {
                    expect: Epoch(3),
                    clean: true,
                },
            ),
            (
                "it died",
                |_, _| {},
                Step::AskDetach {
                    expect: Epoch(3),
                    clean: false,
                },
            ),
            (
                "an older one ended clean",
                |f, _| f.clean = Some(Epoch(2)),
                Step::AskDetach {
                    expect: Epoch(3),
                    clean: false,
                },
            ),
            ("asked", |f, _| f.asking = true, rest),
            ("given up", |f, _| f.row.as_mut().unwrap().owner = None, rest),
            ("given up, or never had", |f, _| f.given_up = Some(Epoch(3)), rest),
            // What is still in the kernel needs an engine to go to.
            (
                "died with its device up",
                |f, _| (f.device, f.connection) = (Device::Attached, true),
                Step::AskRestart { expect: Epoch(3) },
            ),
            (
                "nothing can reach the device",
                |f, _| f.device = Device::Attached,
                Step::TakeDown { force: true },
            ),
        ],
    );
}

#[test]
fn to_leave_nothing() {
    let now = Instant::now();
    steps(
        &facts(Goal::Nothing, 3, 3, now),
        now,
        &[
            (
                "the engine first",
                |f, _| (f.engine, f.device, f.connection) = (running(3, None), Device::Attached, true),
                Step::StopEngine,
            ),
            (
                "which gets no time",
                |f, now| f.engine = running(3, Some(now)),
                Step::Rest(Some(now + SHORT_GRACE)),
            ),
            (
                "then what waits for it",
                |f, _| (f.device, f.connection) = (Device::Attached, true),
                Step::DropConnection,
            ),
            (
                "then the device",
                |f, _| f.device = Device::Attached,
                Step::TakeDown { force: true },
            ),
            (
                "which takes its time",
                |f, _| f.device_busy = true,
                Step::Rest(None),
            ),
            ("then the traces", |_, _| {}, Step::Forget),
            ("whatever the row says", |f, _| f.row = None, Step::Forget),
        ],
    );
}

#[test]
fn to_halt() {
    let now = Instant::now();
    steps(
        &facts(Goal::Halt, 3, 3, now),
        now,
        &[
            (
                "the device first",
                |f, _| (f.engine, f.device) = (running(3, None), Device::Attached),
                Step::TakeDown { force: false },
            ),
            (
                "then the engine",
                |f, _| f.engine = running(3, None),
                Step::StopEngine,
            ),
            ("and no right is given up", |_, _| {}, Step::Rest(None)),
            (
                "a device without an engine stays for the next agent",
                |f, _| f.device = Device::Attached,
                Step::Rest(None),
            ),
        ],
    );
}
