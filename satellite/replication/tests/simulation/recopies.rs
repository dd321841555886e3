//! Copies of snapshots made anew (S6), for members that have none: a step now and then, while satellites and machines
//! die, links are cut, disks are full or exchanged. What must hold is said where the copies of members are looked at.
//!
//! Chance is of its own here, so that the worlds are the same with and without.

use std::collections::BTreeMap;

use stor_replication::catalogue::MemberState;
use stor_replication::ids::{ReplicaId, SnapshotId};
use stor_replication::range::ByteRange;
use stor_replication::recopy::{Digest, Recopy, Source, Target, UNIT};

use super::disk::BLOCK;
use super::rng::Rng;
use super::world::{SIZE, World};

/// Bytes of one step.
const STEP: u64 = 512 << 10;

/// Those under way, by whose they will be.
#[derive(Default)]
pub(crate) struct Recopies {
    rng: Option<Rng>,
    under_way: BTreeMap<(ReplicaId, SnapshotId), (u64, Recopy)>,
}

impl Recopies {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rng: Some(Rng::new(seed ^ 0x5eed_0c09)),
            under_way: BTreeMap::new(),
        }
    }
}

fn units(range: ByteRange) -> std::ops::Range<usize> {
    let at = range.units(BLOCK);
    usize::try_from(at.start).unwrap()..usize::try_from(at.end).unwrap()
}

fn digests(range: ByteRange, block: impl Fn(usize) -> u64) -> Vec<Digest> {
    let of = |unit: u64| {
        let mut mixed = [0_u64; 4];
        let mut zero = true;
        for index in units(ByteRange::new(unit * UNIT, UNIT.min(range.end() - unit * UNIT))) {
            let content = block(index);
            zero &= content == 0;
            for (lane, sum) in (1..).zip(&mut mixed) {
                *sum = Rng::new(sum.wrapping_add(content).wrapping_mul(lane)).next();
            }
        }
        let mut bytes = [0; 32];
        for (to, from) in bytes.chunks_exact_mut(8).zip(mixed) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        if zero { Digest::Zero } else { Digest::Of(bytes) }
    };
    range.units(UNIT).map(of).collect()
}

/// Another member's copy.
struct Theirs(Vec<u64>);

impl Source for Theirs {
    type Data = Vec<u64>;
    type Error = ();

    fn digests(&mut self, range: ByteRange) -> Result<Vec<Digest>, ()> {
        Ok(digests(range, |block| self.0[block]))
    }

    fn read(&mut self, range: ByteRange) -> Result<Vec<u64>, ()> {
        Ok(self.0[units(range)].to_vec())
    }
}

/// One that is made: per block what may be read of it after a crash.
struct Ours<'a> {
    blocks: &'a mut Vec<Vec<u64>>,
    named: bool,
    full: bool,
}

impl Target<Vec<u64>> for Ours<'_> {
    type Error = ();

    fn digests(&mut self, range: ByteRange) -> Result<Vec<Digest>, ()> {
        Ok(digests(range, |block| *self.blocks[block].last().unwrap()))
    }

    fn write(&mut self, range: ByteRange, data: Vec<u64>) -> Result<(), ()> {
        for (block, content) in units(range).zip(data) {
            self.blocks[block].push(content);
        }
        // Half done.
        if self.full { Err(()) } else { Ok(()) }
    }

    fn free(&mut self, range: ByteRange) -> Result<(), ()> {
        units(range).for_each(|block| self.blocks[block].push(0));
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ()> {
        for versions in &mut *self.blocks {
            versions.drain(..versions.len() - 1);
        }
        Ok(())
    }

    fn name(&mut self) -> Result<(), ()> {
        self.named = true;
        Ok(())
    }
}

impl World {
    /// Whose satellite answers, and where it is.
    fn answering(&self, replica: ReplicaId) -> Option<usize> {
        let node = self.node_of(replica)?;
        let satellite = self.nodes[node].satellite.as_ref()?;
        (self.nodes[node].up && !satellite.paused).then_some(node)
    }

    /// Goes on with some of them.
    pub(crate) fn tend_recopies(&mut self) {
        let Some(mut rng) = self.snapshots.recopies.rng.take() else {
            return;
        };
        for (replica, snapshot) in self.recopies_due() {
            if rng.chance(50) {
                self.recopy(replica, snapshot, &mut rng);
            }
        }
        self.snapshots.recopies.rng = Some(rng);
    }

    /// Members without a copy of a snapshot that is ready; the oldest snapshot comes first.
    fn recopies_due(&self) -> Vec<(ReplicaId, SnapshotId)> {
        let mut due = Vec::new();
        for (replica, member) in &self.row.replicas {
            let ready = self.snapshots.ready.iter();
            let mut lacks = ready.filter(|(_, ready)| !ready.members.contains(replica));
            if member.state == MemberState::InSync
                && let Some((snapshot, _)) = lacks.next()
            {
                due.push((*replica, *snapshot));
            }
        }
        due
    }

    fn recopy(&mut self, replica: ReplicaId, snapshot: SnapshotId, rng: &mut Rng) {
        let Some(node) = self.answering(replica) else {
            return;
        };
        let members = self.snapshots.ready[&snapshot].members.clone();
        let sources = members.iter().filter_map(|member| {
            let from = self.answering(*member)?;
            let copy = self.nodes[from].store.as_ref()?.1.snapshot(snapshot)?;
            (!self.cut[node][from] && !self.cut[from][node]).then_some(copy)
        });
        let sources: Vec<Vec<u64>> = sources.collect();
        if sources.is_empty() {
            return;
        }
        let mut source = Theirs(sources[rng.index(sources.len())].clone());
        let boot = self.nodes[node].boot;
        let process = self.nodes[node].satellite.as_ref().map_or(0, |one| one.process);
        let key = (replica, snapshot);
        let known = self.snapshots.recopies.under_way.remove(&key);
        // Whoever made it may be gone; what is there is begun with.
        let mut recopy = match known {
            Some((by, recopy)) if by == process => recopy,
            _ => Recopy::new(SIZE, STEP),
        };
        let disk = &mut self.nodes[node].store.as_mut().unwrap().1;
        if disk.broken || disk.hangs_until > self.now {
            self.snapshots.recopies.under_way.insert(key, (process, recopy));
            return;
        }
        let full = disk.full;
        let shared: Vec<Vec<u64>> = (0..source.0.len()).map(|block| vec![disk.block(block)]).collect();
        let (written, blocks) = disk.unfinished.entry(snapshot).or_insert((boot, shared));
        if *written != boot {
            // The machine was away: of what was not flushed anything may be left.
            for versions in &mut *blocks {
                *versions = vec![versions[rng.index(versions.len())]];
            }
            *written = boot;
            recopy = Recopy::new(SIZE, STEP);
        }
        let mut target = Ours {
            blocks,
            named: false,
            full,
        };
        let stepped = recopy.step(&mut source, &mut target);
        if target.named {
            let (_, blocks) = disk.unfinished.remove(&snapshot).unwrap();
            disk.snapshots.insert(snapshot, blocks);
            self.snapshots.recopied += 1;
            self.log(|| format!("snapshot {snapshot}: replica {replica} has a copy made anew"));
            let ready = self.snapshots.ready.get_mut(&snapshot).unwrap();
            ready.members.push(replica);
            self.check_snapshots();
        } else {
            self.log(|| {
                format!(
                    "snapshot {snapshot} at replica {replica}: {} {stepped:?}",
                    recopy.compared()
                )
            });
            self.snapshots.recopies.under_way.insert(key, (process, recopy));
        }
    }

    /// All is well again: what can be made anew is, in the end.
    pub(crate) fn check_recopied(&mut self) {
        if self.plan.snapshots == 0 {
            return;
        }
        // Each round is one step of one snapshot for each member that lacks some.
        for _ in 0..50_000 {
            let all = self.recopies_due();
            let has_source = |world: &Self, snapshot: SnapshotId| {
                let members = &world.snapshots.ready[&snapshot].members;
                members.iter().any(|member| world.answering(*member).is_some())
            };
            let due: Vec<_> = all
                .into_iter()
                // A machine may stay dead.
                .filter(|(replica, snapshot)| self.answering(*replica).is_some() && has_source(self, *snapshot))
                .collect();
            if due.is_empty() || self.wrong.is_some() {
                return;
            }
            let Some(mut rng) = self.snapshots.recopies.rng.take() else {
                return;
            };
            for (replica, snapshot) in due {
                self.recopy(replica, snapshot, &mut rng);
            }
            self.snapshots.recopies.rng = Some(rng);
        }
        let due = self.recopies_due();
        self.violate(format!("copies of snapshots are not made anew: {due:?}"));
    }
}
