//! The engine's state machine: the one writer of a volume under one epoch.
//!
//! It sends each write to all in-sync replicas and answers when all have it (R1), reads from one under
//! leases from all (R6), has members removed by the catalogue before it answers without them (R2), makes
//! members equal after a crash (R8) and brings returning replicas up to date (R9 to R13). A device that
//! fails is worse than one that waits: with nobody to ask, requests wait.
//!
//! ```text
//!            all members promised, unequal regions known
//!  Starting ---------------------------------------------> Active ---- Stop ----> Stopping ----> Stopped
//!     |                                                      |                        |
//!     +------------- a newer epoch, or the right withdrawn --+------------------------+--------> Fenced
//!     +------------- no member kept its cache, or the catalogue is behind ---------------------> Failed
//! ```
//!
//! One engine lives for one epoch; its process never takes another.

mod clean;
mod copy;
mod io;
mod locks;
mod membership;
mod peer;
mod resync;
mod start;
mod tracker;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::bitmap::Bitmap;
use crate::body::Body;
use crate::catalogue::{Change, Refusal, VolumeRow};
use crate::ids::{Epoch, IoId, OpId, ReplicaId, VolumeId};
use crate::range::ByteRange;
use crate::time::Time;
use crate::wire::Header;

use copy::CopyJob;
use io::Io;
use locks::Locks;
use peer::Peer;
use tracker::Tracker;

/// A member whose connection is lost this long is removed. A satellite's restart takes less; a writer
/// that waits half a second notices, but nothing times out.
pub const UNREACHABLE_AFTER: Duration = Duration::from_millis(500);
/// How long a new engine waits for members that do not answer, after an unclean end (R5).
pub const START_GRACE: Duration = Duration::from_secs(30);
/// A request older than this removes its replica (slow disk, hung machine).
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// A connection on which nothing came for this long, though asked, is lost.
pub const SILENCE: Duration = Duration::from_secs(3);
/// How often the engine looks at its timers while something moves.
const TICK: Duration = Duration::from_millis(50);
/// How often it does when nothing does.
const IDLE_TICK: Duration = Duration::from_secs(1);
/// How long a stop may take before it ends uncleanly.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// A connection attempt to a replica; never used again within an engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkId(pub u64);

/// What a client asks for. Ranges are checked by the shell: aligned and inside the volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request<P> {
    /// Read.
    Read(ByteRange),
    /// Write.
    Write {
        /// Where.
        range: ByteRange,
        /// What; a copy nobody else can change.
        data: P,
        /// Durable when answered.
        fua: bool,
    },
    /// Make a range read as zeroes.
    Zero {
        /// Where.
        range: ByteRange,
        /// Give the space back.
        discard: bool,
        /// Durable when answered.
        fua: bool,
    },
    /// Make everything answered before durable.
    Flush,
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event<P> {
    /// A client's request.
    Submit {
        /// Its number.
        io: IoId,
        /// What.
        request: Request<P>,
    },
    /// A connection was made.
    Connected {
        /// Replica.
        replica: ReplicaId,
        /// As in [`Command::Connect`].
        link: LinkId,
    },
    /// A connection ended or was not made.
    Lost {
        /// Replica.
        replica: ReplicaId,
        /// As in [`Command::Connect`].
        link: LinkId,
    },
    /// An answer came; its checksums held.
    Answer {
        /// Replica.
        replica: ReplicaId,
        /// As in [`Command::Connect`].
        link: LinkId,
        /// What.
        header: Header,
        /// Payload.
        body: Body<P>,
    },
    /// The catalogue's row, as it is or became.
    Row(VolumeRow),
    /// The outcome of [`Command::Propose`].
    Outcome {
        /// Its number.
        proposal: u64,
        /// The row after it, or as it is when the change was refused.
        row: VolumeRow,
        /// Why it was refused.
        refusal: Option<Refusal>,
    },
    /// End in order.
    Stop,
    /// The time [`Engine::deadline`] named has come.
    Tick,
}

/// Something to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command<P> {
    /// Connect to a replica; tell [`Event::Connected`] or [`Event::Lost`].
    Connect {
        /// Replica.
        replica: ReplicaId,
        /// Names this connection from now on.
        link: LinkId,
    },
    /// Close a connection. No event of it may follow.
    Disconnect {
        /// Replica.
        replica: ReplicaId,
        /// Which.
        link: LinkId,
    },
    /// Send a message, in order.
    Send {
        /// Replica.
        replica: ReplicaId,
        /// Connection.
        link: LinkId,
        /// What.
        header: Header,
        /// Payload.
        body: Body<P>,
    },
    /// Have the catalogue changed; repeat until the outcome is known, never make one up.
    Propose {
        /// Its number.
        proposal: u64,
        /// What.
        change: Change,
    },
    /// Answer a client.
    Complete {
        /// Its number.
        io: IoId,
        /// For a read, the data.
        result: Result<Option<P>, IoError>,
    },
    /// The state changed; see [`Engine::state`].
    StateChanged,
}

/// Why a client's request failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoError {
    /// The volume has a newer engine, or this one lost its right. The outcome of a write is not known.
    Fenced,
    /// No replica could read it.
    Media,
    /// The device is lost until attached anew: acknowledged writes are gone.
    Failed,
}

/// What the engine is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// Waits for promises.
    Starting,
    /// Serves.
    Serving,
    /// I/O waits; why.
    Suspended(String),
    /// A newer epoch has the volume.
    Fenced,
    /// Can't go on; why.
    Failed(FailReason),
    /// Drains.
    Stopping,
    /// Ended in order. `clean` as in [`Change::Detach`].
    Stopped {
        /// Drained, flushed, no dirty region.
        clean: bool,
    },
}

/// Why an engine can't go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FailReason {
    /// R8, R9.
    #[error(
        "every in-sync replica lost acknowledged writes that were not flushed; detach and attach the volume, \
         then check its file system"
    )]
    CacheLost,
    /// A replica stores a view above the catalogue's.
    #[error("catalogue-behind: a replica has seen a later configuration than the catalogue holds")]
    CatalogueBehind,
}

/// A running resync.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Who catches up.
    pub replica: ReplicaId,
    /// Bytes to copy when it began.
    pub total: u64,
    /// Bytes done.
    pub done: u64,
}

/// Totals since the engine began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Requests.
    pub reads: u64,
    /// Bytes.
    pub read_bytes: u64,
    /// Requests.
    pub writes: u64,
    /// Bytes.
    pub written_bytes: u64,
    /// Requests.
    pub flushes: u64,
    /// Bytes copied to replicas that had missed writes.
    pub resynced_bytes: u64,
    /// Bytes copied to make members equal after an unclean end.
    pub repaired_bytes: u64,
}

/// What an engine is started with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Start {
    /// The catalogue's row, whose epoch is this engine's.
    pub row: VolumeRow,
    /// A client of an earlier engine still lives and would take a later flush for its own writes (R8).
    pub guest_alive: bool,
    /// Replica to read from by preference: the one on this node.
    pub local: Option<ReplicaId>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Phase {
    Starting { since: Time },
    Active,
    Stopping { since: Time, flush: Option<IoId> },
    Stopped { clean: bool },
    Fenced,
    Failed(FailReason),
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Proposal {
    id: u64,
    /// The replica to be added, whose acknowledgement is required until the outcome is known (R3).
    adding: Option<ReplicaId>,
}

/// See the module.
#[derive(Debug)]
pub struct Engine<P> {
    epoch: Epoch,
    row: VolumeRow,
    guest_alive: bool,
    local: Option<ReplicaId>,
    phase: Phase,
    peers: BTreeMap<ReplicaId, Peer<P>>,
    /// Bits of the members whose acknowledgement a write needs: the in-sync set and one about to join.
    required: u16,
    /// Acknowledgements wait until a member has stored the view of this config (R2).
    gate: bool,
    proposal: Option<Proposal>,
    /// The catalogue refused to shrink the in-sync set; not asked again before this.
    refused_until: Option<Time>,
    /// Since when the last member that is right about unequal blocks would be removed (R8).
    spared_since: Option<Time>,
    ios: BTreeMap<IoId, Io<P>>,
    /// Requests that came before the engine was active.
    backlog: VecDeque<IoId>,
    /// Reads of blocks that are being repaired.
    unrepaired: VecDeque<IoId>,
    /// Reads that have their data and wait for leases.
    held: Vec<IoId>,
    locks: Locks,
    tracker: Tracker,
    /// Blocks that may differ between members since an unclean end (R8).
    unequal: Bitmap,
    source: Option<ReplicaId>,
    /// No repair in the background before this.
    repair_at: Time,
    urgent: BTreeSet<u64>,
    copies: BTreeMap<u64, CopyJob>,
    next_op: u64,
    next_link: u64,
    next_copy: u64,
    next_proposal: u64,
    next_own_io: u64,
    counters: Counters,
    advance_at: Time,
    clean_at: Time,
    /// Something changed that the timers' work depends on.
    stirred: bool,
    told: Option<State>,
}

impl<P: Clone> Engine<P> {
    /// An engine for the epoch of `start.row`. Give it an [`Event::Tick`] to begin.
    pub fn new(now: Time, start: Start) -> Self {
        let Start {
            row,
            guest_alive,
            local,
        } = start;
        let mut engine = Self {
            epoch: row.view.epoch,
            guest_alive,
            local,
            phase: Phase::Starting { since: now },
            peers: BTreeMap::new(),
            required: 0,
            gate: false,
            proposal: None,
            refused_until: None,
            spared_since: None,
            ios: BTreeMap::new(),
            backlog: VecDeque::new(),
            unrepaired: VecDeque::new(),
            held: Vec::new(),
            locks: Locks::default(),
            tracker: Tracker::default(),
            unequal: Bitmap::default(),
            source: None,
            repair_at: now,
            urgent: BTreeSet::new(),
            copies: BTreeMap::new(),
            next_op: 1,
            next_link: 1,
            next_copy: 1,
            next_proposal: 1,
            next_own_io: OWN_IO,
            counters: Counters::default(),
            advance_at: now,
            clean_at: now,
            stirred: true,
            told: None,
            row,
        };
        engine.sync_peers(now);
        engine
    }

    /// The volume.
    pub fn volume(&self) -> VolumeId {
        self.row.volume
    }

    /// The row as this engine knows it.
    pub fn row(&self) -> &VolumeRow {
        &self.row
    }

    /// Since the engine began.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Client requests not yet answered.
    pub fn in_flight(&self) -> usize {
        self.unanswered().count()
    }

    /// Bytes that may differ between members and are yet to be repaired.
    pub fn unequal_bytes(&self) -> u64 {
        self.unequal.count() * crate::range::BLOCK
    }

    /// When [`Event::Tick`] is due.
    pub fn deadline(&self) -> Time {
        self.advance_at
    }

    /// Takes an event, appends what is to be done.
    pub fn step(&mut self, now: Time, event: Event<P>, out: &mut Vec<Command<P>>) {
        match event {
            Event::Submit { io, request } => self.submit(now, io, request, out),
            Event::Connected { replica, link } => self.connected(now, replica, link, out),
            Event::Lost { replica, link } => self.lost(now, replica, link, out),
            Event::Answer {
                replica,
                link,
                header,
                body,
            } => self.answer(now, replica, link, header, body, out),
            Event::Row(row) => self.adopt(now, row, out),
            Event::Outcome {
                proposal,
                row,
                refusal,
            } => self.outcome(now, proposal, row, refusal.as_ref(), out),
            Event::Stop => self.begin_stop(now),
            Event::Tick => self.stirred |= now >= self.advance_at,
        }
        if self.stirred {
            self.stirred = false;
            self.advance(now, out);
        }
    }

    /// The timers' work, and whatever follows from a change of links, views or maps.
    fn advance(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        match self.phase {
            Phase::Starting { .. } | Phase::Active | Phase::Stopping { .. } => {
                self.tend_links(now, out);
                self.remove_unreachable(now, out);
                self.start_when_ready(now, out);
                self.tend_copies(now, out);
                self.tell_whole(now, out);
                self.tend_syncs(now, out);
                self.tend_dirty(now, out);
                self.tend_stop(now, out);
            }
            Phase::Stopped { .. } | Phase::Fenced | Phase::Failed(_) => {}
        }
        let state = self.state(now);
        let busy =
            state != State::Serving || self.peers.values().any(Peer::is_moving) || !self.copies.is_empty();
        self.advance_at = now + if busy { TICK } else { IDLE_TICK };
        if self.told.as_ref() != Some(&state) {
            self.told = Some(state);
            out.push(Command::StateChanged);
        }
    }

    /// What it is doing.
    pub fn state(&self, now: Time) -> State {
        match &self.phase {
            Phase::Starting { .. } => State::Starting,
            Phase::Active => self.suspension(now).map_or(State::Serving, State::Suspended),
            Phase::Stopping { .. } => State::Stopping,
            Phase::Stopped { clean } => State::Stopped { clean: *clean },
            Phase::Fenced => State::Fenced,
            Phase::Failed(reason) => State::Failed(*reason),
        }
    }

    /// A newer epoch has the volume, or the right to this one is gone: nothing is acknowledged any more.
    fn fence(&mut self, out: &mut Vec<Command<P>>) {
        self.end(Phase::Fenced, IoError::Fenced, out);
    }

    fn fail(&mut self, reason: FailReason, out: &mut Vec<Command<P>>) {
        self.end(Phase::Failed(reason), IoError::Failed, out);
    }

    fn end(&mut self, phase: Phase, error: IoError, out: &mut Vec<Command<P>>) {
        self.phase = phase;
        for (replica, peer) in &mut self.peers {
            peer.close(*replica, out);
        }
        self.copies.clear();
        self.locks = Locks::default();
        let unanswered: Vec<IoId> = self.unanswered().collect();
        self.ios.clear();
        for io in unanswered {
            out.push(Command::Complete {
                io,
                result: Err(error),
            });
        }
        self.backlog.clear();
        self.unrepaired.clear();
        self.held.clear();
        self.stirred = true;
    }

    fn op(&mut self) -> OpId {
        let op = OpId(self.next_op);
        self.next_op += 1;
        op
    }
}

/// Numbers from here on are the engine's own requests; clients' are below.
pub const OWN_IO: u64 = 1 << 63;
