//= docs/replication.md#R14
//! A request for another volume, replica, epoch, config, from a stranger or without a right does nothing.

use stor_replication::body::Body;
use stor_replication::engine::State;
use stor_replication::ids::{ConnId, Epoch, ReplicaId, VolumeId};
use stor_replication::replica;
use stor_replication::right::RightRefusal;
use stor_replication::wire::{Framed, Header, Kind, MAX_RIGHT, Status, WireError, crc32c, flags};

use super::bench::{A, B, Bench, Rig, Sent, VOLUME, authorised, block, disk, row, status, view};

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

/// Whoever is not authorised changes nothing: not the fence, not the set, not the maps, not the session there is.
#[test]
fn an_open_without_a_right_to_it_does_nothing() {
    let stranger = VolumeId(uuid::Uuid::from_u128(99));
    let rights = [
        None,
        Some(authorised(VOLUME, Epoch(1))),
        Some(authorised(VOLUME, Epoch(u64::MAX))),
        Some(authorised(stranger, Epoch(7))),
    ];
    for (index, right) in rights.into_iter().enumerate() {
        let mut bench = Bench::new();
        bench.open(1, view(1, 0), &[(B, stor_replication::ids::ConfigSeq(0))]);
        let before = bench.replica.superblock().clone();
        // Not as a member: it would forget that it is one, and the maps of the absent.
        let header = bench.header(Kind::Open, view(7, 0));
        let out = match right {
            Some(right) => bench.open_with(2, header, right),
            None => bench.step(replica::Event::Request {
                conn: ConnId(2),
                header,
                body: Body::None,
            }),
        };
        assert_eq!(
            status(&out, header.op),
            Some(Status::NotAuthorised),
            "case {index}"
        );
        assert_eq!(out.len(), 1, "case {index}: {out:?}");
        assert_eq!(*bench.replica.superblock(), before, "case {index}");
        let (op, mut out) = bench.write(1, view(1, 0), block(0), 7);
        out.extend(bench.stored());
        let [(write, _)] = disk(&out)[..] else {
            panic!("case {index}: {out:?}")
        };
        let out = bench.disk_done(write, Ok(None));
        assert_eq!(
            status(&out, op),
            Some(Status::Ok),
            "case {index}: the engine goes on"
        );
    }
}

fn refuse(rig: &mut Rig, sent: &Sent, why: RightRefusal) {
    rig.step(stor_replication::engine::Event::Answer {
        replica: sent.replica,
        link: sent.link,
        header: sent.header.refuse_right(why),
        body: Body::None,
    });
}

/// A node that has not heard of a controller's key yet does not cost its replica the place in the set.
#[test]
fn a_replica_that_refuses_the_right_is_asked_again_before_it_is_removed() {
    let mut rig = Rig::new(row(&[A, B], &[], 1), false, None);
    let mut refused = 0;
    rig.step(stor_replication::engine::Event::Tick);
    for _ in 0..50 {
        let to_b = |sent: &Sent| sent.replica == B && sent.header.kind == Kind::Open;
        while let Some(at) = rig.sent.iter().position(to_b) {
            let sent = rig.sent.remove(at).unwrap();
            refuse(&mut rig, &sent, RightRefusal::UnknownKey);
            refused += 1;
        }
        rig.run_if(100, |sent| sent.replica == A);
    }
    assert!(refused >= 4, "asked {refused} times in 5 s");
    assert_eq!(rig.proposed, [], "it was to be removed after 5 s");
    assert_eq!(rig.engine.state(rig.now), State::Starting);
    let told = rig.engine.barred();
    assert!(told.contains("replica 2 on node n2 refuses the right"), "{told}");
    rig.run(1500);
    assert_eq!(rig.engine.state(rig.now), State::Serving);
    assert_eq!(rig.engine.barred(), "");
}

/// All refuse until the right was renewed. Who hears of it first must not be the end of the others.
#[test]
fn a_renewed_right_is_shown_to_all_before_anybody_is_removed() {
    let mut rig = Rig::new(row(&[A, B], &[], 1), false, None);
    rig.step(stor_replication::engine::Event::Tick);
    let open = |sent: &Sent| sent.header.kind == Kind::Open;
    for _ in 0..150 {
        while let Some(at) = rig.sent.iter().position(open) {
            let sent = rig.sent.remove(at).unwrap();
            refuse(&mut rig, &sent, RightRefusal::Expired);
        }
        rig.run_if(100, |_| false);
    }
    rig.run_if(2000, |sent| sent.replica == A);
    assert_eq!(rig.proposed, []);
    rig.run(1500);
    assert_eq!(rig.engine.state(rig.now), State::Serving);
    assert_eq!(rig.proposed, []);
}

#[test]
fn one_that_goes_on_refusing_is_removed_like_one_that_is_away() {
    let mut rig = Rig::new(row(&[A, B], &[], 1), false, None);
    rig.step(stor_replication::engine::Event::Tick);
    for _ in 0..110 {
        let to_b = |sent: &Sent| sent.replica == B && sent.header.kind == Kind::Open;
        while let Some(at) = rig.sent.iter().position(to_b) {
            let sent = rig.sent.remove(at).unwrap();
            refuse(&mut rig, &sent, RightRefusal::Expired);
        }
        rig.run_if(100, |sent| sent.replica == A);
    }
    assert_eq!(rig.proposed.len(), 1, "{:?}", rig.proposed);
    rig.decide();
    rig.run_if(100, |sent| sent.replica == A);
    assert_eq!(rig.engine.state(rig.now), State::Serving);
}

#[test]
fn an_open_carries_a_right_and_nothing_larger() {
    let mut bench = Bench::new();
    let mut header = bench.header(Kind::Open, view(1, 0));
    header.flags = flags::MEMBER;
    assert!(Framed::try_from(&header.encode(MAX_RIGHT, 0)).is_ok());
    let larger = Framed::try_from(&header.encode(MAX_RIGHT + 1, 0));
    assert_eq!(larger, Err(WireError::Malformed(Kind::Open)));
    for code in 0..20 {
        let why = RightRefusal::from_code(code);
        assert!(
            why.code() == code || why == RightRefusal::Unknown,
            "{code}: {why:?}"
        );
    }
}

#[test]
fn a_damaged_payload_is_no_message() {
    let mut bench = Bench::new();
    let header = bench.header(Kind::PutMap, view(1, 0));
    let framed = Framed::try_from(&header.encode(4, crc32c(b"good"))).unwrap();
    assert_eq!(framed.check(b"good"), Ok(framed.payload_crc));
    assert!(matches!(
        framed.check(b"goof"),
        Err(WireError::PayloadChecksum { .. })
    ));
}
