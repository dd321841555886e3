//! Messages to replicas: sent, kept for a next promise, and what an answer means.

use super::connection::RECONNECT_LAST;
use super::peer::Link;
use super::{Command, Engine, LinkId};
use crate::body::Body;
use crate::catalogue::EjectReason;
use crate::ids::{CacheId, ConfigSeq, IoId, OpId, ReplicaId};
use crate::right::RightRefusal;
use crate::time::{LEASE, LEASE_MARGIN, Time};
use crate::wire::{Header, Kind, Status};

/// What a message was sent for: decides what its answer means and whether it is sent again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    Open,
    /// Tells the view; the config it holds.
    View(ConfigSeq),
    /// A client's request, or the engine's own flush.
    Io(IoId),
    /// Reads or writes for a copy.
    Copy(u64),
    /// A page of the replica's own dirty map, from this word on.
    DirtyMap(u64),
    /// A step of bringing `0` up to date.
    Sync(ReplicaId),
    /// Whether a snapshot could be made, and the snapshot; the attempt.
    MaySnapshot(u64),
    Snapshot(u64),
    /// What copies hold; the look.
    Digest(u64),
    /// Nothing follows from the answer but a lease.
    Ping,
    /// Asked before the promise is given: nothing follows from the answer, whatever it is, but that the
    /// replica lives.
    Knock,
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
    pub(super) covers: u64,
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

impl<P: Clone> Engine<P> {
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
        let opens = matches!(sent.purpose, Purpose::Open | Purpose::Knock);
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

    pub(super) fn emit(
        &self,
        replica: ReplicaId,
        link: LinkId,
        op: OpId,
        sent: Sent<P>,
        out: &mut Vec<Command<P>>,
    ) {
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

    pub(super) fn ping(&mut self, now: Time, replica: ReplicaId, out: &mut Vec<Command<P>>) {
        self.send(now, replica, Message::plain(Kind::Ping), Purpose::Ping, out);
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
        if (peer.link_id() != Some(link) && !defect!(OldLinkAnswers))
            || !header.is_reply()
            || header.volume != self.row.volume
        {
            return;
        }
        peer.heard = now;
        let Some(sent) = peer.sent.remove(&header.op) else {
            return;
        };
        if sent.kind != header.kind {
            return;
        }
        if let Link::Opening { alive, .. } = &mut peer.link {
            *alive = true;
        }
        if sent.purpose == Purpose::Knock && header.status != Status::Fenced {
            return;
        }
        match header.status {
            Status::Ok => {
                //= docs/replication.md#R6
                let asked = if defect!(LeaseFromAnswer) { now } else { sent.at };
                let margin = if defect!(NoMargin) {
                    std::time::Duration::ZERO
                } else {
                    LEASE_MARGIN
                };
                peer.lease = peer.lease.max(asked + LEASE.saturating_sub(margin));
                self.answered(now, replica, &sent, body, out);
                self.release_held(now, out);
            }
            Status::Fenced if header.view.epoch > self.epoch => self.fence(out),
            Status::NotAuthorised => {
                self.turned_away(now, replica, RightRefusal::from_code(header.length), out);
            }
            status if matches!(sent.purpose, Purpose::MaySnapshot(_) | Purpose::Snapshot(_)) => {
                self.snapshot_refused(now, replica, &sent.purpose, status, out);
            }
            // Nobody is removed for a question that only a scrub asks.
            Status::Invalid | Status::MediaError if let Purpose::Digest(number) = sent.purpose => {
                self.scrub_refused(now, number, out);
            }
            // To anything else it is no answer: the replica is refused like one whose disk failed.
            Status::MediaError if matches!(sent.kind, Kind::Read | Kind::Extents) => {
                self.read_failed(now, replica, &sent, out);
            }
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
            Purpose::MaySnapshot(_) | Purpose::Snapshot(_) => self.snapshot_answered(replica, &sent.purpose),
            Purpose::Digest(number) => self.digested(replica, number, body.bytes()),
            Purpose::Ping | Purpose::Knock => {}
        }
        // A joining replica moves on when it has answered what came before.
        self.stirred |= self.peers.get(&replica).is_some_and(|peer| peer.sync.is_some());
    }

    /// A replica does not take the right to this epoch: it is asked again, with what the shell has then.
    //= docs/replication.md#R14
    fn turned_away(&mut self, now: Time, replica: ReplicaId, why: RightRefusal, out: &mut Vec<Command<P>>) {
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        let news = peer.barred.replace(why) != Some(why);
        if let Some(link) = peer.link_id() {
            out.push(Command::Disconnect { replica, link });
        }
        self.link_down(now, replica, out);
        self.stirred = true;
        if news {
            out.push(Command::StateChanged);
        }
    }

    /// A replica can't do what it was asked: it leaves the set, or its resync ends.
    fn refused(&mut self, now: Time, replica: ReplicaId, status: Status, out: &mut Vec<Command<P>>) {
        let reason = match status {
            Status::DiskFailed | Status::MediaError => EjectReason::DiskFailed,
            Status::NoSpace => EjectReason::NoSpace,
            Status::Ok
            | Status::Fenced
            | Status::WrongView
            | Status::NotOpen
            | Status::WrongReplica
            | Status::Invalid
            | Status::NoMap
            | Status::WrongLineage
            | Status::NotAuthorised
            | Status::SnapshotUnknown
            | Status::SnapshotUnsupported
            | Status::SnapshotFailed => EjectReason::Disagrees,
        };
        if let Some(peer) = self.peers.get_mut(&replica)
            && reason == EjectReason::DiskFailed
            && !defect!(FailedTrusted)
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

    /// What a replica outside the set was sent and has not answered is of no account any more.
    pub(super) fn write_off(&mut self, now: Time, replica: ReplicaId, out: &mut Vec<Command<P>>) {
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        peer.sent.clear();
        let bit = peer.bit;
        self.forget_debts(now, bit, out);
    }
}
