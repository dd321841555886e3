//! Scrubs: begun, heard of, ended.

use stor_api::size;
use stor_replication::catalogue::{Change, Refusal};
use stor_replication::ids::{ReplicaId, VolumeId};
use stor_replication::scrub::{Finding, ScrubReport};

use super::view::refused;
use super::{Apply, Done, Weight};
use crate::catalogue::load::{self, integer};
use crate::catalogue::outcome::{Kind, Object, Outcome, Refused};
use crate::catalogue::row::{Volume, VolumePhase};
use crate::catalogue::scrub::{Scrub, ScrubPhase};
use crate::catalogue::sql;

impl Apply<'_> {
    /// Begins a scrub; one that is under way goes on, at the pace and in the manner asked for now.
    pub(super) async fn start_scrub(&mut self, name: &str, scheduled: bool, mend: bool, rate: u64) -> Done {
        let object = Object::new(Kind::Volume, name);
        let Some(volume) = load::volume_named(self.conn, name).await? else {
            return Err(Refused::NoSuch { object }.into());
        };
        let volume = self.need_known(volume.row.volume).await?;
        if volume.phase != VolumePhase::Available {
            let state = match volume.phase {
                VolumePhase::Creating => "is still being created",
                VolumePhase::Available | VolumePhase::Deleting => "is being deleted",
            };
            let state = state.to_owned();
            return Err(Refused::State { object, state }.into());
        }
        let running = volume.scrub.as_ref().filter(|scrub| scrub.is_running());
        if let Some(running) = running
            && (scheduled || (running.mend, running.rate) == (mend, rate))
        {
            return Ok(Outcome::Unchanged);
        }
        if self.dry {
            return Ok(Outcome::Changed);
        }
        let id = volume.row.volume.to_string();
        if running.is_some() {
            sqlx::query(sql::CHANGE_SCRUB)
                .bind(mend)
                .bind(integer(rate))
                .bind(&id)
                .execute(&mut *self.conn)
                .await?;
        } else {
            sqlx::query(sql::BEGIN_SCRUB)
                .bind(&id)
                .bind(scheduled)
                .bind(mend)
                .bind(integer(rate))
                .bind(self.at)
                .execute(&mut *self.conn)
                .await?;
            let by = if scheduled { ", as it is due" } else { "" };
            let message = format!("A scrub of volume {name} began{by}.");
            self.event(Weight::Info, "scrub-started", &object, &message)
                .await?;
        }
        self.touch_owner(&volume).await?;
        Ok(Outcome::Changed)
    }

    /// Ends the scrub under way: somebody wants it, or it is `overdue`.
    pub(super) async fn end_scrub(&mut self, name: &str, run: Option<u64>, overdue: bool) -> Done {
        let object = Object::new(Kind::Volume, name);
        let Some(volume) = load::volume_named(self.conn, name).await? else {
            return Err(Refused::NoSuch { object }.into());
        };
        let running = volume.scrub.as_ref().filter(|scrub| scrub.is_running());
        let Some(scrub) = running.filter(|scrub| run.is_none_or(|run| scrub.run == run)) else {
            return Ok(Outcome::Unchanged);
        };
        if self.dry {
            return Ok(Outcome::Changed);
        }
        let (phase, weight, how) = if overdue {
            (
                ScrubPhase::Overdue,
                Weight::Warning,
                "was given up: it took too long",
            )
        } else {
            (ScrubPhase::Cancelled, Weight::Info, "was ended by request")
        };
        self.close_scrub(&volume, phase).await?;
        let message = format!(
            "The scrub of volume {name} {how}; {} of {} were compared.",
            size::format(scrub.cursor.min(volume.row.size)),
            size::format(volume.row.size)
        );
        self.event(weight, "scrub-ended", &object, &message).await?;
        self.touch_owner(&volume).await?;
        Ok(Outcome::Changed)
    }

    /// Somebody has seen what was found.
    pub(super) async fn acknowledge_scrub(&mut self, name: &str) -> Done {
        let object = Object::new(Kind::Volume, name);
        let Some(volume) = load::volume_named(self.conn, name).await? else {
            return Err(Refused::NoSuch { object }.into());
        };
        if volume.scrub.is_none_or(|scrub| scrub.open == 0) {
            return Ok(Outcome::Unchanged);
        }
        if !self.dry {
            sqlx::query(sql::CLOSE_FINDINGS)
                .bind(volume.row.volume.to_string())
                .execute(&mut *self.conn)
                .await?;
        }
        Ok(Outcome::Changed)
    }

    /// What an engine says of a scrub, judged before anything is changed: each report is heard once.
    //= docs/replication.md#C4
    pub(super) fn check_scrub(volume: &Volume, change: &Change) -> Done<()> {
        let Change::Scrubbed { report, .. } = change else {
            return Ok(());
        };
        let awaited = volume.scrub.as_ref().is_some_and(|scrub| {
            scrub.is_running() && (scrub.run, scrub.reports) == (report.run.0, report.reports)
        });
        if awaited && report.cursor <= volume.row.size {
            return Ok(());
        }
        let refusal = Refusal::NoSuchScrub {
            run: report.run,
            report: report.reports,
        };
        Err(refused(volume, refusal).into())
    }

    /// Keeps and tells what was reported.
    pub(super) async fn scrub_told(&mut self, volume: &Volume, report: &ScrubReport) -> Done<()> {
        let Some(scrub) = &volume.scrub else { return Ok(()) };
        let object = Object::new(Kind::Volume, &volume.name);
        let chosen = report.findings.iter().filter(|one| !one.is_certain()).count() as u64;
        let found = report.findings.len() as u64;
        sqlx::query(sql::SCRUB_REPORTED)
            .bind(integer(report.cursor))
            .bind(integer(found))
            .bind(integer(chosen))
            .bind(report.mended)
            .bind(report.left)
            .bind(volume.row.volume.to_string())
            .execute(&mut *self.conn)
            .await?;
        for finding in &report.findings {
            let kind = if finding.wrong.is_empty() {
                "scrub-unreadable"
            } else {
                "scrub-mismatch"
            };
            let message = in_words(volume, finding, scrub.mend);
            self.event(Weight::Warning, kind, &object, &message).await?;
        }
        if report.left > 0 && scrub.mend {
            let message = format!(
                "Volume {}: {} that a scrub found could not be mended; what was tried is in the log of its engine's node.",
                volume.name,
                places(u64::from(report.left))
            );
            self.event(Weight::Warning, "scrub-not-mended", &object, &message)
                .await?;
        }
        let Some(end) = report.end else { return Ok(()) };
        let scrub = Scrub {
            found: scrub
                .found
                .saturating_add(u32::try_from(found).unwrap_or(u32::MAX)),
            mended: scrub.mended.saturating_add(report.mended),
            remaining: scrub.remaining.saturating_add(report.left),
            ..scrub.clone()
        };
        self.close_scrub(volume, ScrubPhase::of_end(end)).await?;
        let (weight, message) = ended(volume, &scrub, ScrubPhase::of_end(end));
        self.event(weight, "scrub-ended", &object, &message).await
    }

    async fn close_scrub(&mut self, volume: &Volume, phase: ScrubPhase) -> Done<()> {
        sqlx::query(sql::END_SCRUB)
            .bind(phase.word())
            .bind(self.at)
            .bind(volume.row.volume.to_string())
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    /// With its volume.
    pub(super) async fn forget_scrub(&mut self, volume: VolumeId) -> Done<()> {
        sqlx::query(sql::DELETE_SCRUB)
            .bind(volume.to_string())
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    async fn touch_owner(&mut self, volume: &Volume) -> Done<()> {
        match &volume.row.owner {
            Some(owner) => self.touch(owner).await,
            None => Ok(()),
        }
    }
}

fn places(count: u64) -> String {
    match count {
        1 => "1 place".to_owned(),
        count => format!("{count} places"),
    }
}

fn ended(volume: &Volume, scrub: &Scrub, phase: ScrubPhase) -> (Weight, String) {
    let (name, found) = (&volume.name, u64::from(scrub.found));
    let size = size::format(volume.row.size);
    if phase == ScrubPhase::TooMuch {
        let message = format!(
            "The scrub of volume {name} ended early: {} differed. One of its replicas is on a disk that fails, or is a \
             copy of something else.",
            places(found)
        );
        return (Weight::Warning, message);
    }
    if found == 0 {
        let message =
            format!("The scrub of volume {name} ended: {size} were compared, all copies are equal.");
        return (Weight::Info, message);
    }
    let message = format!(
        "The scrub of volume {name} ended: {size} were compared, {} found, {} made equal, {} left as they are.",
        places(found),
        scrub.mended,
        scrub.remaining
    );
    (Weight::Warning, message)
}

/// A place as people read it: where, whose, and what becomes of it.
fn in_words(volume: &Volume, finding: &Finding, mend: bool) -> String {
    let node = |replica: &ReplicaId| {
        let member = volume.row.replicas.get(replica);
        let node = member.map_or("?", |member| member.node.as_str());
        format!("replica {replica} on node {node}")
    };
    let all = |replicas: &[ReplicaId]| replicas.iter().map(node).collect::<Vec<_>>().join(" and ");
    let (name, length, offset) = (&volume.name, finding.length, finding.offset);
    let place = format!("Volume {name}, {length} bytes at offset {offset}:");
    let Some(right) = &finding.right else {
        return format!(
            "{place} {} can't read them, and no copy can; they stay unreadable until they are written.",
            all(&finding.unreadable)
        );
    };
    let mut faults = Vec::new();
    if !finding.wrong.is_empty() {
        faults.push(format!("{} differs", all(&finding.wrong)));
    }
    if !finding.unreadable.is_empty() {
        faults.push(format!("{} can't read them", all(&finding.unreadable)));
    }
    let why = if finding.is_certain() {
        format!("{} of {} readable copies agree", finding.agree, finding.of)
    } else {
        "which copy is right can't be known; it is the one that reads are served from first".to_owned()
    };
    let then = if mend {
        "made equal to"
    } else {
        "nothing is changed; right would be"
    };
    format!("{place} {}; {then} {} ({why}).", faults.join(", "), node(right))
}
