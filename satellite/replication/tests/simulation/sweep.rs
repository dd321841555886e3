//! Deaths at every place: a short, calm life of a volume, once for each command that an engine or a replica
//! has carried out, with the process or the machine dead before it. Random worlds kill between events most of
//! the time; here every place where a shell could be between two commands of one step comes up.
//!
//! `STOR_SIM_STRIDE=1` takes every place (default: every 10th, beginning elsewhere for each victim).

use super::faults::Plan;
use super::rng::Rng;
use super::world::{Doom, MS, SECOND, Victim, What, World};
use super::{number, run_world};

/// A start, writes, a member that leaves and comes back; in the later lives snapshots all the time.
fn life(seed: u64, doom: Doom, trace: bool) -> World {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::calm(&mut rng);
    plan.copies = 2 + (seed % 2) as usize;
    plan.min_in_sync = 1;
    plan.begin_stale = seed % 4 >= 2;
    plan.length = 3 * SECOND;
    plan.snapshots = if seed > 4 { 100 } else { 0 };
    let mut world = World::with(rng, plan, trace);
    world.doom = Some(doom);
    world.after(SECOND, What::Kill(1, 900 * MS));
    world
}

fn sweep(who: Victim, first: u64) {
    let stride = number("STOR_SIM_STRIDE").unwrap_or(10).max(1);
    let mut runs = 0;
    for seed in 1..=6 {
        let count = |after| {
            let mut world = life(
                seed,
                Doom {
                    who,
                    after,
                    back: 700 * MS,
                },
                false,
            );
            while world.now < world.plan.length && world.step() {}
            world.doom.map_or(0, |doom| doom.after)
        };
        let places = u64::MAX - count(u64::MAX);
        assert!(places > 300, "{who:?} has only {places} commands to die before");
        for after in (1 + first % stride..=places).step_by(stride as usize) {
            let doom = Doom {
                who,
                after,
                back: 700 * MS,
            };
            runs += 1;
            let Some(wrong) = run_world(life(seed, doom, false)).wrong else {
                continue;
            };
            for line in run_world(life(seed, doom, true)).log.iter().rev().take(150).rev() {
                println!("{line}");
            }
            panic!("{who:?} of life {seed} dead before its command {after}: {wrong}");
        }
    }
    println!("{runs} deaths");
}

#[test]
fn an_engine_may_die_before_any_command() {
    sweep(Victim::Engine, 0);
}

#[test]
fn a_satellite_may_die_before_any_command() {
    sweep(Victim::Satellite, 13);
}

#[test]
fn a_machine_may_die_before_any_command() {
    sweep(Victim::Machine, 29);
}
