//! Bringing a replica that missed writes back into the in-sync set (R3, R9 to R13).
//!
//! ```text
//!  Telling -> OwnMap -> MissedMap -> Handing -> Copying -> Draining -> Flushing -> Joining -> Proposed
//!                       `---- live writes go to it too ------------------------------------------´
//!                                                          `--- its acknowledgement is required -´
//! ```
//!
//! Until the catalogue has added it, nothing is read from it (R13). Whatever goes wrong ends the attempt:
//! its connection is closed, so that nothing of the attempt can reach its disk later, and the next one
//! begins with what the maps say then, which is less.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use super::message::{Message, Purpose, Sent};
use super::missed::Hand;
use super::peer::Peer;
use super::{Command, Engine, Phase, Progress};
use crate::bitmap::Bitmap;
use crate::body::Body;
use crate::catalogue::{Change, MemberState};
use crate::ids::{ConfigSeq, OpId, ReplicaId};
use crate::range::BLOCK;
use crate::time::Time;
use crate::wire::{DIRTY_MAP, Kind, Status, flags};

/// A replica that fails again soon waits this long before its next resync, doubling (case 18).
const HOLD_FIRST: Duration = Duration::from_secs(10);
const HOLD_LAST: Duration = Duration::from_mins(10);
/// In sync for this long, it is no longer taken for flapping.
const STEADY: Duration = Duration::from_mins(5);
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// It learns the view its requests will carry.
    Telling,
    /// Its own dirty map: writes nobody else may have (case 8).
    OwnMap,
    /// What the members know it missed.
    MissedMap,
    /// It is given the maps of replicas that stay absent (case 17).
    Handing(Hand),
    Copying,
    /// Everything sent before its acknowledgement counted must have reached it.
    Draining {
        before: OpId,
    },
    Flushing,
    Joining,
    Proposed,
}

/// A resync under way.
#[derive(Debug)]
pub(super) struct Sync {
    pub(super) stage: Stage,
    /// The member whose maps are used.
    pub(super) source: Option<ReplicaId>,
    pub(super) tried: u16,
    /// Blocks it still lacks.
    pub(super) need: Bitmap,
    pub(super) total: u64,
    /// Blocks copied since the last checkpoint, and those a checkpoint's flush is under way for.
    pub(super) copied: Bitmap,
    pub(super) flushing: Option<Bitmap>,
    pub(super) since_checkpoint: u64,
    /// Blocks written by clients after they were copied: the members' maps keep them.
    pub(super) touched: Bitmap,
    /// Regions that are dirty on it.
    pub(super) regions: Bitmap,
    pub(super) hand: VecDeque<(ReplicaId, ConfigSeq)>,
    /// Blocks that were data when the source was last asked: not worth another question.
    pub(super) data: Range<u64>,
}

impl Sync {
    /// Its acknowledgement counts.
    pub(super) fn is_joint(&self) -> bool {
        matches!(
            self.stage,
            Stage::Draining { .. } | Stage::Flushing | Stage::Joining | Stage::Proposed
        )
    }

    /// Clients' writes go to it.
    pub(super) fn mirrors(&self) -> bool {
        !matches!(self.stage, Stage::Telling | Stage::OwnMap)
    }
}

impl<P> Peer<P> {
    /// It failed: the next resync waits, longer each time, unless it had been steady.
    pub(super) fn hold_back(&mut self, now: Time) {
        if self.joined.is_some_and(|joined| now.since(joined) > STEADY) {
            self.hold = Duration::ZERO;
        }
        self.sync_at = now + self.hold;
        self.hold = if self.hold.is_zero() {
            HOLD_FIRST
        } else {
            (self.hold * 2).min(HOLD_LAST)
        };
    }
}

impl<P: Clone> Engine<P> {
    /// Running resyncs.
    pub fn progress(&self) -> Vec<Progress> {
        let of = |(replica, peer): (&ReplicaId, &Peer<P>)| {
            let sync = peer.sync.as_ref()?;
            let left = sync.need.count() * BLOCK;
            Some(Progress {
                replica: *replica,
                total: sync.total,
                done: sync.total.saturating_sub(left),
            })
        };
        self.peers.iter().filter_map(of).collect()
    }

    /// Begins a resync where one is due, and moves the running one on.
    pub(super) fn tend_syncs(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        if self.phase != Phase::Active || !self.unequal.is_clear() {
            return;
        }
        let running = self
            .peers
            .iter()
            .find(|(_, peer)| peer.sync.is_some())
            .map(|(replica, _)| *replica);
        match running {
            Some(replica) => self.pump_sync(now, replica, out),
            None if self.members().any(|(_, peer)| peer.is_open()) => {
                let due = |replica: ReplicaId, peer: &Peer<P>| {
                    !self.is_member(replica) && peer.is_open() && peer.sync_at <= now && self.can_sync(peer)
                };
                let next = self
                    .peers
                    .iter()
                    .find(|(replica, peer)| due(**replica, peer))
                    .map(|(id, _)| *id);
                if let Some(replica) = next {
                    self.begin_sync(now, replica, out);
                }
            }
            None => {}
        }
    }

    /// Another history or too small a disk is for the operator to resolve.
    fn can_sync(&self, peer: &Peer<P>) -> bool {
        let fits = |info: &crate::info::Info| {
            info.lineage == self.row.lineage && (info.size >= self.row.size || defect!(TooSmallJoins))
        };
        peer.info.as_ref().is_some_and(fits)
    }

    fn begin_sync(&mut self, now: Time, replica: ReplicaId, out: &mut Vec<Command<P>>) {
        let (blocks, regions) = (self.blocks(), self.regions());
        let absent = |(id, member): (&ReplicaId, &crate::catalogue::Member)| match member.state {
            MemberState::Stale {
                since: Some(since), ..
            } if *id != replica => Some((*id, since)),
            MemberState::Stale { .. } | MemberState::InSync => None,
        };
        let hand = self.row.replicas.iter().filter_map(absent).collect();
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        peer.sync = Some(Sync {
            stage: Stage::Telling,
            source: None,
            tried: 0,
            need: Bitmap::new(blocks),
            total: 0,
            copied: Bitmap::new(blocks),
            flushing: None,
            since_checkpoint: 0,
            touched: Bitmap::new(blocks),
            regions: Bitmap::new(regions),
            hand,
            data: 0..0,
        });
        let message = Message {
            body: Body::Bytes(crate::info::Roster::default().encode()),
            ..Message::plain(Kind::StoreView)
        };
        self.send(now, replica, message, Purpose::Sync(replica), out);
    }

    /// A step of a resync was answered, by the returning replica or by a member.
    pub(super) fn sync_answered(
        &mut self,
        now: Time,
        replica: ReplicaId,
        sent: &Sent<P>,
        status: Status,
        bytes: &[u8],
        out: &mut Vec<Command<P>>,
    ) {
        let Purpose::Sync(target) = sent.purpose else {
            return;
        };
        let Some(sync) = self.peers.get_mut(&target).and_then(|peer| peer.sync.as_mut()) else {
            return;
        };
        let words = (sent.offset, bytes, status == Status::Ok);
        match (sync.stage.clone(), sent.kind) {
            (Stage::Telling, Kind::StoreView) => {
                sync.stage = Stage::OwnMap;
                self.ask_map(now, target, target, DIRTY_MAP, None, 0, out);
            }
            (Stage::OwnMap, Kind::GetMap) if replica == target => self.own_words(now, target, words, out),
            (Stage::MissedMap, Kind::GetMap) => self.missed_words(now, target, words, out),
            (Stage::Handing(hand), _) => self.handed(now, target, &hand, words, out),
            (_, Kind::Flush) if sync.flushing.is_some() => self.checkpointed(now, target, out),
            (Stage::Flushing, kind) if kind == Kind::Flush || defect!(JoinUnflushed) => {
                sync.stage = Stage::Joining;
                let message = Message {
                    flags: flags::MEMBER | flags::WHOLE,
                    body: Body::Bytes(self.roster(Some(target)).encode()),
                    ..Message::plain(Kind::StoreView)
                };
                self.send(now, target, message, Purpose::Sync(target), out);
            }
            (Stage::Joining, Kind::StoreView) => {
                sync.stage = Stage::Proposed;
                self.stirred = true;
            }
            _ => {}
        }
    }

    fn pump_sync(&mut self, now: Time, target: ReplicaId, out: &mut Vec<Command<P>>) {
        let Some(peer) = self.peers.get(&target) else {
            return;
        };
        let Some(sync) = &peer.sync else { return };
        match sync.stage {
            Stage::Copying => self.pump_copies(now, target, out),
            Stage::Draining { before } => {
                let mut owed = peer
                    .sent
                    .iter()
                    .filter(|(op, sent)| **op < before && sent.purpose.lasts());
                if owed.next().is_none() || defect!(JoinUndrained) {
                    if let Some(sync) = self.sync_of(target) {
                        sync.stage = Stage::Flushing;
                    }
                    let kind = if defect!(JoinUnflushed) {
                        Kind::Ping
                    } else {
                        Kind::Flush
                    };
                    self.send(now, target, Message::plain(kind), Purpose::Sync(target), out);
                }
            }
            Stage::Proposed
                if self.proposal.is_none() && self.refused_until.is_none_or(|until| until <= now) =>
            {
                self.propose(
                    Change::Add {
                        expect: self.row.view,
                        member: target,
                    },
                    Some(target),
                    out,
                );
            }
            Stage::Telling
            | Stage::OwnMap
            | Stage::MissedMap
            | Stage::Handing(_)
            | Stage::Flushing
            | Stage::Joining
            | Stage::Proposed => {}
        }
    }

    /// Everything is copied: from here on its acknowledgement counts, and once all sent before has
    /// arrived it is flushed, so that what was flushed on the others is durable on it too.
    //= docs/replication.md#R3
    pub(super) fn begin_joint(&mut self, now: Time, target: ReplicaId, out: &mut Vec<Command<P>>) {
        if self.proposal.is_some() {
            return;
        }
        let before = OpId(self.next_op);
        let Some(sync) = self.sync_of(target) else { return };
        if sync.flushing.is_some() {
            return;
        }
        sync.stage = Stage::Draining { before };
        self.update_required();
        for io in self.pending_flushes() {
            self.send(now, target, Message::plain(Kind::Flush), Purpose::Io(io), out);
        }
        self.stirred = true;
    }

    /// The catalogue added it. No flush before this covers it, and its dirty regions are now everyone's.
    pub(super) fn joined(&mut self, now: Time, replica: ReplicaId) {
        if !defect!(FlushesKept) {
            self.tracker.forget_flushes();
        }
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        peer.joined = Some(now);
        peer.dirty.get_or_insert_default();
        if let Some(sync) = peer.sync.take() {
            for region in sync.regions.iter() {
                self.tracker.mark(now, region);
            }
        }
    }

    /// Ends an attempt. The connection is closed: a copy still under way must not reach the disk after
    /// a later write that this replica does not get.
    pub(super) fn abort_sync(&mut self, now: Time, replica: ReplicaId, out: &mut Vec<Command<P>>) {
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        if peer.sync.take().is_none() {
            return;
        }
        peer.hold_back(now);
        let fault = peer.fault;
        if let Some(fault) = fault
            .or(Some(crate::catalogue::EjectReason::Unreachable))
            .filter(|_| peer.is_open() && !defect!(AttemptLeftOpen))
        {
            self.give_up_on(now, replica, fault, out);
        }
        self.drop_copies_for(now, replica, out);
        self.update_required();
        self.try_ack_all(now, out);
        self.stirred = true;
    }

    /// A member whose maps were being read is gone.
    pub(super) fn abort_syncs_from(&mut self, now: Time, source: ReplicaId, out: &mut Vec<Command<P>>) {
        let reads = |sync: &Sync| {
            sync.source == Some(source) && matches!(sync.stage, Stage::MissedMap | Stage::Handing(_))
        };
        let targets: Vec<ReplicaId> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.sync.as_ref().is_some_and(reads))
            .map(|(replica, _)| *replica)
            .collect();
        for target in targets {
            self.abort_sync(now, target, out);
        }
    }

    pub(super) fn sync_of(&mut self, target: ReplicaId) -> Option<&mut Sync> {
        self.peers.get_mut(&target).and_then(|peer| peer.sync.as_mut())
    }
}
