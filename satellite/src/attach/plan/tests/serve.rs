//! What is to run: engines and their epochs; and what is left alone.

use super::*;

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
