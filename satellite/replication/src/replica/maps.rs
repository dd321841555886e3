//! The maps a replica keeps and their way to the disk: which regions are dirty, which blocks each absent
//! replica has missed.
//!
//! Pages are stored in batches, one at a time: whatever changed while a batch was under way goes into
//! the next (group commit). Bits are *raised* at once and *lowered* lazily, out-of-sync pages first: a
//! dirty bit leaves the disk only after what the absent ones missed there is durable (R10).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use thiserror::Error;

use super::StoredPage;
use crate::bitmap::Bitmap;
use crate::disk::{
    BITS, BODY, Copy, FormatError, PAGE, PageId, Superblock, WORDS, decode_copy, decode_superblock,
    encode_page, newest,
};
use crate::ids::{ConfigSeq, ReplicaId, VolumeId};
use crate::info::Roster;
use crate::range::{BLOCK, ByteRange, REGION};
use crate::time::Time;

/// Lowered bits wait this long for more of them: a page write every second is nothing, one per flush is
/// a third of a flush.
const LOWER_DELAY: Duration = Duration::from_secs(1);

/// [`WORDS`] as a count of words in memory.
const PAGE_WORDS: usize = BODY / 8;

/// Pause after pages could not be stored: a full pool is not asked in a tight loop.
const HOLD: Duration = Duration::from_secs(1);

/// Why a replica can't be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum LoadError<E> {
    /// The metadata file can't be read.
    #[error("reading the metadata: {0}")]
    Read(E),
    /// What it holds can't be used.
    #[error(transparent)]
    Format(#[from] FormatError),
}

#[derive(Debug)]
struct AbsentMap {
    blocks: Bitmap,
    /// Pages that differ from the disk's.
    touched: BTreeSet<u64>,
}

#[derive(Debug)]
struct Batch {
    generation: u64,
    pages: BTreeSet<PageId>,
    /// First word and words of dirty pages as written: durable once the batch is.
    dirty: Vec<(u64, Vec<u8>)>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Maps {
    dirty: Bitmap,
    /// Dirty bits that are on the disk for certain.
    durable: Bitmap,
    /// Regions the engine declared clean, not yet lowered.
    clean: BTreeSet<u64>,
    lower_at: Option<Time>,
    /// Regions whose out-of-sync pages are in the batch under way: lowered by the next one, if still clean.
    lowering: Option<BTreeSet<u64>>,
    /// After a failed batch, none is begun before this.
    hold_until: Option<Time>,
    absent: Vec<Option<AbsentMap>>,
    /// Pages to be stored with the next batch.
    raise: BTreeSet<PageId>,
    seqs: BTreeMap<PageId, u64>,
    generation: u64,
    stored: u64,
    batch: Option<Batch>,
    /// The superblock was stored in one copy and is due in the other.
    second: bool,
    /// The disk takes no more pages.
    given_up: bool,
}

impl Maps {
    /// Reads superblock and maps.
    pub(super) fn load<E>(
        volume: VolumeId,
        id: ReplicaId,
        read: &mut dyn FnMut(u64, usize) -> Result<Vec<u8>, E>,
    ) -> Result<(Superblock, Self), LoadError<E>> {
        let mut copies = |page: PageId| -> Result<(Vec<u8>, Vec<u8>), LoadError<E>> {
            let mut both = read(page.offset(false), 2 * PAGE).map_err(LoadError::Read)?;
            both.resize(2 * PAGE, 0);
            let second = both.split_off(PAGE);
            Ok((both, second))
        };
        let (a, b) = copies(PageId::Superblock)?;
        let (seq, superblock) = decode_superblock(&a, &b, volume, id)?;
        let mut seqs = BTreeMap::from([(PageId::Superblock, seq)]);
        let mut map = |bits: u64, page: &dyn Fn(u64) -> PageId| -> Result<Bitmap, LoadError<E>> {
            let mut bitmap = Bitmap::new(bits);
            for index in 0..bits.div_ceil(BITS) {
                let id_of_page = page(index);
                let (a, b) = copies(id_of_page)?;
                let a = decode_copy(&a, id_of_page, volume, id);
                let b = decode_copy(&b, id_of_page, volume, id);
                //= docs/replication.md#R11
                // Beside a damaged copy the good one may be the older: the damage may have come later.
                if (a == Copy::Bad || b == Copy::Bad) && !defect!(DamagedIsClean) {
                    bitmap.set_range(index * BITS..((index + 1) * BITS).min(bits));
                }
                match newest(a, b) {
                    Copy::Good { seq, body } => {
                        seqs.insert(id_of_page, seq);
                        bitmap.or_bytes(index * WORDS, body);
                    }
                    Copy::Blank | Copy::Bad => {}
                    Copy::Newer(version) => return Err(FormatError::Newer(version).into()),
                }
            }
            Ok(bitmap)
        };
        let dirty = map(superblock.size.div_ceil(REGION), &PageId::Dirty)?;
        let blocks = superblock.size.div_ceil(BLOCK);
        let mut absent = Vec::new();
        for (slot, used) in superblock.maps.iter().enumerate() {
            let slot = u8::try_from(slot).unwrap_or(u8::MAX);
            if used.is_none() {
                absent.push(None);
                continue;
            }
            let mut bits = map(blocks, &|index| PageId::OutOfSync(slot, index))?;
            //= docs/replication.md#R10
            if !defect!(MapWithoutDirty) {
                bits.or(&dirty.regions_to_blocks(blocks));
            }
            let touched = (0..blocks.div_ceil(BITS)).collect();
            absent.push(Some(AbsentMap {
                blocks: bits,
                touched,
            }));
        }
        let maps = Self {
            durable: dirty.clone(),
            dirty,
            clean: BTreeSet::new(),
            lower_at: None,
            lowering: None,
            hold_until: None,
            absent,
            raise: BTreeSet::new(),
            seqs,
            generation: 0,
            stored: 0,
            batch: None,
            second: false,
            given_up: false,
        };
        Ok((superblock, maps))
    }

    pub(super) fn dirty_count(&self) -> u64 {
        self.dirty.count()
    }

    pub(super) fn is_storing(&self) -> bool {
        self.batch.is_some()
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        let hold = self.hold_until.filter(|_| !self.raise.is_empty());
        // Nothing is stored while it holds: to be woken for it would be to be woken again and again.
        let lower = self
            .lower_at
            .max(self.hold_until.filter(|_| self.lower_at.is_some()));
        [hold, lower]
            .into_iter()
            .flatten()
            .min()
            .filter(|_| self.batch.is_none() && !self.given_up)
    }

    /// Number of the present state; [`Maps::stored`] says whether a batch that holds it is durable.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn stored(&self, generation: u64) -> bool {
        self.stored >= generation
    }

    pub(super) fn touch_superblock(&mut self) {
        self.touch(PageId::Superblock);
    }

    fn touch(&mut self, page: PageId) {
        self.raise.insert(page);
        self.generation += 1;
    }

    /// A write of `range` is about to happen. Says whether its dirty bits are durable, so that it may
    /// go to the disk; otherwise the next batch makes them so.
    //= docs/replication.md#R7
    pub(super) fn note_write(&mut self, range: ByteRange) -> bool {
        //= docs/replication.md#R10
        for map in self.absent.iter_mut().flatten().filter(|_| !defect!(MapStays)) {
            for block in range.blocks() {
                if map.blocks.set(block) {
                    map.touched.insert(block / BITS);
                }
            }
        }
        for region in range.regions() {
            if !defect!(LowerWritten) {
                self.clean.remove(&region);
            }
            // What it missed since the batch under way was composed is not in that batch.
            if let Some(lowering) = &mut self.lowering {
                lowering.remove(&region);
            }
            self.dirty.set(region);
            if !self.durable.get(region) {
                self.touch(PageId::Dirty(region / BITS));
            }
        }
        self.is_durable(range)
    }

    pub(super) fn is_durable(&self, range: ByteRange) -> bool {
        self.durable.all(range.regions())
    }

    /// The engine says a region is equal and durable everywhere; its bit goes with a later batch.
    pub(super) fn note_clean(&mut self, now: Time, region: u64) {
        if self.dirty.get(region) {
            self.clean.insert(region);
            self.lower_at.get_or_insert(now + LOWER_DELAY);
        }
    }

    /// Starts and ends out-of-sync maps as the roster says, before the superblock takes it over.
    //= docs/replication.md#R10
    pub(super) fn adopt_roster(&mut self, superblock: &mut Superblock, roster: &Roster) {
        for slot in 0..superblock.maps.len() {
            let kept = superblock
                .maps
                .get(slot)
                .copied()
                .flatten()
                .is_some_and(|entry| roster.absent.contains(&entry));
            if !kept {
                self.drop_slot(superblock, slot);
            }
        }
        let left = superblock.in_sync.clone();
        for (replica, since) in &roster.absent {
            if left.contains(replica) && !roster.in_sync.contains(replica) {
                let mut dirty = self.dirty.regions_to_blocks(Self::blocks(superblock));
                if defect!(MapBeginsEmpty) {
                    dirty = Bitmap::new(dirty.len());
                }
                self.begin_map(superblock, *replica, *since, &dirty);
            }
        }
    }

    /// ORs `blocks` into the map of `replica`, which begins at `since`; makes it if there is none. Without
    /// a free slot there is no map, which means a full copy later.
    pub(super) fn begin_map(
        &mut self,
        superblock: &mut Superblock,
        replica: ReplicaId,
        since: ConfigSeq,
        blocks: &Bitmap,
    ) {
        let held = superblock
            .maps
            .iter()
            .position(|entry| entry.is_some_and(|(of, _)| of == replica));
        if let Some(slot) = held
            && superblock.maps.get(slot).copied().flatten() != Some((replica, since))
        {
            self.drop_slot(superblock, slot);
        }
        let slot = held.or_else(|| superblock.maps.iter().position(Option::is_none));
        let Some(slot) = slot else { return };
        let total = Self::blocks(superblock);
        let (Some(entry), Some(place)) = (superblock.maps.get_mut(slot), self.absent.get_mut(slot)) else {
            return;
        };
        *entry = Some((replica, since));
        let map = place.get_or_insert_with(|| AbsentMap {
            blocks: Bitmap::new(total),
            // The slot's pages may hold an older map: all of them are written anew.
            touched: (0..total.div_ceil(BITS)).collect(),
        });
        map.blocks.or(blocks);
        map.touched.extend(blocks.iter().map(|block| block / BITS));
        let pages: Vec<u64> = map.touched.iter().copied().collect();
        let slot = u8::try_from(slot).unwrap_or(u8::MAX);
        for page in pages {
            self.touch(PageId::OutOfSync(slot, page));
        }
        self.touch_superblock();
    }

    pub(super) fn drop_slot(&mut self, superblock: &mut Superblock, slot: usize) {
        if let (Some(entry), Some(map)) = (superblock.maps.get_mut(slot), self.absent.get_mut(slot))
            && (entry.take().is_some() | map.take().is_some())
        {
            self.touch_superblock();
        }
    }

    /// The replica has become larger. Nothing of the new part is dirty here; whether an absent one has it, nobody knows.
    pub(super) fn grow(&mut self, superblock: &Superblock) {
        let regions = superblock.size.div_ceil(REGION);
        self.dirty.grow(regions, false);
        self.durable.grow(regions, false);
        let blocks = Self::blocks(superblock);
        let mut pages = Vec::new();
        for (slot, map) in self.absent.iter_mut().enumerate() {
            let Some(map) = map else { continue };
            let first = map.blocks.len();
            map.blocks.grow(blocks, !defect!(GrownIsClean));
            let slot = u8::try_from(slot).unwrap_or(u8::MAX);
            pages.extend((first / BITS..blocks.div_ceil(BITS)).map(|page| PageId::OutOfSync(slot, page)));
        }
        for page in pages {
            self.touch(page);
        }
        self.touch_superblock();
    }

    /// The map kept for `replica`.
    pub(super) fn map_of(&self, superblock: &Superblock, replica: ReplicaId) -> Option<&Bitmap> {
        let slot = superblock
            .maps
            .iter()
            .position(|entry| entry.is_some_and(|(of, _)| of == replica))?;
        self.absent.get(slot)?.as_ref().map(|map| &map.blocks)
    }

    pub(super) fn dirty(&self) -> &Bitmap {
        &self.dirty
    }

    /// Blocks of the map of `replica` were copied to it. Stored lazily: to copy again is safe.
    pub(super) fn clear_blocks(
        &mut self,
        superblock: &Superblock,
        replica: ReplicaId,
        first: u64,
        count: u64,
    ) {
        let slot = superblock
            .maps
            .iter()
            .position(|entry| entry.is_some_and(|(of, _)| of == replica));
        let Some(map) = slot
            .and_then(|slot| self.absent.get_mut(slot))
            .and_then(Option::as_mut)
        else {
            return;
        };
        let end = first.saturating_add(count).min(map.blocks.len());
        for block in first..end {
            if map.blocks.clear(block) {
                map.touched.insert(block / BITS);
            }
        }
    }

    pub(super) fn blocks(superblock: &Superblock) -> u64 {
        superblock.size.div_ceil(BLOCK)
    }

    /// The pages of the next batch, unless one is under way or there is nothing to store.
    pub(super) fn compose(
        &mut self,
        now: Time,
        volume: VolumeId,
        id: ReplicaId,
        superblock: &Superblock,
    ) -> Option<Vec<StoredPage>> {
        if self.batch.is_some() || self.given_up {
            return None;
        }
        if self.hold_until.is_some_and(|until| now < until) {
            return None;
        }
        self.hold_until = None;
        let mut pages = std::mem::take(&mut self.raise);
        if pages.is_empty() && self.lower_at.is_some_and(|at| at <= now) {
            pages = self.lower();
        }
        if pages.is_empty() {
            return None;
        }
        let mut batch = Batch {
            generation: self.generation,
            pages: pages.clone(),
            dirty: Vec::new(),
        };
        let mut stored = Vec::new();
        for page in pages {
            let seq = self.seqs.get(&page).map_or(0, |seq| seq + 1);
            let body = match page {
                PageId::Superblock => superblock.encode(),
                PageId::Dirty(index) => {
                    let words = self.dirty.bytes(index * WORDS, PAGE_WORDS);
                    batch.dirty.push((index * WORDS, words.clone()));
                    words
                }
                PageId::OutOfSync(slot, index) => {
                    let map = self.absent.get_mut(usize::from(slot)).and_then(Option::as_mut);
                    let Some(map) = map else { continue };
                    map.touched.remove(&index);
                    map.blocks.bytes(index * WORDS, PAGE_WORDS)
                }
            };
            self.seqs.insert(page, seq);
            let offset = page.offset(seq % 2 == 1);
            stored.push(StoredPage {
                id: page,
                offset,
                page: encode_page(page, volume, id, seq, &body),
            });
        }
        self.batch = Some(batch);
        Some(stored)
    }

    /// Pages for lowering: first those of out-of-sync maps, and once they are durable the dirty ones.
    /// A region written in between is no longer in `clean` and stays.
    fn lower(&mut self) -> BTreeSet<PageId> {
        // All of them may have been written since: then the others' turn has come.
        let waited = self.lowering.take();
        let waited = waited.filter(|ready| !ready.is_disjoint(&self.clean));
        let ready = if let Some(ready) = waited {
            ready
        } else {
            let mut pages = BTreeSet::new();
            for (slot, map) in self.absent.iter().enumerate() {
                let slot = u8::try_from(slot).unwrap_or(u8::MAX);
                let touched = map.iter().flat_map(|map| map.touched.iter());
                pages.extend(touched.map(|page| PageId::OutOfSync(slot, *page)));
            }
            if !pages.is_empty() && !defect!(LowerBeforeMaps) {
                self.lowering = Some(self.clean.clone());
                return pages;
            }
            self.clean.clone()
        };
        let mut pages = BTreeSet::new();
        for region in ready {
            if self.clean.remove(&region) {
                self.dirty.clear(region);
                self.durable.clear(region);
                pages.insert(PageId::Dirty(region / BITS));
            }
        }
        if self.clean.is_empty() {
            self.lower_at = None;
        }
        pages
    }

    /// Stores nothing any more: the disk does not take it.
    pub(super) fn give_up(&mut self) {
        self.given_up = true;
    }

    /// The batch ended. After a failure its pages are due again.
    pub(super) fn batch_done(&mut self, now: Time, good: bool) {
        let Some(batch) = self.batch.take() else { return };
        if good {
            for (first, words) in &batch.dirty {
                self.durable.or_bytes(*first, words);
            }
            self.stored = self.stored.max(batch.generation);
            // What it says has to be in both copies: should one be damaged later, the other must not be older.
            self.second = !self.second && batch.pages.contains(&PageId::Superblock);
            if self.second {
                self.raise.insert(PageId::Superblock);
            }
        } else {
            self.raise.extend(batch.pages);
            self.lowering = None;
            self.hold_until = Some(now + HOLD);
        }
    }
}
