//= docs/replication.md#S5
//! Writes are held for five seconds at most, and a copy made after they went on is none.

use std::time::Duration;

use stor_replication::catalogue::{Change, SnapshotTrouble};
use stor_replication::engine::GATE;
use stor_replication::wire::Kind;

use super::bench::{A, B, Rig, block, row};

#[test]
fn a_member_that_does_not_finish_holds_nobody_for_longer() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.ask_snapshot(Some(1), false);
    let others = |sent: &super::bench::Sent| sent.header.kind != Kind::Snapshot || sent.replica == A;
    rig.run_if(100, others);
    rig.write(1, block(0));
    rig.run_if(4700, others);
    assert!(!rig.is_done(1));
    assert_eq!(rig.proposed, []);
    rig.run_if(300, others);
    assert!(rig.is_done(1), "held for longer than {GATE:?}");
    let held = Duration::from_micros(rig.engine.counters().held_last_us);
    assert!(
        held >= GATE && held < GATE + Duration::from_millis(200),
        "{held:?}"
    );
    // The answer that comes late is to a question that nobody asks any more.
    rig.run(9000);
    let failed = |change: &Change| {
        matches!(
            change,
            Change::SnapshotFailed {
                why: SnapshotTrouble::TimedOut,
                ..
            }
        )
    };
    assert!(
        matches!(&rig.proposed[..], [(_, change)] if failed(change)),
        "{:?}",
        rig.proposed
    );
    assert_eq!(rig.engine.counters().snapshots, 0);
}

#[test]
fn a_member_that_is_slow_with_a_copy_is_not_removed_for_it() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.ask_snapshot(Some(1), false);
    rig.run_if(20_000, |sent| {
        sent.header.kind != Kind::Snapshot || sent.replica == A
    });
    assert_eq!(rig.closed, []);
    assert_eq!(rig.proposed.len(), 1);
}

#[test]
fn what_the_catalogue_was_asked_is_waited_for_without_holding_anybody() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.ask_snapshot(Some(1), false);
    rig.run(50);
    assert!(matches!(rig.proposed[..], [(_, Change::SnapshotReady { .. })]));
    rig.write(1, block(0));
    rig.run(4800);
    assert!(!rig.is_done(1));
    rig.run(300);
    assert!(rig.is_done(1));
    assert_eq!(rig.proposed.len(), 1, "it may be ready for all that is known");
    rig.decide();
    assert_eq!(rig.engine.counters().snapshots, 1);
    assert_eq!(rig.proposed, []);
}
