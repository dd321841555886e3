//= docs/replication.md#R14
//! A request for another volume, replica, epoch, config or from a stranger does nothing.

use stor_replication::body::Body;
use stor_replication::ids::{ReplicaId, VolumeId};
use stor_replication::wire::{Framed, Header, Kind, Status, WireError};

use crate::bench::{A, B, Bench, Rig, block, disk, row, status, view};

type Change = fn(&mut Header);

#[test]
fn a_replica_serves_only_what_is_meant_for_it() {
    let wrong: [(Change, u64, Status); 5] = [
        (
            |header| header.volume = VolumeId(uuid::Uuid::from_u128(99)),
            1,
            Status::WrongReplica,
        ),
        (|header| header.replica = ReplicaId(9), 1, Status::WrongReplica),
        (|header| header.view = view(1, 9), 1, Status::WrongView),
        (|header| header.view = view(9, 0), 1, Status::WrongView),
        (|_| {}, 2, Status::NotOpen),
    ];
    for (index, (change, conn, expected)) in wrong.into_iter().enumerate() {
        let mut bench = Bench::new();
        bench.open(1, view(1, 0), &[]);
        let mut header = bench.header(Kind::Write, view(1, 0));
        header.length = 4096;
        change(&mut header);
        let mut out = bench.ask(conn, header, Body::Data(7));
        out.extend(bench.stored());
        assert_eq!(status(&out, header.op), Some(expected), "case {index}");
        assert_eq!(disk(&out), [], "case {index}");
    }
}

#[test]
fn an_engine_ignores_answers_of_other_volumes_and_connections() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(0));
    rig.answer_if(|sent| sent.replica == A);
    let good = rig.sent.iter().find(|sent| sent.replica == B).unwrap().clone();
    let mut other = good.clone();
    other.header.volume = VolumeId(uuid::Uuid::from_u128(99));
    rig.answer(&other);
    let mut other = good.clone();
    other.link = stor_replication::engine::LinkId(12345);
    rig.answer(&other);
    assert!(!rig.is_done(1));
    rig.answer(&good);
    assert!(rig.is_done(1));
}

#[test]
fn a_damaged_header_is_no_message() {
    let mut bench = Bench::new();
    let header = bench.header(Kind::Ping, view(1, 0));
    let good = header.encode(0, 0);
    assert_eq!(Framed::try_from(&good).unwrap().header, header);
    for at in 0..good.len() {
        let mut bytes = good;
        bytes[at] ^= 4;
        let result = Framed::try_from(&bytes);
        assert!(
            matches!(
                result,
                Err(WireError::HeaderChecksum { .. } | WireError::Magic(_))
            ),
            "byte {at}: {result:?}"
        );
    }
}
