//= docs/replication.md#R12
//! Overlapping writes are never in flight together, a read waits for one, a copy excludes both.

use stor_replication::engine::Request;
use stor_replication::wire::Kind;

use super::bench::{A, B, Rig, Sent, block, row};

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
