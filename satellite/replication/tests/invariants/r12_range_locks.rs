//= docs/replication.md#R12
//! Overlapping writes are never in flight together, a read waits for one, a copy excludes both.

use stor_replication::catalogue::Change;
use stor_replication::engine::Request;
use stor_replication::ids::ReplicaId;
use stor_replication::wire::{Kind, Status};

use super::bench::{A, B, C, Rig, Sent, block, row};

#[test]
fn an_overlapping_write_waits_for_the_first() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(0));
    rig.write(2, block(0));
    rig.write(3, block(1));
    let sent: Vec<_> = rig.sent.iter().map(|sent| sent.header.offset).collect();
    assert_eq!(sent, [0, 0, 4096, 4096], "two overlapping writes under way");
    rig.answer_if(|sent| sent.replica == A);
    assert_eq!(rig.waiting(Kind::Write), [B, B]);
    rig.run(20);
    assert!(rig.is_done(1) && rig.is_done(2) && rig.is_done(3));
}

#[test]
fn a_read_waits_for_an_overlapping_write() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(0));
    rig.submit(2, Request::Read(block(0)));
    assert_eq!(rig.waiting(Kind::Read), []);
    rig.answer_if(|sent| sent.replica == A);
    assert_eq!(rig.waiting(Kind::Read), []);
    rig.run(20);
    assert!(rig.is_done(2));
}

#[test]
fn the_order_holds_at_a_replica_that_catches_up() {
    let mut rig = Rig::new(row(&[A], &[B], 1), true, None);
    rig.dirty.insert(B, 1);
    let copy = |sent: &Sent| sent.header.kind.is_read() && sent.header.length > 4096;
    rig.run_if(1500, |sent| !copy(sent));
    assert!(rig.sent.iter().any(copy), "no resync runs");
    rig.write(1, block(1000));
    assert_eq!(rig.waiting(Kind::Write), [A, B]);
    rig.answer_if(|sent| sent.header.kind == Kind::Write && sent.replica == A);
    assert!(
        rig.is_done(1),
        "a replica that catches up must not hold a client up"
    );
    rig.write(2, block(1000));
    assert_eq!(
        rig.waiting(Kind::Write),
        [B],
        "the second write could overtake the first there"
    );
    rig.answer_if(|sent| sent.header.kind == Kind::Write);
    assert!(rig.is_done(2));
}

#[test]
fn one_that_is_lost_while_it_joins_gives_its_bytes_back() {
    let mut rig = Rig::new(row(&[A], &[B], 1), true, None);
    // All is copied; its flush, before the addition is proposed, is not answered.
    rig.run_if(3000, |sent| sent.replica == A || sent.header.kind != Kind::Flush);
    assert_eq!(rig.waiting(Kind::Flush), [B], "it is not about to join");
    rig.write(1, block(0));
    rig.answer_if(|sent| sent.replica == A);
    assert!(!rig.is_done(1), "answered without one that is about to join");
    rig.lose(B);
    assert!(rig.is_done(1));
    rig.write(2, block(0));
    rig.answer_if(|sent| sent.replica == A);
    assert!(rig.is_done(2), "waits for a replica that is gone");
}

#[test]
fn a_write_waits_for_a_copy_of_its_bytes() {
    let mut rig = Rig::new(row(&[A, B], &[], 1), true, None);
    rig.dirty.insert(A, 1);
    rig.run_if(100, |sent| sent.header.kind != Kind::Read);
    rig.write(1, block(0));
    assert_eq!(rig.waiting(Kind::Write), []);
    rig.run(100);
    assert!(rig.is_done(1));
}

const D: ReplicaId = ReplicaId(4);

/// Two of three must be in sync, one is away and the other has a write; a third comes back.
fn stalled() -> Rig {
    let mut rig = Rig::serving(row(&[A, B], &[], 2));
    rig.lose(B);
    rig.write(1, block(0));
    rig.run(2000);
    // Held for the lease of the one that is away, with its lock.
    rig.submit(2, Request::Read(block(40)));
    rig.run(100);
    assert!(!rig.is_done(1) && !rig.is_done(2), "answered by one of two");
    let mut row = row(&[A, B], &[C], 2);
    row.revision = rig.row.revision + 1;
    rig.row = row.clone();
    rig.add(C, row);
    rig
}

#[test]
fn a_copy_passes_a_write_that_waits_for_a_member_that_is_away() {
    let mut rig = stalled();
    rig.run(3000);
    assert!(
        matches!(rig.proposed.as_slice(), [(_, Change::Add { member: C, .. })]),
        "who is there is not brought up to date: {:?}",
        rig.proposed
    );
    rig.decide();
    rig.run(4000);
    assert!(
        matches!(rig.proposed.as_slice(), [(_, Change::Remove { .. })]),
        "{:?}",
        rig.proposed
    );
    rig.decide();
    rig.run(100);
    assert!(rig.is_done(1) && rig.is_done(2), "waits though two are in sync");
}

#[test]
fn who_takes_the_place_of_a_member_has_what_that_one_lacks() {
    let mut rig = stalled();
    let write =
        |sent: &Sent| sent.replica == C && sent.header.kind == Kind::Write && sent.header.length == 4096;
    rig.run_if(3000, |sent| !write(sent));
    assert!(
        rig.sent.iter().any(write),
        "the write that waits is not sent to it"
    );
    assert!(rig.proposed.is_empty(), "added without it");
}

#[test]
fn a_region_with_such_a_write_stays_dirty() {
    let mut rig = stalled();
    rig.run_if(3000, |sent| sent.header.kind != Kind::Clean);
    let told = rig
        .sent
        .iter()
        .filter(|sent| sent.header.kind == Kind::Clean && sent.replica == C);
    let regions: Vec<u32> = told
        .flat_map(|sent| sent.body.bytes().chunks(4))
        .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
        .collect();
    assert!(regions.contains(&1) && !regions.contains(&0), "{regions:?}");
}

#[test]
fn a_copy_that_passes_a_write_comes_from_a_member_that_has_it() {
    let mut rig = Rig::serving(row(&[A, B, C], &[], 3));
    rig.lose(B);
    rig.lose(C);
    rig.write(1, block(0));
    rig.answer_if(|sent| sent.header.kind == Kind::Write);
    let mut row = row(&[A, B, C], &[D], 3);
    row.revision = rig.row.revision + 1;
    rig.row = row.clone();
    rig.add(D, row);
    let asked = |sent: &Sent| sent.header.kind == Kind::Extents;
    rig.run_if(3000, |sent| !asked(sent));
    let from = |rig: &Rig| {
        rig.sent
            .iter()
            .filter(|sent| asked(sent))
            .map(|sent| sent.replica)
            .collect::<Vec<_>>()
    };
    assert_eq!(from(&rig), [A]);
    // That one goes, another comes back and has not written it yet.
    let waits = |sent: &Sent| asked(sent) || (sent.replica == C && sent.header.kind == Kind::Write);
    rig.lose(A);
    rig.back(C);
    rig.run_if(1000, |sent| !waits(sent));
    assert_eq!(rig.waiting(Kind::Write), [C], "it is not sent again");
    assert_eq!(from(&rig), [], "copied from a member that lacks the write");
    rig.answer_if(|sent| sent.header.kind == Kind::Write);
    rig.run_if(1000, |sent| !asked(sent));
    assert_eq!(from(&rig), [C]);
}

#[test]
fn it_passes_one_that_all_have_done_and_one_of_them_is_not_heard() {
    let mut rig = Rig::serving(row(&[A, B], &[], 2));
    rig.write(1, block(0));
    rig.answer_if(|sent| sent.replica == B);
    rig.lose(B);
    rig.answer_if(|sent| sent.replica == A);
    assert!(!rig.is_done(1), "what B did it may have lost since");
    let mut row = row(&[A, B], &[C], 2);
    row.revision = rig.row.revision + 1;
    rig.row = row.clone();
    rig.add(C, row);
    rig.run(3000);
    assert!(
        matches!(rig.proposed.as_slice(), [(_, Change::Add { member: C, .. })]),
        "{:?}",
        rig.proposed
    );
}

#[test]
fn what_is_mended_on_a_member_that_goes_holds_nobody_up() {
    let mut rig = Rig::serving(row(&[A, B], &[], 2));
    rig.submit(1, Request::Read(block(0)));
    let read = rig
        .sent
        .iter()
        .find(|sent| sent.header.kind == Kind::Read)
        .unwrap()
        .clone();
    rig.refuse(&read, Status::MediaError);
    rig.run_if(100, |sent| sent.header.kind != Kind::Write);
    assert!(rig.is_done(1));
    assert_eq!(
        rig.waiting(Kind::Write),
        [read.replica],
        "it is not written again"
    );
    let other = if read.replica == A { B } else { A };
    rig.lose(read.replica);
    rig.write(2, block(0));
    assert_eq!(
        rig.waiting(Kind::Write).first(),
        Some(&other),
        "waits for the mend"
    );
}
