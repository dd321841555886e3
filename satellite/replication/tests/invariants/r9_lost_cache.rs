//= docs/replication.md#R9
//! A member that comes back with another cache identity has lost what it had not flushed.

use stor_replication::catalogue::{Change, EjectReason};
use stor_replication::engine::Request;
use stor_replication::wire::Kind;

use super::bench::{A, B, C, Rig, Sent, block, cache, lost, row, view};

fn rebooted(rig: &mut Rig, replica: stor_replication::ids::ReplicaId) {
    rebooted_if(rig, replica, |_| true);
}

fn rebooted_if(rig: &mut Rig, replica: stor_replication::ids::ReplicaId, which: impl Fn(&Sent) -> bool) {
    rig.lose(replica);
    let info = rig.info.get_mut(&replica).unwrap();
    info.cache = cache(9);
    info.loss = lost(3);
    rig.back(replica);
    rig.run_if(200, which);
}

#[test]
fn it_is_removed_when_it_had_unflushed_writes() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(0));
    rig.run(20);
    assert!(rig.is_done(1));
    rebooted(&mut rig, B);
    let remove = Change::Remove {
        expect: view(3, 1),
        members: vec![(B, EjectReason::CacheLost)],
    };
    assert_eq!(
        rig.proposed
            .iter()
            .map(|(_, change)| change.clone())
            .collect::<Vec<_>>(),
        [remove]
    );
}

#[test]
fn it_stays_when_all_was_flushed() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(0));
    rig.run(20);
    rig.submit(2, Request::Flush);
    rig.run(20);
    rebooted(&mut rig, B);
    assert_eq!(rig.proposed, []);
}

#[test]
fn with_the_same_cache_it_gets_what_it_has_not_answered() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(0));
    rig.answer_if(|sent| sent.replica == A);
    rig.lose(B);
    rig.back(B);
    rig.run(200);
    assert_eq!(rig.done[&1], Ok(None));
}

#[test]
fn when_the_set_may_not_shrink_it_is_made_good_from_another() {
    let mut rig = Rig::serving(row(&[A, B], &[], 2));
    rig.write(1, block(0));
    rig.run(20);
    rebooted(&mut rig, B);
    assert_eq!(rig.proposed, []);
    rig.submit(2, Request::Read(block(0)));
    rig.run_if(50, |sent| sent.header.kind != Kind::Write);
    assert!(!rig.is_done(2) || rig.engine.unequal_bytes() == 0);
    rig.run(1000);
    assert!(rig.is_done(2));
    assert!(
        rig.engine.counters().repaired_bytes >= 1 << 20,
        "the region was not copied to it"
    );
    assert_eq!(rig.engine.unequal_bytes(), 0);
}

#[test]
fn a_copy_under_way_does_not_vouch_for_what_the_member_lost_of_it() {
    let mut rig = Rig::new(row(&[A, B, C], &[], 3), true, None);
    rig.dirty.insert(A, 1);
    rig.run_if(200, |sent| sent.header.kind != Kind::Write);
    // Two members are being written to: one has it all, and loses it before the other has.
    let victim = rig.waiting(Kind::Write)[0];
    let of_victim = |sent: &Sent| sent.replica == victim;
    rig.answer_if(of_victim);
    rig.lose(victim);
    let info = rig.info.get_mut(&victim).unwrap();
    info.cache = cache(9);
    info.loss = lost(3);
    rig.back(victim);
    rig.run_if(200, |sent| sent.header.kind != Kind::Write);
    let mut again = std::collections::BTreeSet::new();
    for _ in 0..100 {
        rig.run_if(10, |sent| !(of_victim(sent) && sent.header.kind == Kind::Write));
        again.extend(
            rig.sent
                .iter()
                .filter(|sent| of_victim(sent))
                .map(|sent| sent.header.offset),
        );
        rig.answer_if(of_victim);
    }
    assert_eq!(rig.engine.unequal_bytes(), 0);
    let all = [0, 256 << 10, 512 << 10, 768 << 10];
    assert!(all.iter().all(|at| again.contains(at)), "copied again: {again:?}");
}

#[test]
fn a_flush_under_way_begins_again() {
    let mut rig = Rig::serving(row(&[A, B], &[], 2));
    rig.write(1, block(0));
    rig.run(20);
    rig.submit(2, Request::Flush);
    rig.answer_if(|sent| sent.replica == A);
    // B has it again and says yes, but not to what it lost. The repair's reads are held.
    rebooted_if(&mut rig, B, |sent| sent.header.kind != Kind::Read);
    assert!(!rig.is_done(2), "the flush vouches for a write that B has lost");
    rig.run(1000);
    assert_eq!(rig.done[&2], Ok(None));
}

#[test]
fn a_write_it_had_is_sent_to_it_again_before_it_is_answered() {
    let mut rig = Rig::serving(row(&[A, B], &[], 2));
    rig.write(1, block(0));
    let of_b = |sent: &Sent| sent.replica == B;
    rig.run_if(20, |sent| of_b(sent) && sent.header.kind == Kind::Write);
    assert!(!rig.is_done(1), "A has not answered");
    rebooted_if(&mut rig, B, |sent| sent.header.kind != Kind::Write);
    rig.answer_if(|sent| sent.replica == A && sent.header.kind == Kind::Write);
    assert!(!rig.is_done(1), "B lost it, nobody but A has it");
    assert!(rig.waiting(Kind::Write).contains(&B));
    rig.run(100);
    assert!(rig.is_done(1));
}

#[test]
fn an_answer_counts_while_its_connection_stands() {
    for same in [true, false] {
        let mut rig = Rig::serving(row(&[A, B], &[], 2));
        rig.write(1, block(0));
        let of = |replica, kind| move |sent: &Sent| sent.replica == replica && sent.header.kind == kind;
        rig.answer_if(of(A, Kind::Write));
        rig.lose(A);
        rig.answer_if(of(B, Kind::Write));
        assert!(!rig.is_done(1), "A may have lost it by now");
        if !same {
            let info = rig.info.get_mut(&A).unwrap();
            (info.cache, info.loss) = (cache(9), lost(3));
        }
        rig.back(A);
        rig.run_if(200, |sent| sent.header.kind != Kind::Write);
        assert_eq!(rig.is_done(1), same);
        assert_eq!(rig.waiting(Kind::Write).contains(&A), !same);
        rig.run(100);
        assert!(rig.is_done(1));
    }
}
