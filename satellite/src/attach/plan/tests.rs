//! The plan, state by state: what is there and what is wanted → the next step.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::collections::BTreeMap;

use stor_replication::ids::{ConfigSeq, Lineage, View, VolumeId};

use super::*;

const SOCKET: Access = Access {
    transport: TransportKind::Socket,
    read_only: false,
};
const FUSE: Access = Access {
    transport: TransportKind::Fuse,
    read_only: false,
};
const FUSE_READ_ONLY: Access = Access {
    transport: TransportKind::Fuse,
    read_only: true,
};
const SERVE: Goal = Goal::Serve(SOCKET);
const SERVE_FUSE: Goal = Goal::Serve(FUSE);

fn facts(goal: Goal, epoch: u64, used: u64, now: Instant) -> Facts {
    let row = VolumeRow {
        volume: VolumeId::default(),
        size: 4096,
        revision: epoch,
        view: View {
            epoch: Epoch(epoch),
            config: ConfigSeq(0),
        },
        owner: Some("k1".to_owned()),
        clean: false,
        clean_before: false,
        lineage: Lineage::default(),
        min_in_sync: 1,
        replicas: BTreeMap::new(),
    };
    Facts {
        node: "k1".to_owned(),
        goal,
        row: Some(row),
        used: Epoch(used),
        engine: Engine::Absent { not_before: now },
        device: Device::None,
        connection: false,
        nbd: false,
        ready: false,
        connection_epoch: None,
        loop_read_only: None,
        device_behind: false,
        device_not_before: now,
        device_busy: false,
        asking: false,
        ask_not_before: now,
        clean: None,
        given_up: None,
    }
}

fn running(epoch: u64, stopping: Option<Instant>) -> Engine {
    Engine::Running {
        epoch: Epoch(epoch),
        serving: true,
        stopping,
        ended: false,
    }
}

/// What is different, how, and what is to be done then.
type Case = (&'static str, fn(&mut Facts, Instant), Step);

fn steps(facts: &Facts, now: Instant, changes: &[Case]) {
    for (what, change, expected) in changes {
        let mut facts = facts.clone();
        change(&mut facts, now);
        assert_eq!(next(&facts, now), *expected, "{what}: {facts:#?}");
    }
}

#[test]
fn to_serve() {
    let now = Instant::now();
    let later = now + Duration::from_secs(5);
    let rest = Step::Rest(None);
    steps(
        &facts(SERVE, 3, 2, now),
        now,
        &[
            ("a new epoch", |_, _| {}, Step::Spawn { epoch: Epoch(3) }),
            (
                "a used epoch",
                |f, _| f.used = Epoch(3),
                Step::AskRestart { expect: Epoch(3) },
            ),
            (
                "a note that cannot be read",
                |f, _| f.used = Epoch(u64::MAX),
                Step::AskRestart { expect: Epoch(3) },
            ),
            (
                "asked already",
                |f, _| (f.used, f.asking) = (Epoch(3), true),
                rest,
            ),
            (
                "refused just now",
                |f, now| (f.used, f.ask_not_before) = (Epoch(3), now + Duration::from_secs(5)),
                Step::Rest(Some(later)),
            ),
            (
                "died just now",
                |f, now| {
                    f.engine = Engine::Absent {
                        not_before: now + Duration::from_secs(5),
                    }
                },
                Step::Rest(Some(later)),
            ),
            (
                "another's volume",
                |f, _| f.row.as_mut().unwrap().owner = Some("k2".to_owned()),
                rest,
            ),
            (
                "nobody's volume",
                |f, _| f.row.as_mut().unwrap().owner = None,
                rest,
            ),
            ("no row", |f, _| f.row = None, rest),
            ("it runs", |f, _| f.engine = running(3, None), rest),
            (
                "it runs ahead of the row",
                |f, _| f.engine = running(4, None),
                rest,
            ),
            (
                "an older one runs",
                |f, _| f.engine = running(2, None),
                Step::StopEngine,
            ),
            (
                "an older one is told",
                |f, now| f.engine = running(2, Some(now)),
                Step::Rest(Some(now + SHORT_GRACE)),
            ),
            (
                "an older one does not hear",
                |f, now| f.engine = running(2, now.checked_sub(SHORT_GRACE)),
                Step::Kill,
            ),
        ],
    );
}

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

/// Neither an engine is ended nor anything taken away because the kernel could not be asked.
#[test]
fn a_device_that_cannot_be_seen_is_looked_for_again() {
    let now = Instant::now();
    let cases: &[Case] = &[
        ("no engine", |_, _| {}, Step::Find),
        ("an engine", |f, _| f.engine = running(3, None), Step::Find),
        (
            "not at once",
            |f, now| f.device_not_before = now + LONG_GRACE,
            Step::Rest(Some(now + LONG_GRACE)),
        ),
    ];
    for goal in [SERVE, SERVE_FUSE, Goal::Stop(FUSE)] {
        let mut facts = facts(goal, 3, 2, now);
        facts.device = Device::Unknown;
        steps(&facts, now, cases);
    }
    let cases: &[Case] = &[
        (
            "the engine first",
            |f, _| f.engine = running(3, None),
            Step::StopEngine,
        ),
        (
            "what waits in it",
            |f, _| f.connection = true,
            Step::DropConnection,
        ),
        ("then what is there", |_, _| {}, Step::Find),
    ];
    let mut leave = facts(Goal::Nothing, 3, 3, now);
    leave.device = Device::Unknown;
    steps(&leave, now, cases);
    let cases: &[Case] = &[
        ("an engine", |f, _| f.engine = running(3, None), Step::Find),
        ("no engine", |_, _| {}, Step::Rest(None)),
    ];
    leave.goal = Goal::Halt;
    steps(&leave, now, cases);
}

#[test]
fn nothing_is_touched_before_it_is_known_what_is_wanted() {
    let now = Instant::now();
    steps(
        &facts(Goal::Unknown, 3, 2, now),
        now,
        &[
            ("no engine", |_, _| {}, Step::Rest(None)),
            ("an engine", |f, _| f.engine = running(1, None), Step::Rest(None)),
            ("a device", |f, _| f.device = Device::Attached, Step::Rest(None)),
        ],
    );
}

const NBD: Access = Access {
    transport: TransportKind::Nbd,
    read_only: false,
};

/// An nbd device that was connected to the engine of an epoch.
fn nbd(facts: &mut Facts, device: Device, epoch: u64) {
    facts.device = device;
    facts.nbd = true;
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
