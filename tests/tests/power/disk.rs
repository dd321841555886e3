//! The disks themselves: that they lose what they may, and nothing else, through the kernel's own calls.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock};
use rustix::io::{ReadWriteFlags, pwritev2};
use stor_device::file::{OpenData, open_data};
use stor_device::{Buf, Completion, Reactor, reactor};
use stor_tests::lossy::chance::{Chance, Keeps};
use stor_tests::lossy::{self, Disk};
use stor_tests::skip;

const BLOCK: usize = 4096;

/// Runs a test on a disk of its own.
fn with(name: &str, test: impl FnOnce(&mut Disk, &Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    if let Some(missing) = lossy::missing() {
        skip::skipped(name, &missing);
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let mut disk = Disk::mount(dir.path())?;
    test(&mut disk, dir.path())
}

fn lose_all(disk: &mut Disk) -> anyhow::Result<()> {
    disk.cut(&mut Chance::keeping(1, Keeps::Nothing))?;
    Ok(())
}

#[test]
fn what_was_not_synced_is_gone_and_what_was_is_there() -> anyhow::Result<()> {
    with("a disk that forgets", |disk, dir| {
        let path = dir.join("file");
        fs::write(&path, "one")?;
        File::open(&path)?.sync_all()?;
        File::open(dir)?.sync_all()?;
        fs::write(&path, "two")?;
        fs::write(dir.join("other"), "x")?;
        assert_eq!(fs::read_to_string(&path)?, "two");
        lose_all(disk)?;
        assert_eq!(fs::read_to_string(&path)?, "one");
        assert!(!dir.join("other").exists());
        Ok(())
    })
}

#[test]
fn a_name_is_durable_with_its_directory_only() -> anyhow::Result<()> {
    with("names on a disk that forgets", |disk, dir| {
        let old = dir.join("state");
        fs::write(&old, "old")?;
        disk.settle()?;
        let replace = |sync_file: bool, sync_directory: bool| -> anyhow::Result<()> {
            let mut file = File::create(dir.join("state.new"))?;
            file.write_all(b"new")?;
            if sync_file {
                file.sync_all()?;
            }
            fs::rename(dir.join("state.new"), dir.join("state"))?;
            if sync_directory {
                File::open(dir)?.sync_all()?;
            }
            Ok(())
        };
        replace(true, false)?;
        lose_all(disk)?;
        assert_eq!(fs::read_to_string(&old)?, "old", "the rename was not durable");
        assert!(!dir.join("state.new").exists());
        replace(false, true)?;
        lose_all(disk)?;
        assert_eq!(
            fs::read_to_string(&old)?,
            "",
            "the rename was, what it names was not"
        );
        fs::write(&old, "old")?;
        disk.settle()?;
        replace(true, true)?;
        lose_all(disk)?;
        assert_eq!(fs::read_to_string(&old)?, "new");
        fs::remove_file(&old)?;
        lose_all(disk)?;
        assert_eq!(fs::read_to_string(&old)?, "new", "the removal was not durable");
        Ok(())
    })
}

#[test]
fn a_cut_takes_some_blocks_and_leaves_others() -> anyhow::Result<()> {
    with("half a write on a disk that forgets", |disk, dir| {
        let path = dir.join("v.data");
        fs::write(&path, vec![1; 64 * BLOCK])?;
        disk.settle()?;
        let mut seen = [false; 2];
        for seed in 0..3 {
            let file = OpenOptions::new().write(true).open(&path)?;
            file.write_all_at(&vec![2; 64 * BLOCK], 0)?;
            drop(file);
            let lost = disk.cut(&mut Chance::keeping(seed, Keeps::Percent(50)))?;
            let bytes = fs::read(&path)?;
            for block in bytes.chunks(BLOCK) {
                assert!(block.iter().all(|byte| *byte == block[0]), "a torn block of data");
                seen[usize::from(block[0] - 1)] = true;
            }
            let old = bytes.chunks(BLOCK).filter(|block| block[0] == 1).count();
            assert_eq!(lost.blocks, old);
            fs::write(&path, vec![1; 64 * BLOCK])?;
            disk.settle()?;
        }
        assert_eq!(seen, [true, true]);
        Ok(())
    })
}

#[test]
fn a_write_with_dsync_is_durable_and_takes_no_other_along() -> anyhow::Result<()> {
    with("O_DSYNC on a disk that forgets", |disk, dir| {
        let path = dir.join("file");
        fs::write(&path, vec![1; 4 * BLOCK])?;
        disk.settle()?;
        let direct = |more: OFlags| -> anyhow::Result<File> {
            let flags = i32::try_from((OFlags::DIRECT | more).bits())?;
            Ok(OpenOptions::new().write(true).custom_flags(flags).open(&path)?)
        };
        let file = direct(OFlags::empty())?;
        let mut bytes = Buf::new(3 * BLOCK);
        for (block, byte) in bytes.chunks_mut(BLOCK).zip(2..) {
            block.fill(byte);
        }
        file.write_all_at(&bytes[..BLOCK], 0)?;
        let part = [std::io::IoSlice::new(&bytes[BLOCK..2 * BLOCK])];
        pwritev2(&file, &part, BLOCK as u64, ReadWriteFlags::DSYNC)?;
        let durable = direct(OFlags::DSYNC)?;
        durable.write_all_at(&bytes[2 * BLOCK..], 2 * BLOCK as u64)?;
        assert_eq!(
            disk.flushes().files,
            0,
            "the kernel synced more than it was asked to"
        );
        drop((file, durable));
        assert_eq!(disk.flushes().writes, 2);
        lose_all(disk)?;
        let heads: Vec<u8> = fs::read(&path)?.chunks(BLOCK).map(|block| block[0]).collect();
        assert_eq!(heads, [1, 3, 4, 1]);
        Ok(())
    })
}

#[test]
fn what_pools_use_works() -> anyhow::Result<()> {
    with("a pool on a disk that forgets", |disk, dir| {
        let path = dir.join("r1.data");
        let made = open_data(&path, OpenData::Create { size: 1 << 20 })?;
        rustix::fs::fsync(&made.fd)?;
        File::open(dir)?.sync_all()?;
        flock(&made.fd, FlockOperation::NonBlockingLockExclusive)?;
        let again = File::open(&path)?;
        assert!(flock(&again, FlockOperation::NonBlockingLockExclusive).is_err());
        drop((again, made));
        for choice in [reactor::Choice::Auto, reactor::Choice::Epoll] {
            through(disk, choice, &path)?;
        }
        let file = OpenOptions::new().write(true).open(&path)?;
        let allocated = file.metadata()?.blocks();
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, hole, 0, BLOCK as u64)?;
        assert_eq!(file.metadata()?.blocks(), allocated - 8);
        drop(file);
        lose_all(disk)?;
        assert_eq!(
            fs::metadata(&path)?.blocks(),
            allocated,
            "the hole was not durable"
        );
        let space = stor_device::file::space(dir)?;
        assert!(space.free > 1 << 30, "{space:?}");
        assert!(stor_device::file::supports_punch_hole(dir)?);
        assert!(!stor_device::file::supports_reflink(dir)?);
        Ok(())
    })
}

/// Direct I/O as the satellite does it: a write that stays in the cache, one that does not, and a flush.
fn through(disk: &mut Disk, choice: reactor::Choice, path: &Path) -> anyhow::Result<()> {
    let mut reactor = Reactor::new(choice)?;
    println!("{}", reactor.backend());
    let before = disk.flushes();
    let fd = reactor.register(open_data(path, OpenData::Existing)?.fd)?;
    let mut bytes = Buf::new(BLOCK);
    bytes.fill(7);
    let bytes = stor_device::Shared::from(bytes);
    reactor.write_at(fd, bytes.clone(), 0..BLOCK, 0, reactor::Sync::No, 1);
    one(&mut reactor)?;
    reactor.write_at(fd, bytes, 0..BLOCK, BLOCK as u64, reactor::Sync::Dsync, 2);
    one(&mut reactor)?;
    assert_eq!(disk.flushes().writes, before.writes + 1, "O_DSYNC did not arrive");
    reactor.datasync(fd, 3);
    one(&mut reactor)?;
    assert_eq!(disk.flushes().files, before.files + 1);
    reactor.read_at(fd, Buf::new(BLOCK), BLOCK as u64, BLOCK, 4);
    let read = one(&mut reactor)?;
    assert!(read.buf.is_some_and(|bytes| bytes.iter().all(|byte| *byte == 7)));
    drop(reactor);
    lose_all(disk)?;
    assert_eq!(fs::read(path)?[..2 * BLOCK], [7; 2 * BLOCK]);
    Ok(())
}

fn one(reactor: &mut Reactor) -> anyhow::Result<Completion> {
    let mut done = Vec::new();
    while done.is_empty() {
        reactor.wait(None, &mut done)?;
    }
    let completion = done.remove(0);
    if let Err(error) = completion.result {
        anyhow::bail!("operation {}: {error}", completion.token);
    }
    Ok(completion)
}

#[test]
fn sockets_links_and_directories_work() -> anyhow::Result<()> {
    with("names of all kinds on a disk that forgets", |disk, dir| {
        let inner = dir.join("a/b");
        fs::create_dir_all(&inner)?;
        std::os::unix::fs::symlink("b", dir.join("a/link"))?;
        let socket = inner.join("control.sock");
        let listener = UnixListener::bind(&socket)?;
        UnixStream::connect(&socket)?.write_all(b"hello")?;
        let mut said = String::new();
        listener.accept()?.0.read_to_string(&mut said)?;
        assert_eq!(said, "hello");
        let mut names: Vec<_> = fs::read_dir(dir.join("a"))?
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["b", "link"]);
        File::open(dir.join("a"))?.sync_all()?;
        drop(listener);
        lose_all(disk)?;
        assert!(!dir.join("a").exists(), "its own directory was not synced");
        fs::create_dir(dir.join("c"))?;
        File::open(dir)?.sync_all()?;
        lose_all(disk)?;
        assert!(dir.join("c").is_dir());
        fs::remove_dir(dir.join("c"))?;
        assert!(!dir.join("c").exists());
        Ok(())
    })
}

#[test]
fn a_disk_that_lies_about_flushes_loses_what_was_flushed() -> anyhow::Result<()> {
    with("a disk that lies", |disk, dir| {
        disk.lie_about(&[".data"]);
        for name in ["a.data", "a.meta"] {
            let mut file = File::create(dir.join(name))?;
            file.write_all(b"x")?;
            file.sync_all()?;
        }
        File::open(dir)?.sync_all()?;
        lose_all(disk)?;
        assert_eq!(fs::read(dir.join("a.data"))?, b"");
        assert_eq!(fs::read(dir.join("a.meta"))?, b"x");
        Ok(())
    })
}

/// A request that hangs at the moment of the cut does nothing, and whoever waits for it can be killed.
#[test]
fn nothing_is_done_after_the_moment_of_the_cut() -> anyhow::Result<()> {
    with("the moment of a cut", |disk, dir| {
        let path = dir.join("file");
        fs::write(&path, "before")?;
        disk.settle()?;
        disk.hold();
        let mut child = std::process::Command::new("sh")
            .args(["-c", "echo after >\"$1\"; sync \"$1\"", "sh"])
            .arg(&path)
            .spawn()?;
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(child.try_wait()?.is_none(), "it was answered");
        child.kill()?;
        disk.release();
        child.wait()?;
        lose_all(disk)?;
        assert_eq!(fs::read_to_string(&path)?, "before");
        Ok(())
    })
}
