//= docs/replication.md#R10
//! The map of what an absent replica missed starts with the dirty regions, grows before a dirty bit goes,
//! and is cleared only by copies.

use stor_replication::body::Body;
use stor_replication::disk::PageId;
use stor_replication::ids::ConfigSeq;
use stor_replication::wire::Kind;

use super::bench::{A, B, Bench, C, Rig, block, cache, pages, row, view};

const SINCE: ConfigSeq = ConfigSeq(1);

/// B leaves while region 1 is dirty.
fn removed() -> Bench {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let (_, _) = bench.write(1, view(1, 0), block(300), 7);
    let out = bench.stored();
    bench.disk_done(super::bench::disk(&out)[0].0, Ok(None));
    bench.store_view(1, view(1, 1), &[(B, SINCE)]);
    bench
}

#[test]
fn it_starts_as_the_dirty_regions() {
    let mut bench = removed();
    let map = bench.map(1, view(1, 1), Some((B, SINCE))).unwrap();
    assert_eq!(map, [0xffff_u64 << 16, 0].map(u64::to_le_bytes).concat());
}

#[test]
fn it_grows_with_every_write_before_the_dirty_bit_goes() {
    let mut bench = removed();
    let (_, _) = bench.write(1, view(1, 1), block(0), 7);
    let out = bench.stored();
    bench.disk_done(super::bench::disk(&out)[0].0, Ok(None));
    let clean = bench.header(Kind::Clean, view(1, 1));
    bench.ask(1, clean, Body::None);
    let out = bench.tick(5000);
    assert!(
        pages(&out)
            .iter()
            .all(|page| matches!(page, PageId::OutOfSync(..))),
        "the dirty bit went first"
    );
    assert!(!pages(&out).is_empty());
    bench.stored();
    bench.tick(5000);
    bench.stored();
    assert_eq!(bench.replica.dirty_regions(), 0);
    // All of it is there after a restart.
    let mut bench = bench.restart(cache(1));
    bench.open(2, view(2, 1), &[(B, SINCE)]);
    let map = bench.map(2, view(2, 1), Some((B, SINCE))).unwrap();
    assert_eq!(map, [0xffff_u64 << 16 | 1, 0].map(u64::to_le_bytes).concat());
}

#[test]
fn after_a_crash_it_has_the_dirty_regions_again() {
    let mut bench = removed();
    let (_, _) = bench.write(1, view(1, 1), block(0), 7);
    bench.stored();
    let mut bench = bench.restart(cache(2));
    bench.open(2, view(2, 1), &[(B, SINCE)]);
    let map = bench.map(2, view(2, 1), Some((B, SINCE))).unwrap();
    assert_eq!(
        map[..8],
        (0xffff_ffff_u64).to_le_bytes(),
        "region 0 was dirty when it crashed"
    );
}

#[test]
fn only_a_copy_clears_it() {
    let mut bench = removed();
    let mut clear = bench.header(Kind::ClearMap, view(1, 1));
    clear.length = B.0;
    let runs = [16_u64, 4].map(u64::to_le_bytes).concat();
    bench.ask(1, clear, Body::Bytes(runs));
    let map = bench.map(1, view(1, 1), Some((B, SINCE))).unwrap();
    assert_eq!(map[..8], (0xfff0_0000_u64).to_le_bytes());
}

/// A resync of everything, and a client's write to what was copied first.
fn syncing() -> Rig {
    let mut rig = Rig::new(row(&[A], &[B], 1), true, None);
    rig.dirty.insert(B, 0xff);
    rig.run_if(300, |sent| {
        ![Kind::Flush, Kind::ClearMap].contains(&sent.header.kind)
    });
    rig
}

#[test]
fn it_lets_go_of_what_was_copied_and_flushed() {
    let mut rig = syncing();
    assert_eq!(rig.waiting(Kind::Flush), [B], "no checkpoint");
    assert_eq!(
        rig.waiting(Kind::ClearMap),
        [],
        "let go of before the flush was answered"
    );
    rig.answer_if(|sent| sent.header.kind == Kind::Flush);
    assert_eq!(rig.waiting(Kind::ClearMap)[0], A);
}

#[test]
fn it_keeps_what_was_written_again_after_the_copy() {
    let mut rig = syncing();
    rig.write(1, block(0));
    rig.answer_if(|sent| sent.header.kind == Kind::Write);
    assert!(rig.is_done(1));
    rig.answer_if(|sent| sent.header.kind == Kind::Flush);
    let clear = rig
        .sent
        .iter()
        .find(|sent| sent.header.kind == Kind::ClearMap)
        .unwrap();
    let runs: Vec<u64> = clear
        .body
        .bytes()
        .chunks(16)
        .map(|run| u64::from_le_bytes(run[..8].try_into().unwrap()))
        .collect();
    assert!(runs.contains(&1) && !runs.contains(&0), "{runs:?}");
}

#[test]
fn who_joins_is_given_the_maps_of_those_who_stay_away() {
    let mut rig = Rig::new(row(&[A], &[B, C], 1), true, None);
    rig.away.push(C);
    rig.run_if(3000, |sent| sent.header.kind != Kind::PutMap);
    assert_eq!(rig.waiting(Kind::PutMap), [B]);
    assert_eq!(rig.proposed, []);
    rig.run(3000);
    assert_eq!(rig.proposed.len(), 1);
}
