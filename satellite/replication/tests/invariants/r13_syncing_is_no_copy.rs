//= docs/replication.md#R13
//! A replica that catches up is not read and knows itself not to be a copy.

use stor_replication::body::Body;
use stor_replication::engine::Request;
use stor_replication::wire::{Kind, flags};

use super::bench::{A, B, Bench, Rig, block, row, view};

#[test]
fn it_is_not_read_even_if_it_is_the_nearest() {
    let mut rig = Rig::new(row(&[A], &[B], 1), true, Some(B));
    rig.run(3000);
    assert_eq!(rig.proposed.len(), 1, "it has caught up");
    rig.submit(1, Request::Read(block(0)));
    assert_eq!(rig.waiting(Kind::Read), [A]);
    rig.run(10);
    rig.decide();
    rig.run(10);
    rig.submit(2, Request::Read(block(0)));
    assert_eq!(rig.waiting(Kind::Read), [B], "it is a member now");
}

#[test]
fn opened_as_no_member_it_forgets_that_it_was_one() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    assert!(bench.replica.superblock().in_sync.contains(&A));
    let header = bench.header(Kind::Open, view(2, 1));
    assert_eq!(header.flags & flags::MEMBER, 0);
    bench.ask(2, header, Body::None);
    bench.stored();
    assert_eq!(bench.replica.superblock().in_sync, []);
}
