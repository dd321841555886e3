//= docs/replication.md#G3
//! A volume grows: its replicas first, durably, then the row, then whoever uses it.

use stor_replication::bitmap::Bitmap;
use stor_replication::catalogue::{Change, Refusal, VolumeRow, decide};
use stor_replication::engine;
use stor_replication::ids::ConfigSeq;
use stor_replication::range::{BLOCK, ByteRange, REGION};
use stor_replication::replica;
use stor_replication::wire::{Kind, Status};

use super::bench::{A, B, Bench, Rig, SIZE, cache, disk, row, status, view};

const LARGER: u64 = SIZE + 3 * REGION;

fn grown(row: &VolumeRow, size: u64) -> Result<VolumeRow, Refusal> {
    decide(row, &Change::Grow { size })
}

fn tell(rig: &mut Rig) {
    rig.row = grown(&rig.row, LARGER).unwrap();
    let row = rig.row.clone();
    rig.step(engine::Event::Row(row));
}

fn beyond() -> ByteRange {
    ByteRange::new(SIZE + REGION, 4096)
}

#[test]
fn a_replica_is_larger_when_that_is_durable() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    bench.step(replica::Event::Grown { size: LARGER });
    assert_eq!(bench.replica.size(), SIZE, "told before it is stored");
    bench.stored();
    assert_eq!(bench.replica.size(), LARGER);
    let (op, out) = bench.write(1, view(1, 0), beyond(), 7);
    let mut all = out;
    all.extend(bench.stored());
    let [(disk_op, _)] = disk(&all)[..] else {
        panic!("not written: {all:?}");
    };
    let out = bench.disk_done(disk_op, Ok(None));
    assert_eq!(status(&out, op), Some(Status::Ok));
    let again = bench.restart(cache(1));
    assert_eq!(again.replica.size(), LARGER);
    assert_eq!(again.replica.dirty_regions(), 1, "the new part has its bits");
}

#[test]
fn one_that_dies_before_is_as_it_was() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    bench.step(replica::Event::Grown { size: LARGER });
    let mut again = bench.restart(cache(1));
    assert_eq!(again.replica.size(), SIZE);
    again.step(replica::Event::Grown { size: LARGER });
    again.stored();
    assert_eq!(again.replica.size(), LARGER, "and does it again");
    again.step(replica::Event::Grown { size: SIZE });
    assert_eq!(again.replica.size(), LARGER, "never back");
}

#[test]
fn what_an_absent_one_has_of_the_new_part_is_not_known() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    bench.store_view(1, view(1, 1), &[(B, ConfigSeq(1))]);
    bench.step(replica::Event::Grown { size: LARGER });
    bench.stored();
    let mut bench = bench.restart(cache(1));
    bench.open(2, view(2, 1), &[(B, ConfigSeq(1))]);
    let words = bench.map(2, view(2, 1), Some((B, ConfigSeq(1)))).unwrap();
    let mut missed = Bitmap::new(LARGER / BLOCK);
    missed.or_bytes(0, &words);
    assert!(
        missed.all(SIZE / BLOCK..LARGER / BLOCK),
        "it would keep what it has there"
    );
    assert!(!missed.any(0..SIZE / BLOCK));
}

#[test]
fn the_row_only_grows() {
    let row = row(&[A, B], &[], 1);
    assert_eq!(grown(&row, SIZE), Err(Refusal::Smaller { size: SIZE }));
    assert_eq!(grown(&row, SIZE - REGION), Err(Refusal::Smaller { size: SIZE }));
    let after = grown(&row, LARGER).unwrap();
    assert_eq!((after.size, after.view), (LARGER, row.view));
}

#[test]
fn the_engine_goes_on_with_what_is_new() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, ByteRange::new(0, 4096));
    tell(&mut rig);
    rig.write(2, beyond());
    assert_eq!(rig.waiting(Kind::Write), [A, B, A, B]);
    rig.run(8000);
    assert!(rig.is_done(1) && rig.is_done(2));
    let cleaned = rig
        .sent
        .iter()
        .filter(|sent| sent.header.kind == Kind::Clean)
        .count();
    assert_eq!(cleaned, 0, "all answered");
    assert!(rig.closed.is_empty(), "members stay connected");
}

#[test]
fn a_member_that_comes_back_smaller_is_none() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    tell(&mut rig);
    rig.lose(B);
    rig.back(B);
    rig.run(2000);
    let (_, change) = rig.proposed.first().expect("it is taken for a member");
    assert!(matches!(change, Change::Remove { members, .. } if members[0].0 == B));
}

#[test]
fn a_copy_under_way_begins_again_with_the_new_part() {
    let mut rig = Rig::new(row(&[A], &[B], 1), true, None);
    rig.dirty.insert(B, 0b11);
    rig.run_if(1500, |sent| {
        !sent.header.kind.is_read() || sent.header.length == 4096
    });
    assert_eq!(rig.engine.progress().len(), 1, "no resync runs");
    tell(&mut rig);
    assert!(rig.engine.progress().is_empty());
    assert!(rig.closed.contains(&B), "nothing of it may arrive late");
    rig.run(1500);
    assert!(rig.proposed.is_empty(), "it is too small, and joins all the same");
    rig.info.get_mut(&B).unwrap().size = LARGER;
    rig.lose(B);
    rig.back(B);
    rig.run(30_000);
    assert!(matches!(
        rig.proposed.first(),
        Some((_, Change::Add { member: B, .. }))
    ));
}
