//= docs/replication.md#C3
//! What a scrub found is mended under a lock, from a member that has everything, durably, and looked at again.

use stor_replication::catalogue::Change;
use stor_replication::digest::Unit;
use stor_replication::wire::Kind;

use super::bench::{A, B, C, Rig, block, cache, row};

fn other() -> Unit {
    Unit::of(b"other")
}

/// An engine that has found a sector of A to differ, and told so.
fn found() -> Rig {
    let mut rig = Rig::serving(row(&[A, B, C], &[], 3));
    rig.units(A, 20, other());
    rig.ask_scrub(Some(1), 0);
    rig.run_if(100, |_| true);
    assert!(matches!(rig.proposed[..], [(_, Change::Scrubbed { .. })]));
    rig
}

#[test]
fn it_is_durable_when_it_is_answered() {
    let mut rig = found();
    rig.decide();
    rig.answer_if(|sent| sent.header.kind == Kind::Read);
    let [write] = &rig
        .sent
        .iter()
        .filter(|sent| sent.header.kind == Kind::Write)
        .collect::<Vec<_>>()[..]
    else {
        panic!("not one write");
    };
    assert_eq!(write.replica, A);
    assert_eq!((write.header.offset, write.header.length), (20 * 4096, 4096));
    assert!(write.header.fua());
}

#[test]
fn a_client_that_writes_there_waits_for_it_and_is_not_overwritten() {
    let mut rig = found();
    rig.decide();
    rig.answer_if(|sent| sent.header.kind == Kind::Read);
    assert_eq!(rig.waiting(Kind::Write), [A]);
    rig.write(1, block(20));
    assert_eq!(rig.waiting(Kind::Write), [A], "two writes to the same bytes");
    rig.run(100);
    assert!(rig.is_done(1));
}

#[test]
fn not_from_a_member_that_may_lack_what_was_acknowledged() {
    let mut rig = found();
    // The mend waits for a write that is on its way. Meanwhile the one it would be copied from loses what it had not
    // flushed, and may not go.
    let on_its_way = |sent: &super::bench::Sent| sent.header.kind == Kind::Write && sent.replica == A;
    rig.write(1, block(20));
    rig.answer_if(|sent| !on_its_way(sent));
    rig.decide();
    assert_eq!(rig.waiting(Kind::Read), []);
    rig.info.get_mut(&B).unwrap().cache = cache(2);
    rig.lose(B);
    rig.back(B);
    rig.run_if(500, |sent| sent.header.kind != Kind::Read && !on_its_way(sent));
    assert!(rig.engine.unequal_bytes() > 0);
    rig.run_if(50, |sent| sent.header.kind != Kind::Read);
    let asked = rig.waiting(Kind::Read);
    assert!(!asked.is_empty() && !asked.contains(&B), "{asked:?}");
}

#[test]
fn not_while_a_snapshot_is_made() {
    let mut rig = found();
    rig.ask_snapshot(Some(1), true);
    rig.run_if(20, |_| true);
    assert!(rig.waiting(Kind::Snapshot).is_empty());
    rig.decide();
    rig.run_if(1000, |_| true);
    assert_eq!(rig.copied_from, [], "mended while writes are held");
    rig.ask_snapshot(None, false);
    rig.run(100);
    assert_eq!(rig.copied_from, [B]);
}

#[test]
fn what_goes_on_to_differ_is_tried_three_times_and_told_as_left() {
    let mut rig = found();
    rig.stubborn = true;
    rig.scrub(3000);
    assert_eq!(rig.copied_to, [A, A, A]);
    assert_eq!(rig.outcome, (0, 1));
    let mut rig = found();
    rig.scrub(3000);
    assert_eq!((rig.copied_to.clone(), rig.outcome), (vec![A], (1, 0)));
}
