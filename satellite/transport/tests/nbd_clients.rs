//! Real clients judge the NBD protocol, over a server that keeps its volume in memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod memory;

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
