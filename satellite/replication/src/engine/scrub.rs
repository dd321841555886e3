//! Comparing all copies, extent by extent, while the volume is used, and mending what differs.
//!
//! ```text
//!                 all the same: the next extent, at its pace
//!             +------------------------------------------------+
//!             v                                                |
//!          Resting ---> Looking: blocks of an extent ----------+
//!             ^  ^                     | some differ                  the catalogue has heard
//!             |  |                     v                              |
//!             |  |         Looking: sectors of one such block ---> Telling ---> Mending
//!             |  +---------------------+ all the same, or mended,               |
//!             |                          or tried often enough ^                |
//!             |                                                +----------------+
//!             +-- a member went, something may differ, the answers took too long: looked at again later
//! ```
//!
//! A look holds a lock that writers wait for and readers do not. Nothing is mended under it: that is a copy with a
//! lock of its own. What was written between the two is equal everywhere, and copying it does no harm.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::copy::{Reason, overlaps_unequal};
use super::io::data_message;
use super::locks::Holder;
use super::message::Purpose;
use super::verdict;
use super::{Command, Engine, Phase};
use crate::body::Body;
use crate::catalogue::{Change, MemberState};
use crate::digest::{self, Digests, Unit};
use crate::ids::{ReplicaId, ScrubRun, View};
use crate::range::{BLOCK, ByteRange};
use crate::scrub::{Finding, MOST_FOUND, ScrubAsk, ScrubEnd, ScrubReport};
use crate::time::Time;
use crate::wire::Kind;

/// How long writers wait for a look at most. A disk that is busy reads 256 KiB in a tenth of it.
pub const LOOK: Duration = Duration::from_secs(2);
/// After a look without a result: the first pause and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// How often the catalogue is told how far it is: so much is done again by the next engine.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// While clients wait for something the pace is this part of what it may be.
const BUSY_PART: u32 = 4;
/// How often a block is mended that goes on to differ.
const TRIES: u32 = 3;

/// How far a scrub is, for reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScrubStatus {
    /// Which.
    pub run: ScrubRun,
    /// Everything before this offset is done.
    pub cursor: u64,
    /// Why it does not go on, if so.
    pub waits: Option<String>,
}

#[derive(Debug)]
struct Look {
    range: ByteRange,
    /// Tells its answers from those to others.
    number: u64,
    view: View,
    /// When it got its lock and asked.
    asked: Option<Time>,
    answers: BTreeMap<ReplicaId, Option<Digests>>,
}

#[derive(Debug)]
enum Stage {
    Resting,
    Looking(Look),
    Telling,
    Mending,
    Ending,
}

/// The block at hand, with what was found in it.
#[derive(Debug)]
struct Case {
    findings: Vec<Finding>,
    told: bool,
    /// To be mended next, by what the last look said; nothing: it is looked at again.
    todo: Vec<Finding>,
    tries: u32,
}

impl Case {
    fn new(findings: Vec<Finding>) -> Self {
        Self {
            told: false,
            todo: findings.clone(),
            findings,
            tries: 0,
        }
    }
}

/// What keeps copies from being compared now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Obstacle {
    Unequal,
    Replica(ReplicaId),
    View,
    Snapshot,
}

#[derive(Debug)]
struct Run {
    ask: ScrubAsk,
    stage: Stage,
    cursor: u64,
    /// Blocks that differ, and the cursor when they are done with.
    suspects: VecDeque<ByteRange>,
    next: u64,
    case: Option<Case>,
    reports: u32,
    found: u32,
    /// Outcomes not told yet.
    mended: u32,
    left: u32,
    /// The report the catalogue has not answered yet.
    open: Option<(u64, ScrubReport)>,
    told: u64,
    report_at: Time,
    next_at: Time,
    pause: Duration,
}

/// What an engine knows of scrubs.
#[derive(Debug, Default)]
pub(super) struct Scrubs {
    asked: Option<ScrubAsk>,
    run: Option<Run>,
    /// This one came to its end.
    ended: Option<ScrubRun>,
    /// The catalogue refused this report: it has heard others, or wants none, and will say so.
    refused: Option<(ScrubRun, u32)>,
    looks: u64,
    /// When there is something to do without any event.
    due: Option<Time>,
}

impl Scrubs {
    pub(super) fn ask(&mut self, ask: Option<ScrubAsk>) {
        self.asked = ask;
    }

    pub(super) fn due(&self) -> Option<Time> {
        self.due
    }

    pub(super) fn end(&mut self) {
        *self = Self::default();
    }
}

impl Run {
    fn new(now: Time, ask: ScrubAsk) -> Self {
        Self {
            ask,
            stage: Stage::Resting,
            cursor: ask.from - ask.from % BLOCK,
            suspects: VecDeque::new(),
            next: ask.from,
            case: None,
            reports: ask.reports,
            found: ask.found,
            mended: 0,
            left: 0,
            open: None,
            told: ask.from,
            report_at: now + REPORT_EVERY,
            next_at: now,
            pause: Duration::ZERO,
        }
    }

    /// The block at hand is done with.
    fn close_case(&mut self) {
        self.case = None;
        self.suspects.pop_front();
        if self.suspects.is_empty() {
            self.cursor = self.next;
        }
    }

    /// So many bytes were read: when as many again may be.
    fn pace(&mut self, now: Time, read: u64, busy: bool) {
        let nanos = u128::from(read) * 1_000_000_000 / u128::from(self.ask.rate.max(1));
        let mut takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        if busy {
            takes = takes.saturating_mul(BUSY_PART);
        }
        if !defect!(ScrubUnpaced) {
            self.next_at = self.next_at.max(now) + takes;
        }
    }
}

impl<P: Clone> Engine<P> {
    /// The scrub at hand and how far it is.
    pub fn scrub(&self) -> Option<ScrubStatus> {
        let run = self.scrubs.run.as_ref()?;
        Some(ScrubStatus {
            run: run.ask.run,
            cursor: run.cursor,
            waits: self.scrub_waits(),
        })
    }

    /// Why it does not go on, in words.
    fn scrub_waits(&self) -> Option<String> {
        Some(match self.scrub_obstacle()? {
            Obstacle::Unequal => "its replicas are being made equal after an unclean end".to_owned(),
            Obstacle::Replica(replica) => {
                let member = self.row.replicas.get(&replica);
                let node = member.map_or("?", |member| member.node.as_str());
                format!("replica {replica} on node {node} is not there or not in sync")
            }
            Obstacle::View => "the set of replicas in sync is changing".to_owned(),
            Obstacle::Snapshot => "a snapshot is being made".to_owned(),
        })
    }

    /// While there is one, a difference would say nothing.
    //= docs/replication.md#C1
    fn scrub_obstacle(&self) -> Option<Obstacle> {
        if !self.unequal.is_clear() && !defect!(ScrubUnequal) {
            return Some(Obstacle::Unequal);
        }
        let there = |replica: &ReplicaId| {
            let peer = self.peers.get(replica);
            peer.is_some_and(|peer| peer.is_ready() && peer.is_right())
        };
        let mut all = self.row.replicas.iter();
        let lacking = all.find(|(id, member)| member.state != MemberState::InSync || !there(id));
        if let Some((replica, _)) = lacking.filter(|_| !defect!(ScrubOfSome)) {
            return Some(Obstacle::Replica(*replica));
        }
        if self.gate || self.members().next().is_none() {
            return Some(Obstacle::View);
        }
        //= docs/replication.md#C3
        if self.snapshots.holds_writes() && !defect!(ScrubUngated) {
            return Some(Obstacle::Snapshot);
        }
        None
    }

    /// Goes on with the scrub as far as it can.
    pub(super) fn tend_scrub(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        let asked = self.scrubs.asked.filter(|_| self.phase == Phase::Active);
        if let Some(run) = &mut self.scrubs.run {
            match asked.filter(|ask| ask.run == run.ask.run) {
                Some(ask) => (run.ask.rate, run.ask.mend) = (ask.rate, ask.mend),
                None => self.drop_scrub(now, out),
            }
        }
        if let Some(ask) = asked
            && self.scrubs.run.is_none()
            && self.scrubs.ended != Some(ask.run)
            && self
                .scrubs
                .refused
                .is_none_or(|(run, report)| run != ask.run || report < ask.reports)
        {
            self.scrubs.run = Some(Run::new(now, ask));
            out.push(Command::StateChanged);
        }
        while self.scrub_moves(now, out) {}
        self.scrubs.due = self.scrub_due().filter(|due| *due > now);
    }

    fn scrub_due(&self) -> Option<Time> {
        let run = self.scrubs.run.as_ref()?;
        match &run.stage {
            Stage::Looking(look) => look.asked.map(|asked| asked + LOOK),
            Stage::Resting if self.scrub_obstacle().is_none() => Some(run.next_at),
            Stage::Resting | Stage::Telling | Stage::Mending | Stage::Ending => None,
        }
    }

    /// Does what the present stage waits for, if it can be done now; whether there may be more.
    fn scrub_moves(&mut self, now: Time, out: &mut Vec<Command<P>>) -> bool {
        let disturbed = self.scrub_obstacle().is_some();
        let Some(run) = &self.scrubs.run else { return false };
        match &run.stage {
            Stage::Looking(look) => {
                let late = look.asked.is_some_and(|asked| now.since(asked) >= LOOK);
                //= docs/replication.md#C1
                if disturbed || look.view != self.row.view {
                    self.void_look(now, false, out);
                    return true;
                }
                if late && !defect!(ScrubLockStays) {
                    self.void_look(now, true, out);
                    return true;
                }
                if self.members().all(|(id, _)| look.answers.contains_key(&id)) {
                    self.looked(now, out);
                    return true;
                }
                false
            }
            Stage::Mending => {
                let mends = |reason: Reason| matches!(reason, Reason::Scrub { .. });
                if self.copies.values().any(|job| mends(job.reason)) {
                    return false;
                }
                self.scrub_stage(Stage::Resting);
                true
            }
            Stage::Resting => self.go_on(now, disturbed, out),
            Stage::Telling | Stage::Ending => false,
        }
    }

    fn scrub_stage(&mut self, stage: Stage) {
        if let Some(run) = &mut self.scrubs.run {
            run.stage = stage;
        }
    }

    /// Chooses what is next.
    fn go_on(&mut self, now: Time, disturbed: bool, out: &mut Vec<Command<P>>) -> bool {
        let size = self.row.size;
        let Some(run) = &mut self.scrubs.run else {
            return false;
        };
        let news = run.cursor != run.told || run.mended + run.left > 0;
        if run.open.is_none() && news && run.report_at <= now {
            self.tell_scrub(now, Vec::new(), None, out);
            return true;
        }
        match &run.case {
            //= docs/replication.md#C4
            Some(case) if !case.told && !defect!(ScrubUntold) => {
                if run.open.is_some() {
                    return false;
                }
                let findings = case.findings.clone();
                run.stage = Stage::Telling;
                self.tell_scrub(now, findings, None, out);
                return true;
            }
            Some(case) if !run.ask.mend => {
                run.left += small(case.findings.len());
                run.close_case();
                return true;
            }
            _ => {}
        }
        if run.next_at > now {
            return false;
        }
        let end = match &run.case {
            None if run.found >= MOST_FOUND => Some(ScrubEnd::TooMuch),
            None if run.suspects.is_empty() && run.cursor >= size => Some(ScrubEnd::Complete),
            _ => None,
        };
        if end.is_some() {
            let idle = run.open.is_none();
            if idle {
                run.stage = Stage::Ending;
                self.tell_scrub(now, Vec::new(), end, out);
            }
            return idle;
        }
        if disturbed {
            return false;
        }
        self.begin_look_or_mend(now, out);
        true
    }

    fn begin_look_or_mend(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        let size = self.row.size;
        let Some(run) = &mut self.scrubs.run else { return };
        if run.case.as_ref().is_some_and(|case| !case.todo.is_empty()) {
            return self.mend_case(now, out);
        }
        // The end of a volume that has grown since may have been in the midst of a block.
        run.cursor -= run.cursor % BLOCK;
        if run.suspects.is_empty() && size - run.cursor <= BLOCK {
            run.suspects
                .push_back(ByteRange::new(run.cursor, size - run.cursor));
            run.next = size;
        }
        let extent = ByteRange::new(run.cursor, (size - run.cursor).min(u64::from(digest::MAX_RANGE)));
        let range = run.suspects.front().copied().unwrap_or(extent);
        self.scrubs.looks += 1;
        let number = self.scrubs.looks;
        self.scrub_stage(Stage::Looking(Look {
            range,
            number,
            view: self.row.view,
            asked: None,
            answers: BTreeMap::new(),
        }));
        //= docs/replication.md#C1
        if defect!(ScrubUnlocked) || self.locks.acquire(Holder::Scrub(number), range, false) {
            self.scrub_locked(now, number, out);
        }
    }

    /// The look has its lock: every member is asked.
    pub(super) fn scrub_locked(&mut self, now: Time, number: u64, out: &mut Vec<Command<P>>) {
        let Some(run) = &mut self.scrubs.run else { return };
        let Stage::Looking(look) = &mut run.stage else {
            return;
        };
        if look.number != number {
            return;
        }
        look.asked = Some(now);
        let range = look.range;
        let members: Vec<ReplicaId> = self.members().map(|(replica, _)| replica).collect();
        for replica in members {
            let message = data_message(Kind::Digest, range, false, Body::None);
            self.send(now, replica, message, Purpose::Digest(number), out);
        }
    }

    /// A member answered.
    pub(super) fn digested(&mut self, replica: ReplicaId, number: u64, answer: &[u8]) {
        let Some(run) = &mut self.scrubs.run else { return };
        let Stage::Looking(look) = &mut run.stage else {
            return;
        };
        //= docs/replication.md#C1
        if look.number == number || defect!(ScrubOldAnswer) {
            look.answers.insert(replica, digest::decode(answer, look.range));
        }
    }

    /// A member could not say: the volume has grown, and it has not heard of it yet, or has another idea of the range.
    pub(super) fn scrub_refused(&mut self, now: Time, number: u64, out: &mut Vec<Command<P>>) {
        let stage = self.scrubs.run.as_ref().map(|run| &run.stage);
        if matches!(stage, Some(Stage::Looking(look)) if look.number == number) {
            self.void_look(now, true, out);
        }
    }

    /// A look that says nothing: its lock goes, and its answers will not count.
    fn void_look(&mut self, now: Time, slow: bool, out: &mut Vec<Command<P>>) {
        let Some(run) = &mut self.scrubs.run else { return };
        let Stage::Looking(look) = &run.stage else { return };
        let number = look.number;
        run.stage = Stage::Resting;
        if slow {
            let (first, longest) = PAUSE;
            run.pause = (run.pause * 2).clamp(first, longest);
            run.next_at = now + run.pause;
        }
        self.forget_look(now, number, out);
    }

    /// What is still asked of members concerns nobody: to be slow with it is no reason to be removed.
    fn forget_look(&mut self, now: Time, number: u64, out: &mut Vec<Command<P>>) {
        for peer in self.peers.values_mut().filter(|_| !defect!(ScrubOldAnswer)) {
            peer.sent
                .retain(|_, sent| sent.purpose != Purpose::Digest(number));
        }
        self.unlock(now, Holder::Scrub(number), out);
    }

    /// Every member has answered.
    fn looked(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        let busy = self.has_client_io();
        let preferred = self.local.filter(|local| self.is_member(*local));
        let Some(run) = &mut self.scrubs.run else { return };
        let Stage::Looking(look) = &mut run.stage else {
            return;
        };
        let (range, number) = (look.range, look.number);
        let all: Option<BTreeMap<ReplicaId, Digests>> = std::mem::take(&mut look.answers)
            .into_iter()
            .map(|(replica, digests)| Some((replica, digests?)))
            .collect();
        let sectors = range.len <= BLOCK;
        let whole = |digests: &Digests| digests.units.len() as u64 == range.len.div_ceil(digest::unit(range));
        let Some(all) = all.filter(|all| !sectors || all.values().all(whole)) else {
            return self.void_look(now, true, out);
        };
        run.stage = Stage::Resting;
        run.pause = Duration::ZERO;
        let read = all.values().map(|digests| digests.read).max().unwrap_or(0);
        //= docs/replication.md#C5
        run.pace(now, u64::from(read), busy);
        let told = all
            .into_iter()
            .map(|(replica, digests)| (replica, digests.units))
            .collect();
        if sectors {
            let found = verdict::findings(range, &told, preferred);
            self.judged(found);
        } else {
            run.next = compare(range, &told, &mut run.suspects).min(self.row.size);
            if run.suspects.is_empty() {
                run.cursor = run.next;
            }
        }
        self.forget_look(now, number, out);
    }

    /// The sectors of a block were compared: for the first time, or after they were mended.
    fn judged(&mut self, found: Vec<Finding>) {
        let Some(run) = &mut self.scrubs.run else { return };
        let Some(case) = &mut run.case else {
            if found.is_empty() {
                return run.close_case();
            }
            run.found = run.found.saturating_add(small(found.len()));
            run.case = Some(Case::new(found));
            return;
        };
        //= docs/replication.md#C3
        let (still, new): (Vec<Finding>, Vec<Finding>) = found.into_iter().partition(|one| {
            let mut known = case.findings.iter();
            known.any(|known| known.range().overlaps(one.range()))
        });
        let differs = |one: &&Finding| still.iter().any(|still| still.range().overlaps(one.range()));
        let left = small(case.findings.iter().filter(differs).count());
        let left = if defect!(ScrubBlind) { 0 } else { left };
        // What most held may be in the minority once one of them has left: what was known is not turned round.
        let known = |one: &Finding| {
            let mut known = case.findings.iter();
            known.find(|known| known.range().overlaps(one.range())).cloned()
        };
        let turned = |one: &Finding| {
            let right = one.right;
            known(one)
                .is_some_and(|known| known.is_certain() && right.is_some_and(|id| known.wrong.contains(&id)))
        };
        let todo: Vec<Finding> = still
            .into_iter()
            .filter(|one| one.right.is_some() && !turned(one))
            .collect();
        //= docs/replication.md#C4
        let retold = todo.iter().any(|one| {
            known(one).is_some_and(|known| (known.right, &known.wrong) != (one.right, &one.wrong))
        });
        if left > 0 && case.tries < TRIES && !todo.is_empty() {
            // Once more, by what is said now; and if that is something else, it is told first.
            case.told &= !retold;
            if retold {
                case.findings.clone_from(&todo);
            }
            case.todo = todo;
            return;
        }
        run.left += left;
        run.mended += small(case.findings.len()).saturating_sub(left);
        if new.is_empty() {
            return run.close_case();
        }
        run.found = run.found.saturating_add(small(new.len()));
        run.case = Some(Case::new(new));
    }

    /// Has the differing sectors of the block at hand copied from where they are right.
    //= docs/replication.md#C3
    fn mend_case(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        let Some(run) = &mut self.scrubs.run else { return };
        let Some(case) = &mut run.case else { return };
        case.tries += 1;
        run.stage = Stage::Mending;
        for finding in std::mem::take(&mut case.todo) {
            let Some(source) = finding.right else { continue };
            let wrong = finding.wrong.iter().chain(&finding.unreadable);
            let targets = wrong
                .filter_map(|replica| self.peers.get(replica))
                .fold(0, |mask, peer| mask | peer.bit);
            let reason = Reason::Scrub { source, targets };
            self.begin_copy(now, finding.range(), reason, false, out);
        }
    }

    /// The one to copy from, if it still can be: not where it may lack what was acknowledged since.
    //= docs/replication.md#C3
    pub(super) fn scrub_source(&self, source: ReplicaId, range: ByteRange, failed: u16) -> Option<ReplicaId> {
        let peer = self.peers.get(&source)?;
        let sound = peer.is_right() && !overlaps_unequal(&self.unequal, range);
        let may = self.is_member(source) && peer.is_open() && failed & peer.bit == 0;
        (may && (sound || defect!(ScrubFromDoubt))).then_some(source)
    }

    fn tell_scrub(
        &mut self,
        now: Time,
        findings: Vec<Finding>,
        end: Option<ScrubEnd>,
        out: &mut Vec<Command<P>>,
    ) {
        let proposal = self.next_proposal;
        self.next_proposal += 1;
        let expect = self.epoch;
        let Some(run) = &mut self.scrubs.run else { return };
        let report = ScrubReport {
            run: run.ask.run,
            reports: run.reports,
            cursor: run.cursor,
            findings,
            mended: std::mem::take(&mut run.mended),
            left: std::mem::take(&mut run.left),
            end,
        };
        run.told = run.cursor;
        run.report_at = now + REPORT_EVERY;
        run.open = Some((proposal, report.clone()));
        let change = Change::Scrubbed { expect, report };
        out.push(Command::Propose { proposal, change });
    }

    /// The catalogue has heard a report, or knows better.
    pub(super) fn scrub_decided(
        &mut self,
        now: Time,
        proposal: u64,
        refused: bool,
        out: &mut Vec<Command<P>>,
    ) {
        let Some(run) = &mut self.scrubs.run else { return };
        let Some((_, report)) = run.open.take_if(|(id, _)| *id == proposal) else {
            return;
        };
        if refused {
            self.scrubs.refused = Some((report.run, report.reports));
            return self.drop_scrub(now, out);
        }
        run.reports = run.reports.saturating_add(1);
        if report.end.is_some() {
            self.scrubs.ended = Some(report.run);
            return self.drop_scrub(now, out);
        }
        if let (Stage::Telling, Some(case)) = (&run.stage, &mut run.case) {
            case.told = true;
            run.stage = Stage::Resting;
        }
    }

    fn drop_scrub(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        self.void_look(now, false, out);
        self.scrubs.run = None;
        out.push(Command::StateChanged);
    }
}

/// Appends the blocks of `range` that are not the same everywhere; answers where the shortest answer ends.
fn compare(
    range: ByteRange,
    told: &BTreeMap<ReplicaId, Vec<Unit>>,
    suspects: &mut VecDeque<ByteRange>,
) -> u64 {
    let shortest = told.values().map(Vec::len).min().unwrap_or(0);
    for index in 0..shortest {
        let mut units = told.values().filter_map(|units| units.get(index));
        let first = units.next();
        let same = first != Some(&Unit::Unreadable) && units.all(|unit| Some(unit) == first);
        if !same {
            let offset = range.offset + index as u64 * BLOCK;
            suspects.push_back(ByteRange::new(offset, BLOCK.min(range.end() - offset)));
        }
    }
    (range.offset + shortest as u64 * BLOCK).min(range.end())
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
