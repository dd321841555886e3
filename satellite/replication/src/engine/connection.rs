//! Connections: made, watched and made again; what a promise is worth is looked at before it is used.

use std::time::Duration;

use super::message::{Message, Purpose};
use super::peer::Link;
use super::{Command, Engine, FailReason, IDLE_TICK, LinkId, REQUEST_DEADLINE, SILENCE};
use crate::bitmap::Bitmap;
use crate::catalogue::EjectReason;
use crate::ids::{Loss, OpId, ReplicaId};
use crate::info::Info;
use crate::time::Time;
use crate::wire::{Kind, flags};

pub(super) const RECONNECT_FIRST: Duration = Duration::from_millis(50);
pub(super) const RECONNECT_LAST: Duration = Duration::from_secs(1);

impl<P: Clone> Engine<P> {
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
                Link::Connecting { link, .. } if now.since(peer.heard) >= SILENCE => {
                    out.push(Command::Disconnect { replica, link });
                    self.link_down(now, replica, out);
                }
                Link::Opening {
                    link, made, alive, ..
                } => {
                    let late = now.since(made) > REQUEST_DEADLINE;
                    let silent = peer.silent_at();
                    if late || silent.is_some_and(|at| at <= now) {
                        out.push(Command::Disconnect { replica, link });
                        self.link_down(now, replica, out);
                    } else if silent.is_none() && (!alive || now.since(peer.heard) >= IDLE_TICK) {
                        self.send(now, replica, Message::plain(Kind::Ping), Purpose::Knock, out);
                    }
                }
                Link::Down { .. } | Link::Connecting { .. } => {}
                Link::Open { link } => {
                    let late = peer
                        .sent
                        .values()
                        .any(|sent| now.since(sent.at) > REQUEST_DEADLINE);
                    let silent = peer.silent_at();
                    if late || silent.is_some_and(|at| at <= now) {
                        peer.fault = late.then_some(EjectReason::TimedOut).or(peer.fault);
                        out.push(Command::Disconnect { replica, link });
                        self.link_down(now, replica, out);
                    } else if silent.is_none() && now.since(peer.heard) >= IDLE_TICK {
                        self.ping(now, replica, out);
                    }
                }
            }
        }
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
            peer.link = Link::Opening {
                link,
                since,
                made: now,
                alive: false,
            };
            peer.heard = now;
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

    /// A replica promised. Its identity is compared before anything is sent to it.
    pub(super) fn opened(&mut self, now: Time, replica: ReplicaId, info: &[u8], out: &mut Vec<Command<P>>) {
        let Some(mut info) = Info::decode(info) else {
            return self.give_up_on(now, replica, EjectReason::Disagrees, out);
        };
        if info.stored.config > self.row.view.config && !defect!(CatalogueTrusted) {
            return self.fail(FailReason::CatalogueBehind, out);
        }
        let member = self.is_member(replica);
        if member && !self.vouches(replica, &info) && !defect!(MemberUnasked) {
            return self.give_up_on(now, replica, EjectReason::Disagrees, out);
        }
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        let changed = peer.cache.is_some_and(|known| known != info.cache);
        let cache_lost = member && changed && peer.has_unflushed() && !defect!(CacheNotCompared);
        if cache_lost {
            peer.info = Some(info.clone());
            peer.lost = true;
        }
        //= docs/replication.md#R9
        if cache_lost
            && (self.may_lose(now, replica) || !self.members().any(|(_, other)| self.honours(other)))
        {
            return self.give_up_on(now, replica, EjectReason::CacheLost, out);
        }
        if cache_lost {
            self.doubt(now, replica, out);
        }
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        let Some(link) = peer.link_id() else { return };
        peer.cache = Some(info.cache);
        peer.link = Link::Open { link };
        peer.retry = RECONNECT_FIRST;
        peer.fault = None;
        peer.barred = None;
        let dirty = info.dirty;
        // The word that it is right may have been lost with the last connection; it holds as long as its cache.
        if !changed && peer.is_right() {
            info.loss = Loss::NONE;
        }
        peer.info = Some(info);
        self.spare_barred(now);
        if !member {
            self.stirred = true;
            return;
        }
        self.tell_view(now, replica, out);
        self.resend(now, replica, link, out);
        self.try_ack_all(now, out);
        if dirty == 0 {
            self.set_dirty(now, replica, Bitmap::new(self.regions()), out);
        } else {
            self.ask_dirty(now, replica, 0, out);
        }
        self.stirred = true;
    }

    /// One took the right, which may be a new one: the time of those that refused the last begins anew, and they are
    /// asked at once.
    fn spare_barred(&mut self, now: Time) {
        for peer in self.peers.values_mut().filter(|peer| peer.barred.is_some()) {
            match &mut peer.link {
                Link::Down { since, retry_at } => (*since, *retry_at) = (now, now),
                Link::Connecting { since, .. } | Link::Opening { since, .. } => *since = now,
                Link::Open { .. } => {}
            }
        }
    }

    /// Sends what a member has not answered, in the order it was first sent.
    fn resend(&mut self, now: Time, replica: ReplicaId, link: LinkId, out: &mut Vec<Command<P>>) {
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        let again: Vec<OpId> = peer
            .sent
            .iter()
            .filter(|(_, sent)| sent.purpose.lasts() && !defect!(NotSentAgain))
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

    pub(super) fn lost(&mut self, now: Time, replica: ReplicaId, link: LinkId, out: &mut Vec<Command<P>>) {
        let peer = self.peers.get_mut(&replica);
        if let Some(peer) = peer.filter(|peer| peer.link_id() == Some(link)) {
            // Nobody is there any more who might think better of it.
            if matches!(peer.link, Link::Connecting { .. }) {
                peer.barred = None;
            }
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
            if sent.purpose.lasts() && sent.kind.is_read() {
                orphans.push(sent.purpose.clone());
            }
            member && sent.purpose.lasts() && !sent.kind.is_read()
        });
        if !self.is_member(replica) {
            self.abort_sync(now, replica, out);
            // Unless it may be a member by now, it owes nothing: what it was sent it gets by its next resync.
            if self.joining() != Some(replica) {
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
        self.drop_mends_on(now, replica, out);
        self.abort_syncs_from(now, replica, out);
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
}
