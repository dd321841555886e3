#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::super::chance::Keeps;
use super::*;

/// All that a file may hold after a cut: what `look` makes of it for many seeds, without repetitions.
fn after<T: PartialEq>(content: &Content, look: impl Fn(&Content) -> T) -> Vec<T> {
    let mut seen = Vec::new();
    for seed in 0..400 {
        let mut cut = content.clone();
        cut.cut(&mut Chance::keeping(seed, Keeps::Percent(50)), false);
        let found = look(&cut);
        if !seen.contains(&found) {
            seen.push(found);
        }
    }
    seen
}

fn block(byte: u8) -> Vec<u8> {
    vec![byte; SIZE]
}

/// The first byte of each of the first blocks.
fn heads(content: &Content) -> Vec<u8> {
    let bytes = content.read(0, 8 * BLOCK);
    bytes.chunks(SIZE).map(|block| block[0]).collect()
}

#[test]
fn every_subset_of_unsynced_blocks_is_possible_and_synced_ones_are_there() {
    let mut content = Content::default();
    content.write(0, &[block(1), block(1), block(1)].concat());
    content.sync();
    content.write(0, &[block(2), block(2)].concat());
    assert_eq!(heads(&content), [2, 2, 1]);
    let mut seen = after(&content, heads);
    seen.sort();
    assert_eq!(seen, [[1, 1, 1], [1, 2, 1], [2, 1, 1], [2, 2, 1]]);
    content.sync();
    assert_eq!(after(&content, heads), [[2, 2, 1]]);
}

#[test]
fn of_several_writes_to_a_block_any_may_be_the_last_that_was_kept() {
    let mut content = Content::default();
    content.write(0, &block(1));
    content.sync();
    content.write(0, &block(2));
    content.write(0, &block(3));
    let mut seen = after(&content, heads);
    seen.sort();
    assert_eq!(seen, [[1], [2], [3]]);
}

#[test]
fn a_write_that_is_durable_itself_takes_no_other_block_along() {
    let mut content = Content::default();
    content.write(0, &[block(1), block(1)].concat());
    content.sync();
    content.write(0, &block(2));
    content.write(BLOCK, &block(3));
    content.sync_range(BLOCK..2 * BLOCK);
    let mut seen = after(&content, heads);
    seen.sort();
    assert_eq!(seen, [[1, 3], [2, 3]]);
}

#[test]
fn a_file_that_grew_may_be_short_again_and_what_was_lost_reads_as_zeroes() {
    let mut content = Content::default();
    content.write(0, &block(1));
    content.write(BLOCK, &block(2));
    let mut seen = after(&content, |cut| (cut.length(), heads(cut)));
    seen.sort();
    let expected: Vec<(u64, Vec<u8>)> = vec![
        (0, vec![]),
        (BLOCK, vec![0]),
        (BLOCK, vec![1]),
        (2 * BLOCK, vec![0, 0]),
        (2 * BLOCK, vec![0, 2]),
        (2 * BLOCK, vec![1, 0]),
        (2 * BLOCK, vec![1, 2]),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn holes_and_lengths_are_kept_in_their_order_and_as_a_whole() {
    let mut content = Content::default();
    content.write(0, &[block(1), block(1)].concat());
    content.sync();
    content.zero(0..2 * BLOCK, false);
    assert_eq!(content.blocks(), 0);
    content.set_length(BLOCK);
    content.write(0, &block(2));
    let mut seen = after(&content, heads);
    seen.sort();
    // The hole of both blocks, then the cut to one, then the write: never a later one without those before it.
    assert_eq!(seen, [vec![0], vec![0, 0], vec![1, 1], vec![2], vec![2, 0]]);
    content.sync();
    assert_eq!(after(&content, heads), [[2]]);
}

#[test]
fn what_was_cut_off_does_not_come_back_when_the_file_grows_again() {
    let mut content = Content::default();
    content.write(0, &[block(1), block(1)].concat());
    content.sync();
    content.set_length(100);
    content.set_length(2 * BLOCK);
    content.sync();
    let cut = &after(&content, |cut| cut.read(0, 2 * BLOCK))[0];
    assert!(cut[..100].iter().all(|byte| *byte == 1) && cut[100..].iter().all(|byte| *byte == 0));
    assert_eq!(cut.len(), 2 * SIZE);
}

#[test]
fn a_torn_block_holds_whole_sectors_of_both() {
    let mut content = Content::default();
    content.write(0, &block(1));
    content.sync();
    content.write(0, &block(2));
    let mut mixed = false;
    for seed in 0..200 {
        let mut cut = content.clone();
        cut.cut(&mut Chance::keeping(seed, Keeps::Percent(50)), true);
        let bytes = cut.read(0, BLOCK);
        for sector in bytes.chunks(SECTOR) {
            assert!(sector.iter().all(|byte| *byte == sector[0]));
        }
        mixed |= bytes.contains(&1) && bytes.contains(&2);
    }
    assert!(mixed, "no block was torn");
}

#[test]
fn a_cut_that_keeps_nothing_leaves_what_was_synced_and_one_that_keeps_all_leaves_all() {
    let mut content = Content::default();
    content.write(0, &block(1));
    content.sync();
    content.write(0, &[block(2), block(2)].concat());
    let mut nothing = content.clone();
    assert_eq!(nothing.cut(&mut Chance::keeping(1, Keeps::Nothing), true), 2);
    assert_eq!(heads(&nothing), [1]);
    assert_eq!(content.cut(&mut Chance::keeping(1, Keeps::All), true), 0);
    assert_eq!(heads(&content), [2, 2]);
}

#[test]
fn data_and_holes_are_found() {
    let mut content = Content::default();
    content.write(2 * BLOCK, &block(1));
    content.set_length(4 * BLOCK);
    assert_eq!(content.seek(0, false), Some(2 * BLOCK));
    assert_eq!(content.seek(5, true), Some(5));
    assert_eq!(content.seek(2 * BLOCK, true), Some(3 * BLOCK));
    assert_eq!(content.seek(3 * BLOCK, false), None);
    assert_eq!(content.seek(4 * BLOCK, true), None);
}
