//= docs/replication.md#R3
//! From the proposal of an addition until its outcome is known, the new one's answer is needed too.

use stor_replication::catalogue::Change;
use stor_replication::engine::{Event, Request};
use stor_replication::wire::Kind;

use super::bench::{A, B, Rig, Sent, block, row, view};

fn proposed() -> Rig {
    let mut rig = Rig::serving(row(&[A], &[B], 1));
    rig.run(3000);
    let add = Change::Add {
        expect: view(3, 1),
        member: B,
    };
    assert_eq!(
        rig.proposed
            .iter()
            .map(|(_, change)| change.clone())
            .collect::<Vec<_>>(),
        [add]
    );
    rig
}

#[test]
fn a_write_needs_the_new_one_while_the_outcome_is_unknown() {
    let mut rig = proposed();
    rig.write(1, block(0));
    assert_eq!(rig.waiting(Kind::Write), [A, B]);
    rig.answer_if(|sent| sent.replica == A);
    assert!(
        !rig.is_done(1),
        "answered without the one that may be a member by now"
    );
    rig.answer_if(|sent| sent.header.kind == Kind::Write);
    assert_eq!(rig.done[&1], Ok(None));
}

#[test]
fn a_read_needs_its_lease() {
    let mut rig = proposed();
    rig.run_if(2000, |sent| sent.replica == A);
    rig.submit(1, Request::Read(block(0)));
    rig.run_if(100, |sent| sent.replica == A);
    assert!(
        !rig.is_done(1),
        "read without the lease of one that may be a member by now"
    );
    rig.answer_if(|_| true);
    assert!(rig.is_done(1));
}

#[test]
fn a_refusal_ends_the_attempt_and_the_wait() {
    let mut rig = proposed();
    rig.write(1, block(0));
    rig.answer_if(|sent| sent.replica == A);
    // Somebody else changed the row: the addition is refused.
    rig.row.revision += 1;
    let refusal = Some(stor_replication::catalogue::Refusal::NoSuchReplica { replica: B });
    let (proposal, _) = rig.proposed.remove(0);
    let row = rig.row.clone();
    rig.step(Event::Outcome {
        proposal,
        row,
        refusal,
    });
    assert_eq!(rig.done[&1], Ok(None));
    assert!(
        rig.closed.contains(&B),
        "what it was sent must not reach its disk later"
    );
}

#[test]
fn it_is_proposed_only_when_it_has_and_has_flushed_what_was_sent_to_it() {
    let far = block(3 * 256);
    for held in [Kind::Write, Kind::Flush] {
        let mut rig = Rig::new(row(&[A], &[B], 1), true, None);
        // Some of what it missed is still to be copied when a client writes.
        rig.dirty.insert(B, u64::from(held == Kind::Write));
        rig.run_if(300, |sent| {
            sent.replica != B || ![Kind::Write, Kind::Flush].contains(&sent.header.kind)
        });
        rig.write(1, far);
        let copy = |sent: &Sent| held == Kind::Write && sent.header.offset != far.offset;
        rig.run_if(5000, |sent| {
            sent.replica != B || sent.header.kind != held || copy(sent)
        });
        assert!(rig.waiting(held).contains(&B), "it was sent no {held:?}");
        assert_eq!(rig.proposed, [], "proposed before it answered a {held:?}");
        rig.run(2000);
        assert_eq!(rig.proposed.len(), 1);
    }
}

#[test]
fn no_flush_from_before_it_joined_covers_it() {
    let mut rig = Rig::new(row(&[A], &[B], 1), true, None);
    rig.away.push(B);
    rig.run(200);
    rig.write(1, block(0));
    rig.run(20);
    rig.submit(2, Request::Flush);
    rig.run(20);
    assert_eq!(rig.done[&2], Ok(None));
    rig.back(B);
    rig.run(3000);
    rig.decide();
    let kept = |sent: &Sent| [Kind::Flush, Kind::Clean].contains(&sent.header.kind);
    rig.run_if(7000, |sent| !kept(sent));
    assert_eq!(
        rig.waiting(Kind::Clean),
        [],
        "declared clean without a flush of the new one"
    );
    assert_eq!(rig.waiting(Kind::Flush), [A, B]);
}
