//! The FUSE mount and its loop device.

use super::*;

#[test]
fn to_serve_with_a_device() {
    let now = Instant::now();
    let rest = Step::Rest(None);
    steps(
        &facts(SERVE_FUSE, 3, 2, now),
        now,
        &[
            ("nothing is there", |_, _| {}, Step::Mount),
            ("being mounted", |f, _| f.device_busy = true, rest),
            (
                "mounted",
                |f, _| (f.device, f.connection) = (Device::Mounted, true),
                Step::Spawn { epoch: Epoch(3) },
            ),
            (
                "a dead mount",
                |f, _| f.device = Device::Attached,
                Step::TakeDown { force: true },
            ),
            (
                "a used epoch comes first",
                |f, _| (f.used, f.device) = (Epoch(3), Device::Attached),
                Step::AskRestart { expect: Epoch(3) },
            ),
            (
                "it serves",
                |f, _| (f.engine, f.device, f.connection) = (running(3, None), Device::Mounted, true),
                Step::Attach,
            ),
            (
                "it has a device",
                |f, _| (f.engine, f.device, f.connection) = (running(3, None), Device::Attached, true),
                rest,
            ),
            (
                "its mount was taken away",
                |f, _| f.engine = running(3, None),
                Step::StopEngine,
            ),
            (
                "it does not serve yet",
                |f, _| {
                    f.engine = Engine::Running {
                        epoch: Epoch(3),
                        serving: false,
                        stopping: None,
                        ended: false,
                    };
                    f.device = Device::Mounted;
                },
                rest,
            ),
        ],
    );
}

fn connected(facts: &mut Facts, last: Option<u64>) {
    (facts.device, facts.connection) = (Device::Attached, true);
    facts.connection_epoch = last.map(Epoch);
}

#[test]
fn a_device_goes_on_only_when_nobody_else_had_the_volume() {
    let now = Instant::now();
    let spawn = Step::Spawn { epoch: Epoch(7) };
    let mut facts = facts(SERVE_FUSE, 7, 5, now);
    connected(&mut facts, Some(5));
    let cases: &[Case] = &[
        ("an epoch in between", |_, _| {}, Step::DropConnection),
        (
            "an engine of it still runs",
            |f, _| f.engine = running(5, None),
            Step::StopEngine,
        ),
        (
            "a device operation that waits for it",
            |f, _| f.device_busy = true,
            Step::DropConnection,
        ),
        (
            "dropped",
            |f, _| f.connection = false,
            Step::TakeDown { force: true },
        ),
        (
            "taken down",
            |f, _| (f.device, f.connection) = (Device::None, false),
            Step::Mount,
        ),
        (
            "new",
            |f, _| (f.device, f.connection_epoch) = (Device::Mounted, None),
            Step::Spawn { epoch: Epoch(7) },
        ),
        (
            "the next epoch",
            |f, _| (f.used, f.connection_epoch) = (Epoch(6), Some(Epoch(6))),
            spawn,
        ),
        (
            "no note of the epoch",
            |f, _| f.connection_epoch = Some(Epoch(0)),
            Step::DropConnection,
        ),
        (
            "a note that could not be read",
            |f, _| f.connection_epoch = Some(Epoch(u64::MAX)),
            Step::DropConnection,
        ),
        (
            "its mount is gone",
            |f, _| (f.device, f.connection_epoch) = (Device::None, Some(Epoch(6))),
            Step::DropConnection,
        ),
    ];
    steps(&facts, now, cases);
    // To end it, what waits in it would be written first: the same.
    facts.goal = Goal::Stop(FUSE);
    steps(
        &facts,
        now,
        &[
            ("an epoch in between", |_, _| {}, Step::DropConnection),
            (
                "dropped",
                |f, _| f.connection = false,
                Step::TakeDown { force: true },
            ),
            (
                "the next epoch",
                |f, _| (f.used, f.connection_epoch) = (Epoch(6), Some(Epoch(6))),
                spawn,
            ),
        ],
    );
}

#[test]
fn a_device_goes_when_the_volume_is_attached_in_another_way() {
    let now = Instant::now();
    let mut facts = facts(SERVE, 6, 5, now);
    connected(&mut facts, Some(5));
    facts.loop_read_only = Some(false);
    let no_connection: Case = (
        "dropped",
        |f, _| f.connection = false,
        Step::TakeDown { force: true },
    );
    let serve: &[Case] = &[
        (
            "an engine of the way before",
            |f, _| f.engine = running(5, None),
            Step::StopEngine,
        ),
        (
            "the new epoch comes first",
            |f, _| f.used = Epoch(6),
            Step::AskRestart { expect: Epoch(6) },
        ),
        ("what waits in it", |_, _| {}, Step::DropConnection),
        no_connection,
    ];
    for access in [SOCKET, FUSE_READ_ONLY] {
        facts.goal = Goal::Serve(access);
        steps(&facts, now, serve);
        // Both at once: nothing could serve it.
        facts.goal = Goal::Stop(access);
        let stop: &[Case] = &[
            ("what waits in it", |_, _| {}, Step::DropConnection),
            no_connection,
        ];
        steps(&facts, now, stop);
    }
    facts.goal = SERVE;
    let gone: &[Case] = &[(
        "it is gone",
        |f, _| (f.device, f.connection, f.loop_read_only) = (Device::None, false, None),
        Step::Spawn { epoch: Epoch(6) },
    )];
    steps(&facts, now, gone);
    facts.goal = SERVE_FUSE;
    let same: &[Case] = &[
        ("the same way", |_, _| {}, Step::Spawn { epoch: Epoch(6) }),
        (
            "no loop device yet",
            |f, _| (f.device, f.loop_read_only) = (Device::Mounted, None),
            Step::Spawn { epoch: Epoch(6) },
        ),
    ];
    steps(&facts, now, same);
}
