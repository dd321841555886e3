//! The catalogue, and those who change it besides engines: agents and the operator.

use stor_replication::catalogue::{Change, MemberState, Refusal, VolumeRow, decide};
use stor_replication::engine::{self, State};
use stor_replication::ids::{ConnId, ReplicaId};
use stor_replication::wire::{Header, Kind, Status, flags};

use super::aims::Moment;
use super::oracle::OPEN;
use super::world::{CONTROLLER, EngineProcess, MS, SECOND, What, World};

impl World {
    /// The engine's shell asks the catalogue, again and again until it hears an answer.
    pub(crate) fn ask(&mut self, engine: u64, proposal: u64) {
        let Some(process) = self.engines.get(&engine) else {
            return;
        };
        let Some(change) = process.asks.get(&proposal).cloned() else {
            return;
        };
        let (node, paused) = (process.node, process.paused);
        let lossy = self.plan.lossy_catalogue;
        if !paused && !self.cut[node][CONTROLLER] && !self.rng.chance(lossy) {
            let delay = if self.rng.chance(10) {
                self.rng.spread(MS, 2 * SECOND)
            } else {
                self.rng.between(500, 5000)
            };
            self.after(delay, What::Ask(engine, proposal, change));
        }
        let again = self.rng.between(200 * MS, SECOND);
        self.after(again, What::AskAgain(engine, proposal));
    }

    /// A proposal reached the catalogue.
    pub(crate) fn decide(&mut self, engine: u64, proposal: u64, change: &Change) {
        if !self.catalogue_up {
            return;
        }
        let refusal = self.apply(change).err();
        let (row, lossy) = (self.row.clone(), self.plan.lossy_catalogue);
        if !self.rng.chance(lossy) {
            let delay = if self.rng.chance(10) {
                self.rng.spread(MS, 2 * SECOND)
            } else {
                self.rng.between(500, 5000)
            };
            self.after(delay, What::Decided(engine, proposal, row, refusal));
        }
    }

    pub(crate) fn decided(&mut self, engine: u64, proposal: u64, row: VolumeRow, refusal: Option<Refusal>) {
        let Some(process) = self.engines.get_mut(&engine) else {
            return;
        };
        if self.cut[CONTROLLER][process.node] || process.asks.remove(&proposal).is_none() {
            return;
        }
        self.engine_event(
            engine,
            engine::Event::Outcome {
                proposal,
                row,
                refusal,
            },
        );
    }

    pub(crate) fn apply(&mut self, change: &Change) -> Result<(), Refusal> {
        let decided = decide(&self.row, change);
        let decided = decided.and_then(|next| self.snapshot_wanted(change).map(|()| next));
        let decided = decided.and_then(|next| self.scrub_wanted(change).map(|()| next));
        let next = decided.inspect_err(|refusal| {
            let line = format!("catalogue refuses {change:?}: {refusal}");
            if let Some(log) = &mut self.log {
                log.push_back(line);
            }
        })?;
        self.log(|| format!("catalogue: {change:?} -> {}", super::trace::row(&next)));
        if next.view < self.row.view || next.revision <= self.row.revision {
            self.violate(format!("the row went back: {:?} to {next:?}", self.row));
        }
        if next.in_sync().count() < self.row.in_sync().count().min(self.row.least_in_sync()) {
            self.violate(format!(
                "the set shrinks below its minimum: {:?} to {next:?}",
                self.row
            ));
        }
        self.row = next;
        self.tick();
        match change {
            Change::Remove { .. } => self.moment(Moment::Removal),
            Change::Add { .. } => self.moment(Moment::Addition),
            Change::Attach { .. } | Change::Restart { .. } => self.moment(Moment::Attach),
            Change::SnapshotReady { .. } | Change::SnapshotFailed { .. } => self.snapshot_told(change),
            Change::Scrubbed { report, .. } => self.scrub_told(report),
            Change::Detach { .. } | Change::Place { .. } | Change::Leave { .. } | Change::Grow { .. } => {}
        }
        if let Change::Add { member, .. } = change {
            let node = self.node_of(*member);
            // What it lost before it was flushed for the last time was copied to it since; what it lost after
            // that, and before the catalogue heard of it, it joins without.
            if let Some(node) = node.map(|node| &mut self.nodes[node])
                && node.wiped <= node.flush_begun
            {
                node.wiped = 0;
            }
        }
        self.note_lost();
        self.tell_engines();
        Ok(())
    }

    fn tell_engines(&mut self) {
        let engines: Vec<(u64, usize)> = self
            .engines
            .iter()
            .map(|(id, process)| (*id, process.node))
            .collect();
        for (engine, node) in engines {
            if !self.cut[CONTROLLER][node] && self.rng.chance(70) {
                let (row, delay) = (self.row.clone(), self.rng.spread(MS, 3 * SECOND));
                self.after(delay, What::Row(engine, row));
            }
        }
    }

    pub(crate) fn node_of(&self, replica: ReplicaId) -> Option<usize> {
        self.nodes
            .iter()
            .position(|node| node.store.as_ref().is_some_and(|(id, _)| *id == replica))
    }

    /// When a replica last lost what it had acknowledged; zero: not since it joined.
    pub(crate) fn wiped(&self, replica: ReplicaId) -> u64 {
        self.node_of(replica).map_or(0, |node| self.nodes[node].wiped)
    }

    /// A replica hears that what it holds is right while nothing is unequal: what it had lost it has again.
    pub(crate) fn note_whole(&mut self, conn: u64, engine: u64, node: usize, header: &Header) {
        let whole = header.kind == Kind::StoreView && header.flags & flags::WHOLE != 0;
        let equal = |process: &EngineProcess| {
            process.epoch == self.row.view.epoch && process.served && process.engine.unequal_bytes() == 0
        };
        let replica = self.nodes[node].store.as_ref().map(|(id, _)| *id);
        let member = self.row.in_sync().any(|id| Some(id) == replica);
        // A loss that all members share is the oracle's before it is forgotten.
        let noted = self.lost <= self.lost_noted;
        if whole && member && noted && self.engines.get(&engine).is_some_and(equal) {
            self.whole.insert((ConnId(conn), header.op), self.moment);
        }
    }

    /// It has stored that. A disk that broke unnoticed may lose more with its next flush.
    pub(crate) fn note_made_good(&mut self, node: usize, conn: ConnId, header: &Header) {
        let told = self.whole.remove(&(conn, header.op));
        let failed = self.is_failed(node);
        let place = &mut self.nodes[node];
        if header.status == Status::Ok && !failed && told.is_some_and(|moment| place.wiped <= moment) {
            place.wiped = 0;
        }
    }

    /// Everything that ended before `lost` may be gone where it was not flushed: no member has kept it.
    pub(crate) fn note_lost(&mut self) {
        let lost = self.row.in_sync().map(|id| self.wiped(id)).min().unwrap_or(0);
        if lost > self.lost {
            self.lost = lost;
            let reopened = self.row.in_sync().filter_map(|id| self.node_of(id));
            self.lost_until = reopened
                .map(|node| self.nodes[node].reopened)
                .min()
                .unwrap_or(OPEN);
        }
        let served = self
            .engines
            .values()
            .any(|process| process.epoch == self.serving && process.served);
        if self.lost > self.lost_noted && self.guest_since > self.lost && served {
            self.lost_noted = self.lost;
            self.log(|| "caches were lost: unflushed writes may be gone".into());
            let oldest = self.snapshots.begun().unwrap_or(self.moment);
            let lost = (self.lost, self.lost_until);
            self.oracle
                .caches_lost(lost, self.guest_since, self.moment, oldest);
        }
    }

    /// What agents and the operator do: give rights back, restart engines, attach what has no engine.
    pub(crate) fn tend_owner(&mut self) {
        if self.finished && self.detach.is_none() {
            return;
        }
        let next = self.rng.between(30 * MS, 400 * MS);
        self.after(next, What::Owner);
        if !self.catalogue_up {
            return;
        }
        if let Some((expect, clean)) = self.detach.take() {
            // Refused: somebody else has the volume by now.
            drop(self.apply(&Change::Detach { expect, clean }));
            return;
        }
        if self.healing {
            self.give_way();
            self.replace_failed();
        } else {
            self.leave_some();
        }
        self.replace_left();
        // A session with a satellite begins with what there is.
        if self.healing || self.rng.chance(3) {
            self.tell_engines();
        }
        let expect = self.row.view.epoch;
        let Some(owner) = self.row.owner.clone() else {
            self.ownerless = None;
            return self.attach(false);
        };
        let running =
            self.engines.values().any(|process| process.epoch == expect) || self.starting == Some(expect);
        if running {
            self.ownerless = None;
            return;
        }
        let since = *self.ownerless.get_or_insert(self.now);
        let orphan = self
            .guests
            .iter()
            .find(|(_, guest)| guest.engine.is_none() && format!("n{}", guest.node) == owner)
            .map(|(id, guest)| (*id, guest.node));
        if let Some((guest, node)) = orphan
            && self.nodes[node].up
        {
            if !self.cut[node][CONTROLLER] && self.apply(&Change::Restart { owner, expect }).is_ok() {
                self.plan_start(node, Some(guest));
            }
            return;
        }
        if self.now - since > 2 * SECOND {
            self.attach(true);
        }
    }

    pub(crate) fn attach(&mut self, force: bool) {
        let node = self.rng.index(self.nodes.len());
        if self.nodes[node].up {
            self.attach_on(node, force);
        }
    }

    pub(crate) fn attach_on(&mut self, node: usize, force: bool) {
        let change = Change::Attach {
            owner: format!("n{node}"),
            expect: self.row.view.epoch,
            force,
        };
        if self.apply(&change).is_ok() {
            self.plan_start(node, None);
        }
    }

    fn plan_start(&mut self, node: usize, guest: Option<u64>) {
        // Whoever waits for an engine and does not get this one never gets another.
        let left: Vec<u64> = self
            .guests
            .iter()
            .filter(|(id, of)| of.engine.is_none() && Some(**id) != guest)
            .map(|(id, _)| *id)
            .collect();
        for id in left {
            self.guest_dies(id);
        }
        self.ownerless = None;
        self.starting = Some(self.row.view.epoch);
        let (row, delay) = (self.row.clone(), self.rng.spread(MS, 300 * MS));
        self.after(delay, What::StartEngine { node, row, guest });
    }

    /// One that may not be removed stays away, and what only its repair or promise could settle holds up who could take
    /// its place: the operator lowers the minimum in the end (R16). What else waits for it must help itself.
    fn give_way(&mut self) {
        let late = self.forsaken.is_some() && self.now > self.forsaken_at + 300 * SECOND;
        let held_up = |process: &EngineProcess| {
            let clock = self.nodes[process.node].clock(self.now);
            process.engine.state(clock) == State::Starting || process.engine.unequal_bytes() > 0
        };
        let epoch = self.row.view.epoch;
        let mut current = self.engines.values().filter(|process| process.epoch == epoch);
        if late && self.row.min_in_sync > 1 && current.any(held_up) {
            self.row.min_in_sync = 1;
            self.row.revision += 1;
            self.tell_engines();
        }
    }

    /// The operator replaces replicas whose disks failed, once they are out of the set.
    fn replace_failed(&mut self) {
        for node in 0..self.nodes.len() {
            let failed = self.nodes[node]
                .satellite
                .as_ref()
                .is_some_and(|s| s.replica.superblock().failed);
            let Some((old, _)) = self.nodes[node].store.as_ref().filter(|_| failed) else {
                continue;
            };
            let old = *old;
            match self.row.replicas.get(&old).map(|member| member.state) {
                Some(MemberState::Stale { .. }) => {
                    if self.apply(&Change::Leave { replica: old }).is_ok() {
                        self.replace(node, old);
                    }
                }
                // The set may not shrink below its minimum by itself: the operator lowers that (R16).
                Some(MemberState::InSync) if self.row.min_in_sync > 1 => {
                    self.row.min_in_sync = 1;
                    self.row.revision += 1;
                    self.tell_engines();
                }
                Some(MemberState::InSync) | None => {}
            }
        }
    }

    /// The operator wants a replica elsewhere now and then.
    fn leave_some(&mut self) {
        let Some((at, rng)) = &mut self.leaves else { return };
        if self.now < *at {
            return;
        }
        *at = self.now + rng.spread(500 * MS, 20 * SECOND);
        let members: Vec<ReplicaId> = self.row.replicas.keys().copied().collect();
        let replica = members[rng.index(members.len())];
        // Refused where the minimum forbids it.
        drop(self.apply(&Change::Leave { replica }));
    }

    /// Replicas that left are deleted, and others made in their place.
    fn replace_left(&mut self) {
        for node in 0..self.nodes.len() {
            if self.forsaken == Some(node) {
                continue;
            }
            let old = self.nodes[node].store.as_ref().map(|(id, _)| *id);
            if let Some(old) = old.filter(|old| !self.row.replicas.contains_key(old)) {
                self.replace(node, old);
            }
        }
    }

    fn replace(&mut self, node: usize, old: ReplicaId) {
        let stored = self.nodes.iter().filter_map(|node| node.store.as_ref());
        let highest = stored.map(|(id, _)| id.0).max().unwrap_or(old.0);
        let id = ReplicaId(highest.max(self.highest) + 1);
        self.highest = id.0;
        self.log(|| format!("n{node}: r{old} is replaced by r{id}"));
        self.kill_satellite(node, MS);
        self.nodes[node].copy = None;
        let disk = super::replicas::fresh_disk(id, self.nodes[node].cache(node), false);
        self.nodes[node].store = Some((id, disk));
        let place = Change::Place {
            replica: id,
            node: format!("n{node}"),
        };
        if let Err(refusal) = self.apply(&place) {
            self.violate(format!("{place:?} is refused: {refusal}"));
        }
        self.start_satellite(node);
    }
}
