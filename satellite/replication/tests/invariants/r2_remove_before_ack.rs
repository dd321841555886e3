//= docs/replication.md#R2
//! A member is left out only after the catalogue has removed it and a remaining one has stored that.

use stor_replication::catalogue::{Change, EjectReason};
use stor_replication::engine::{FailReason, IoError, State};
use stor_replication::wire::Kind;

use super::bench::{A, B, C, Rig, block, row, view};

#[test]
fn a_member_that_stays_answers_before_another_is_removed() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(0));
    rig.answer_if(|sent| sent.header.kind == Kind::Write);
    assert!(rig.is_done(1));
    // Nothing comes from A any more: it may have rebooted, and B may be the last that has the write.
    rig.run_if(1000, |sent| sent.replica == B);
    rig.lose(B);
    rig.run_if(1500, |sent| sent.replica == B);
    assert_eq!(rig.proposed, [], "nobody vouches for what it acknowledged");
    assert_eq!(rig.waiting(Kind::Ping), [A]);
    rig.run(100);
    assert_eq!(rig.proposed.len(), 1);
}

#[test]
fn an_answer_waits_for_the_catalogue_and_for_one_stored_view() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(0));
    rig.lose(B);
    rig.run(700);
    let remove = Change::Remove {
        expect: view(3, 1),
        members: vec![(B, EjectReason::Unreachable)],
    };
    assert_eq!(
        rig.proposed
            .iter()
            .map(|(_, change)| change.clone())
            .collect::<Vec<_>>(),
        [remove]
    );
    assert!(matches!(rig.engine.state(rig.now), State::Suspended(_)));
    rig.run(5000);
    assert!(!rig.is_done(1), "answered before the catalogue did");
    assert_eq!(
        rig.proposed.len(),
        1,
        "asked again though the outcome is not known"
    );

    rig.decide();
    assert_eq!(rig.waiting(Kind::StoreView), [A]);
    assert!(
        !rig.is_done(1),
        "answered before a member has stored the new view"
    );
    rig.answer_if(|sent| sent.header.kind == Kind::StoreView);
    assert_eq!(rig.done[&1], Ok(None));
}

#[test]
fn a_new_engine_answers_no_write_before_one_member_has_stored_its_view() {
    // The one before may have removed a member and died before any other had stored that.
    let mut rig = Rig::new(row(&[A], &[B], 1), false, None);
    rig.write(1, block(0));
    rig.run_if(200, |sent| sent.header.kind != Kind::StoreView);
    assert_eq!(rig.engine.state(rig.now), State::Serving);
    assert!(!rig.is_done(1));
    rig.answer_if(|sent| sent.header.kind == Kind::StoreView);
    rig.run(20);
    assert!(rig.is_done(1));
}

#[test]
fn a_replica_of_a_later_config_stops_the_engine() {
    // The catalogue was restored from a copy: it does not know any more who was removed.
    for later in [A, C] {
        let mut rig = Rig::new(row(&[A, B], &[C], 1), true, None);
        rig.info.get_mut(&later).unwrap().stored = view(2, 7);
        rig.write(1, block(0));
        rig.run(1000);
        let state = rig.engine.state(rig.now);
        assert_eq!(
            state,
            State::Failed(FailReason::CatalogueBehind),
            "replica {later}"
        );
        assert_eq!(rig.done.get(&1), Some(&Err(IoError::Failed)));
    }
}
