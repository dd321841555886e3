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
use std::time::Duration;

use super::copy::{COPIES, Reason, run_at};
use super::peer::{Message, Peer, Purpose, Sent};
use super::{Command, Engine, Phase, Progress};
use crate::bitmap::Bitmap;
use crate::body::Body;
use crate::catalogue::{Change, MemberState};
use crate::ids::{ConfigSeq, OpId, ReplicaId};
use crate::range::{BLOCK, ByteRange};
use crate::time::Time;
use crate::wire::{DIRTY_MAP, Kind, Status, flags};

/// A replica that fails again soon waits this long before its next resync, doubling (case 18).
const HOLD_FIRST: Duration = Duration::from_secs(10);
const HOLD_LAST: Duration = Duration::from_mins(10);
/// In sync for this long, it is no longer taken for flapping.
const STEADY: Duration = Duration::from_mins(5);
/// Copied bytes after which the target is flushed and the maps of the members are cleared: what an
/// interruption costs (case 16).
const CHECKPOINT: u64 = 64 << 20;

#[derive(Clone, PartialEq, Eq, Debug)]
enum Stage {
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

#[derive(Clone, PartialEq, Eq, Debug)]
enum Hand {
    Next,
    Probe(ReplicaId, ConfigSeq),
    Begin(ReplicaId, ConfigSeq),
    Read(ReplicaId, ConfigSeq, u64),
    Put(ReplicaId, ConfigSeq, u64),
}

/// A resync under way.
#[derive(Debug)]
pub(super) struct Sync {
    stage: Stage,
    /// The member whose maps are used.
    source: Option<ReplicaId>,
    tried: u16,
    /// Blocks it still lacks.
    need: Bitmap,
    total: u64,
    /// Blocks copied since the last checkpoint, and those a checkpoint's flush is under way for.
    copied: Bitmap,
    flushing: Option<Bitmap>,
    since_checkpoint: u64,
    /// Blocks written by clients after they were copied: the members' maps keep them.
    touched: Bitmap,
    /// Regions that are dirty on it.
    regions: Bitmap,
    hand: VecDeque<(ReplicaId, ConfigSeq)>,
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
        let fits = |info: &crate::info::Info| info.lineage == self.row.lineage && info.size >= self.row.size;
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
            (Stage::Flushing, Kind::Flush) => {
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

    #[expect(
        clippy::too_many_arguments,
        reason = "names one page of one map at one replica"
    )]
    fn ask_map(
        &mut self,
        now: Time,
        target: ReplicaId,
        at: ReplicaId,
        map: u32,
        since: Option<ConfigSeq>,
        from: u64,
        out: &mut Vec<Command<P>>,
    ) {
        let body = since.map_or(Body::None, |since| Body::Bytes(since.0.to_le_bytes().to_vec()));
        let message = Message {
            kind: Kind::GetMap,
            flags: 0,
            offset: from,
            length: map,
            body,
        };
        self.send(now, at, message, Purpose::Sync(target), out);
    }

    //= docs/replication.md#R11
    fn own_words(&mut self, now: Time, target: ReplicaId, words: Words<'_>, out: &mut Vec<Command<P>>) {
        let total = self.regions().div_ceil(64);
        let Some(sync) = self.sync_of(target) else { return };
        let (from, bytes, _) = words;
        sync.regions.or_bytes(from, bytes);
        let next = from + bytes.len() as u64 / 8;
        if next < total && !bytes.is_empty() {
            return self.ask_map(now, target, target, DIRTY_MAP, None, next, out);
        }
        sync.need = sync.regions.regions_to_blocks(sync.need.len());
        sync.stage = Stage::MissedMap;
        self.ask_missed(now, target, out);
    }

    /// Asks a member what the replica missed; without anyone who knows, it gets everything.
    //= docs/replication.md#R11
    fn ask_missed(&mut self, now: Time, target: ReplicaId, out: &mut Vec<Command<P>>) {
        let since = self.since_of(target);
        let tried = self.sync_of(target).map_or(0, |sync| sync.tried);
        let source = self
            .members()
            .find(|(_, peer)| peer.is_open() && tried & peer.bit == 0);
        let source = source.map(|(replica, peer)| (replica, peer.bit));
        if !self.members().any(|(_, peer)| peer.is_open()) {
            return self.abort_sync(now, target, out);
        }
        let Some(sync) = self.sync_of(target) else { return };
        if let (Some(since), Some((source, bit))) = (since, source) {
            sync.source = Some(source);
            sync.tried |= bit;
            return self.ask_map(now, target, source, target.0, Some(since), 0, out);
        }
        sync.need = Bitmap::full(sync.need.len());
        self.begin_handing(now, target, out);
    }

    /// The config that removed the replica, if its own superblock is not older than its last joining.
    fn since_of(&self, target: ReplicaId) -> Option<ConfigSeq> {
        let member = self.row.replicas.get(&target)?;
        let info = self.peers.get(&target)?.info.as_ref()?;
        match member.state {
            MemberState::Stale { since, .. } if info.stored.config.next() >= member.joined? => since,
            MemberState::Stale { .. } | MemberState::InSync => None,
        }
    }

    fn missed_words(&mut self, now: Time, target: ReplicaId, words: Words<'_>, out: &mut Vec<Command<P>>) {
        let (from, bytes, known) = words;
        if !known {
            return self.ask_missed(now, target, out);
        }
        let since = self.since_of(target);
        let Some(sync) = self.sync_of(target) else { return };
        sync.need.or_bytes(from, bytes);
        let next = from + bytes.len() as u64 / 8;
        if next < sync.need.len().div_ceil(64) && !bytes.is_empty() {
            let Some(source) = sync.source else { return };
            return self.ask_map(now, target, source, target.0, since, next, out);
        }
        self.begin_handing(now, target, out);
    }

    fn begin_handing(&mut self, now: Time, target: ReplicaId, out: &mut Vec<Command<P>>) {
        let source = self
            .members()
            .find(|(_, peer)| peer.is_open())
            .map(|(replica, _)| replica);
        let Some(sync) = self.sync_of(target) else { return };
        sync.total = sync.need.count() * BLOCK;
        sync.source = sync.source.or(source);
        if sync.source.is_none() {
            return self.abort_sync(now, target, out);
        }
        self.handed(now, target, &Hand::Next, (0, &[], true), out);
    }

    /// Gives the returning replica the maps of those that stay absent, so that it can take the place of
    /// their source: first it begins to mark new writes, then it gets the old ones.
    fn handed(
        &mut self,
        now: Time,
        target: ReplicaId,
        hand: &Hand,
        words: Words<'_>,
        out: &mut Vec<Command<P>>,
    ) {
        let (from, bytes, known) = words;
        let Some(sync) = self.sync_of(target) else { return };
        let Some(source) = sync.source else { return };
        let blocks = sync.need.len();
        let next = match hand {
            Hand::Next => None,
            Hand::Probe(absent, since) => known.then_some(Hand::Begin(*absent, *since)),
            Hand::Begin(absent, since) => Some(Hand::Read(*absent, *since, 0)),
            Hand::Read(absent, since, _) => known.then_some(Hand::Put(*absent, *since, from)),
            Hand::Put(absent, since, page) => {
                let next = page + MAP_WORDS;
                (next < blocks.div_ceil(64)).then_some(Hand::Read(*absent, *since, next))
            }
        };
        let next = next.or_else(|| {
            sync.hand
                .pop_front()
                .map(|(absent, since)| Hand::Probe(absent, since))
        });
        let Some(next) = next else {
            sync.stage = Stage::Copying;
            self.stirred = true;
            return;
        };
        sync.stage = Stage::Handing(next.clone());
        match next {
            Hand::Next => {}
            Hand::Probe(absent, since) => self.ask_map(now, target, source, absent.0, Some(since), 0, out),
            Hand::Read(absent, since, from) => {
                self.ask_map(now, target, source, absent.0, Some(since), from, out);
            }
            Hand::Begin(absent, since) => self.put_map(now, target, absent, since, (0, &[], true), out),
            Hand::Put(absent, since, page) => {
                self.put_map(now, target, absent, since, (page, bytes, true), out);
            }
        }
    }

    fn put_map(
        &mut self,
        now: Time,
        target: ReplicaId,
        absent: ReplicaId,
        since: ConfigSeq,
        (from, words, _): Words<'_>,
        out: &mut Vec<Command<P>>,
    ) {
        let mut body = since.0.to_le_bytes().to_vec();
        body.extend(words.iter().take(crate::wire::MAX_CONTROL as usize - 8));
        let message = Message {
            kind: Kind::PutMap,
            flags: 0,
            offset: from,
            length: absent.0,
            body: Body::Bytes(body),
        };
        self.send(now, target, message, Purpose::Sync(target), out);
    }

    fn pump_sync(&mut self, now: Time, target: ReplicaId, out: &mut Vec<Command<P>>) {
        let Some(peer) = self.peers.get(&target) else {
            return;
        };
        let Some(sync) = &peer.sync else { return };
        match sync.stage {
            Stage::Copying => self.pump_copies(now, target, out),
            Stage::Draining { before } => {
                if !peer
                    .sent
                    .iter()
                    .any(|(op, sent)| *op < before && sent.purpose.lasts())
                {
                    if let Some(sync) = self.sync_of(target) {
                        sync.stage = Stage::Flushing;
                    }
                    self.send(
                        now,
                        target,
                        Message::plain(Kind::Flush),
                        Purpose::Sync(target),
                        out,
                    );
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

    fn pump_copies(&mut self, now: Time, target: ReplicaId, out: &mut Vec<Command<P>>) {
        loop {
            let reason = Reason::Sync(target);
            let taken: Vec<ByteRange> = self
                .copies
                .values()
                .filter(|job| job.reason == reason)
                .map(|job| job.range)
                .collect();
            if taken.len() >= COPIES {
                return;
            }
            let Some(sync) = self.sync_of(target) else { return };
            let from = taken.iter().map(|range| range.blocks().end).max().unwrap_or(0);
            let Some(first) = sync.need.next_set(from).or_else(|| {
                sync.need
                    .iter()
                    .find(|block| !taken.iter().any(|range| range.blocks().contains(block)))
            }) else {
                if taken.is_empty() {
                    self.begin_joint(now, target, out);
                }
                return;
            };
            let mut run = run_at(&sync.need, first);
            run.end = run
                .clone()
                .find(|b| taken.iter().any(|range| range.blocks().contains(b)))
                .unwrap_or(run.end);
            let range = ByteRange::of_blocks(run, self.row.size);
            self.begin_copy(now, range, reason, out);
        }
    }

    /// Everything is copied: from here on its acknowledgement counts, and once all sent before has
    /// arrived it is flushed, so that what was flushed on the others is durable on it too.
    //= docs/replication.md#R3
    fn begin_joint(&mut self, now: Time, target: ReplicaId, out: &mut Vec<Command<P>>) {
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

    /// A copy reached the replica.
    pub(super) fn sync_copied(
        &mut self,
        now: Time,
        target: ReplicaId,
        range: ByteRange,
        out: &mut Vec<Command<P>>,
    ) {
        self.counters.resynced_bytes += range.len;
        let Some(sync) = self.sync_of(target) else { return };
        sync.need.clear_range(range.blocks());
        sync.copied.set_range(range.blocks());
        sync.regions.set_range(range.regions());
        sync.since_checkpoint += range.len;
        if sync.since_checkpoint >= CHECKPOINT && sync.flushing.is_none() {
            sync.since_checkpoint = 0;
            let blocks = sync.copied.len();
            sync.flushing = Some(std::mem::replace(&mut sync.copied, Bitmap::new(blocks)));
            self.send(
                now,
                target,
                Message::plain(Kind::Flush),
                Purpose::Sync(target),
                out,
            );
        }
    }

    /// What was copied is durable there: the members' maps let go of it, but for what was written since.
    //= docs/replication.md#R10
    fn checkpointed(&mut self, now: Time, target: ReplicaId, out: &mut Vec<Command<P>>) {
        let Some(sync) = self.sync_of(target) else { return };
        let Some(done) = sync.flushing.take() else { return };
        let mut runs: Vec<u8> = Vec::new();
        for block in done.iter().filter(|block| !sync.touched.get(*block)) {
            runs.extend(block.to_le_bytes());
            runs.extend(1_u64.to_le_bytes());
        }
        let members: Vec<ReplicaId> = self
            .members()
            .filter(|(_, p)| p.is_open())
            .map(|(id, _)| id)
            .collect();
        for replica in members {
            let body = Body::Bytes(runs.clone());
            let message = Message {
                kind: Kind::ClearMap,
                flags: 0,
                offset: 0,
                length: target.0,
                body,
            };
            self.send(now, replica, message, Purpose::Ping, out);
        }
        self.stirred = true;
    }

    /// A client's write begins: blocks already copied are no longer what the checkpoint will vouch for.
    pub(super) fn note_live_write(&mut self, range: ByteRange) {
        for sync in self
            .peers
            .values_mut()
            .filter_map(|peer| peer.sync.as_mut())
            .filter(|sync| sync.mirrors())
        {
            for block in range.blocks().filter(|block| !sync.need.get(*block)) {
                sync.touched.set(block);
            }
            sync.regions.set_range(range.regions());
        }
    }

    /// The catalogue added it. No flush before this covers it, and its dirty regions are now everyone's.
    pub(super) fn joined(&mut self, now: Time, replica: ReplicaId) {
        self.tracker.forget_flushes();
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
            .filter(|_| peer.is_open())
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

    fn sync_of(&mut self, target: ReplicaId) -> Option<&mut Sync> {
        self.peers.get_mut(&target).and_then(|peer| peer.sync.as_mut())
    }
}

/// First word, words as bytes, and whether there was a map at all.
type Words<'a> = (u64, &'a [u8], bool);

/// Words of a map handed on at once: what one message can carry beside the config.
const MAP_WORDS: u64 = (crate::wire::MAX_CONTROL as u64 / 8) - 1;
