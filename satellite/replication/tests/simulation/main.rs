//! The real state machines in a hostile world, decided by one number.
//!
//! Each seed makes its own world: two or three replicas, engines that crash, pause and are superseded,
//! machines that lose what was not flushed, a network that stalls and breaks, a catalogue that is slow to
//! answer. While it lasts an oracle judges every read; afterwards everything is healed and the volume must
//! become whole again, serve, and stop cleanly.
//!
//! `STOR_SIM_SEEDS=n` runs n seeds from `STOR_SIM_FIRST` (default: 1500, about a minute); `STOR_SIM_SEED=n` runs
//! one and prints its history. A seed that once failed is a line in `seeds.txt` and always runs first.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a test"
)]

mod checks;
mod disk;
mod engines;
mod faults;
mod net;
mod oracle;
mod owner;
mod replicas;
mod rng;
mod trace;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use world::{SECOND, World};

/// Lines of history kept.
pub(crate) const TAIL: usize = 200_000;
const SEEDS: &str = include_str!("seeds.txt");

struct Outcome {
    wrong: Option<String>,
    answered: u64,
    lost: bool,
    log: Vec<String>,
}

fn run(seed: u64, trace: bool) -> Outcome {
    let mut world = World::new(seed, trace);
    let mut lost = false;
    let result = catch_unwind(AssertUnwindSafe(|| lost = scenario(&mut world)));
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
        log: world.log.into_iter().flatten().collect(),
    }
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

#[test]
fn the_volume_survives() {
    if let Some(seed) = number("STOR_SIM_SEED") {
        let outcome = run(seed, true);
        for line in &outcome.log {
            println!("{line}");
        }
        assert_eq!(outcome.wrong, None, "seed {seed}");
        return;
    }
    std::panic::set_hook(Box::new(|_| {}));
    let first = number("STOR_SIM_FIRST").unwrap_or(1);
    let count = number("STOR_SIM_SEEDS").unwrap_or(1500);
    let seeds: Vec<u64> = committed().into_iter().chain(first..first + count).collect();
    let next = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    let (answered, lost) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(seed) = usize::try_from(index).ok().and_then(|index| seeds.get(index)) else {
                        return;
                    };
                    let outcome = run(*seed, false);
                    answered.fetch_add(outcome.answered, Ordering::Relaxed);
                    lost.fetch_add(u64::from(outcome.lost), Ordering::Relaxed);
                    if let Some(wrong) = outcome.wrong {
                        let mut failed = failed.lock().unwrap();
                        failed.push((*seed, wrong));
                        if failed.len() >= 20 {
                            next.store(u64::MAX / 2, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    drop(std::panic::take_hook());
    let failed = failed.into_inner().unwrap();
    println!(
        "{} seeds, {answered:?} requests answered, {lost:?} volumes lost with their disks",
        seeds.len()
    );
    for (seed, wrong) in &failed {
        println!("seed {seed}: {wrong}");
    }
    if let Some((seed, _)) = failed.first() {
        let tail = run(*seed, true).log;
        println!("--- the end of the history of seed {seed}; all of it: STOR_SIM_SEED={seed}");
        for line in tail.iter().skip(tail.len().saturating_sub(150)) {
            println!("{line}");
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {} seeds fail",
        failed.len(),
        seeds.len()
    );
    assert!(
        answered.into_inner() > 10 * seeds.len() as u64,
        "hardly anything happened"
    );
}
