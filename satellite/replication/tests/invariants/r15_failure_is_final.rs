//= docs/replication.md#R15
//! A failed write or flush ends the replica: it is not tried again.

use stor_replication::body::Body;
use stor_replication::ids::Loss;
use stor_replication::info::Info;
use stor_replication::replica::{Command, DiskAction, DiskError, Event};
use stor_replication::wire::{Kind, Status, flags};

use super::bench::{A, B, Bench, Rig, block, cache, disk, row, status, view};

#[test]
fn a_failed_flush_is_not_tried_again() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let flush = bench.header(Kind::Flush, view(1, 0));
    let out = bench.ask(1, flush, Body::None);
    let [(op, DiskAction::Flush)] = disk(&out)[..] else {
        panic!("{out:?}")
    };
    let mut out = bench.disk_done(op, Err(DiskError::Failed));
    assert_eq!(status(&out, flush.op), Some(Status::DiskFailed));
    out.extend(bench.stored());
    assert!(bench.replica.superblock().failed);
    let again = bench.header(Kind::Flush, view(1, 0));
    let out = bench.ask(1, again, Body::None);
    assert_eq!(disk(&out), []);
    assert_eq!(status(&out, again.op), Some(Status::DiskFailed));
    // Nor on a new connection, or for a later engine.
    let mut open = bench.header(Kind::Open, view(2, 0));
    open.flags = flags::MEMBER;
    let mut out = bench.ask(2, open, Body::None);
    out.extend(bench.stored());
    out.extend(bench.tick(5000));
    assert_eq!(status(&out, open.op), Some(Status::DiskFailed));
}

#[test]
fn the_next_opening_says_that_its_cache_was_lost() {
    let mut seen = vec![cache(1)];
    let mut bench = Bench::new();
    for epoch in [1, 1, 2] {
        bench.now = bench.now + std::time::Duration::from_secs(5);
        bench.open(1, view(epoch, 0), &[]);
        let flush = bench.header(Kind::Flush, view(epoch, 0));
        let out = bench.ask(1, flush, Body::None);
        bench.disk_done(disk(&out)[0].0, Err(DiskError::Failed));
        bench.stored();
        bench = bench.restart(cache(1));
        let mut open = bench.header(Kind::Open, view(epoch, 0));
        open.flags = flags::MEMBER;
        bench.now = bench.now + std::time::Duration::from_secs(5);
        let mut out = bench.ask(2, open, Body::None);
        out.extend(bench.stored());
        let info = out.iter().find_map(|command| match command {
            Command::Reply { body, .. } => Info::decode(body.bytes()),
            _ => None,
        });
        let info = info.expect("it opens anew");
        assert_ne!(info.loss, Loss::NONE);
        assert!(!seen.contains(&info.cache), "an identity used before");
        seen.push(info.cache);
    }
}

#[test]
fn no_room_is_not_a_failure() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let (op, _) = bench.write(1, view(1, 0), block(0), 7);
    let out = bench.stored();
    let out = bench.disk_done(disk(&out)[0].0, Err(DiskError::NoSpace));
    assert_eq!(status(&out, op), Some(Status::NoSpace));
    assert!(!bench.replica.superblock().failed);
}

#[test]
fn a_disk_that_takes_not_even_the_mark_is_left_alone() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let flush = bench.header(Kind::Flush, view(1, 0));
    let out = bench.ask(1, flush, Body::None);
    bench.disk_done(disk(&out)[0].0, Err(DiskError::Failed));
    bench.step(Event::PagesStored {
        result: Err(DiskError::Failed),
    });
    assert_eq!(bench.tick(60_000), []);
    assert!(bench.replica.is_idle());
}

#[test]
fn an_engine_that_was_told_does_not_trust_what_it_knew() {
    let mut rig = Rig::serving(row(&[A, B], &[], 2));
    rig.write(1, block(0));
    rig.run(20);
    rig.write(2, block(1));
    let at = rig
        .sent
        .iter()
        .position(|sent| sent.replica == B && sent.header.kind == Kind::Write)
        .unwrap();
    let refused = rig.sent.remove(at).unwrap();
    rig.answer_with(&refused, Status::DiskFailed, Body::None);
    // It opens again and says that nothing happened.
    rig.run(3000);
    assert!(
        rig.engine.counters().repaired_bytes >= 1 << 20,
        "what it had not flushed was not copied to it"
    );
    assert!(rig.is_done(2));
}
