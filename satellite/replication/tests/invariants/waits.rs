//! A starting engine says what it waits for.

use stor_replication::engine::State;

use super::bench::{A, B, C, Rig, block, row};

fn waits(rig: &Rig) -> String {
    rig.engine.waits_for(rig.now).unwrap_or_default()
}

#[test]
fn for_a_member_after_an_unclean_end_and_how_long_at_most() {
    let mut row = row(&[A, B], &[], 1);
    row.clean_before = false;
    let node = row.replicas[&B].node.clone();
    let mut rig = Rig::new(row, false, None);
    rig.away.push(B);
    rig.run(6000);
    assert_eq!(
        waits(&rig),
        format!("waiting up to 24 s for {node}: in sync, not reached since an unclean end")
    );
    rig.run(25_000);
    assert!(waits(&rig).ends_with("about to go on without"), "{}", waits(&rig));
    rig.decide();
    rig.run(100);
    assert_eq!(
        (rig.engine.state(rig.now), waits(&rig)),
        (State::Serving, String::new())
    );
}

#[test]
fn for_the_only_replica_in_sync() {
    let mut rig = Rig::new(row(&[A], &[B], 1), false, None);
    rig.away.push(A);
    rig.run(40_000);
    assert!(
        waits(&rig).ends_with("the only replica in sync, not reached"),
        "{}",
        waits(&rig)
    );
}

#[test]
fn for_as_many_as_must_be_in_sync() {
    let mut rig = Rig::new(row(&[A, B, C], &[], 2), false, None);
    rig.away.extend([B, C]);
    rig.run(40_000);
    assert!(
        waits(&rig).ends_with("1 of 3 in sync can be reached, 2 must be"),
        "{}",
        waits(&rig)
    );
}

#[test]
fn a_suspended_engine_says_why_it_can_not_go_on() {
    let mut rig = Rig::new(row(&[A, B], &[], 2), false, None);
    rig.run(1000);
    rig.lose(B);
    rig.write(1, block(0));
    rig.run(5000);
    match rig.engine.state(rig.now) {
        State::Suspended(why) => assert!(why.ends_with("without it 1 would be in sync, 2 must be"), "{why}"),
        other => panic!("{other:?}"),
    }
}
