//! Devices of a driver that keeps them without an engine: nbd and ublk.

use super::*;

const NBD: Access = Access {
    transport: TransportKind::Nbd,
    read_only: false,
};

/// An nbd device that was connected to the engine of an epoch.
fn nbd(facts: &mut Facts, device: Device, epoch: u64) {
    facts.device = device;
    facts.waits = Some(TransportKind::Nbd);
    facts.connection_epoch = Some(Epoch(epoch));
    facts.loop_read_only = Some(false);
}

#[test]
fn an_nbd_device_goes_from_one_engine_to_the_next() {
    let now = Instant::now();
    let rest = Step::Rest(None);
    let spawn = Step::Spawn { epoch: Epoch(3) };
    let cut = Step::TakeDown { force: true };
    steps(
        &facts(Goal::Serve(NBD), 3, 2, now),
        now,
        &[
            ("nothing is there", |_, _| {}, spawn),
            ("of the epoch before", |f, _| nbd(f, Device::Mounted, 2), spawn),
            ("with an epoch in between", |f, _| nbd(f, Device::Mounted, 1), cut),
            (
                "of an epoch nobody knows",
                |f, _| nbd(f, Device::Mounted, u64::MAX),
                cut,
            ),
            (
                "made read-only",
                |f, _| {
                    nbd(f, Device::Mounted, 2);
                    f.loop_read_only = Some(true);
                },
                cut,
            ),
            (
                "of the other transport",
                |f, _| {
                    f.device = Device::Mounted;
                    f.connection = true;
                },
                Step::DropConnection,
            ),
            (
                "the engine does not serve yet",
                |f, _| {
                    nbd(f, Device::Mounted, 3);
                    f.engine = running(3, None);
                },
                rest,
            ),
            (
                "it serves",
                |f, _| {
                    nbd(f, Device::Mounted, 3);
                    (f.engine, f.ready) = (running(3, None), true);
                },
                Step::Attach,
            ),
            (
                "it serves, and there is no device",
                |f, _| (f.engine, f.ready) = (running(3, None), true),
                Step::Attach,
            ),
            (
                "all is there",
                |f, _| {
                    nbd(f, Device::Attached, 3);
                    (f.engine, f.ready) = (running(3, None), true);
                },
                rest,
            ),
            (
                "the volume has grown",
                |f, _| {
                    nbd(f, Device::Attached, 3);
                    (f.engine, f.ready, f.device_behind) = (running(3, None), true, true);
                },
                Step::Resize,
            ),
            (
                "the volume has grown and I/O waits",
                |f, _| {
                    nbd(f, Device::Attached, 3);
                    (f.engine, f.device_behind) = (running(3, None), true);
                },
                rest,
            ),
        ],
    );
    steps(
        &facts(Goal::Serve(FUSE), 3, 2, now),
        now,
        &[("wanted by FUSE now", |f, _| nbd(f, Device::Mounted, 2), cut)],
    );
}

#[test]
fn what_was_written_to_an_nbd_device_reaches_an_engine_before_it_goes() {
    let now = Instant::now();
    let spawn = Step::Spawn { epoch: Epoch(3) };
    let down = Step::TakeDown { force: false };
    let without_engine: Case = ("no engine", |f, _| nbd(f, Device::Mounted, 2), spawn);
    let running_cases: [Case; 3] = [
        (
            "it serves",
            |f, _| {
                nbd(f, Device::Attached, 3);
                (f.engine, f.ready) = (running(3, None), true);
            },
            down,
        ),
        (
            "it is not connected",
            |f, _| {
                nbd(f, Device::Mounted, 3);
                (f.engine, f.ready) = (running(3, None), true);
            },
            Step::Attach,
        ),
        (
            "it is not connected and I/O waits",
            |f, _| {
                nbd(f, Device::Mounted, 3);
                f.engine = running(3, None);
            },
            Step::Rest(None),
        ),
    ];
    steps(&facts(Goal::Stop(NBD), 3, 2, now), now, &[without_engine]);
    steps(&facts(Goal::Stop(NBD), 3, 2, now), now, &running_cases);
    steps(&facts(Goal::Halt, 3, 2, now), now, &running_cases);
    steps(
        &facts(Goal::Nothing, 3, 2, now),
        now,
        &[(
            "not wanted any more",
            |f, _| nbd(f, Device::Mounted, 2),
            Step::TakeDown { force: true },
        )],
    );
}

const UBLK: Access = Access {
    transport: TransportKind::Ublk,
    read_only: false,
};

/// A ublk device that the engine of an epoch had.
fn ublk(facts: &mut Facts, device: Device, epoch: u64) {
    nbd(facts, device, epoch);
    facts.waits = Some(TransportKind::Ublk);
}

#[test]
fn a_ublk_device_is_there_before_its_engine_and_goes_to_the_next() {
    let now = Instant::now();
    let rest = Step::Rest(None);
    let spawn = Step::Spawn { epoch: Epoch(3) };
    let cut = Step::TakeDown { force: true };
    let free = |f: &mut Facts, epoch| {
        ublk(f, Device::Mounted, epoch);
        f.free = true;
    };
    steps(
        &facts(Goal::Serve(UBLK), 3, 2, now),
        now,
        &[
            ("nothing is there", |_, _| {}, Step::Mount),
            ("it is being made", |f, _| f.device_busy = true, rest),
            (
                "it could not be made just now",
                |f, now| f.device_not_before = now + LONG_GRACE,
                Step::Rest(Some(now + LONG_GRACE)),
            ),
            (
                "of the epoch before",
                |f, _| ublk(f, Device::Mounted, 2),
                Step::Mount,
            ),
            (
                "with an epoch in between",
                |f, _| ublk(f, Device::Mounted, 1),
                cut,
            ),
            (
                "made read-only",
                |f, _| {
                    ublk(f, Device::Mounted, 2);
                    f.loop_read_only = Some(true);
                },
                cut,
            ),
            ("of the other driver", |f, _| nbd(f, Device::Mounted, 2), cut),
            (
                "its engine does not serve yet",
                |f, _| {
                    ublk(f, Device::Mounted, 3);
                    f.engine = running(3, None);
                },
                rest,
            ),
            (
                "it serves",
                |f, _| {
                    ublk(f, Device::Mounted, 3);
                    (f.engine, f.ready) = (running(3, None), true);
                },
                Step::Attach,
            ),
            (
                "it serves, and the device is gone",
                |f, _| (f.engine, f.ready) = (running(3, None), true),
                Step::StopEngine,
            ),
            (
                "all is there",
                |f, _| {
                    ublk(f, Device::Attached, 3);
                    (f.engine, f.ready) = (running(3, None), true);
                },
                rest,
            ),
            (
                "the volume has grown",
                |f, _| {
                    ublk(f, Device::Attached, 3);
                    (f.engine, f.ready, f.device_behind) = (running(3, None), true, true);
                },
                Step::Resize,
            ),
        ],
    );
    let mut ready = facts(Goal::Serve(UBLK), 3, 2, now);
    free(&mut ready, 2);
    steps(&ready, now, &[("it waits for this engine", |_, _| {}, spawn)]);
    let fuse = facts(Goal::Serve(FUSE), 3, 2, now);
    steps(
        &fuse,
        now,
        &[("wanted by FUSE now", |f, _| ublk(f, Device::Mounted, 2), cut)],
    );
}

#[test]
fn what_was_written_to_a_ublk_device_reaches_an_engine_before_it_goes() {
    let now = Instant::now();
    let waits: Case = ("no engine", |f, _| ublk(f, Device::Mounted, 2), Step::Mount);
    let served: [Case; 2] = [
        (
            "it serves",
            |f, _| {
                ublk(f, Device::Attached, 3);
                (f.engine, f.ready) = (running(3, None), true);
            },
            Step::TakeDown { force: false },
        ),
        (
            "it is not connected",
            |f, _| {
                ublk(f, Device::Mounted, 3);
                (f.engine, f.ready) = (running(3, None), true);
            },
            Step::Attach,
        ),
    ];
    steps(&facts(Goal::Stop(UBLK), 3, 2, now), now, &[waits]);
    steps(&facts(Goal::Stop(UBLK), 3, 2, now), now, &served);
    steps(&facts(Goal::Halt, 3, 2, now), now, &served);
    let cut: Case = (
        "not wanted any more",
        |f, _| ublk(f, Device::Mounted, 2),
        Step::TakeDown { force: true },
    );
    steps(&facts(Goal::Nothing, 3, 2, now), now, &[cut]);
}
