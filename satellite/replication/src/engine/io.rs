//! Clients' requests: locked, sent to all, answered when all have it.

use super::copy::overlaps_unequal;
use super::locks::Holder;
use super::peer::{Message, Purpose};
use super::resync::Sync;
use super::tracker::Moment;
use super::{Command, Engine, IoError, OWN_IO, Phase, Request};
use crate::body::Body;
use crate::ids::{IoId, ReplicaId};
use crate::range::ByteRange;
use crate::time::{LEASE, Time};
use crate::wire::{Kind, flags};

/// A request under way.
#[derive(Debug)]
pub(super) struct Io<P> {
    request: Request<P>,
    /// Bits of the replicas it was sent to, but for those that owe it no more.
    awaited: u16,
    /// Bits of the replicas that have it.
    acked: u16,
    /// The client has its answer; a replica that catches up still owes its own.
    answered: bool,
    /// Bits of the replicas that could not read it.
    failed: u16,
    /// Data of a read that waits for leases.
    data: Option<P>,
    /// For a flush: what it covers once all have it.
    moment: Moment,
    issued: bool,
}

impl<P> Io<P> {
    /// Bytes it locks.
    fn range(&self) -> Option<ByteRange> {
        match &self.request {
            Request::Read(range) | Request::Write { range, .. } | Request::Zero { range, .. } => Some(*range),
            Request::Flush => None,
        }
    }

    fn is_read(&self) -> bool {
        matches!(self.request, Request::Read(_))
    }
}

impl<P: Clone> Engine<P> {
    /// A client's request.
    pub(super) fn submit(&mut self, now: Time, io: IoId, request: Request<P>, out: &mut Vec<Command<P>>) {
        match &request {
            Request::Read(range) => {
                self.counters.reads += 1;
                self.counters.read_bytes += range.len;
            }
            Request::Write { range, .. } | Request::Zero { range, .. } => {
                self.counters.writes += 1;
                self.counters.written_bytes += range.len;
            }
            Request::Flush => self.counters.flushes += 1,
        }
        let error = match self.phase {
            Phase::Starting { .. } => {
                self.ios.insert(io, Io::new(request));
                self.backlog.push_back(io);
                return;
            }
            Phase::Active => None,
            Phase::Stopping { .. } | Phase::Stopped { .. } | Phase::Fenced => Some(IoError::Fenced),
            Phase::Failed(_) => Some(IoError::Failed),
        };
        if let Some(error) = error {
            return out.push(Command::Complete {
                io,
                result: Err(error),
            });
        }
        self.ios.insert(io, Io::new(request));
        self.begin(now, io, out);
    }

    /// The engine's own flush.
    pub(super) fn own_flush(&mut self, now: Time, out: &mut Vec<Command<P>>) -> IoId {
        let io = IoId(self.next_own_io);
        self.next_own_io += 1;
        self.ios.insert(io, Io::new(Request::Flush));
        self.begin(now, io, out);
        io
    }

    /// Requests that came too early go on.
    pub(super) fn begin_backlog(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        for io in std::mem::take(&mut self.backlog) {
            self.begin(now, io, out);
        }
    }

    pub(super) fn is_pending(&self, io: IoId) -> bool {
        self.ios.contains_key(&io)
    }

    /// Takes the lock, or waits for it.
    pub(super) fn begin(&mut self, now: Time, io: IoId, out: &mut Vec<Command<P>>) {
        let Some(request) = self.ios.get(&io) else { return };
        let Some(range) = request.range() else {
            if io.0 < OWN_IO && self.in_doubt() {
                self.unrepaired.push_back(io);
                return;
            }
            return self.issue(now, io, out);
        };
        //= docs/replication.md#R8
        if request.is_read() && overlaps_unequal(&self.unequal, range) {
            self.urgent.extend(range.blocks());
            self.unrepaired.push_back(io);
            self.stirred = true;
            return;
        }
        let exclusive = !request.is_read();
        if self.locks.acquire(Holder::Io(io), range, exclusive) {
            self.issue(now, io, out);
        }
    }

    /// Sends a request that has its lock.
    pub(super) fn issue(&mut self, now: Time, io: IoId, out: &mut Vec<Command<P>>) {
        let moment = self.tracker.moment();
        let Some(state) = self.ios.get_mut(&io) else {
            return;
        };
        state.issued = true;
        let message = match &state.request {
            Request::Read(_) => return self.issue_read(now, io, out),
            Request::Write { range, data, fua } => {
                data_message(Kind::Write, *range, *fua, Body::Data(data.clone()))
            }
            Request::Zero { range, discard, fua } => {
                let mut message = data_message(Kind::Zero, *range, *fua, Body::None);
                message.flags |= if *discard { flags::DISCARD } else { 0 };
                message
            }
            Request::Flush => {
                state.moment = moment;
                Message::plain(Kind::Flush)
            }
        };
        if let Some(range) = state.range() {
            self.tracker.begin(now, range);
            self.note_live_write(range);
        }
        let targets: Vec<ReplicaId> = self
            .row
            .replicas
            .keys()
            .copied()
            .filter(|r| self.takes_writes(*r))
            .collect();
        let bits = targets
            .iter()
            .filter_map(|replica| self.peers.get(replica))
            .fold(0, |mask, peer| mask | peer.bit);
        if let Some(state) = self.ios.get_mut(&io) {
            state.awaited = bits;
        }
        for replica in targets {
            self.send(now, replica, message.clone(), Purpose::Io(io), out);
        }
    }

    /// Members, and replicas on their way to become one.
    fn takes_writes(&self, replica: ReplicaId) -> bool {
        self.is_member(replica)
            || self.joining() == Some(replica)
            || self
                .peers
                .get(&replica)
                .is_some_and(|peer| peer.sync.as_ref().is_some_and(Sync::mirrors))
    }

    //= docs/replication.md#R13
    /// Sends a read to the best member: the one on this node, else the one with the least to do.
    pub(super) fn issue_read(&mut self, now: Time, io: IoId, out: &mut Vec<Command<P>>) {
        let Some(state) = self.ios.get(&io) else { return };
        let Some(range) = state.range() else { return };
        let failed = state.failed;
        if overlaps_unequal(&self.unequal, range) {
            // It had begun before a member lost its cache.
            self.unlock(now, Holder::Io(io), out);
            return self.begin(now, io, out);
        }
        let best = self
            .members()
            .filter(|(_, peer)| peer.is_open() && failed & peer.bit == 0)
            .min_by_key(|(replica, peer)| (Some(*replica) != self.local, peer.sent.len()))
            .map(|(replica, _)| replica);
        self.renew_leases(now, out);
        match best {
            Some(replica) => {
                let message = data_message(Kind::Read, range, false, Body::None);
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
    fn renew_leases(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        let soon = now + LEASE / 2;
        let asked = |peer: &super::Peer<P>| peer.sent.values().any(|sent| sent.purpose == Purpose::Ping);
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

    /// A replica answered a client's request.
    pub(super) fn io_answered(
        &mut self,
        now: Time,
        replica: ReplicaId,
        io: IoId,
        body: Body<P>,
        out: &mut Vec<Command<P>>,
    ) {
        let bit = self.peers.get(&replica).map_or(0, |peer| peer.bit);
        let Some(state) = self.ios.get_mut(&io) else {
            return;
        };
        if state.is_read() {
            let Body::Data(data) = body else { return };
            state.data = Some(data);
            return self.release_read(now, io, out);
        }
        state.acked |= bit;
        self.try_ack(now, io, out);
    }

    /// Answers a write or flush once every required replica has it and the view is stored (R1, R2).
    //= docs/replication.md#R1
    pub(super) fn try_ack(&mut self, now: Time, io: IoId, out: &mut Vec<Command<P>>) {
        let Some(state) = self.ios.get_mut(&io) else {
            return;
        };
        if state.answered {
            return self.retire_when_done(now, io, out);
        }
        if self.gate || !matches!(self.phase, Phase::Active | Phase::Stopping { .. }) {
            return;
        }
        if state.is_read() || !state.issued || state.acked & self.required != self.required {
            return;
        }
        if let Request::Flush = state.request {
            let moment = state.moment;
            self.tracker.flushed(moment);
            return self.finish(now, io, Ok(None), out);
        }
        state.answered = true;
        if io.0 < OWN_IO {
            out.push(Command::Complete { io, result: Ok(None) });
        }
        self.retire_when_done(now, io, out);
    }

    /// Gives the lock of an answered write back once every replica it was sent to has it, one that is
    /// catching up too: a later write to the same bytes must not overtake it there.
    //= docs/replication.md#R12
    fn retire_when_done(&mut self, now: Time, io: IoId, out: &mut Vec<Command<P>>) {
        if self
            .ios
            .get(&io)
            .is_some_and(|state| state.answered && state.awaited & !state.acked == 0)
        {
            self.retire(now, io, out);
        }
    }

    /// A replica owes nothing any more: what waited only for it goes on.
    pub(super) fn forget_debts(&mut self, now: Time, bit: u16, out: &mut Vec<Command<P>>) {
        let ios: Vec<IoId> = self.ios.keys().copied().collect();
        for io in ios {
            if let Some(state) = self.ios.get_mut(&io) {
                state.awaited &= !bit;
                state.acked &= !bit;
                state.failed &= !bit;
            }
            self.retire_when_done(now, io, out);
        }
    }

    /// The required set or the gate changed: whatever is complete now is answered.
    pub(super) fn try_ack_all(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        let ios: Vec<IoId> = self.ios.keys().copied().collect();
        for io in ios {
            self.try_ack(now, io, out);
        }
    }

    /// Answers a read that has its data, if the leases of the whole set hold; keeps it otherwise.
    //= docs/replication.md#R6
    fn release_read(&mut self, now: Time, io: IoId, out: &mut Vec<Command<P>>) {
        if self.leased(now) {
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
        sent: &super::peer::Sent<P>,
        out: &mut Vec<Command<P>>,
    ) {
        let bit = self.peers.get(&replica).map_or(0, |peer| peer.bit);
        match sent.purpose {
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
            Purpose::Copy(copy) => self.copy_read_failed(now, replica, copy, out),
            _ => {}
        }
    }

    /// Ends a request and lets those go on that waited for its bytes.
    fn finish(&mut self, now: Time, io: IoId, result: Result<Option<P>, IoError>, out: &mut Vec<Command<P>>) {
        if io.0 < OWN_IO {
            out.push(Command::Complete { io, result });
        } else {
            self.stirred = true;
        }
        self.retire(now, io, out);
    }

    fn retire(&mut self, now: Time, io: IoId, out: &mut Vec<Command<P>>) {
        let Some(state) = self.ios.remove(&io) else { return };
        if let Some(range) = state.range() {
            if !state.is_read() {
                self.tracker.end(now, range);
            }
            self.unlock(now, Holder::Io(io), out);
        }
    }

    /// Requests the clients have no answer to.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = IoId> + '_ {
        self.ios
            .iter()
            .filter(|(io, state)| io.0 < OWN_IO && !state.answered)
            .map(|(io, _)| *io)
    }

    /// Releases a lock and begins what waited for it.
    pub(super) fn unlock(&mut self, now: Time, holder: Holder, out: &mut Vec<Command<P>>) {
        let mut granted = Vec::new();
        self.locks.release(holder, &mut granted);
        for next in granted {
            match next {
                Holder::Io(io) => self.issue(now, io, out),
                Holder::Copy(copy) => self.copy_locked(now, copy, out),
            }
        }
    }

    /// Clients wait for something.
    pub(super) fn has_client_io(&self) -> bool {
        self.ios.keys().any(|io| io.0 < OWN_IO)
    }

    /// A flush of the engine's own is under way.
    pub(super) fn has_own_io(&self) -> bool {
        self.ios.keys().any(|io| io.0 >= OWN_IO)
    }

    /// A member has lost what it had not flushed: answers to flushes under way would be wrong. They begin
    /// again once all is equal.
    pub(super) fn recall_flushes(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        for io in self.pending_flushes() {
            let of = |sent: &super::peer::Sent<P>| sent.purpose == Purpose::Io(io);
            for peer in self.peers.values_mut() {
                peer.sent.retain(|_, sent| !of(sent));
            }
            if let Some(state) = self.ios.get_mut(&io) {
                state.issued = false;
                state.acked = 0;
                state.awaited = 0;
            }
            self.begin(now, io, out);
        }
    }

    /// Flushes under way.
    pub(super) fn pending_flushes(&self) -> Vec<IoId> {
        let flush = |state: &Io<P>| state.issued && matches!(state.request, Request::Flush);
        self.ios
            .iter()
            .filter(|(_, state)| flush(state))
            .map(|(io, _)| *io)
            .collect()
    }

    /// Nobody can read these bytes: who waits for their repair is told.
    pub(super) fn fail_unrepaired(&mut self, now: Time, range: ByteRange, out: &mut Vec<Command<P>>) {
        for io in std::mem::take(&mut self.unrepaired) {
            if self
                .ios
                .get(&io)
                .and_then(Io::range)
                .is_some_and(|of| of.overlaps(range))
            {
                self.finish(now, io, Err(IoError::Media), out);
            } else {
                self.unrepaired.push_back(io);
            }
        }
        range.blocks().for_each(|block| {
            self.urgent.remove(&block);
        });
    }
}

impl<P> Io<P> {
    fn new(request: Request<P>) -> Self {
        Self {
            request,
            awaited: 0,
            acked: 0,
            answered: false,
            failed: 0,
            data: None,
            moment: Moment::default(),
            issued: false,
        }
    }
}

/// A message about bytes.
pub(super) fn data_message<P>(kind: Kind, range: ByteRange, fua: bool, body: Body<P>) -> Message<P> {
    Message {
        kind,
        flags: if fua { flags::FUA } else { 0 },
        offset: range.offset,
        // Checked by the shell to be at most 32 MiB.
        length: u32::try_from(range.len).unwrap_or(u32::MAX),
        body,
    }
}
