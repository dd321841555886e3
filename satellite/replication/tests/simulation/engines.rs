//! Engine processes: shells around an engine, and the guests that use them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use stor_replication::body::Body;
use stor_replication::catalogue::VolumeRow;
use stor_replication::engine::{self, Command, Engine, FailReason, IoError, Request, Start, State};
use stor_replication::extents::Extent;
use stor_replication::ids::{Epoch, IoId};
use stor_replication::range::ByteRange;
use stor_replication::wire::{Kind, flags};

use super::aims::Moment;
use super::disk::{BLOCK, Data};
use super::world::{Dir, EngineProcess, Guest, MS, Op, SECOND, SIZE, Victim, What, World};

impl World {
    /// The agent starts an engine: for a guest that lives, or with a new one.
    pub(crate) fn start_engine(&mut self, node: usize, row: VolumeRow, guest: Option<u64>) {
        self.starting = None;
        let guest = guest.filter(|guest| self.guests.contains_key(guest));
        if !self.nodes[node].up {
            return;
        }
        let (id, clock, epoch) = (self.id(), self.nodes[node].clock(self.now), row.view.epoch);
        self.log(|| {
            format!(
                "e{epoch} starts on n{node}, guest {guest:?}: {}",
                super::trace::row(&row)
            )
        });
        let local = self.nodes[node].store.as_ref().map(|(id, _)| *id);
        let engine = Engine::new(
            clock,
            Start {
                row,
                guest_alive: guest.is_some(),
                local,
            },
        );
        let guest = guest.unwrap_or_else(|| self.new_guest(node));
        self.engines.insert(
            id,
            EngineProcess {
                node,
                epoch,
                engine,
                guest,
                paused: false,
                waiting: VecDeque::new(),
                links: BTreeMap::new(),
                closed: BTreeSet::new(),
                asks: BTreeMap::new(),
                tick: u64::MAX,
                served: false,
                ending: false,
                local,
            },
        );
        self.guests.get_mut(&guest).unwrap().engine = Some(id);
        self.engine_event(id, engine::Event::Tick);
        // What the old engine never answered is asked again.
        let Some(asking) = self.guests.get(&guest) else {
            return;
        };
        let asked: Vec<(u64, Request<Data>)> = asking
            .ops
            .iter()
            .map(|(id, op)| (*id, op.request.clone()))
            .collect();
        for (op, request) in asked {
            if let Some(had) = self.unanswered.get_mut(&op) {
                *had = epoch;
            }
            self.engine_event(
                id,
                engine::Event::Submit {
                    io: IoId(op),
                    request,
                },
            );
        }
    }

    fn new_guest(&mut self, node: usize) -> u64 {
        let id = self.id();
        let guest = Guest {
            node,
            engine: None,
            ops: BTreeMap::new(),
            depth: if self.plan.steady {
                self.plan.depth
            } else {
                1 + self.rng.index(self.plan.depth)
            },
            bursts_until: self.now + self.rng.spread(50 * MS, 6 * SECOND),
            stopping: false,
            served: false,
        };
        self.guests.insert(id, guest);
        self.after(MS, What::Guest(id));
        id
    }

    pub(crate) fn guest_dies(&mut self, id: u64) {
        if self.guests.remove(&id).is_some() {
            self.log(|| format!("guest {id} dies"));
        }
    }

    pub(crate) fn kill_engine(&mut self, id: u64) {
        let Some(process) = self.engines.remove(&id) else {
            return;
        };
        self.log(|| format!("e{} process ends", process.epoch));
        for conn in process.links.values() {
            self.close_at_engine(*conn);
        }
        let Some(guest) = self
            .guests
            .get_mut(&process.guest)
            .filter(|guest| guest.engine == Some(id))
        else {
            return;
        };
        guest.engine = None;
        if self.row.view.epoch != process.epoch {
            self.guest_dies(process.guest);
        }
    }

    pub(crate) fn engine_event(&mut self, id: u64, event: engine::Event<Data>) {
        let Some(process) = self.engines.get_mut(&id) else {
            return;
        };
        if process.paused {
            process.waiting.push_back(event);
        } else {
            self.engine_step(id, event);
        }
    }

    pub(crate) fn engine_tick(&mut self, id: u64) {
        let now = self.now;
        let Some(process) = self.engines.get_mut(&id) else {
            return;
        };
        if process.tick <= now {
            process.tick = u64::MAX;
            self.engine_event(id, engine::Event::Tick);
        }
    }

    pub(crate) fn resume_engine(&mut self, id: u64) {
        let Some(process) = self.engines.get_mut(&id) else {
            return;
        };
        if !std::mem::take(&mut process.paused) {
            return;
        }
        for event in std::mem::take(&mut process.waiting) {
            if self.wrong.is_none() {
                self.engine_event(id, event);
            }
        }
    }

    fn engine_step(&mut self, id: u64, event: engine::Event<Data>) {
        let process = self.engines.get_mut(&id).unwrap();
        let epoch = process.epoch;
        if self.log.is_some() && event != engine::Event::Tick {
            let line = format!("e{epoch} <- {}", super::trace::engine_event(&event));
            self.log(|| line);
        }
        let process = self.engines.get_mut(&id).unwrap();
        let clock = self.nodes[process.node].clock(self.now);
        let mut out = Vec::new();
        process.engine.step(clock, event, &mut out);
        for command in out {
            match self.dies_now([Victim::Engine, Victim::Machine]) {
                None => {}
                Some((Victim::Machine, back)) => {
                    let Some(node) = self.engines.get(&id).map(|process| process.node) else {
                        return;
                    };
                    return self.crash_machine(node, back);
                }
                Some(_) => return self.kill_engine(id),
            }
            if self.log.is_some() {
                let line = format!("e{epoch} -> {}", super::trace::engine_command(&command));
                self.log(|| line);
            }
            self.engine_command(id, epoch, command);
        }
        let Some(process) = self.engines.get_mut(&id) else {
            return;
        };
        let at = self.nodes[process.node]
            .when(process.engine.deadline())
            .max(self.now + 1);
        if at < process.tick {
            process.tick = at;
            self.at(at, What::EngineTick(id));
        }
    }

    fn engine_command(&mut self, id: u64, epoch: Epoch, command: Command<Data>) {
        let Some(process) = self.engines.get_mut(&id) else {
            return;
        };
        match command {
            Command::Connect { replica, link } => self.connect(id, replica, link),
            Command::Disconnect { link, .. } => {
                process.closed.insert(link);
                if let Some(conn) = process.links.remove(&link) {
                    self.close_at_engine(conn);
                }
            }
            Command::Send {
                link, header, body, ..
            } => {
                let Some(conn) = process.links.get(&link).copied() else {
                    if process.closed.contains(&link) {
                        self.violate(format!("e{epoch}: sends on a connection it closed: {header:?}"));
                    }
                    return;
                };
                let body = match body {
                    Body::Data(data) => Body::Data(Data {
                        epoch,
                        blocks: data.blocks,
                    }),
                    other => other,
                };
                match header.kind {
                    Kind::Clean => self.moment(Moment::Clean),
                    Kind::StoreView if header.flags & flags::WHOLE != 0 => self.moment(Moment::Joins),
                    _ => {}
                }
                self.put_message(conn, Dir::ToReplica, header, body);
            }
            Command::Propose { proposal, change } => {
                process.asks.insert(proposal, change);
                self.ask(id, proposal);
            }
            Command::Complete { io, result } => self.complete(id, epoch, io.0, result),
            Command::CompleteExtents { io, extents } => self.complete_extents(id, epoch, io.0, &extents),
            Command::StateChanged => self.state_changed(id),
        }
    }

    fn complete(&mut self, id: u64, epoch: Epoch, op: u64, result: Result<Option<Data>, IoError>) {
        let at = self.tick();
        let guest = self.engines[&id].guest;
        let Some(done) = self
            .guests
            .get_mut(&guest)
            .and_then(|guest| guest.ops.remove(&op))
        else {
            return;
        };
        self.answered += 1;
        if result.is_ok() {
            // A write or flush of the old epoch that every replica had done may still be answered: a reader
            // of the new one has seen it.
            let reads = matches!(done.request, Request::Read(_));
            if epoch < self.acking && reads {
                return self.violate(format!("epoch {epoch} answers after epoch {}", self.acking));
            }
            self.acking = self.acking.max(epoch);
        }
        match (&done.request, result) {
            (_, Err(IoError::Fenced | IoError::Failed)) => {}
            (Request::Read(_), Err(IoError::Media)) => {
                if !self.plan.read_errors {
                    self.violate(format!("op {op} could not be read though no disk has bad blocks"));
                }
            }
            (_, Err(IoError::Media)) => self.violate(format!("op {op}: a media error for what is no read")),
            (Request::Extents(_), Ok(_)) => self.violate(format!("op {op}: extents were asked for")),
            (Request::Read(range), Ok(data)) => {
                let blocks = data.map(|data| data.blocks).unwrap_or_default();
                if blocks.len() as u64 != range.len / BLOCK {
                    return self.violate(format!(
                        "op {op}: a read of {range} was answered with {} blocks",
                        blocks.len()
                    ));
                }
                // A block that one member could not read and another had lost is nobody's.
                let lossy = self.ever_wiped;
                for (block, content) in range.units(BLOCK).zip(blocks.iter()) {
                    if lossy && self.ever_bad.contains(&block) {
                        continue;
                    }
                    if let Err(wrong) = self.oracle.read(done.begun, at, block, *content) {
                        return self.violate(format!("op {op}, epoch {epoch}: {wrong}"));
                    }
                }
            }
            (Request::Write { fua, .. } | Request::Zero { fua, .. }, Ok(_)) => {
                self.unanswered.remove(&op);
                let counts = epoch >= self.promised;
                self.oracle.write_ends(at, op, *fua, counts);
            }
            (Request::Flush, Ok(_)) => {
                let open = self
                    .guests
                    .values()
                    .flat_map(|guest| guest.ops.values())
                    .map(|op| op.begun)
                    .chain(self.snapshots.begun())
                    .min();
                self.oracle
                    .flushed(done.begun, open.unwrap_or(at).min(done.begun));
            }
        }
    }

    /// A hole is as good as a read of zeroes.
    fn complete_extents(&mut self, id: u64, epoch: Epoch, op: u64, extents: &[Extent]) {
        let at = self.tick();
        let guest = self.engines[&id].guest;
        let Some(done) = self
            .guests
            .get_mut(&guest)
            .and_then(|guest| guest.ops.remove(&op))
        else {
            return;
        };
        self.answered += 1;
        let Request::Extents(asked) = done.request else {
            return self.violate(format!("op {op}: nobody asked for extents"));
        };
        // That all of it is data is true at any time, and told without asking while all is unequal.
        if extents.iter().any(|extent| extent.hole) {
            if epoch < self.acking {
                return self.violate(format!("epoch {epoch} tells a hole after epoch {}", self.acking));
            }
            self.acking = self.acking.max(epoch);
        }
        let mut next = asked.offset;
        for extent in extents {
            let range = ByteRange::new(next, u64::from(extent.length));
            next = range.end();
            let blocks = range.units(BLOCK).filter(|_| extent.hole);
            for block in blocks {
                if self.ever_wiped && self.ever_bad.contains(&block) {
                    continue;
                }
                if let Err(wrong) = self.oracle.read(done.begun, at, block, 0) {
                    return self.violate(format!("op {op}, epoch {epoch}: a hole at {block}: {wrong}"));
                }
            }
        }
        if next == asked.offset || next > asked.end() {
            self.violate(format!(
                "op {op}: extents of {asked} that end at {next}: {extents:?}"
            ));
        }
    }

    fn state_changed(&mut self, id: u64) {
        let at = self.tick();
        let process = self.engines.get_mut(&id).unwrap();
        let state = process.engine.state(self.nodes[process.node].clock(self.now));
        let (epoch, guest) = (process.epoch, process.guest);
        let first = !process.served;
        self.log(|| format!("e{epoch} is {state:?}"));
        match state {
            State::Serving | State::Suspended(_) => {
                self.engines.get_mut(&id).unwrap().served = true;
                if first {
                    let served = self
                        .guests
                        .get_mut(&guest)
                        .map(|guest| std::mem::replace(&mut guest.served, true));
                    self.first_serves(at, epoch, served == Some(false));
                    self.moment(Moment::Serves);
                }
            }
            State::Fenced => {
                if self.row.view.epoch <= epoch && self.row.owner.is_some() {
                    self.violate(format!("e{epoch} was fenced though it is the owner"));
                }
                self.guest_dies(guest);
                self.after(MS, What::EngineEnds(id));
            }
            State::Failed(reason) => {
                let all_lost = self
                    .row
                    .in_sync()
                    .all(|id| self.wiped(id) > 0 || self.node_of(id).is_none_or(|node| self.is_failed(node)));
                let some_lost = self.plan.read_errors && self.row.in_sync().any(|id| self.wiped(id) > 0);
                let caused = all_lost || some_lost || epoch != self.row.view.epoch;
                if reason == FailReason::CatalogueBehind || !caused {
                    self.violate(format!("e{epoch} failed without cause: {reason}"));
                }
                self.guest_dies(guest);
                self.detach = Some((epoch, false));
                self.after(MS, What::EngineEnds(id));
            }
            State::Stopped { clean } => {
                self.guest_dies(guest);
                if epoch == self.row.view.epoch {
                    self.stopped_clean = Some(clean);
                    self.detach = Some((epoch, clean));
                    if clean && first {
                        // It never served: as clean as it was before.
                    } else if clean {
                        self.check_equal(true);
                    }
                }
                let delay = self.rng.spread(MS, 100 * MS);
                self.after(delay, What::EngineEnds(id));
            }
            State::Starting | State::Stopping => {}
        }
    }

    /// An epoch begins to serve: what older ones left unanswered has happened by now or never will.
    fn first_serves(&mut self, at: u64, epoch: Epoch, new_guest: bool) {
        if epoch <= self.serving {
            return;
        }
        self.serving = epoch;
        let closed: Vec<u64> = self
            .unanswered
            .iter()
            .filter(|(_, had)| **had < epoch)
            .map(|(write, _)| *write)
            .collect();
        for write in closed {
            self.unanswered.remove(&write);
            self.oracle.close(at, write);
        }
        if new_guest {
            self.guest_since = at;
            self.note_lost();
        }
    }

    pub(crate) fn guest_acts(&mut self, id: u64) {
        let (now, quiet) = (self.now, self.quiet);
        let Some(guest) = self.guests.get_mut(&id) else {
            return;
        };
        let engine = guest.engine.filter(|engine| self.engines.contains_key(engine));
        let mut next = self.rng.spread(200, 30 * MS);
        match engine {
            Some(engine) if guest.stopping && guest.ops.is_empty() => {
                let process = self.engines.get_mut(&engine).unwrap();
                if !std::mem::replace(&mut process.ending, true) {
                    self.engine_event(engine, engine::Event::Stop);
                }
            }
            Some(engine) if !guest.stopping && !quiet => {
                if now > guest.bursts_until && !self.plan.steady {
                    let least = if self.plan.rests { 7 * SECOND } else { 50 * MS };
                    next = self.rng.spread(least, 15 * SECOND);
                    guest.bursts_until = now + next + self.rng.spread(50 * MS, 6 * SECOND);
                } else if guest.ops.len() < guest.depth {
                    self.submit(id, engine);
                }
            }
            _ => next = 20 * MS,
        }
        self.after(next, What::Guest(id));
    }

    fn submit(&mut self, guest: u64, engine: u64) {
        let (begun, op) = (self.tick(), self.id());
        let hot = self.plan.hot[self.rng.index(self.plan.hot.len())];
        let len = match self.rng.below(20) {
            0 => self.rng.between(16, 96),
            1..6 => self.rng.between(2, 16),
            _ => self.rng.between(1, 3),
        };
        let first = (hot + self.rng.below(6)).min(SIZE / BLOCK - len);
        let range = ByteRange::new(first * BLOCK, len * BLOCK);
        let fua = self.rng.chance(10);
        let request = match self.rng.below(100) {
            0..40 => Request::Read(range),
            40..45 => Request::Extents(range),
            45..85 => {
                let blocks: Arc<[u64]> = (0..len).map(|_| op).collect();
                Request::Write {
                    range,
                    data: Data {
                        epoch: Epoch(0),
                        blocks,
                    },
                    fua,
                }
            }
            85..89 => Request::Zero {
                range,
                discard: self.rng.chance(50),
                fua,
            },
            _ => Request::Flush,
        };
        let epoch = self.engines[&engine].epoch;
        if let Request::Write { .. } | Request::Zero { .. } = request {
            let content = if matches!(request, Request::Zero { .. }) {
                0
            } else {
                op
            };
            self.oracle
                .write_begins(begun, op, content, range.units(BLOCK), epoch < self.serving);
            self.unanswered.insert(op, epoch);
        }
        self.guests.get_mut(&guest).unwrap().ops.insert(
            op,
            Op {
                request: request.clone(),
                begun,
            },
        );
        self.engine_event(
            engine,
            engine::Event::Submit {
                io: IoId(op),
                request,
            },
        );
    }
}
