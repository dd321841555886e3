use std::fs;
use std::path::Path;

use stor_replication::ids::{Epoch, Lineage, SnapshotId, VolumeId};
use stor_right::{Keyring, Seconds, SignedRight, Signer, Statement, TrustedKey};
use uuid::Uuid;

use super::super::copies::{CopyWish, WantedCopy};
use super::super::desired::{WantedReplica, Wish};
use super::*;
use crate::replicas::{Server, snapshot};

const UNIT: usize = 64 << 10;
const SIZE: usize = 20 * UNIT;

fn volume() -> VolumeId {
    VolumeId(Uuid::from_u128(1))
}

fn key(snapshot: u128, replica: u32) -> CopyKey {
    (
        volume(),
        SnapshotId(Uuid::from_u128(snapshot)),
        ReplicaId(replica),
    )
}

fn path(pool: &Path, key: CopyKey) -> PathBuf {
    Room::Directory(pool.to_owned()).copy(key)
}

/// A copy in a pool.
fn put(pool: &Path, key: CopyKey, bytes: &[u8]) {
    fs::create_dir_all(pool.join(volume().to_string())).unwrap();
    fs::write(path(pool, key), bytes).unwrap();
}

fn blocks(content: [u8; 20]) -> Vec<u8> {
    content.iter().flat_map(|byte| vec![*byte; UNIT]).collect()
}

/// A node that has copies of replica 0, and who may read those of which snapshot.
struct Holder {
    server: Server,
    signer: Signer,
    pool: tempfile::TempDir,
}

impl Holder {
    fn new(copies: &[(u128, &[u8])]) -> Self {
        let server = Server::start("127.0.0.1:0".parse().unwrap()).unwrap();
        let signer = Signer::generate().unwrap().0;
        let pool = tempfile::tempdir_in("/var/tmp").unwrap();
        server.trust(Keyring::new(vec![TrustedKey {
            key: signer.public(),
            retired: false,
        }]));
        for (snapshot, bytes) in copies {
            put(pool.path(), key(*snapshot, 0), bytes);
        }
        let shown = copies.iter().map(|(snapshot, _)| {
            let key = key(*snapshot, 0);
            (key, path(pool.path(), key))
        });
        server.show(shown.collect());
        Self { server, signer, pool }
    }

    fn right(&self, snapshot: u128) -> SignedRight {
        let now = Seconds::now();
        self.signer.sign(&Statement {
            volume: VolumeId(Uuid::from_u128(snapshot)),
            epoch: Epoch(1),
            node: "s2".into(),
            read_only: true,
            issued: now,
            expires: Seconds(now.0 + 60),
        })
    }

    /// What another node is told of a copy it is to make.
    fn wanted(&self, snapshot: u128) -> WantedCopy {
        WantedCopy {
            pool: "sp01".into(),
            wish: CopyWish::Recopy,
            recopy: Some(Recopied {
                size: SIZE as u64,
                sources: vec![(ReplicaId(0), self.server.address().to_string())],
                right: self.right(snapshot),
            }),
        }
    }
}

fn desired(copies: Vec<(CopyKey, WantedCopy)>) -> Desired {
    Desired {
        copies: copies.into_iter().collect(),
        ..Desired::default()
    }
}

fn rooms(pool: &Path) -> BTreeMap<String, Room> {
    BTreeMap::from([("sp01".to_owned(), Room::Directory(pool.to_owned()))])
}

/// Until nothing is under way any more.
fn settle(recopies: &mut Recopies, desired: &Desired, rooms: &BTreeMap<String, Room>) {
    for _ in 0..2000 {
        recopies.tend(desired, rooms);
        if !recopies.any_running() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("it does not end: {recopies:?}");
}

fn content(seed: u8) -> Vec<u8> {
    blocks(std::array::from_fn(|at| {
        if at % 3 == 0 {
            0
        } else {
            seed.wrapping_add(u8::try_from(at).unwrap())
        }
    }))
}

#[tokio::test]
async fn what_another_node_holds_is_held_here_whatever_was_there() {
    let (first, second) = (content(10), content(90));
    let holder = Holder::new(&[(1, &first), (2, &second)]);
    let own = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::create_dir(own.path().join(volume().to_string())).unwrap();
    // Of an attempt that was cut short, and longer than it should be.
    let unfinished = snapshot::unfinished(&path(own.path(), key(2, 7)));
    fs::write(&unfinished, [content(33), content(44)].concat()).unwrap();
    let desired = desired(vec![(key(1, 7), holder.wanted(1)), (key(2, 7), holder.wanted(2))]);
    let rooms = rooms(own.path());
    let mut recopies = Recopies::default();
    recopies.tend(&desired, &rooms);
    assert!(
        recopies.is_running(&key(1, 7)) && !recopies.is_running(&key(2, 7)),
        "the oldest comes first"
    );
    settle(&mut recopies, &desired, &rooms);
    settle(&mut recopies, &desired, &rooms);
    for (snapshot, expected) in [(1, &first), (2, &second)] {
        assert_eq!(recopies.stage(&key(snapshot, 7)), Stage::Done);
        assert!(
            fs::read(path(own.path(), key(snapshot, 7))).unwrap() == *expected,
            "{snapshot}"
        );
    }
    assert!(!unfinished.exists());
    drop(holder.pool);
}

#[tokio::test]
async fn one_that_has_its_name_is_whole_and_not_made_again() {
    let holder = Holder::new(&[]);
    let own = tempfile::tempdir_in("/var/tmp").unwrap();
    put(own.path(), key(1, 7), &content(1));
    let desired = desired(vec![(key(1, 7), holder.wanted(1))]);
    let mut recopies = Recopies::default();
    settle(&mut recopies, &desired, &rooms(own.path()));
    assert_eq!(recopies.stage(&key(1, 7)), Stage::Done);
}

#[tokio::test]
async fn without_a_right_to_that_snapshot_nothing_is_read() {
    let holder = Holder::new(&[(1, &content(1)), (2, &content(2))]);
    let own = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::create_dir(own.path().join(volume().to_string())).unwrap();
    let other = WantedCopy {
        recopy: Some(Recopied {
            right: holder.right(2),
            ..holder.wanted(1).recopy.unwrap()
        }),
        ..holder.wanted(1)
    };
    let desired = desired(vec![(key(1, 7), other)]);
    let mut recopies = Recopies::default();
    settle(&mut recopies, &desired, &rooms(own.path()));
    let Stage::Waiting(why) = recopies.stage(&key(1, 7)) else {
        panic!("{recopies:?}");
    };
    assert!(why.contains("does not accept the right"), "{why}");
    assert!(!path(own.path(), key(1, 7)).exists());
    // Nor what is not there, nor what is to go.
    let desired = self::desired(vec![(key(3, 7), holder.wanted(3))]);
    settle(&mut recopies, &desired, &rooms(own.path()));
    let Stage::Waiting(why) = recopies.stage(&key(3, 7)) else {
        panic!("{recopies:?}");
    };
    assert!(why.contains("no such copy"), "{why}");
}

#[test]
fn a_copy_begins_as_the_nearest_snapshot_there_is_or_as_the_volume() {
    let kept = |snapshot| {
        let kept = WantedCopy {
            pool: "sp01".into(),
            wish: CopyWish::Keep,
            recopy: None,
        };
        (key(snapshot, 1), kept)
    };
    let mut desired = desired(vec![kept(2), kept(4), kept(8)]);
    let replica = WantedReplica {
        volume_name: "db1".into(),
        pool: "sp01".into(),
        size: SIZE as u64,
        lineage: Lineage(Uuid::nil()),
        wish: Wish::Serve,
        source: None,
    };
    desired.replicas.insert((volume(), ReplicaId(7)), replica);
    let head = Base::Replica(volume(), ReplicaId(7));
    let of = |snapshot| bases(&desired, "sp01", key(snapshot, 7));
    assert_eq!(of(5), [Base::Copy(key(4, 1)), head]);
    assert_eq!(of(9), [Base::Copy(key(8, 1)), head]);
    assert_eq!(of(1), [Base::Copy(key(2, 1)), head]);
    desired.copies.clear();
    assert_eq!(bases(&desired, "sp01", key(5, 7)), [head]);
    assert_eq!(bases(&desired, "sp02", key(5, 7)), []);
}
