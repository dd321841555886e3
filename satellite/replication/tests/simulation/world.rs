//! The world: nodes, connections, engines, guests, the catalogue, and the queue of what happens next.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

use stor_replication::body::Body;
use stor_replication::catalogue::{Change, Member, MemberState, Refusal, VolumeRow};
use stor_replication::engine::{self, Engine, LinkId, Request};
use stor_replication::ids::{CacheId, ConfigSeq, ConnId, Epoch, Lineage, OpId, ReplicaId, View, VolumeId};
use stor_replication::replica::{self, Replica};
use stor_replication::time::Time;
use stor_replication::wire::Header;
use uuid::Uuid;

use super::disk::{Data, Disk};
use super::faults::{Fault, Plan};
use super::frames::Frame;
use super::oracle::Oracle;
use super::rng::Rng;
use super::scrubs::Scrubs;
use super::snapshots::Snapshots;

pub(crate) const VOLUME: VolumeId = VolumeId(Uuid::from_u128(7));
pub(crate) const LINEAGE: Lineage = Lineage(Uuid::from_u128(11));
pub(crate) const SIZE: u64 = 8 << 20;
/// Storage nodes come first; the last is the one that may have no disk.
pub(crate) const NODES: usize = 4;
/// The controllers, as a place in the network.
pub(crate) const CONTROLLER: usize = NODES;
/// Microseconds.
pub(crate) const MS: u64 = 1000;
pub(crate) const SECOND: u64 = 1000 * MS;
/// Set in a seed: the world of the seed without it, and snapshots.
pub(crate) const WITH_SNAPSHOTS: u64 = 1 << 40;
/// No seed comes near it; one that does has a loop without progress.
const MAX_STEPS: u64 = 30_000_000;

/// Something due.
pub(crate) enum What {
    EngineTick(u64),
    ReplicaTick(usize, u64),
    Pump(u64, Dir),
    Syn(u64),
    ConnectFailed(u64),
    Accepted(u64),
    DiskDone(usize, u64, u64),
    PagesDone(usize, u64),
    /// A proposal reaches the catalogue.
    Ask(u64, u64, Change),
    AskAgain(u64, u64),
    Decided(u64, u64, VolumeRow, Option<Refusal>),
    Row(u64, VolumeRow),
    StartEngine {
        node: usize,
        row: VolumeRow,
        guest: Option<u64>,
    },
    Reboot(usize),
    StartSatellite(usize),
    ResumeEngine(u64),
    ResumeSatellite(usize),
    Uncut(usize, usize),
    CatalogueBack,
    DiskRoom(usize),
    DiskRecovers(usize),
    EngineEnds(u64),
    Guest(u64),
    /// Somebody asks for a snapshot, or an engine hears of one.
    Snapshot,
    /// Somebody asks for a scrub, or an engine hears of one.
    Scrub,
    Owner,
    Fault,
    Strike(Fault),
    CleanWire,
    /// A satellite is killed, for so long.
    Kill(usize, u64),
}

/// Who dies between two commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Victim {
    Engine,
    Satellite,
    Machine,
}

/// A death after so many more commands of its kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Doom {
    pub(crate) who: Victim,
    pub(crate) after: u64,
    /// How long the victim stays away.
    pub(crate) back: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dir {
    ToReplica,
    ToEngine,
}

#[derive(Clone, Debug)]
pub(crate) enum Packet {
    Message(Header, Body<Data>),
    Damaged(Frame),
    End,
}

#[derive(Default)]
pub(crate) struct Pipe {
    pub(crate) packets: VecDeque<(u64, Packet)>,
    pub(crate) last: u64,
    pub(crate) pumping: bool,
}

pub(crate) struct Conn {
    pub(crate) engine: u64,
    pub(crate) link: LinkId,
    pub(crate) replica: ReplicaId,
    pub(crate) from: usize,
    pub(crate) node: usize,
    /// It reached another replica's node.
    pub(crate) misrouted: bool,
    /// The satellite process that accepted it.
    pub(crate) process: Option<u64>,
    pub(crate) engine_side: bool,
    pub(crate) to_replica: Pipe,
    pub(crate) to_engine: Pipe,
}

/// A satellite process with its replica.
pub(crate) struct Satellite {
    pub(crate) process: u64,
    pub(crate) replica: Replica<Data>,
    pub(crate) paused: bool,
    pub(crate) waiting: VecDeque<replica::Event<Data>>,
    pub(crate) conns: BTreeMap<ConnId, u64>,
    pub(crate) tick: u64,
    pub(crate) promised: Epoch,
}

pub(crate) struct Node {
    pub(crate) up: bool,
    pub(crate) boot: u64,
    /// Its clock: an offset, and thousandths of real time.
    pub(crate) offset: u64,
    pub(crate) rate: u64,
    pub(crate) store: Option<(ReplicaId, Disk)>,
    /// A copy somebody made of it, and the config it had stored.
    pub(crate) copy: Option<(ReplicaId, ConfigSeq, Disk)>,
    pub(crate) satellite: Option<Satellite>,
    /// A process start is due.
    pub(crate) starting: bool,
    /// When its replica last lost acknowledged writes, since it joined.
    pub(crate) wiped: u64,
    /// When an engine was first let in after that; what was answered since it has.
    pub(crate) reopened: u64,
    /// When the last flush of its disk began.
    pub(crate) flush_begun: u64,
}

impl Node {
    pub(crate) fn cache(&self, index: usize) -> CacheId {
        CacheId(Uuid::from_u64_pair(index as u64 + 1, self.boot))
    }

    pub(crate) fn clock(&self, now: u64) -> Time {
        Time(Duration::from_micros(self.offset + now * self.rate / 1000))
    }

    /// When its clock will show `time`.
    pub(crate) fn when(&self, time: Time) -> u64 {
        let micros = u64::try_from(time.0.as_micros()).unwrap();
        (micros.saturating_sub(self.offset) * 1000).div_ceil(self.rate) + 1
    }
}

pub(crate) struct EngineProcess {
    pub(crate) node: usize,
    pub(crate) epoch: Epoch,
    pub(crate) engine: Engine<Data>,
    pub(crate) guest: u64,
    pub(crate) paused: bool,
    pub(crate) waiting: VecDeque<engine::Event<Data>>,
    pub(crate) links: BTreeMap<LinkId, u64>,
    /// Closed by the engine.
    pub(crate) closed: BTreeSet<LinkId>,
    pub(crate) asks: BTreeMap<u64, Change>,
    pub(crate) tick: u64,
    pub(crate) served: bool,
    pub(crate) ending: bool,
    /// Replica it reads from by preference.
    pub(crate) local: Option<ReplicaId>,
}

/// A request of a guest.
#[derive(Clone)]
pub(crate) struct Op {
    pub(crate) request: Request<Data>,
    pub(crate) begun: u64,
}

/// Who uses the device: lives through restarts of its engine.
pub(crate) struct Guest {
    pub(crate) node: usize,
    pub(crate) engine: Option<u64>,
    pub(crate) ops: BTreeMap<u64, Op>,
    pub(crate) depth: usize,
    pub(crate) bursts_until: u64,
    pub(crate) stopping: bool,
    /// Some engine has served it: an older engine that died before it did left nothing it could know of.
    pub(crate) served: bool,
}

/// See the module.
pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) plan: Plan,
    pub(crate) now: u64,
    /// Order of everything that is seen; the oracle's time.
    pub(crate) moment: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    due: BTreeMap<u64, What>,
    next: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) cut: [[bool; NODES + 1]; NODES + 1],
    pub(crate) conns: BTreeMap<u64, Conn>,
    pub(crate) engines: BTreeMap<u64, EngineProcess>,
    pub(crate) guests: BTreeMap<u64, Guest>,
    pub(crate) row: VolumeRow,
    pub(crate) catalogue_up: bool,
    /// The owner's engine ended and its right is to be given back.
    pub(crate) detach: Option<(Epoch, bool)>,
    /// No engine for the owner since.
    pub(crate) ownerless: Option<u64>,
    pub(crate) oracle: Oracle,
    pub(crate) snapshots: Snapshots,
    pub(crate) scrubs: Scrubs,
    /// Writes not answered yet: the epoch that has them.
    pub(crate) unanswered: BTreeMap<u64, Epoch>,
    /// Highest epoch that answered a client.
    pub(crate) acking: Epoch,
    pub(crate) serving: Epoch,
    /// What ended before this moment and was not flushed may be gone on every member.
    pub(crate) lost: u64,
    /// Unless it was answered after this moment: then a member had it that had lost its cache before.
    pub(crate) lost_until: u64,
    /// Highest epoch any replica promised to serve.
    pub(crate) promised: Epoch,
    /// Up to which moment losing caches was noted with the oracle.
    pub(crate) lost_noted: u64,
    /// When the guest that is served now was first served.
    pub(crate) guest_since: u64,
    /// Blocks that could not be read somewhere, once.
    pub(crate) ever_bad: BTreeSet<u64>,
    pub(crate) ever_wiped: bool,
    /// Words that a replica is right, on their way to be stored there, and since when.
    pub(crate) whole: BTreeMap<(ConnId, OpId), u64>,
    /// The seed is one of those in which a machine stays away at the healing, if the others can do without it.
    pub(crate) forsakes: bool,
    /// That machine, and since when.
    pub(crate) forsaken: Option<usize>,
    pub(crate) forsaken_at: u64,
    pub(crate) healing: bool,
    /// When the operator next wants a replica elsewhere, and by what chance: its own, so that all else of a seed stays.
    pub(crate) leaves: Option<(u64, Rng)>,
    /// Highest number a replica ever had.
    pub(crate) highest: u32,
    /// An engine of this epoch is about to start.
    pub(crate) starting: Option<Epoch>,
    /// Guests ask nothing new.
    pub(crate) quiet: bool,
    pub(crate) finished: bool,
    pub(crate) stopped_clean: Option<bool>,
    pub(crate) wrong: Option<String>,
    pub(crate) log: Option<VecDeque<String>>,
    pub(crate) answered: u64,
    pub(crate) doom: Option<Doom>,
    /// Commands carried out so far, of engines and replicas.
    pub(crate) commands: u64,
    steps: u64,
}

impl World {
    /// With [`WITH_SNAPSHOTS`], or if a third of those without it, snapshots are made.
    pub(crate) fn new(seed: u64, trace: bool) -> Self {
        let number = seed & !WITH_SNAPSHOTS;
        let mut rng = Rng::new(number);
        let mut plan = Plan::new(&mut rng);
        let committed = super::committed().contains(&seed);
        if seed != number || (seed.is_multiple_of(3) && !committed) {
            plan.snapshots = 50;
        }
        let mut world = Self::with(rng, plan, trace);
        world.snapshots = Snapshots::new(seed);
        let mut own = Rng::new(seed ^ 0x006c_6561_7665);
        if own.chance(25) && !committed {
            world.leaves = Some((own.spread(100 * MS, 20 * SECOND), own));
        }
        // Older lines of the list are about worlds in which nobody stayed away.
        world.forsakes = seed % 5 == 3 && (!committed || seed >= 3_000_000);
        world.scrubs = Scrubs::new(seed, committed);
        if world.scrubs.are_made() {
            world.after(SECOND / 2, What::Scrub);
        }
        world
    }

    pub(crate) fn with(mut rng: Rng, plan: Plan, trace: bool) -> Self {
        let copies = plan.copies;
        let mut replicas = BTreeMap::new();
        let mut nodes = Vec::new();
        for index in 0..NODES {
            let mut node = Node {
                up: true,
                boot: rng.next(),
                offset: rng.below(1000 * SECOND),
                rate: if plan.clocks_differ {
                    if rng.chance(50) { 955 } else { 1045 }
                } else {
                    rng.between(970, 1030)
                },
                store: None,
                copy: None,
                satellite: None,
                starting: false,
                wiped: 0,
                reopened: 0,
                flush_begun: 0,
            };
            if index < copies {
                let id = ReplicaId(index as u32 + 1);
                let fresh = index > 0 && plan.begin_stale && index == copies - 1;
                let state = if fresh {
                    MemberState::Stale {
                        since: None,
                        reason: stor_replication::catalogue::EjectReason::New,
                    }
                } else {
                    MemberState::InSync
                };
                let joined = (!fresh).then_some(ConfigSeq(0));
                replicas.insert(
                    id,
                    Member {
                        node: format!("n{index}"),
                        joined,
                        state,
                        leaving: false,
                    },
                );
                node.store = Some((id, super::replicas::fresh_disk(id, node.cache(index), !fresh)));
            }
            nodes.push(node);
        }
        let row = VolumeRow {
            volume: VOLUME,
            size: SIZE,
            revision: 1,
            view: View::default(),
            owner: None,
            clean: true,
            clean_before: true,
            lineage: LINEAGE,
            min_in_sync: plan.min_in_sync,
            replicas,
        };
        let mut world = Self {
            rng,
            plan,
            now: 0,
            moment: 1,
            queue: BinaryHeap::new(),
            due: BTreeMap::new(),
            next: 1,
            nodes,
            cut: [[false; NODES + 1]; NODES + 1],
            conns: BTreeMap::new(),
            engines: BTreeMap::new(),
            guests: BTreeMap::new(),
            row,
            catalogue_up: true,
            detach: None,
            ownerless: None,
            oracle: Oracle::default(),
            snapshots: Snapshots::default(),
            scrubs: Scrubs::new(0, true),
            unanswered: BTreeMap::new(),
            acking: Epoch(0),
            serving: Epoch(0),
            lost_until: 0,
            promised: Epoch(0),
            lost: 0,
            lost_noted: 0,
            guest_since: 0,
            starting: None,
            quiet: false,
            ever_bad: BTreeSet::new(),
            ever_wiped: false,
            whole: BTreeMap::new(),
            forsakes: false,
            forsaken: None,
            forsaken_at: 0,
            healing: false,
            leaves: None,
            highest: 0,
            finished: false,
            stopped_clean: None,
            wrong: None,
            log: trace.then(VecDeque::new),
            answered: 0,
            doom: None,
            commands: 0,
            steps: 0,
        };
        for node in 0..NODES {
            world.start_satellite(node);
        }
        world.after(0, What::Owner);
        if world.plan.snapshots > 0 {
            world.after(SECOND / 2, What::Snapshot);
        }
        world.after(SECOND, What::Fault);
        world
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn tick(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    pub(crate) fn at(&mut self, time: u64, what: What) {
        let id = self.id();
        self.queue.push(Reverse((time.max(self.now), id)));
        self.due.insert(id, what);
    }

    pub(crate) fn after(&mut self, delay: u64, what: What) {
        self.at(self.now + delay, what);
    }

    pub(crate) fn log(&mut self, line: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            if log.len() >= super::TAIL {
                log.pop_front();
            }
            log.push_back(format!("{:>12.6} {}", self.now as f64 / 1e6, line()));
        }
    }

    pub(crate) fn violate(&mut self, what: String) {
        if self.wrong.is_none() {
            self.log(|| format!("VIOLATION {what}"));
            self.wrong = Some(what);
        }
    }

    /// Whether somebody dies before the command at hand: `None`, or for how long.
    pub(crate) fn dies_now(&mut self, kinds: [Victim; 2]) -> Option<(Victim, u64)> {
        self.commands += 1;
        let doom = self.doom.as_mut().filter(|doom| kinds.contains(&doom.who))?;
        doom.after = doom.after.saturating_sub(1);
        if doom.after > 0 {
            return None;
        }
        let (who, back) = (doom.who, doom.back);
        self.doom = None;
        Some((who, back))
    }

    /// Does the next thing; `false` when there is nothing left or something went wrong.
    pub(crate) fn step(&mut self) -> bool {
        let Some(Reverse((time, id))) = self.queue.pop() else {
            return false;
        };
        self.now = time;
        self.steps += 1;
        if self.steps > MAX_STEPS {
            self.violate(format!(
                "{MAX_STEPS} steps and no end: something goes round in circles"
            ));
            return false;
        }
        let Some(what) = self.due.remove(&id) else {
            return true;
        };
        match what {
            What::EngineTick(engine) => self.engine_tick(engine),
            What::ReplicaTick(node, process) => self.replica_tick(node, process),
            What::Pump(conn, dir) => self.pump(conn, dir),
            What::Syn(conn) => self.syn(conn),
            What::ConnectFailed(conn) => self.end_at_engine(conn),
            What::Accepted(conn) => self.accepted(conn),
            What::DiskDone(node, process, op) => self.disk_done(node, process, op),
            What::PagesDone(node, process) => self.pages_done(node, process),
            What::Ask(engine, proposal, change) => self.decide(engine, proposal, &change),
            What::AskAgain(engine, proposal) => self.ask(engine, proposal),
            What::Decided(engine, id, row, refusal) => self.decided(engine, id, row, refusal),
            What::Row(engine, row) => self.engine_event(engine, engine::Event::Row(row)),
            What::StartEngine { node, row, guest } => self.start_engine(node, row, guest),
            What::Reboot(node) => self.reboot(node),
            What::StartSatellite(node) => self.start_satellite(node),
            What::ResumeEngine(engine) => self.resume_engine(engine),
            What::ResumeSatellite(node) => self.resume_satellite(node),
            What::Uncut(from, to) => self.cut[from][to] = false,
            What::CatalogueBack => self.catalogue_up = true,
            What::DiskRoom(node) => self.disk_room(node),
            What::DiskRecovers(node) => self.disk_recovers(node),
            What::EngineEnds(engine) => self.kill_engine(engine),
            What::Guest(guest) => self.guest_acts(guest),
            What::Snapshot => self.tend_snapshots(),
            What::Scrub => self.tend_scrubs(),
            What::Owner => self.tend_owner(),
            What::Fault => self.fault(),
            What::Strike(fault) => self.strike(fault),
            What::Kill(node, back) => self.kill_satellite(node, back),
            What::CleanWire => self.plan.damaged = 0,
        }
        self.wrong.is_none()
    }
}
