//= docs/replication.md#G2
//! A replica that is to go is removed by its engine, when all is equal and those that stay are there; then it is
//! no replica any more.

use stor_replication::catalogue::{Change, EjectReason, Refusal, VolumeRow, decide};
use stor_replication::engine;
use stor_replication::ids::{ConfigSeq, ReplicaId};
use stor_replication::wire::Kind;

use super::bench::{A, B, C, Rig, block, row};

fn leave(row: &VolumeRow, replica: ReplicaId) -> Result<VolumeRow, Refusal> {
    decide(row, &Change::Leave { replica })
}

fn told(rig: &mut Rig, replica: ReplicaId) {
    rig.row = leave(&rig.row, replica).unwrap();
    let row = rig.row.clone();
    rig.step(engine::Event::Row(row));
}

fn removal(rig: &Rig) -> Option<Vec<(ReplicaId, EjectReason)>> {
    match rig.proposed.first() {
        Some((_, Change::Remove { members, .. })) => Some(members.clone()),
        _ => None,
    }
}

#[test]
fn it_goes_when_the_catalogue_has_removed_it() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    told(&mut rig, B);
    rig.run(200);
    assert_eq!(removal(&rig), Some(vec![(B, EjectReason::Operator)]));
    rig.write(1, block(0));
    rig.answer_if(|sent| sent.replica == A);
    assert!(!rig.is_done(1), "until then it is a member");
    rig.decide();
    assert!(!rig.row.replicas.contains_key(&B));
    assert!(rig.closed.contains(&B), "its connection stays open");
    rig.run(100);
    assert!(rig.is_done(1));
    rig.write(2, block(0));
    assert_eq!(rig.waiting(Kind::Write), [A]);
}

#[test]
fn not_while_members_may_differ() {
    let mut rig = Rig::new(row(&[A, B], &[], 1), true, None);
    rig.dirty.insert(A, 1);
    rig.run_if(200, |sent| sent.header.kind != Kind::Read);
    told(&mut rig, B);
    rig.run_if(500, |sent| sent.header.kind != Kind::Read);
    assert_eq!(removal(&rig), None, "what only it has would go with it");
    rig.run(1000);
    assert!(removal(&rig).is_some());
}

#[test]
fn not_before_one_that_stays_has_answered() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.now = rig.now + std::time::Duration::from_millis(800);
    told(&mut rig, B);
    assert_eq!(removal(&rig), None, "A may have rebooted unnoticed");
    rig.run(1200);
    assert!(removal(&rig).is_some());
}

#[test]
fn one_that_stays_is_away_and_it_stays_as_well() {
    let mut rig = Rig::serving(row(&[A, B, C], &[], 1));
    rig.lose(C);
    told(&mut rig, B);
    rig.run(200);
    assert_eq!(removal(&rig), None);
    rig.run(600);
    assert_eq!(
        removal(&rig),
        Some(vec![(C, EjectReason::Unreachable)]),
        "first who is away"
    );
    rig.decide();
    rig.run(200);
    assert_eq!(removal(&rig), Some(vec![(B, EjectReason::Operator)]));
}

#[test]
fn one_that_is_to_go_and_is_away_does_not_come_back() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.lose(B);
    told(&mut rig, B);
    rig.run(700);
    rig.decide();
    assert!(!rig.row.replicas.contains_key(&B));
    rig.run(100);
    assert_eq!(rig.engine.row().in_sync().collect::<Vec<_>>(), [A]);
}

#[test]
fn the_catalogue_lets_go_at_once_of_what_nobody_needs() {
    let stale = leave(&row(&[A], &[B], 1), B).unwrap();
    assert!(!stale.replicas.contains_key(&B));
    let mut detached = row(&[A, B], &[], 1);
    detached.owner = None;
    let marked = leave(&detached, B).unwrap();
    assert!(
        marked.replicas[&B].leaving,
        "it did not end in order: its engine has to look"
    );
    assert_eq!(marked.view, detached.view);
    detached.clean = true;
    let gone = leave(&detached, B).unwrap();
    assert!(!gone.replicas.contains_key(&B));
    assert_eq!(gone.view.config, ConfigSeq(detached.view.config.0 + 1));
}

#[test]
fn the_minimum_stays() {
    assert_eq!(
        leave(&row(&[A], &[B], 1), A),
        Err(Refusal::TooFewInSync { left: 0, min: 1 })
    );
    assert_eq!(
        leave(&row(&[A, B], &[], 2), A),
        Err(Refusal::TooFewInSync { left: 1, min: 2 })
    );
    let one = leave(&row(&[A, B, C], &[], 2), A).unwrap();
    assert_eq!(leave(&one, A), Err(Refusal::NothingToDo { replica: A }));
    assert_eq!(leave(&one, B), Err(Refusal::TooFewInSync { left: 1, min: 2 }));
}

#[test]
fn a_new_one_is_empty_and_gets_everything() {
    let place = |row: &VolumeRow, replica| {
        let node = String::from("n9");
        decide(row, &Change::Place { replica, node })
    };
    let mut rig = Rig::serving(row(&[A], &[], 1));
    assert_eq!(place(&rig.row, A), Err(Refusal::NothingToDo { replica: A }));
    let full = (1..=8).map(ReplicaId).collect::<Vec<_>>();
    assert_eq!(
        place(&row(&full, &[], 1), ReplicaId(9)),
        Err(Refusal::TooManyReplicas { count: 8 })
    );
    let mut info = rig.info[&A].clone();
    info.in_sync = false;
    rig.info.insert(B, info);
    rig.row = place(&rig.row, B).unwrap();
    let row = rig.row.clone();
    rig.step(engine::Event::Row(row));
    rig.run(3000);
    let (_, change) = rig.proposed.first().expect("not brought up to date");
    assert!(matches!(change, Change::Add { member: B, .. }));
    assert_eq!(rig.engine.counters().resynced_bytes, super::bench::SIZE);
}
