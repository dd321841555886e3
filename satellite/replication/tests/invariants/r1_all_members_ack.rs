//= docs/replication.md#R1
//! A write or flush is answered only when every member has answered it.

use stor_replication::engine::Request;
use stor_replication::wire::Kind;

use super::bench::{A, B, C, Rig, block, row};

#[test]
fn a_write_waits_for_the_last_member() {
    let mut rig = Rig::serving(row(&[A, B, C], &[], 1));
    rig.write(1, block(0));
    assert_eq!(rig.waiting(Kind::Write), [A, B, C]);
    rig.answer_if(|sent| sent.header.kind == Kind::Write && sent.replica != C);
    assert!(!rig.is_done(1), "answered though a member has not");
    rig.answer_if(|sent| sent.header.kind == Kind::Write);
    assert_eq!(rig.done[&1], Ok(None));
}

#[test]
fn a_flush_waits_for_the_last_member() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.submit(1, Request::Flush);
    rig.answer_if(|sent| sent.header.kind == Kind::Flush && sent.replica == B);
    assert!(!rig.is_done(1));
    rig.answer_if(|sent| sent.header.kind == Kind::Flush);
    assert_eq!(rig.done[&1], Ok(None));
}
