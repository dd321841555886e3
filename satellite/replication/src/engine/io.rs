//! Clients' requests: locked, sent to all, answered when all have it.

use std::collections::BTreeSet;

use super::copy::overlaps_unequal;
use super::locks::Holder;
use super::message::{Message, Purpose};
use super::resync::Sync;
use super::tracker::Moment;
use super::{Command, Engine, IoError, OWN_IO, Peer, Phase, Request};
use crate::body::Body;
use crate::extents::Extent;
use crate::ids::{IoId, ReplicaId};
use crate::range::{ByteRange, REGION};
use crate::time::Time;
use crate::wire::{Kind, flags};

/// A request under way.
#[derive(Debug)]
pub(super) struct Io<P> {
    pub(super) request: Request<P>,
    /// Bits of the replicas it was sent to, but for those that owe it no more.
    awaited: u16,
    /// Bits of the replicas that have it.
    acked: u16,
    /// The client has its answer; a replica that catches up still owes its own.
    answered: bool,
    /// Bits of the replicas that could not read it.
    pub(super) failed: u16,
    /// Data of a read that waits for leases.
    pub(super) data: Option<P>,
    /// The same for one that asks for extents.
    pub(super) extents: Option<Vec<Extent>>,
    /// For a flush: what it covers once all have it.
    moment: Moment,
    pub(super) issued: bool,
}

impl<P> Io<P> {
    /// It changes data, and not all of `required` have it.
    pub(super) fn writes_without(&self, required: u16) -> bool {
        let writes = matches!(self.request, Request::Write { .. } | Request::Zero { .. });
        writes && !(self.issued && self.acked & required == required)
    }

    /// Bytes it locks.
    pub(super) fn range(&self) -> Option<ByteRange> {
        match &self.request {
            Request::Read(range)
            | Request::Extents(range)
            | Request::Write { range, .. }
            | Request::Zero { range, .. } => Some(*range),
            Request::Flush => None,
        }
    }

    pub(super) fn is_read(&self) -> bool {
        matches!(self.request, Request::Read(_) | Request::Extents(_))
    }

    /// It changes data, was sent, and is not answered.
    fn is_pending_write(&self) -> bool {
        let writes = matches!(self.request, Request::Write { .. } | Request::Zero { .. });
        writes && self.issued && !self.answered
    }
}

impl<P: Clone> Io<P> {
    /// What all replicas are sent; reads ask one.
    fn message(&self) -> Option<Message<P>> {
        match &self.request {
            Request::Read(_) | Request::Extents(_) => None,
            Request::Write { range, data, fua } => {
                let body = Body::Data(data.clone());
                Some(data_message(Kind::Write, *range, *fua, body))
            }
            Request::Zero { range, discard, fua } => {
                let mut message = data_message(Kind::Zero, *range, *fua, Body::None);
                message.flags |= if *discard { flags::DISCARD } else { 0 };
                Some(message)
            }
            Request::Flush => Some(Message::plain(Kind::Flush)),
        }
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
            Request::Extents(_) => {}
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
            if io.0 < OWN_IO && self.in_doubt() && !defect!(FlushInDoubt) {
                self.unrepaired.push_back(io);
                return;
            }
            return self.issue(now, io, out);
        };
        if let Request::Extents(range) = request.request {
            return self.begin_extents(now, io, range, out);
        }
        //= docs/replication.md#R8
        if request.is_read() && overlaps_unequal(&self.unequal, range) && !defect!(ReadUnrepaired) {
            self.urgent.extend(range.blocks());
            self.unrepaired.push_back(io);
            self.stirred = true;
            return;
        }
        let exclusive = !request.is_read();
        //= docs/replication.md#S1
        if exclusive && self.snapshots.holds_writes() && !defect!(SnapshotUngated) {
            return self.snapshots.hold(io);
        }
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
        let Some(message) = state.message() else {
            return self.issue_read(now, io, out);
        };
        if let Request::Flush = state.request {
            state.moment = moment;
        }
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
        if defect!(AnswerWhenSent)
            && let Some(state) = self.ios.get_mut(&io)
            && !matches!(state.request, Request::Flush)
        {
            state.acked = bits;
            self.try_ack(now, io, out);
        }
    }

    /// A replica that begins to get clients' writes gets those under way too. One of them may wait for a member that is
    /// away, whose place this replica is to take: the copies pass it then.
    //= docs/replication.md#R12
    pub(super) fn share_writes(&mut self, now: Time, replica: ReplicaId, out: &mut Vec<Command<P>>) {
        let bit = self.peers.get(&replica).map_or(0, |peer| peer.bit);
        let mut shared = Vec::new();
        let pending = |state: &Io<P>| state.is_pending_write() && !defect!(WritesNotShared);
        for (io, state) in self.ios.iter_mut().filter(|(_, state)| pending(state)) {
            state.awaited |= bit;
            shared.extend(
                state
                    .range()
                    .zip(state.message())
                    .map(|(range, message)| (*io, range, message)),
            );
        }
        for (io, range, message) in shared {
            self.note_live_write(range);
            self.send(now, replica, message, Purpose::Io(io), out);
        }
    }

    /// Writes for which nobody who can be reached has to do anything more: they wait for members that are away, be it
    /// that they lack it, be it that they are to be heard again first (R9).
    pub(super) fn stalled_writes(&self) -> BTreeSet<IoId> {
        let open = self.peers.values().filter(|peer| peer.is_open());
        let open = open.fold(0, |mask, peer| mask | peer.bit);
        let stalled = |state: &Io<P>| state.is_pending_write() && state.awaited & !state.acked & open == 0;
        self.ios
            .iter()
            .filter(|(_, state)| stalled(state))
            .map(|(io, _)| *io)
            .collect()
    }

    /// Bits of the replicas that lack a write to `range` that is under way.
    pub(super) fn lacking(&self, range: ByteRange) -> u16 {
        self.pending_writes(range)
            .fold(0, |mask, state| mask | (state.awaited & !state.acked))
    }

    /// Whether a write is under way in a region.
    pub(super) fn is_written(&self, region: u64) -> bool {
        let region = ByteRange::new(region * REGION, REGION);
        self.pending_writes(region).next().is_some()
    }

    fn pending_writes(&self, range: ByteRange) -> impl Iterator<Item = &Io<P>> {
        self.ios.values().filter(move |state| {
            state.is_pending_write() && state.range().is_some_and(|of| of.overlaps(range))
        })
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
        if let Request::Extents(_) = state.request {
            return self.extents_answered(now, io, &body, out);
        }
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
        //= docs/replication.md#R9
        // What it acknowledged it has as long as its connection stands; after that, when its cache was compared.
        let unheard = |peer: &Peer<P>| peer.bit & self.required != 0 && !peer.is_open();
        let lacking = state.acked & self.required != self.required
            || (self.peers.values().any(unheard) && !defect!(AnswerOfTheUnheard));
        let lacking = lacking && !(defect!(AnswerAfterFirst) && state.acked & self.required != 0);
        let lacking =
            lacking && !(defect!(FlushByOne) && matches!(state.request, Request::Flush) && state.acked != 0);
        if state.is_read() || !state.issued || lacking {
            return;
        }
        if let Request::Flush = state.request {
            let moment = if defect!(FlushCoversLater) {
                self.tracker.moment()
            } else {
                state.moment
            };
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
        if self.ios.get(&io).is_some_and(|state| {
            state.answered && (state.awaited & !state.acked == 0 || defect!(LockFreedEarly))
        }) {
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

    /// Ends a request and lets those go on that waited for its bytes.
    pub(super) fn finish(
        &mut self,
        now: Time,
        io: IoId,
        result: Result<Option<P>, IoError>,
        out: &mut Vec<Command<P>>,
    ) {
        let extents = self.ios.get_mut(&io).and_then(|state| state.extents.take());
        match (extents, result) {
            _ if io.0 >= OWN_IO => self.stirred = true,
            (Some(extents), Ok(_)) => out.push(Command::CompleteExtents { io, extents }),
            (_, result) => out.push(Command::Complete { io, result }),
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
        self.begin_granted(now, granted, out);
    }

    /// Begins what has just got its lock.
    pub(super) fn begin_granted(&mut self, now: Time, granted: Vec<Holder>, out: &mut Vec<Command<P>>) {
        for next in granted {
            match next {
                Holder::Io(io) => self.issue(now, io, out),
                Holder::Copy(copy) => self.copy_locked(now, copy, out),
                Holder::Scrub(look) => self.scrub_locked(now, look, out),
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

    /// A member has lost what it had not flushed: of what is not answered yet it is sent again what it had. An answer
    /// says that each has it in the volatile state it has now, or a member that lost something earlier could lack
    /// what this one lacks too.
    //= docs/replication.md#R9
    pub(super) fn recall_writes(&mut self, now: Time, replica: ReplicaId, out: &mut Vec<Command<P>>) {
        let bit = self.peers.get(&replica).map_or(0, |peer| peer.bit);
        let lost = |state: &Io<P>| !state.answered && state.range().is_some() && state.acked & bit != 0;
        let mut again = Vec::new();
        for (io, state) in self.ios.iter_mut().filter(|(_, state)| lost(state)) {
            state.acked &= !bit;
            again.extend(state.message().map(|message| (*io, message)));
        }
        for (io, message) in again {
            self.send(now, replica, message, Purpose::Io(io), out);
        }
    }

    /// A member has lost what it had not flushed: answers to flushes under way would be wrong. They begin
    /// again once all is equal.
    pub(super) fn recall_flushes(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        for io in self.pending_flushes() {
            let of = |sent: &super::message::Sent<P>| sent.purpose == Purpose::Io(io);
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
            extents: None,
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
