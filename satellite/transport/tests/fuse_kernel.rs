//! The kernel judges the FUSE protocol: a volume in memory, mounted, with a loop device and a file system on it.
//!
//! Needs root, `/dev/fuse` and loop devices; where they are missing the tests say so and check nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
#![cfg(target_os = "linux")]

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use stor_tests::clients::{run, run_ok};
use stor_transport::fuse::{self, Answer, Connection, Data, Errno, READ_BUFFER, Session};
use tempfile::TempDir;

const SIZE: u64 = 64 << 20;

/// The volume, and what the kernel asked of it.
struct Volume {
    bytes: Mutex<Vec<u8>>,
    /// What the catalogue says.
    size: AtomicU64,
    /// The server ends, as if killed, once it has read a write.
    die_on_write: AtomicBool,
    largest_write: AtomicU32,
    flushes: AtomicU32,
    discards: AtomicU32,
    zeroes: AtomicU32,
    resent: AtomicU32,
}

impl Volume {
    fn fill(&self, offset: u64, len: u64) {
        let (offset, len) = (usize::try_from(offset).unwrap(), usize::try_from(len).unwrap());
        self.bytes.lock().unwrap()[offset..offset + len].fill(0);
    }

    /// Does what was asked and returns the parts of the reply.
    fn serve(&self, data: &Data, buffer: &[u8]) -> (Vec<u8>, Vec<u8>) {
        match *data {
            Data::Read { unique, offset, len } => {
                let start = usize::try_from(offset).unwrap();
                let read = self.bytes.lock().unwrap()[start..start + len as usize].to_vec();
                (fuse::read_header(unique, len).to_vec(), read)
            }
            Data::Write {
                unique,
                offset,
                ref payload,
            } => {
                let payload = &buffer[payload.clone()];
                let start = usize::try_from(offset).unwrap();
                self.bytes.lock().unwrap()[start..start + payload.len()].copy_from_slice(payload);
                let len = u32::try_from(payload.len()).unwrap();
                self.largest_write.fetch_max(len, Ordering::Relaxed);
                if unique.is_resent() {
                    self.resent.fetch_add(1, Ordering::Relaxed);
                }
                (fuse::written(unique, len).to_vec(), vec![])
            }
            Data::Flush { unique } => {
                self.flushes.fetch_add(1, Ordering::Relaxed);
                (fuse::done(unique).to_vec(), vec![])
            }
            Data::Discard { unique, offset, len } => {
                self.discards.fetch_add(1, Ordering::Relaxed);
                self.fill(offset, len);
                (fuse::done(unique).to_vec(), vec![])
            }
            Data::Zero { unique, offset, len } => {
                self.zeroes.fetch_add(1, Ordering::Relaxed);
                self.fill(offset, len);
                (fuse::done(unique).to_vec(), vec![])
            }
        }
    }
}

/// Serves until the mount is gone, or until it dies.
fn serve(mut device: File, mut connection: Connection, volume: &Volume) -> Option<Session> {
    let mut buffer = vec![0; READ_BUFFER];
    loop {
        let read = match device.read(&mut buffer) {
            Ok(read) => read,
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw()) => return connection.session(),
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw()) => continue,
            Err(error) => panic!("reading requests: {error}"),
        };
        let request = fuse::parse(&buffer[..read]).unwrap();
        connection.set_size(volume.size.load(Ordering::Relaxed));
        let (head, body) = match connection.answer(&request) {
            Answer::Reply(reply) | Answer::Started(reply, _) => (reply, vec![]),
            Answer::Refused(_, refusal) => panic!("{refusal}"),
            Answer::Nothing => continue,
            Answer::Data(Data::Write { .. }) if volume.die_on_write.load(Ordering::Relaxed) => {
                return connection.session();
            }
            Answer::Data(data) => volume.serve(&data, &buffer[..read]),
        };
        match device.write_vectored(&[IoSlice::new(&head), IoSlice::new(&body)]) {
            Ok(written) => assert_eq!(written, head.len() + body.len()),
            Err(error) => assert_eq!(error.raw_os_error(), Some(Errno::NOENT.raw()), "{error}"),
        }
    }
}

/// A mounted volume; undone in the reverse order however the test ends.
struct Mounted {
    dir: TempDir,
    device: File,
    volume: Arc<Volume>,
    server: Option<JoinHandle<Option<Session>>>,
    loop_device: Option<String>,
}

impl Mounted {
    /// `None`, and a word on standard error, where this machine can't.
    fn new(read_only: bool) -> Option<Self> {
        let device = match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
            Ok(device) if rustix::process::geteuid().is_root() => device,
            Ok(_) => return skip("not root"),
            Err(error) => return skip(&format!("opening /dev/fuse: {error}")),
        };
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("fuse");
        fs::create_dir(&root).unwrap();
        let options = CString::new(fuse::mount_options(device.as_raw_fd())).unwrap();
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        if let Err(error) = mount("stor-test", &root, "fuse", flags, options.as_c_str()) {
            return skip(&format!("mounting a FUSE file system: {error}"));
        }
        let volume = Arc::new(Volume {
            bytes: Mutex::new(vec![0; usize::try_from(SIZE).unwrap()]),
            size: AtomicU64::new(SIZE),
            die_on_write: AtomicBool::new(false),
            largest_write: AtomicU32::new(0),
            flushes: AtomicU32::new(0),
            discards: AtomicU32::new(0),
            zeroes: AtomicU32::new(0),
            resent: AtomicU32::new(0),
        });
        let mut mounted = Self {
            dir,
            device,
            volume,
            server: None,
            loop_device: None,
        };
        mounted.start(Connection::new(SIZE, read_only));
        Some(mounted)
    }

    fn start(&mut self, connection: Connection) {
        let (device, volume) = (self.device.try_clone().unwrap(), Arc::clone(&self.volume));
        self.server = Some(thread::spawn(move || serve(device, connection, &volume)));
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("fuse")
    }

    fn file(&self) -> PathBuf {
        self.root().join("volume")
    }

    /// Puts a loop device with blocks of 4096 bytes and direct I/O on the file.
    fn attach(&mut self) -> Option<String> {
        let file = self.file();
        let args = [
            "--find",
            "--show",
            "--direct-io=on",
            "--sector-size",
            "4096",
            file.to_str().unwrap(),
        ];
        let outcome = run("losetup", &args).unwrap();
        if !outcome.ok {
            return skip(&format!("attaching a loop device: {}", outcome.stderr));
        }
        let device = outcome.stdout.trim().to_owned();
        self.loop_device = Some(device.clone());
        Some(device)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Errors here would hide the test's own; what is left behind is seen by the next losetup.
        if let Some(device) = self.loop_device.take() {
            _ = run("losetup", &["-d", &device]);
        }
        _ = unmount(self.root(), UnmountFlags::DETACH);
        if let Some(server) = self.server.take() {
            _ = server.join();
        }
    }
}

fn skip<T>(why: &str) -> Option<T> {
    stor_skip::skipped("fuse_kernel", why);
    None
}

#[test]
fn is_a_file_system_of_one_file() {
    let Some(mounted) = Mounted::new(false) else {
        return;
    };
    let names: Vec<_> = fs::read_dir(mounted.root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["volume"]);
    let stat = fs::metadata(mounted.file()).unwrap();
    assert_eq!((stat.len(), stat.blksize(), stat.mode()), (SIZE, 4096, 0o100_600));
    fs::write(mounted.root().join("other"), b"").unwrap_err();
    fs::remove_file(mounted.file()).unwrap_err();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(mounted.file())
        .unwrap();
    file.set_len(0).unwrap_err();

    let data = vec![0x5A; 3 << 20];
    file.write_all_at(&data, 4096).unwrap();
    let mut back = vec![0; data.len()];
    file.read_exact_at(&mut back, 4096).unwrap();
    assert!(back == data);
    assert_eq!(mounted.volume.bytes.lock().unwrap()[4095..4097], [0, 0x5A]);
    assert_eq!(mounted.volume.largest_write.load(Ordering::Relaxed), fuse::MAX_IO);
    assert_eq!(
        file.read_at(&mut back, SIZE - 100).unwrap(),
        100,
        "ends at the end"
    );
    assert_eq!(
        file.write_at(&[1; 200], SIZE - 100).unwrap_err().raw_os_error(),
        Some(28)
    );
    file.sync_all().unwrap();
    assert_eq!(mounted.volume.flushes.load(Ordering::Relaxed), 1);
}

#[test]
fn read_only_volumes_are_not_written() {
    let Some(mounted) = Mounted::new(true) else { return };
    let error = OpenOptions::new().write(true).open(mounted.file()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(30));
    let mut back = [1; 10];
    File::open(mounted.file())
        .unwrap()
        .read_exact_at(&mut back, 0)
        .unwrap();
    assert_eq!(back, [0; 10]);
}

#[test]
fn carries_a_loop_device_with_a_file_system() {
    let Some(mut mounted) = Mounted::new(false) else {
        return;
    };
    let Some(device) = mounted.attach() else { return };
    let queue = PathBuf::from("/sys/block").join(device.trim_start_matches("/dev/"));
    let setting = |name: &str| fs::read_to_string(queue.join(name)).unwrap().trim().to_owned();
    assert_eq!(setting("loop/dio"), "1");
    assert_eq!(setting("queue/discard_granularity"), "4096");
    assert_eq!(setting("queue/logical_block_size"), "4096");

    run_ok("mkfs.ext4", &["-q", &device]).unwrap();
    let tree = mounted.dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let tree = tree.to_str().unwrap();
    run_ok("mount", &["-o", "discard", &device, tree]).unwrap();
    let content: Vec<u8> = (0..8_000_000u32).flat_map(u32::to_le_bytes).collect();
    let written = fs::write(format!("{tree}/file"), &content);
    run_ok("umount", &[tree]).unwrap();
    written.unwrap();
    run_ok("e2fsck", &["-fn", &device]).unwrap();
    run_ok("mount", &["-o", "discard", &device, tree]).unwrap();
    let back = fs::read(format!("{tree}/file"));
    run_ok("umount", &[tree]).unwrap();
    assert!(back.unwrap() == content);
    assert!(
        mounted.volume.flushes.load(Ordering::Relaxed) > 0,
        "ext4's barriers arrive"
    );

    let discards = mounted.volume.discards.load(Ordering::Relaxed);
    run_ok("blkdiscard", &[&device]).unwrap();
    assert!(mounted.volume.discards.load(Ordering::Relaxed) > discards);
    assert!(mounted.volume.bytes.lock().unwrap().iter().all(|byte| *byte == 0));
    run_ok("blkdiscard", &["--zeroout", &device]).unwrap();
    assert!(
        mounted.volume.zeroes.load(Ordering::Relaxed) > 0,
        "write zeroes that keep the space"
    );
}

#[test]
fn another_server_takes_the_connection_over() {
    let Some(mut mounted) = Mounted::new(false) else {
        return;
    };
    let Some(device) = mounted.attach() else { return };
    mounted.volume.die_on_write.store(true, Ordering::Relaxed);
    let writer = thread::spawn(move || {
        let args = [
            "if=/dev/zero",
            &format!("of={device}"),
            "bs=4k",
            "count=64",
            "oflag=direct",
            "conv=notrunc",
        ];
        run_ok("dd", &args)
    });
    // It read a write and ends without an answer.
    let session = mounted
        .server
        .take()
        .unwrap()
        .join()
        .unwrap()
        .expect("INIT was long ago");
    assert!(!writer.is_finished());
    assert!(session.can_resend(), "Linux 6.9 and newer can");

    mounted.volume.bytes.lock().unwrap().fill(0xFF);
    mounted.volume.die_on_write.store(false, Ordering::Relaxed);
    mounted.device.write_all(&fuse::notify_resend()).unwrap();
    mounted.start(Connection::resumed(SIZE, false, session));
    writer.join().unwrap().unwrap();
    assert!(mounted.volume.resent.load(Ordering::Relaxed) > 0);
    assert!(
        mounted.volume.bytes.lock().unwrap()[..64 * 4096]
            .iter()
            .all(|byte| *byte == 0)
    );
}

#[test]
fn growing_is_seen_after_the_notification() {
    let Some(mounted) = Mounted::new(false) else {
        return;
    };
    assert_eq!(fs::metadata(mounted.file()).unwrap().len(), SIZE);
    mounted.volume.size.store(2 * SIZE, Ordering::Relaxed);
    assert_eq!(
        fs::metadata(mounted.file()).unwrap().len(),
        SIZE,
        "the kernel believes what it was told"
    );
    (&mounted.device).write_all(&fuse::notify_attributes()).unwrap();
    assert_eq!(fs::metadata(mounted.file()).unwrap().len(), 2 * SIZE);
}
