//! Pools of kind `file`: what is refused and why, the marker, the files of replicas, the disks of a node.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use stor_replication::ids::{ReplicaId, VolumeId};
use stor_satellite::pool::disk;
use stor_satellite::pool::marker::{self, MARKER, Marker, MarkerError};
use stor_satellite::pool::replica::{ReplicaFiles, finish_deletions, has_volumes};
use stor_satellite::pool::{Opener, Pool, PoolError, PoolSpec};
use tempfile::TempDir;
use uuid::Uuid;

fn spec(path: &Path) -> PoolSpec {
    PoolSpec {
        name: "sp01".to_owned(),
        path: path.to_owned(),
        kind: stor_satellite::pool::Kind::File,
    }
}

fn opener() -> Opener {
    Opener {
        node: "s1".to_owned(),
        pools: vec!["sp01".to_owned()],
        ..Opener::default()
    }
}

fn open(path: &Path) -> Result<Pool, PoolError> {
    Pool::open(&spec(path), &opener())
}

/// A file system of its own; `None` where mounting is not allowed, and then the test is about nothing.
struct Mounted(PathBuf);

impl Mounted {
    fn new(kind: &str, path: &Path, options: &str) -> Option<Self> {
        let options = std::ffi::CString::new(options).unwrap();
        match mount(
            "stor-test",
            path,
            kind,
            MountFlags::empty(),
            Some(options.as_c_str()),
        ) {
            Ok(()) => Some(Self(path.to_owned())),
            Err(error) => {
                stor_skip::skipped("agent_pools", format_args!("cannot mount {kind}: {error}"));
                None
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_good_directory_becomes_a_pool_and_stays_the_same_one() {
    let directory = TempDir::new().unwrap();
    let (id, cache) = {
        let pool = open(directory.path()).unwrap();
        let usage = pool.usage().unwrap();
        assert!(usage.capacity >= usage.free && usage.free > 0, "{usage:?}");
        assert!(pool.obstacle(usage).is_none());
        (pool.id(), pool.cache("boot"))
    };
    let marker = marker::read(directory.path()).unwrap().unwrap();
    assert_eq!(
        (marker.node.as_str(), marker.pool.as_str(), marker.id),
        ("s1", "sp01", id)
    );
    let names: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, [MARKER], "probes must leave nothing behind");
    let again = Pool::open(
        &spec(directory.path()),
        &Opener {
            known: Some(id),
            ..opener()
        },
    )
    .unwrap();
    assert_eq!(
        again.cache("boot"),
        cache,
        "the restart of a satellite keeps what the disk has"
    );
    assert_ne!(again.cache("another boot"), cache);
}

#[test]
fn what_is_no_directory_is_refused() {
    let directory = TempDir::new().unwrap();
    let missing = directory.path().join("missing");
    assert!(matches!(open(&missing), Err(PoolError::Missing { .. })));
    assert!(
        !missing.exists(),
        "a missing directory may be a disk that is not mounted: it is not made"
    );
    let file = directory.path().join("file");
    fs::write(&file, "x").unwrap();
    assert!(matches!(open(&file), Err(PoolError::NotADirectory { .. })));
    assert!(matches!(
        open(&file.join("below")),
        Err(PoolError::NotADirectory { .. })
    ));
    assert!(matches!(
        open(Path::new("relative")),
        Err(PoolError::Relative { .. })
    ));
}

#[test]
fn the_pool_of_another_is_refused_and_said_whose_it_is() {
    let directory = TempDir::new().unwrap();
    marker::write(directory.path(), &Marker::new("s2", "sp01")).unwrap();
    let error = open(directory.path()).unwrap_err();
    assert!(
        matches!(&error, PoolError::Used { node, pool, .. } if node == "s2" && pool == "sp01"),
        "{error}"
    );
    marker::write(directory.path(), &Marker::new("s1", "other")).unwrap();
    let both = Opener {
        pools: vec!["sp01".to_owned(), "other".to_owned()],
        ..opener()
    };
    let error = Pool::open(&spec(directory.path()), &both).unwrap_err();
    assert!(
        matches!(&error, PoolError::Used { node, pool, .. } if node == "s1" && pool == "other"),
        "{error}"
    );
}

#[test]
fn an_empty_pool_that_was_deleted_can_become_another() {
    let directory = TempDir::new().unwrap();
    marker::write(directory.path(), &Marker::new("s1", "old")).unwrap();
    fs::create_dir(directory.path().join(Uuid::new_v4().to_string())).unwrap();
    assert!(
        matches!(open(directory.path()), Err(PoolError::Used { .. })),
        "volumes of the old pool are left"
    );
    fs::remove_dir(directory.path().join(directory_of_volume(directory.path()))).unwrap();
    open(directory.path()).unwrap();
    assert_eq!(marker::read(directory.path()).unwrap().unwrap().pool, "sp01");
}

fn directory_of_volume(pool: &Path) -> String {
    let names = fs::read_dir(pool)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .into_iter()
        .find(|name| Uuid::parse_str(name).is_ok())
        .unwrap()
}

#[test]
fn two_satellites_cannot_use_one_directory_at_once() {
    let directory = TempDir::new().unwrap();
    let pool = open(directory.path()).unwrap();
    assert!(matches!(open(directory.path()), Err(PoolError::Locked { .. })));
    let stranger = Opener {
        node: "s2".to_owned(),
        ..opener()
    };
    let error = Pool::open(&spec(directory.path()), &stranger).unwrap_err();
    assert!(
        matches!(&error, PoolError::Used { node, .. } if node == "s1"),
        "{error}"
    );
    drop(pool);
    open(directory.path()).unwrap();
}

#[test]
fn an_empty_mount_point_is_not_taken_for_a_new_pool() {
    let directory = TempDir::new().unwrap();
    let known = Opener {
        known: Some(Uuid::new_v4()),
        ..opener()
    };
    assert!(matches!(
        Pool::open(&spec(directory.path()), &known),
        Err(PoolError::MarkerGone { .. })
    ));
    assert!(!directory.path().join(MARKER).exists());
    open(directory.path()).unwrap();
    assert!(matches!(
        Pool::open(&spec(directory.path()), &known),
        Err(PoolError::Exchanged { .. })
    ));
}

#[test]
fn a_marker_that_goes_while_the_pool_is_open_is_noticed() {
    let directory = TempDir::new().unwrap();
    let pool = open(directory.path()).unwrap();
    let usage = pool.usage().unwrap();
    marker::write(directory.path(), &Marker::new("s1", "sp01")).unwrap();
    assert!(matches!(pool.obstacle(usage), Some(PoolError::Exchanged { .. })));
    fs::remove_file(directory.path().join(MARKER)).unwrap();
    assert!(matches!(pool.obstacle(usage), Some(PoolError::MarkerGone { .. })));
}

#[test]
fn a_damaged_or_newer_marker_is_refused_and_kept() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join(MARKER);
    for content in ["", "{", "[]", r#"{"version":1}"#] {
        fs::write(&path, content).unwrap();
        let error = open(directory.path()).unwrap_err();
        assert!(
            matches!(error, PoolError::Marker(MarkerError::Damaged { .. })),
            "{content:?}: {error}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
    fs::write(&path, r#"{"version":2,"what":"ever"}"#).unwrap();
    let error = open(directory.path()).unwrap_err();
    assert!(
        matches!(error, PoolError::Marker(MarkerError::Newer { version: 2, .. })),
        "{error}"
    );
}

#[test]
fn a_directory_inside_a_pool_is_refused() {
    let outer = TempDir::new().unwrap();
    drop(open(outer.path()).unwrap());
    let inner = outer.path().join("a/b");
    fs::create_dir_all(&inner).unwrap();
    let other = TempDir::new().unwrap();
    let link = other.path().join("link");
    std::os::unix::fs::symlink(&inner, &link).unwrap();
    for path in [&inner, &link] {
        let error = open(path).unwrap_err();
        assert!(matches!(error, PoolError::Nested { .. }), "{error}");
        assert!(error.to_string().contains("pool sp01 of node s1"), "{error}");
        assert!(!inner.join(MARKER).exists());
    }
    // One that is used already goes on: its replicas are there.
    marker::write(&inner, &Marker::new("s1", "sp01")).unwrap();
    open(&inner).unwrap();
}

#[test]
fn a_full_file_system_is_refused_for_a_new_pool() {
    let directory = TempDir::new().unwrap();
    let Some(_mounted) = Mounted::new("tmpfs", directory.path(), "size=4m") else {
        return;
    };
    let error = open(directory.path()).unwrap_err();
    assert!(matches!(error, PoolError::Full { .. }), "{error}");
    assert!(!directory.path().join(MARKER).exists());
}

#[test]
fn a_pool_that_became_full_is_opened_and_says_so() {
    let directory = TempDir::new().unwrap();
    let Some(_mounted) = Mounted::new("tmpfs", directory.path(), "size=64m") else {
        return;
    };
    let id = open(directory.path()).unwrap().id();
    let filled = fs::File::create(directory.path().join("filler")).unwrap();
    rustix::fs::fallocate(&filled, rustix::fs::FallocateFlags::empty(), 0, 60 << 20).unwrap();
    let pool = Pool::open(
        &spec(directory.path()),
        &Opener {
            known: Some(id),
            ..opener()
        },
    )
    .unwrap();
    let obstacle = pool.obstacle(pool.usage().unwrap());
    assert!(matches!(obstacle, Some(PoolError::Full { .. })), "{obstacle:?}");
}

#[test]
fn a_read_only_file_system_is_refused_for_a_new_pool_and_told_of_an_old_one() {
    let directory = TempDir::new().unwrap();
    let Some(_mounted) = Mounted::new("tmpfs", directory.path(), "size=64m") else {
        return;
    };
    let read_only = || {
        rustix::mount::mount_remount(directory.path(), MountFlags::RDONLY, "size=64m").unwrap();
    };
    read_only();
    let error = open(directory.path()).unwrap_err();
    assert!(matches!(error, PoolError::ReadOnly { .. }), "{error}");
    rustix::mount::mount_remount(directory.path(), MountFlags::empty(), "size=64m").unwrap();
    drop(open(directory.path()).unwrap());
    read_only();
    let pool = open(directory.path()).unwrap();
    let obstacle = pool.obstacle(pool.usage().unwrap());
    assert!(
        matches!(obstacle, Some(PoolError::ReadOnly { .. })),
        "{obstacle:?}"
    );
}

#[test]
fn a_file_system_without_direct_io_is_refused() {
    let directory = TempDir::new().unwrap();
    let Some(_mounted) = Mounted::new("ramfs", directory.path(), "") else {
        return;
    };
    let error = open(directory.path()).unwrap_err();
    assert!(matches!(error, PoolError::NoDirectIo { .. }), "{error}");
    assert!(!directory.path().join(MARKER).exists());
}

fn files(pool: &Path, replica: u32) -> (ReplicaFiles, VolumeId) {
    let volume = VolumeId(Uuid::from_u128(7));
    (ReplicaFiles::of(pool, volume, ReplicaId(replica)), volume)
}

fn fill(files: &ReplicaFiles) {
    files.prepare().unwrap();
    fs::write(&files.data, [1; 8192]).unwrap();
    fs::write(&files.meta, [2; 4096]).unwrap();
}

#[test]
fn the_files_of_a_replica_are_where_the_documentation_says() {
    let (files, volume) = files(Path::new("/pool"), 3);
    assert_eq!(
        files.data,
        Path::new("/pool").join(volume.to_string()).join("r3.data")
    );
    assert_eq!(
        files.meta,
        Path::new("/pool").join(volume.to_string()).join("r3.meta")
    );
}

#[test]
fn a_replica_is_deleted_whole_and_alone() {
    let directory = TempDir::new().unwrap();
    let (one, _) = files(directory.path(), 1);
    let (two, _) = files(directory.path(), 2);
    fill(&one);
    fill(&two);
    assert!(one.allocated().unwrap() >= 12288);
    one.delete().unwrap();
    assert_eq!(one.allocated().unwrap(), 0);
    assert!(two.data.exists() && two.meta.exists());
    one.delete().unwrap();
    two.delete().unwrap();
    assert!(!has_volumes(directory.path()).unwrap());
}

#[test]
fn a_deletion_cut_short_is_finished() {
    let directory = TempDir::new().unwrap();
    let (one, _) = files(directory.path(), 1);
    let (two, _) = files(directory.path(), 2);
    fill(&one);
    fill(&two);
    // As a crash after the rename leaves it.
    fs::rename(&one.meta, format!("{}.deleted", one.meta.display())).unwrap();
    assert_eq!(finish_deletions(directory.path()).unwrap(), 1);
    assert!(!one.data.exists());
    assert!(
        two.data.exists() && two.meta.exists(),
        "a whole replica was taken away"
    );
    assert_eq!(finish_deletions(directory.path()).unwrap(), 0);
}

#[test]
fn a_pool_is_given_back_only_when_it_is_empty() {
    let directory = TempDir::new().unwrap();
    let (one, _) = files(directory.path(), 1);
    fill(&one);
    assert!(!open(directory.path()).unwrap().retire().unwrap());
    assert!(directory.path().join(MARKER).exists());
    one.delete().unwrap();
    assert!(open(directory.path()).unwrap().retire().unwrap());
    assert!(!directory.path().join(MARKER).exists());
}

#[test]
fn disks_in_use_say_what_for() {
    let listing = r#"{"blockdevices": [
        {"name":"sda","path":"/dev/sda","type":"disk","size":1000,"model":"M ","serial":"S","rota":true,"mountpoints":[null],
         "children":[{"name":"sda1","type":"part"},{"name":"sda2","type":"part"}]},
        {"name":"sdb","type":"disk","size":"2000","rota":"0","ro":"0","mountpoint":"/data"},
        {"name":"sdc","type":"disk","size":3000,"fstype":"xfs","mountpoints":[null]},
        {"name":"sdd","type":"disk","size":3000,"pttype":"gpt"},
        {"name":"sde","type":"disk","size":3000,"children":[{"name":"vg-lv","type":"lvm"}]},
        {"name":"sdf","type":"disk","size":3000,"ro":true},
        {"name":"sdg","type":"disk","size":3000,"model":null,"serial":null,"children":[]},
        {"name":"sdh","type":"disk","size":0},
        {"name":"loop0","type":"loop","size":5},{"name":"zram0","type":"disk","size":5},{"name":"sr0","type":"rom","size":5}]}"#;
    let disks = disk::parse(listing.as_bytes()).unwrap();
    let seen: Vec<_> = disks
        .iter()
        .map(|disk| (disk.path.as_str(), disk.in_use.as_deref()))
        .collect();
    assert_eq!(
        seen,
        [
            ("/dev/sda", Some("has 2 partitions")),
            ("/dev/sdb", Some("is mounted on /data")),
            ("/dev/sdc", Some("has a signature (xfs)")),
            ("/dev/sdd", Some("has a partition table (gpt)")),
            ("/dev/sde", Some("is used by vg-lv (lvm)")),
            ("/dev/sdf", Some("is read-only")),
            ("/dev/sdg", None),
        ]
    );
    assert_eq!(
        (disks[0].model.as_str(), disks[0].rotational, disks[0].size),
        ("M", true, 1000)
    );
    assert_eq!((disks[1].rotational, disks[1].size), (false, 2000));
    assert!(disk::parse(b"no json").is_err());
}
