//! The bytes of one file: as they read now, and as they may be after a power cut.
//!
//! Promises: what was synced is there after every cut. Of what was not, each block of 4 KiB holds on its own any of
//! the contents it was given since, or the synced one. Changes of the file's structure (its length, holes) are kept
//! in their order: when one is lost, all later ones are, and whatever was written over them.
//!
//! Not here: names and directories.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::chance::Chance;

/// What is kept or lost as a whole, unless it is torn.
pub const BLOCK: u64 = 4096;
const SIZE: usize = 4096;
/// Blocks may be torn between sectors of this many bytes.
const SECTOR: usize = 512;
/// Contents remembered of one block. A block written more often than that forgets an older one: it can then not
/// come back, which only makes this layer kinder.
const REMEMBERED: usize = 12;

type Block = Arc<Vec<u8>>;

/// Something that happened to a block since it was synced.
#[derive(Clone, Debug)]
struct Change {
    /// What it held afterwards; `None` is a hole.
    bytes: Option<Block>,
    /// The change of structure that did it, counted from 1.
    structure: Option<usize>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Content {
    live: BTreeMap<u64, Block>,
    length: u64,
    synced: BTreeMap<u64, Block>,
    synced_length: u64,
    changes: BTreeMap<u64, Vec<Change>>,
    /// The length after each change of structure since the last sync.
    lengths: Vec<u64>,
}

impl Content {
    /// Bytes of the file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Blocks that are no holes.
    pub fn blocks(&self) -> u64 {
        self.live.len() as u64
    }

    /// Blocks that a power cut may change.
    pub fn unsynced(&self) -> usize {
        self.changes.len()
    }

    /// Reads; fewer bytes than asked for at the end of the file.
    pub fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        let end = self.length.min(offset.saturating_add(length));
        let mut bytes = Vec::new();
        for (index, part) in parts(offset, end) {
            match self.live.get(&index).and_then(|block| block.get(part.clone())) {
                Some(found) => bytes.extend_from_slice(found),
                None => bytes.resize(bytes.len() + part.len(), 0),
            }
        }
        bytes
    }

    /// Writes.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset.saturating_add(bytes.len() as u64);
        if end > self.length {
            self.length = end;
            self.lengths.push(end);
        }
        let mut rest = bytes;
        for (index, part) in parts(offset, end) {
            let (now, later) = rest.split_at(part.len());
            rest = later;
            let mut block = self.block(index);
            block.splice(part, now.iter().copied());
            self.put(index, Some(block), None);
        }
    }

    /// Changes the length.
    pub fn set_length(&mut self, length: u64) {
        if length == self.length {
            return;
        }
        let before = std::mem::replace(&mut self.length, length);
        self.lengths.push(length);
        if length < before {
            self.clear(length..before.next_multiple_of(BLOCK), false);
        }
    }

    /// Makes a range read as zeroes, without changing the length: by a hole, or by `keep`ing the space.
    pub fn zero(&mut self, range: Range<u64>, keep: bool) {
        self.lengths.push(self.length);
        self.clear(range, keep);
    }

    fn clear(&mut self, range: Range<u64>, keep: bool) {
        let structure = Some(self.lengths.len());
        for (index, part) in parts(range.start, range.end) {
            if part.len() == SIZE {
                if keep {
                    self.put(index, Some(vec![0; SIZE]), structure);
                } else if self.live.contains_key(&index) {
                    self.put(index, None, structure);
                }
            } else if self.live.contains_key(&index) {
                let mut block = self.block(index);
                let zeroes = vec![0; part.len()];
                block.splice(part, zeroes);
                self.put(index, Some(block), structure);
            }
        }
    }

    fn block(&self, index: u64) -> Vec<u8> {
        self.live
            .get(&index)
            .map_or_else(|| vec![0; SIZE], |block| block.as_ref().clone())
    }

    fn put(&mut self, index: u64, bytes: Option<Vec<u8>>, structure: Option<usize>) {
        let bytes = bytes.map(Arc::new);
        match &bytes {
            Some(block) => self.live.insert(index, Arc::clone(block)),
            None => self.live.remove(&index),
        };
        let changes = self.changes.entry(index).or_default();
        changes.push(Change { bytes, structure });
        if changes.len() > REMEMBERED {
            let oldest = changes.iter().position(|change| change.structure.is_none());
            // The last one is what the block holds now.
            if let Some(oldest) = oldest.filter(|at| at + 1 < changes.len()) {
                changes.remove(oldest);
            }
        }
    }

    /// Where data (or a hole) begins, from `offset` on; `None` beyond the end.
    pub fn seek(&self, offset: u64, hole: bool) -> Option<u64> {
        if offset >= self.length {
            return None;
        }
        let last = (self.length - 1) / BLOCK;
        let found = (offset / BLOCK..=last).find(|index| self.live.contains_key(index) != hole);
        match found {
            Some(index) => Some((index * BLOCK).max(offset)),
            // Every file ends with a hole.
            None if hole => Some(self.length),
            None => None,
        }
    }

    /// Makes everything durable.
    pub fn sync(&mut self) {
        for index in std::mem::take(&mut self.changes).into_keys() {
            match self.live.get(&index) {
                Some(block) => self.synced.insert(index, Arc::clone(block)),
                None => self.synced.remove(&index),
            };
        }
        self.synced_length = self.length;
        self.lengths.clear();
    }

    /// Makes one range durable, and the structure of the file, without which the range could not be found: what
    /// O_DSYNC does. What was written elsewhere stays in the cache.
    pub fn sync_range(&mut self, range: Range<u64>) {
        let within = range.start / BLOCK..range.end.div_ceil(BLOCK);
        for (index, changes) in std::mem::take(&mut self.changes) {
            if within.contains(&index) {
                match self.live.get(&index) {
                    Some(block) => self.synced.insert(index, Arc::clone(block)),
                    None => self.synced.remove(&index),
                };
                continue;
            }
            let structural = changes.iter().rposition(|change| change.structure.is_some());
            let mut later = changes.into_iter();
            if let Some(change) = structural.and_then(|at| later.nth(at)) {
                match change.bytes {
                    Some(block) => self.synced.insert(index, block),
                    None => self.synced.remove(&index),
                };
            }
            let later: Vec<Change> = later.collect();
            if !later.is_empty() {
                self.changes.insert(index, later);
            }
        }
        self.synced_length = self.length;
        self.lengths.clear();
    }

    /// The power goes, and comes back. Returns how many blocks lost something.
    pub fn cut(&mut self, chance: &mut Chance, tear: bool) -> usize {
        let kept = chance.prefix(self.lengths.len());
        let length = match kept.checked_sub(1).and_then(|last| self.lengths.get(last)) {
            Some(length) => *length,
            None => self.synced_length,
        };
        let mut lost = 0;
        for (index, changes) in std::mem::take(&mut self.changes) {
            let mut found = self.synced.get(&index).cloned();
            for change in changes {
                match change.structure {
                    Some(number) if number > kept => break,
                    Some(_) => found = change.bytes,
                    None if chance.kept() => {
                        found = match (change.bytes, tear && chance.torn()) {
                            (Some(new), true) => Some(Arc::new(torn(found.as_deref(), &new, chance))),
                            (new, _) => new,
                        };
                    }
                    None => {}
                }
            }
            let now = self.live.get(&index);
            lost += usize::from(now.map(Arc::as_ref) != found.as_deref());
            match found {
                Some(block) => self.synced.insert(index, block),
                None => self.synced.remove(&index),
            };
        }
        // What lies beyond the end is not there, also when the file grows again.
        let end = length.div_ceil(BLOCK);
        self.synced.retain(|index, _| *index < end);
        let tail = usize::try_from(length % BLOCK).unwrap_or(0);
        if tail > 0
            && let Some(block) = self.synced.get_mut(&(end - 1))
        {
            Arc::make_mut(block)
                .iter_mut()
                .skip(tail)
                .for_each(|byte| *byte = 0);
        }
        self.live.clone_from(&self.synced);
        self.lengths.clear();
        self.length = length;
        self.synced_length = length;
        lost
    }
}

/// Some sectors of the new content, the others of the old.
fn torn(old: Option<&Vec<u8>>, new: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut block = old.cloned().unwrap_or_else(|| vec![0; SIZE]);
    for (to, from) in block.chunks_mut(SECTOR).zip(new.chunks(SECTOR)) {
        if chance.coin() {
            to.copy_from_slice(from);
        }
    }
    block
}

/// The blocks of a range of bytes, and the part of each that is in the range.
fn parts(start: u64, end: u64) -> impl Iterator<Item = (u64, Range<usize>)> {
    let blocks = if start < end {
        start / BLOCK..end.div_ceil(BLOCK)
    } else {
        0..0
    };
    blocks.map(move |index| {
        let from = start.saturating_sub(index * BLOCK);
        let to = (end - index * BLOCK).min(BLOCK);
        let fit = |at: u64| usize::try_from(at).unwrap_or(SIZE).min(SIZE);
        (index, fit(from)..fit(to))
    })
}

#[cfg(test)]
#[path = "content_tests.rs"]
mod tests;
