//! One replica as the engine sees it: its connection, what was sent and not answered, its lease.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use super::resync::Sync;
use super::{Command, Engine, LinkId, Phase, REQUEST_DEADLINE, SILENCE};
use crate::body::Body;
use crate::catalogue::{EjectReason, MemberState};
use crate::ids::{CacheId, Epoch, IoId, OpId, ReplicaId};
use crate::info::Info;
use crate::time::{LEASE, LEASE_MARGIN, Time};
use crate::wire::{Header, Kind, Status, flags};

const RECONNECT_FIRST: Duration = Duration::from_millis(50);
const RECONNECT_LAST: Duration = Duration::from_secs(1);

/// Where a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Link {
    Down {
        since: Time,
        retry_at: Time,
    },
    Connecting {
        link: LinkId,
        since: Time,
    },
    /// Waits for the promise.
    Opening {
        link: LinkId,
        since: Time,
    },
    Open {
        link: LinkId,
    },
}

/// What a message was sent for: decides what its answer means and whether it is sent again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    Open,
    /// Tells the view; the config it holds.
    View(crate::ids::ConfigSeq),
    /// A client's request, or the engine's own flush.
    Io(IoId),
    /// Reads or writes for a copy.
    Copy(u64),
    /// A page of the replica's own dirty map, from this word on.
    DirtyMap(u64),
    /// A step of bringing `0` up to date.
    Sync(ReplicaId),
    /// Nothing follows from the answer but a lease.
    Ping,
}

impl Purpose {
    /// Outlives the connection it was sent on.
    pub(super) fn lasts(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Copy(_))
    }
}

#[derive(Clone, Debug)]
pub(super) struct Sent<P> {
    pub(super) kind: Kind,
    pub(super) flags: u16,
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) body: Body<P>,
    pub(super) purpose: Purpose,
    /// When it went out on the present connection.
    pub(super) at: Time,
    /// For a flush: writes the replica had acknowledged before.
    covers: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Peer<P> {
    /// Its bit in masks of acknowledgements.
    pub(super) bit: u16,
    pub(super) link: Link,
    retry: Duration,
    pub(super) sent: BTreeMap<OpId, Sent<P>>,
    pub(super) lease: Time,
    /// When it last answered anything.
    heard: Time,
    /// Told when it promised.
    pub(super) info: Option<Info>,
    /// It has been reached in this epoch, with this volatile state.
    pub(super) cache: Option<CacheId>,
    /// Moments (counted in acknowledged writes) for R9: acknowledged, and covered by a flush.
    acked: u64,
    flushed: u64,
    /// It lost acknowledged writes of this epoch and has not been made good yet (R9).
    pub(super) lost: bool,
    /// Its own dirty map, once read after a promise.
    pub(super) dirty: Option<crate::bitmap::Bitmap>,
    /// A reason to remove it that reconnecting does not cure.
    pub(super) fault: Option<EjectReason>,
    /// It had no room, and has taken no write since.
    pub(super) full: bool,
    /// It is being brought up to date.
    pub(super) sync: Option<Sync>,
    /// Not before this; and how long next time (case 18).
    pub(super) sync_at: Time,
    pub(super) hold: Duration,
    /// When it last joined the set under this engine.
    pub(super) joined: Option<Time>,
    /// Its dirty map while it is being read.
    pub(super) reading: Option<crate::bitmap::Bitmap>,
}

impl<P> Peer<P> {
    pub(super) fn new(now: Time, bit: u16) -> Self {
        Self {
            bit,
            link: Link::Down {
                since: now,
                retry_at: now,
            },
            retry: RECONNECT_FIRST,
            sent: BTreeMap::new(),
            lease: Time::default(),
            heard: now,
            info: None,
            cache: None,
            acked: 0,
            flushed: 0,
            lost: false,
            dirty: None,
            fault: None,
            full: false,
            sync: None,
            sync_at: Time::default(),
            hold: Duration::ZERO,
            joined: None,
            reading: None,
        }
    }

    /// Promised, and its dirty map is known.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.link, Link::Open { .. }) && self.dirty.is_some()
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.link, Link::Open { .. })
    }

    /// It has everything that was ever acknowledged while it was in the set.
    pub(super) fn is_right(&self) -> bool {
        self.loss() == Some(Epoch(0))
    }

    /// Which of its writes it lost, if it was not made good since: those of before this epoch. `None`: it
    /// just lost some, or is not known.
    fn loss(&self) -> Option<Epoch> {
        self.info
            .as_ref()
            .filter(|info| info.cache_kept)
            .map(|info| info.doubt)
    }

    /// How good a source for what members may differ in: the longer ago a member lost anything, the better.
    //= docs/replication.md#R8
    pub(super) fn worth(&self) -> Reverse<u64> {
        Reverse(self.loss().map_or(u64::MAX, |epoch| epoch.0))
    }

    /// It had no room for writes that are still to be done.
    pub(super) fn waits_for_room(&self) -> bool {
        self.full
            && self
                .sent
                .values()
                .any(|sent| matches!(sent.kind, Kind::Write | Kind::Zero))
    }

    /// Needs looking after more often than once a second.
    pub(super) fn is_moving(&self) -> bool {
        !self.is_open() || self.sync.is_some() || self.fault.is_some()
    }

    /// It can't be reached for `grace`. A replica that was reached and considers its promise is not away:
    /// it waits for I/O or a lease of an older epoch to end.
    pub(super) fn is_away(&self, now: Time, grace: Duration) -> bool {
        match self.link {
            Link::Down { since, .. } | Link::Connecting { since, .. } => now.since(since) >= grace,
            Link::Opening { .. } => now.since(self.heard) >= REQUEST_DEADLINE,
            Link::Open { .. } => false,
        }
    }

    /// Since when it can't be reached.
    pub(super) fn down_since(&self) -> Option<Time> {
        match self.link {
            Link::Down { since, .. } | Link::Connecting { since, .. } | Link::Opening { since, .. } => {
                Some(since)
            }
            Link::Open { .. } => None,
        }
    }

    /// Writes it acknowledged may not be durable on it.
    pub(super) fn has_unflushed(&self) -> bool {
        self.acked > self.flushed
    }

    /// Writes of earlier epochs may not be durable on it.
    pub(super) fn assume_unflushed(&mut self) {
        self.acked += 1;
    }

    pub(super) fn close(&mut self, replica: ReplicaId, out: &mut Vec<Command<P>>) {
        if let Some(link) = self.link_id() {
            out.push(Command::Disconnect { replica, link });
        }
        let since = self.down_since().unwrap_or(self.heard);
        self.link = Link::Down {
            since,
            retry_at: since,
        };
        self.sent.clear();
    }

    fn link_id(&self) -> Option<LinkId> {
        match self.link {
            Link::Down { .. } => None,
            Link::Connecting { link, .. } | Link::Opening { link, .. } | Link::Open { link } => Some(link),
        }
    }
}

impl<P: Clone> Engine<P> {
    pub(super) fn is_member(&self, replica: ReplicaId) -> bool {
        self.row
            .replicas
            .get(&replica)
            .is_some_and(|member| member.state == MemberState::InSync)
    }

    /// Sends a message, or keeps it for the next promise.
    pub(super) fn send(
        &mut self,
        now: Time,
        replica: ReplicaId,
        message: Message<P>,
        purpose: Purpose,
        out: &mut Vec<Command<P>>,
    ) {
        let op = self.op();
        let Message {
            kind,
            flags,
            offset,
            length,
            body,
        } = message;
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        let sent = Sent {
            kind,
            flags,
            offset,
            length,
            body,
            purpose,
            at: now,
            covers: peer.acked,
        };
        let opens = sent.purpose == Purpose::Open;
        let ready = match peer.link {
            Link::Open { link } => Some(link),
            Link::Opening { link, .. } if opens => Some(link),
            Link::Opening { .. } | Link::Down { .. } | Link::Connecting { .. } => None,
        };
        if ready.is_none() && !sent.purpose.lasts() {
            return;
        }
        let copy = ready.map(|link| (link, sent.clone()));
        peer.sent.insert(op, sent);
        if let Some((link, sent)) = copy {
            self.emit(replica, link, op, sent, out);
        }
    }

    fn emit(&self, replica: ReplicaId, link: LinkId, op: OpId, sent: Sent<P>, out: &mut Vec<Command<P>>) {
        let header = Header {
            kind: sent.kind,
            flags: sent.flags,
            volume: self.row.volume,
            replica,
            view: self.row.view,
            op,
            offset: sent.offset,
            length: sent.length,
            status: Status::Ok,
        };
        out.push(Command::Send {
            replica,
            link,
            header,
            body: sent.body,
        });
    }

    /// Connects what is down, drops what is silent or too slow, asks the idle for a sign of life.
    pub(super) fn tend_links(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        let replicas: Vec<ReplicaId> = self.peers.keys().copied().collect();
        let undecided = self.proposal.as_ref().and_then(|proposal| proposal.adding);
        let undecided = undecided.filter(|replica| !self.is_member(*replica));
        for replica in replicas {
            let Some(peer) = self.peers.get_mut(&replica) else {
                continue;
            };
            match peer.link {
                // Whether it is a member is being decided: it comes back as what it will be (R3).
                Link::Down { .. } if undecided == Some(replica) => {}
                Link::Down { since, retry_at } if retry_at <= now => {
                    let link = LinkId(self.next_link);
                    self.next_link += 1;
                    peer.link = Link::Connecting { link, since };
                    peer.heard = now;
                    out.push(Command::Connect { replica, link });
                }
                Link::Opening { link, .. } if now.since(peer.heard) > REQUEST_DEADLINE => {
                    out.push(Command::Disconnect { replica, link });
                    self.link_down(now, replica, out);
                }
                Link::Connecting { link, .. } if now.since(peer.heard) > SILENCE => {
                    out.push(Command::Disconnect { replica, link });
                    self.link_down(now, replica, out);
                }
                Link::Down { .. } | Link::Opening { .. } | Link::Connecting { .. } => {}
                Link::Open { link } => {
                    let late = peer
                        .sent
                        .values()
                        .any(|sent| now.since(sent.at) > REQUEST_DEADLINE);
                    let pinged = peer.sent.values().any(|sent| sent.purpose == Purpose::Ping);
                    let quiet = now.since(peer.heard);
                    if late || (pinged && quiet > SILENCE) {
                        peer.fault = late.then_some(EjectReason::TimedOut).or(peer.fault);
                        out.push(Command::Disconnect { replica, link });
                        self.link_down(now, replica, out);
                    } else if quiet >= super::IDLE_TICK && !pinged {
                        self.ping(now, replica, out);
                    }
                }
            }
        }
    }

    pub(super) fn ping(&mut self, now: Time, replica: ReplicaId, out: &mut Vec<Command<P>>) {
        self.send(now, replica, Message::plain(Kind::Ping), Purpose::Ping, out);
    }

    pub(super) fn connected(
        &mut self,
        now: Time,
        replica: ReplicaId,
        link: LinkId,
        out: &mut Vec<Command<P>>,
    ) {
        let member = self.is_member(replica);
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        let Link::Connecting {
            link: expected,
            since,
        } = peer.link
        else {
            return;
        };
        if expected == link {
            peer.link = Link::Opening { link, since };
            let flags = if member { flags::MEMBER } else { 0 };
            self.send(
                now,
                replica,
                Message {
                    flags,
                    ..Message::plain(Kind::Open)
                },
                Purpose::Open,
                out,
            );
        }
    }

    pub(super) fn lost(&mut self, now: Time, replica: ReplicaId, link: LinkId, out: &mut Vec<Command<P>>) {
        if self.peers.get(&replica).and_then(Peer::link_id) == Some(link) {
            self.link_down(now, replica, out);
            self.stirred = true;
        }
    }

    /// A connection is gone. What a member was sent is kept for its next promise, reads go elsewhere.
    pub(super) fn link_down(&mut self, now: Time, replica: ReplicaId, out: &mut Vec<Command<P>>) {
        let member = self.is_member(replica) || self.joining() == Some(replica);
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        let since = peer.down_since().unwrap_or(now);
        peer.link = Link::Down {
            since,
            retry_at: now + peer.retry,
        };
        peer.retry = (peer.retry * 2).min(RECONNECT_LAST);
        peer.dirty = None;
        peer.reading = None;
        let mut orphans = Vec::new();
        peer.sent.retain(|_, sent| {
            if sent.purpose.lasts() && sent.kind == Kind::Read {
                orphans.push(sent.purpose.clone());
            }
            member && sent.purpose.lasts() && sent.kind != Kind::Read
        });
        if !self.is_member(replica) {
            self.abort_sync(now, replica, out);
            if !member {
                self.write_off(now, replica, out);
            }
        }
        for orphan in orphans {
            match orphan {
                Purpose::Io(io) => self.issue_read(now, io, out),
                Purpose::Copy(copy) => self.restart_copy(now, copy, out),
                _ => {}
            }
        }
        self.abort_syncs_from(now, replica, out);
    }

    /// What a replica outside the set was sent and has not answered is of no account any more.
    pub(super) fn write_off(&mut self, now: Time, replica: ReplicaId, out: &mut Vec<Command<P>>) {
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        peer.sent.clear();
        let bit = peer.bit;
        self.forget_debts(now, bit, out);
    }

    /// An answer came.
    pub(super) fn answer(
        &mut self,
        now: Time,
        replica: ReplicaId,
        link: LinkId,
        header: Header,
        body: Body<P>,
        out: &mut Vec<Command<P>>,
    ) {
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        if peer.link_id() != Some(link) || !header.is_reply() || header.volume != self.row.volume {
            return;
        }
        peer.heard = now;
        let Some(sent) = peer.sent.remove(&header.op) else {
            return;
        };
        if sent.kind != header.kind {
            return;
        }
        match header.status {
            Status::Ok => {
                //= docs/replication.md#R6
                peer.lease = peer.lease.max(sent.at + LEASE.saturating_sub(LEASE_MARGIN));
                self.answered(now, replica, &sent, body, out);
                self.release_held(now, out);
            }
            Status::Fenced if header.view.epoch > self.epoch => self.fence(out),
            Status::MediaError => self.read_failed(now, replica, &sent, out),
            Status::NoMap => self.sync_answered(now, replica, &sent, header.status, &[], out),
            status => {
                if sent.purpose.lasts() {
                    // Not done: should the replica have to stay in the set, it gets it again; a read goes
                    // elsewhere.
                    peer.sent.insert(header.op, sent);
                }
                self.refused(now, replica, status, out);
            }
        }
    }

    fn answered(
        &mut self,
        now: Time,
        replica: ReplicaId,
        sent: &Sent<P>,
        body: Body<P>,
        out: &mut Vec<Command<P>>,
    ) {
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        match sent.kind {
            Kind::Write | Kind::Zero => {
                peer.acked += 1;
                peer.full = false;
            }
            Kind::Flush => peer.flushed = peer.flushed.max(sent.covers),
            _ => {}
        }
        match sent.purpose {
            Purpose::Open => self.opened(now, replica, body.bytes(), out),
            Purpose::View(config) => self.view_stored(now, replica, config, out),
            Purpose::Io(io) => self.io_answered(now, replica, io, body, out),
            Purpose::Copy(copy) => self.copy_answered(now, replica, copy, body, out),
            Purpose::DirtyMap(from) => self.dirty_words(now, replica, from, body.bytes(), out),
            Purpose::Sync(_) => self.sync_answered(now, replica, sent, Status::Ok, body.bytes(), out),
            Purpose::Ping => {}
        }
        // A joining replica moves on when it has answered what came before.
        self.stirred |= self.peers.get(&replica).is_some_and(|peer| peer.sync.is_some());
    }

    /// A replica can't do what it was asked: it leaves the set, or its resync ends.
    fn refused(&mut self, now: Time, replica: ReplicaId, status: Status, out: &mut Vec<Command<P>>) {
        let reason = match status {
            Status::DiskFailed | Status::MediaError => EjectReason::DiskFailed,
            Status::NoSpace => EjectReason::NoSpace,
            Status::Ok | Status::Fenced | Status::WrongView | Status::NotOpen | Status::WrongReplica => {
                EjectReason::Disagrees
            }
            Status::Invalid | Status::NoMap | Status::WrongLineage => EjectReason::Disagrees,
        };
        if let Some(peer) = self.peers.get_mut(&replica)
            && reason == EjectReason::DiskFailed
        {
            //= docs/replication.md#R15
            // What its disk had not made durable may be gone, even should it open well again.
            peer.cache = Some(CacheId::default());
        }
        self.give_up_on(now, replica, reason, out);
        if let Some(peer) = self.peers.get_mut(&replica)
            && reason == EjectReason::NoSpace
        {
            // Asked again once a second until there is room: the last member has to wait for it.
            peer.full = true;
            peer.retry = RECONNECT_LAST;
            peer.link = Link::Down {
                since: peer.down_since().unwrap_or(now),
                retry_at: now + RECONNECT_LAST,
            };
        }
    }

    /// Closes the connection of a replica that can't stay in the set.
    pub(super) fn give_up_on(
        &mut self,
        now: Time,
        replica: ReplicaId,
        reason: EjectReason,
        out: &mut Vec<Command<P>>,
    ) {
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        if let Some(link) = peer.link_id() {
            out.push(Command::Disconnect { replica, link });
        }
        peer.fault = Some(reason);
        self.link_down(now, replica, out);
        self.stirred = true;
    }

    /// A replica promised. Its identity is compared before anything is sent to it.
    fn opened(&mut self, now: Time, replica: ReplicaId, info: &[u8], out: &mut Vec<Command<P>>) {
        let Some(info) = Info::decode(info) else {
            return self.give_up_on(now, replica, EjectReason::Disagrees, out);
        };
        if info.stored.config > self.row.view.config {
            return self.fail(super::FailReason::CatalogueBehind, out);
        }
        let member = self.is_member(replica);
        if member && !self.vouches(replica, &info) {
            return self.give_up_on(now, replica, EjectReason::Disagrees, out);
        }
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        let changed = peer.cache.is_some_and(|known| known != info.cache);
        let cache_lost = member && changed && peer.has_unflushed();
        if cache_lost {
            peer.info = Some(info.clone());
            peer.lost = true;
        }
        //= docs/replication.md#R9
        if cache_lost && (self.may_lose(replica) || !self.members().any(|(_, other)| self.honours(other))) {
            return self.give_up_on(now, replica, EjectReason::CacheLost, out);
        }
        if cache_lost {
            self.doubt(now, out);
        }
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        let Some(link) = peer.link_id() else { return };
        peer.cache = Some(info.cache);
        peer.link = Link::Open { link };
        peer.retry = RECONNECT_FIRST;
        peer.fault = None;
        let dirty = info.dirty;
        peer.info = Some(info);
        if !member {
            self.stirred = true;
            return;
        }
        self.tell_view(now, replica, out);
        self.resend(now, replica, link, out);
        if dirty == 0 {
            self.set_dirty(now, replica, crate::bitmap::Bitmap::new(self.regions()), out);
        } else {
            self.ask_dirty(now, replica, 0, out);
        }
        self.stirred = true;
    }

    /// Sends what a member has not answered, in the order it was first sent.
    fn resend(&mut self, now: Time, replica: ReplicaId, link: LinkId, out: &mut Vec<Command<P>>) {
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        let again: Vec<OpId> = peer
            .sent
            .iter()
            .filter(|(_, sent)| sent.purpose.lasts())
            .map(|(op, _)| *op)
            .collect();
        for op in again {
            let Some(sent) = self
                .peers
                .get_mut(&replica)
                .and_then(|peer| peer.sent.get_mut(&op))
            else {
                continue;
            };
            sent.at = now;
            let sent = sent.clone();
            self.emit(replica, link, op, sent, out);
        }
    }

    /// Leases of the whole in-sync set hold now, and of a replica that may be in it already: a later
    /// engine could start from that one alone (R3).
    //= docs/replication.md#R6
    pub(super) fn leased(&self, now: Time) -> bool {
        let proposed = self.proposal.as_ref().and_then(|proposal| proposal.adding);
        let counts = |replica: ReplicaId| self.is_member(replica) || proposed == Some(replica);
        let mut all = self.peers.iter().filter(|(replica, _)| counts(**replica));
        self.phase_serves() && all.all(|(_, peer)| now < peer.lease)
    }

    pub(super) fn members(&self) -> impl Iterator<Item = (ReplicaId, &Peer<P>)> {
        self.peers
            .iter()
            .filter(|(replica, _)| self.is_member(**replica))
            .map(|(replica, peer)| (*replica, peer))
    }

    pub(super) fn phase_serves(&self) -> bool {
        matches!(self.phase, Phase::Active | Phase::Stopping { .. })
    }
}

/// What to send.
#[derive(Clone, Debug)]
pub(super) struct Message<P> {
    pub(super) kind: Kind,
    pub(super) flags: u16,
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) body: Body<P>,
}

impl<P> Message<P> {
    pub(super) fn plain(kind: Kind) -> Self {
        Self {
            kind,
            flags: 0,
            offset: 0,
            length: 0,
            body: Body::None,
        }
    }
}
