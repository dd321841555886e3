//! Reads, writes, flushes and the maps' messages.

use super::{Command, DiskAction, DiskError, InFlight, Parked, Replica, reply};
use crate::bitmap::Bitmap;
use crate::body::Body;
use crate::digest::{self, Digests};
use crate::extents::{self, Extent};
use crate::ids::{ConfigSeq, ConnId, ReplicaId};
use crate::info::Reader;
use crate::range::{BLOCK, ByteRange};
use crate::time::Time;
use crate::wire::{DIRTY_MAP, Header, Kind, MAX_CONTROL, Status, flags};

impl<P: Clone> Replica<P> {
    /// A request of the present view on the present connection.
    pub(super) fn serve(
        &mut self,
        now: Time,
        conn: ConnId,
        header: Header,
        body: Body<P>,
        out: &mut Vec<Command<P>>,
    ) {
        if self.superblock.failed && header.kind != Kind::Close {
            return reply(out, conn, &header, Status::DiskFailed);
        }
        match header.kind {
            Kind::Read | Kind::Write | Kind::Zero if !header.range().valid_for(self.superblock.size) => {
                reply(out, conn, &header, Status::Invalid);
            }
            Kind::Extents if !is_extents_range(header.range(), self.superblock.size) => {
                reply(out, conn, &header, Status::Invalid);
            }
            Kind::Digest if !digest::may_ask(header.range(), self.superblock.size) => {
                reply(out, conn, &header, Status::Invalid);
            }
            Kind::Digest => self.disk_action(
                now,
                conn,
                header,
                DiskAction::Digest {
                    range: header.range(),
                },
                out,
            ),
            Kind::Extents => self.disk_action(
                now,
                conn,
                header,
                DiskAction::Extents {
                    range: header.range(),
                },
                out,
            ),
            Kind::Read => self.disk_action(
                now,
                conn,
                header,
                DiskAction::Read {
                    range: header.range(),
                },
                out,
            ),
            Kind::Flush => self.disk_action(now, conn, header, DiskAction::Flush, out),
            Kind::Write | Kind::Zero => {
                let copy = self.session.as_ref().is_some_and(|session| !session.member);
                let bare = defect!(WriteBeforeBit) || (defect!(CopyWithoutBit) && copy);
                if bare || self.maps.note_write(header.range()) {
                    self.write(now, conn, header, body, out);
                } else {
                    self.parked.push_back(Parked {
                        conn,
                        header,
                        body,
                        arrived: now,
                    });
                }
            }
            Kind::Ping => self.answer(now, conn, &header, Body::None, out),
            Kind::MaySnapshot | Kind::Snapshot => self.ask_snapshot(now, conn, header, body, out),
            Kind::Clean => self.clean(now, conn, &header, body.bytes(), out),
            Kind::GetMap => self.get_map(now, conn, &header, body.bytes(), out),
            Kind::ClearMap => self.clear_map(now, conn, &header, body.bytes(), out),
            Kind::PutMap => self.put_map(now, conn, header, body.bytes(), out),
            Kind::Close => self.close(now, conn, &header, out),
            // Copies of snapshots are read from the shell: it has them when the replica is gone, too.
            Kind::Open | Kind::StoreView | Kind::OpenCopy | Kind::CopyDigests | Kind::CopyRead => {
                reply(out, conn, &header, Status::Invalid);
            }
        }
    }

    /// Sends a write whose dirty bits are durable to the disk.
    fn write(&mut self, now: Time, conn: ConnId, header: Header, body: Body<P>, out: &mut Vec<Command<P>>) {
        let (range, fua) = (header.range(), header.fua());
        let action = match (header.kind, body) {
            (Kind::Write, Body::Data(data)) => DiskAction::Write { range, data, fua },
            (Kind::Zero, _) => DiskAction::Zero {
                range,
                discard: header.flags & flags::DISCARD != 0,
                fua,
            },
            _ => return reply(out, conn, &header, Status::Invalid),
        };
        self.disk_action(now, conn, header, action, out);
    }

    pub(super) fn disk_action(
        &mut self,
        arrived: Time,
        conn: ConnId,
        header: Header,
        action: DiskAction<P>,
        out: &mut Vec<Command<P>>,
    ) {
        let op = self.next_disk;
        self.next_disk += 1;
        self.disk.insert(
            op,
            InFlight {
                conn,
                header,
                arrived,
            },
        );
        out.push(Command::Disk { op, action });
    }

    /// A disk operation ended: answered, if its session still is.
    pub(super) fn disk_done(
        &mut self,
        op: u64,
        result: Result<Option<P>, DiskError>,
        out: &mut Vec<Command<P>>,
    ) {
        let Some(InFlight {
            conn,
            header,
            arrived,
        }) = self.disk.remove(&op)
        else {
            return;
        };
        let status = match (&result, header.kind) {
            (Ok(_), _) => Status::Ok,
            (Err(DiskError::Transient), _) => return self.start_over(conn, out),
            (Err(_), Kind::Read) => Status::MediaError,
            (Err(DiskError::NoSpace), Kind::Write | Kind::Zero) => Status::NoSpace,
            (Err(_), _) => {
                self.fail(out);
                Status::DiskFailed
            }
        };
        if self.session.as_ref().is_none_or(|session| session.conn != conn) {
            return;
        }
        match (status, result) {
            (Status::Ok, Ok(data)) => {
                self.answer(arrived, conn, &header, data.map_or(Body::None, Body::Data), out);
            }
            _ => reply(out, conn, &header, status),
        }
    }

    /// A disk operation is over; what it was, if anybody waits for it still.
    pub(super) fn awaited(&mut self, op: u64) -> Option<InFlight> {
        let ended = self.disk.remove(&op)?;
        let session = self.session.as_ref()?;
        (session.conn == ended.conn).then_some(ended)
    }

    /// What is a hole is known; not knowing it is no failure.
    pub(super) fn extents_found(&mut self, op: u64, mut extents: Vec<Extent>, out: &mut Vec<Command<P>>) {
        let Some(asked) = self.awaited(op) else { return };
        if extents.is_empty() {
            extents.push(Extent::data(asked.header.range().len));
        }
        let body = Body::Bytes(extents::encode(&extents));
        self.answer(asked.arrived, asked.conn, &asked.header, body, out);
    }

    /// What a range holds is known, or can't be told now: then the engine asks again one day.
    pub(super) fn digested(&mut self, op: u64, digests: Option<Digests>, out: &mut Vec<Command<P>>) {
        let Some(asked) = self.awaited(op) else { return };
        let body = digests.map_or(Body::None, |digests| Body::Bytes(digest::encode(&digests)));
        self.answer(asked.arrived, asked.conn, &asked.header, body, out);
    }

    /// Something could not be done just now. Its engine sends it again on a new connection, after a pause.
    fn start_over(&mut self, conn: ConnId, out: &mut Vec<Command<P>>) {
        if self.session.as_ref().is_some_and(|session| session.conn == conn) {
            out.push(Command::Drop { conn });
            self.gone(conn);
        }
    }

    /// The disk failed for good: remembered if it still can be, and every waiting write is refused.
    //= docs/replication.md#R15
    fn fail(&mut self, out: &mut Vec<Command<P>>) {
        if !self.superblock.failed && !defect!(FailureForgotten) {
            self.superblock.failed = true;
            self.maps.touch_superblock();
        }
        self.refuse_parked(Status::DiskFailed, out);
    }

    fn refuse_parked(&mut self, status: Status, out: &mut Vec<Command<P>>) {
        for parked in self.parked.drain(..) {
            reply(out, parked.conn, &parked.header, status);
        }
    }

    /// A batch of pages is durable: writes and answers that waited for it go on.
    pub(super) fn pages_stored(
        &mut self,
        now: Time,
        result: Result<(), DiskError>,
        out: &mut Vec<Command<P>>,
    ) {
        match result {
            Ok(()) => self.maps.batch_done(now, true),
            Err(error) => return self.pages_failed(now, error, out),
        }
        let waiting = std::mem::take(&mut self.waiting);
        for wait in waiting {
            if self.maps.stored(wait.generation) {
                self.answer(wait.arrived, wait.conn, &wait.header, Body::None, out);
            } else {
                self.waiting.push(wait);
            }
        }
        let parked = std::mem::take(&mut self.parked);
        for wait in parked {
            if self.maps.is_durable(wait.header.range()) {
                self.write(wait.arrived, wait.conn, wait.header, wait.body, out);
            } else {
                self.parked.push_back(wait);
            }
        }
    }

    /// Metadata that can't be stored: nothing that needs it may happen. A full pool may find room again;
    /// any other error is the disk's end.
    fn pages_failed(&mut self, now: Time, error: DiskError, out: &mut Vec<Command<P>>) {
        let status = match error {
            DiskError::NoSpace => Status::NoSpace,
            DiskError::Failed => Status::DiskFailed,
            DiskError::Transient => {
                self.maps.batch_done(now, false);
                let conn = self.session.as_ref().map(|session| session.conn);
                return conn.into_iter().for_each(|conn| self.start_over(conn, out));
            }
        };
        self.maps.batch_done(now, false);
        if error == DiskError::Failed {
            if self.superblock.failed {
                // Not even the mark could be stored: no more pages, the views of the others tell.
                self.maps.give_up();
            }
            self.fail(out);
        }
        self.refuse_parked(status, out);
        for wait in std::mem::take(&mut self.waiting) {
            reply(out, wait.conn, &wait.header, status);
        }
    }

    //= docs/replication.md#R7
    fn clean(&mut self, now: Time, conn: ConnId, header: &Header, regions: &[u8], out: &mut Vec<Command<P>>) {
        let mut from = Reader(regions);
        let named: Vec<u64> = if regions.is_empty() {
            self.maps.dirty().iter().collect()
        } else {
            std::iter::from_fn(|| from.u32()).map(u64::from).collect()
        };
        for region in named {
            let touches = |header: &Header| {
                matches!(header.kind, Kind::Write | Kind::Zero) && header.range().regions().contains(&region)
            };
            let busy = self.disk.values().any(|op| touches(&op.header))
                || self.parked.iter().any(|parked| touches(&parked.header));
            if !busy {
                self.maps.note_clean(now, region);
            }
        }
        self.answer(now, conn, header, Body::None, out);
    }

    fn get_map(&mut self, now: Time, conn: ConnId, header: &Header, since: &[u8], out: &mut Vec<Command<P>>) {
        let map = if header.length == DIRTY_MAP {
            Some(self.maps.dirty())
        } else {
            let since = Reader(since).u64().map(ConfigSeq);
            let asked = (ReplicaId(header.length), since.unwrap_or_default());
            let held = since.is_some() && self.superblock.maps.contains(&Some(asked));
            let held = held || defect!(MapOfAnyConfig);
            self.maps.map_of(&self.superblock, asked.0).filter(|_| held)
        };
        match map {
            //= docs/replication.md#R11
            None => reply(out, conn, header, Status::NoMap),
            Some(map) => {
                let words = map.bytes(header.offset, MAX_CONTROL as usize / 8);
                self.answer(now, conn, header, Body::Bytes(words), out);
            }
        }
    }

    //= docs/replication.md#R10
    fn clear_map(
        &mut self,
        now: Time,
        conn: ConnId,
        header: &Header,
        runs: &[u8],
        out: &mut Vec<Command<P>>,
    ) {
        let mut from = Reader(runs);
        // However the runs overlap, no more is done than one pass over the map.
        let mut left = super::Maps::blocks(&self.superblock);
        while let (Some(first), Some(count)) = (from.u64(), from.u64()) {
            let count = count.min(left);
            left -= count;
            self.maps
                .clear_blocks(&self.superblock, ReplicaId(header.length), first, count);
        }
        self.answer(now, conn, header, Body::None, out);
    }

    fn put_map(&mut self, now: Time, conn: ConnId, header: Header, body: &[u8], out: &mut Vec<Command<P>>) {
        let mut from = Reader(body);
        let Some(since) = from.u64().map(ConfigSeq) else {
            return reply(out, conn, &header, Status::Invalid);
        };
        let total = ByteRange::new(0, self.superblock.size).units(BLOCK).end;
        let mut blocks = Bitmap::new(total);
        blocks.or_bytes(header.offset, from.0);
        self.maps
            .begin_map(&mut self.superblock, ReplicaId(header.length), since, &blocks);
        self.answer_when_stored(now, conn, header);
    }
}

fn is_extents_range(range: ByteRange, size: u64) -> bool {
    range.lies_in(size) && range.len <= u64::from(extents::MAX_RANGE)
}
