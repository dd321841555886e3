//! What goes wrong, and when: each seed has its own selection.

use stor_replication::catalogue::MemberState;
use stor_replication::disk::{PAGE, PageId, decode_superblock};

use stor_replication::ids::ConfigSeq;

use super::aims::Moment;
use super::disk::BLOCK;
use super::oracle::OPEN;
use super::rng::Rng;
use super::world::{CONTROLLER, Doom, MS, NODES, SECOND, SIZE, VOLUME, Victim, What, World};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    EngineCrash,
    EnginePause,
    SatelliteCrash,
    SatellitePause,
    MachineCrash,
    PowerLoss,
    Cut,
    CutOneWay,
    CutController,
    BreakConnection,
    Takeover,
    /// The engine's node is cut from the other nodes and taken over by one of them.
    Split,
    Stop,
    CatalogueAway,
    BadBlocks,
    BrokenDisk,
    FullDisk,
    DiskHang,
    /// The system is short of something for a while: operations fail and are worth trying again.
    ShortOf,
    /// The machine of the owner's engine crashes.
    OwnerDies,
    /// A process or machine dies between two commands of one step.
    DieMidway,
    /// A machine sleeps: its processes stop, its clock goes on.
    Sleep,
    /// Messages are damaged on the wire for a while.
    FlipBits,
    /// One copy of a stored page is damaged.
    Rot,
    /// A disk is copied; later an absent replica comes back as the copy.
    OldCopy,
}

const ALL: [Fault; 25] = [
    Fault::EngineCrash,
    Fault::EnginePause,
    Fault::SatelliteCrash,
    Fault::SatellitePause,
    Fault::MachineCrash,
    Fault::PowerLoss,
    Fault::Cut,
    Fault::CutOneWay,
    Fault::CutController,
    Fault::BreakConnection,
    Fault::Takeover,
    Fault::Split,
    Fault::Stop,
    Fault::CatalogueAway,
    Fault::BadBlocks,
    Fault::BrokenDisk,
    Fault::FullDisk,
    Fault::DiskHang,
    Fault::ShortOf,
    Fault::OwnerDies,
    Fault::DieMidway,
    Fault::Sleep,
    Fault::FlipBits,
    Fault::Rot,
    Fault::OldCopy,
];

/// What a seed has chosen.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) copies: usize,
    pub(crate) min_in_sync: u8,
    pub(crate) begin_stale: bool,
    /// In a hundred.
    pub(crate) slow_net: u64,
    pub(crate) lossy_catalogue: u64,
    pub(crate) faults: Vec<Fault>,
    /// Longest time between faults.
    pub(crate) pause: u64,
    /// Longest fault.
    pub(crate) longest: u64,
    pub(crate) length: u64,
    /// Where guests write: first blocks.
    pub(crate) hot: Vec<u64>,
    pub(crate) read_errors: bool,
    /// What strikes when.
    pub(crate) strikes: Vec<(Moment, Fault)>,
    /// Guests rest long between bursts.
    pub(crate) rests: bool,
    /// They never do.
    pub(crate) steady: bool,
    /// Requests a guest has under way at most.
    pub(crate) depth: usize,
    /// Clocks run as differently as is provided for.
    pub(crate) clocks_differ: bool,
    pub(crate) slow_disk: bool,
    /// Connections that reach another replica's node, in a hundred.
    pub(crate) misrouted: u64,
    /// Messages that are damaged, in ten thousand.
    pub(crate) damaged: u64,
    /// How often a snapshot is asked for when somebody thinks of it, in a hundred.
    pub(crate) snapshots: u64,
}

impl Plan {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let share = rng.between(10, 70);
        let mut faults: Vec<Fault> = ALL.into_iter().filter(|_| rng.chance(share)).collect();
        if faults.is_empty() {
            faults.push(ALL[rng.index(ALL.len())]);
        }
        let split = faults.contains(&Fault::Split);
        let areas = rng.between(1, 6);
        let hot = (0..areas)
            .map(|_| {
                let region = rng.between(1, 7) * ((1 << 20) / BLOCK);
                if rng.chance(30) {
                    region - 4
                } else {
                    rng.below(SIZE / BLOCK - 8)
                }
            })
            .collect();
        let copies = if rng.chance(60) { 3 } else { 2 };
        let mut plan = Self {
            copies,
            min_in_sync: if rng.chance(70) { 1 } else { 2 },
            begin_stale: rng.chance(20),
            slow_net: [0, 1, 10][rng.index(3)],
            lossy_catalogue: [0, 5, 30][rng.index(3)],
            read_errors: faults.contains(&Fault::BadBlocks),
            faults,
            pause: rng.spread(200 * MS, 10 * SECOND),
            longest: rng.spread(100 * MS, 60 * SECOND),
            length: rng.between(10, 60) * SECOND + if split { 30 * SECOND } else { 0 },
            hot,
            strikes: Vec::new(),
            rests: false,
            steady: false,
            depth: 8,
            clocks_differ: false,
            slow_disk: false,
            misrouted: 0,
            damaged: 0,
            snapshots: 0,
        };
        match rng.below(6) {
            0 | 1 => plan.aim(rng),
            2 | 3 => plan.aim_somewhere(rng),
            _ => {}
        }
        plan.read_errors = plan.faults.contains(&Fault::BadBlocks);
        plan
    }

    /// Nothing goes wrong by itself.
    pub(crate) fn calm(rng: &mut Rng) -> Self {
        let mut plan = Self::new(rng);
        plan.faults.clear();
        plan.strikes.clear();
        (plan.slow_net, plan.lossy_catalogue, plan.misrouted) = (0, 0, 0);
        (plan.read_errors, plan.steady) = (false, true);
        plan
    }
}

impl World {
    pub(crate) fn fault(&mut self) {
        if self.healing || self.plan.faults.is_empty() {
            return;
        }
        let pause = self.plan.pause;
        let next = self.rng.spread(20 * MS, pause);
        self.after(next, What::Fault);
        let fault = self.plan.faults[self.rng.index(self.plan.faults.len())];
        self.strike(fault);
    }

    /// Something goes wrong somewhere, now.
    pub(crate) fn strike(&mut self, fault: Fault) {
        if self.healing {
            return;
        }
        let longest = self.plan.longest;
        let length = self.rng.spread(20 * MS, longest);
        let node = self.rng.index(self.plan.copies);
        let other = self.rng.index(NODES);
        self.log(|| format!("FAULT {fault:?} n{node} n{other} for {} ms", length / MS));
        self.inflict(fault, node, other, length);
    }

    fn inflict(&mut self, fault: Fault, node: usize, other: usize, length: u64) {
        match fault {
            Fault::EngineCrash => {
                if let Some(engine) = self.some_engine() {
                    self.kill_engine(engine);
                }
            }
            Fault::EnginePause => {
                if let Some(engine) = self.some_engine() {
                    self.engines.get_mut(&engine).unwrap().paused = true;
                    self.after(length, What::ResumeEngine(engine));
                }
            }
            Fault::SatelliteCrash => {
                self.crash_satellite(node, length);
            }
            Fault::SatellitePause => {
                if let Some(satellite) = &mut self.nodes[node].satellite {
                    satellite.paused = true;
                    self.after(length, What::ResumeSatellite(node));
                }
            }
            Fault::MachineCrash => self.crash_machine(other, length),
            Fault::PowerLoss => {
                let longest = self.plan.longest;
                for node in 0..NODES {
                    let back = self.rng.spread(20 * MS, longest);
                    self.crash_machine(node, back);
                }
            }
            Fault::Cut if node != other => {
                self.cut(node, other, length);
                self.cut(other, node, length);
            }
            Fault::CutOneWay if node != other => {
                if self.rng.chance(50) {
                    self.cut(node, other, length);
                } else {
                    self.cut(other, node, length);
                }
            }
            Fault::CutController => {
                self.cut(other, CONTROLLER, length);
                if self.rng.chance(70) {
                    self.cut(CONTROLLER, other, length);
                }
            }
            Fault::BreakConnection => {
                let ids: Vec<u64> = self.conns.keys().copied().collect();
                if !ids.is_empty() {
                    let id = ids[self.rng.index(ids.len())];
                    self.break_conn(id);
                }
            }
            Fault::Takeover if self.catalogue_up => self.attach(true),
            Fault::Takeover | Fault::Cut | Fault::CutOneWay => {}
            Fault::Split => self.split(),
            Fault::Stop => {
                let guests: Vec<u64> = self.guests.keys().copied().collect();
                if !guests.is_empty() {
                    let id = guests[self.rng.index(guests.len())];
                    self.guests.get_mut(&id).unwrap().stopping = true;
                }
            }
            Fault::CatalogueAway => {
                self.catalogue_up = false;
                self.after(length, What::CatalogueBack);
            }
            Fault::BadBlocks | Fault::BrokenDisk | Fault::FullDisk | Fault::DiskHang | Fault::ShortOf => {
                self.hurt_disk(fault, node, length);
            }
            Fault::OwnerDies => {
                let owner = self
                    .engines
                    .values()
                    .find(|process| process.epoch == self.row.view.epoch);
                if let Some(node) = owner.map(|process| process.node) {
                    self.crash_machine(node, length);
                }
            }
            Fault::DieMidway => {
                let after = self.rng.spread(1, 3000);
                let who = [Victim::Engine, Victim::Satellite, Victim::Machine][self.rng.index(3)];
                self.doom = Some(Doom {
                    who,
                    after,
                    back: length,
                });
            }
            Fault::Sleep => self.sleep(other, length),
            Fault::FlipBits => {
                self.plan.damaged = self.rng.spread(1, 300);
                self.after(length, What::CleanWire);
            }
            Fault::Rot => self.rot(node),
            Fault::OldCopy => self.old_copy(node),
        }
    }

    /// Every process of a machine stops for a while; its clock does not.
    fn sleep(&mut self, node: usize, length: u64) {
        let engines: Vec<u64> = self
            .engines
            .iter()
            .filter(|(_, process)| process.node == node)
            .map(|(id, _)| *id)
            .collect();
        for engine in engines {
            self.engines.get_mut(&engine).unwrap().paused = true;
            self.after(length, What::ResumeEngine(engine));
        }
        if let Some(satellite) = &mut self.nodes[node].satellite {
            satellite.paused = true;
            self.after(length, What::ResumeSatellite(node));
        }
    }

    /// A bit turns over in a stored page that has a second copy to tell by.
    fn rot(&mut self, node: usize) {
        // The process has its maps in memory: what it stores anew is good again.
        if let Some((_, disk)) = self.nodes[node].store.as_mut()
            && disk.batch.is_none()
        {
            disk.rot(&mut self.rng);
        }
    }

    /// A copy of the whole disk is made; or the one there is takes the place of the disk. Only where the
    /// copy's age can be told: the replica has joined since, and is absent now.
    fn old_copy(&mut self, node: usize) {
        let Some((id, disk)) = &self.nodes[node].store else {
            return;
        };
        let (id, stored) = (*id, disk.stored_config());
        let Some(member) = self.row.replicas.get(&id) else {
            return;
        };
        let absent = member.state != MemberState::InSync;
        let joined = member.joined;
        let Some(stored) = stored else { return };
        let tellable = |config: ConfigSeq| joined.is_some_and(|joined| config.next() < joined);
        let fresh = (id, stored, disk.clone());
        let place = &mut self.nodes[node];
        let idle = place.satellite.is_none();
        match place.copy.take() {
            Some((of, config, mut copy)) if of == id && absent && idle && tellable(config) => {
                copy.crash(&mut self.rng);
                place.store = Some((id, copy));
                self.snapshots.forget(id);
                self.log(|| format!("n{node} has an old copy of its disk"));
            }
            Some((of, config, copy)) if of == id => place.copy = Some((of, config, copy)),
            _ => place.copy = Some(fresh),
        }
    }

    fn hurt_disk(&mut self, fault: Fault, node: usize, length: u64) {
        let (now, hot) = (self.now, self.plan.hot[self.rng.index(self.plan.hot.len())]);
        let others = (0..self.plan.copies)
            .filter(|n| *n != node)
            .all(|n| !self.is_failed(n));
        let set = self.row.in_sync().count();
        let many_pages = self.rng.chance(50);
        let bad = hot + self.rng.below(8);
        let Some((_, disk)) = &mut self.nodes[node].store else {
            return;
        };
        match fault {
            Fault::BadBlocks => {
                let bad = bad.min(SIZE / BLOCK - 1);
                disk.bad.insert(bad);
                self.ever_bad.insert(bad);
            }
            // More than one disk lost for good is another's story.
            Fault::BrokenDisk if others && set > 1 && !disk.broken => {
                disk.broken = true;
                // Its next flush may lose what was not flushed.
                self.nodes[node].wiped = self.moment;
                self.nodes[node].reopened = OPEN;
                self.ever_wiped = true;
                self.note_lost();
                self.after(length, What::DiskRecovers(node));
            }
            Fault::FullDisk => {
                disk.full = true;
                disk.full_for_pages = many_pages;
                self.after(length, What::DiskRoom(node));
            }
            Fault::DiskHang => disk.hangs_until = disk.hangs_until.max(now + length),
            Fault::ShortOf => disk.short_until = disk.short_until.max(now + length.min(5 * SECOND)),
            _ => {}
        }
    }

    pub(crate) fn is_failed(&self, node: usize) -> bool {
        let broken = self.nodes[node]
            .store
            .as_ref()
            .is_some_and(|(_, disk)| disk.broken);
        broken
            || self.nodes[node]
                .satellite
                .as_ref()
                .is_some_and(|s| s.replica.superblock().failed)
    }

    /// The owner's node with its replica on one side, a new engine and the other replicas on the other.
    fn split(&mut self) {
        let owner = self
            .engines
            .values()
            .find(|process| process.epoch == self.row.view.epoch);
        let Some(here) = owner.map(|process| process.node) else {
            return;
        };
        let length = self.rng.between(31, 45) * SECOND;
        // Without the controllers the old engine does not learn that it is superseded.
        for there in (0..=CONTROLLER).filter(|node| *node != here) {
            self.cut(here, there, length);
            self.cut(there, here, length);
        }
        let there = (here + 1 + self.rng.index(NODES - 1)) % NODES;
        if self.catalogue_up && self.nodes[there].up {
            self.attach_on(there, true);
        }
    }

    pub(crate) fn failure_is_stored(&self, node: usize) -> bool {
        let Some((id, disk)) = &self.nodes[node].store else {
            return false;
        };
        let place = PageId::Superblock;
        let (a, b) = (
            disk.read_meta(place.offset(false), PAGE),
            disk.read_meta(place.offset(true), PAGE),
        );
        decode_superblock(&a, &b, VOLUME, *id).is_ok_and(|(_, superblock)| superblock.failed)
    }

    fn cut(&mut self, from: usize, to: usize, length: u64) {
        self.cut[from][to] = true;
        self.after(length, What::Uncut(from, to));
    }

    fn some_engine(&mut self) -> Option<u64> {
        let ids: Vec<u64> = self.engines.keys().copied().collect();
        if ids.is_empty() {
            None
        } else {
            Some(ids[self.rng.index(ids.len())])
        }
    }

    /// A machine that is never seen again; the others have all it had, or are enough to go on.
    fn forsake(&mut self) {
        if !self.forsakes {
            return;
        }
        let node = self.rng.index(self.plan.copies);
        let others = self.row.in_sync().filter_map(|id| self.node_of(id));
        let others = others.filter(|other| *other != node && !self.is_failed(*other));
        if others.count() >= self.row.least_in_sync() {
            self.crash_machine(node, OPEN / 2);
            self.log(|| format!("n{node} stays away"));
            (self.forsaken, self.forsaken_at) = (Some(node), self.now);
        }
    }

    /// Everything works again, but for replicas whose disks failed for good.
    pub(crate) fn heal(&mut self) {
        self.log(|| "HEAL".into());
        self.healing = true;
        self.cut = [[false; NODES + 1]; NODES + 1];
        self.catalogue_up = true;
        self.plan.slow_net = 0;
        self.plan.lossy_catalogue = 0;
        (self.plan.misrouted, self.plan.damaged, self.doom) = (0, 0, None);
        self.forsake();
        for node in 0..NODES {
            if self.forsaken == Some(node) {
                continue;
            }
            self.reboot(node);
            if let Some((_, disk)) = &mut self.nodes[node].store {
                disk.bad.clear();
                disk.full = false;
                disk.broken = false;
                (disk.hangs_until, disk.short_until) = (0, 0);
            }
            self.resume_satellite(node);
        }
        let engines: Vec<u64> = self.engines.keys().copied().collect();
        for engine in engines {
            self.resume_engine(engine);
        }
        for guest in self.guests.values_mut() {
            guest.stopping = false;
        }
    }
}
