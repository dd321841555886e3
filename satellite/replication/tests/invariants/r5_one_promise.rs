//= docs/replication.md#R5
//! Older engines are refused; a new one starts with one promise, and removes who does not answer.

use stor_replication::body::Body;
use stor_replication::engine::State;
use stor_replication::wire::{Kind, Status};

use super::bench::{A, B, Bench, Rig, block, row, status, view};

#[test]
fn an_older_engine_is_refused() {
    let mut bench = Bench::new();
    bench.open(1, view(5, 0), &[]);
    let header = bench.header(Kind::Open, view(4, 0));
    let out = bench.ask(2, header, Body::None);
    assert_eq!(status(&out, header.op), Some(Status::Fenced));
    let (op, out) = bench.write(1, view(4, 0), block(0), 7);
    assert_eq!(status(&out, op), Some(Status::WrongView));
}

#[test]
fn the_fence_outlives_the_process() {
    let mut bench = Bench::new();
    bench.open(1, view(5, 0), &[]);
    let mut bench = bench.restart(super::bench::cache(1));
    let header = bench.header(Kind::Open, view(4, 0));
    let out = bench.ask(2, header, Body::None);
    assert_eq!(status(&out, header.op), Some(Status::Fenced));
}

#[test]
fn an_unclean_start_waits_the_grace_then_goes_on_with_one() {
    let mut row = row(&[A, B], &[], 1);
    row.clean_before = false;
    let mut rig = Rig::new(row, false, None);
    rig.away.push(B);
    rig.run(29_000);
    assert_eq!(rig.proposed, []);
    assert_eq!(rig.engine.state(rig.now), State::Starting);
    rig.run(2000);
    rig.decide();
    rig.run(100);
    assert_eq!(rig.engine.state(rig.now), State::Serving);
    rig.write(1, block(0));
    rig.run(10);
    assert_eq!(rig.done[&1], Ok(None));
}

#[test]
fn a_clean_start_waits_hardly() {
    let mut rig = Rig::new(row(&[A, B], &[], 1), false, None);
    rig.away.push(B);
    rig.run(700);
    assert_eq!(rig.proposed.len(), 1);
}

#[test]
fn nothing_is_served_without_the_others_before_their_removal() {
    let mut row = row(&[A, B], &[], 1);
    row.clean_before = false;
    let mut rig = Rig::new(row, false, None);
    rig.away.push(B);
    rig.write(1, block(0));
    rig.run(31_000);
    assert!(!rig.is_done(1));
    assert_eq!(rig.waiting(Kind::Write), []);
}
