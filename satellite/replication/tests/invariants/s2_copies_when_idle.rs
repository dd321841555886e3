//= docs/replication.md#S2
//! A replica makes its copy when no write is under way in its disk, and answers when it is there.

use stor_replication::body::Body;
use stor_replication::replica::{DiskAction, Event, SnapshotError};
use stor_replication::wire::{Kind, Status};

use super::bench::{Bench, block, disk, snapshot, status, view};

#[test]
fn it_waits_for_writes_in_the_disk_and_for_those_that_wait_for_their_dirty_bits() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let (_, out) = bench.write(1, view(1, 0), block(0), 7);
    assert_eq!(disk(&out), [], "its dirty bit comes first");
    let header = bench.header(Kind::Snapshot, view(1, 0));
    let body = || Body::Bytes(snapshot(1).0.as_bytes().to_vec());
    assert_eq!(disk(&bench.ask(1, header, body())), []);
    let out = bench.stored();
    let [(write, DiskAction::Write { .. })] = disk(&out)[..] else {
        panic!("the write, and nothing else: {out:?}");
    };
    let out = bench.disk_done(write, Ok(None));
    let [(copy, DiskAction::Snapshot(of))] = disk(&out)[..] else {
        panic!("not begun: {out:?}");
    };
    assert_eq!(of, snapshot(1));
    assert_eq!(status(&out, header.op), None, "answered before it is there");
    let out = bench.step(Event::SnapshotDone {
        op: copy,
        result: Ok(()),
    });
    assert_eq!(status(&out, header.op), Some(Status::Ok));
}

#[test]
fn that_it_could_not_be_made_is_no_failure_of_the_disk() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    for (kind, error, told) in [
        (Kind::MaySnapshot, SnapshotError::Unknown, Status::SnapshotUnknown),
        (
            Kind::MaySnapshot,
            SnapshotError::Unsupported,
            Status::SnapshotUnsupported,
        ),
        (Kind::Snapshot, SnapshotError::NoSpace, Status::NoSpace),
        (Kind::Snapshot, SnapshotError::Failed, Status::SnapshotFailed),
    ] {
        let header = bench.header(kind, view(1, 0));
        let out = bench.ask(1, header, Body::Bytes(snapshot(1).0.as_bytes().to_vec()));
        let [(op, _)] = disk(&out)[..] else {
            panic!("{kind:?} not begun: {out:?}");
        };
        let out = bench.step(Event::SnapshotDone {
            op,
            result: Err(error),
        });
        assert_eq!(status(&out, header.op), Some(told));
        assert!(!bench.replica.superblock().failed);
    }
}

#[test]
fn a_copy_under_way_is_waited_for_by_the_next_promise() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let header = bench.header(Kind::Snapshot, view(1, 0));
    let out = bench.ask(1, header, Body::Bytes(snapshot(1).0.as_bytes().to_vec()));
    let [(copy, _)] = disk(&out)[..] else {
        panic!("not begun: {out:?}");
    };
    let open = bench.header(Kind::Open, view(2, 0));
    let mut out = bench.ask(2, open, Body::None);
    out.extend(bench.stored());
    out.extend(bench.tick(5000));
    assert_eq!(
        status(&out, open.op),
        None,
        "promised while an older engine's copy is made"
    );
    let out = bench.step(Event::SnapshotDone {
        op: copy,
        result: Ok(()),
    });
    assert_eq!(status(&out, open.op), Some(Status::Ok));
    assert_eq!(status(&out, header.op), None, "its engine is not the present one");
}
