//= docs/replication.md#R7
//! A region's dirty bit is durable before the first write to it reaches the disk.

use stor_replication::body::Body;
use stor_replication::disk::PageId;
use stor_replication::engine::{Event, Request};
use stor_replication::range::ByteRange;
use stor_replication::replica::DiskError;
use stor_replication::wire::{Kind, Status, flags};

use super::bench::{A, B, Bench, Rig, Sent, block, disk, pages, row, status, view};

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
fn a_disk_without_room_is_not_asked_again_at_once() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    bench.write(1, view(1, 0), block(0), 7);
    let out = bench.stored();
    bench.disk_done(disk(&out)[0].0, Ok(None));
    // A region may be lowered, and that is due; then something else can't be stored.
    let clean = bench.header(Kind::Clean, view(1, 0));
    bench.ask(1, clean, Body::None);
    bench.write(1, view(1, 0), block(300), 8);
    bench.now = bench.now + std::time::Duration::from_secs(5);
    bench.step(stor_replication::replica::Event::PagesStored {
        result: Err(DiskError::NoSpace),
    });
    let due = bench.replica.deadline();
    assert!(due.is_some_and(|due| due > bench.now), "{due:?}");
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

/// A write that its region's cleaning must wait for, whatever flushes say.
fn not_cleaned_before_another_flush(rig: &mut Rig) {
    let kept = |sent: &Sent| [Kind::Flush, Kind::Clean].contains(&sent.header.kind);
    rig.run_if(7000, |sent| !kept(sent));
    assert_eq!(rig.waiting(Kind::Clean), []);
    assert!(!rig.waiting(Kind::Flush).is_empty(), "no own flush");
}

#[test]
fn a_flush_covers_what_ended_before_it_began() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(0));
    rig.run(20);
    rig.submit(2, Request::Flush);
    rig.write(3, block(1));
    rig.answer_if(|sent| sent.header.kind == Kind::Write);
    assert!(rig.is_done(3));
    rig.answer_if(|sent| sent.header.kind == Kind::Flush);
    assert!(rig.is_done(2));
    not_cleaned_before_another_flush(&mut rig);
}

#[test]
fn a_region_that_is_being_written_is_not_declared_clean() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(0));
    rig.submit(2, Request::Flush);
    let held = |sent: &Sent| sent.replica == B && sent.header.kind == Kind::Write;
    rig.run_if(7000, |sent| !held(sent) && sent.header.kind != Kind::Clean);
    assert!(rig.is_done(2) && !rig.is_done(1));
    assert_eq!(rig.waiting(Kind::Clean), []);
}

fn unclean() -> Rig {
    let mut unclean = row(&[A, B], &[], 1);
    unclean.clean_before = false;
    let mut rig = Rig::new(unclean, true, None);
    rig.dirty = [A, B].into_iter().map(|replica| (replica, 1)).collect();
    rig
}

#[test]
fn a_copy_between_members_is_a_write_a_flush_must_cover() {
    let mut rig = unclean();
    let copied = |sent: &Sent| sent.header.kind == Kind::Write;
    rig.run_if(300, |sent| !copied(sent));
    assert!(!rig.waiting(Kind::Write).is_empty(), "no copies");
    rig.submit(1, Request::Flush);
    rig.run_if(50, |sent| !copied(sent));
    assert!(rig.is_done(1));
    rig.answer_if(copied);
    not_cleaned_before_another_flush(&mut rig);
}

#[test]
fn an_unequal_region_is_not_declared_clean() {
    let mut rig = unclean();
    let held = |sent: &Sent| [Kind::Read, Kind::Clean].contains(&sent.header.kind);
    rig.run_if(9000, |sent| !held(sent));
    assert!(rig.engine.unequal_bytes() > 0);
    assert_eq!(rig.waiting(Kind::Clean), []);
}

#[test]
fn a_write_marks_every_region_it_touches_and_a_copy_marks_too() {
    for member in [true, false] {
        let mut bench = Bench::new();
        let mut open = bench.header(Kind::Open, view(1, 0));
        open.flags = if member { flags::MEMBER } else { 0 };
        bench.ask(1, open, Body::None);
        bench.stored();
        let mut write = bench.header(Kind::Write, view(1, 0));
        (write.offset, write.length) = ((1 << 20) - 4096, 8192);
        let out = bench.ask(1, write, Body::Data(7));
        assert_eq!(disk(&out), [], "not before its dirty bits are durable");
        assert_eq!(disk(&bench.stored()).len(), 1);
        assert_eq!(bench.replica.dirty_regions(), 2);
    }
}

#[test]
fn a_stop_declares_clean_only_what_its_flush_covers() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(0));
    rig.run(20);
    rig.step(Event::Stop);
    rig.run_if(200, |sent| {
        ![Kind::Flush, Kind::Clean].contains(&sent.header.kind)
    });
    assert_eq!(rig.waiting(Kind::Flush), [A, B]);
    assert_eq!(rig.waiting(Kind::Clean), []);
}

#[test]
fn a_region_written_again_keeps_its_bit() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let write = |bench: &mut Bench| {
        let mut write = bench.header(Kind::Write, view(1, 0));
        write.length = 4096;
        let mut out = bench.ask(1, write, Body::Data(7));
        out.extend(bench.stored());
        let op = disk(&out)[0].0;
        bench.disk_done(op, Ok(None));
    };
    write(&mut bench);
    let mut clean = bench.header(Kind::Clean, view(1, 0));
    clean.length = 0;
    bench.ask(1, clean, Body::Bytes(0_u32.to_le_bytes().to_vec()));
    write(&mut bench);
    bench.tick(2000);
    bench.stored();
    assert_eq!(
        bench.replica.dirty_regions(),
        1,
        "its bit went though it was written since"
    );
}

#[test]
fn a_region_stays_dirty_while_it_is_unequal() {
    let mut rig = Rig::new(row(&[A, B], &[], 1), true, None);
    rig.dirty.insert(A, 1);
    let held = |sent: &Sent| [Kind::Read, Kind::Clean].contains(&sent.header.kind);
    // The repair hangs; everything else goes on, flushes too.
    rig.run_if(8000, |sent| !held(sent));
    assert!(rig.waiting(Kind::Read).len() > 1, "no repair");
    assert_eq!(rig.waiting(Kind::Clean), []);
    rig.answer_if(|sent| sent.header.kind == Kind::Read);
    rig.run(1000);
    assert_eq!(rig.engine.unequal_bytes(), 0);
    rig.run_if(15_000, |sent| sent.header.kind != Kind::Clean);
    assert_eq!(rig.waiting(Kind::Clean), [A, B]);
}
