//= docs/replication.md#R7
//! A region's dirty bit is durable before the first write to it reaches the disk.

use stor_replication::body::Body;
use stor_replication::disk::PageId;
use stor_replication::engine::Request;
use stor_replication::range::ByteRange;
use stor_replication::replica::DiskError;
use stor_replication::wire::{Kind, Status};

use crate::bench::{A, B, Bench, Rig, block, disk, pages, row, status, view};

#[test]
fn the_first_write_to_a_region_waits_for_its_bit() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let (op, out) = bench.write(1, view(1, 0), block(300), 7);
    assert_eq!(pages(&out), [PageId::Dirty(0)]);
    assert_eq!(disk(&out), [], "written before the bit is durable");
    let out = bench.stored();
    let [(write, _)] = disk(&out)[..] else {
        panic!("{out:?}")
    };
    let out = bench.disk_done(write, Ok(None));
    assert_eq!(status(&out, op), Some(Status::Ok));
    // The next one to the same region goes straight to the disk.
    let (_, out) = bench.write(1, view(1, 0), block(301), 8);
    assert_eq!(disk(&out).len(), 1);
    assert_eq!(pages(&out), []);
}

#[test]
fn a_bit_that_can_not_be_stored_lets_no_write_through() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let (op, _) = bench.write(1, view(1, 0), block(0), 7);
    let out = bench.step(stor_replication::replica::Event::PagesStored {
        result: Err(DiskError::NoSpace),
    });
    assert_eq!(disk(&out), []);
    assert_eq!(status(&out, op), Some(Status::NoSpace));
}

#[test]
fn a_region_that_is_being_written_stays_dirty() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    bench.write(1, view(1, 0), block(0), 7);
    bench.stored();
    let header = bench.header(Kind::Clean, view(1, 0));
    bench.ask(1, header, Body::None);
    bench.tick(5000);
    bench.stored();
    assert_eq!(bench.replica.dirty_regions(), 1);
}

#[test]
fn copies_mark_regions_like_writes() {
    // To a replica a copy is a write: there is no other way in.
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let (_, out) = bench.write(1, view(1, 0), ByteRange::new(1 << 20, 256 << 10), 7);
    assert_eq!(disk(&out), []);
}

#[test]
fn regions_are_cleaned_only_after_a_later_flush_of_all() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(0));
    rig.answer_if(|_| true);
    // Idle for long; the engine's own flush is answered by one member only.
    rig.run_if(9000, |sent| sent.header.kind != Kind::Flush || sent.replica == A);
    assert!(!rig.waiting(Kind::Flush).is_empty(), "no own flush");
    assert_eq!(
        rig.waiting(Kind::Clean),
        [],
        "declared clean without a flush of all"
    );
    rig.answer_if(|sent| sent.header.kind == Kind::Flush);
    rig.run_if(2000, |sent| sent.header.kind != Kind::Clean);
    assert_eq!(rig.waiting(Kind::Clean), [A, B]);
}

#[test]
fn a_flush_before_the_write_cleans_nothing() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.submit(1, Request::Flush);
    rig.write(2, block(0));
    rig.answer_if(|_| true);
    rig.run_if(9000, |sent| sent.header.kind != Kind::Flush);
    assert_eq!(rig.waiting(Kind::Clean), []);
}
