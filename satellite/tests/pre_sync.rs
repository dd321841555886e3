//! What a replica held before it is brought up to date: a replica server on a small XFS file system, with the test
//! in the place of the engine.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use stor_replication::ids::{CacheId, ConfigSeq, Epoch, Lineage, OpId, ReplicaId, View, VolumeId};
use stor_replication::info::Roster;
use stor_replication::wire::{Framed, HEADER, Header, Kind, Status, crc32c, flags};
use stor_right::{Keyring, Seconds, Signer, Statement, TrustedKey};
use stor_satellite::pool::backing::Room;
use stor_satellite::replicas::{ReplicaSpec, ReplicaState, Server};
use uuid::Uuid;

const SIZE: u64 = 16 << 20;
const REPLICA: ReplicaId = ReplicaId(1);
const BLOCK: u32 = 4096;

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A small file system of its own, gone with this.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// `None`, and why: this machine can't.
    fn new(make: &str, mebibytes: u32) -> Result<Self, String> {
        let dir = tempfile::tempdir_in("/var/tmp").map_err(|error| error.to_string())?;
        let (image, place) = (dir.path().join("image"), dir.path().join("disk"));
        fs::create_dir(&place).map_err(|error| error.to_string())?;
        let line = format!(
            "truncate -s {mebibytes}M {0} && {make} {0} && mount -o loop {0} {1}",
            image.display(),
            place.display()
        );
        let output = Command::new("sh").args(["-c", &line]).output();
        let output = output.map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(Self { dir })
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    fn place(&self) -> PathBuf {
        self.dir.path().join("disk")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The server in this process may still have files open.
        let done = Command::new("umount").arg("-l").arg(self.place()).status();
        assert!(done.is_ok_and(|status| status.success()), "unmounting");
    }
}

/// A replica that is served.
struct Storage {
    server: Server,
    spec: ReplicaSpec,
    signer: Signer,
}

impl Storage {
    fn new(place: &Path) -> Self {
        let spec = ReplicaSpec {
            volume: VolumeId(Uuid::new_v4()),
            replica: REPLICA,
            room: Room::Directory(place.to_owned()),
            data: place.join("r1.data"),
            meta: place.join("r1.meta"),
            size: SIZE,
            lineage: Lineage(Uuid::new_v4()),
            create: Some(true),
            cache: CacheId(Uuid::new_v4()),
            source: None,
            snapshots: std::collections::BTreeSet::new(),
        };
        let server = Server::start("127.0.0.1:0".parse().unwrap()).unwrap();
        let signer = Signer::generate().unwrap().0;
        server.trust(Keyring::new(vec![TrustedKey {
            key: signer.public(),
            retired: false,
        }]));
        let storage = Self { server, spec, signer };
        storage.serve();
        storage
    }

    fn serve(&self) {
        self.server.set(vec![self.spec.clone()]);
        wait_for("the replica", || {
            let report = self.server.report();
            let state = report.first().map(|replica| replica.state.clone());
            assert!(!matches!(state, Some(ReplicaState::Failed(_))), "{state:?}");
            (state == Some(ReplicaState::Ready)).then_some(())
        });
    }

    fn close(&self) {
        self.server.set(Vec::new());
        wait_for("the end", || self.server.report().is_empty().then_some(()));
    }

    fn kept(&self) -> PathBuf {
        self.spec.data.with_added_extension("pre-sync")
    }

    fn engine(&self, epoch: u64, flags: u16) -> Engine {
        let mut engine = Engine {
            stream: TcpStream::connect(self.server.address()).unwrap(),
            volume: self.spec.volume,
            view: View {
                epoch: Epoch(epoch),
                config: ConfigSeq(0),
            },
            op: 0,
        };
        engine
            .stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let issued = Seconds::now();
        let right = self.signer.sign(&Statement {
            volume: self.spec.volume,
            epoch: Epoch(epoch),
            node: "k1".to_owned(),
            read_only: false,
            issued,
            expires: issued.after(Duration::from_mins(10)),
        });
        assert_eq!(engine.ask(Kind::Open, flags, (0, 0), right.bytes()).0, Status::Ok);
        engine
    }
}

/// An engine, as far as one replica can tell.
struct Engine {
    stream: TcpStream,
    volume: VolumeId,
    view: View,
    op: u64,
}

impl Engine {
    fn ask(
        &mut self,
        kind: Kind,
        flags: u16,
        (offset, length): (u64, u32),
        payload: &[u8],
    ) -> (Status, Vec<u8>) {
        self.op += 1;
        let header = Header {
            kind,
            flags,
            volume: self.volume,
            replica: REPLICA,
            view: self.view,
            op: OpId(self.op),
            offset,
            length,
            status: Status::Ok,
        };
        let head = header.encode(u32::try_from(payload.len()).unwrap(), crc32c(payload));
        self.stream.write_all(&head).unwrap();
        self.stream.write_all(payload).unwrap();
        let mut head = [0; HEADER];
        self.stream.read_exact(&mut head).unwrap();
        let framed = Framed::try_from(&head).unwrap();
        assert_eq!(framed.header.op, header.op);
        let mut payload = vec![0; framed.payload as usize];
        self.stream.read_exact(&mut payload).unwrap();
        (framed.header.status, payload)
    }

    /// In sync, alone.
    fn joins(&mut self) {
        let roster = Roster {
            in_sync: vec![REPLICA],
            absent: Vec::new(),
        };
        let flags = flags::MEMBER | flags::WHOLE;
        assert_eq!(
            self.ask(Kind::StoreView, flags, (0, 0), &roster.encode()).0,
            Status::Ok
        );
    }

    fn catches_up(&mut self) {
        let roster = Roster::default().encode();
        assert_eq!(self.ask(Kind::StoreView, 0, (0, 0), &roster).0, Status::Ok);
    }

    fn write(&mut self, content: u8) {
        let payload = vec![content; BLOCK as usize];
        assert_eq!(self.ask(Kind::Write, 0, (0, BLOCK), &payload).0, Status::Ok);
        assert_eq!(self.ask(Kind::Flush, 0, (0, 0), &[]).0, Status::Ok);
    }
}

fn xfs(mebibytes: u32) -> Option<Disk> {
    Disk::new("mkfs.xfs -q -m reflink=1", mebibytes)
        .inspect_err(|why| stor_skip::skipped("pre_sync", format_args!("no XFS here: {why}")))
        .ok()
}

#[test]
fn the_last_state_in_sync_is_kept_until_the_replica_is_in_sync_again() {
    let Some(disk) = xfs(400) else { return };
    let storage = Storage::new(&disk.place());
    let mut engine = storage.engine(1, flags::MEMBER);
    engine.joins();
    engine.write(0x11);
    assert!(!storage.kept().exists(), "a member keeps nothing");
    drop(engine);

    // Brought up to date, once and again: what is kept is of before the first attempt.
    for (epoch, content) in [(2, 0x22), (3, 0x33)] {
        let mut engine = storage.engine(epoch, 0);
        assert!(storage.kept().exists(), "promised before the state was kept");
        engine.catches_up();
        engine.write(content);
        let byte = |path: &Path| fs::read(path).unwrap()[0];
        assert_eq!(byte(&storage.kept()), 0x11, "attempt {epoch}");
        assert_eq!(byte(&storage.spec.data), content);
        // The process ends in the middle.
        drop(engine);
        storage.close();
        storage.serve();
        assert!(storage.kept().exists());
    }
    assert_eq!(fs::metadata(storage.kept()).unwrap().len(), SIZE);

    let mut engine = storage.engine(4, 0);
    engine.catches_up();
    engine.write(0x44);
    assert!(storage.kept().exists());
    engine.joins();
    wait_for("its removal", || (!storage.kept().exists()).then_some(()));
    // The next time it is of the next state.
    drop(engine);
    let engine = storage.engine(5, 0);
    assert_eq!(fs::read(storage.kept()).unwrap()[0], 0x44);
    drop(engine);
}

#[test]
fn a_pool_with_little_room_keeps_nothing() {
    let Some(disk) = xfs(400) else { return };
    let storage = Storage::new(&disk.place());
    let mut engine = storage.engine(1, flags::MEMBER);
    engine.joins();
    engine.write(0x11);
    drop(engine);
    let space = stor_device::file::space(&disk.place()).unwrap();
    let fill = space.available - space.total / 20;
    let line = format!("fallocate -l {fill} {}", disk.place().join("fill").display());
    let filled = Command::new("sh").args(["-c", &line]).status().unwrap();
    assert!(filled.success());
    let mut engine = storage.engine(2, 0);
    engine.catches_up();
    engine.write(0x22);
    assert!(!storage.kept().exists());
    assert_eq!(
        fs::read_dir(disk.place()).unwrap().count(),
        3,
        "data, metadata, filling"
    );
}

#[test]
fn a_file_system_without_reflink_keeps_nothing() {
    let disk = match Disk::new("mkfs.ext4 -q", 200) {
        Ok(disk) => disk,
        Err(why) => return stor_skip::skipped("pre_sync", format_args!("no ext4 here: {why}")),
    };
    let storage = Storage::new(&disk.place());
    let mut engine = storage.engine(1, flags::MEMBER);
    engine.joins();
    engine.write(0x11);
    drop(engine);
    let mut engine = storage.engine(2, 0);
    engine.catches_up();
    engine.write(0x22);
    assert!(!storage.kept().exists());
}
