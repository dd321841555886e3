//! Real clients judge the NBD protocol, over a server that keeps its volume in memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod memory;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use stor_tests::clients::{self, Export};
use stor_transport::nbd;
use tempfile::TempDir;

const SIZE: u64 = 64 << 20;

fn served(change: impl FnOnce(&mut nbd::Export)) -> (TempDir, Export) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd.sock");
    let mut export = nbd::Export {
        multi_conn: true,
        ..nbd::Export::new("vol1", SIZE)
    };
    change(&mut export);
    memory::serve(export, &socket);
    (
        dir,
        Export {
            socket,
            name: "vol1".into(),
            size: SIZE,
        },
    )
}

#[test]
fn nbdinfo_sees_the_export() {
    let (_dir, export) = served(|_| {});
    clients::check_info(&export).unwrap();
    clients::check_info(&Export {
        name: String::new(),
        ..export.clone()
    })
    .unwrap_err();
    clients::check_unknown_export(&export).unwrap();
}

#[test]
fn nbdinfo_maps_holes_and_data() {
    let (_dir, export) = served(|_| {});
    assert_eq!(clients::check_map(&export).unwrap(), [(0, SIZE, 3)]);
    clients::run_ok("qemu-io", &["-f", "raw", "-c", "write 1M 8k", &export.uri()]).unwrap();
    let rest = (1 << 20) + 8192;
    assert_eq!(
        clients::check_map(&export).unwrap(),
        [(0, 1 << 20, 3), (1 << 20, 8192, 0), (rest, SIZE - rest, 3)]
    );
}

#[test]
fn nbdcopy_copies_in_and_out() {
    let (dir, export) = served(|_| {});
    clients::check_nbdcopy(&export, dir.path()).unwrap();
}

#[test]
fn qemu_img_converts_and_compares() {
    let (dir, export) = served(|_| {});
    clients::check_qemu_img(&export, dir.path()).unwrap();
}

#[test]
fn qemu_io_reads_what_it_wrote() {
    let (_dir, export) = served(|_| {});
    clients::check_qemu_io(&export).unwrap();
}

#[test]
fn qemu_may_not_write_to_a_read_only_export() {
    let (_dir, export) = served(|export| export.read_only = true);
    clients::check_read_only(&export).unwrap();
}

#[test]
fn clients_do_without_trim_zeroes_and_several_connections() {
    let (dir, export) = served(|export| {
        (export.trim, export.write_zeroes, export.multi_conn) = (false, false, false);
        export.max_block = 1 << 20;
    });
    clients::check_nbdcopy(&export, dir.path()).unwrap();
    clients::check_qemu_img(&export, dir.path()).unwrap();
}

#[test]
fn fio_verifies_at_queue_depth_1() {
    let (dir, export) = served(|_| {});
    clients::check_fio(&export, 1, dir.path()).unwrap();
}

#[test]
fn fio_verifies_at_queue_depth_32() {
    let (dir, export) = served(|_| {});
    clients::check_fio(&export, 32, dir.path()).unwrap();
}

/// No tool at hand is this old: `EXPORT_NAME` with its zeroes, and simple replies.
#[test]
fn a_client_from_before_structured_replies() {
    let (_dir, export) = served(|_| {});
    let mut stream = UnixStream::connect(&export.socket).unwrap();
    let mut take = |send: &[u8], length: usize| {
        stream.write_all(send).unwrap();
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    };
    let request = |command: u8, offset: u8, length: u16| {
        let [high, low] = length.to_be_bytes();
        let mut bytes = [0; 28];
        bytes[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
        (bytes[7], bytes[15], bytes[22], bytes[26], bytes[27]) = (command, 9, offset, high, low);
        bytes
    };
    let reply = |error: u8| [0x67, 0x44, 0x66, 0x98, 0, 0, 0, error, 0, 0, 0, 0, 0, 0, 0, 9];

    assert_eq!(take(&[], 18), b"NBDMAGICIHAVEOPT\x00\x03");
    let chosen = take(b"\0\0\0\0IHAVEOPT\0\0\0\x01\0\0\0\x04vol1", 134);
    assert_eq!(chosen[..8], SIZE.to_be_bytes());
    assert_eq!(chosen[10..], [0; 124]);
    // Refused, with its payload read over; then done, in step.
    let refused = [&request(1, 0, 512)[..], &[7; 512]].concat();
    assert_eq!(take(&refused, 16), reply(22));
    let written = [&request(1, 16, 4096)[..], &[7; 4096]].concat();
    assert_eq!(take(&written, 16), reply(0));
    let read = take(&request(0, 16, 8192), 16 + 8192);
    assert_eq!(
        (&read[..16], &read[16..4112], &read[4112..]),
        (&reply(0)[..], &[7; 4096][..], &[0; 4096][..])
    );
    assert_eq!(
        take(&request(0, 0, 0), 16),
        reply(22),
        "a failed read has no data"
    );
    assert_eq!(take(&request(3, 0, 0), 16), reply(0));
}
