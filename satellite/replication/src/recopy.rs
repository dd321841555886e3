//! A copy of a snapshot made anew, of another one: for a replica that was away when the snapshot was made, or has come
//! to the volume since (S6).
//!
//! ```text
//! Comparing, range after range -----> Durable -----> Named
//!           all equal and flushed          it counts
//! ```
//!
//! The content of a snapshot never changes, so that there is no order to keep with anything else, no epoch and no
//! engine. Whatever is there already, of an attempt that was cut short or shared with other data of the volume to
//! save space, is compared like everything else and believed in nothing.
//!
//! No I/O here: the two copies are reached through [`Source`] and [`Target`].

use std::fmt;

use thiserror::Error;

use crate::range::ByteRange;
use crate::wire::DIGEST;

/// What is compared and copied as one: the block of out-of-sync maps.
pub const UNIT: u64 = 64 << 10;

/// What stands for a block's content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Digest {
    /// All zeroes, or a hole.
    Zero,
    /// A cryptographic hash of anything else.
    Of([u8; DIGEST]),
}

/// The copy that counts.
pub trait Source {
    /// Bytes of the volume.
    type Data;
    /// Why it can't be read.
    type Error: fmt::Debug;
    /// One for each [`UNIT`] of the range, the last of which may be shorter.
    fn digests(&mut self, range: ByteRange) -> Result<Vec<Digest>, Self::Error>;
    /// What is there.
    fn read(&mut self, range: ByteRange) -> Result<Self::Data, Self::Error>;
}

/// The copy that is made.
pub trait Target<D> {
    /// Why it can't be made.
    type Error: fmt::Debug;
    /// One for each [`UNIT`] of the range, the last of which may be shorter.
    fn digests(&mut self, range: ByteRange) -> Result<Vec<Digest>, Self::Error>;
    /// Writes.
    fn write(&mut self, range: ByteRange, data: D) -> Result<(), Self::Error>;
    /// Has the range read as zeroes, and gives its space back where that is possible.
    fn free(&mut self, range: ByteRange) -> Result<(), Self::Error>;
    /// Makes durable all that was written, and that there is nothing behind the copy's end.
    fn flush(&mut self) -> Result<(), Self::Error>;
    /// Gives it the name under which it counts; durable when done.
    fn name(&mut self) -> Result<(), Self::Error>;
}

/// Why a step was not done. It can be tried again.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Trouble<S, T> {
    /// At the copy that counts.
    #[error("the copy it is made of can't be read: {0}")]
    Source(S),
    /// At the one that is made.
    #[error("it can't be written: {0}")]
    Target(T),
    /// There is another number of digests than of blocks.
    #[error("{found} digests of {blocks} blocks")]
    Digests {
        /// That came.
        found: usize,
        /// That were asked about.
        blocks: u64,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Comparing { at: u64 },
    Durable,
    Named,
}

/// See the module.
#[derive(Debug)]
pub struct Recopy {
    size: u64,
    range: u64,
    stage: Stage,
    copied: u64,
}

/// What becomes of some blocks in a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Equal,
    Copy,
    Free,
}

impl Recopy {
    /// Of `size` bytes, `range` of them in a step.
    pub fn new(size: u64, range: u64) -> Self {
        Self {
            size,
            range: range.max(UNIT) / UNIT * UNIT,
            stage: Stage::Comparing { at: 0 },
            copied: 0,
        }
    }

    /// Bytes that are known to be equal.
    pub fn compared(&self) -> u64 {
        match self.stage {
            Stage::Comparing { at } => at,
            Stage::Durable | Stage::Named => self.size,
        }
    }

    /// Bytes that were not equal and were written.
    pub fn copied(&self) -> u64 {
        self.copied
    }

    /// The copy counts.
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Named
    }

    /// Does a part of what is left. After a failure the next call does that part again.
    //= docs/replication.md#S6
    pub fn step<S, T>(&mut self, source: &mut S, target: &mut T) -> Result<(), Trouble<S::Error, T::Error>>
    where
        S: Source,
        T: Target<S::Data>,
    {
        match self.stage {
            Stage::Comparing { at } if at < self.size => {
                let range = ByteRange::new(at, self.range.min(self.size - at));
                self.compare(range, source, target)?;
                self.stage = Stage::Comparing { at: range.end() };
            }
            Stage::Comparing { .. } => {
                if !defect!(RecopyUnflushed) {
                    target.flush().map_err(Trouble::Target)?;
                }
                self.stage = Stage::Durable;
            }
            Stage::Durable => {
                target.name().map_err(Trouble::Target)?;
                self.stage = Stage::Named;
            }
            Stage::Named => {}
        }
        Ok(())
    }

    fn compare<S, T>(
        &mut self,
        range: ByteRange,
        source: &mut S,
        target: &mut T,
    ) -> Result<(), Trouble<S::Error, T::Error>>
    where
        S: Source,
        T: Target<S::Data>,
    {
        let blocks = range.len.div_ceil(UNIT);
        let wanted = source.digests(range).map_err(Trouble::Source)?;
        let there = target.digests(range).map_err(Trouble::Target)?;
        for found in [wanted.len(), there.len()] {
            if found as u64 != blocks {
                return Err(Trouble::Digests { found, blocks });
            }
        }
        let fates = wanted
            .iter()
            .zip(&there)
            .map(|(wanted, there)| fate(*wanted, *there));
        let mut run: Option<(Fate, ByteRange)> = None;
        let mut at = range.offset;
        for fate in fates.map(Some).chain([None]) {
            let next = (at + UNIT).min(range.end());
            match (&mut run, fate) {
                (Some((same, run)), Some(fate)) if *same == fate => run.len = next - run.offset,
                (ended, fate) => {
                    let begun = fate.map(|fate| (fate, ByteRange::new(at, next - at)));
                    if let Some((fate, run)) = std::mem::replace(ended, begun) {
                        self.settle(fate, run, source, target)?;
                    }
                }
            }
            at = next;
        }
        Ok(())
    }

    fn settle<S, T>(
        &mut self,
        fate: Fate,
        run: ByteRange,
        source: &mut S,
        target: &mut T,
    ) -> Result<(), Trouble<S::Error, T::Error>>
    where
        S: Source,
        T: Target<S::Data>,
    {
        match fate {
            Fate::Equal => return Ok(()),
            Fate::Copy => {
                let data = source.read(run).map_err(Trouble::Source)?;
                target.write(run, data).map_err(Trouble::Target)?;
            }
            Fate::Free => target.free(run).map_err(Trouble::Target)?,
        }
        self.copied += run.len;
        Ok(())
    }
}

fn fate(wanted: Digest, there: Digest) -> Fate {
    let believed = (defect!(RecopyBelieves) && there != Digest::Zero)
        || (defect!(RecopyHoles) && wanted == Digest::Zero);
    if wanted == there || believed {
        Fate::Equal
    } else if wanted == Digest::Zero {
        Fate::Free
    } else {
        Fate::Copy
    }
}
