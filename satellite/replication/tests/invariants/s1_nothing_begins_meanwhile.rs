//= docs/replication.md#S1
//! While a snapshot is made no write begins; those under way end first, and all is flushed.

use stor_replication::catalogue::Change;
use stor_replication::engine::{Request, SnapshotStage};
use stor_replication::wire::Kind;

use super::bench::{A, B, Rig, block, row, snapshot, view};

#[test]
fn writes_wait_and_those_under_way_end_first() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(0));
    rig.ask_snapshot(Some(1), false);
    assert_eq!(rig.waiting(Kind::MaySnapshot), [A, B]);
    rig.write(2, block(1));
    assert_eq!(
        rig.waiting(Kind::Write),
        [A, B, A, B],
        "nobody is held before all could"
    );
    rig.answer_if(|sent| sent.header.kind == Kind::MaySnapshot);

    rig.write(3, block(2));
    rig.submit(4, Request::Read(block(9)));
    assert_eq!(rig.waiting(Kind::Write).len(), 4, "the third is held");
    assert_eq!(rig.waiting(Kind::Read).len(), 1, "reads go on");
    assert_eq!(rig.waiting(Kind::Flush), []);
    rig.answer_if(|sent| sent.header.kind == Kind::Write && sent.replica == A);
    assert_eq!(rig.waiting(Kind::Flush), [], "B does not have them yet");
    rig.answer_if(|sent| sent.header.kind == Kind::Write);
    assert_eq!(rig.waiting(Kind::Flush), [A, B]);
    rig.answer_if(|sent| sent.header.kind == Kind::Flush && sent.replica == B);
    assert_eq!(rig.waiting(Kind::Snapshot), [], "A has not flushed yet");
    rig.answer_if(|sent| sent.header.kind == Kind::Flush);
    assert_eq!(rig.waiting(Kind::Snapshot), [A, B]);

    rig.answer_if(|sent| sent.header.kind == Kind::Snapshot);
    assert_eq!(
        rig.waiting(Kind::Write),
        [],
        "held until the catalogue has decided"
    );
    let ready = Change::SnapshotReady {
        expect: view(3, 1),
        snapshot: snapshot(1),
        members: vec![A, B],
    };
    assert_eq!(rig.proposed, [(rig.proposed[0].0, ready)]);
    rig.decide();
    assert_eq!(rig.waiting(Kind::Write), [A, B]);
    rig.run(10);
    assert!(rig.is_done(3));
    assert_eq!(rig.engine.counters().snapshots, 1);
}

#[test]
fn one_of_a_group_waits_for_the_others_with_its_writes_held() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.ask_snapshot(Some(1), true);
    rig.run(20);
    assert_eq!(rig.engine.snapshot(), Some((snapshot(1), SnapshotStage::Held)));
    rig.write(1, block(0));
    rig.run(500);
    assert_eq!(rig.waiting(Kind::Write), []);
    assert_eq!(rig.proposed, []);
    rig.ask_snapshot(Some(1), false);
    rig.run(20);
    assert!(matches!(rig.proposed[..], [(_, Change::SnapshotReady { .. })]));
    rig.decide();
    rig.run(20);
    assert!(rig.is_done(1));
}

#[test]
fn one_that_is_not_wanted_any_more_holds_nothing() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.ask_snapshot(Some(1), true);
    rig.run(20);
    rig.write(1, block(0));
    rig.ask_snapshot(None, false);
    rig.run(20);
    assert!(rig.is_done(1));
    assert_eq!(rig.proposed, [], "it was the catalogue's wish");
}
