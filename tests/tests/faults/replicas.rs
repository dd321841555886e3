//! Replicas that hang, that come back without what they had not yet flushed, or that missed the last word.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use stor_tests::cluster::{self, CLIENT, CONTROLLERS, Cluster, STORAGE};
use stor_tests::volume::{self, Volume};
use stor_tests::writer::{OnLoss, Writer};
use stor_tests::{process, skip, wait};

#[test]
fn a_replica_that_hangs_is_taken_out_and_comes_back_when_it_goes_on() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        writer.wait_for(200)?;
        let hanging = cluster.pid("s2").context("s2 does not run")?;
        process::pause(hanging, &cluster.dir())?;
        writer.wait_for(200)?;
        println!("s2 hangs: longest wait {:?}", writer.longest());
        volume.wait_member("s2", false)?;
        process::resume(hanging, &cluster.dir())?;
        volume.wait_in_sync()?;
        writer.wait_for(200)?;
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}

/// Starts a storage node as after a power cut: what its disks had not written is taken for lost.
fn start_without_cache(cluster: &Cluster, node: &str, boot: &str) -> anyhow::Result<()> {
    let script = cluster.dir().join("run").join(format!("{node}.start"));
    let output = Command::new(&script).env("STOR_TEST_CACHE_ID", boot).output()?;
    ensure!(output.status.success(), "{}: {output:?}", script.display());
    wait::until(wait::LONG, &format!("{node} runs"), || {
        Ok(cluster.pid(node).is_some())
    })
}

#[test]
fn a_replica_that_lost_its_cache_is_not_believed() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        for (round, node) in ["s2", "s1"].into_iter().enumerate() {
            writer.wait_for(200)?;
            // Back at once, so that it need not be missed: only its word says that it lost something.
            cluster.kill(&[node])?;
            start_without_cache(cluster, node, &format!("boot-{round}"))?;
            writer.wait_for(200)?;
            println!("{node} without its cache: longest wait {:?}", writer.longest());
            volume.wait_in_sync()?;
        }
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}

#[test]
fn a_replica_that_missed_the_last_writes_is_never_served_alone() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        writer.wait_for(200)?;
        cluster.kill(&["s2"])?;
        writer.wait_for(200)?;
        volume.wait_member("s2", false)?;
        let mut history = writer.stop()?;
        volume.detach(CLIENT)?;

        cluster.kill(&["s1"])?;
        cluster.start_again(&["s2"])?;
        let why = volume.is_not_served(CLIENT, Duration::from_secs(6))?;
        println!("not served: {why}");
        ensure!(why.contains("s1"), "it does not name who is missing: {why}");
        cluster.start_again(&["s1"])?;
        let medium = volume.medium(&volume.attach(CLIENT, "socket", false)?)?;
        volume.holds(&medium, &mut history)?;
        volume.closes_well(CLIENT, &medium, history)
    })
}

#[test]
fn an_engine_and_a_replica_killed_together_lose_nothing() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::Reconnect)?;
        writer.wait_for(200)?;
        let engine = volume.engine(CLIENT)?;
        cluster.kill(&["s1"])?;
        process::kill(engine, &cluster.dir())?;
        writer.wait_for(200)?;
        println!("the engine and s1 off: longest wait {:?}", writer.longest());
        volume.wait_member("s1", false)?;
        cluster.start_again(&["s1"])?;
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}

/// Daemons of the whole cluster.
fn daemons() -> Vec<&'static str> {
    let all = CONTROLLERS.iter().chain(&STORAGE).chain([&CLIENT]);
    all.copied().collect()
}

/// All machines lose their power while a device is in use: its users are gone with them, and the device is there
/// again, with all that was flushed.
#[test]
fn a_device_is_there_again_after_a_power_cut_of_everything() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        if let Some(missing) = skip::without_transport(cluster, CLIENT, "fuse")? {
            skip::skipped("a device after a power cut", &missing);
            return Ok(());
        }
        let name = format!("t{}", std::process::id());
        let volume = Volume::create(cluster, &name, volume::SIZE, &["s1", "s2"])?;
        let medium = volume.medium(&volume.attach(CLIENT, "fuse", false)?)?;
        let writer = Writer::start(&medium, OnLoss::End)?;
        writer.wait_for(300)?;
        let engine = volume.engine(CLIENT)?;
        cluster.kill(&daemons())?;
        process::kill(engine, &cluster.dir())?;
        let mut history = writer.ended()?;
        cluster.start_again(&CONTROLLERS)?;
        for node in STORAGE {
            // The files are all there: that what was not flushed is lost is only what the replicas say.
            start_without_cache(cluster, node, "after-the-cut")?;
        }
        cluster.start_again(&[CLIENT])?;
        cluster.wait_healthy()?;
        let medium = volume.medium(&volume.wait_attached(CLIENT)?)?;
        volume.holds(&medium, &mut history)?;
        let writer = Writer::go_on(&medium, OnLoss::Fail, history)?;
        writer.wait_for(300)?;
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}

#[test]
fn everything_killed_at_once_comes_back_with_all_that_was_acknowledged() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::Reconnect)?;
        writer.wait_for(300)?;
        let daemons = daemons();
        let engine = volume.engine(CLIENT)?;
        cluster.kill(&daemons)?;
        process::kill(engine, &cluster.dir())?;
        cluster.start_again(&daemons)?;
        writer.wait_for(300)?;
        println!("everything off and on: longest wait {:?}", writer.longest());
        cluster.wait_healthy()?;
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}
