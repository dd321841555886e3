//! A disk with a volatile cache, as hostile as the documentation of disks allows.
//!
//! Data: 4 KiB blocks, each with what it held at the last flush and everything written since; a crash of
//! the machine leaves any of these, for every block on its own. Metadata: pages, durable once their batch
//! is done; a crash in between leaves each of them old, new or torn.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stor_replication::bitmap::Bitmap;
use stor_replication::digest::{self, Digests, Unit};
use stor_replication::disk::{BITS, Copy, PAGE, PageId, WORDS, decode_copy, decode_superblock, newest};
use stor_replication::extents::Extent;
use stor_replication::ids::{ConfigSeq, Epoch, ReplicaId, SnapshotId, VolumeId};
use stor_replication::range::ByteRange;
use stor_replication::replica::{DiskAction, DiskError, StoredPage};

use super::rng::Rng;

/// Bytes of a block here.
pub(crate) const BLOCK: u64 = 4096;

/// The payload: a number for each 4 KiB, and the epoch that sent it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Data {
    pub(crate) epoch: Epoch,
    pub(crate) blocks: Arc<[u64]>,
}

/// A batch or operation under way.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) action: DiskAction<Data>,
    /// What a flush will have made durable: everything that ended before it began.
    covers: u64,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Disk {
    /// Per block: content and when it was written; the first is durable, the last is read.
    blocks: Vec<Vec<(u64, u64)>>,
    unflushed: BTreeSet<usize>,
    writes: u64,
    meta: BTreeMap<u64, Vec<u8>>,
    volume: VolumeId,
    replica: ReplicaId,
    pub(crate) bad: BTreeSet<u64>,
    pub(crate) full: bool,
    pub(crate) full_for_pages: bool,
    /// Writes and flushes fail.
    pub(crate) broken: bool,
    pub(crate) hangs_until: u64,
    /// Operations fail for want of something that is not the disk's.
    pub(crate) short_until: u64,
    pub(crate) running: BTreeMap<u64, Running>,
    pub(crate) batch: Option<Vec<StoredPage>>,
    /// Copies made for snapshots: per block what may be read of it after a crash, the last one as long as there is none.
    pub(crate) snapshots: BTreeMap<SnapshotId, Vec<Vec<u64>>>,
    /// Copies that are being made anew, in the same way, and the boot in which they were last written to.
    pub(crate) unfinished: BTreeMap<SnapshotId, (u64, Vec<Vec<u64>>)>,
    /// The dirty map as it would be read after a crash.
    pub(crate) stored_dirty: Bitmap,
}

impl Disk {
    pub(crate) fn new(volume: VolumeId, replica: ReplicaId, size: u64, fill: u64) -> Self {
        Self {
            blocks: vec![vec![(fill, 0)]; usize::try_from(size / BLOCK).unwrap()],
            unflushed: BTreeSet::new(),
            writes: 0,
            meta: BTreeMap::new(),
            volume,
            replica,
            bad: BTreeSet::new(),
            full: false,
            full_for_pages: false,
            broken: false,
            hangs_until: 0,
            short_until: 0,
            running: BTreeMap::new(),
            batch: None,
            snapshots: BTreeMap::new(),
            unfinished: BTreeMap::new(),
            stored_dirty: Bitmap::new(size.div_ceil(1 << 20)),
        }
    }

    /// What a block reads as.
    pub(crate) fn block(&self, block: usize) -> u64 {
        self.blocks[block].last().unwrap().0
    }

    pub(crate) fn begin(&mut self, op: u64, action: DiskAction<Data>) {
        let covers = self.writes;
        self.running.insert(op, Running { action, covers });
    }

    fn put(&mut self, rng: &mut Rng, block: u64, content: u64, durable: bool) {
        self.writes += 1;
        let index = usize::try_from(block).unwrap();
        let versions = &mut self.blocks[index];
        versions.push((content, self.writes));
        if durable {
            versions.drain(..versions.len() - 1);
            self.unflushed.remove(&index);
        } else {
            // Not while a flush may need what is forgotten.
            let flushing = self
                .running
                .values()
                .any(|running| running.action == DiskAction::Flush);
            if versions.len() > 6 && !flushing {
                let at = 1 + rng.index(versions.len() - 2);
                versions.remove(at);
            }
            self.unflushed.insert(index);
        }
        self.bad.remove(&block);
    }

    /// Does a share of an operation: `percent` of its blocks.
    fn apply_some(&mut self, rng: &mut Rng, action: &DiskAction<Data>, percent: u64) {
        let (range, data, fua) = match action {
            DiskAction::Write { range, data, fua } => (*range, Some(data), *fua),
            DiskAction::Zero { range, fua, .. } => (*range, None, *fua),
            DiskAction::Read { .. }
            | DiskAction::Extents { .. }
            | DiskAction::Digest { .. }
            | DiskAction::Flush
            | DiskAction::MaySnapshot(_)
            | DiskAction::Snapshot(_) => return,
        };
        for (index, block) in range.units(BLOCK).enumerate() {
            if rng.chance(percent) {
                let content = data.map_or(0, |data| data.blocks[index]);
                self.put(rng, block, content, fua && percent == 100);
            }
        }
    }

    /// What a file system says of a range: blocks that read as zeroes are holes, or happen to be allocated.
    /// The list may end early.
    pub(crate) fn extents(&self, rng: &mut Rng, range: ByteRange) -> Vec<Extent> {
        let allocated = rng.below(30);
        let mut extents: Vec<Extent> = Vec::new();
        for block in range.units(BLOCK) {
            let hole = self.block(usize::try_from(block).unwrap()) == 0 && !rng.chance(allocated);
            match extents.last_mut().filter(|extent| extent.hole == hole) {
                Some(extent) => extent.length += BLOCK as u32,
                None => extents.push(Extent {
                    length: BLOCK as u32,
                    hole,
                }),
            }
        }
        if rng.chance(10) {
            extents.truncate(rng.index(extents.len() + 1));
        }
        extents
    }

    /// What a range holds, in short. The list may end early.
    pub(crate) fn digests(&self, rng: &mut Rng, range: ByteRange) -> Digests {
        let unit = digest::unit(range);
        let mut digests = Digests::default();
        for at in (range.offset..range.end()).step_by(usize::try_from(unit).unwrap()) {
            let of = ByteRange::new(at, unit.min(range.end() - at));
            let early = range.len > unit * 16 && rng.chance(2);
            if !digests.units.is_empty() && (u64::from(digests.read) >= digest::MAX_READ || early) {
                break;
            }
            let blocks = || of.units(BLOCK);
            if blocks().any(|block| self.bad.contains(&block)) {
                digests.units.push(Unit::Unreadable);
                continue;
            }
            let contents = blocks().map(|block| self.block(usize::try_from(block).unwrap()));
            let bytes: Vec<u8> = contents.flat_map(u64::to_le_bytes).collect();
            let unit = Unit::of(&bytes);
            if unit != Unit::Zeroes || rng.chance(50) {
                digests.read += u32::try_from(of.len).unwrap();
            }
            digests.units.push(unit);
        }
        digests
    }

    /// A block becomes something that nobody wrote.
    pub(crate) fn put_rotten(&mut self, block: u64, content: u64) {
        let index = usize::try_from(block).unwrap();
        self.blocks[index] = vec![(content, 0)];
        self.unflushed.remove(&index);
    }

    /// Ends an operation; for a read, its data. An unreadable block is an error.
    pub(crate) fn finish(&mut self, rng: &mut Rng, running: &Running) -> Result<Option<Data>, DiskError> {
        match &running.action {
            DiskAction::Extents { .. } | DiskAction::Digest { .. } | DiskAction::MaySnapshot(_) => Ok(None),
            DiskAction::Snapshot(snapshot) => {
                // Blocks are shared: what of them was not flushed is lost with them. Writes under way may be in it.
                let running: Vec<DiskAction<Data>> = self
                    .running
                    .values()
                    .map(|running| running.action.clone())
                    .collect();
                for action in running {
                    self.apply_some(rng, &action, 50);
                }
                let versions =
                    |versions: &Vec<(u64, u64)>| versions.iter().map(|(content, _)| *content).collect();
                let copy = self.blocks.iter().map(versions).collect();
                self.snapshots.insert(*snapshot, copy);
                Ok(None)
            }
            DiskAction::Write { .. } | DiskAction::Zero { .. } => {
                self.apply_some(rng, &running.action, 100);
                Ok(None)
            }
            DiskAction::Flush => {
                let dirty: Vec<usize> = self.unflushed.iter().copied().collect();
                for index in dirty {
                    let versions = &mut self.blocks[index];
                    let keep = versions
                        .iter()
                        .rposition(|(_, at)| *at <= running.covers)
                        .unwrap_or(0);
                    versions.drain(..keep);
                    if versions.len() == 1 {
                        self.unflushed.remove(&index);
                    }
                }
                Ok(None)
            }
            DiskAction::Read { range } => {
                let range: ByteRange = *range;
                if range.units(BLOCK).any(|block| self.bad.contains(&block)) {
                    return Err(DiskError::Failed);
                }
                let blocks = range
                    .units(BLOCK)
                    .map(|b| self.block(usize::try_from(b).unwrap()))
                    .collect();
                Ok(Some(Data {
                    epoch: Epoch(0),
                    blocks,
                }))
            }
        }
    }

    /// An operation ends badly: some of it may have been done.
    pub(crate) fn spoil(&mut self, rng: &mut Rng, running: &Running) {
        let share = [0, 50, 99][rng.index(3)];
        self.apply_some(rng, &running.action, share);
        if running.action == DiskAction::Flush {
            self.lose_some(rng);
        }
    }

    /// An operation was not done, or only in part; nothing that was there is lost.
    pub(crate) fn leave_off(&mut self, rng: &mut Rng, running: &Running) {
        let share = [0, 50][rng.index(2)];
        self.apply_some(rng, &running.action, share);
    }

    /// A bit of one copy of a page turns over, if that page can be told from what is left: a page of a map
    /// always, the superblock when its copies say the same, as they do but for one write's time.
    pub(crate) fn rot(&mut self, rng: &mut Rng) {
        let places: Vec<u64> = self.meta.keys().copied().collect();
        let place = places[rng.index(places.len())];
        if place < 2 * PAGE as u64 {
            let (a, b) = (self.read_meta(0, PAGE), self.read_meta(PAGE as u64, PAGE));
            let body = |bytes: &[u8]| match decode_copy(bytes, PageId::Superblock, self.volume, self.replica)
            {
                Copy::Good { body, .. } => Some(body.to_vec()),
                Copy::Blank | Copy::Bad | Copy::Newer(_) => None,
            };
            if body(&a).is_none() || body(&a) != body(&b) {
                return;
            }
        }
        let bit = rng.index(PAGE * 8);
        if let Some(page) = self.meta.get_mut(&place) {
            page[bit / 8] ^= 1 << (bit % 8);
        }
        self.read_dirty();
    }

    /// Whether the superblock's other copy is damaged.
    fn other_is_bad(&self, offset: u64) -> bool {
        let other = self.read_meta(offset ^ PAGE as u64, PAGE);
        let copy = decode_copy(&other, PageId::Superblock, self.volume, self.replica);
        offset < 2 * PAGE as u64 && copy == Copy::Bad
    }

    /// The config of the stored superblock.
    pub(crate) fn stored_config(&self) -> Option<ConfigSeq> {
        let (a, b) = (self.read_meta(0, PAGE), self.read_meta(PAGE as u64, PAGE));
        decode_superblock(&a, &b, self.volume, self.replica)
            .ok()
            .map(|(_, stored)| stored.view.config)
    }

    /// What a copy for a snapshot reads as.
    pub(crate) fn snapshot(&self, snapshot: SnapshotId) -> Option<Vec<u64>> {
        let copy = self.snapshots.get(&snapshot)?;
        Some(copy.iter().map(|versions| *versions.last().unwrap()).collect())
    }

    /// What was not flushed may be gone.
    fn lose_some(&mut self, rng: &mut Rng) {
        for versions in self
            .snapshots
            .values_mut()
            .flatten()
            .filter(|versions| versions.len() > 1)
        {
            *versions = vec![versions[rng.index(versions.len())]];
        }
        let lossy = rng.below(101);
        for index in std::mem::take(&mut self.unflushed) {
            let versions = &mut self.blocks[index];
            let kept = if rng.chance(lossy) {
                rng.index(versions.len())
            } else {
                versions.len() - 1
            };
            *versions = vec![(versions[kept].0, 0)];
        }
    }

    /// The process is gone: what it had asked for may have happened or not.
    pub(crate) fn abandon(&mut self, rng: &mut Rng) {
        for running in std::mem::take(&mut self.running).into_values() {
            let share = [0, 50, 99, 100][rng.index(4)];
            self.apply_some(rng, &running.action, share);
        }
        for page in self.batch.take().into_iter().flatten() {
            if rng.chance(50) {
                self.meta.insert(page.offset, page.page.to_vec());
            }
        }
        self.read_dirty();
    }

    /// The machine is gone.
    pub(crate) fn crash(&mut self, rng: &mut Rng) {
        for running in std::mem::take(&mut self.running).into_values() {
            self.apply_some(rng, &running.action, 50);
        }
        self.lose_some(rng);
        for page in self.batch.take().into_iter().flatten() {
            // Where the other copy rots, a torn one would be the second failure at once.
            let choices = if self.other_is_bad(page.offset) { 2 } else { 3 };
            match rng.below(choices) {
                0 => {}
                1 => {
                    self.meta.insert(page.offset, page.page.to_vec());
                }
                _ => {
                    let old = self.meta.entry(page.offset).or_insert_with(|| vec![0; PAGE]);
                    for sector in 0..PAGE / 512 {
                        if rng.chance(50) {
                            let at = sector * 512..(sector + 1) * 512;
                            old[at.clone()].copy_from_slice(&page.page[at]);
                        }
                    }
                }
            }
        }
        self.broken = false;
        self.read_dirty();
    }

    /// A batch ends, well or badly.
    pub(crate) fn finish_batch(&mut self, rng: &mut Rng, good: bool) {
        for page in self.batch.take().into_iter().flatten() {
            if good || rng.chance(50) {
                self.meta.insert(page.offset, page.page.to_vec());
            }
        }
        self.read_dirty();
    }

    pub(crate) fn put_page(&mut self, offset: u64, page: Vec<u8>) {
        self.meta.insert(offset, page);
    }

    pub(crate) fn read_meta(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len);
        for page in 0..(len / PAGE) as u64 {
            match self.meta.get(&(offset + page * PAGE as u64)) {
                Some(page) => bytes.extend(page),
                None => bytes.extend([0; PAGE]),
            }
        }
        bytes
    }

    fn read_dirty(&mut self) {
        let mut map = Bitmap::new(self.stored_dirty.len());
        for index in 0..map.len().div_ceil(BITS) {
            let id = PageId::Dirty(index);
            let (a, b) = (
                self.read_meta(id.offset(false), PAGE),
                self.read_meta(id.offset(true), PAGE),
            );
            let copy = |bytes| decode_copy(bytes, id, self.volume, self.replica);
            let (a, b) = (copy(&a), copy(&b));
            if let Copy::Good { body, .. } = newest(a, b) {
                map.or_bytes(index * WORDS, body);
            }
            if a == Copy::Bad || b == Copy::Bad {
                map.set_range(index * BITS..(index + 1) * BITS);
            }
        }
        self.stored_dirty = map;
    }
}
