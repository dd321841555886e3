//! Faults of all kinds for minutes on a cluster of machines of its own, under clients whose whole history is
//! judged.
//!
//! `STOR_FAULTS_MINUTES` plays round after round for that long, `STOR_FAULTS_SEED` begins with another seed.

#![allow(clippy::print_stdout)]

mod split;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use stor_tests::cluster::{self, Cluster};
use stor_tests::nemesis::{Report, Round};
use stor_tests::network::Network;
use stor_tests::skip;

/// Faults of the only round when nothing else was asked for.
const SHORT: Duration = Duration::from_mins(1);
/// Faults of each of many rounds.
const LONG: Duration = Duration::from_secs(150);
/// Of the short round.
const SEED: u64 = 1;

fn number(variable: &str) -> anyhow::Result<Option<u64>> {
    let Some(text) = std::env::var_os(variable) else {
        return Ok(None);
    };
    let text = text.to_string_lossy().into_owned();
    let number = text.parse().with_context(|| format!("{variable}={text}"));
    number.map(Some)
}

#[test]
fn one_history_under_faults_of_all_kinds() -> anyhow::Result<()> {
    if let Some(missing) = Network::missing() {
        skip::skipped("faults between machines", &missing);
        return Ok(());
    }
    if let Some(missing) = Cluster::without_clocks() {
        skip::skipped("jumps of wall clocks", &missing);
    }
    let seed = number("STOR_FAULTS_SEED")?.unwrap_or(SEED);
    let minutes = number("STOR_FAULTS_MINUTES")?;
    let end = Instant::now() + Duration::from_mins(minutes.unwrap_or(0));
    let length = if minutes.is_some() { LONG } else { SHORT };
    cluster::with_machines(|cluster| {
        let (mut faults, mut answered, mut operations) = (0, 0, 0);
        for number in 0.. {
            let round = Round {
                seed: seed + u64::from(number),
                length,
                number,
            };
            let report: Report = round.play(cluster)?;
            println!("round {number}: {report}\n");
            faults += report.faults;
            answered += report.answered;
            operations += report.operations.0;
            if Instant::now() >= end {
                println!(
                    "{} rounds: {faults} faults, {answered} requests answered, {operations} operations on blocks, no \
                     violation",
                    number + 1
                );
                break;
            }
        }
        Ok(())
    })
}
