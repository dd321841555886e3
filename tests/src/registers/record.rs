//! What was done to the blocks of a volume, and what came of it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail};

use super::check::{Wrong, ZEROED, check};

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Writes its value.
    Write,
    /// Has read its value.
    Read,
}

/// One operation on one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What.
    pub kind: Kind,
    /// Written or read.
    pub value: u64,
    /// Before it was sent, nanoseconds since the crowd began, never 0.
    pub begun: u64,
    /// After it was answered; `None`: it never was, or with a failure that leaves open what became of it.
    pub ended: Option<u64>,
    /// Who did it.
    pub client: u16,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |nanoseconds: u64| {
            format!(
                "{}.{:06}",
                nanoseconds / 1_000_000_000,
                nanoseconds / 1000 % 1_000_000
            )
        };
        let kind = match self.kind {
            Kind::Write => "writes",
            Kind::Read => "reads",
        };
        let ended = self.ended.map_or("never answered".to_owned(), time);
        write!(
            f,
            "{:>12} to {ended:>14}  client {:>3} {kind} {}",
            time(self.begun),
            self.client,
            Stamp(self.value)
        )
    }
}

/// A value no other write has: which volume, which client, its how-manieth write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(pub u64);

impl Stamp {
    /// Of a write. Sequences begin at 1.
    pub fn new(volume: u16, client: u16, sequence: u32) -> Self {
        Self(u64::from(volume) << 48 | u64::from(client) << 32 | u64::from(sequence))
    }

    /// The volume it was written to.
    pub fn volume(self) -> u64 {
        self.0 >> 48
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => write!(f, "zeroes"),
            ZEROED => write!(f, "zeroes, over what was there"),
            value => write!(
                f,
                "write {} of client {} to volume {}",
                value & 0xffff_ffff,
                value >> 32 & 0xffff,
                value >> 48
            ),
        }
    }
}

/// All that was done to a volume.
#[derive(Debug, Default)]
pub struct Record {
    blocks: BTreeMap<u64, Vec<Operation>>,
}

impl Record {
    /// Adds an operation on a block.
    pub fn add(&mut self, block: u64, operation: Operation) {
        self.blocks.entry(block).or_default().push(operation);
    }

    /// Adds what somebody else noted.
    pub fn join(&mut self, other: Self) {
        for (block, operations) in other.blocks {
            self.blocks.entry(block).or_default().extend(operations);
        }
    }

    /// Blocks with operations.
    pub fn blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.blocks.keys().copied()
    }

    /// Operations, those whose fate is not known, and the most on one block.
    pub fn counts(&self) -> (usize, usize, usize) {
        let all = || self.blocks.values().flatten();
        let unknown = all().filter(|operation| operation.ended.is_none()).count();
        let most = self.blocks.values().map(Vec::len).max().unwrap_or(0);
        (all().count(), unknown, most)
    }

    /// Checks every block. What is wrong is told with its proof; the whole history of such blocks goes to `file`.
    pub fn check(&self, file: &Path) -> anyhow::Result<()> {
        let wrong: Vec<(u64, Wrong)> = self
            .blocks
            .iter()
            .filter_map(|(block, operations)| Some((*block, check(operations).err()?)))
            .collect();
        let Some((block, first)) = wrong.first() else {
            return Ok(());
        };
        let mut out = std::fs::File::create(file).with_context(|| format!("making {}", file.display()))?;
        for (block, wrong) in &wrong {
            writeln!(out, "block {block}: {}", wrong.what)?;
            let mut operations = self.blocks.get(block).cloned().unwrap_or_default();
            operations.sort_by_key(|operation| operation.begun);
            for operation in operations {
                writeln!(out, "{operation}")?;
            }
        }
        let proof: Vec<String> = first.proof.iter().map(ToString::to_string).collect();
        bail!(
            "{} of {} blocks have histories that one copy could not have; block {block}: {}\n{}\nall in {}",
            wrong.len(),
            self.blocks.len(),
            first.what,
            proof.join("\n"),
            file.display()
        )
    }
}
