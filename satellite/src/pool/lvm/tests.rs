//! Making and unmaking pools and replicas with an `lvm` that dies or hangs at each of its commands: what is done again
//! comes to the same end. What LVM itself does is tested with the real one, in a virtual machine.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use stor_replication::ids::{ReplicaId, VolumeId};
use tempfile::TempDir;

use super::*;
use crate::pool::Kind;
use crate::pool::disk::Disk;

/// A machine with the fake `lvm`.
struct Machine {
    directory: TempDir,
}

impl Machine {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let program = directory.path().join("lvm");
        fs::write(&program, include_str!("fake-lvm.sh")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self { directory }
    }

    fn room(&self, limit: Duration) -> ThinRoom {
        ThinRoom {
            lvm: Lvm::with(self.directory.path().join("lvm"), "true".into(), limit),
            group: "stor-sp01".to_owned(),
            pool: "thin".to_owned(),
        }
    }

    /// The change at which something happens, and what.
    fn trouble(&self, nth: usize, what: &str) {
        fs::write(self.directory.path().join("changes"), "0").unwrap();
        fs::write(self.directory.path().join("trouble"), format!("{nth} {what}\n")).unwrap();
    }

    fn changes(&self) -> usize {
        let text = fs::read_to_string(self.directory.path().join("changes")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Everything there is, but for the id that is drawn.
    fn state(&self) -> Vec<String> {
        let mut all = Vec::new();
        for part in ["vg", "pv"] {
            walk(&self.directory.path().join(part), part, &mut all);
        }
        all.sort();
        all
    }
}

fn walk(path: &Path, name: &str, all: &mut Vec<String>) {
    if path.is_dir() {
        if name.contains('/') {
            all.push(name.to_owned());
        }
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            walk(
                &entry.path(),
                &format!("{name}/{}", entry.file_name().display()),
                all,
            );
        }
    } else if let Ok(text) = fs::read_to_string(path) {
        let mut lines: Vec<_> = text
            .lines()
            .map(|line| {
                if line.starts_with("stor.id=") {
                    "stor.id"
                } else {
                    line
                }
            })
            .collect();
        lines.sort_unstable();
        all.push(format!("{name}: {}", lines.join(" ")));
    }
}

fn device() -> Device {
    Device {
        path: "/dev/sdb".to_owned(),
        size: 1 << 40,
        model: "M".to_owned(),
        serial: "S1".to_owned(),
    }
}

fn disk(in_use: Option<&str>, wipeable: bool) -> Disk {
    Disk {
        path: "/dev/sdb".to_owned(),
        size: 1 << 40,
        model: "M".to_owned(),
        serial: "S1".to_owned(),
        rotational: false,
        in_use: in_use.map(str::to_owned),
        wipeable,
    }
}

fn thin() -> Thin {
    Thin {
        group: "stor-sp01".to_owned(),
        pool: "thin".to_owned(),
        devices: vec![device()],
        make: true,
        ..Thin::default()
    }
}

fn spec(thin: &Thin) -> PoolSpec {
    PoolSpec {
        name: "sp01".to_owned(),
        path: "/dev/stor-sp01/thin".into(),
        kind: Kind::Thin(thin.clone()),
    }
}

fn opener() -> Opener {
    Opener {
        node: "s1".to_owned(),
        cluster: "c".to_owned(),
        ..Opener::default()
    }
}

fn make(room: &ThinRoom, thin: &Thin, found: &Disk) -> Result<Uuid, ThinError> {
    // What LVM has in its hands is seen as such.
    let disks = || {
        let mut found = found.clone();
        if report::disks(&room.lvm).is_ok_and(|all| !all.is_empty()) {
            found.in_use = Some("has a signature (LVM2_member)".to_owned());
            found.wipeable = true;
        }
        Ok(vec![found])
    };
    let spec = spec(thin);
    make::make_if_asked(room, thin, &spec, &opener(), &disks)?;
    make::take(room, thin, &spec, &opener())
}

const LIMIT: Duration = Duration::from_mins(1);
const SHORT: Duration = Duration::from_millis(1500);

/// Runs `work` with trouble at each of its changes, then again without: it must come to the end that it comes to
/// undisturbed. `before` is done first, undisturbed.
fn at_each_step(
    kinds: &[&str],
    before: impl Fn(&ThinRoom),
    work: impl Fn(&ThinRoom) -> Result<(), ThinError>,
) -> usize {
    let undisturbed = Machine::new();
    before(&undisturbed.room(LIMIT));
    undisturbed.trouble(0, "none");
    work(&undisturbed.room(LIMIT)).unwrap();
    let steps = undisturbed.changes();
    let expected = undisturbed.state();
    for kind in kinds {
        for nth in 1..=steps {
            let machine = Machine::new();
            before(&machine.room(LIMIT));
            machine.trouble(nth, kind);
            let limit = if *kind == "hang" { SHORT } else { LIMIT };
            let first = work(&machine.room(limit));
            assert!(
                first.is_err() || *kind == "half",
                "{kind} at change {nth} was not noticed"
            );
            machine.trouble(0, "none");
            work(&machine.room(LIMIT)).unwrap_or_else(|error| panic!("{kind} at change {nth}: {error}"));
            assert_eq!(machine.state(), expected, "{kind} at change {nth}");
        }
    }
    steps
}

#[test]
fn a_pool_whose_making_was_cut_short_anywhere_is_made_by_doing_it_again() {
    let work = |room: &ThinRoom| make(room, &thin(), &disk(None, false)).map(drop);
    let steps = at_each_step(&["before", "after", "half"], |_| {}, work);
    assert_eq!(steps, 5, "group, pool, errorwhenfull, whose it is, complete");
}

#[test]
fn a_pool_whose_making_hangs_is_made_by_doing_it_again() {
    let work = |room: &ThinRoom| make(room, &thin(), &disk(None, false)).map(drop);
    at_each_step(&["hang"], |_| {}, work);
}

#[test]
fn a_pool_whose_end_was_cut_short_anywhere_leaves_nothing() {
    let before = |room: &ThinRoom| assert_ne!(make(room, &thin(), &disk(None, false)).unwrap(), Uuid::nil());
    let steps = at_each_step(&["before", "after"], before, |room| {
        make::unmake(room, &|_| Ok(()))?;
        // The label of a disk in no group counts as an unused disk; it is the only thing that may be left.
        let idle = report::disks(&room.lvm)?;
        for (path, _) in idle {
            room.lvm.change("pvremove", &[&path])?;
        }
        Ok(())
    });
    assert_eq!(steps, 4);
}

/// The next process opens what can be opened, and otherwise gives up what is left.
#[test]
fn a_pool_whose_end_was_cut_short_is_given_up_by_the_next_process() {
    let id = std::cell::Cell::new(Uuid::nil());
    let before = |room: &ThinRoom| id.set(make(room, &thin(), &disk(None, false)).unwrap());
    let steps = at_each_step(&["before", "after", "half"], before, |room| {
        let (thin, known) = (thin(), Some(id.get()));
        let opener = Opener { known, ..opener() };
        match make::take(
            room,
            &Thin {
                make: false,
                ..thin.clone()
            },
            &spec(&thin),
            &opener,
        ) {
            Ok(_) => make::unmake(room, &|_| Ok(())),
            Err(ThinError::Command(error)) => Err(error.into()),
            Err(_) => make::unmake_rest(
                room,
                &spec(&thin),
                &thin,
                &opener,
                make::Disks {
                    tells_of: &|_, _| true,
                    wipe: &|_| Ok(()),
                },
            ),
        }
    });
    assert_eq!(steps, 4);
}

#[test]
fn a_group_that_is_anothers_by_now_is_left_alone() {
    let machine = Machine::new();
    let room = machine.room(LIMIT);
    let id = make(&room, &thin(), &disk(None, false)).unwrap();
    make::unmake(&room, &|_| Ok(())).unwrap();
    room.lvm
        .change("vgcreate", &["--addtag", "theirs", "stor-sp01", "/dev/sdb"])
        .unwrap();
    let before = machine.state();
    let opener = Opener {
        known: Some(id),
        ..opener()
    };
    let disks = make::Disks {
        tells_of: &|_, _| false,
        wipe: &|_| panic!("a disk of theirs is wiped"),
    };
    make::unmake_rest(&room, &spec(&thin()), &thin(), &opener, disks).unwrap();
    assert_eq!(machine.state(), before);
}

fn replica() -> (VolumeId, ReplicaId) {
    (VolumeId(Uuid::from_u128(7)), ReplicaId(2))
}

/// As the replica server does it, without what it writes.
fn make_replica(room: &ThinRoom) -> Result<(), ThinError> {
    let (volume, replica) = replica();
    let found = room.find(volume, replica)?;
    if found.is_ready() {
        return Ok(());
    }
    room.remove(&found)?;
    for part in [Part::Data, Part::Meta] {
        room.carve(&ThinRoom::name(volume, replica, part), 1 << 20)?;
    }
    room.finish(volume, replica)
}

#[test]
fn a_replica_whose_making_or_removal_was_cut_short_comes_to_the_same_end() {
    let pool = |room: &ThinRoom| assert_ne!(make(room, &thin(), &disk(None, false)).unwrap(), Uuid::nil());
    assert_eq!(at_each_step(&["before", "after"], pool, make_replica), 3);
    let with_replica = |room: &ThinRoom| {
        pool(room);
        make_replica(room).unwrap();
    };
    let removed = at_each_step(&["before", "after"], with_replica, |room| {
        let found = room.find(replica().0, replica().1)?;
        room.remove(&found)
    });
    assert_eq!(removed, 3);
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let machine = Machine::new();
    let room = machine.room(LIMIT);
    for (found, wanted) in [
        (disk(Some("is mounted on /data"), false), "is mounted on /data"),
        (disk(Some("has 2 partitions"), true), "has 2 partitions"),
        (
            Disk {
                serial: "S2".to_owned(),
                ..disk(None, false)
            },
            "not the disk that was chosen",
        ),
        (
            Disk {
                path: "/dev/sdc".to_owned(),
                ..disk(None, false)
            },
            "is not there",
        ),
    ] {
        let error = make(&room, &thin(), &found).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    // Consent to wiping is none to take what is used.
    let wipe = Thin { wipe: true, ..thin() };
    let error = make(&room, &wipe, &disk(Some("is mounted on /data"), false)).unwrap_err();
    assert!(matches!(error, ThinError::Disk { .. }), "{error}");
    assert!(machine.state().is_empty());
    // A group of the same name that somebody else made.
    room.lvm.change("vgcreate", &["stor-sp01", "/dev/sdz"]).unwrap();
    let error = make(&room, &thin(), &disk(None, false)).unwrap_err();
    assert!(matches!(error, ThinError::Taken { .. }), "{error}");
    room.lvm
        .change(
            "lvcreate",
            &["--type", "thin-pool", "--name", "thin", "stor-sp01"],
        )
        .unwrap();
    let there = Thin {
        devices: Vec::new(),
        ..thin()
    };
    let error = make(&room, &there, &disk(None, false)).unwrap_err();
    assert!(matches!(error, ThinError::Foreign { .. }), "{error}");
    let consented = Thin {
        adopt: true,
        ..there.clone()
    };
    let before = machine.state();
    let id = make(&room, &consented, &disk(None, false)).unwrap();
    assert_eq!(
        make(&room, &there, &disk(None, false)).unwrap(),
        id,
        "it is ours from then on"
    );
    // Given back, the group stays, with a pool that says nothing of us.
    make::unmake(&room, &|_| Ok(())).unwrap();
    let mut left = machine.state();
    left.retain(|line| !line.ends_with("full: error"));
    assert_eq!(left, before);
}

#[test]
fn a_pool_of_another_node_or_cluster_is_refused_and_one_that_is_away_is_not_made_anew() {
    let machine = Machine::new();
    let room = machine.room(LIMIT);
    let id = make(&room, &thin(), &disk(None, false)).unwrap();
    let there = Thin {
        devices: Vec::new(),
        ..thin()
    };
    let take = |opener: Opener| make::take(&room, &there, &spec(&there), &opener);
    for other in [
        Opener {
            node: "s2".to_owned(),
            ..opener()
        },
        Opener {
            cluster: "d".to_owned(),
            ..opener()
        },
    ] {
        assert!(matches!(take(other), Err(ThinError::Used { .. })));
    }
    let known = |id| Opener {
        known: Some(id),
        ..opener()
    };
    assert_eq!(take(known(id)).unwrap(), id);
    assert!(matches!(
        take(known(Uuid::nil())),
        Err(ThinError::Exchanged { .. })
    ));
    fs::rename(
        machine.directory.path().join("vg"),
        machine.directory.path().join("away"),
    )
    .unwrap();
    let disks = || Ok(vec![disk(None, false)]);
    make::make_if_asked(&room, &thin(), &spec(&thin()), &known(id), &disks).unwrap();
    assert!(matches!(take(known(id)), Err(ThinError::Gone { .. })));
    assert!(machine.state().is_empty(), "nothing was made in its place");
}
