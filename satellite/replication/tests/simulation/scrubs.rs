//! Scrubs as the catalogue asks for them, and blocks that rot at rest.
//!
//! While everything else goes wrong no block rots: then no scrub may find that copies differ, whatever it races with.
//! Afterwards, when all is whole, some blocks of some replicas become something that nobody wrote, others can't be
//! read, and the scrub that follows has to find exactly these and make them what they were, with clients or without,
//! and to come to its end though engines and satellites die meanwhile.

use std::collections::BTreeMap;

use stor_replication::catalogue::{Change, Refusal};
use stor_replication::engine;
use stor_replication::ids::{ReplicaId, ScrubRun};
use stor_replication::scrub::{ScrubAsk, ScrubReport};

use super::disk::BLOCK;
use super::rng::Rng;
use super::world::{MS, SECOND, SIZE, What, World};

/// Set in what a block reads as that has rotted: no write has such a number.
pub(crate) const ROT: u64 = 1 << 62;

/// A block of one replica that is not what it was.
struct Rotten {
    node: usize,
    /// What it was, there and everywhere.
    good: u64,
    /// It can't be read; otherwise it reads as something else.
    bad: bool,
}

/// What the catalogue keeps of scrubs, and what has rotted.
pub(crate) struct Scrubs {
    /// By what chance; its own, so that all else of a seed stays.
    rng: Rng,
    /// In a hundred: how often one is asked for when somebody thinks of it.
    often: u64,
    wanted: Option<ScrubAsk>,
    run: u64,
    rotten: BTreeMap<u64, Rotten>,
    /// Blocks told of in the last one.
    found: Vec<u64>,
    /// Copies may differ where they rotted.
    pub(crate) rotting: bool,
    pub(crate) ended: u64,
    pub(crate) mended: u64,
}

/// How a world's blocks rot.
struct Rotting {
    writes: bool,
    engine_dies: bool,
    satellite_dies: bool,
}

impl Scrubs {
    pub(crate) fn new(seed: u64, committed: bool) -> Self {
        let mut rng = Rng::new(seed ^ 0x7363_7275_6273);
        let often = if rng.chance(40) && !committed { 50 } else { 0 };
        Self {
            rng,
            often,
            wanted: None,
            run: 0,
            rotten: BTreeMap::new(),
            found: Vec::new(),
            rotting: false,
            ended: 0,
            mended: 0,
        }
    }

    pub(crate) fn are_made(&self) -> bool {
        self.often > 0
    }

    fn ask(&mut self, mend: bool) {
        self.run += 1;
        let rate = self.rng.spread(1 << 20, 1 << 30);
        self.found.clear();
        self.wanted = Some(ScrubAsk {
            run: ScrubRun(self.run),
            from: 0,
            reports: 0,
            found: 0,
            rate,
            mend,
        });
    }
}

impl World {
    /// Asks for scrubs, and tells engines what is asked for, now and then something old.
    pub(crate) fn tend_scrubs(&mut self) {
        if self.finished {
            return;
        }
        let next = self.scrubs.rng.spread(20 * MS, SECOND);
        self.after(next, What::Scrub);
        let often = self.scrubs.often;
        if self.scrubs.wanted.is_none() && !self.healing && self.scrubs.rng.chance(often) {
            let mend = self.scrubs.rng.chance(80);
            self.scrubs.ask(mend);
            self.log(|| "a scrub is asked for".into());
        } else if !self.healing && self.scrubs.rng.chance(2) {
            self.scrubs.wanted = None;
        }
        let ask = self.scrubs.wanted;
        let engines: Vec<u64> = self.engines.keys().copied().collect();
        for engine in engines {
            if self.scrubs.rng.chance(70) && self.wrong.is_none() {
                self.engine_event(engine, engine::Event::Scrub(ask));
            }
        }
    }

    /// Only the next report of the one that is asked for is heard.
    pub(crate) fn scrub_wanted(&self, change: &Change) -> Result<(), Refusal> {
        let Change::Scrubbed { report, .. } = change else {
            return Ok(());
        };
        match self.scrubs.wanted {
            Some(ask) if ask.run == report.run && ask.reports == report.reports => Ok(()),
            _ => Err(Refusal::NoSuchScrub {
                run: report.run,
                report: report.reports,
            }),
        }
    }

    pub(crate) fn scrub_told(&mut self, report: &ScrubReport) {
        let Some(ask) = &mut self.scrubs.wanted else {
            return;
        };
        let before = ask.from;
        ask.from = report.cursor;
        ask.reports += 1;
        ask.found += u32::try_from(report.findings.len()).unwrap();
        if report.cursor < before {
            return self.violate(format!("a scrub went back to {} from {before}", report.cursor));
        }
        if report.end.is_some() {
            self.scrubs.wanted = None;
            self.scrubs.ended += 1;
        }
        self.scrubs.mended += u64::from(report.mended);
        for finding in &report.findings {
            let blocks = finding.range().units(BLOCK);
            let rotted = blocks
                .clone()
                .all(|block| self.scrubs.rotten.contains_key(&block));
            if !rotted && !finding.wrong.is_empty() {
                return self.violate(format!("copies differ where nothing rotted: {finding:?}"));
            }
            self.scrubs.found.extend(blocks);
        }
    }

    /// Whether a block may differ between members because it rotted and was not mended yet.
    pub(crate) fn has_rotted(&self, block: u64) -> bool {
        self.scrubs.rotting && self.scrubs.rotten.contains_key(&block)
    }

    /// Everything is whole and equal: some of it rots. Answers how the world goes on.
    fn rot_at_rest(&mut self) -> Rotting {
        let members: Vec<usize> = self.row.in_sync().filter_map(|id| self.node_of(id)).collect();
        let rng = &mut self.scrubs.rng;
        let rotting = Rotting {
            writes: rng.chance(40),
            engine_dies: rng.chance(25),
            satellite_dies: rng.chance(20),
        };
        let count = rng.between(1, 20);
        let dies = rotting.engine_dies || rotting.satellite_dies;
        // Of what only the one that dies could read, nobody can be brought up to date. And what a read finds unreadable is
        // written again with what another member holds around it, rotten or not.
        let bad = self.scrubs.rng.chance(20) && !dies;
        for number in 0..count {
            let rng = &mut self.scrubs.rng;
            let block = match rng.below(4) {
                0 => rng.below(SIZE / BLOCK),
                // Where something was written.
                _ => (self.plan.hot[rng.index(self.plan.hot.len())] + rng.below(24)).min(SIZE / BLOCK - 1),
            };
            let node = members[rng.index(members.len())];
            if self.scrubs.rotten.contains_key(&block) {
                continue;
            }
            let (_, disk) = self.nodes[node].store.as_mut().unwrap();
            let good = disk.block(usize::try_from(block).unwrap());
            if bad {
                disk.bad.insert(block);
                self.ever_bad.insert(block);
            } else {
                disk.put_rotten(block, ROT | (number + 1));
            }
            self.scrubs.rotten.insert(block, Rotten { node, good, bad });
            self.log(|| format!("ROT block {block} of n{node}, bad {bad}"));
        }
        self.scrubs.rotting = true;
        // Copies of what rotted differ for ever.
        self.snapshots.give_up();
        rotting
    }

    /// Whether blocks are to rot now: where a machine stays dead, a scrub waits for it without end, and where the only
    /// copy of a sector can't be read, because the others leave, no other replica is brought up to date.
    pub(crate) fn may_rot(&self) -> bool {
        let (in_sync, all) = (self.row.in_sync().count(), self.row.replicas.len());
        let whole = in_sync == all && all == self.plan.copies && self.forsaken.is_none();
        let stays = !self.row.replicas.values().any(|member| member.leaving);
        self.scrubs.often > 0 && whole && stays
    }

    /// Blocks rot, and a scrub finds and mends them. Answers whether all went well.
    pub(crate) fn scrub_what_rots(&mut self) -> bool {
        let rotting = self.rot_at_rest();
        self.plan.read_errors |= self.scrubs.rotten.values().any(|one| one.bad);
        let preferred = self.preferred();
        let config = self.row.view.config;
        self.scrubs.ask(true);
        if rotting.writes {
            self.quiet = false;
        }
        let mut last = self.now;
        if rotting.engine_dies {
            let engines: Vec<u64> = self.engines.keys().copied().collect();
            let after = self.scrubs.rng.spread(MS, 8 * SECOND);
            last = last.max(self.now + after);
            for engine in engines {
                self.after(after, What::EngineEnds(engine));
            }
        }
        if rotting.satellite_dies {
            let (node, after) = (
                self.scrubs.rng.index(self.plan.copies),
                self.scrubs.rng.spread(MS, 8 * SECOND),
            );
            let back = self.scrubs.rng.spread(MS, 3 * SECOND);
            // Until its death was noticed and it is back.
            last = last.max(self.now + after + back + 5 * SECOND);
            self.after(after, What::Kill(node, back));
        }
        let ended = super::until(self, 2700 * SECOND, |world| {
            world.scrubs.wanted.is_none() && world.now > last
        });
        self.quiet = true;
        if self.wrong.is_some() {
            return false;
        }
        if !ended {
            let engines = self.engines.values();
            let scrubs: Vec<_> = engines.map(|process| process.engine.scrub()).collect();
            let state = self.describe();
            self.violate(format!("the scrub does not end: {scrubs:?}; {state}"));
            return false;
        }
        self.scrubs.rotting = false;
        self.plan.read_errors = true;
        // Who leaves may take the last sound copy along.
        let stayed = self.row.view.config == config;
        if stayed && !rotting.engine_dies && !rotting.satellite_dies {
            self.check_mended(&rotting, preferred);
        }
        self.wrong.is_none()
    }

    /// Which copy is right among two.
    fn preferred(&self) -> Option<ReplicaId> {
        let engine = self
            .engines
            .values()
            .find(|one| one.epoch == self.row.view.epoch)?;
        let local = engine.local;
        let mut members: Vec<ReplicaId> = self.row.in_sync().collect();
        members.sort();
        local
            .filter(|id| members.contains(id))
            .or(members.first().copied())
    }

    /// Nothing died meanwhile, and nobody came or left: what rotted was found, and nothing else, and is what most copies held, or of two the
    /// one that reads are served from.
    fn check_mended(&mut self, rotting: &Rotting, preferred: Option<ReplicaId>) {
        let members: Vec<ReplicaId> = self.row.in_sync().collect();
        let mut wrong = None;
        for (block, one) in &self.scrubs.rotten {
            let index = usize::try_from(*block).unwrap();
            let (owner, disk) = self.nodes[one.node].store.as_ref().unwrap();
            let survives = !one.bad && members.len() == 2 && preferred == Some(*owner);
            let found = self.scrubs.found.contains(block);
            if !found && !rotting.writes {
                wrong = Some(format!("block {block} of n{} rotted and was not found", one.node));
            }
            if disk.bad.contains(block) {
                wrong = Some(format!("block {block} of n{} can't be read still", one.node));
            }
            for replica in &members {
                let node = self.node_of(*replica).unwrap();
                let is = self.nodes[node].store.as_ref().unwrap().1.block(index);
                let good = if rotting.writes {
                    is & ROT == 0
                } else {
                    is == one.good
                };
                if !good && !survives {
                    wrong = Some(format!(
                        "block {block} of n{node} is {is} and was {} before it rotted",
                        one.good
                    ));
                }
            }
        }
        if let Some(wrong) = wrong {
            self.violate(wrong);
        }
    }
}
