//! What the satellite keeps on disk: the state directory, the desired state, what the node has had.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use stor_proto::satellite as proto;
use stor_replication::catalogue::{Change, EjectReason, MemberState, Refusal, decide};
use stor_replication::ids::{ConfigSeq, Epoch, ReplicaId, View, VolumeId};
use stor_satellite::agent::desired::{Accepted, Store, StoreError, Wish};
use stor_satellite::agent::known::{Known, KnownChange, KnownError, KnownPool};
use stor_satellite::agent::row::{self, RowError, Volume};
use stor_satellite::agent::state_dir::{MAX_SOCKET_PATH, StateDir, StateDirError};
use tempfile::TempDir;
use uuid::Uuid;

fn id(number: u128) -> String {
    Uuid::from_u128(number).to_string()
}

fn volume(number: u128, epoch: u64, revision: u64) -> proto::Volume {
    proto::Volume {
        volume_id: id(number),
        name: format!("v{number}"),
        size_bytes: 1 << 20,
        revision,
        epoch,
        config: 3,
        owner: "k1".to_owned(),
        clean: false,
        clean_before: true,
        lineage: id(99),
        min_in_sync: 1,
        members: vec![
            proto::Member {
                replica: 0,
                node: "s1".to_owned(),
                address: "10.0.0.1:3371".to_owned(),
                in_sync: true,
                ever_in_sync: true,
                joined_config: 2,
                ..Default::default()
            },
            proto::Member {
                replica: 1,
                node: "s2".to_owned(),
                ever_in_sync: true,
                since_config: 3,
                joined_config: 1,
                reason: "unreachable".to_owned(),
                ..Default::default()
            },
        ],
        right: vec![7; 9],
    }
}

fn key(number: u8, retired: bool) -> proto::SigningKey {
    proto::SigningKey {
        public: vec![number; 32],
        retired,
    }
}

fn engine(number: u128, epoch: u64, revision: u64) -> proto::Engine {
    proto::Engine {
        transport: "socket".to_owned(),
        volume: Some(volume(number, epoch, revision)),
        ..Default::default()
    }
}

fn replica(number: u128) -> proto::Replica {
    proto::Replica {
        volume_id: id(number),
        volume_name: format!("v{number}"),
        replica: 0,
        pool: "sp01".to_owned(),
        size_bytes: 1 << 20,
        lineage: id(99),
        ..Default::default()
    }
}

fn desired(revision: u64) -> proto::Desired {
    proto::Desired {
        revision,
        pools: vec![proto::Pool {
            name: "sp01".to_owned(),
            kind: "file".to_owned(),
            path: "/data".to_owned(),
            ..Default::default()
        }],
        replicas: vec![replica(1)],
        engines: vec![engine(1, 5, 50)],
        keys: vec![key(1, false)],
        ..Default::default()
    }
}

fn accept(store: &mut Store, message: proto::Desired) -> Accepted {
    store.accept::<StoreError>(message, |_| Ok(())).unwrap()
}

fn volume_id(number: u128) -> VolumeId {
    VolumeId(Uuid::from_u128(number))
}

#[test]
fn the_desired_state_survives_a_restart() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("desired");
    let mut store = Store::load(&path).unwrap();
    assert!(
        store.desired().is_none(),
        "nothing known is not the same as nothing wanted"
    );
    accept(&mut store, desired(10));
    let wanted = store.desired().unwrap().clone();
    assert_eq!(wanted.revision, 10);
    assert_eq!(wanted.pools["sp01"].path, Path::new("/data"));
    assert_eq!(wanted.replicas[&(volume_id(1), ReplicaId(0))].wish, Wish::Serve);
    let again = Store::load(&path).unwrap();
    assert_eq!(again.desired(), Some(&wanted));
    // What a crash in the middle of a replacement leaves does not disturb.
    fs::write(directory.path().join("desired.new"), "half").unwrap();
    let mut again = Store::load(&path).unwrap();
    assert_eq!(again.desired(), Some(&wanted));
    accept(&mut again, desired(11));
    assert_eq!(Store::load(&path).unwrap().desired().unwrap().revision, 11);
}

#[test]
fn a_damaged_file_is_put_aside_and_never_believed() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("desired");
    accept(&mut Store::load(&path).unwrap(), desired(10));
    let good = fs::read(&path).unwrap();
    let mut damaged: Vec<Vec<u8>> = (0..good.len()).map(|length| good[..length].to_vec()).collect();
    // Not the version: a higher one is another release's, and that is another test.
    for at in (0..good.len()).filter(|at| !(8..12).contains(at)) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        damaged.push(bytes);
    }
    damaged.push([good.as_slice(), b"x"].concat());
    for bytes in damaged {
        fs::write(&path, &bytes).unwrap();
        let store = Store::load(&path).unwrap();
        assert!(store.desired().is_none());
        assert!(!path.exists());
        assert_eq!(
            fs::read(directory.path().join("desired.damaged")).unwrap(),
            bytes,
            "nothing is thrown away"
        );
    }
}

#[test]
fn a_file_of_a_newer_release_is_left_as_it_is() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("desired");
    accept(&mut Store::load(&path).unwrap(), desired(10));
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 2;
    fs::write(&path, &bytes).unwrap();
    assert!(matches!(
        Store::load(&path),
        Err(StoreError::Newer { version: 2, .. })
    ));
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_message_that_makes_no_sense_changes_nothing() {
    let directory = TempDir::new().unwrap();
    let mut store = Store::load(&directory.path().join("desired")).unwrap();
    accept(&mut store, desired(10));
    let before = store.desired().cloned();
    let mut bad = vec![desired(11), desired(12), desired(13), desired(14)];
    bad[0].replicas[0].volume_id = "no uuid".to_owned();
    bad[1].pools[0].kind = "floppy".to_owned();
    bad[2].engines[0].volume = None;
    bad[3].engines[0].volume.as_mut().unwrap().members[1].replica = 0;
    for message in bad {
        let refused = store.accept::<StoreError>(message, |_| Ok(()));
        assert!(matches!(refused, Err(StoreError::Message(_))), "{refused:?}");
        assert_eq!(store.desired().cloned(), before);
    }
}

#[test]
fn an_older_catalogue_takes_nothing_away() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("desired");
    let mut store = Store::load(&path).unwrap();
    let mut newest = desired(10);
    newest.replicas = vec![replica(1), replica(2), replica(3)];
    newest.replicas[2].delete = true;
    newest.engines = vec![engine(1, 5, 50), engine(2, 7, 70), engine(4, 1, 1)];
    accept(&mut store, newest);
    let mut older = desired(9);
    older.pools.clear();
    older.replicas = vec![replica(1), replica(5)];
    older.replicas[0].delete = true;
    older.engines = vec![engine(1, 4, 40), engine(4, 1, 1), engine(6, 2, 2)];
    older.engines[1].stop = true;
    let accepted = accept(&mut store, older);
    assert!(accepted.behind);
    assert_eq!(
        accepted.doubtful,
        [(volume_id(6), Epoch(2))],
        "it may have been used after the backup"
    );
    let now = store.desired().unwrap();
    assert!(now.pools.contains_key("sp01"));
    let wishes: Vec<_> = now
        .replicas
        .iter()
        .map(|(key, replica)| (key.0.0.as_u128(), replica.wish))
        .collect();
    assert_eq!(
        wishes,
        [
            (1, Wish::Serve),
            (2, Wish::Serve),
            (3, Wish::Serve),
            (5, Wish::Serve)
        ]
    );
    let engines: Vec<_> = now
        .engines
        .iter()
        .map(|(id, engine)| (id.0.as_u128(), engine.volume.row.view.epoch.0, engine.stop))
        .collect();
    assert_eq!(
        engines,
        [(1, 5, false), (2, 7, false), (4, 1, false), (6, 2, false)]
    );
    // And so after a restart, until the revisions have passed those seen before.
    let mut store = Store::load(&path).unwrap();
    assert!(
        accept(
            &mut store,
            proto::Desired {
                revision: 9,
                ..Default::default()
            }
        )
        .behind
    );
    assert_eq!(store.desired().unwrap().engines.len(), 4);
    assert!(
        !accept(
            &mut store,
            proto::Desired {
                revision: 10,
                ..Default::default()
            }
        )
        .behind
    );
    assert_eq!(store.desired().unwrap().engines.len(), 0);
}

#[test]
fn a_node_without_memory_trusts_no_epoch() {
    let directory = TempDir::new().unwrap();
    let mut store = Store::load(&directory.path().join("desired")).unwrap();
    let accepted = accept(&mut store, desired(10));
    assert_eq!(accepted.doubtful, [(volume_id(1), Epoch(5))]);
    let mut next = desired(11);
    next.engines.push(engine(2, 1, 1));
    assert_eq!(accept(&mut store, next).doubtful, []);
}

#[test]
fn what_cannot_be_noted_is_not_accepted() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("desired");
    let mut store = Store::load(&path).unwrap();
    let refused = store.accept(desired(10), |_| {
        Err(StoreError::Message(RowError::Absent {
            what: "a disk that can be written",
        }))
    });
    assert!(refused.is_err());
    assert!(store.desired().is_none() && !path.exists());
}

#[test]
fn a_row_is_read_with_all_it_says() {
    let read = Volume::try_from(volume(1, 5, 50)).unwrap();
    let row = &read.row;
    assert_eq!(
        row.view,
        View {
            epoch: Epoch(5),
            config: ConfigSeq(3)
        }
    );
    assert_eq!(
        (row.owner.as_deref(), row.clean, row.clean_before, row.min_in_sync),
        (Some("k1"), false, true, 1)
    );
    assert_eq!(read.addresses, [(ReplicaId(0), "10.0.0.1:3371".to_owned())]);
    assert_eq!(read.right.bytes(), [7; 9]);
    let (one, two) = (&row.replicas[&ReplicaId(0)], &row.replicas[&ReplicaId(1)]);
    assert_eq!((one.joined, one.state), (Some(ConfigSeq(2)), MemberState::InSync));
    let reason = EjectReason::Unreachable;
    assert_eq!(
        (two.joined, two.state),
        (
            Some(ConfigSeq(1)),
            MemberState::Stale {
                since: Some(ConfigSeq(3)),
                reason
            }
        )
    );
    let mut never = volume(1, 5, 50);
    never.members[1].ever_in_sync = false;
    never.members[1].reason = "new".to_owned();
    let never = Volume::try_from(never).unwrap().row.replicas[&ReplicaId(1)].clone();
    assert_eq!(
        (never.joined, never.state),
        (
            None,
            MemberState::Stale {
                since: None,
                reason: EjectReason::New
            }
        )
    );
}

#[test]
fn a_row_that_is_none_is_refused() {
    let broken: [fn(&mut proto::Volume); 7] = [
        |volume| volume.volume_id.clear(),
        |volume| volume.lineage = "x".to_owned(),
        |volume| volume.size_bytes = 4095,
        |volume| volume.size_bytes = 0,
        |volume| volume.size_bytes = (64 << 40) + 4096,
        |volume| volume.min_in_sync = 300,
        |volume| volume.members[1].reason = "bored".to_owned(),
    ];
    for (number, breaks) in broken.iter().enumerate() {
        let mut message = volume(1, 1, 1);
        breaks(&mut message);
        assert!(Volume::try_from(message).is_err(), "number {number}");
    }
}

#[test]
fn a_refusal_is_told_with_all_its_fields() {
    let row = Volume::try_from(volume(1, 5, 50)).unwrap().row;
    let stale = View {
        epoch: Epoch(4),
        config: ConfigSeq(3),
    };
    let changes = [
        Change::Add {
            expect: stale,
            member: ReplicaId(1),
        },
        Change::Add {
            expect: row.view,
            member: ReplicaId(0),
        },
        Change::Remove {
            expect: row.view,
            members: vec![(ReplicaId(0), EjectReason::TimedOut)],
        },
        Change::Remove {
            expect: row.view,
            members: vec![(ReplicaId(7), EjectReason::TimedOut)],
        },
        Change::Restart {
            owner: "k2".to_owned(),
            expect: Epoch(5),
        },
    ];
    for change in changes {
        assert_eq!(row::refusal(&row, &change), decide(&row, &change).unwrap_err());
    }
    // Judged on an earlier row than the one that came with the answer.
    let change = Change::Add {
        expect: row.view,
        member: ReplicaId(1),
    };
    let expected = row.view;
    assert_eq!(
        row::refusal(&row, &change),
        Refusal::ViewChanged {
            expected,
            current: row.view
        }
    );
}

#[test]
fn a_replica_that_was_there_once_is_remembered() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("known.json");
    let mut known = Known::load(&path).unwrap();
    let pool = KnownPool {
        path: "/data".into(),
        id: Uuid::from_u128(3),
        thin: false,
        disks: Vec::new(),
    };
    let changes = [
        KnownChange::Pool("sp01".to_owned(), pool),
        KnownChange::Made(volume_id(1), ReplicaId(0)),
        KnownChange::Made(volume_id(2), ReplicaId(1)),
    ];
    known.change(changes).unwrap();
    known
        .change([KnownChange::Deleted(volume_id(2), ReplicaId(1))])
        .unwrap();
    let known = Known::load(&path).unwrap();
    assert!(known.was_made(volume_id(1), ReplicaId(0)));
    assert!(!known.was_made(volume_id(1), ReplicaId(1)));
    assert!(!known.was_made(volume_id(2), ReplicaId(1)));
    assert_eq!(known.pool("sp01", Path::new("/data")), Some(Uuid::from_u128(3)));
    assert_eq!(known.pool("sp01", Path::new("/elsewhere")), None);
    for (content, newer) in [
        ("{", false),
        ("{\"version\":1}", false),
        ("{\"version\":2}", true),
    ] {
        fs::write(&path, content).unwrap();
        let error = Known::load(&path).unwrap_err();
        assert_eq!(
            matches!(error, KnownError::Newer { .. }),
            newer,
            "{content}: {error}"
        );
        assert_eq!(
            matches!(error, KnownError::Damaged { .. }),
            !newer,
            "{content}: {error}"
        );
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            content,
            "nothing is thrown away"
        );
    }
}

#[test]
fn one_satellite_has_a_state_directory() {
    let directory = TempDir::new().unwrap();
    let state = StateDir::open(directory.path(), "s1").unwrap();
    let error = StateDir::open(directory.path(), "s1").unwrap_err();
    let pid = std::process::id().to_string();
    assert!(
        matches!(&error, StateDirError::InUse { pid: told, .. } if *told == pid),
        "{error}"
    );
    drop(state);
    let error = StateDir::open(directory.path(), "s2").unwrap_err();
    assert!(
        matches!(&error, StateDirError::OtherNode { found, .. } if found == "s1"),
        "{error}"
    );
    StateDir::open(directory.path(), "s1").unwrap();
}

#[test]
fn the_lock_of_a_satellite_that_is_gone_is_waited_for() {
    let directory = TempDir::new().unwrap();
    drop(StateDir::open(directory.path(), "s1").unwrap());
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let path = directory.path().join("lock");
    fs::write(&path, format!("{}\n", gone.id())).unwrap();
    // As a child does that the satellite was just starting when it ended.
    let inherited = fs::File::open(&path).unwrap();
    rustix::fs::flock(&inherited, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let place = directory.path().to_owned();
    let opening = std::thread::spawn(move || StateDir::open(&place, "s1"));
    std::thread::sleep(std::time::Duration::from_millis(200));
    drop(inherited);
    opening.join().unwrap().unwrap();
    let pid = fs::read_to_string(&path).unwrap();
    assert_eq!(pid, format!("{}\n", std::process::id()));
}

#[test]
fn a_state_directory_of_a_newer_release_is_left_as_it_is() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("satellite.json");
    for (content, newer) in [
        (r#"{"version":2,"else":1}"#, true),
        ("", false),
        (r#"{"version":1}"#, false),
    ] {
        fs::write(&file, content).unwrap();
        let error = StateDir::open(directory.path(), "s1").unwrap_err();
        assert_eq!(
            matches!(error, StateDirError::Newer { version: 2, .. }),
            newer,
            "{error}"
        );
        assert_eq!(matches!(error, StateDirError::Damaged { .. }), !newer, "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), content);
    }
}

#[test]
fn sockets_have_paths_the_kernel_takes() {
    let directory = TempDir::new().unwrap();
    let volume = volume_id(1);
    let near = StateDir::open(&directory.path().join("s1"), "s1").unwrap();
    assert_eq!(
        near.paths().control_socket(volume),
        near.paths().engine(volume).join("control.sock")
    );
    let deep = directory.path().join("d".repeat(80));
    let deep = match StateDir::open(&deep, "s1") {
        Ok(deep) => deep,
        // Only root can use the short place.
        Err(error) => return assert!(matches!(error, StateDirError::TooLong { .. }), "{error}"),
    };
    for socket in [
        deep.paths().control_socket(volume),
        deep.paths().nbd_socket(volume),
    ] {
        assert!(
            socket.as_os_str().as_bytes().len() <= MAX_SOCKET_PATH,
            "{}",
            socket.display()
        );
    }
    deep.paths().make_engine(volume).unwrap();
    deep.paths().remove_engine(volume).unwrap();
    assert!(!deep.paths().engine_sockets(volume).exists());
    fs::remove_dir(deep.paths().engine_sockets(volume).parent().unwrap()).unwrap();
}

fn keys(store: &Store) -> Vec<(u8, bool)> {
    let keys = store.desired().unwrap().keys.keys();
    keys.iter()
        .map(|trusted| (trusted.key.0[0], trusted.retired))
        .collect()
}

/// Replicas of a node that starts while no controller answers have to know whom to let in.
#[test]
fn signing_keys_are_kept_and_an_older_catalogue_takes_none_away() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("desired");
    let mut store = Store::load(&path).unwrap();
    let with = |revision, keys: &[proto::SigningKey]| proto::Desired {
        keys: keys.to_vec(),
        ..desired(revision)
    };
    accept(&mut store, with(10, &[key(1, true), key(2, false)]));
    assert_eq!(keys(&Store::load(&path).unwrap()), [(1, true), (2, false)]);
    assert!(accept(&mut store, with(9, &[key(1, false), key(3, false)])).behind);
    let merged = [(2, false), (1, true), (3, false)];
    assert_eq!(keys(&store), merged);
    assert_eq!(keys(&Store::load(&path).unwrap()), merged);
    assert!(!accept(&mut store, with(11, &[key(3, false)])).behind);
    assert_eq!(keys(&store), [(3, false)]);
    let short = proto::SigningKey {
        public: vec![1; 31],
        retired: false,
    };
    let refused = store
        .accept::<StoreError>(with(12, &[short]), |_| Ok(()))
        .unwrap_err();
    assert!(refused.to_string().contains("31 bytes"), "{refused}");
    assert_eq!(keys(&store), [(3, false)]);
}
