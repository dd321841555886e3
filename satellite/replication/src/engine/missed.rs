//! What a returning replica missed, and what it is told of those that stay absent: maps on their way
//! between replicas.

use super::message::{Message, Purpose};
use super::resync::Stage;
use super::{Command, Engine};
use crate::bitmap::Bitmap;
use crate::body::Body;
use crate::catalogue::MemberState;
use crate::ids::{ConfigSeq, ReplicaId};
use crate::range::BLOCK;
use crate::time::Time;
use crate::wire::{DIRTY_MAP, Kind};

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Hand {
    Next,
    Probe(ReplicaId, ConfigSeq),
    Begin(ReplicaId, ConfigSeq),
    Read(ReplicaId, ConfigSeq, u64),
    Put(ReplicaId, ConfigSeq, u64),
}

/// First word, words as bytes, and whether there was a map at all.
pub(super) type Words<'a> = (u64, &'a [u8], bool);

/// Words of a map handed on at once: what one message can carry beside the config.
const MAP_WORDS: u64 = (crate::wire::MAX_CONTROL as u64 / 8) - 1;

impl<P: Clone> Engine<P> {
    #[expect(
        clippy::too_many_arguments,
        reason = "names one page of one map at one replica"
    )]
    pub(super) fn ask_map(
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
    pub(super) fn own_words(
        &mut self,
        now: Time,
        target: ReplicaId,
        words: Words<'_>,
        out: &mut Vec<Command<P>>,
    ) {
        let total = self.regions().div_ceil(64);
        let Some(sync) = self.sync_of(target) else { return };
        let (from, bytes, _) = words;
        sync.regions.or_bytes(from, bytes);
        let next = from + bytes.len() as u64 / 8;
        if next < total && !bytes.is_empty() {
            return self.ask_map(now, target, target, DIRTY_MAP, None, next, out);
        }
        if !defect!(OwnMapIgnored) {
            sync.need = sync.regions.regions_to_blocks(sync.need.len());
        }
        sync.stage = Stage::MissedMap;
        self.share_writes(now, target, out);
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
            MemberState::Stale { since, .. }
                if defect!(OldCopyTrusted) || info.stored.config.next() >= member.joined? =>
            {
                since
            }
            MemberState::Stale { .. } | MemberState::InSync => None,
        }
    }

    pub(super) fn missed_words(
        &mut self,
        now: Time,
        target: ReplicaId,
        words: Words<'_>,
        out: &mut Vec<Command<P>>,
    ) {
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
    pub(super) fn handed(
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
                .filter(|_| !defect!(MapsNotHandedOn))
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
}
