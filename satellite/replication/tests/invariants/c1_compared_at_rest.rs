//= docs/replication.md#C1
//! Copies are compared between all replicas, while nothing is written there and nothing may differ for another reason.

use stor_replication::body::Body;
use stor_replication::digest::Unit;
use stor_replication::replica::{self, DiskAction};
use stor_replication::wire::{Kind, Status};

use super::bench::{A, B, Bench, C, Rig, SIZE, block, disk, row, status, view};

#[test]
fn writers_wait_for_a_look_and_readers_do_not() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.ask_scrub(Some(1), 0);
    assert_eq!(rig.waiting(Kind::Digest), [A, B]);
    rig.write(1, block(3));
    rig.read(2, block(4));
    rig.run_if(500, |sent| sent.header.kind != Kind::Digest);
    assert!(rig.is_done(2), "a reader waits");
    assert!(!rig.is_done(1), "written while it is compared");
    rig.run(500);
    assert!(rig.is_done(1));
}

#[test]
fn a_look_waits_for_writes_under_way() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(3));
    rig.answer_if(|sent| sent.header.kind != Kind::Write || sent.replica == A);
    rig.ask_scrub(Some(1), 0);
    assert_eq!(rig.waiting(Kind::Digest), [], "the write is on one of them");
    rig.answer_if(|sent| sent.header.kind == Kind::Write);
    assert_eq!(rig.waiting(Kind::Digest), [A, B]);
}

#[test]
fn not_while_a_replica_is_away() {
    let mut rig = Rig::serving(row(&[A, B], &[C], 1));
    rig.away.push(C);
    rig.ask_scrub(Some(1), 0);
    rig.run(3000);
    assert_eq!(rig.digested, 0, "compared without replica {C}");
    let waits = rig.engine.scrub().unwrap().waits.unwrap();
    assert!(waits.contains("replica 3"), "{waits}");
}

#[test]
fn not_while_members_may_differ() {
    let mut unclean = row(&[A, B], &[], 1);
    unclean.clean_before = false;
    let mut rig = Rig::new(unclean, false, None);
    rig.dirty.insert(A, 1);
    rig.run_if(200, |sent| sent.header.kind != Kind::Read);
    assert!(rig.engine.unequal_bytes() > 0);
    // Where nothing is locked by the repair.
    rig.ask_scrub(Some(1), 4 << 20);
    rig.run_if(1000, |sent| sent.header.kind != Kind::Read);
    assert_eq!(rig.digested, 0, "compared before they were made equal");
    rig.run(2000);
    assert!(rig.digested > 0);
}

#[test]
fn answers_from_before_a_member_was_lost_do_not_count() {
    let mut rig = Rig::serving(row(&[A, B, C], &[], 1));
    rig.units(A, 0, Unit::of(b"other"));
    rig.ask_scrub(Some(1), 0);
    rig.answer_if(|sent| sent.header.kind == Kind::Digest && sent.replica != C);
    // Its answer is on its way while the look is made void, by the loss of another.
    let late = rig.take(Kind::Digest, C);
    rig.lose(B);
    rig.answer(&late);
    rig.back(B);
    rig.run_if(300, |sent| sent.header.kind != Kind::Digest);
    assert_eq!(rig.waiting(Kind::Digest).len(), 3, "all are asked again");
    rig.answer(&late);
    rig.answer_if(|sent| sent.header.kind == Kind::Digest && sent.replica != C);
    assert_eq!(
        rig.waiting(Kind::Digest),
        [C],
        "judged by an answer to an earlier look"
    );
}

#[test]
fn a_member_that_does_not_answer_holds_writers_for_two_seconds_and_is_not_removed() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.ask_scrub(Some(1), 0);
    rig.write(1, block(3));
    rig.run_if(1900, |sent| sent.header.kind != Kind::Digest);
    assert!(!rig.is_done(1));
    rig.run_if(300, |sent| sent.header.kind != Kind::Digest);
    assert!(rig.is_done(1), "writers are held by a slow digest");
    rig.run_if(20_000, |sent| {
        sent.header.kind != Kind::Digest || sent.replica == A
    });
    assert_eq!(rig.proposed, [], "removed for a slow digest");
}

#[test]
fn a_replica_tells_what_it_was_asked_and_no_more() {
    let mut bench = Bench::new();
    bench.open(1, view(2, 1), &[]);
    let mut ask = |offset: u64, length: u64| {
        let mut header = bench.header(Kind::Digest, view(2, 1));
        (header.offset, header.length) = (offset, u32::try_from(length).unwrap());
        let out = bench.ask(1, header, Body::None);
        let action = disk(&out).pop();
        (action, status(&out, header.op), header)
    };
    assert_eq!(
        ask(4096, 128 << 10).1,
        Some(Status::Invalid),
        "begins within a block"
    );
    assert_eq!(ask(SIZE, 4096).1, Some(Status::Invalid), "beyond the end");
    let (Some((op, DiskAction::Digest { range })), None, header) = ask(0, SIZE) else {
        panic!("not asked of the disk");
    };
    assert_eq!(range.len, SIZE);
    let digests = stor_replication::digest::Digests {
        read: 4096,
        units: vec![Unit::Zeroes],
    };
    let out = bench.step(replica::Event::Digested {
        op,
        digests: Some(digests),
    });
    assert_eq!(status(&out, header.op), Some(Status::Ok));
}
