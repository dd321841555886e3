//= docs/replication.md#R6
//! A read is released only under leases of all members, as they stand when it completes.

use std::time::Duration;

use stor_replication::engine::Request;
use stor_replication::wire::Kind;

use super::bench::{A, B, Rig, block, row};

#[test]
fn a_read_waits_for_the_lease_of_every_member() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.run(1000);
    rig.submit(1, Request::Read(block(0)));
    let read = rig
        .sent
        .iter()
        .find(|sent| sent.header.kind == Kind::Read)
        .unwrap()
        .clone();
    // The holder sleeps; both leases run out. One member answers.
    rig.now = rig.now + Duration::from_secs(5);
    rig.sent.retain(|sent| sent.header.kind != Kind::Read);
    rig.answer(&read);
    assert!(!rig.is_done(1), "released without any lease");
    rig.answer_if(|sent| sent.replica == A);
    rig.run_if(50, |sent| sent.replica == A);
    assert!(!rig.is_done(1), "released without the lease of the other member");
    rig.run(50);
    assert!(rig.is_done(1), "leases are there again");
}

#[test]
fn a_lease_counts_from_the_question_not_from_the_answer() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.run(1000);
    rig.submit(1, Request::Read(block(0)));
    // All answers arrive five seconds later.
    let old: Vec<_> = rig.sent.drain(..).collect();
    rig.now = rig.now + Duration::from_secs(5);
    for sent in old {
        rig.answer(&sent);
    }
    assert!(!rig.is_done(1), "an old question gave a new lease");
    rig.run(50);
    assert!(rig.is_done(1));
}

#[test]
fn a_lease_is_a_tenth_shorter_than_its_second() {
    for (millis, holds) in [(890, true), (950, false)] {
        let mut rig = Rig::serving(row(&[A, B], &[], 1));
        // No lease is left; both are asked for at the same moment.
        rig.now = rig.now + Duration::from_secs(2);
        rig.sent.clear();
        rig.submit(1, Request::Read(block(0)));
        assert_eq!(rig.waiting(Kind::Ping), [A, B]);
        let asked: Vec<_> = rig.sent.drain(..).collect();
        rig.now = rig.now + Duration::from_millis(millis);
        for sent in asked {
            rig.answer(&sent);
        }
        assert_eq!(rig.is_done(1), holds, "{millis} ms after the question");
    }
}
