//! A snapshot of the volume at one moment, equal on all members.
//!
//! ```text
//!          all could, nothing unequal    writes have ended    flushed by all     its group holds too
//!  Asking -----------------------------> Draining -------> Flushing -------> Holding -------> Taking
//!  writes go on          writes wait from here on |                                             | all have it
//!                                                 v                                             v
//!                         5 s, or anything changes: void, tried no more <------------------- Proposed
//!                                                                         refused               | agreed
//!                                                                                               v ready
//! ```
//!
//! An attempt that is void leaves copies behind. They are never taken for another attempt's, which replaces them;
//! the catalogue, told that it failed, has them removed.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::io::Io;
use super::message::{Message, Purpose};
use super::{Command, Engine, Phase};
use crate::body::Body;
use crate::catalogue::{Change, SnapshotTrouble};
use crate::ids::{IoId, ReplicaId, SnapshotId, View};
use crate::time::Time;
use crate::wire::{Kind, Status};

/// How long writes are held for a snapshot at most. Kernels and programs bear it; a copy that shares blocks takes
/// milliseconds.
pub const GATE: Duration = Duration::from_secs(5);
/// Pause before a member that could not say whether it could is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// What the catalogue wants made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotAsk {
    /// Which.
    pub snapshot: SnapshotId,
    /// Others of its group do not hold their writes yet: hold them, and make it when this is not set any more.
    pub hold: bool,
}

/// How far an attempt is, for reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotStage {
    /// Waits for members to be there and equal; writes go on.
    Waiting,
    /// Writes are held, those under way end and are flushed.
    Holding,
    /// All that was written is durable and writes are held: others of the group may go on.
    Held,
    /// Members make their copies, or the catalogue decides.
    Making,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Asking { again: Time },
    Draining,
    Flushing { io: IoId },
    Holding,
    Taking,
    Proposed { proposal: u64 },
}

#[derive(Debug)]
struct Attempt {
    snapshot: SnapshotId,
    /// Tells its answers from those of others.
    number: u64,
    stage: Stage,
    /// Writes are held since.
    closed: Option<Time>,
    /// When they began to be held.
    view: View,
    /// Bits of the members that said yes: that they could, then that they have.
    done: u16,
}

/// What an engine knows of snapshots.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    asked: Option<SnapshotAsk>,
    attempt: Option<Attempt>,
    /// Made or given up by this engine; the catalogue may not know yet.
    ended: Option<SnapshotId>,
    /// Writes that wait for the gate.
    gated: VecDeque<IoId>,
    attempts: u64,
}

impl Snapshots {
    pub(super) fn ask(&mut self, ask: Option<SnapshotAsk>) {
        self.asked = ask;
    }

    pub(super) fn holds_writes(&self) -> bool {
        self.attempt
            .as_ref()
            .is_some_and(|attempt| attempt.closed.is_some())
    }

    pub(super) fn hold(&mut self, io: IoId) {
        self.gated.push_back(io);
    }

    pub(super) fn is_busy(&self) -> bool {
        self.attempt.is_some()
    }

    /// The engine ends: nobody is to be answered by what waits here.
    pub(super) fn end(&mut self) {
        self.attempt = None;
        self.asked = None;
        self.gated.clear();
    }

    fn begin(&mut self, now: Time, snapshot: SnapshotId, view: View) {
        self.attempts += 1;
        self.attempt = Some(Attempt {
            snapshot,
            number: self.attempts,
            stage: Stage::Asking { again: now },
            closed: None,
            view,
            done: 0,
        });
    }

    fn wants(&self, snapshot: SnapshotId) -> bool {
        self.asked.is_some_and(|ask| ask.snapshot == snapshot)
    }

    fn holds_for_others(&self) -> bool {
        self.asked.is_some_and(|ask| ask.hold)
    }

    fn move_to(&mut self, stage: Stage) {
        if let Some(attempt) = &mut self.attempt {
            attempt.stage = stage;
        }
    }
}

impl<P: Clone> Engine<P> {
    /// The snapshot at hand and how far it is.
    pub fn snapshot(&self) -> Option<(SnapshotId, SnapshotStage)> {
        let attempt = self.snapshots.attempt.as_ref()?;
        let stage = match attempt.stage {
            Stage::Asking { .. } => SnapshotStage::Waiting,
            Stage::Draining | Stage::Flushing { .. } => SnapshotStage::Holding,
            Stage::Holding => SnapshotStage::Held,
            Stage::Taking | Stage::Proposed { .. } => SnapshotStage::Making,
        };
        Some((attempt.snapshot, stage))
    }

    /// Goes on with the snapshot as far as it can.
    pub(super) fn tend_snapshot(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        let Some(attempt) = &self.snapshots.attempt else {
            return self.begin_snapshot(now);
        };
        let proposed = matches!(attempt.stage, Stage::Proposed { .. });
        let (snapshot, closed, late) = (attempt.snapshot, attempt.closed.is_some(), self.is_late(now));
        if !proposed && self.phase != Phase::Active {
            return self.give_up_snapshot(now, SnapshotTrouble::Stopped, None, out);
        }
        if !proposed && !self.snapshots.wants(snapshot) {
            return self.end_snapshot(now, out);
        }
        //= docs/replication.md#S5
        if late && (proposed || defect!(SnapshotLate)) {
            // Whether it is ready is being decided; writes need not wait for that.
            self.open_gate(now, out);
        } else if late {
            return self.give_up_snapshot(now, SnapshotTrouble::TimedOut, None, out);
        }
        if closed && !proposed && self.is_disturbed() {
            return self.give_up_snapshot(now, SnapshotTrouble::Disturbed, None, out);
        }
        while self.next_stage(now, out) {}
    }

    fn begin_snapshot(&mut self, now: Time) {
        let asked = self.snapshots.asked.map(|ask| ask.snapshot);
        if let Some(snapshot) = asked.filter(|asked| self.snapshots.ended != Some(*asked))
            && self.phase == Phase::Active
        {
            self.snapshots.begin(now, snapshot, self.row.view);
            self.stirred = true;
        }
    }

    fn is_late(&self, now: Time) -> bool {
        let closed = self.snapshots.attempt.as_ref().and_then(|attempt| attempt.closed);
        closed.is_some_and(|since| now.since(since) >= GATE) && !defect!(SnapshotGateStays)
    }

    /// Members may differ, or lack what was acknowledged.
    //= docs/replication.md#S3
    fn may_differ(&self) -> bool {
        !defect!(SnapshotUnequal)
            && (!self.unequal.is_clear() || self.members().any(|(_, peer)| !peer.is_right()))
    }

    /// All members are there, and whatever changed of the set is known to them.
    fn is_whole(&self) -> bool {
        !self.gate && self.members().all(|(_, peer)| peer.is_ready()) && self.members().next().is_some()
    }

    /// Something changed since the gate was closed that the copies may not have in common.
    //= docs/replication.md#S4
    fn is_disturbed(&self) -> bool {
        let moved = self
            .snapshots
            .attempt
            .as_ref()
            .is_some_and(|attempt| attempt.view != self.row.view);
        (moved || !self.is_whole() || self.may_differ()) && !defect!(SnapshotDisturbed)
    }

    /// Every member said yes to what it was asked last.
    fn is_unanimous(&self) -> bool {
        let done = self.snapshots.attempt.as_ref().map_or(0, |attempt| attempt.done);
        let mut members = self.members();
        if defect!(SnapshotOfSome) {
            return members.any(|(_, peer)| done & peer.bit != 0);
        }
        members.all(|(_, peer)| done & peer.bit != 0)
    }

    /// Does what the present stage waits for, if it can be done now; whether there is a next one.
    fn next_stage(&mut self, now: Time, out: &mut Vec<Command<P>>) -> bool {
        let Some(attempt) = &self.snapshots.attempt else {
            return false;
        };
        let (stage, number) = (attempt.stage, attempt.number);
        match stage {
            Stage::Asking { again } => {
                if self.is_unanimous() && self.is_whole() && !self.may_differ() {
                    self.close_gate(now);
                    return true;
                }
                if again <= now {
                    self.snapshots.move_to(Stage::Asking {
                        again: now + ASK_AGAIN,
                    });
                    self.ask_members(now, Kind::MaySnapshot, &Purpose::MaySnapshot(number), out);
                }
                false
            }
            //= docs/replication.md#S1
            Stage::Draining if self.is_drained() || defect!(SnapshotUndrained) => {
                if defect!(SnapshotUnflushed) {
                    self.snapshots.move_to(Stage::Holding);
                    return true;
                }
                let io = self.own_flush(now, out);
                self.snapshots.move_to(Stage::Flushing { io });
                true
            }
            Stage::Flushing { io } if !self.is_pending(io) => {
                self.snapshots.move_to(Stage::Holding);
                out.push(Command::StateChanged);
                true
            }
            Stage::Holding if !self.snapshots.holds_for_others() => {
                self.snapshots.move_to(Stage::Taking);
                self.ask_members(now, Kind::Snapshot, &Purpose::Snapshot(number), out);
                true
            }
            Stage::Taking if self.is_unanimous() => {
                self.propose_snapshot(out);
                false
            }
            Stage::Draining
            | Stage::Flushing { .. }
            | Stage::Holding
            | Stage::Taking
            | Stage::Proposed { .. } => false,
        }
    }

    fn close_gate(&mut self, now: Time) {
        let view = self.row.view;
        if let Some(attempt) = &mut self.snapshots.attempt {
            attempt.closed = Some(now);
            attempt.view = view;
            attempt.done = 0;
            attempt.stage = Stage::Draining;
        }
    }

    /// Every write that began is on every member, and no copy is on its way to one.
    fn is_drained(&self) -> bool {
        let gated = &self.snapshots.gated;
        let open = |(id, io): (&IoId, &Io<P>)| io.writes_without(self.required) && !gated.contains(id);
        !self.ios.iter().any(open) && !self.copies_to_members()
    }

    fn ask_members(&mut self, now: Time, kind: Kind, purpose: &Purpose, out: &mut Vec<Command<P>>) {
        let Some(attempt) = &self.snapshots.attempt else {
            return;
        };
        let (id, done) = (attempt.snapshot.0.as_bytes().to_vec(), attempt.done);
        let members: Vec<ReplicaId> = self
            .members()
            .filter(|(_, peer)| done & peer.bit == 0)
            .map(|(replica, _)| replica)
            .collect();
        for replica in members {
            let message = Message {
                body: Body::Bytes(id.clone()),
                ..Message::plain(kind)
            };
            self.send(now, replica, message, purpose.clone(), out);
        }
    }

    fn propose_snapshot(&mut self, out: &mut Vec<Command<P>>) {
        let proposal = self.next_proposal;
        self.next_proposal += 1;
        let members = self.members().map(|(replica, _)| replica).collect();
        let Some(attempt) = &mut self.snapshots.attempt else {
            return;
        };
        attempt.stage = Stage::Proposed { proposal };
        let change = Change::SnapshotReady {
            expect: attempt.view,
            snapshot: attempt.snapshot,
            members,
        };
        out.push(Command::Propose { proposal, change });
    }

    /// A member said yes.
    pub(super) fn snapshot_answered(&mut self, replica: ReplicaId, purpose: &Purpose) {
        let bit = self.peers.get(&replica).map_or(0, |peer| peer.bit);
        if let Some(attempt) = &mut self.snapshots.attempt
            && is_answer(attempt, purpose)
        {
            attempt.done |= bit;
        }
    }

    /// A member said no.
    pub(super) fn snapshot_refused(
        &mut self,
        now: Time,
        replica: ReplicaId,
        purpose: &Purpose,
        status: Status,
        out: &mut Vec<Command<P>>,
    ) {
        let attempt = self.snapshots.attempt.as_ref();
        if !attempt.is_some_and(|attempt| is_answer(attempt, purpose)) {
            return;
        }
        let asking = matches!(purpose, Purpose::MaySnapshot(_));
        let why = match status {
            // Asked again: it may not have heard of it, or of the view.
            Status::SnapshotUnknown | Status::WrongView if asking => return,
            Status::SnapshotUnsupported => SnapshotTrouble::NotSupported,
            Status::NoSpace => SnapshotTrouble::NoSpace,
            Status::SnapshotFailed | Status::DiskFailed | Status::MediaError => SnapshotTrouble::DiskFailed,
            Status::Ok
            | Status::Fenced
            | Status::WrongView
            | Status::NotOpen
            | Status::WrongReplica
            | Status::Invalid
            | Status::NoMap
            | Status::WrongLineage
            | Status::NotAuthorised
            | Status::SnapshotUnknown => SnapshotTrouble::Disturbed,
        };
        self.give_up_snapshot(now, why, Some(replica), out);
    }

    /// The catalogue has decided. Until it has, the copies may be what it says is ready.
    pub(super) fn snapshot_decided(
        &mut self,
        now: Time,
        proposal: u64,
        refused: bool,
        out: &mut Vec<Command<P>>,
    ) {
        let attempt = self.snapshots.attempt.as_ref();
        if attempt.is_none_or(|attempt| attempt.stage != Stage::Proposed { proposal }) {
            return;
        }
        if refused {
            return self.give_up_snapshot(now, SnapshotTrouble::Disturbed, None, out);
        }
        self.counters.snapshots += 1;
        self.end_snapshot(now, out);
    }

    /// The attempt is void: the catalogue has what there is of it removed.
    fn give_up_snapshot(
        &mut self,
        now: Time,
        why: SnapshotTrouble,
        replica: Option<ReplicaId>,
        out: &mut Vec<Command<P>>,
    ) {
        let snapshot = self.snapshots.attempt.as_ref().map(|attempt| attempt.snapshot);
        self.end_snapshot(now, out);
        let Some(snapshot) = snapshot else { return };
        let change = Change::SnapshotFailed {
            expect: self.epoch,
            snapshot,
            why,
            replica,
        };
        let proposal = self.next_proposal;
        self.next_proposal += 1;
        out.push(Command::Propose { proposal, change });
    }

    fn end_snapshot(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        self.open_gate(now, out);
        let Some(attempt) = self.snapshots.attempt.take() else {
            return;
        };
        if self.snapshots.wants(attempt.snapshot) {
            self.snapshots.ended = Some(attempt.snapshot);
        }
        // What is still asked of members concerns nobody: a slow copy is no reason to remove one.
        let of = |purpose: &Purpose| matches!(purpose, Purpose::MaySnapshot(_) | Purpose::Snapshot(_));
        for peer in self.peers.values_mut().filter(|_| !defect!(SnapshotOldAnswer)) {
            peer.sent.retain(|_, sent| !of(&sent.purpose));
        }
        self.stirred = true;
        out.push(Command::StateChanged);
    }

    fn open_gate(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        let Some(attempt) = &mut self.snapshots.attempt else {
            return;
        };
        if let Some(since) = attempt.closed.take() {
            let held = u64::try_from(now.since(since).as_micros()).unwrap_or(u64::MAX);
            self.counters.held_last_us = held;
            self.counters.held_longest_us = self.counters.held_longest_us.max(held);
        }
        for io in std::mem::take(&mut self.snapshots.gated) {
            self.begin(now, io, out);
        }
    }
}

/// Whether it is what the attempt waits for.
fn is_answer(attempt: &Attempt, purpose: &Purpose) -> bool {
    let of_it = |number: u64| number == attempt.number || defect!(SnapshotOldAnswer);
    match (attempt.stage, purpose) {
        (Stage::Asking { .. }, Purpose::MaySnapshot(number)) | (Stage::Taking, Purpose::Snapshot(number)) => {
            of_it(*number)
        }
        _ => false,
    }
}
