//! Scrubs as the catalogue keeps them: of each volume the one that is under way, or the last.
//!
//! ```text
//!            every copy was compared: complete        very much differed: too-much
//!   running ---------------------------------------------------------------------->
//!            somebody ended it: cancelled              it took far too long: overdue
//! ```

use sqlx::sqlite::SqliteRow;
use sqlx::{Error, Row};
use stor_replication::ids::ScrubRun;
use stor_replication::scrub::{ScrubAsk, ScrubEnd};

/// Life of a scrub.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScrubPhase {
    /// An engine is at it, or will be.
    Running,
    /// Everything was compared.
    Complete,
    /// Ended because so much differed.
    TooMuch,
    /// Somebody ended it.
    Cancelled,
    /// It did not come to its end in time.
    Overdue,
}

impl ScrubPhase {
    const WORDS: [(Self, &'static str); 5] = [
        (Self::Running, "running"),
        (Self::Complete, "complete"),
        (Self::TooMuch, "too-much"),
        (Self::Cancelled, "cancelled"),
        (Self::Overdue, "overdue"),
    ];

    /// As it is stored.
    pub fn word(self) -> &'static str {
        Self::WORDS
            .iter()
            .find(|(phase, _)| *phase == self)
            .map_or("", |(_, word)| word)
    }

    /// As which it ends.
    pub fn of_end(end: ScrubEnd) -> Self {
        match end {
            ScrubEnd::Complete => Self::Complete,
            ScrubEnd::TooMuch => Self::TooMuch,
        }
    }
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scrub {
    /// Rises with each scrub of the volume.
    pub run: u64,
    /// Where in its life it is.
    pub phase: ScrubPhase,
    /// The cluster began it by itself.
    pub scheduled: bool,
    /// What differs is made equal.
    pub mend: bool,
    /// Bytes each replica may read a second.
    pub rate: u64,
    /// Everything before is done.
    pub cursor: u64,
    /// Reports heard of it.
    pub reports: u32,
    /// Places that differed or could not be read.
    pub found: u32,
    /// Of these, where nobody could know which copy is right.
    pub chosen: u32,
    /// Made equal.
    pub mended: u32,
    /// Still differ.
    pub remaining: u32,
    /// When it began.
    pub begun: String,
    /// When it ended.
    pub ended: Option<String>,
    /// When one came to its end, last.
    pub completed: Option<String>,
    /// Found since somebody acknowledged it, or a scrub found nothing.
    pub open: u64,
    /// Of these, chosen or remaining.
    pub open_bad: u64,
}

impl Scrub {
    /// An engine is at it, or will be.
    pub fn is_running(&self) -> bool {
        self.phase == ScrubPhase::Running
    }

    /// What its engine is asked, while it is under way.
    pub fn ask(&self) -> Option<ScrubAsk> {
        self.is_running().then_some(ScrubAsk {
            run: ScrubRun(self.run),
            from: self.cursor,
            reports: self.reports,
            found: self.found,
            rate: self.rate,
            mend: self.mend,
        })
    }

    /// From a row of volumes with their scrubs beside them.
    pub(super) fn beside(row: &SqliteRow) -> Result<Option<Self>, Error> {
        let Some(word) = row.try_get::<Option<String>, _>("scrub_phase")? else {
            return Ok(None);
        };
        let phase = ScrubPhase::WORDS.iter().find(|(_, known)| *known == word);
        let phase = phase
            .map(|(phase, _)| *phase)
            .ok_or_else(|| Error::ColumnDecode {
                index: "scrub_phase".into(),
                source: format!("unexpected value {word:?}").into(),
            })?;
        Ok(Some(Self {
            run: row.try_get("run")?,
            phase,
            scheduled: row.try_get("scheduled")?,
            mend: row.try_get("mend")?,
            rate: row.try_get("rate")?,
            cursor: row.try_get("cursor")?,
            reports: row.try_get("reports")?,
            found: row.try_get("found")?,
            chosen: row.try_get("chosen")?,
            mended: row.try_get("mended")?,
            remaining: row.try_get("remaining")?,
            begun: row.try_get("begun")?,
            ended: row.try_get("ended")?,
            completed: row.try_get("completed")?,
            open: row.try_get("open")?,
            open_bad: row.try_get("open_bad")?,
        }))
    }
}
