//= docs/replication.md#S3
//! No snapshot while members may differ, or while one lacks what was acknowledged.

use stor_replication::catalogue::Change;
use stor_replication::engine::Request;
use stor_replication::wire::Kind;

use super::bench::{A, B, Rig, block, cache, row};

#[test]
fn after_an_unclean_end_the_repair_comes_first_and_nobody_is_held_for_it() {
    let mut unclean = row(&[A, B], &[], 1);
    unclean.clean_before = false;
    let mut rig = Rig::new(unclean, false, None);
    rig.dirty.insert(A, 1);
    let repair = |kind| matches!(kind, Kind::Read);
    rig.run_if(200, |sent| !repair(sent.header.kind));
    assert!(rig.engine.unequal_bytes() > 0);
    rig.ask_snapshot(Some(1), false);
    rig.run_if(300, |sent| !repair(sent.header.kind));
    rig.write(1, block(500));
    rig.run_if(2000, |sent| !repair(sent.header.kind));
    assert!(rig.is_done(1), "held for a repair");
    assert_eq!(rig.waiting(Kind::Snapshot), []);
    assert_eq!(rig.proposed, [], "made of what differs");
    rig.run(2000);
    assert_eq!(rig.engine.unequal_bytes(), 0);
    assert!(matches!(rig.proposed[..], [(_, Change::SnapshotReady { .. })]));
}

#[test]
fn a_member_that_lost_its_cache_meanwhile_ends_the_attempt() {
    let mut rig = Rig::serving(row(&[A, B], &[], 2));
    rig.write(1, block(0));
    rig.run(20);
    rig.ask_snapshot(Some(1), true);
    rig.run(20);
    rig.write(2, block(1));
    rig.info.get_mut(&B).unwrap().cache = cache(2);
    rig.lose(B);
    rig.back(B);
    rig.ask_snapshot(Some(1), false);
    rig.run(3000);
    assert!(rig.is_done(2));
    assert!(
        matches!(rig.proposed[..], [(_, Change::SnapshotFailed { .. })]),
        "{:?}",
        rig.proposed
    );
    rig.submit(3, Request::Read(block(0)));
    rig.run(1000);
    assert!(rig.is_done(3));
}
