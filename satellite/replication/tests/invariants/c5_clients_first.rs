//= docs/replication.md#C5
//! A scrub reads no faster than it is told, and slower while clients wait.

use std::time::Duration;

use stor_replication::digest::Unit;
use stor_replication::wire::Kind;

use super::bench::{A, B, Rig, block, row};

/// Bytes asked for in `millis`, at 1 MiB a second, all of it data.
fn compared(millis: u64, busy: bool) -> u64 {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    for sector in 0..2048 {
        rig.units(A, sector, Unit::of(b"data"));
        rig.units(B, sector, Unit::of(b"data"));
    }
    rig.rate = 1 << 20;
    if busy {
        rig.read(1, block(1));
    }
    rig.ask_scrub(Some(1), 0);
    rig.run_if(millis, |sent| sent.header.kind != Kind::Read);
    rig.engine.scrub().unwrap().cursor
}

#[test]
fn no_faster_than_it_is_told() {
    let cursor = compared(4000, false);
    assert!((3 << 20..=5 << 20).contains(&cursor), "{cursor} in four seconds");
}

#[test]
fn a_quarter_of_that_while_a_client_waits() {
    let cursor = compared(4000, true);
    assert!(
        (768 << 10..=1280 << 10).contains(&cursor),
        "{cursor} in four seconds"
    );
}

#[test]
fn holes_cost_no_time() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.rate = 1;
    rig.ask_scrub(Some(1), 0);
    let begun = rig.now;
    rig.answer_if(|_| true);
    assert_eq!(rig.now.since(begun), Duration::ZERO);
    assert_eq!(rig.proposed.len(), 1, "not at its end: {:?}", rig.engine.scrub());
}
