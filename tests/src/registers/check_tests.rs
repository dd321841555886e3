//! Histories that must be refused, histories that must not, and thousands of small ones beside a search of all
//! orders.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;

fn write(value: u64, begun: u64, ended: u64) -> Operation {
    Operation {
        kind: Kind::Write,
        value,
        begun,
        ended: (ended > 0).then_some(ended),
        client: 1,
    }
}

fn read(value: u64, begun: u64, ended: u64) -> Operation {
    Operation {
        kind: Kind::Read,
        ..write(value, begun, ended)
    }
}

/// No end.
const NEVER: u64 = 0;

fn refused(history: &[Operation], says: &str) {
    let wrong = check(history).unwrap_err();
    assert!(wrong.what.contains(says), "{wrong:?}");
    assert!(!wrong.proof.is_empty());
}

#[test]
fn a_lost_write_is_refused() {
    refused(&[write(1, 1, 2), read(0, 3, 4)], "all along");
    refused(&[write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)], "all along");
    // Nobody but the last read saw that it was gone.
    refused(
        &[write(1, 1, 2), read(1, 3, 4), write(2, 5, 6), read(1, 7, 8)],
        "all along",
    );
}

#[test]
fn a_stale_read_is_refused() {
    // It began after the newer value was seen, though the newer write has not ended.
    refused(
        &[write(1, 1, 2), write(2, 3, 20), read(2, 4, 5), read(1, 6, 7)],
        "all along",
    );
    refused(
        &[write(1, 1, 2), write(2, 3, NEVER), read(2, 4, 5), read(1, 6, 7)],
        "all along",
    );
}

#[test]
fn a_write_that_comes_and_goes_is_refused() {
    // A phantom: seen, gone, and there again.
    refused(
        &[
            write(1, 1, 2),
            write(2, 3, NEVER),
            read(1, 4, 5),
            read(2, 6, 7),
            read(1, 8, 9),
            read(2, 10, 11),
        ],
        "overlaps",
    );
    // Two engines at once, each with a write the other does not have.
    refused(
        &[
            write(1, 1, 4),
            write(2, 2, 5),
            read(1, 6, 7),
            read(2, 8, 9),
            read(1, 10, 11),
        ],
        "overlaps",
    );
}

#[test]
fn a_read_of_the_future_or_of_nothing_is_refused() {
    refused(&[read(1, 1, 2), write(1, 3, 4)], "before it was written");
    refused(&[read(7, 1, 2)], "never written");
    refused(&[write(1, 1, 2), write(1, 3, 4)], "2 times");
}

#[test]
fn what_one_copy_could_have_answered_is_let_through() {
    check(&[]).unwrap();
    check(&[read(0, 1, 2), write(1, 3, 4), read(1, 5, 6)]).unwrap();
    // During a write a read may show either.
    check(&[write(1, 1, 10), read(0, 2, 3), read(1, 4, 5)]).unwrap();
    // Never answered: there at some time, or never.
    check(&[write(1, 1, NEVER), read(0, 2, 3), read(0, 4, 5)]).unwrap();
    check(&[write(1, 1, NEVER), read(0, 2, 3), read(1, 4, 5), read(1, 6, 7)]).unwrap();
    // It takes effect after a later write, even.
    check(&[write(1, 1, NEVER), write(2, 2, 3), read(2, 4, 5), read(1, 6, 7)]).unwrap();
    check(&[write(1, 1, 2), read(9, 3, NEVER)]).unwrap();
}

#[test]
fn zeroes_come_back_once_and_not_before_they_are_asked_for() {
    let zero = |begun, ended| write(ZEROED, begun, ended);
    check(&[
        read(0, 1, 2),
        write(1, 3, 4),
        read(1, 5, 6),
        zero(7, 8),
        read(0, 9, 10),
    ])
    .unwrap();
    check(&[write(1, 1, 2), zero(3, NEVER), read(1, 4, 5), read(0, 6, 7)]).unwrap();
    // A read of zeroes beside both fits either.
    check(&[
        write(1, 1, 10),
        zero(2, 11),
        read(0, 3, 4),
        read(1, 5, 6),
        read(0, 7, 8),
    ])
    .unwrap();
    assert!(check(&[write(1, 1, 2), read(0, 3, 4), zero(5, 6)]).is_err());
    assert!(check(&[write(1, 1, 2), zero(3, 4), read(1, 5, 6)]).is_err());
    assert!(check(&[write(1, 1, 2), zero(3, 4), write(2, 5, 6), read(0, 7, 8)]).is_err());
    assert!(check(&[write(1, 1, 2), zero(3, NEVER), read(0, 4, 5), read(1, 6, 7)]).is_err());
}

/// Whether there is an order, by trying all.
fn search(operations: &[Operation], done: u32, value: u64) -> bool {
    let open = |index: usize| done & (1 << index) == 0;
    // Whoever ended must be in the order; whoever did not may be left out.
    let must = (0..operations.len()).filter(|index| open(*index) && operations[*index].ended.is_some());
    let first_end = must.filter_map(|index| operations[index].ended).min();
    let Some(first_end) = first_end else {
        return true;
    };
    (0..operations.len()).any(|index| {
        let operation = operations[index];
        open(index)
            && operation.begun <= first_end
            && match operation.kind {
                Kind::Write if operation.value == ZEROED => search(operations, done | 1 << index, UNWRITTEN),
                Kind::Write => search(operations, done | 1 << index, operation.value),
                Kind::Read => operation.value == value && search(operations, done | 1 << index, value),
            }
    })
}

/// A small history of up to seven operations, sometimes a good one.
fn random_history(state: &mut u64) -> Vec<Operation> {
    let mut next = |below: u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 11) % below
    };
    let mut times: Vec<u64> = (1..=16).collect();
    for index in (1..times.len()).rev() {
        times.swap(index, usize::try_from(next(index as u64 + 1)).unwrap());
    }
    let count = 2 + next(6);
    let writes = 1 + next(3);
    let zeroing = next(2) == 0;
    (0..count)
        .map(|number| {
            let (one, other) = (times.pop().unwrap(), times.pop().unwrap());
            let (begun, ended) = (one.min(other), one.max(other));
            if number < writes {
                let value = if number == 1 && zeroing {
                    ZEROED
                } else {
                    number + 1
                };
                let ended = if next(4) == 0 { NEVER } else { ended };
                write(value, begun, ended)
            } else {
                let value = next(writes + 1);
                read(if zeroing && value == 2 { 0 } else { value }, begun, ended)
            }
        })
        .collect()
}

#[test]
fn it_agrees_with_a_search_of_all_orders() {
    let mut state = 0x5eed;
    let (mut good, mut bad) = (0, 0);
    for _ in 0..200_000 {
        let history = random_history(&mut state);
        let found = check(&history);
        let expected = search(&history, 0, UNWRITTEN);
        assert_eq!(found.is_ok(), expected, "{found:?}\n{history:#?}");
        if expected {
            good += 1;
        } else {
            bad += 1;
        }
    }
    assert!(good > 20_000 && bad > 20_000, "{good} good, {bad} bad");
}
