//! What is asked of a scrub, and what it tells: all copies of a volume are compared and made equal.

use serde::{Deserialize, Serialize};

use crate::ids::{ReplicaId, ScrubRun};
use crate::range::ByteRange;

/// So many places are told of one scrub; then it ends. Whoever finds more has a disk to replace or a copy of something
/// else in hand, and is not helped by having it copied about.
pub const MOST_FOUND: u32 = 256;

/// What the catalogue wants of an engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ScrubAsk {
    /// Which scrub of the volume.
    pub run: ScrubRun,
    /// Everything before this offset is done.
    pub from: u64,
    /// Reports of it so far: the next one names this number.
    pub reports: u32,
    /// Places told so far.
    pub found: u32,
    /// Bytes that each replica may read a second.
    pub rate: u64,
    /// What is found is mended; otherwise it is only told.
    pub mend: bool,
}

/// What an engine tells the catalogue of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Which scrub.
    pub run: ScrubRun,
    /// Reports of it before this one. One that was made already is refused: none counts twice (C4).
    pub reports: u32,
    /// Everything before this offset is done.
    pub cursor: u64,
    /// What was found, and is mended only after this was heard (C4).
    pub findings: Vec<Finding>,
    /// Places told earlier that are equal now.
    pub mended: u32,
    /// Places told earlier that are not.
    pub left: u32,
    /// There is no more to come.
    pub end: Option<ScrubEnd>,
}

/// How a scrub ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScrubEnd {
    /// Everything was compared.
    Complete,
    /// [`MOST_FOUND`].
    TooMuch,
}

impl ScrubEnd {
    /// As it is told.
    pub fn word(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::TooMuch => "too-much",
        }
    }

    /// From what was told.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Complete, Self::TooMuch]
            .into_iter()
            .find(|end| end.word() == word)
    }
}

/// A place where copies differ, or one that can't be read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// Hold something else than `right`.
    pub wrong: Vec<ReplicaId>,
    /// Can't read it.
    pub unreadable: Vec<ReplicaId>,
    /// Taken to be right (C2). `None`: no copy can be read.
    pub right: Option<ReplicaId>,
    /// Copies that say the same as `right`, itself included.
    pub agree: u8,
    /// Copies that could be read.
    pub of: u8,
}

impl Finding {
    /// Where.
    pub fn range(&self) -> ByteRange {
        ByteRange::new(self.offset, self.length)
    }

    /// More than half of the copies that can be read agree; otherwise which one is right was chosen, not known.
    pub fn is_certain(&self) -> bool {
        u16::from(self.agree) * 2 > u16::from(self.of)
    }
}
