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

mod checkpoint;
mod clean;
mod connection;
mod copy;
mod event;
mod extents;
mod grow;
mod holes;
mod io;
mod leave;
mod locks;
mod membership;
mod message;
mod missed;
mod peer;
mod read;
mod repair;
mod resync;
mod scrub;
mod snapshot;
mod source;
mod start;
mod state;
mod stop;
mod tracker;
mod verdict;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::bitmap::Bitmap;
use crate::catalogue::VolumeRow;
use crate::ids::{Epoch, IoId, OpId, ReplicaId, VolumeId};
use crate::time::Time;

use copy::CopyJob;
use io::Io;
use locks::Locks;
use peer::Peer;
use scrub::Scrubs;
use snapshot::Snapshots;
use tracker::Tracker;

pub use event::{Command, Event, IoError, LinkId, Request};
pub use scrub::{LOOK, ScrubStatus};
pub use snapshot::{GATE, SnapshotAsk, SnapshotStage};
pub use state::{Counters, FailReason, Progress, State};

/// A member whose connection is lost this long is removed. A satellite's restart takes less; a writer
/// that waits half a second notices, but nothing times out.
pub const UNREACHABLE_AFTER: Duration = Duration::from_millis(500);
/// How long a new engine waits for members that do not answer, after an unclean end (R5).
pub const START_GRACE: Duration = Duration::from_secs(30);
// A member that is removed unheard may have granted a lease just before: that must be over.
const _: () = assert!(START_GRACE.as_millis() > crate::time::LEASE.as_millis());
/// A request older than this removes its replica, though it shows life (slow disk).
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// A connection on which nothing came for this long, though asked, is lost, whatever else is under way on it
/// (stopped process, machine or network that is gone without a word).
pub const SILENCE: Duration = Duration::from_secs(3);
/// How often the engine looks at its timers while something moves.
const TICK: Duration = Duration::from_millis(50);
/// How often it does when nothing does.
const IDLE_TICK: Duration = Duration::from_secs(1);
/// How long a stop may take before it ends uncleanly.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

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
    snapshots: Snapshots,
    scrubs: Scrubs,
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
            // Whoever removed a member before may have died before any of the others had stored that (R2).
            gate: !defect!(NoStoredView),
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
            snapshots: Snapshots::default(),
            scrubs: Scrubs::default(),
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
        self.scrubs
            .due()
            .map_or(self.advance_at, |due| due.min(self.advance_at))
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
            } => {
                self.snapshot_decided(now, proposal, refusal.is_some(), out);
                self.scrub_decided(now, proposal, refusal.is_some(), out);
                self.outcome(now, proposal, row, refusal.as_ref(), out);
            }
            Event::Snapshot(ask) => self.snapshots.ask(ask),
            Event::Scrub(ask) => self.scrubs.ask(ask),
            Event::Stop => self.begin_stop(now),
            Event::Tick => self.stirred |= now >= self.advance_at,
        }
        self.tend_snapshot(now, out);
        self.tend_scrub(now, out);
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
        let moving = self.peers.values().any(Peer::is_moving) || !self.copies.is_empty();
        let busy = state != State::Serving || moving || self.row.replicas.values().any(|m| m.leaving);
        let busy = busy || self.snapshots.is_busy();
        let silent = self.peers.values().filter_map(Peer::silent_at).min();
        let next = now + if busy { TICK } else { IDLE_TICK };
        // Who is silent is let go at that very moment: writers wait for it.
        self.advance_at = silent.map_or(next, |at| at.clamp(now, next));
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

    fn op(&mut self) -> OpId {
        let op = OpId(self.next_op);
        self.next_op += 1;
        op
    }
}

/// Numbers from here on are the engine's own requests; clients' are below.
pub const OWN_IO: u64 = 1 << 63;

impl<P: Clone> Engine<P> {
    pub(super) fn phase_serves(&self) -> bool {
        matches!(self.phase, Phase::Active | Phase::Stopping { .. })
    }
}
