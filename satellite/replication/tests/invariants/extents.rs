//! Which parts are holes is asked as a read is: of one member, under a lock, released under the leases of all.

use std::time::Duration;

use stor_replication::body::Body;
use stor_replication::engine::Request;
use stor_replication::extents::{self, Extent};
use stor_replication::range::{BLOCK, ByteRange, REGION};
use stor_replication::replica::{DiskAction, Event};
use stor_replication::wire::{Kind, Status};

use super::bench::{A, B, Bench, Rig, SIZE, block, disk, row, status, view};

fn hole(length: u32) -> Extent {
    Extent { length, hole: true }
}

#[test]
fn one_member_is_asked_and_its_answer_is_the_answer() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.submit(1, Request::Extents(ByteRange::new(4096, 3 * 4096)));
    assert_eq!(rig.waiting(Kind::Extents).len(), 1);
    let sent = rig.sent.pop_back().unwrap();
    assert_eq!((sent.header.offset, sent.header.length), (4096, 3 * 4096));
    let found = [hole(4096), Extent::data(4096)];
    rig.answer_with(&sent, Status::Ok, Body::Bytes(extents::encode(&found)));
    rig.run(10);
    assert_eq!(rig.extents[&1], found, "a beginning of the range will do");
}

//= docs/replication.md#R6
#[test]
fn without_leases_it_waits() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.run(1000);
    rig.submit(1, Request::Extents(block(0)));
    let asked = |sent: &&super::bench::Sent| sent.header.kind == Kind::Extents;
    let question = rig.sent.iter().find(asked).unwrap().clone();
    rig.sent.retain(|sent| !asked(&sent));
    rig.now = rig.now + Duration::from_secs(5);
    rig.answer(&question);
    assert!(!rig.extents.contains_key(&1), "told without any lease");
    rig.run_if(50, |sent| sent.replica == A);
    assert!(
        !rig.extents.contains_key(&1),
        "told without the lease of the other member"
    );
    rig.run(50);
    assert!(rig.extents.contains_key(&1), "leases are there again");
}

//= docs/replication.md#R12
#[test]
fn it_waits_for_writes_under_way_and_writes_wait_for_it() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(2));
    rig.submit(2, Request::Extents(ByteRange::new(0, REGION)));
    assert!(
        rig.waiting(Kind::Extents).is_empty(),
        "asked while a write is under way"
    );
    rig.answer_if(|sent| sent.header.kind == Kind::Write);
    assert_eq!(rig.waiting(Kind::Extents).len(), 1);
    rig.write(3, block(3));
    assert!(
        rig.waiting(Kind::Write).is_empty(),
        "written while the question is open"
    );
    rig.write(4, ByteRange::new(REGION, 4096));
    assert_eq!(
        rig.waiting(Kind::Write).len(),
        2,
        "beside the range anything may happen"
    );
    rig.run(10);
    assert!(rig.extents.contains_key(&2) && rig.is_done(3));
}

//= docs/replication.md#R8
#[test]
fn what_may_differ_is_never_a_hole() {
    let mut rig = Rig::new(row(&[A, B], &[], 1), true, None);
    rig.dirty.insert(A, 0b10);
    let no_data = |sent: &super::bench::Sent| !matches!(sent.header.kind, Kind::Read | Kind::Write);
    rig.run_if(200, no_data);
    rig.submit(1, Request::Extents(ByteRange::new(0, SIZE)));
    rig.submit(
        2,
        Request::Extents(ByteRange::new(REGION + 4096, SIZE - REGION - 4096)),
    );
    rig.run_if(10, no_data);
    assert_eq!(
        rig.extents[&1],
        [hole(u32::try_from(REGION).unwrap())],
        "up to what may differ"
    );
    let data = Extent::data(REGION - 4096);
    assert_eq!(
        rig.extents[&2],
        [data],
        "where it begins with that, as long as that is"
    );
    rig.run(500);
    assert_eq!(rig.engine.unequal_bytes(), 0, "repaired");
    rig.submit(3, Request::Extents(ByteRange::new(REGION, BLOCK)));
    rig.run(10);
    assert_eq!(rig.extents[&3], [hole(65536)]);
}

#[test]
fn another_member_is_asked_when_the_first_is_gone() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.submit(1, Request::Extents(block(0)));
    let [first] = rig.waiting(Kind::Extents)[..] else {
        panic!("asked of one");
    };
    rig.lose(first);
    let other = if first == A { B } else { A };
    assert_eq!(rig.waiting(Kind::Extents), [other]);
    rig.run_if(700, |sent| sent.replica == other);
    rig.decide();
    rig.run(100);
    assert_eq!(rig.extents[&1], [hole(4096)]);
}

#[test]
fn an_answer_that_makes_no_sense_says_nothing() {
    for wrong in [
        Body::None,
        Body::Bytes(vec![1; 7]),
        Body::Bytes(extents::encode(&[hole(8192)])),
    ] {
        let mut rig = Rig::serving(row(&[A, B], &[], 1));
        rig.submit(1, Request::Extents(block(0)));
        let sent = rig.sent.pop_back().unwrap();
        rig.answer_with(&sent, Status::Ok, wrong);
        rig.run(10);
        assert_eq!(rig.extents[&1], [Extent::data(4096)]);
    }
}

#[test]
fn a_replica_looks_and_answers_with_a_lease() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let mut header = bench.header(Kind::Extents, view(1, 0));
    header.length = u32::try_from(SIZE).unwrap();
    let out = bench.ask(1, header, Body::None);
    let [(op, DiskAction::Extents { range })] = disk(&out)[..] else {
        panic!("{out:?}");
    };
    assert_eq!(range, ByteRange::new(0, SIZE));
    let out = bench.step(Event::ExtentsFound {
        op,
        extents: Vec::new(),
    });
    assert_eq!(status(&out, header.op), Some(Status::Ok));
    let all = extents::encode(&[Extent::data(SIZE)]);
    let answered = |body: &Body<u64>| body.bytes() == all;
    assert!(
        out.iter().any(
            |command| matches!(command, stor_replication::replica::Command::Reply { body, .. } if answered(body))
        ),
        "what is not known is data: {out:?}"
    );
}

#[test]
fn a_replica_refuses_a_range_it_has_not() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    for (offset, length) in [(0, 0), (0, 100), (SIZE, 4096), (SIZE - 4096, 8192)] {
        let mut header = bench.header(Kind::Extents, view(1, 0));
        (header.offset, header.length) = (offset, length);
        let out = bench.ask(1, header, Body::None);
        assert_eq!(
            status(&out, header.op),
            Some(Status::Invalid),
            "{offset}+{length}"
        );
        assert!(disk(&out).is_empty());
    }
}
