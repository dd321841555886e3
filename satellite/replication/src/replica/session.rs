//! Promises, views and leases: who may use this replica.

use super::{Command, Opening, Replica, Session, Waiting, refuse_right, reply};
use crate::body::Body;
use crate::ids::{ConnId, Loss, OpId, View};
use crate::info::{Info, Roster};
use crate::right::{Authorised, RightRefusal};
use crate::time::Time;
use crate::wire::{Header, Kind, Status, flags};

impl<P: Clone> Replica<P> {
    /// An engine asks for a promise. Any session there is ends now, its requests not yet in the disk are
    /// forgotten; the promise is given by [`Replica::try_promise`].
    pub(super) fn open(
        &mut self,
        conn: ConnId,
        header: Header,
        authorised: Authorised,
        out: &mut Vec<Command<P>>,
    ) {
        //= docs/replication.md#R14
        if header.is_reply() || header.volume != self.volume || header.replica != self.id {
            return reply(out, conn, &header, Status::WrongReplica);
        }
        // Whatever an Open changes is durable and shuts others out: nobody else may get this far.
        if header.kind != Kind::Open || !authorised.covers(self.volume, header.view.epoch) {
            return refuse_right(out, conn, &header, RightRefusal::OtherEpoch);
        }
        //= docs/replication.md#R5
        if header.view.epoch < self.superblock.fence && !defect!(OlderEpochServed) {
            return self.refuse_stranger(conn, &header, out);
        }
        if self.superblock.failed {
            return reply(out, conn, &header, Status::DiskFailed);
        }
        for old in self
            .session
            .iter()
            .map(|s| s.conn)
            .chain(self.opening.iter().map(|o| o.conn))
        {
            if old != conn {
                out.push(Command::Drop { conn: old });
            }
        }
        self.end_session();
        self.notice_loss(&header);
        if self.superblock.fence != header.view.epoch {
            self.superblock.fence = header.view.epoch;
            self.maps.touch_superblock();
        }
        if header.flags & flags::MEMBER == 0 {
            //= docs/replication.md#R13
            // What this copy knows of others ends here: it misses their later writes.
            if !self.superblock.in_sync.is_empty() && !defect!(ClaimKept) {
                self.superblock.in_sync.clear();
                self.maps.touch_superblock();
            }
            for slot in 0..self.superblock.maps.len() {
                self.maps.drop_slot(&mut self.superblock, slot);
            }
        }
        self.opening = Some(Opening {
            conn,
            header,
            stored_at: self.maps.generation(),
            leased: false,
        });
    }

    /// The volatile state is another than at the last opening. Durable before the promise, and so before anything
    /// more is acknowledged: remembered beyond this engine, which may not live to make it good, and of two losses
    /// the earlier one is known.
    //= docs/replication.md#R8
    fn notice_loss(&mut self, header: &Header) {
        if self.superblock.cache == self.cache {
            return;
        }
        self.superblock.cache = self.cache;
        if !defect!(DoubtForgotten) {
            let op = if defect!(LossesTie) { OpId(0) } else { header.op };
            self.superblock.loss = self.superblock.loss.max(Loss {
                epoch: header.view.epoch,
                op,
            });
        }
        self.maps.touch_superblock();
    }

    /// Tells an engine that is not the present one why it is not served.
    pub(super) fn refuse_stranger(&self, conn: ConnId, header: &Header, out: &mut Vec<Command<P>>) {
        if header.view.epoch < self.superblock.fence {
            let view = View {
                epoch: self.superblock.fence,
                ..header.view
            };
            let header = Header { view, ..*header };
            return reply(out, conn, &header, Status::Fenced);
        }
        reply(out, conn, header, Status::NotOpen);
    }

    /// Gives the promise once the fence is durable, the disk is idle and older leases are over.
    //= docs/replication.md#R4
    pub(super) fn try_promise(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        let Some(opening) = &mut self.opening else { return };
        let (holder, until) = self.lease;
        opening.leased = holder < opening.header.view.epoch && now < until && !defect!(NoLeaseWait);
        let ignored = if defect!(NoDrain) {
            usize::MAX
        } else {
            usize::from(defect!(DrainAllButOne))
        };
        let busy = self.disk.len() > ignored;
        if opening.leased || busy || !(self.maps.stored(opening.stored_at) || defect!(FenceNotStored)) {
            return;
        }
        let Some(Opening { conn, header, .. }) = self.opening.take() else {
            return;
        };
        self.session = Some(Session {
            conn,
            epoch: header.view.epoch,
            view: header.view,
            member: header.flags & flags::MEMBER != 0,
        });
        let info = Info {
            cache: self.cache,
            stored: self.superblock.view,
            loss: self.superblock.loss,
            in_sync: self.superblock.in_sync.contains(&self.id),
            lineage: self.superblock.lineage,
            size: self.superblock.size,
            dirty: self.maps.dirty_count(),
            maps: self.superblock.maps.iter().copied().flatten().collect(),
        };
        self.answer(now, conn, &header, Body::Bytes(info.encode()), out);
    }

    /// The engine tells the view. A member stores it, with the maps of those who left; another replica
    /// only takes requests under it from now on.
    pub(super) fn store_view(
        &mut self,
        now: Time,
        conn: ConnId,
        header: Header,
        roster: &[u8],
        out: &mut Vec<Command<P>>,
    ) {
        let Some(roster) = Roster::decode(roster) else {
            return reply(out, conn, &header, Status::Invalid);
        };
        let member = header.flags & flags::MEMBER != 0;
        let Some(session) = self.session.as_mut() else {
            return;
        };
        session.view = header.view;
        session.member = member;
        if !member {
            return self.answer(now, conn, &header, Body::None, out);
        }
        if header.view < self.superblock.view {
            return reply(out, conn, &header, Status::WrongView);
        }
        self.maps.adopt_roster(&mut self.superblock, &roster);
        self.superblock.view = header.view;
        self.superblock.in_sync = roster.in_sync;
        //= docs/replication.md#R8
        if header.flags & flags::WHOLE != 0 {
            self.superblock.loss = Loss::NONE;
        }
        self.maps.touch_superblock();
        self.answer_when_stored(now, conn, header);
    }

    /// Answers `header` once all that was changed up to now is durable.
    pub(super) fn answer_when_stored(&mut self, now: Time, conn: ConnId, header: Header) {
        self.waiting.push(Waiting {
            generation: self.maps.generation(),
            conn,
            header,
            arrived: now,
        });
    }

    /// A connection is gone, and with it its promise.
    pub(super) fn gone(&mut self, conn: ConnId) {
        if self.opening.as_ref().is_some_and(|opening| opening.conn == conn)
            || self.session.as_ref().is_some_and(|session| session.conn == conn)
        {
            self.end_session();
        }
    }

    /// Ends whatever session there is. Requests that did not reach the disk are dropped: their engine
    /// sends them again or was fenced. Those in the disk go on and are waited for by the next promise.
    fn end_session(&mut self) {
        self.session = None;
        self.opening = None;
        self.parked.clear();
        self.waiting.clear();
        self.snapshots.clear();
    }

    /// The engine gives its lease back.
    pub(super) fn close(&mut self, now: Time, conn: ConnId, header: &Header, out: &mut Vec<Command<P>>) {
        reply(out, conn, header, Status::Ok);
        self.lease.1 = now;
        self.end_session();
    }
}
