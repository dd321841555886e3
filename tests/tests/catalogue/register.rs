//! The history of a register that is changed by compare-and-set, and whether it is linearizable.
//!
//! A register is an object of the API: its revision tells which write a value is of. So the order of the writes is in
//! the answers, and a history is linearizable exactly when that order agrees with time: whatever began after
//! something was answered must show that or something later, and no write follows another one than it expected.

use std::collections::BTreeMap;

use anyhow::ensure;

/// What an operation was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Did {
    /// It showed this value of this revision.
    Read {
        /// The revision.
        revision: u64,
        /// The value; empty before the first write.
        value: String,
    },
    /// It was written, in place of the revision expected.
    Wrote {
        /// What it expected.
        expected: u64,
        /// What it became.
        revision: u64,
        /// The value.
        value: String,
    },
    /// Sent; whether it was done is not known.
    Maybe {
        /// What it expected.
        expected: u64,
        /// The value.
        value: String,
    },
}

/// An operation, by a clock that all clients share.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    /// Before it was sent.
    pub(crate) began: u64,
    /// After its answer.
    pub(crate) ended: u64,
    /// What it was answered.
    pub(crate) did: Did,
}

/// Checks a history. The error names the operations that contradict each other.
pub(crate) fn check(history: &[Operation]) -> anyhow::Result<()> {
    let mut values: BTreeMap<u64, (&str, &Operation)> = BTreeMap::new();
    let mut issued: BTreeMap<&str, u64> = BTreeMap::new();
    let mut replaced: BTreeMap<u64, &Operation> = BTreeMap::new();
    for operation in history {
        match &operation.did {
            Did::Read { .. } => {}
            Did::Wrote { expected, value, .. } | Did::Maybe { expected, value } => {
                ensure!(
                    issued.insert(value, *expected).is_none(),
                    "{value} was sent twice"
                );
            }
        }
        if let Did::Wrote {
            expected, revision, ..
        } = &operation.did
        {
            ensure!(revision > expected, "a revision went back: {operation:?}");
            if let Some(other) = replaced.insert(*expected, operation) {
                anyhow::bail!("two writes replaced the same revision: {other:?} and {operation:?}");
            }
        }
    }
    for operation in history {
        let (Did::Read { revision, value } | Did::Wrote { revision, value, .. }) = &operation.did else {
            continue;
        };
        if let Some((other, first)) = values.insert(*revision, (value, operation)) {
            ensure!(
                other == value,
                "one revision has two values: {first:?} and {operation:?}"
            );
        }
        if !value.is_empty() {
            let expected = issued.get(value.as_str());
            ensure!(
                expected.is_some_and(|expected| expected < revision),
                "nobody wrote that: {operation:?}"
            );
        }
    }
    follows_what_it_expected(&values, &issued)?;
    agrees_with_time(history)
}

/// Between the revision a write expected and the one it made nothing was ever seen.
fn follows_what_it_expected(
    values: &BTreeMap<u64, (&str, &Operation)>,
    issued: &BTreeMap<&str, u64>,
) -> anyhow::Result<()> {
    for (revision, (value, operation)) in values {
        let Some(expected) = issued.get(value) else {
            continue;
        };
        if let Some((between, (_, other))) = values.range(expected + 1..*revision).next() {
            anyhow::bail!("{operation:?} overwrote revision {between}, which it did not expect: {other:?}");
        }
    }
    Ok(())
}

fn agrees_with_time(history: &[Operation]) -> anyhow::Result<()> {
    let shown = |operation: &Operation| match &operation.did {
        Did::Read { revision, .. } | Did::Wrote { revision, .. } => Some(*revision),
        Did::Maybe { .. } => None,
    };
    let mut by_end: Vec<&Operation> = history.iter().filter(|one| shown(one).is_some()).collect();
    let mut by_begin = by_end.clone();
    by_end.sort_by_key(|operation| operation.ended);
    by_begin.sort_by_key(|operation| operation.began);
    let mut answered = by_end.into_iter().peekable();
    let mut latest: Option<&Operation> = None;
    for operation in by_begin {
        while let Some(before) = answered.next_if(|before| before.ended < operation.began) {
            if latest.is_none_or(|latest| shown(latest) < shown(before)) {
                latest = Some(before);
            }
        }
        let Some(latest) = latest else { continue };
        let is_new = matches!(operation.did, Did::Wrote { .. });
        let right = if is_new {
            shown(operation) > shown(latest)
        } else {
            shown(operation) >= shown(latest)
        };
        ensure!(
            right,
            "{operation:?} began after {latest:?} was answered, and shows what was before it"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(began: u64, ended: u64, revision: u64, value: &str) -> Operation {
        let value = value.to_owned();
        Operation {
            began,
            ended,
            did: Did::Read { revision, value },
        }
    }

    fn wrote(began: u64, ended: u64, expected: u64, revision: u64, value: &str) -> Operation {
        Operation {
            began,
            ended,
            did: Did::Wrote {
                expected,
                revision,
                value: value.to_owned(),
            },
        }
    }

    #[test]
    fn good_histories_pass() {
        let maybe = Operation {
            began: 3,
            ended: 9,
            did: Did::Maybe {
                expected: 5,
                value: "b".into(),
            },
        };
        let good = [
            read(0, 1, 1, ""),
            wrote(1, 4, 1, 5, "a"),
            // At the same time as the write, either is right.
            read(2, 3, 1, ""),
            read(2, 3, 5, "a"),
            maybe,
            // It was done, long after.
            read(10, 12, 5, "a"),
            read(13, 14, 8, "b"),
        ];
        check(&good).unwrap();
    }

    #[test]
    fn each_kind_of_wrong_is_found() {
        let a = || wrote(1, 4, 1, 5, "a");
        let wrong = [
            ("own write not read", vec![a(), read(5, 6, 1, "")]),
            (
                "a read went back",
                vec![a(), read(2, 3, 5, "a"), read(4, 5, 1, "")],
            ),
            ("out of nothing", vec![a(), read(5, 6, 7, "x")]),
            (
                "two values",
                vec![a(), read(5, 6, 5, "b"), wrote(1, 2, 1, 9, "b")],
            ),
            ("lost update", vec![a(), wrote(2, 6, 1, 7, "b")]),
            (
                "overwritten unseen",
                vec![wrote(1, 2, 1, 9, "b"), a(), read(1, 9, 5, "a")],
            ),
            (
                "a write before its time",
                vec![read(0, 1, 9, ""), wrote(2, 3, 1, 5, "a")],
            ),
        ];
        for (what, history) in wrong {
            assert!(check(&history).is_err(), "{what}");
        }
    }
}
