//! Disk files through the reactor, with direct I/O, on both backends.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use common::{Driver, on_both, pattern};
use nix::libc::{EBADF, EINVAL, O_DIRECT};
use stor_device::{Buf, Choice, Fd, Outcome, Piece, Reactor, Shared, Sync};

/// A file on a real disk (/tmp may be memory), opened for direct I/O.
fn direct_file(d: &mut Driver) -> (File, Fd, tempfile::TempDir) {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut options = OpenOptions::new();
    let path = dir.path().join("data");
    let file = options
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .custom_flags(O_DIRECT)
        .open(path)
        .unwrap();
    let fd = d.reactor.register(file.try_clone().unwrap().into()).unwrap();
    (file, fd, dir)
}

fn shared(bytes: &[u8]) -> Shared {
    let mut buf = Buf::new(bytes.len());
    buf.copy_from_slice(bytes);
    buf.into()
}

fn read(d: &mut Driver, fd: Fd, offset: u64, len: usize) -> Vec<u8> {
    let buf = d.pool.take(len);
    d.reactor.read_at(fd, buf, offset, len, 900);
    let completion = d.until(900);
    let Ok(Outcome::Count(count)) = completion.result else {
        panic!("{completion:?}")
    };
    completion.buf.unwrap()[..count].to_vec()
}

#[test]
fn what_was_written_is_read_back() {
    on_both(|d| {
        let (_, fd, _dir) = direct_file(d);
        let data = pattern(1 << 20, 3);
        let all = shared(&data);
        d.reactor
            .write_at(fd, all.clone(), 0..data.len(), 8192, Sync::No, 1);
        assert_eq!(d.count(1), data.len());
        assert!(read(d, fd, 8192, data.len()) == data);
        d.reactor.write_at(fd, all, 4096..8192, 8192, Sync::Dsync, 2);
        assert_eq!(d.count(2), 4096);
        assert!(read(d, fd, 8192, 4096) == data[4096..8192]);
        d.reactor.datasync(fd, 3);
        d.done(3);
        assert!(read(d, fd, 0, 8192) == vec![0; 8192]);
    });
}

#[test]
fn reading_past_the_end_is_short() {
    on_both(|d| {
        let (file, fd, _dir) = direct_file(d);
        d.reactor
            .write_at(fd, shared(&pattern(8192, 1)), 0..8192, 0, Sync::No, 1);
        assert_eq!(d.count(1), 8192);
        assert_eq!(read(d, fd, 4096, 8192).len(), 4096);
        assert_eq!(read(d, fd, 65_536, 4096).len(), 0);
        file.set_len(5000).unwrap();
        assert_eq!(read(d, fd, 4096, 8192).len(), 5000 - 4096);
    });
}

#[test]
fn holes_and_zeroed_ranges_read_as_zeroes() {
    on_both(|d| {
        let (file, fd, _dir) = direct_file(d);
        let data = pattern(256 << 10, 9);
        d.reactor
            .write_at(fd, shared(&data), 0..data.len(), 0, Sync::Dsync, 1);
        assert_eq!(d.count(1), data.len());
        let full = file.metadata().unwrap().blocks();
        d.reactor.punch_hole(fd, 65_536, 65_536, 2);
        d.done(2);
        assert_eq!(file.metadata().unwrap().blocks(), full - 128);
        d.reactor.zero_range(fd, 0, 65_536, 3);
        d.done(3);
        let now = read(d, fd, 0, data.len());
        assert!(now[..131_072].iter().all(|byte| *byte == 0));
        assert!(now[131_072..] == data[131_072..]);
        assert_eq!(file.metadata().unwrap().len(), data.len() as u64);
    });
}

#[test]
fn more_writes_than_are_under_way_at_once_all_land() {
    on_both(|d| {
        let (_, fd, _dir) = direct_file(d);
        let data = pattern(4096 * 5000, 4);
        let all = shared(&data);
        for nth in 0..5000_usize {
            let range = nth * 4096..(nth + 1) * 4096;
            d.reactor
                .write_at(fd, all.clone(), range, nth as u64 * 4096, Sync::No, nth as u64);
        }
        for nth in 0..5000 {
            assert_eq!(d.count(nth), 4096);
        }
        assert!(read(d, fd, 0, data.len()) == data);
    });
}

#[test]
fn wrong_requests_are_refused_with_their_buffer() {
    on_both(|d| {
        let (_, fd, _dir) = direct_file(d);
        d.reactor.read_at(fd, Buf::new(4096), 0, 4097, 1);
        let completion = d.until(1);
        assert_eq!(completion.result.unwrap_err().raw_os_error(), Some(EINVAL));
        assert_eq!(completion.buf.unwrap().len(), 4096);
        d.reactor
            .write_at(fd, shared(&[0; 4096]), 1..4097, 0, Sync::No, 2);
        assert_eq!(d.errno(2), EINVAL);
        d.reactor.read_at(fd, Buf::new(4096), u64::MAX - 5, 4096, 3);
        assert_eq!(d.errno(3), EINVAL);
        // Not aligned: the file system refuses it.
        d.reactor.write_at(fd, shared(&[0; 4096]), 0..100, 3, Sync::No, 4);
        assert_eq!(d.errno(4), EINVAL);
        let read_only = File::open("/etc/hostname").unwrap();
        let read_only = d.reactor.register(read_only.into()).unwrap();
        d.reactor
            .write_at(read_only, shared(&[0; 10]), 0..10, 0, Sync::No, 5);
        assert_eq!(d.errno(5), EBADF);
        d.reactor.send(read_only, vec![Piece::copy(b"x")], 6);
        assert!(d.until(6).result.is_err());
    });
}

#[test]
fn closing_under_disk_operations_completes_each_of_them() {
    on_both(|d| {
        let (_, fd, _dir) = direct_file(d);
        let all = shared(&pattern(1 << 20, 2));
        for token in 0..100 {
            d.reactor
                .write_at(fd, all.clone(), 0..1 << 20, token << 20, Sync::No, token);
        }
        let mut ended = d.whatever_comes(std::time::Duration::ZERO);
        for token in 100..120 {
            d.reactor.read_at(fd, Buf::new(4096), 0, 4096, token);
        }
        d.reactor.close(fd);
        while d.reactor.in_flight() > 0 {
            ended.extend(d.whatever_comes(std::time::Duration::from_secs(1)));
        }
        let mut tokens: Vec<_> = ended.into_iter().map(|completion| completion.token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..120).collect::<Vec<_>>());
        assert!(all.try_into_buf().is_ok(), "a buffer is still in use");
    });
}

#[test]
fn dropping_waits_for_disk_operations() {
    for choice in [Choice::Auto, Choice::Epoll] {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let file = File::create(dir.path().join("data")).unwrap();
        let mut reactor = Reactor::new(choice).unwrap();
        let fd = reactor.register(file.into()).unwrap();
        let all = shared(&pattern(4 << 20, 2));
        for token in 0..50 {
            reactor.write_at(fd, all.clone(), 0..4 << 20, token << 22, Sync::Dsync, token);
        }
        reactor
            .wait(Some(std::time::Duration::ZERO), &mut Vec::new())
            .unwrap();
        drop(reactor);
        assert!(all.try_into_buf().is_ok(), "a buffer is still in use");
    }
}
