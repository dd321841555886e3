//! What a volume must hold, kept outside of it: for every slot the last acknowledged write, and the writes
//! since then whose fate is not known.

use anyhow::{Context as _, ensure};

use crate::block::{self, BLOCK};

/// What is known of one slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Slot {
    /// The last number that was given to a write.
    last: u64,
    /// The last write that was acknowledged, or seen by a read.
    known: u64,
    /// Sent after it, never answered: each may be there or not.
    unknown: Vec<u64>,
}

/// What a range of slots must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    first: u64,
    slots: Vec<Slot>,
}

impl History {
    /// A range of slots never written.
    pub fn new(first: u64, slots: usize) -> Self {
        Self {
            first,
            slots: vec![Slot::default(); slots],
        }
    }

    /// Numbers of the slots.
    pub fn slots(&self) -> std::ops::Range<u64> {
        self.first..self.first + self.slots.len() as u64
    }

    /// Splits it into `parts` ranges of its slots.
    pub fn split(self, parts: usize) -> Vec<Self> {
        let each = self.slots.len().div_ceil(parts.max(1)).max(1);
        let mut first = self.first;
        let mut ranges = Vec::new();
        for slots in self.slots.chunks(each) {
            ranges.push(Self {
                first,
                slots: slots.to_vec(),
            });
            first += slots.len() as u64;
        }
        ranges
    }

    /// The reverse of [`History::split`].
    pub fn join(parts: Vec<Self>) -> Self {
        let mut joined = Self::new(parts.first().map_or(0, |part| part.first), 0);
        for part in parts {
            joined.slots.extend(part.slots);
        }
        joined
    }

    fn slot(&mut self, slot: u64) -> anyhow::Result<&mut Slot> {
        let index = usize::try_from(slot - self.first)?;
        self.slots
            .get_mut(index)
            .with_context(|| format!("slot {slot} is none of this history's"))
    }

    /// The number of the next write to a slot, which counts as sent.
    pub fn send(&mut self, slot: u64) -> anyhow::Result<u64> {
        let state = self.slot(slot)?;
        state.last += 1;
        state.unknown.push(state.last);
        Ok(state.last)
    }

    /// The write was acknowledged.
    pub fn acknowledged(&mut self, slot: u64, number: u64) -> anyhow::Result<()> {
        let state = self.slot(slot)?;
        state.known = number;
        state.unknown.clear();
        Ok(())
    }

    /// A read that began after everything that is known of the slot showed this block. What was once seen has
    /// to stay.
    pub fn seen(&mut self, slot: u64, bytes: &[u8]) -> anyhow::Result<()> {
        let number = block::number(slot, bytes)?;
        let state = self.slot(slot)?;
        ensure!(
            number == state.known || state.unknown.contains(&number),
            "slot {slot} holds write {number}, but write {} was acknowledged or seen{}",
            state.known,
            match state.unknown.as_slice() {
                [] => String::new(),
                some => format!(" (fate not known of {some:?})"),
            }
        );
        state.known = number;
        state.unknown.clear();
        Ok(())
    }

    /// Reads every slot and checks it. Tells how many were ever written.
    pub fn check(
        &mut self,
        mut read: impl FnMut(u64, &mut [u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<usize> {
        // Several blocks in one read: thousands of round trips would be most of a test's time.
        const AT_ONCE: u64 = 64;
        let range = self.slots();
        let mut wrong = Vec::new();
        let mut first = range.start;
        while first < range.end {
            let count = AT_ONCE.min(range.end - first);
            let mut bytes = vec![0; usize::try_from(count)? * BLOCK];
            read(first * BLOCK as u64, &mut bytes).with_context(|| format!("reading slot {first}"))?;
            for (slot, bytes) in (first..).zip(bytes.chunks(BLOCK)) {
                if let Err(error) = self.seen(slot, bytes) {
                    wrong.push(error.to_string());
                }
            }
            first += count;
        }
        ensure!(
            wrong.is_empty(),
            "{} of {} slots are wrong:\n{}",
            wrong.len(),
            self.slots.len(),
            wrong.into_iter().take(20).collect::<Vec<_>>().join("\n")
        );
        Ok(self.slots.iter().filter(|slot| slot.known > 0).count())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn acknowledged_writes_must_be_there_and_unknown_ones_may() {
        let mut history = History::new(4, 2);
        let one = history.send(5).unwrap();
        history.acknowledged(5, one).unwrap();
        let two = history.send(5).unwrap();
        let mut other = history.clone();

        other.seen(5, &block::fill(5, one)).unwrap();
        assert!(
            other.seen(5, &block::fill(5, two)).is_err(),
            "what was not there when it was read may not appear later"
        );
        history.seen(5, &block::fill(5, two)).unwrap();
        assert!(
            history.seen(5, &block::fill(5, one)).is_err(),
            "what was seen has to stay"
        );
        assert!(history.seen(5, &[0; BLOCK]).is_err());
        history.seen(4, &[0; BLOCK]).unwrap();
        assert!(history.seen(4, &block::fill(4, 1)).is_err(), "never sent");
    }

    #[test]
    fn split_and_join_are_each_other_s_reverse() {
        let mut history = History::new(3, 10);
        for slot in [3, 7, 7, 12] {
            history.send(slot).unwrap();
        }
        let parts = history.clone().split(4);
        assert_eq!(parts.len(), 4);
        assert_eq!(History::join(parts), history);
    }
}
