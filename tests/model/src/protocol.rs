//! The steps of a history, and how one follows another.

use std::sync::atomic::{AtomicBool, Ordering};

use stateright::{Model, Property};

use crate::rules::Rule;
use crate::scope::Scope;
use crate::state::{Bad, Engine, Phase, REPLICAS, Replica, State, bit};
use crate::{
    catalogue, copy, engine, handover, io, membership, properties, replica, resync, snapshot, superseded,
};

/// One step. `engine` is a place in [`State::engines`], `replica` one in [`State::replicas`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the fields are told above")]
pub enum Step {
    /// A new engine gets the right to run.
    Attach { inherited: bool },
    /// A replica stores a fence.
    Fence { engine: usize, replica: usize },
    /// A replica promises.
    Promise { engine: usize, replica: usize },
    /// A replica with another volatile state takes an engine's `Open`; the answer is under way.
    Notice { engine: usize, replica: usize },
    /// An engine begins to serve.
    Activate { engine: usize, source: u8 },
    /// A lease runs out.
    LeaseEnds { engine: usize, replica: usize },
    /// A replica stores the view.
    Tell { engine: usize, replica: usize },
    /// A write begins.
    Write { engine: usize },
    /// A write arrives: its dirty bit is stored, it goes to the disk.
    Accept {
        engine: usize,
        op: usize,
        replica: usize,
    },
    /// A write is over, and answered.
    DiskDone { replica: usize, slot: usize },
    /// A replica answers a read, and so does the engine if it has its leases.
    Read { engine: usize, replica: usize },
    /// A flush begins.
    Flush { engine: usize },
    /// A replica flushes and answers.
    FlushAt { engine: usize, replica: usize },
    /// The disk fails the flush.
    FlushFails { engine: usize, replica: usize },
    /// The engine calls the region clean.
    Clean { engine: usize },
    /// A replica lowers its dirty bit.
    CleanAt { engine: usize, replica: usize },
    /// A copy from the source to the other members begins.
    Repair { engine: usize, source: usize },
    /// The engine asks to remove members, and the catalogue decides.
    Remove { engine: usize, who: u8 },
    /// The engine learns what was decided.
    Learn { engine: usize },
    /// A resync begins: the target tells its own dirty map.
    SyncBegin { engine: usize, target: usize },
    /// A member tells what the target missed.
    SyncMissed { engine: usize, source: usize },
    /// The target is given the maps of others.
    SyncHand { engine: usize, source: usize },
    /// A copy to the target begins.
    SyncCopy { engine: usize, source: usize },
    /// What was copied is flushed, and the members are told.
    SyncCheckpoint { engine: usize },
    /// A member clears its map.
    SyncClearAt { engine: usize, replica: usize },
    /// The target's answer counts from here on.
    SyncJoint { engine: usize },
    /// The target is flushed.
    SyncFlush { engine: usize },
    /// The target stores the view it will have.
    SyncJoin { engine: usize },
    /// The engine asks to add it, and the catalogue decides.
    SyncPropose { engine: usize },
    /// A connection breaks.
    Break { engine: usize, replica: usize },
    /// A machine loses power; its disk holds this then.
    Power { replica: usize, value: u8 },
    /// A replica's process starts again.
    Restart { replica: usize },
    /// A snapshot is asked for: no new writes.
    SnapBegin { engine: usize },
    /// Everything is flushed for it.
    SnapFlush { engine: usize },
    /// A member makes it; this is what it holds.
    SnapAt {
        engine: usize,
        replica: usize,
        value: u8,
    },
    /// The catalogue calls it ready.
    SnapReady { engine: usize },
    /// It is given up.
    SnapAbort { engine: usize },
    /// The engine is to hand over: no new requests.
    HandBegin { engine: usize },
    /// All is flushed: the regions are called clean, the leases given back.
    HandClean { engine: usize },
    /// The catalogue gives the right to the next engine.
    HandOver { engine: usize },
    /// An older copy of the catalogue is restored.
    Restore,
}

/// The protocol, less the rules that are out, within a scope.
#[derive(Debug)]
pub struct Protocol {
    /// How much may happen.
    pub scope: Scope,
    /// Rules that are out, one bit each.
    out: u64,
    /// The checker would go on to overwrite the first history it finds by longer ones.
    reported: AtomicBool,
}

impl Protocol {
    /// The protocol without some of its rules.
    pub fn without(scope: Scope, rules: &[Rule]) -> Self {
        Self {
            scope,
            out: rules.iter().fold(0, |mask, rule| mask | 1 << (*rule as u8)),
            reported: AtomicBool::new(false),
        }
    }

    /// Whether a rule holds.
    pub fn on(&self, rule: Rule) -> bool {
        self.out & 1 << (rule as u8) == 0
    }

    /// The set of all replicas.
    pub fn all(&self) -> u8 {
        (1 << self.scope.replicas) - 1
    }

    /// Says once that a property is broken.
    fn holds(&self, good: bool) -> bool {
        good || self.reported.swap(true, Ordering::Relaxed)
    }

    fn start(&self) -> State {
        let mut state = State::default();
        let all = self.all();
        for replica in &mut state.replicas[..self.scope.replicas] {
            *replica = Replica {
                fence: 1,
                session: 1,
                durable: 1,
                kept: true,
                solid: true,
                config: 1,
                members: all,
                ..Replica::default()
            };
        }
        state.engines[0] = Engine {
            phase: Phase::Active,
            epoch: 1,
            config: 1,
            isr: all,
            client: 1,
            reached: all,
            leased: all,
            source: crate::state::NOBODY,
            ..Engine::default()
        };
        state.catalogue.epoch = 1;
        state.catalogue.config = 1;
        state.catalogue.isr = all;
        state.ghost.next = 1;
        state.ghost.client = 1;
        state.ghost.left = self.scope.budgets;
        state
    }
}

/// Without these an engine that was superseded can do more than [`superseded`] knows of.
const DISTURBED: u64 = 1 << Rule::Fence as u8
    | 1 << Rule::Leases as u8
    | 1 << Rule::AllAck as u8
    | 1 << Rule::CommitFirst as u8
    | 1 << Rule::UnknownWaits as u8
    | 1 << Rule::Compare as u8
    | 1 << Rule::Joint as u8
    | 1 << Rule::JointLease as u8;

/// An engine that has a promise of this replica.
pub(crate) fn is_open(state: &State, engine: usize, replica: usize) -> bool {
    let of = &state.engines[engine];
    is_live(of) && state.replicas[replica].session == of.epoch
}

/// It still does something.
pub(crate) fn is_live(engine: &Engine) -> bool {
    matches!(
        engine.phase,
        Phase::Starting | Phase::Active | Phase::Stopping | Phase::Closing
    )
}

/// Members of `mask` that have promised.
pub(crate) fn open_of(state: &State, engine: usize, mask: u8) -> u8 {
    (0..REPLICAS)
        .filter(|replica| is_open(state, engine, *replica))
        .fold(0, |open, replica| open | bit(replica))
        & mask
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![self.start()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if properties::broken(state).is_some() {
            return;
        }
        catalogue::steps(self, state, steps);
        replica::steps(self, state, steps);
        for engine in (0..state.engines.len()).filter(|engine| is_live(&state.engines[*engine])) {
            engine::steps(self, state, engine, steps);
            io::steps(self, state, engine, steps);
            copy::steps(self, state, engine, steps);
            membership::steps(self, state, engine, steps);
            resync::steps(self, state, engine, steps);
            snapshot::steps(self, state, engine, steps);
            handover::steps(self, state, engine, steps);
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = *last;
        let s = &mut state;
        match step {
            Step::Attach { inherited } => catalogue::attach(self, s, inherited),
            Step::Restore => catalogue::restore(self, s),
            Step::Fence { engine, replica } => engine::fence(self, s, engine, replica),
            Step::Promise { engine, replica } => engine::promise(self, s, engine, replica),
            Step::Notice { engine, replica } => engine::notice_loss(self, s, engine, replica),
            Step::Activate { engine, source } => engine::activate(self, s, engine, source),
            Step::LeaseEnds { engine, replica } => s.engines[engine].leased &= !bit(replica),
            Step::Tell { engine, replica } => engine::tell(self, s, engine, replica),
            Step::Write { engine } => io::write(self, s, engine),
            Step::Accept { engine, op, replica } => io::accept(self, s, engine, op, replica),
            Step::DiskDone { replica, slot } => replica::disk_done(self, s, replica, slot),
            Step::Read { engine, replica } => io::read(s, engine, replica),
            Step::Flush { engine } => io::flush(s, engine),
            Step::FlushAt { engine, replica } => io::flush_at(self, s, engine, replica),
            Step::FlushFails { engine, replica } => io::flush_fails(self, s, engine, replica),
            Step::Clean { engine } => io::clean(s, engine),
            Step::CleanAt { engine, replica } => io::clean_at(self, s, engine, replica),
            Step::Repair { engine, source } => copy::repair(self, s, engine, source),
            Step::Remove { engine, who } => membership::remove(self, s, engine, who),
            Step::Learn { engine } => membership::learn(self, s, engine),
            Step::SyncBegin { engine, target } => resync::begin(self, s, engine, target),
            Step::SyncMissed { engine, source } => resync::missed(self, s, engine, source),
            Step::SyncHand { engine, source } => resync::hand(self, s, engine, source),
            Step::SyncCopy { engine, source } => resync::copy(s, engine, source),
            Step::SyncCheckpoint { engine } => resync::checkpoint(self, s, engine),
            Step::SyncClearAt { engine, replica } => resync::clear_at(s, engine, replica),
            Step::SyncJoint { engine } => resync::joint(s, engine),
            Step::SyncFlush { engine } => resync::flush(self, s, engine),
            Step::SyncJoin { engine } => resync::join(s, engine),
            Step::SyncPropose { engine } => resync::propose(self, s, engine),
            Step::Break { engine, replica } => replica::connection_breaks(self, s, engine, replica),
            Step::Power { replica, value } => replica::power_cut(self, s, replica, value),
            Step::Restart { replica } => replica::restart(self, s, replica),
            Step::SnapBegin { engine } => snapshot::begin(s, engine),
            Step::SnapFlush { engine } => snapshot::flush(self, s, engine),
            Step::SnapAt {
                engine,
                replica,
                value,
            } => snapshot::at(self, s, engine, replica, value),
            Step::SnapReady { engine } => snapshot::ready(s, engine),
            Step::SnapAbort { engine } => snapshot::abort(s, engine),
            Step::HandBegin { engine } => handover::begin(s, engine),
            Step::HandClean { engine } => handover::clean(s, engine),
            Step::HandOver { engine } => handover::hand_over(self, s, engine),
        }
        if self.out & DISTURBED == 0 {
            superseded::forget(&mut state);
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("flushed", |model: &Self, state: &State| {
                model.holds(state.ghost.bad != Bad::FlushedLost && !properties::flushed_is_missing(state))
            }),
            Property::always("acknowledged", |model: &Self, state: &State| {
                model.holds(state.ghost.bad != Bad::AckedLost)
            }),
            Property::always("reads", |model: &Self, state: &State| {
                model.holds(state.ghost.bad != Bad::ReadWentBack)
            }),
            Property::always("epoch", |model: &Self, state: &State| {
                model.holds(state.ghost.bad != Bad::TwoEpochs)
            }),
            Property::always("copies", |model: &Self, state: &State| {
                model.holds(state.ghost.bad != Bad::TooFewCopies)
            }),
            Property::always("equal", |model: &Self, state: &State| {
                model.holds(!properties::members_differ(state))
            }),
            Property::always("snapshot", |model: &Self, state: &State| {
                model.holds(!properties::snapshots_differ(state))
            }),
        ]
    }
}
