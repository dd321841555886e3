//! Storage nodes: the satellite process as a shell around a replica, its disk, its machine.

use std::collections::BTreeMap;
use std::convert::Infallible;

use stor_replication::disk::{PageId, Superblock, encode_page};
use stor_replication::ids::{CacheId, ConnId, Epoch, ReplicaId};
use stor_replication::replica::{self, Command, DiskAction, DiskError, Replica};
use stor_replication::wire::{Kind, Status};

use super::aims::Moment;
use super::disk::Disk;
use super::oracle::OPEN;
use super::world::{Dir, LINEAGE, MS, Packet, SECOND, SIZE, Satellite, VOLUME, Victim, What, World};

/// A disk with a replica just made on it. One that was never a member holds rubbish.
pub(crate) fn fresh_disk(id: ReplicaId, cache: CacheId, member: bool) -> Disk {
    let mut disk = Disk::new(VOLUME, id, SIZE, if member { 0 } else { 3 });
    let superblock = Superblock::fresh(SIZE, LINEAGE, cache, member.then_some(id));
    let page = encode_page(PageId::Superblock, VOLUME, id, 0, &superblock.encode());
    disk.put_page(PageId::Superblock.offset(false), page.to_vec());
    disk
}

impl World {
    pub(crate) fn start_satellite(&mut self, node: usize) {
        let clock = self.nodes[node].clock(self.now);
        let (cache, process) = (self.nodes[node].cache(node), self.id());
        let place = &mut self.nodes[node];
        place.starting = false;
        if !place.up || place.satellite.is_some() {
            return;
        }
        let Some((id, disk)) = &place.store else { return };
        let mut read = |offset, len| Ok::<_, Infallible>(disk.read_meta(offset, len));
        match Replica::load(VOLUME, *id, cache, clock, &mut read) {
            Ok(replica) => {
                let promised = replica.superblock().fence;
                place.satellite = Some(Satellite {
                    process,
                    replica,
                    paused: false,
                    waiting: std::collections::VecDeque::new(),
                    conns: BTreeMap::new(),
                    tick: u64::MAX,
                    promised,
                });
                self.log(|| format!("n{node} satellite starts"));
                self.plan_replica_tick(node);
            }
            Err(error) => self.violate(format!("n{node}: the replica can't be opened: {error}")),
        }
    }

    pub(crate) fn replica_event(&mut self, node: usize, event: replica::Event<super::disk::Data>) {
        let Some(satellite) = &mut self.nodes[node].satellite else {
            return;
        };
        if satellite.paused {
            satellite.waiting.push_back(event);
        } else {
            self.replica_step(node, event);
        }
    }

    pub(crate) fn replica_tick(&mut self, node: usize, process: u64) {
        let now = self.now;
        let Some(satellite) = self.nodes[node]
            .satellite
            .as_mut()
            .filter(|s| s.process == process)
        else {
            return;
        };
        if satellite.tick <= now {
            satellite.tick = u64::MAX;
            self.replica_event(node, replica::Event::Tick);
        }
    }

    fn plan_replica_tick(&mut self, node: usize) {
        let place = &mut self.nodes[node];
        let Some(deadline) = place.satellite.as_ref().and_then(|s| s.replica.deadline()) else {
            return;
        };
        let at = place.when(deadline).max(self.now + 1);
        let satellite = place.satellite.as_mut().unwrap();
        if at < satellite.tick {
            satellite.tick = at;
            let process = satellite.process;
            self.at(at, What::ReplicaTick(node, process));
        }
    }

    fn replica_step(&mut self, node: usize, event: replica::Event<super::disk::Data>) {
        let clock = self.nodes[node].clock(self.now);
        let mut out = Vec::new();
        if self.log.is_some() {
            let line = format!("n{node} <- {}", super::trace::replica_event(&event));
            self.log(|| line);
        }
        let satellite = self.nodes[node].satellite.as_mut().unwrap();
        let before = (
            satellite.replica.superblock().fence,
            satellite.replica.superblock().view,
        );
        satellite.replica.step(clock, event, &mut out);
        let after = (
            satellite.replica.superblock().fence,
            satellite.replica.superblock().view,
        );
        let process = satellite.process;
        let due = satellite.replica.deadline().is_some_and(|at| at <= clock);
        if due {
            self.violate(format!("n{node} wants to be woken again at once, without end"));
        }
        if after.0 < before.0 || after.1 < before.1 {
            self.violate(format!(
                "n{node}: fence or view went back, from {before:?} to {after:?}"
            ));
        }
        for command in out {
            match self.dies_now([Victim::Satellite, Victim::Machine]) {
                None => {}
                Some((Victim::Machine, back)) => return self.crash_machine(node, back),
                Some((_, back)) => return self.crash_satellite(node, back),
            }
            if self.log.is_some() {
                let line = format!("n{node} -> {}", super::trace::replica_command(&command));
                self.log(|| line);
            }
            self.replica_command(node, process, command);
        }
        self.plan_replica_tick(node);
    }

    fn replica_command(&mut self, node: usize, process: u64, command: Command<super::disk::Data>) {
        match command {
            Command::Reply { conn, header, body } => {
                let satellite = self.nodes[node].satellite.as_mut().unwrap();
                if header.kind == Kind::Open && header.status == Status::Ok {
                    satellite.promised = satellite.promised.max(header.view.epoch);
                    self.promised = self.promised.max(header.view.epoch);
                    let moment = self.tick();
                    let place = &mut self.nodes[node];
                    if !place.store.as_ref().is_some_and(|(_, disk)| disk.broken) {
                        place.reopened = place.reopened.min(moment);
                    }
                    self.moment(Moment::Promise);
                }
                self.note_made_good(node, conn, &header);
                let satellite = self.nodes[node].satellite.as_ref().unwrap();
                if let Some(id) = satellite.conns.get(&conn).copied() {
                    self.put_message(id, Dir::ToEngine, header, body);
                }
            }
            Command::Drop { conn } => self.close_at_replica(conn.0),
            Command::Disk { op, action } => {
                let promised = self.nodes[node].satellite.as_ref().unwrap().promised;
                self.check_disk_action(node, promised, &action);
                let slow = matches!(action, DiskAction::Flush | DiskAction::Snapshot(_));
                if action == DiskAction::Flush {
                    self.nodes[node].flush_begun = self.moment;
                }
                let delay = if slow {
                    self.rng.spread(100, 20 * MS)
                } else {
                    self.rng.spread(30, 4 * MS)
                };
                let often = if self.plan.slow_disk { 20 } else { 1 };
                let delay = if self.rng.chance(often) {
                    delay + self.rng.spread(MS, 300 * MS)
                } else {
                    delay
                };
                let (_, disk) = self.nodes[node].store.as_mut().unwrap();
                disk.begin(op, action);
                self.after(delay, What::DiskDone(node, process, op));
            }
            Command::StorePages(pages) => {
                let delay = self.rng.spread(50, 10 * MS);
                let (_, disk) = self.nodes[node].store.as_mut().unwrap();
                if disk.batch.replace(pages).is_some() {
                    self.violate(format!("n{node}: two batches of pages at once"));
                }
                self.after(delay, What::PagesDone(node, process));
            }
        }
    }

    fn check_disk_action(&mut self, node: usize, promised: Epoch, action: &DiskAction<super::disk::Data>) {
        let (_, disk) = self.nodes[node].store.as_ref().unwrap();
        let (range, epoch) = match action {
            DiskAction::Write { range, data, .. } => (*range, data.epoch),
            DiskAction::Zero { range, .. } => (*range, promised),
            DiskAction::Read { .. }
            | DiskAction::Extents { .. }
            | DiskAction::Digest { .. }
            | DiskAction::Flush
            | DiskAction::MaySnapshot(_)
            | DiskAction::Snapshot(_) => return,
        };
        let mut regions = range.offset >> 20..=(range.end() - 1) >> 20;
        let marked = regions.all(|region| disk.stored_dirty.get(region));
        if epoch < promised {
            self.violate(format!(
                "n{node}: a write of epoch {epoch} after the promise for {promised}"
            ));
        }
        if !marked {
            self.violate(format!(
                "n{node}: a write to {range} before its dirty bit is durable"
            ));
        }
    }

    pub(crate) fn disk_done(&mut self, node: usize, process: u64, op: u64) {
        let now = self.now;
        if self.nodes[node]
            .satellite
            .as_ref()
            .is_none_or(|s| s.process != process)
        {
            return;
        }
        let promised = self.nodes[node].satellite.as_ref().unwrap().promised;
        let (_, disk) = self.nodes[node].store.as_mut().unwrap();
        if disk.hangs_until > now {
            let at = disk.hangs_until.min(now + 100 * MS);
            return self.at(at, What::DiskDone(node, process, op));
        }
        let Some(running) = disk.running.remove(&op) else {
            return;
        };
        if let DiskAction::Write { data, .. } = &running.action
            && data.epoch < promised
        {
            return self.violate(format!(
                "n{node}: a write of epoch {} reaches the disk after the promise for {promised}",
                data.epoch
            ));
        }
        let (_, disk) = self.nodes[node].store.as_mut().unwrap();
        if let DiskAction::Extents { range } = running.action {
            let extents = disk.extents(&mut self.rng, range);
            return self.replica_event(node, replica::Event::ExtentsFound { op, extents });
        }
        if let DiskAction::Digest { range } = running.action {
            let short = disk.short_until > now && self.rng.chance(50);
            let digests = (!short).then(|| disk.digests(&mut self.rng, range));
            return self.replica_event(node, replica::Event::Digested { op, digests });
        }
        if let DiskAction::MaySnapshot(_) | DiskAction::Snapshot(_) = running.action {
            return self.snapshot_done(node, op, &running);
        }
        let writes = matches!(running.action, DiskAction::Write { .. } | DiskAction::Zero { .. });
        let reads = matches!(running.action, DiskAction::Read { .. });
        let result = if disk.short_until > now && self.rng.chance(50) {
            disk.leave_off(&mut self.rng, &running);
            Err(DiskError::Transient)
        } else if disk.broken && !reads {
            disk.spoil(&mut self.rng, &running);
            self.moment(Moment::DiskError);
            Err(DiskError::Failed)
        } else if disk.full && writes {
            disk.spoil(&mut self.rng, &running);
            Err(DiskError::NoSpace)
        } else {
            disk.finish(&mut self.rng, &running)
        };
        self.replica_event(node, replica::Event::DiskDone { op, result });
    }

    pub(crate) fn pages_done(&mut self, node: usize, process: u64) {
        let now = self.now;
        if self.nodes[node]
            .satellite
            .as_ref()
            .is_none_or(|s| s.process != process)
        {
            return;
        }
        let (_, disk) = self.nodes[node].store.as_mut().unwrap();
        if disk.hangs_until > now {
            let at = disk.hangs_until.min(now + 100 * MS);
            return self.at(at, What::PagesDone(node, process));
        }
        let result = if disk.short_until > now && self.rng.chance(50) {
            Err(DiskError::Transient)
        } else if disk.broken {
            self.moment(Moment::DiskError);
            Err(DiskError::Failed)
        } else if disk.full && disk.full_for_pages {
            Err(DiskError::NoSpace)
        } else {
            Ok(())
        };
        let (_, disk) = self.nodes[node].store.as_mut().unwrap();
        disk.finish_batch(&mut self.rng, result.is_ok());
        self.replica_event(node, replica::Event::PagesStored { result });
    }

    /// The satellite process crashes; its machine does, where the failure of a disk would be forgotten with
    /// the process: that window is in the document.
    pub(crate) fn crash_satellite(&mut self, node: usize, restart: u64) {
        if self.is_failed(node) && !self.failure_is_stored(node) {
            self.crash_machine(node, restart);
        } else {
            self.kill_satellite(node, restart);
        }
    }

    /// The satellite process is killed. What it had asked its disk for happens or not, and is over when
    /// it comes back: its shell waits for that.
    pub(crate) fn kill_satellite(&mut self, node: usize, restart: u64) {
        let Some(satellite) = self.nodes[node].satellite.take() else {
            return;
        };
        self.log(|| format!("n{node} satellite killed, back in {} ms", restart / MS));
        let now = self.now;
        let (_, disk) = self.nodes[node].store.as_mut().unwrap();
        disk.abandon(&mut self.rng);
        let hang = disk.hangs_until.saturating_sub(now);
        for (ConnId(_), id) in satellite.conns {
            self.close_at_replica(id);
        }
        self.nodes[node].starting = true;
        self.after(restart.max(hang), What::StartSatellite(node));
    }

    pub(crate) fn crash_machine(&mut self, node: usize, back: u64) {
        if !self.nodes[node].up {
            return;
        }
        self.log(|| format!("n{node} machine crashes, back in {} ms", back / MS));
        let moment = self.tick();
        self.ever_wiped = true;
        let place = &mut self.nodes[node];
        place.up = false;
        place.satellite = None;
        place.boot = self.rng.next();
        place.wiped = moment;
        place.reopened = OPEN;
        if let Some((_, disk)) = &mut place.store {
            disk.crash(&mut self.rng);
            (disk.hangs_until, disk.short_until) = (0, 0);
        }
        let engines: Vec<u64> = self
            .engines
            .iter()
            .filter(|(_, e)| e.node == node)
            .map(|(id, _)| *id)
            .collect();
        for engine in engines {
            self.engines.remove(&engine);
        }
        let guests: Vec<u64> = self
            .guests
            .iter()
            .filter(|(_, g)| g.node == node)
            .map(|(id, _)| *id)
            .collect();
        for guest in guests {
            self.guest_dies(guest);
        }
        self.note_lost();
        self.after(back, What::Reboot(node));
    }

    pub(crate) fn reboot(&mut self, node: usize) {
        if self.nodes[node].up || self.forsaken == Some(node) {
            return;
        }
        self.log(|| format!("n{node} boots"));
        self.nodes[node].up = true;
        self.nodes[node].offset = self.rng.below(10 * SECOND);
        self.nodes[node].offset += (10_000 * SECOND).saturating_sub(self.now * self.nodes[node].rate / 1000);
        // Whoever still holds a connection to it is told with its next packet.
        let stale: Vec<u64> = self
            .conns
            .iter()
            .filter(|(_, c)| c.node == node && c.process.is_some())
            .map(|(id, _)| *id)
            .collect();
        for id in stale {
            if self.rng.chance(50) {
                self.put(id, Dir::ToEngine, Packet::End);
            }
        }
        self.start_satellite(node);
    }

    pub(crate) fn resume_satellite(&mut self, node: usize) {
        let Some(satellite) = &mut self.nodes[node].satellite else {
            return;
        };
        if !std::mem::take(&mut satellite.paused) {
            return;
        }
        for event in std::mem::take(&mut satellite.waiting) {
            if self.nodes[node].satellite.is_some() && self.wrong.is_none() {
                self.replica_event(node, event);
            }
        }
    }

    pub(crate) fn disk_room(&mut self, node: usize) {
        if let Some((_, disk)) = &mut self.nodes[node].store {
            disk.full = false;
        }
    }

    pub(crate) fn disk_recovers(&mut self, node: usize) {
        if let Some((_, disk)) = &mut self.nodes[node].store {
            disk.broken = false;
        }
    }
}
