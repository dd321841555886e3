//! What each 4 KiB block may read as, whatever engines, replicas and machines went through.
//!
//! Every write has a value of its own, so a block is a register with unique values, and its history is
//! linearizable exactly if no two values are each other's predecessor: value `u` precedes `v` if some
//! operation on `u` ended before some operation on `v` began (Gibbons and Korach). An operation is a write
//! of the value or a read that returned it. Hence "reads never go back" and "an acknowledged write is
//! there" are one check.
//!
//! A write whose engine was superseded before it was answered took effect before that moment or never will.
//! After every in-sync member lost its volatile cache, and for a new guest only, what was not flushed is
//! open again.

use std::collections::BTreeMap;

pub(crate) const OPEN: u64 = u64::MAX;

#[derive(Clone, Debug)]
struct Value {
    /// Number of the write; zero for what the volume began with.
    write: u64,
    /// What the block reads as.
    content: u64,
    begun: u64,
    /// Earliest end of an operation on it.
    first_end: u64,
    /// Latest begin of an operation on it.
    last_begin: u64,
    /// From here on it can't take effect any more, if it has not.
    closed: u64,
    /// When it was answered by an engine that no replica had been told to refuse.
    answered: u64,
    /// Survives the loss of every cache.
    flushed: bool,
    /// Latest end of an operation on it, and the latest begin of those a flush covered: what was read after
    /// the last flush may be gone, and an older unflushed write with it be back.
    last_end: u64,
    durable_begin: u64,
    /// Sent under an epoch that had been superseded.
    never: bool,
}

impl Value {
    fn precedes(&self, other: &Self) -> bool {
        self.first_end < other.last_begin
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Oracle {
    blocks: BTreeMap<u64, Vec<Value>>,
    /// Blocks a write touches.
    writes: BTreeMap<u64, Vec<u64>>,
}

impl Oracle {
    fn block(&mut self, block: u64) -> &mut Vec<Value> {
        self.blocks.entry(block).or_insert_with(|| {
            vec![Value {
                write: 0,
                content: 0,
                begun: 0,
                first_end: 0,
                last_begin: 0,
                closed: OPEN,
                flushed: true,
                last_end: 0,
                durable_begin: 0,
                answered: OPEN,
                never: false,
            }]
        })
    }

    pub(crate) fn write_begins(
        &mut self,
        at: u64,
        write: u64,
        content: u64,
        blocks: std::ops::Range<u64>,
        never: bool,
    ) {
        for block in blocks.clone() {
            self.block(block).push(Value {
                write,
                content,
                begun: at,
                first_end: OPEN,
                last_begin: at,
                closed: OPEN,
                flushed: false,
                last_end: 0,
                durable_begin: at,
                answered: OPEN,
                never,
            });
        }
        self.writes.insert(write, blocks.collect());
    }

    /// `counts`: by an engine that no replica had been told to refuse.
    pub(crate) fn write_ends(&mut self, at: u64, write: u64, fua: bool, counts: bool) {
        for block in self.writes.remove(&write).unwrap_or_default() {
            for value in self.block(block).iter_mut().filter(|value| value.write == write) {
                value.first_end = value.first_end.min(at.min(value.closed.max(value.begun)));
                value.flushed |= fua;
                if counts {
                    value.answered = at;
                }
                value.last_end = value.last_end.max(at);
            }
        }
    }

    /// The engine a write was given to is superseded: it has taken effect or never will.
    pub(crate) fn close(&mut self, at: u64, write: u64) {
        for block in self.writes.get(&write).cloned().unwrap_or_default() {
            for value in self.block(block).iter_mut().filter(|value| value.write == write) {
                value.closed = value.closed.min(at);
            }
        }
    }

    /// A read that began at `begun` and ends at `at` returned `content`.
    pub(crate) fn read(&mut self, begun: u64, at: u64, block: u64, content: u64) -> Result<(), String> {
        // Nobody wrote that: it rotted.
        if content & super::scrubs::ROT != 0 {
            return Ok(());
        }
        let values = self.block(block);
        let mut fit = Vec::new();
        let mut wrong = Vec::new();
        for index in 0..values.len() {
            if values[index].content != content {
                continue;
            }
            let mut read = values[index].clone();
            read.first_end = read.first_end.min(read.closed.max(read.begun)).min(at);
            read.last_begin = read.last_begin.max(begun);
            read.last_end = read.last_end.max(at);
            let conflict = values
                .iter()
                .enumerate()
                .find(|(at, other)| *at != index && read.precedes(other) && other.precedes(&read));
            match conflict {
                _ if read.never => wrong.push(format!("{read:?} was sent under a superseded epoch")),
                Some((_, other)) => wrong.push(format!("{read:?} against {other:?}")),
                None => fit.push((index, read)),
            }
        }
        match fit.as_mut_slice() {
            [] if wrong.is_empty() => Err(format!(
                "block {block} read as {content} by a read begun at {begun}: long gone or never written; known: {values:?}"
            )),
            [] => Err(format!(
                "block {block} read as {content} by a read begun at {begun}, ended at {at}: {}",
                wrong.join("; ")
            )),
            [(index, read)] => {
                values[*index] = read.clone();
                Ok(())
            }
            // Several writes of zeroes could be meant: nothing follows.
            _ => Ok(()),
        }
    }

    /// A flush that began at `begun` was answered. Operations begun before `oldest` have all ended.
    pub(crate) fn flushed(&mut self, begun: u64, oldest: u64) {
        for values in self.blocks.values_mut() {
            for value in values.iter_mut() {
                value.flushed |= value.first_end < begun;
                if value.last_end < begun {
                    value.durable_begin = value.last_begin;
                }
            }
            if values.len() > 8 {
                Self::forget_old(values, oldest);
            }
        }
    }

    /// Values that a flushed one superseded before any operation still under way began.
    fn forget_old(values: &mut Vec<Value>, oldest: u64) {
        let bases: Vec<Value> = values
            .iter()
            .filter(|value| value.flushed && value.first_end < oldest)
            .cloned()
            .collect();
        values.retain(|value| {
            !bases
                .iter()
                .any(|base| base.write != value.write && value.precedes(base) && !base.precedes(value))
        });
    }

    /// A guest that began at `since` lives after every member had lost its cache at `lost` or later: of what was begun before,
    /// only what was flushed, what was answered after `until`, or what that guest has read, is certain.
    pub(crate) fn caches_lost(&mut self, (lost, until): (u64, u64), since: u64, at: u64, oldest: u64) {
        let gone = |value: &Value| {
            let answered = value.answered != OPEN && value.answered > until;
            value.begun < lost && value.last_begin < since && !answered
        };
        for values in self.blocks.values_mut() {
            for value in values.iter_mut().filter(|value| value.flushed && gone(value)) {
                value.last_begin = value.durable_begin;
            }
            Self::forget_old(values, oldest);
            for value in values.iter_mut().filter(|value| !value.flushed && gone(value)) {
                value.first_end = OPEN;
                value.last_begin = value.begun;
                // Not answered, nor closed with its engine: it waits in an engine that has not served yet.
                if !self.writes.contains_key(&value.write) {
                    value.closed = value.closed.min(at);
                }
            }
        }
    }
}
