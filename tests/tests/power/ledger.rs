//! What each block of a volume may hold, and what it may hold after all power was lost.
//!
//! Of every block, the values written since the last that must be durable are kept in their order. While the volume
//! lives, a read shows the last acknowledged one, or a later one that was never answered; a value that was seen
//! stays. After a cut of everything any value from the durable one on may be there, but never an older one.

use anyhow::{Context as _, ensure};
use stor_tests::block::{self, BLOCK};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Answered, or seen by a read.
    Known,
    /// Sent, never answered: there or not.
    Unknown,
    /// Never answered, and a read showed that it was not there. A disk that is no longer asked may have it still.
    Refuted,
}

#[derive(Clone, Copy, Debug)]
struct Value {
    /// Of the write; 0 for zeroes.
    number: u64,
    fate: Fate,
}

#[derive(Clone, Debug)]
struct Slot {
    /// The first is durable. In the order written.
    values: Vec<Value>,
    /// Index of the value that a read shows, if nothing unknown took its place.
    shown: usize,
    /// The last number given to a write.
    last: u64,
}

impl Default for Slot {
    fn default() -> Self {
        let value = Value {
            number: 0,
            fate: Fate::Known,
        };
        Self {
            values: vec![value],
            shown: 0,
            last: 0,
        }
    }
}

impl Slot {
    fn send(&mut self, zeroes: bool) -> u64 {
        self.last += 1;
        let number = if zeroes { 0 } else { self.last };
        self.values.push(Value {
            number,
            fate: Fate::Unknown,
        });
        number
    }

    /// The write sent last was answered.
    fn answered(&mut self, durable: bool) {
        self.shown = self.values.len() - 1;
        if let Some(value) = self.values.last_mut() {
            value.fate = Fate::Known;
        }
        if durable {
            self.values.drain(..self.shown);
            self.shown = 0;
        }
    }

    /// All that is shown is durable.
    fn flushed(&mut self) {
        self.values.drain(..self.shown);
        self.shown = 0;
        self.values.retain(|value| value.fate != Fate::Refuted);
    }

    /// What a read showed, after a cut of everything or not.
    fn seen(&mut self, number: u64, cut: bool) -> Result<(), String> {
        let from = if cut { 0 } else { self.shown };
        let allowed = |(at, value): (usize, &Value)| {
            let may = cut || at == self.shown || value.fate == Fate::Unknown;
            (at >= from && may && value.number == number).then_some(at)
        };
        // The last of equal ones: zeroes may have been written more than once.
        let Some(found) = self.values.iter().enumerate().rev().find_map(allowed) else {
            return Err(format!(
                "write {number} is there, {}of {:?}{}",
                if cut {
                    "after a cut, instead of one "
                } else {
                    "instead of a later one "
                },
                self.values,
                format_args!(" (a read shows number {} of these)", self.shown),
            ));
        };
        self.shown = found;
        for (at, value) in self.values.iter_mut().enumerate() {
            match value.fate {
                Fate::Unknown if at == found => value.fate = Fate::Known,
                // Later ones that were answered are gone with a cut; like those that were not, some disk may have
                // them still.
                Fate::Unknown | Fate::Known if at > found => value.fate = Fate::Refuted,
                _ => {}
            }
        }
        Ok(())
    }
}

/// A range of blocks.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    first: u64,
    slots: Vec<Slot>,
}

impl Ledger {
    /// Blocks never written.
    pub(crate) fn new(first: u64, slots: usize) -> Self {
        Self {
            first,
            slots: vec![Slot::default(); slots],
        }
    }

    /// The blocks.
    pub(crate) fn slots(&self) -> std::ops::Range<u64> {
        self.first..self.first + self.slots.len() as u64
    }

    fn some(&mut self, first: u64, count: usize) -> anyhow::Result<&mut [Slot]> {
        let at = usize::try_from(first - self.first)?;
        self.slots
            .get_mut(at..at + count)
            .with_context(|| format!("blocks {first}+{count} are none of this ledger's"))
    }

    /// Bytes for a write of some blocks, which counts as sent.
    pub(crate) fn send(&mut self, first: u64, count: usize) -> anyhow::Result<Vec<u8>> {
        let slots = (first..).zip(self.some(first, count)?);
        Ok(slots
            .flat_map(|(slot, state)| block::fill(slot, state.send(false)))
            .collect())
    }

    /// Zeroes for some blocks, which count as sent.
    pub(crate) fn send_zeroes(&mut self, first: u64, count: usize) -> anyhow::Result<()> {
        for slot in self.some(first, count)? {
            slot.send(true);
        }
        Ok(())
    }

    /// What was sent last was answered; `durable`: as one that is on stable storage.
    pub(crate) fn answered(&mut self, first: u64, count: usize, durable: bool) -> anyhow::Result<()> {
        for slot in self.some(first, count)? {
            slot.answered(durable);
        }
        Ok(())
    }

    /// A flush that began after the last answer was answered.
    pub(crate) fn flushed(&mut self) {
        self.slots.iter_mut().for_each(Slot::flushed);
    }

    /// What a read of some blocks showed.
    pub(crate) fn seen(&mut self, first: u64, bytes: &[u8], cut: bool) -> anyhow::Result<()> {
        let slots = self.some(first, bytes.len() / BLOCK)?;
        let mut wrong = Vec::new();
        for ((slot, state), bytes) in (first..).zip(slots).zip(bytes.chunks(BLOCK)) {
            let seen = block::number(slot, bytes).map_err(|error| error.to_string());
            if let Err(error) = seen.and_then(|number| state.seen(number, cut)) {
                wrong.push(format!("block {slot}: {error}"));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }

    /// Reads all blocks.
    pub(crate) fn check(
        &mut self,
        cut: bool,
        mut read: impl FnMut(u64, &mut [u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        const AT_ONCE: u64 = 64;
        let mut wrong = Vec::new();
        let range = self.slots();
        for first in range.clone().step_by(64) {
            let count = AT_ONCE.min(range.end - first);
            let mut bytes = vec![0; usize::try_from(count)? * BLOCK];
            read(first * BLOCK as u64, &mut bytes).with_context(|| format!("reading block {first}"))?;
            if let Err(error) = self.seen(first, &bytes, cut) {
                wrong.push(error.to_string());
            }
        }
        ensure!(
            wrong.is_empty(),
            "a violation of what is promised:\n{}",
            wrong.join("\n")
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What blocks a ledger would accept, of the writes 0 to 5.
    fn accepted(ledger: &Ledger, cut: bool) -> Vec<u64> {
        let accepts = |number: &u64| {
            let bytes = if *number == 0 {
                vec![0; BLOCK]
            } else {
                block::fill(3, *number)
            };
            ledger.clone().seen(3, &bytes, cut).is_ok()
        };
        (0..=5).filter(accepts).collect()
    }

    fn write(ledger: &mut Ledger, answered: bool) {
        ledger.send(3, 1).unwrap();
        if answered {
            ledger.answered(3, 1, false).unwrap();
        }
    }

    #[test]
    fn acknowledged_stays_and_only_a_cut_may_take_what_was_not_flushed() {
        let mut ledger = Ledger::new(3, 1);
        write(&mut ledger, true);
        write(&mut ledger, true);
        assert_eq!(accepted(&ledger, false), [2]);
        assert_eq!(accepted(&ledger, true), [0, 1, 2]);
        ledger.flushed();
        assert_eq!(accepted(&ledger, true), [2]);
        write(&mut ledger, true);
        write(&mut ledger, false);
        assert_eq!(accepted(&ledger, false), [3, 4]);
        assert_eq!(accepted(&ledger, true), [2, 3, 4]);
    }

    #[test]
    fn what_was_seen_stays_until_a_cut() {
        let mut ledger = Ledger::new(3, 1);
        write(&mut ledger, true);
        write(&mut ledger, false);
        ledger.seen(3, &block::fill(3, 1), false).unwrap();
        assert_eq!(accepted(&ledger, false), [1], "the second was not there");
        assert_eq!(accepted(&ledger, true), [0, 1, 2]);
        ledger.flushed();
        assert_eq!(accepted(&ledger, true), [1]);
        write(&mut ledger, true);
        write(&mut ledger, true);
        ledger.seen(3, &block::fill(3, 3), true).unwrap();
        assert_eq!(
            accepted(&ledger, false),
            [3],
            "after the cut a read does not go back or forth"
        );
        ledger.flushed();
        assert_eq!(accepted(&ledger, true), [3]);
    }

    #[test]
    fn what_is_durable_by_itself_and_zeroes_count() {
        let mut ledger = Ledger::new(3, 1);
        write(&mut ledger, true);
        ledger.send(3, 1).unwrap();
        ledger.answered(3, 1, true).unwrap();
        assert_eq!(accepted(&ledger, true), [2]);
        ledger.send_zeroes(3, 1).unwrap();
        ledger.answered(3, 1, false).unwrap();
        assert_eq!(accepted(&ledger, false), [0]);
        assert_eq!(accepted(&ledger, true), [0, 2]);
        ledger.flushed();
        assert_eq!(accepted(&ledger, true), [0]);
    }
}
