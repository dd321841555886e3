//! Looks for what catches each defect, and writes the table.

use std::panic;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use stor_replication::defect::{Defect, switch};

use super::simulation;
use super::table::{Caught, failing, write};

/// The first of `seeds` that goes wrong with the defect on, and how.
pub(crate) fn first_wrong(defect: Defect, seeds: impl Iterator<Item = u64>) -> Option<(u64, String)> {
    let seeds: Vec<u64> = seeds.collect();
    let (next, limit) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let found = Mutex::new(Vec::new());
    panic::set_hook(Box::new(|_| {}));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                switch(Some(defect));
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(seed) = usize::try_from(index).ok().and_then(|at| seeds.get(at)) else {
                        return;
                    };
                    if index > limit.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Some(wrong) = simulation::run(*seed, false).wrong {
                        limit.fetch_min(index, Ordering::Relaxed);
                        found.lock().unwrap().push((index, *seed, wrong));
                    }
                }
            });
        }
    });
    drop(panic::take_hook());
    let found = found.into_inner().unwrap();
    found.into_iter().min().map(|(_, seed, wrong)| (seed, wrong))
}

/// `STOR_MUTATION_SEEDS` (2000): how many seeds each gets. `STOR_MUTATION`: only these, with commas between; the
/// other lines of the table stay.
#[test]
#[ignore = "takes long; makes the table of the document"]
#[expect(
    clippy::disallowed_methods,
    reason = "how long each takes is told to whoever waits"
)]
fn make_the_table() {
    let seeds = std::env::var("STOR_MUTATION_SEEDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(2000);
    let only = std::env::var("STOR_MUTATION").ok();
    let chosen = |defect: &&Defect| {
        only.as_deref()
            .is_none_or(|only| only.split(',').any(|name| name == defect.name()))
    };
    let mut found = Vec::new();
    for defect in Defect::ALL.iter().filter(chosen) {
        let begun = std::time::Instant::now();
        let tests = failing(*defect, &["invariants::", "formats::"]);
        let seed = first_wrong(*defect, 1..=seeds);
        let taken = begun.elapsed().as_secs();
        println!(
            "{} {}: {} tests, {seed:?} ({taken} s)",
            defect.rule(),
            defect.name(),
            tests.len()
        );
        found.push((*defect, Caught { tests, seed }));
    }
    write(&found);
    let missed: Vec<&str> = found
        .iter()
        .filter(|(_, caught)| caught.tests.is_empty() && caught.seed.is_none())
        .map(|(defect, _)| defect.name())
        .collect();
    assert!(missed.is_empty(), "caught by nothing: {missed:?}");
}
