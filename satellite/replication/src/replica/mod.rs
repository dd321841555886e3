//! The replica's state machine: one copy of one volume on one storage node.
//!
//! It promises an epoch to one engine at a time, keeps the maps that make resync and recovery exact, and
//! turns requests into disk operations. It promises: no write reaches the disk before its region's dirty
//! bit is durable (R7); after a promise for an epoch no older I/O of any kind is left below it (R4).
//! It does not decide who is in sync: that is the catalogue's, told by the engine.
//!
//! ```text
//!            Open (epoch >= fence)              fence durable, disk idle, lease over
//!   closed ------------------------> opening -----------------------------------------> open
//!      ^                               |  ^                                              |
//!      +---- connection lost ----------+  +------------- Open on a new connection -------+
//! ```

mod data;
mod maps;
mod session;
mod snapshot;

use std::collections::{BTreeMap, VecDeque};

use uuid::Uuid;

use crate::body::Body;
use crate::digest::Digests;
use crate::disk::{Page, PageId, Superblock};
use crate::extents::Extent;
use crate::ids::{CacheId, ConnId, Epoch, ReplicaId, SnapshotId, View, VolumeId};
use crate::range::ByteRange;
use crate::right::{Authorised, RightRefusal};
use crate::time::{LEASE, Time};
use crate::wire::{Header, Kind, Status};

pub use maps::LoadError;
use maps::Maps;

/// Requests one connection may have in flight; an engine stays far below, so more is a defect of the
/// peer and ends its connection.
pub const MAX_IN_FLIGHT: usize = 4096;

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event<P> {
    /// A request came in; its checksums held.
    Request {
        /// Connection.
        conn: ConnId,
        /// What.
        header: Header,
        /// Payload.
        body: Body<P>,
    },
    /// An Open came in whose right was checked. One that comes as a [`Event::Request`] is refused.
    Open {
        /// Connection.
        conn: ConnId,
        /// What.
        header: Header,
        /// The shell's word that a controller granted it.
        authorised: Authorised,
    },
    /// A connection is gone.
    Gone {
        /// Which.
        conn: ConnId,
    },
    /// A disk operation ended.
    DiskDone {
        /// Its number.
        op: u64,
        /// For a read, the data.
        result: Result<Option<P>, DiskError>,
    },
    /// The same for a [`DiskAction::Extents`].
    ExtentsFound {
        /// Its number.
        op: u64,
        /// From the beginning of the range on; what is left out or not known is data.
        extents: Vec<Extent>,
    },
    /// The same for a [`DiskAction::Digest`].
    Digested {
        /// Its number.
        op: u64,
        /// From the beginning of the range on; `None`: it could not be found out.
        digests: Option<Digests>,
    },
    /// The same for a [`DiskAction::MaySnapshot`] or [`DiskAction::Snapshot`].
    SnapshotDone {
        /// Its number.
        op: u64,
        /// How it went.
        result: Result<(), SnapshotError>,
    },
    /// All pages of the last [`Command::StorePages`] are durable, or not.
    PagesStored {
        /// Outcome of the whole batch.
        result: Result<(), DiskError>,
    },
    /// The place of the data is durably larger: the replica is, once its superblock says so.
    Grown {
        /// Bytes.
        size: u64,
    },
    /// The time [`Replica::deadline`] named has come.
    Tick,
}

/// How a disk operation failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskError {
    /// No space left.
    NoSpace,
    /// The system was short of something that is not the disk's (memory, mostly): worth trying again.
    Transient,
    /// Anything else.
    Failed,
}

/// Why no copy for a snapshot was made. None of it is a failure of the replica's disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SnapshotError {
    /// The node was not told to make it.
    Unknown,
    /// Blocks can't be shared here.
    Unsupported,
    /// No space left.
    NoSpace,
    /// Anything else.
    Failed,
}

/// Something to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command<P> {
    /// Answer a request.
    Reply {
        /// Connection; if it is gone, nothing is to be done.
        conn: ConnId,
        /// What.
        header: Header,
        /// Payload.
        body: Body<P>,
    },
    /// Close a connection.
    Drop {
        /// Which.
        conn: ConnId,
    },
    /// Do a disk operation and tell [`Event::DiskDone`].
    Disk {
        /// Its number.
        op: u64,
        /// What.
        action: DiskAction<P>,
    },
    /// Write all pages and make them durable, in any order, then tell [`Event::PagesStored`].
    /// There is never more than one such batch under way.
    StorePages(Vec<StoredPage>),
}

/// A page to write and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredPage {
    /// Which page; for tests and logs.
    pub id: PageId,
    /// Byte offset in the metadata file.
    pub offset: u64,
    /// Its bytes.
    pub page: Page,
}

/// An operation on the data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskAction<P> {
    /// Write; durable when done if `fua`.
    Write {
        /// Where.
        range: ByteRange,
        /// What.
        data: P,
        /// Durable when done.
        fua: bool,
    },
    /// Make a range read as zeroes.
    Zero {
        /// Where.
        range: ByteRange,
        /// Give the space back.
        discard: bool,
        /// Durable when done.
        fua: bool,
    },
    /// Read.
    Read {
        /// Where.
        range: ByteRange,
    },
    /// Make everything done before durable.
    Flush,
    /// Find out which parts are holes; tell [`Event::ExtentsFound`].
    Extents {
        /// Where.
        range: ByteRange,
    },
    /// Read and tell in short, unit by unit: see [`crate::digest`]; tell [`Event::Digested`].
    Digest {
        /// Where.
        range: ByteRange,
    },
    /// Find out whether a [`DiskAction::Snapshot`] could be done; tell [`Event::SnapshotDone`].
    MaySnapshot(SnapshotId),
    /// Make a copy of all data as it is now, durable and whole or not there, in place of an earlier one of the same
    /// snapshot; tell [`Event::SnapshotDone`].
    Snapshot(SnapshotId),
}

/// Tells the opening after a failure from the one before; any number does.
const FAILED_BEFORE: u128 = 0x5f61_696c_6564_0000_0000_0000_0000_0000;

#[derive(Debug)]
struct Session {
    conn: ConnId,
    epoch: Epoch,
    /// What requests must carry; moved by `StoreView`.
    view: View,
    /// In the in-sync set, or about to join it.
    member: bool,
}

#[derive(Debug)]
struct Opening {
    conn: ConnId,
    header: Header,
    /// Generation of the stored pages that holds the new fence.
    stored_at: u64,
    /// A lease of an older epoch had not run out when last looked at.
    leased: bool,
}

#[derive(Debug)]
struct InFlight {
    conn: ConnId,
    header: Header,
    arrived: Time,
}

#[derive(Debug)]
struct Parked<P> {
    conn: ConnId,
    header: Header,
    body: Body<P>,
    arrived: Time,
}

#[derive(Debug)]
struct Waiting {
    generation: u64,
    conn: ConnId,
    header: Header,
    arrived: Time,
}

/// See the module.
#[derive(Debug)]
pub struct Replica<P> {
    volume: VolumeId,
    id: ReplicaId,
    /// Volatile state below, now.
    cache: CacheId,
    superblock: Superblock,
    maps: Maps,
    session: Option<Session>,
    opening: Option<Opening>,
    /// Disk operations under way, of whatever session.
    disk: BTreeMap<u64, InFlight>,
    next_disk: u64,
    /// Writes whose dirty bits are not yet durable.
    parked: VecDeque<Parked<P>>,
    /// Answers that wait for pages to be durable.
    waiting: Vec<Waiting>,
    /// Snapshots that wait for writes in the disk to end.
    snapshots: VecDeque<Parked<P>>,
    /// The read lease last granted: to which epoch, until when.
    lease: (Epoch, Time),
    /// While a new size is not durable: the one that is, and what has to be stored.
    growing: Option<(u64, u64)>,
}

impl<P: Clone> Replica<P> {
    /// Opens a replica from its metadata file. `read` answers bytes at an offset; beyond the end, zeroes.
    pub fn load<E>(
        volume: VolumeId,
        id: ReplicaId,
        cache: CacheId,
        now: Time,
        read: &mut dyn FnMut(u64, usize) -> Result<Vec<u8>, E>,
    ) -> Result<Self, LoadError<E>> {
        let (mut superblock, maps) = Maps::load(volume, id, read)?;
        if std::mem::take(&mut superblock.failed) {
            // A new opening of a disk that failed (R15): what it acknowledged and did not flush may be gone,
            // which is what another identity of the volatile state says (R9).
            superblock.failures = superblock
                .failures
                .saturating_add(u64::from(!defect!(FailedLooksSound)));
        }
        let cache = match superblock.failures {
            0 => cache,
            failures => CacheId(Uuid::from_u128(
                cache.0.as_u128() ^ u128::from(failures) ^ FAILED_BEFORE,
            )),
        };
        // A process that ended may have granted a lease just before: assume it did, if it ever promised. To the last
        // engine it stored a view of: leases from before that one were over when that was promised, a later one may
        // have got as far as the fence while it waited for them.
        //= docs/replication.md#R4
        let holder = if defect!(LeaseOfTheFence) {
            superblock.fence
        } else {
            superblock.view.epoch
        };
        let lease = match superblock.fence {
            Epoch(0) => (Epoch(0), Time::default()),
            fence if defect!(LeaseForgotten) => (fence, now),
            _ => (holder, now + LEASE),
        };
        Ok(Self {
            volume,
            id,
            cache,
            superblock,
            maps,
            session: None,
            opening: None,
            disk: BTreeMap::new(),
            next_disk: 0,
            parked: VecDeque::new(),
            waiting: Vec::new(),
            snapshots: VecDeque::new(),
            lease,
            growing: None,
        })
    }

    /// What is stored, for status and checks.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Set bits of the dirty map.
    pub fn dirty_regions(&self) -> u64 {
        self.maps.dirty_count()
    }

    /// Whether anything is under way in the disk; once closed by its shell, it must be waited for.
    pub fn is_idle(&self) -> bool {
        self.disk.is_empty() && !self.maps.is_storing()
    }

    /// When [`Event::Tick`] is due, if at all.
    pub fn deadline(&self) -> Option<Time> {
        let leased = self.opening.as_ref().filter(|opening| opening.leased);
        let lease = leased.map(|_| self.lease.1);
        [lease, self.maps.deadline()].into_iter().flatten().min()
    }

    /// Takes an event, appends what is to be done.
    pub fn step(&mut self, now: Time, event: Event<P>, out: &mut Vec<Command<P>>) {
        match event {
            Event::Request { conn, header, body } => self.request(now, conn, header, body, out),
            Event::Open {
                conn,
                header,
                authorised,
            } => self.open(conn, header, authorised, out),
            Event::Gone { conn } => self.gone(conn),
            Event::DiskDone { op, result } => self.disk_done(op, result, out),
            Event::ExtentsFound { op, extents } => self.extents_found(op, extents, out),
            Event::Digested { op, digests } => self.digested(op, digests, out),
            Event::SnapshotDone { op, result } => self.snapshot_done(op, result, out),
            Event::PagesStored { result } => self.pages_stored(now, result, out),
            Event::Grown { size } => self.grown(size),
            Event::Tick => {}
        }
        self.begin_snapshots(out);
        self.try_promise(now, out);
        if let Some(pages) = self.maps.compose(now, self.volume, self.id, &self.superblock) {
            out.push(Command::StorePages(pages));
        }
    }

    /// What it missed of others grows by the new part, whole: unknown is never clean.
    //= docs/replication.md#G3
    fn grown(&mut self, size: u64) {
        let before = self.size();
        if size <= self.superblock.size || self.superblock.failed {
            return;
        }
        self.superblock.size = size;
        self.maps.grow(&self.superblock);
        self.growing = Some((before, self.maps.generation()));
    }

    /// Bytes it durably has.
    //= docs/replication.md#G3
    pub fn size(&self) -> u64 {
        match self.growing {
            Some((before, generation)) if !self.maps.stored(generation) => before,
            Some(_) | None => self.superblock.size,
        }
    }

    fn request(&mut self, now: Time, conn: ConnId, header: Header, body: Body<P>, out: &mut Vec<Command<P>>) {
        //= docs/replication.md#R14
        let other = header.volume != self.volume || header.replica != self.id;
        if header.is_reply() || (other && !defect!(IdentityNotChecked)) {
            return reply(out, conn, &header, Status::WrongReplica);
        }
        if header.kind == Kind::Open {
            return refuse_right(out, conn, &header, RightRefusal::Absent);
        }
        let Some(session) = self.session.as_ref().filter(|session| session.conn == conn) else {
            return self.refuse_stranger(conn, &header, out);
        };
        if header.view.epoch != session.epoch && !defect!(ViewNotChecked) {
            return reply(out, conn, &header, Status::WrongView);
        }
        let held = self.parked.len() + self.waiting.len() + self.snapshots.len();
        if self.disk.len() + held >= MAX_IN_FLIGHT {
            out.push(Command::Drop { conn });
            return self.gone(conn);
        }
        if header.kind == Kind::StoreView {
            return self.store_view(now, conn, header, body.bytes(), out);
        }
        //= docs/replication.md#R14
        if header.view != session.view && !defect!(ViewNotChecked) {
            return reply(out, conn, &header, Status::WrongView);
        }
        self.serve(now, conn, header, body, out);
    }

    /// Answers and thereby renews the read lease, counted from the request's arrival.
    fn answer(
        &mut self,
        arrived: Time,
        conn: ConnId,
        header: &Header,
        body: Body<P>,
        out: &mut Vec<Command<P>>,
    ) {
        if let Some(session) = self.session.as_ref().filter(|session| session.conn == conn) {
            let until = arrived + LEASE;
            self.lease = match self.lease {
                (epoch, before) if epoch == session.epoch => (epoch, before.max(until)),
                _ => (session.epoch, until),
            };
        }
        out.push(Command::Reply {
            conn,
            header: header.reply(Status::Ok),
            body,
        });
    }
}

fn reply<P>(out: &mut Vec<Command<P>>, conn: ConnId, header: &Header, status: Status) {
    out.push(Command::Reply {
        conn,
        header: header.reply(status),
        body: Body::None,
    });
}

fn refuse_right<P>(out: &mut Vec<Command<P>>, conn: ConnId, header: &Header, why: RightRefusal) {
    out.push(Command::Reply {
        conn,
        header: header.refuse_right(why),
        body: Body::None,
    });
}
