//= docs/replication.md#R4
//! A promise is given when the fence is stored, older I/O is over and the older lease has run out.

use stor_replication::body::Body;
use stor_replication::replica::Event;
use stor_replication::wire::{Kind, Status, flags};

use super::bench::{Bench, block, cache, disk, status, view};

#[test]
fn the_promise_waits_for_fence_disk_and_lease() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let (_, out) = bench.write(1, view(1, 0), block(0), 7);
    assert!(disk(&out).is_empty());
    let out = bench.stored();
    let [(old, _)] = disk(&out)[..] else {
        panic!("no write: {out:?}")
    };

    let mut header = bench.header(Kind::Open, view(2, 0));
    header.flags = flags::MEMBER;
    let out = bench.ask(2, header, Body::None);
    assert_eq!(status(&out, header.op), None);
    // The old lease ends; the fence is not stored and the old write is in the disk.
    let out = bench.tick(2000);
    assert_eq!(status(&out, header.op), None);
    let out = bench.stored();
    assert_eq!(
        status(&out, header.op),
        None,
        "promised with an older write in the disk"
    );
    assert_eq!(bench.replica.superblock().fence, stor_replication::ids::Epoch(2));
    let out = bench.disk_done(old, Ok(None));
    assert_eq!(status(&out, header.op), Some(Status::Ok));
}

#[test]
fn the_promise_waits_for_the_lease_it_granted() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let header = bench.header(Kind::Ping, view(1, 0));
    bench.ask(1, header, Body::None);
    let mut header = bench.header(Kind::Open, view(2, 0));
    header.flags = flags::MEMBER;
    bench.ask(2, header, Body::None);
    let out = bench.stored();
    assert_eq!(
        status(&out, header.op),
        None,
        "promised within the lease of the older engine"
    );
    assert_eq!(
        bench.replica.deadline(),
        Some(bench.now + stor_replication::time::LEASE)
    );
    let out = bench.tick(999);
    assert_eq!(status(&out, header.op), None);
    let out = bench.tick(1);
    assert_eq!(status(&out, header.op), Some(Status::Ok));
}

#[test]
fn the_promise_waits_for_the_fence_to_be_stored() {
    let mut bench = Bench::new();
    bench.now = super::bench::at(5000);
    let mut header = bench.header(Kind::Open, view(2, 0));
    header.flags = flags::MEMBER;
    let out = bench.ask(1, header, Body::None);
    assert_eq!(
        status(&out, header.op),
        None,
        "promised before the fence is durable"
    );
    let out = bench.stored();
    assert_eq!(status(&out, header.op), Some(Status::Ok));
}

#[test]
fn it_ends_with_its_connection() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    bench.step(Event::Gone {
        conn: stor_replication::ids::ConnId(1),
    });
    let (op, out) = bench.write(1, view(1, 0), block(0), 7);
    assert_eq!(status(&out, op), Some(Status::NotOpen));
}

#[test]
fn a_restarted_replica_assumes_that_it_had_granted_a_lease() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let mut bench = bench.restart(cache(1));
    let mut header = bench.header(Kind::Open, view(2, 0));
    header.flags = flags::MEMBER;
    let mut out = bench.ask(2, header, Body::None);
    out.extend(bench.stored());
    out.extend(bench.tick(900));
    assert_eq!(
        status(&out, header.op),
        None,
        "promised beside a lease of the process before"
    );
    let out = bench.tick(100);
    assert_eq!(status(&out, header.op), Some(Status::Ok));
}

#[test]
fn a_lease_outlives_the_replica_that_had_stored_the_fence_of_the_next_engine() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    bench.store_view(1, view(1, 0), &[]);
    // The next engine's fence is durable, its promise waits for the lease of the first; the process ends.
    let mut header = bench.header(Kind::Open, view(2, 0));
    header.flags = flags::MEMBER;
    let mut out = bench.ask(2, header, Body::None);
    out.extend(bench.stored());
    assert_eq!(status(&out, header.op), None);
    let mut bench = bench.restart(cache(1));
    let mut out = bench.ask(3, header, Body::None);
    out.extend(bench.stored());
    out.extend(bench.tick(900));
    assert_eq!(status(&out, header.op), None, "the first engine may still read");
    let out = bench.tick(100);
    assert_eq!(status(&out, header.op), Some(Status::Ok));
}

#[test]
fn the_engine_it_served_is_let_in_at_once_after_a_restart() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    bench.store_view(1, view(1, 0), &[]);
    let mut bench = bench.restart(cache(1));
    let mut header = bench.header(Kind::Open, view(1, 0));
    header.flags = flags::MEMBER;
    let out = bench.ask(2, header, Body::None);
    assert_eq!(status(&out, header.op), Some(Status::Ok));
}
