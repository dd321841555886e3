//! Reads: from one member, released under the leases of all.

use super::copy::overlaps_unequal;
use super::io::data_message;
use super::locks::Holder;
use super::message::{Purpose, Sent};
use super::{Command, Engine, IoError, Peer, Request};
use crate::body::Body;
use crate::ids::{IoId, ReplicaId};
use crate::range::ByteRange;
use crate::time::{LEASE, Time};
use crate::wire::Kind;

impl<P: Clone> Engine<P> {
    //= docs/replication.md#R13
    /// Sends a read to the best member: the one on this node, else the one with the least to do.
    pub(super) fn issue_read(&mut self, now: Time, io: IoId, out: &mut Vec<Command<P>>) {
        let Some(state) = self.ios.get(&io) else { return };
        let (kind, range) = match state.request {
            Request::Read(range) => (Kind::Read, range),
            Request::Extents(range) => (Kind::Extents, range),
            Request::Write { .. } | Request::Zero { .. } | Request::Flush => return,
        };
        let failed = state.failed;
        if overlaps_unequal(&self.unequal, range) && !defect!(ReadUnrepaired) {
            // It had begun before a member lost its cache.
            self.unlock(now, Holder::Io(io), out);
            return self.begin(now, io, out);
        }
        let best = self
            .peers
            .iter()
            .map(|(replica, peer)| (*replica, peer))
            .filter(|(replica, peer)| {
                self.is_member(*replica) || (defect!(SyncingRead) && peer.sync.is_some())
            })
            .filter(|(_, peer)| peer.is_open() && failed & peer.bit == 0)
            .min_by_key(|(replica, peer)| (Some(*replica) != self.local, peer.sent.len()))
            .map(|(replica, _)| replica);
        self.renew_leases(now, out);
        match best {
            Some(replica) => {
                let message = data_message(kind, range, false, Body::None);
                self.send(now, replica, message, Purpose::Io(io), out);
            }
            // Nobody to ask now: asked again when a member is back.
            None if self.members().any(|(_, peer)| failed & peer.bit == 0) => {
                if let Some(state) = self.ios.get_mut(&io) {
                    state.issued = false;
                }
            }
            None => self.finish(now, io, Err(IoError::Media), out),
        }
    }

    /// A member is there again: reads that found none go to it.
    pub(super) fn issue_waiting_reads(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        let waiting: Vec<IoId> = self
            .ios
            .iter()
            .filter(|(io, state)| state.is_read() && !state.issued && self.locks.holds(Holder::Io(**io)))
            .map(|(io, _)| *io)
            .collect();
        for io in waiting {
            self.issue(now, io, out);
        }
    }

    /// Asks the members whose lease runs out soon, once each.
    pub(super) fn renew_leases(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        let soon = now + LEASE / 2;
        let asked = |peer: &Peer<P>| peer.sent.values().any(|sent| sent.purpose == Purpose::Ping);
        let short: Vec<ReplicaId> = self
            .peers
            .iter()
            .filter(|(replica, _)| self.is_member(**replica) || self.joining() == Some(**replica))
            .filter(|(_, peer)| peer.is_open() && peer.lease < soon && !asked(peer))
            .map(|(replica, _)| *replica)
            .collect();
        for replica in short {
            self.ping(now, replica, out);
        }
    }

    /// Answers a read that has its data, if the leases of the whole set hold; keeps it otherwise.
    //= docs/replication.md#R6
    pub(super) fn release_read(&mut self, now: Time, io: IoId, out: &mut Vec<Command<P>>) {
        if self.leased(now) || defect!(LeaseNotChecked) {
            let data = self.ios.get_mut(&io).and_then(|state| state.data.take());
            return self.finish(now, io, Ok(data), out);
        }
        self.held.push(io);
        self.renew_leases(now, out);
    }

    pub(super) fn release_held(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        if self.held.is_empty() {
            return;
        }
        if self.leased(now) {
            for io in std::mem::take(&mut self.held) {
                self.release_read(now, io, out);
            }
        } else {
            self.renew_leases(now, out);
        }
    }

    /// A member could not read a block: another one can, and the block is written again from it.
    pub(super) fn read_failed(
        &mut self,
        now: Time,
        replica: ReplicaId,
        sent: &Sent<P>,
        out: &mut Vec<Command<P>>,
    ) {
        let bit = self.peers.get(&replica).map_or(0, |peer| peer.bit);
        match sent.purpose {
            // No member fails to answer that: one that does says nothing.
            Purpose::Io(io) if sent.kind == Kind::Extents => {
                self.extents_answered(now, io, &Body::None, out);
            }
            Purpose::Io(io) => {
                if let Some(state) = self.ios.get_mut(&io) {
                    state.failed |= bit;
                }
                self.mend(
                    now,
                    replica,
                    ByteRange::new(sent.offset, u64::from(sent.length)),
                    out,
                );
                self.issue_read(now, io, out);
            }
            Purpose::Copy(copy) if sent.kind == Kind::Extents => {
                self.copy_answered(now, replica, copy, Body::None, out);
            }
            Purpose::Copy(copy) => self.copy_read_failed(now, replica, copy, out),
            _ => {}
        }
    }

    /// Leases of the whole in-sync set hold now, and of a replica that may be in it already: a later
    /// engine could start from that one alone (R3).
    //= docs/replication.md#R6
    pub(super) fn leased(&self, now: Time) -> bool {
        let proposed = self.proposal.as_ref().and_then(|proposal| proposal.adding);
        let proposed = proposed.filter(|_| !defect!(NoJointLease));
        let counts = |replica: ReplicaId| self.is_member(replica) || proposed == Some(replica);
        let mut all = self.peers.iter().filter(|(replica, _)| counts(**replica));
        if defect!(LeaseOfOne) && all.clone().any(|(_, peer)| now < peer.lease) {
            return self.phase_serves();
        }
        self.phase_serves() && all.all(|(_, peer)| now < peer.lease)
    }
}
