//! Who is away and who is only slow (case 19): a replica that shows no life is let go soon, one that lives and
//! has a slow disk or considers its promise gets its ten seconds.

use stor_replication::body::Body;
use stor_replication::catalogue::{Change, EjectReason};
use stor_replication::engine::{REQUEST_DEADLINE, Request, SILENCE, UNREACHABLE_AFTER};
use stor_replication::wire::{Kind, Status};

use super::bench::{A, B, Rig, block, row};

fn removed(rig: &Rig) -> Option<EjectReason> {
    rig.proposed.iter().find_map(|(_, change)| match change {
        Change::Remove { members, .. } => Some(members[0].1),
        _ => None,
    })
}

/// Milliseconds until a removal is proposed.
fn time_to_removal(rig: &mut Rig, limit: u64, which: impl Fn(&super::bench::Sent) -> bool) -> Option<u128> {
    let begin = rig.now;
    for _ in 0..limit / 10 {
        if removed(rig).is_some() {
            return Some(rig.now.since(begin).as_millis());
        }
        rig.run_if(10, &which);
    }
    None
}

#[test]
fn a_stopped_member_is_let_go_after_the_silence_though_writes_are_under_way() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.run(1000);
    rig.write(1, block(0));
    // Connections to it are made, as the kernel does; nothing is ever answered.
    let waited = time_to_removal(&mut rig, 20_000, |sent| sent.replica != B).expect("removed");
    assert_eq!(removed(&rig), Some(EjectReason::Unreachable));
    assert!(
        waited >= SILENCE.as_millis(),
        "let go after {waited} ms: no time to show life"
    );
    let soon = (SILENCE + UNREACHABLE_AFTER).as_millis() + 300;
    assert!(waited <= soon, "let go after {waited} ms");
    rig.decide();
    rig.run_if(100, |sent| sent.replica != B);
    assert!(rig.is_done(1));
}

#[test]
fn a_member_that_lives_and_has_a_slow_disk_gets_its_time() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.run(1000);
    rig.write(1, block(0));
    let waited = time_to_removal(&mut rig, 20_000, |sent| {
        sent.replica != B || sent.header.kind != Kind::Write
    });
    let waited = waited.expect("removed");
    assert_eq!(removed(&rig), Some(EjectReason::TimedOut));
    assert!(
        waited >= REQUEST_DEADLINE.as_millis(),
        "let go after {waited} ms: it showed life"
    );
}

/// B has to promise anew. Answers everything but B's promise, and B's pings as a replica does that has not
/// promised.
fn considers(rig: &mut Rig, millis: u64) {
    for _ in 0..millis / 10 {
        rig.run_if(10, |sent| sent.replica != B);
        let pings: Vec<_> = rig
            .sent
            .iter()
            .filter(|sent| sent.replica == B && sent.header.kind == Kind::Ping)
            .cloned()
            .collect();
        rig.sent
            .retain(|sent| sent.replica != B || sent.header.kind != Kind::Ping);
        for ping in pings {
            rig.answer_with(&ping, Status::NotOpen, Body::None);
        }
    }
}

#[test]
fn a_member_that_considers_its_promise_is_not_away() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.lose(B);
    rig.back(B);
    rig.write(1, block(0));
    considers(&mut rig, 8000);
    assert_eq!(removed(&rig), None, "it had shown life");
    rig.run(100);
    assert!(rig.is_done(1), "it promised and has the write");
    assert!(rig.proposed.is_empty());
}

#[test]
fn a_sign_of_life_before_the_promise_is_no_lease() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.run(1000);
    rig.lose(B);
    rig.back(B);
    // B's lease runs out; its promise does not come, but answers that look like those to a lease's renewal.
    rig.run_if(3000, |sent| sent.header.kind != Kind::Open);
    rig.submit(1, Request::Read(block(0)));
    rig.run_if(100, |sent| sent.header.kind != Kind::Open);
    assert!(!rig.is_done(1), "released without the lease of B");
    rig.run(100);
    assert!(rig.is_done(1), "B has promised");
}
