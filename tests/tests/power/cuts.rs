//! All machines lose their power, again and again, under clients that flush often, seldom and never.

use anyhow::Context as _;
use stor_tests::cluster::CLIENT;
use stor_tests::lossy::chance::{Chance, Keeps};
use stor_tests::medium::Medium;
use stor_tests::volume::{self, Volume};
use stor_tests::{lossy, skip};

use super::catalogue::{self, Clerk, Told};
use super::ledger::Ledger;
use super::load::{self, Load};
use super::machines::{self, Machines};

/// Cuts of a run that was not told otherwise.
const CUTS: u64 = 4;
/// How many cuts, for a longer run.
const CUTS_SET: &str = "STOR_POWER_CUTS";
/// The first seed, to see a run again.
const SEED_SET: &str = "STOR_POWER_SEED";

fn number(name: &str) -> anyhow::Result<Option<u64>> {
    let text = std::env::var(name).ok();
    text.map(|text| text.parse().with_context(|| format!("{name}={text}")))
        .transpose()
}

/// What the clients of a volume and of the controllers were told.
struct Known {
    ledgers: Vec<Ledger>,
    told: Told,
}

/// Runs a test on machines of its own.
fn with(name: &str, test: impl FnOnce(&mut Machines) -> anyhow::Result<()>) -> anyhow::Result<()> {
    if let Some(missing) = lossy::missing() {
        skip::skipped(name, &missing);
        return Ok(());
    }
    let mut machines = Machines::start()?;
    let done = test(&mut machines);
    if done.is_err() {
        machines.cluster.keep_logs();
    }
    done
}

/// Works for a while, and cuts the power of everything.
fn work_and_cut(
    machines: &mut Machines,
    medium: &Medium,
    known: Known,
    chance: &mut Chance,
    seed: u64,
) -> anyhow::Result<Known> {
    let clerk = Clerk::start(&machines.cluster, known.told)?;
    let load = Load::start(medium, known.ledgers, seed)?;
    load.wait_for(100 + chance.below(900))?;
    let lost = machines.cut(&machines::all(), chance)?;
    let answered = load.answered();
    let ledgers = load.ended()?;
    let told = clerk.stop()?;
    println!(
        "seed {seed}: {answered} requests and {} changes answered; {:?}: {} blocks and {} names lost",
        told.answered(),
        chance.keeps(),
        lost.blocks,
        lost.names
    );
    Ok(Known { ledgers, told })
}

/// Everything is on again: what is there, is it what it has to be?
fn check(machines: &Machines, volume: Volume<'_>, known: &mut Known) -> anyhow::Result<Medium> {
    let attached = volume
        .wait_attached(CLIENT)
        .and_then(|attachment| volume.medium(&attachment));
    machines.all_run()?;
    let medium = attached?;
    load::check(&medium, &mut known.ledgers, true)?;
    known.told.check(&machines.cluster)?;
    Ok(medium)
}

fn run(machines: &mut Machines, nodes: &[&str], seeds: std::ops::Range<u64>) -> anyhow::Result<()> {
    let made = Volume::create(&machines.cluster, "db1", volume::SIZE, nodes)?;
    let mut medium = made.attach_socket()?;
    let mut known = Known {
        ledgers: load::nothing_written(),
        told: Told::default(),
    };
    for seed in seeds {
        let mut chance = Chance::new(seed);
        known = work_and_cut(machines, &medium, known, &mut chance, seed)?;
        machines.boot(&machines::all())?;
        if chance.below(3) == 0 {
            // Again, while everything still comes back.
            std::thread::sleep(std::time::Duration::from_millis(chance.below(4000)));
            let lost = machines.cut(&machines::all(), &mut chance)?;
            println!(
                "seed {seed}: again while coming back, {} blocks and {} names lost",
                lost.blocks, lost.names
            );
            machines.boot(&machines::all())?;
        }
        let volume = Volume::of(&machines.cluster, "db1");
        medium = check(machines, volume, &mut known).with_context(|| format!("seed {seed}"))?;
    }
    let volume = Volume::of(&machines.cluster, "db1");
    volume.wait_in_sync()?;
    load::check(&medium, &mut known.ledgers, false)?;
    known.told.settle(&machines.cluster)?;
    machines.cluster.wait_healthy()?;
    catalogue::are_equal(&machines.cluster)?;
    volume.detach(CLIENT)?;
    volume.copies_are_equal()
}

#[test]
fn nothing_flushed_is_lost_when_all_power_goes_again_and_again() -> anyhow::Result<()> {
    with("power cuts of everything", |machines| {
        let first = number(SEED_SET)?.unwrap_or(1);
        let cuts = number(CUTS_SET)?.unwrap_or(CUTS);
        run(machines, &["s1", "s2"], first..first + cuts)
    })
}

/// One machine at a time, in turn: as long as another has kept its power, nothing acknowledged is lost at all.
#[test]
fn nothing_acknowledged_is_lost_while_one_machine_keeps_its_power() -> anyhow::Result<()> {
    with("power cuts of single machines", |machines| {
        let first = number(SEED_SET)?.unwrap_or(1);
        let cuts = number(CUTS_SET)?.unwrap_or(CUTS);
        Volume::create(&machines.cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = Volume::of(&machines.cluster, "db1").attach_socket()?;
        let load = Load::start(&medium, load::nothing_written(), first)?;
        for seed in first..first + cuts {
            let mut chance = Chance::new(seed);
            load.wait_for(load.answered() + 200 + chance.below(400))?;
            let machine = if chance.coin() { ["s1", "c1"] } else { ["s2", "c2"] };
            let lost = machines.cut(&machine, &mut chance)?;
            println!(
                "seed {seed}: {machine:?} off, {} blocks and {} names lost",
                lost.blocks, lost.names
            );
            if chance.coin() {
                // Longer than it takes to be missed.
                load.wait_for(load.answered() + 200)?;
            }
            machines.boot(&machine)?;
            load.wait_for(load.answered() + 100)?;
            let volume = Volume::of(&machines.cluster, "db1");
            volume.wait_in_sync().with_context(|| format!("seed {seed}"))?;
            machines.all_run()?;
        }
        let volume = Volume::of(&machines.cluster, "db1");
        let mut ledgers = load.stop()?;
        load::check(&medium, &mut ledgers, false)?;
        machines.cluster.wait_healthy()?;
        catalogue::are_equal(&machines.cluster)?;
        volume.detach(CLIENT)?;
        volume.copies_are_equal()
    })
}

/// Disks that say "durable" too early must be found out, or the tests above would find nothing either.
#[test]
fn a_flush_that_does_not_flush_is_found_out() -> anyhow::Result<()> {
    with("power cuts of disks that lie", |machines| {
        Volume::create(&machines.cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = Volume::of(&machines.cluster, "db1").attach_socket()?;
        for name in ["s1", "s2"] {
            machines.disk(name)?.lie_about(&[".data"]);
        }
        let mut known = Known {
            ledgers: load::nothing_written(),
            told: Told::default(),
        };
        let mut chance = Chance::keeping(1, Keeps::Nothing);
        known = work_and_cut(machines, &medium, known, &mut chance, 1)?;
        for name in ["s1", "s2"] {
            machines.disk(name)?.lie_about(&[]);
        }
        machines.boot(&machines::all())?;
        let volume = Volume::of(&machines.cluster, "db1");
        let found = check(machines, volume, &mut known);
        let error = format!("{:#}", found.err().context("lost writes were not noticed")?);
        println!("{}", error.lines().take(3).collect::<Vec<_>>().join("\n"));
        anyhow::ensure!(error.contains("violation"), "another failure: {error}");
        Ok(())
    })
}

/// The same for the controllers: their log says that it is durable, and is not.
#[test]
fn a_log_that_is_not_durable_is_found_out() -> anyhow::Result<()> {
    with("controllers on disks that lie", |machines| {
        for name in ["c1", "c2", "c3"] {
            machines.disk(name)?.lie_about(&["log.db", "log.db-wal"]);
        }
        let clerk = Clerk::start(&machines.cluster, Told::default())?;
        std::thread::sleep(std::time::Duration::from_secs(2));
        machines.cut(&machines::all(), &mut Chance::keeping(1, Keeps::Nothing))?;
        let mut told = clerk.stop()?;
        anyhow::ensure!(told.answered() > 0, "nothing was done");
        machines.boot(&machines::all())?;
        std::thread::sleep(std::time::Duration::from_secs(1));
        let found = machines.all_run().and_then(|()| told.check(&machines.cluster));
        let error = format!("{:#}", found.err().context("a lost log was not noticed")?);
        println!("{error}");
        Ok(())
    })
}
