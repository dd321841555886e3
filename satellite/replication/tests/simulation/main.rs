//! The real state machines in a hostile world, decided by one number.
//!
//! Each seed makes its own world: two or three replicas, engines that crash, pause and are superseded,
//! machines that lose what was not flushed, a network that stalls, breaks and damages, a catalogue that is slow
//! to answer. While it lasts an oracle judges every read; afterwards everything is healed and the volume must
//! become whole again, serve, and stop cleanly.
//!
//! In two fifths of the seeds scrubs run beside all that, and blocks rot at the end that another scrub has to mend.
//! In a third of the seeds snapshots are made; a seed plus 2^40 is the same world with them.
//!
//! `STOR_SIM_SEEDS=n` runs n seeds from `STOR_SIM_FIRST` (default: 2000 from 1, in four tests). `night` runs many
//! and collects what fails, `history` prints what happened in one (`STOR_SIM_SEED=n`). A seed that once failed is
//! a line in `seeds.txt` and always runs. `sweep` kills at every place instead of at some.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    reason = "a test"
)]

mod aims;
mod checks;
mod disk;
mod engines;
mod faults;
mod frames;
mod net;
mod oracle;
mod owner;
mod recopies;
mod replicas;
mod rng;
mod scrubs;
mod snapshots;
mod sweep;
mod trace;
mod world;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};

use world::{SECOND, World};

/// Lines of history kept.
pub(crate) const TAIL: usize = 200_000;
const SEEDS: &str = include_str!("seeds.txt");
/// Tests that share the seeds.
const SHARDS: u64 = 4;

/// What became of a seed.
pub(crate) struct Outcome {
    pub(crate) wrong: Option<String>,
    pub(crate) answered: u64,
    pub(crate) lost: bool,
    /// Snapshots that became ready, and that did not.
    pub(crate) snapshots: (u64, u64),
    /// Copies of snapshots made anew.
    pub(crate) recopied: u64,
    /// Scrubs that came to their end, and places they mended.
    pub(crate) scrubs: (u64, u64),
    pub(crate) log: Vec<String>,
}

pub(crate) fn run(seed: u64, trace: bool) -> Outcome {
    run_world(World::new(seed, trace))
}

pub(crate) fn run_world(mut world: World) -> Outcome {
    let mut lost = false;
    let result = quietly(|| catch_unwind(AssertUnwindSafe(|| lost = scenario(&mut world))));
    if let Err(panic) = result {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        world.violate(format!("panic: {}", text.unwrap_or_default()));
    }
    Outcome {
        wrong: world.wrong,
        answered: world.answered,
        lost,
        snapshots: (world.snapshots.ready.len() as u64, world.snapshots.failed),
        recopied: world.snapshots.recopied,
        scrubs: (world.scrubs.ended, world.scrubs.mended),
        log: world.log.into_iter().flatten().collect(),
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Panics inside of `work` are findings, told with their seed, and not printed.
fn quietly<T>(work: impl FnOnce() -> T) -> T {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
    QUIET.set(true);
    let result = work();
    QUIET.set(false);
    result
}

/// Runs the world until `done`; `false`: something went wrong or the time is over.
fn until(world: &mut World, limit: u64, mut done: impl FnMut(&World) -> bool) -> bool {
    let end = world.now + limit;
    let mut steps = 0_u64;
    while world.now < end {
        if !world.step() {
            return false;
        }
        steps += 1;
        if steps.is_multiple_of(64) {
            world.check_equal(false);
            world.check_snapshots();
        }
        if world.wrong.is_some() {
            return false;
        }
        if done(world) {
            return true;
        }
    }
    false
}

/// Says whether the volume was lost: no healthy member left, which is no defect.
fn scenario(world: &mut World) -> bool {
    let length = world.plan.length;
    until(world, length, |_| false);
    if world.wrong.is_some() {
        return false;
    }
    world.heal();
    until(world, 3 * SECOND, |_| false);
    world.quiet = true;
    let mut at = 0;
    let settled = until(world, 2700 * SECOND, |world| {
        at += 1;
        at % 16 == 0 && (world.unsettled().is_none() || world.is_lost())
    });
    if world.wrong.is_some() {
        return false;
    }
    if world.is_lost() {
        return true;
    }
    if !settled {
        let why = world.unsettled().unwrap_or_default();
        let state = world.describe();
        world.violate(format!("does not recover: {why}; {state}"));
        return false;
    }
    world.check_equal(false);
    world.check_snapshots();
    world.check_recopied();
    if world.may_rot() && !(world.scrub_what_rots() && whole_again(world)) {
        return world.wrong.is_none();
    }
    world.finished = true;
    world.stopped_clean = None;
    for guest in world.guests.values_mut() {
        guest.stopping = true;
    }
    until(world, 60 * SECOND, |world| world.stopped_clean.is_some());
    if world.wrong.is_none() && world.stopped_clean != Some(true) {
        let state = world.describe();
        world.violate(format!(
            "does not stop cleanly: {:?}; {state}",
            world.stopped_clean
        ));
    }
    until(world, 10 * SECOND, |_| false);
    if world.wrong.is_none() {
        world.check_clean();
    }
    false
}

/// After what died beside the last scrub. `false`: something went wrong, or the volume is lost.
fn whole_again(world: &mut World) -> bool {
    let mut at = 0;
    let settled = until(world, 2700 * SECOND, |world| {
        at += 1;
        at % 16 == 0 && (world.unsettled().is_none() || world.is_lost())
    });
    if world.wrong.is_none() && !settled {
        let state = world.describe();
        world.violate(format!("does not recover after a scrub: {state}"));
    }
    world.check_equal(false);
    world.wrong.is_none() && !world.is_lost()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn committed() -> Vec<u64> {
    SEEDS
        .lines()
        .filter_map(|line| line.split('#').next()?.trim().parse().ok())
        .collect()
}

#[test]
fn one_seed_gives_one_history() {
    let (first, second) = (run(5, true), run(5, true));
    assert!(first.log.len() > 1000, "the history is empty");
    assert_eq!(first.log, second.log);
}

/// Totals of many seeds.
#[derive(Default)]
struct Totals {
    seeds: AtomicU64,
    answered: AtomicU64,
    lost: AtomicU64,
    snapshots: AtomicU64,
    void: AtomicU64,
    recopied: AtomicU64,
    scrubs: AtomicU64,
    mended: AtomicU64,
    failed: Mutex<Vec<(u64, String)>>,
}

impl Totals {
    fn run(&self, seed: u64) {
        let outcome = run(seed, false);
        self.seeds.fetch_add(1, Ordering::Relaxed);
        self.answered.fetch_add(outcome.answered, Ordering::Relaxed);
        self.lost.fetch_add(u64::from(outcome.lost), Ordering::Relaxed);
        self.snapshots.fetch_add(outcome.snapshots.0, Ordering::Relaxed);
        self.void.fetch_add(outcome.snapshots.1, Ordering::Relaxed);
        self.recopied.fetch_add(outcome.recopied, Ordering::Relaxed);
        self.scrubs.fetch_add(outcome.scrubs.0, Ordering::Relaxed);
        self.mended.fetch_add(outcome.scrubs.1, Ordering::Relaxed);
        if let Some(wrong) = outcome.wrong {
            println!("{seed:<8}# {wrong}");
            self.failed.lock().unwrap().push((seed, wrong));
        }
    }

    /// Prints what there is to say, and the end of the history of the first seed that failed.
    fn judge(self) {
        let (seeds, answered) = (self.seeds.into_inner(), self.answered.into_inner());
        println!(
            "{seeds} seeds, {answered} requests answered, {} volumes lost with their disks",
            self.lost.into_inner()
        );
        let (snapshots, void) = (self.snapshots.into_inner(), self.void.into_inner());
        let recopied = self.recopied.into_inner();
        println!("{recopied} copies made anew");
        let (scrubs, mended) = (self.scrubs.into_inner(), self.mended.into_inner());
        println!("{snapshots} snapshots, {void} void; {scrubs} scrubs, {mended} places mended");
        let failed = self.failed.into_inner().unwrap();
        if let Some((seed, wrong)) = failed.iter().min() {
            let log = run(*seed, true).log;
            println!(
                "--- the end of the history of seed {seed}; all of it: {}",
                command(*seed)
            );
            for line in log.iter().skip(log.len().saturating_sub(150)) {
                println!("{line}");
            }
            panic!(
                "{} of {seeds} seeds fail; the first, {seed}: {wrong}",
                failed.len()
            );
        }
        assert!(answered > 10 * seeds, "hardly anything happened");
        assert!(snapshots > seeds / 3, "hardly any snapshot was made");
        assert!(recopied > seeds / 10, "hardly any copy was made anew");
        assert!(mended > seeds, "hardly anything was mended");
    }
}

fn command(seed: u64) -> String {
    format!(
        "STOR_SIM_SEED={seed} cargo test -p stor-replication --test simulation -- --ignored --nocapture history"
    )
}

/// A share of the seeds: those committed, and `STOR_SIM_SEEDS` more.
fn shard(index: u64) {
    let first = number("STOR_SIM_FIRST").unwrap_or(1);
    let count = number("STOR_SIM_SEEDS").unwrap_or(2000);
    let totals = Totals::default();
    let seeds = committed().into_iter().chain(first..first + count);
    for (_, seed) in (0..).zip(seeds).filter(|(at, _)| at % SHARDS == index) {
        totals.run(seed);
        if totals.failed.lock().unwrap().len() >= 10 {
            break;
        }
    }
    totals.judge();
}

#[test]
fn the_volume_survives_1_of_4() {
    shard(0);
}

#[test]
fn the_volume_survives_2_of_4() {
    shard(1);
}

#[test]
fn the_volume_survives_3_of_4() {
    shard(2);
}

#[test]
fn the_volume_survives_4_of_4() {
    shard(3);
}

/// Many seeds, on all processors, to the end: what fails is printed as a line for `seeds.txt`.
#[test]
#[ignore = "takes a night; see docs/testing.md"]
fn night() {
    let first = number("STOR_SIM_FIRST").unwrap_or(10_000);
    let count = number("STOR_SIM_SEEDS").unwrap_or(100_000);
    let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get) as u64;
    let threads = number("STOR_SIM_THREADS").unwrap_or(processors);
    let (totals, next) = (Totals::default(), AtomicU64::new(first));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    totals.run(seed);
                    let done = totals.seeds.load(Ordering::Relaxed);
                    if done.is_multiple_of(5000) {
                        println!("# {done} seeds");
                    }
                }
            });
        }
    });
    totals.judge();
}

/// What happened in one world.
#[test]
#[ignore = "prints the history of STOR_SIM_SEED"]
fn history() {
    let seed = number("STOR_SIM_SEED").unwrap_or(1);
    let outcome = run(seed, true);
    for line in &outcome.log {
        println!("{line}");
    }
    assert_eq!(outcome.wrong, None, "seed {seed}");
}
