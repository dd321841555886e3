//= docs/replication.md#R16
//! Rather than shrink below its minimum the set waits.

use stor_replication::catalogue::{Change, EjectReason, Refusal, decide};
use stor_replication::engine::State;

use super::bench::{A, B, C, Rig, block, cache, lost, row, view};

#[test]
fn the_catalogue_refuses_to_shrink_below_the_minimum() {
    let row = row(&[A, B, C], &[], 2);
    let members = vec![(B, EjectReason::Unreachable), (C, EjectReason::Unreachable)];
    let remove = Change::Remove {
        expect: view(3, 1),
        members,
    };
    assert_eq!(
        decide(&row, &remove),
        Err(Refusal::TooFewInSync { left: 1, min: 2 })
    );
    let remove = Change::Remove {
        expect: view(3, 1),
        members: vec![(C, EjectReason::Unreachable)],
    };
    assert_eq!(
        decide(&row, &remove).unwrap().in_sync().collect::<Vec<_>>(),
        [A, B]
    );
}

#[test]
fn the_engine_suspends_and_says_why_and_goes_on_when_the_member_is_back() {
    let mut rig = Rig::serving(row(&[A, B], &[], 2));
    rig.write(1, block(0));
    rig.answer_if(|sent| sent.replica == A);
    rig.lose(B);
    rig.run(60_000);
    assert_eq!(rig.proposed, []);
    assert!(!rig.is_done(1));
    let State::Suspended(why) = rig.engine.state(rig.now) else {
        panic!("not suspended")
    };
    assert!(why.contains("n2") && why.contains("unreachable"), "{why}");
    rig.back(B);
    rig.run(2000);
    assert_eq!(rig.done[&1], Ok(None));
    assert_eq!(rig.engine.state(rig.now), State::Serving);
}

#[test]
fn the_last_member_is_never_removed() {
    let mut rig = Rig::serving(row(&[A], &[], 1));
    rig.write(1, block(0));
    rig.lose(A);
    rig.run(60_000);
    assert_eq!(rig.proposed, []);
    assert!(!rig.is_done(1));
    rig.back(A);
    rig.run(2000);
    assert_eq!(rig.done[&1], Ok(None));
}

#[test]
fn a_member_that_reboots_while_another_is_away_for_good_stays_and_is_made_good() {
    let mut rig = Rig::serving(row(&[A, B, C], &[], 2));
    rig.write(1, block(0));
    rig.run(20);
    assert!(rig.is_done(1));
    rig.lose(C);
    rig.lose(A);
    rig.run(1000);
    assert_eq!(rig.proposed, []);
    let info = rig.info.get_mut(&A).unwrap();
    (info.cache, info.loss) = (cache(9), lost(3));
    rig.back(A);
    rig.write(2, block(9));
    rig.run(5000);
    let remove = Change::Remove {
        expect: view(3, 1),
        members: vec![(C, EjectReason::Unreachable)],
    };
    let proposed: Vec<Change> = rig.proposed.iter().map(|(_, change)| change.clone()).collect();
    assert_eq!(proposed, [remove], "with A and B there are enough");
    rig.decide();
    rig.run(2000);
    assert!(rig.is_done(2));
    assert_eq!(rig.engine.unequal_bytes(), 0);
}
