//= docs/replication.md#G1
//! A copy to a returning replica asks for holes under its lock and sends them as holes.

use stor_replication::body::Body;
use stor_replication::extents::{self, Extent};
use stor_replication::range::{BLOCK, ByteRange, REGION};
use stor_replication::wire::{Kind, Status, flags};

use super::bench::{A, B, Rig, SIZE, Sent, row};

/// An engine that is about to ask A what B is to be given, and the question.
fn asking() -> (Rig, Sent) {
    let mut rig = Rig::new(row(&[A], &[B], 1), true, None);
    rig.dirty.insert(B, 0b111);
    rig.run_if(1500, |sent| sent.header.kind != Kind::Extents);
    let at = rig.sent.iter().position(|sent| sent.header.kind == Kind::Extents);
    let asked = rig.sent.remove(at.expect("nobody was asked for holes")).unwrap();
    (rig, asked)
}

fn tell(rig: &mut Rig, asked: &Sent, extents: &[Extent]) {
    rig.answer_with(asked, Status::Ok, Body::Bytes(extents::encode(extents)));
}

fn part(length: u64, hole: bool) -> Extent {
    let length = u32::try_from(length).unwrap();
    Extent { length, hole }
}

fn to_b(rig: &Rig, kind: Kind) -> Vec<ByteRange> {
    let of = |sent: &&Sent| sent.replica == B && sent.header.kind == kind;
    rig.sent
        .iter()
        .filter(of)
        .map(|sent| sent.header.range())
        .collect()
}

#[test]
fn a_hole_is_sent_as_one_however_long() {
    let (mut rig, asked) = asking();
    assert_eq!(
        (asked.replica, asked.header.range()),
        (A, ByteRange::new(0, 3 * REGION))
    );
    tell(&mut rig, &asked, &[part(3 * REGION, true)]);
    assert_eq!(to_b(&rig, Kind::Zero), [ByteRange::new(0, 3 * REGION)]);
    let zero = rig
        .sent
        .iter()
        .find(|sent| sent.header.kind == Kind::Zero)
        .unwrap();
    assert!(zero.header.flags & flags::DISCARD != 0, "it would take space");
    assert!(rig.waiting(Kind::Read).is_empty(), "read all the same");
    rig.run(3000);
    assert_eq!(rig.proposed.len(), 1, "all is copied, it may join");
    assert_eq!(rig.engine.counters().resynced_bytes, 3 * REGION);
}

#[test]
fn what_is_data_in_part_is_copied_whole() {
    let (mut rig, asked) = asking();
    let hole = 2 * BLOCK + 4096;
    tell(
        &mut rig,
        &asked,
        &[part(hole, true), part(3 * REGION - hole, false)],
    );
    assert_eq!(
        to_b(&rig, Kind::Zero),
        [ByteRange::new(0, 2 * BLOCK)],
        "holes end at blocks"
    );
    let asked = rig
        .sent
        .iter()
        .position(|sent| sent.header.kind == Kind::Extents)
        .unwrap();
    let asked = rig.sent.remove(asked).unwrap();
    assert_eq!(asked.header.offset, 2 * BLOCK);
    tell(&mut rig, &asked, &[part(BLOCK - 4096, true), part(4096, false)]);
    let read = rig
        .sent
        .iter()
        .find(|sent| sent.header.kind == Kind::Read)
        .unwrap();
    assert_eq!(read.header.range(), ByteRange::new(2 * BLOCK, BLOCK));
}

#[test]
fn data_is_not_asked_for_twice() {
    let (mut rig, asked) = asking();
    tell(&mut rig, &asked, &[part(REGION, false), part(2 * REGION, true)]);
    rig.run_if(1000, |sent| sent.header.kind != Kind::Extents);
    let next: Vec<u64> = rig
        .sent
        .iter()
        .filter(|sent| sent.header.kind == Kind::Extents)
        .map(|sent| sent.header.offset)
        .collect();
    assert_eq!(next, [REGION], "beyond what is known to be data");
}

#[test]
fn no_write_comes_between_the_answer_and_the_hole() {
    let (mut rig, asked) = asking();
    rig.write(1, ByteRange::new(REGION, 4096));
    rig.write(2, ByteRange::new(5 * REGION, 4096));
    assert_eq!(to_b(&rig, Kind::Write), [ByteRange::new(5 * REGION, 4096)]);
    tell(&mut rig, &asked, &[part(3 * REGION, true)]);
    assert_eq!(
        to_b(&rig, Kind::Write).len(),
        1,
        "written before the hole was made"
    );
    rig.answer_if(|sent| sent.header.kind == Kind::Zero);
    assert_eq!(to_b(&rig, Kind::Write).len(), 2);
    rig.run(100);
    assert!(rig.is_done(1) && rig.is_done(2));
}

#[test]
fn what_is_no_part_of_the_hole_is_unlocked_at_once() {
    let (mut rig, asked) = asking();
    rig.write(1, ByteRange::new(2 * REGION, 4096));
    assert!(rig.waiting(Kind::Write).is_empty());
    tell(&mut rig, &asked, &[part(REGION, true), part(2 * REGION, false)]);
    assert!(
        !rig.waiting(Kind::Write).is_empty(),
        "waits for bytes nobody copies now"
    );
}

#[test]
fn no_answer_or_nonsense_is_data() {
    for (status, body) in [
        (Status::MediaError, Body::None),
        (Status::Ok, Body::None),
        (Status::Ok, Body::Bytes(extents::encode(&[part(SIZE, true)]))),
    ] {
        let (mut rig, asked) = asking();
        rig.answer_with(&asked, status, body);
        assert!(to_b(&rig, Kind::Zero).is_empty());
        assert!(!rig.waiting(Kind::Read).is_empty(), "{status:?}: not copied");
    }
}
