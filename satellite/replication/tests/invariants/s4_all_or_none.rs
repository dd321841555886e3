//= docs/replication.md#S4
//! A snapshot is ready when every member has its copy of one undisturbed attempt and the catalogue agrees.

use stor_replication::catalogue::{Change, Refusal, SnapshotTrouble, decide};
use stor_replication::wire::{Kind, Status};

use super::bench::{A, B, C, Rig, block, row, snapshot, view};

fn failed(rig: &Rig, why: SnapshotTrouble) -> bool {
    matches!(rig.proposed[..], [(_, Change::SnapshotFailed { why: told, .. })] if told == why)
}

#[test]
fn one_member_is_not_enough() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.ask_snapshot(Some(1), false);
    rig.run_if(1000, |sent| {
        sent.header.kind != Kind::Snapshot || sent.replica == A
    });
    assert_eq!(rig.proposed, []);
    rig.run(20);
    assert!(
        matches!(&rig.proposed[..], [(_, Change::SnapshotReady { members, .. })] if members[..] == [A, B])
    );
}

#[test]
fn a_lost_connection_makes_it_void_and_lets_writes_go_on() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.ask_snapshot(Some(1), false);
    rig.run_if(100, |sent| sent.header.kind != Kind::Snapshot);
    rig.write(1, block(0));
    assert_eq!(rig.waiting(Kind::Write), []);
    rig.lose(B);
    rig.back(B);
    rig.run(300);
    assert!(rig.is_done(1));
    assert!(failed(&rig, SnapshotTrouble::Disturbed), "{:?}", rig.proposed);
}

#[test]
fn a_refusal_says_at_whom_and_removes_nobody() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.ask_snapshot(Some(1), false);
    let asked = rig.sent.iter().find(|sent| sent.replica == B).cloned().unwrap();
    assert_eq!(asked.header.kind, Kind::MaySnapshot);
    rig.refuse(&asked, Status::SnapshotUnsupported);
    let told = Change::SnapshotFailed {
        expect: view(3, 1).epoch,
        snapshot: snapshot(1),
        why: SnapshotTrouble::NotSupported,
        replica: Some(B),
    };
    assert_eq!(rig.proposed, [(rig.proposed[0].0, told)]);
    rig.write(1, block(0));
    rig.run(2000);
    assert!(rig.is_done(1));
    assert_eq!(rig.proposed.len(), 1);
}

#[test]
fn one_that_has_not_heard_of_it_yet_is_asked_again() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.ask_snapshot(Some(1), false);
    for _ in 0..3 {
        let asked = rig.sent.iter().find(|sent| sent.replica == B).cloned().unwrap();
        rig.sent.retain(|sent| *sent != asked);
        rig.refuse(&asked, Status::SnapshotUnknown);
        rig.run_if(250, |sent| sent.replica == A);
    }
    assert_eq!(rig.proposed, []);
    rig.run(250);
    assert!(matches!(rig.proposed[..], [(_, Change::SnapshotReady { .. })]));
}

#[test]
fn the_catalogue_takes_none_of_another_view_or_without_a_member() {
    let row = row(&[A, B], &[C], 1);
    let ready = |expect, members: &[_]| Change::SnapshotReady {
        expect,
        snapshot: snapshot(1),
        members: members.to_vec(),
    };
    assert!(matches!(
        decide(&row, &ready(view(3, 0), &[A, B])),
        Err(Refusal::ViewChanged { .. })
    ));
    assert!(matches!(
        decide(&row, &ready(view(3, 1), &[A])),
        Err(Refusal::SnapshotIncomplete { replica: B, .. })
    ));
    let next = decide(&row, &ready(view(3, 1), &[A, B])).unwrap();
    assert!(next.revision > row.revision);
}

#[test]
fn what_was_answered_to_an_earlier_attempt_does_not_count() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.ask_snapshot(Some(1), false);
    rig.run_if(20, |sent| sent.header.kind != Kind::Snapshot);
    let first: Vec<_> = rig
        .sent
        .iter()
        .filter(|sent| sent.header.kind == Kind::Snapshot)
        .cloned()
        .collect();
    assert_eq!(first.len(), 2);
    rig.ask_snapshot(Some(2), false);
    rig.run_if(300, |sent| sent.header.kind != Kind::Snapshot);
    assert_eq!(rig.waiting(Kind::Snapshot).len(), 4);
    rig.write(1, block(0));
    for sent in first {
        rig.answer(&sent);
    }
    assert_eq!(rig.proposed, []);
    rig.run(50);
    let ready =
        |change: &Change| matches!(change, Change::SnapshotReady { snapshot: of, .. } if *of == snapshot(2));
    assert!(
        matches!(&rig.proposed[..], [(_, change)] if ready(change)),
        "{:?}",
        rig.proposed
    );
}
