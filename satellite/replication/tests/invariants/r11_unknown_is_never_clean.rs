//= docs/replication.md#R11
//! A returning replica gets what the others know it missed and what it wrote itself; unknown is never clean.

use stor_replication::body::Body;
use stor_replication::disk::PageId;
use stor_replication::extents::{self, Extent};
use stor_replication::ids::{ConfigSeq, Epoch};
use stor_replication::wire::{DIRTY_MAP, Kind, Status};

use super::bench::{A, B, Bench, Rig, Sent, block, cache, row, view};

#[test]
fn its_own_dirty_regions_are_copied_to_it() {
    let mut rig = Rig::new(row(&[A], &[B], 1), true, None);
    rig.dirty.insert(B, 4);
    let writes = |sent: &Sent| matches!(sent.header.kind, Kind::Write | Kind::Zero);
    rig.run_if(1500, |sent| !writes(sent));
    let region = (2 << 20)..(3 << 20);
    let writes: Vec<_> = rig.sent.iter().filter(|sent| writes(sent)).collect();
    assert!(!writes.is_empty(), "its own writes stay on it as phantoms");
    assert!(
        writes
            .iter()
            .all(|sent| sent.replica == B && region.contains(&sent.header.offset))
    );
}

#[test]
fn a_map_that_begins_elsewhere_is_no_map() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    bench.store_view(1, view(1, 1), &[(B, ConfigSeq(1))]);
    assert!(bench.map(1, view(1, 1), Some((B, ConfigSeq(1)))).is_ok());
    assert_eq!(
        bench.map(1, view(1, 1), Some((B, ConfigSeq(2)))),
        Err(Status::NoMap)
    );
    assert_eq!(
        bench.map(1, view(1, 1), Some((super::bench::C, ConfigSeq(1)))),
        Err(Status::NoMap)
    );
}

/// Regions B is told are clean while its copies of `parts` are not answered.
fn called_clean(hole: bool, parts: impl Fn(&Sent) -> bool, write: Option<u64>) -> Vec<u32> {
    let mut rig = Rig::new(row(&[A], &[B], 1), true, None);
    rig.dirty.insert(B, 0b0011_1000);
    let copy = |sent: &Sent| sent.replica == B && matches!(sent.header.kind, Kind::Write | Kind::Zero);
    for _ in 0..30 {
        let held = |sent: &Sent| {
            let later = [Kind::Flush, Kind::Clean, Kind::Extents].contains(&sent.header.kind);
            later || (copy(sent) && parts(sent))
        };
        rig.run_if(10, |sent| !held(sent));
        // Data comes in pieces.
        while let Some(index) = rig.sent.iter().position(|sent| sent.header.kind == Kind::Extents) {
            let ask = rig.sent.remove(index).unwrap();
            let data = Extent {
                length: ask.header.length,
                hole,
            };
            rig.answer_with(&ask, Status::Ok, Body::Bytes(extents::encode(&[data])));
        }
    }
    assert_eq!(
        rig.waiting(Kind::Clean),
        [],
        "called clean before the flush was answered"
    );
    assert_eq!(rig.waiting(Kind::Flush), [B], "no checkpoint");
    if let Some(index) = write {
        rig.write(1, block(index));
        rig.answer_if(|sent| copy(sent) && sent.header.kind == Kind::Write);
    }
    rig.answer_if(|sent| sent.header.kind == Kind::Flush);
    let clean = rig.sent.iter().filter(|sent| sent.header.kind == Kind::Clean);
    let mut regions = Vec::new();
    for sent in clean {
        assert_eq!(sent.replica, B, "a member's region is dirty for other reasons");
        assert!(!sent.body.bytes().is_empty(), "nothing named means everything");
        let words = sent.body.bytes().chunks(4);
        regions.extend(words.map(|word| u32::from_le_bytes(word.try_into().unwrap())));
    }
    regions
}

#[test]
fn what_is_copied_whole_and_flushed_is_not_copied_again() {
    assert_eq!(called_clean(true, |_| false, None), [3, 4, 5]);
}

#[test]
fn a_region_that_lacks_a_part_stays_dirty() {
    assert!(called_clean(false, |_| false, None).contains(&3));
    let in_the_middle = |sent: &Sent| sent.header.range().blocks().contains(&(3 * 16 + 8));
    let clean = called_clean(false, in_the_middle, None);
    assert!(!clean.contains(&3), "{clean:?}");
}

#[test]
fn a_region_written_since_it_was_copied_stays_dirty() {
    assert_eq!(called_clean(true, |_| false, Some(4 * 256)), [3, 5]);
}

#[test]
fn without_a_map_everything_is_copied() {
    let mut rig = Rig::new(row(&[A], &[B], 1), true, None);
    rig.run_if(3000, |sent| {
        sent.header.kind != Kind::GetMap || sent.header.length == DIRTY_MAP
    });
    let ask = rig
        .sent
        .iter()
        .find(|sent| sent.header.kind == Kind::GetMap)
        .unwrap()
        .clone();
    rig.sent.retain(|sent| sent.header.op != ask.header.op);
    rig.answer_with(&ask, Status::NoMap, Body::None);
    rig.run(3000);
    assert_eq!(rig.engine.counters().resynced_bytes, super::bench::SIZE);
}

#[test]
fn a_superblock_older_than_its_joining_means_everything() {
    let mut row = row(&[A], &[B], 1);
    row.view.config = ConfigSeq(9);
    row.replicas.get_mut(&B).unwrap().joined = Some(ConfigSeq(7));
    let mut rig = Rig::serving(row);
    rig.run(3000);
    assert_eq!(rig.engine.counters().resynced_bytes, super::bench::SIZE);
}

#[test]
fn a_damaged_page_counts_as_all_dirty() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let (_, _) = bench.write(1, view(1, 0), block(0), 7);
    bench.stored();
    for second in [false, true] {
        if let Some(page) = bench.meta.get_mut(&PageId::Dirty(0).offset(second)) {
            page[100] ^= 1;
        }
    }
    let bench = bench.restart(cache(1));
    assert_eq!(bench.replica.dirty_regions(), super::bench::SIZE >> 20);
}

/// Where a page's two copies are, the later one first.
fn copies(bench: &Bench, page: PageId) -> [u64; 2] {
    let seq = |second: bool| {
        let bytes = bench.meta.get(&page.offset(second));
        bytes.map(|bytes| u64::from_le_bytes(bytes[16..24].try_into().unwrap()))
    };
    if seq(true) > seq(false) {
        [page.offset(true), page.offset(false)]
    } else {
        [page.offset(false), page.offset(true)]
    }
}

#[test]
fn beside_a_damaged_copy_an_older_one_is_not_believed() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    for region in 0..2 {
        let mut write = bench.header(Kind::Write, view(1, 0));
        (write.offset, write.length) = (region << 20, 4096);
        bench.ask(1, write, Body::Data(7));
        bench.stored();
    }
    // The copy written last, which alone knows of the second region, goes bad on the disk.
    let [later, _] = copies(&bench, PageId::Dirty(0));
    bench.meta.get_mut(&later).unwrap()[100] ^= 1;
    let bench = bench.restart(cache(2));
    assert_eq!(bench.replica.dirty_regions(), super::bench::SIZE >> 20);
}

#[test]
fn a_damaged_superblock_does_not_bring_an_older_one_back() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    bench.open(2, view(2, 0), &[]);
    let [later, _] = copies(&bench, PageId::Superblock);
    bench.meta.get_mut(&later).unwrap()[100] ^= 1;
    let bench = bench.restart(cache(2));
    assert_eq!(bench.replica.superblock().fence, Epoch(2));
}
