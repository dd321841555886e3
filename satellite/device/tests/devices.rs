//! Loop devices and FUSE mounts on the real kernel. These need root; without it they say what is missing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use stor_device::file::{OpenData, open_data};
use stor_device::fusemount::{self, MountError, MountOptions, Root, Unmount, UnmountError};
use stor_device::loopdev::{self, AttachOptions, DetachError, Detached, LoopDevice};
use stor_device::{Buf, Choice, Outcome, Reactor};

fn have_loop() -> bool {
    loopdev::is_available()
        .inspect_err(|error| stor_skip::skipped("devices", error))
        .is_ok()
}

fn have_fuse() -> bool {
    fusemount::is_available()
        .inspect_err(|error| stor_skip::skipped("devices", error))
        .is_ok()
}

/// Detaches when a test fails half way.
struct Attached(LoopDevice);

impl Drop for Attached {
    fn drop(&mut self) {
        if let Err(error) = loopdev::detach(self.0.number) {
            eprintln!("{error}");
        }
    }
}

/// Unmounts when a test fails half way.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if fusemount::is_mounted(&self.0).unwrap() {
            fusemount::unmount(&self.0, Unmount::Abort).unwrap();
        }
    }
}

fn attach_new(size: u64, options: AttachOptions) -> (Attached, PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("backing");
    let data = open_data(&path, OpenData::Create { size }).unwrap();
    let device = loopdev::attach(&data.fd, &path, options).unwrap();
    (Attached(device), path, dir)
}

#[test]
fn a_file_becomes_a_block_device_and_back() {
    if !have_loop() {
        return;
    }
    let (attached, path, _dir) = attach_new(8 << 20, AttachOptions::default());
    let device = attached.0.clone();
    assert!(device.direct_io, "{device:?}");
    assert_eq!(loopdev::find(&path).unwrap(), std::slice::from_ref(&device));
    let sys = format!("/sys/block/loop{}/queue/logical_block_size", device.number);
    assert_eq!(fs::read_to_string(sys).unwrap().trim(), "4096");
    let block = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&device.path)
        .unwrap();
    block.write_all_at(&[0xab; 4096], 4096).unwrap();
    block.sync_all().unwrap();
    let mut back = [0; 4096];
    File::open(&path).unwrap().read_exact_at(&mut back, 4096).unwrap();
    assert!(back == [0xab; 4096]);
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(16 << 20)
        .unwrap();
    loopdev::refresh_size(device.number).unwrap();
    assert_eq!(
        open_data(&device.path, OpenData::Existing).unwrap().size,
        16 << 20
    );
    // Still open: it goes when we close it.
    assert_eq!(loopdev::detach(device.number).unwrap(), Detached::WhenClosed);
    drop(block);
    assert_eq!(loopdev::detach(device.number).unwrap(), Detached::Now);
    assert_eq!(loopdev::find(&path).unwrap(), []);
}

#[test]
fn a_read_only_device_refuses_writes() {
    if !have_loop() {
        return;
    }
    let (attached, ..) = attach_new(
        1 << 20,
        AttachOptions {
            read_only: true,
            ..AttachOptions::default()
        },
    );
    let error = OpenOptions::new()
        .write(true)
        .open(&attached.0.path)
        .map(|mut file| {
            file.write_all(&[1; 4096])
                .and_then(|()| file.sync_all())
                .unwrap_err();
        });
    assert!(error.is_ok() || error.is_err_and(|error| error.raw_os_error().is_some()));
    let shown = fs::read_to_string(format!("/sys/block/loop{}/ro", attached.0.number)).unwrap();
    assert_eq!(shown.trim(), "1");
}

#[test]
fn a_mounted_device_is_busy() {
    if !have_loop() {
        return;
    }
    let (attached, _, dir) = attach_new(16 << 20, AttachOptions::default());
    let made = std::process::Command::new("mkfs.ext4")
        .arg("-q")
        .arg(&attached.0.path)
        .status();
    if !made.as_ref().is_ok_and(std::process::ExitStatus::success) {
        return stor_skip::skipped("devices", format_args!("mkfs.ext4 is missing ({made:?})"));
    }
    let at = dir.path().join("mounted");
    fs::create_dir(&at).unwrap();
    rustix::mount::mount(
        &attached.0.path,
        &at,
        "ext4",
        rustix::mount::MountFlags::empty(),
        None,
    )
    .unwrap();
    let refused = loopdev::detach(attached.0.number);
    rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(matches!(refused, Err(DetachError::Busy { .. })), "{refused:?}");
    assert_eq!(loopdev::detach(attached.0.number).unwrap(), Detached::Now);
}

#[test]
fn devices_taken_at_the_same_time_are_all_different() {
    if !have_loop() {
        return;
    }
    let threads: Vec<_> = (0..6)
        .map(|_| {
            std::thread::spawn(|| {
                let (attached, path, _dir) = attach_new(1 << 20, AttachOptions::default());
                assert_eq!(loopdev::find(&path).unwrap().len(), 1);
                attached.0.number
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_mount_speaks_over_its_descriptor_on_both_backends() {
    if !have_fuse() {
        return;
    }
    for (choice, root) in [(Choice::Auto, Root::Directory), (Choice::Epoll, Root::File)] {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("with blank");
        match root {
            Root::Directory => fs::create_dir(&at).unwrap(),
            Root::File => drop(File::create(&at).unwrap()),
        }
        let fd = fusemount::mount(
            &at,
            MountOptions {
                root,
                ..MountOptions::default()
            },
        )
        .unwrap();
        let _mounted = Mounted(at.clone());
        assert!(fusemount::is_mounted(&at).unwrap());
        let mut reactor = Reactor::new(choice).unwrap();
        let fd = reactor.register(fd).unwrap();
        let mut out = Vec::new();
        let mut turn = |token: u64| {
            let mut buf = Buf::new(256 << 10);
            buf.fill(0);
            reactor.read_stream(fd, buf, token);
            while out.is_empty() {
                reactor.wait(None, &mut out).unwrap();
            }
            out.pop().unwrap()
        };
        // The kernel begins: FUSE_INIT, opcode 26.
        let first = turn(1);
        let Ok(Outcome::Count(count)) = first.result else {
            panic!("{first:?}")
        };
        let buf = first.buf.unwrap();
        assert!(count >= 40, "{count}");
        assert_eq!(u32::from_le_bytes(buf[4..8].try_into().unwrap()), 26);
        // With the connection aborted, reads fail instead of waiting for ever.
        fusemount::unmount(&at, Unmount::Abort).unwrap();
        let error = turn(2).result.unwrap_err().raw_os_error().unwrap();
        assert!(
            [nix::libc::ENODEV, nix::libc::ECONNABORTED].contains(&error),
            "{error}"
        );
        assert!(!fusemount::is_mounted(&at).unwrap());
        let again = fusemount::unmount(&at, Unmount::Now).unwrap_err();
        assert!(matches!(again, UnmountError::NotMounted { .. }), "{again}");
    }
}

#[test]
fn a_mount_on_nothing_is_an_error_that_names_it() {
    if !have_fuse() {
        return;
    }
    let error = fusemount::mount("/nowhere/at/all".as_ref(), MountOptions::default()).unwrap_err();
    assert!(matches!(error, MountError::Mount { .. }));
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
}

#[test]
fn the_descriptor_of_a_dead_mount_reads_an_error() {
    if !have_fuse() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut fd = File::from(fusemount::mount(dir.path(), MountOptions::default()).unwrap());
    fusemount::unmount(dir.path(), Unmount::Lazy).unwrap();
    let mut buf = vec![0; 256 << 10];
    // What was queued before comes first, and there is little of that.
    let error = (0..10)
        .find_map(|_| fd.read(&mut buf).err())
        .expect("a dead connection answers");
    assert_eq!(error.raw_os_error(), Some(nix::libc::ENODEV));
}

#[test]
fn what_is_discarded_reads_as_zeroes_in_whole_chunks_and_in_parts() {
    if !have_loop() {
        return;
    }
    for choice in [Choice::Epoll, Choice::Auto] {
        let (attached, path, _dir) = attach_new(1 << 20, AttachOptions::default());
        let device = open_data(&attached.0.path, OpenData::Existing).unwrap();
        assert!(device.discards.is_some_and(|chunk| chunk > 0), "{device:?}");
        let mut reactor = Reactor::new(choice).unwrap();
        let fd = reactor.register(device.fd).unwrap();
        let mut ones = Buf::new(1 << 20);
        ones.fill(1);
        reactor.write_at(fd, ones.into(), 0..1 << 20, 0, stor_device::Sync::Dsync, 1);
        let chunk = 64 << 10;
        // From the middle of the second chunk to the middle of the fifth.
        let (from, to) = (chunk + 8192, 4 * chunk + 4096);
        let blocks = || fs::metadata(&path).unwrap().blocks();
        let mut done = Vec::new();
        while done.is_empty() {
            reactor.wait(None, &mut done).unwrap();
        }
        let full = blocks();
        reactor.discard(fd, from, to - from, chunk, 2);
        reactor.read_at(fd, Buf::new(0), 0, 0, 3);
        while done.len() < 3 {
            reactor.wait(None, &mut done).unwrap();
        }
        assert!(
            done.iter().all(|completion| completion.result.is_ok()),
            "{done:?}"
        );
        reactor.read_at(fd, Buf::new(1 << 20), 0, 1 << 20, 4);
        while done.len() < 4 {
            reactor.wait(None, &mut done).unwrap();
        }
        let back = done.pop().unwrap().buf.unwrap();
        for (at, byte) in back.iter().enumerate() {
            let inside = (from..to).contains(&(at as u64));
            assert_eq!(*byte, u8::from(!inside), "at {at}, {choice:?}");
        }
        assert!(
            blocks() <= full - 2 * chunk / 512,
            "the whole chunks are given back"
        );
    }
}

#[test]
fn a_block_device_is_opened_by_one_alone() {
    if !have_loop() {
        return;
    }
    let (attached, ..) = attach_new(1 << 20, AttachOptions::default());
    let first = open_data(&attached.0.path, OpenData::Existing).unwrap();
    let second = open_data(&attached.0.path, OpenData::Existing).unwrap_err();
    assert!(second.to_string().contains("busy"), "{second}");
    drop(first);
    open_data(&attached.0.path, OpenData::Existing).unwrap();
}
