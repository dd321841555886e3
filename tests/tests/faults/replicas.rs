//! Replicas that hang, that come back without what they had not yet flushed, or that missed the last word.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use stor_api::objects::{AttachmentState, ReplicaState, VolumeState};
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

/// With three replicas two must have every write: with one left, I/O waits rather than trust to it alone.
#[test]
fn io_waits_below_the_least_number_of_replicas() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &STORAGE)?;
        ensure!(volume.shown()?.min_in_sync == 2, "{:?}", volume.shown()?);
        let medium = volume.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        writer.wait_for(200)?;
        cluster.kill(&["s3"])?;
        writer.wait_for(200)?;
        volume.wait_member("s3", false)?;
        println!("s3 off: longest wait {:?}", writer.longest());
        cluster.kill(&["s2"])?;
        std::thread::sleep(Duration::from_secs(1));
        writer.has_to_wait(Duration::from_secs(4))?;
        let shown = volume.shown()?;
        println!("s2 and s3 off: {:?} {}", shown.state, shown.reason);
        ensure!(shown.state == VolumeState::Suspended, "{shown:?}");
        cluster.start_again(&["s2"])?;
        writer.wait_for(200)?;
        cluster.start_again(&["s3"])?;
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}

/// A resync that is cut off again and again, at either end, comes to its end all the same.
#[test]
fn a_resync_that_is_interrupted_goes_on() -> anyhow::Result<()> {
    const BIG: u64 = 256 << 20;
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", BIG, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        cluster.kill(&["s2"])?;
        let history = volume.fill(&medium, 48 << 10)?;
        volume.wait_member("s2", false)?;
        let writer = Writer::go_on(&medium, OnLoss::Reconnect, history)?;
        for interruption in 0..2 {
            cluster.start_again(&["s2"])?;
            let state = wait::that(wait::LONG, "s2 is being brought up to date", || {
                let shown = volume.shown()?;
                let replica = shown.replicas.iter().find(|r| r.node == "s2");
                let state = replica.map(|r| r.state);
                Ok(match state {
                    Some(state @ (ReplicaState::Syncing | ReplicaState::InSync)) => Ok(state),
                    other => Err(format!("{other:?}")),
                })
            })?;
            println!("interruption {interruption}: s2 was {state:?}");
            let engine = volume.engine(CLIENT)?;
            process::kill(engine, &cluster.dir())?;
            if interruption == 0 {
                cluster.kill(&["s2"])?;
            }
            writer.wait_for(200)?;
        }
        println!("longest wait {:?}", writer.longest());
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}

/// The engine and both replicas end at once, and only the device's users live on. What the replicas of `lost`
/// had not flushed is gone, they say.
fn engine_and_replicas_restart(cluster: &Cluster, volume: Volume<'_>, lost: &[&str]) -> anyhow::Result<()> {
    let engine = volume.engine(CLIENT)?;
    cluster.kill(&["s1", "s2"])?;
    process::kill(engine, &cluster.dir())?;
    for node in ["s1", "s2"] {
        if lost.contains(&node) {
            start_without_cache(cluster, node, "after-the-cut")?;
        } else {
            cluster.start_again(&[node])?;
        }
    }
    Ok(())
}

#[test]
fn of_two_replicas_the_one_that_kept_its_cache_is_believed() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        if let Some(missing) = skip::without_transport(cluster, CLIENT, "fuse")? {
            skip::skipped("a device whose replica lost its cache", &missing);
            return Ok(());
        }
        let name = format!("t{}", std::process::id());
        let volume = Volume::create(cluster, &name, volume::SIZE, &["s1", "s2"])?;
        let medium = volume.medium(&volume.attach(CLIENT, "fuse", false)?)?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        writer.wait_for(300)?;
        engine_and_replicas_restart(cluster, volume, &["s1"])?;
        writer.wait_for(300)?;
        println!("longest wait {:?}", writer.longest());
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}

/// A guest that lives on must not be told that a later flush vouches for what is gone: its device fails, until it
/// is opened anew.
#[test]
fn a_device_fails_when_every_replica_lost_its_cache_under_a_living_guest() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        if let Some(missing) = skip::without_transport(cluster, CLIENT, "fuse")? {
            skip::skipped("a device whose replicas all lost their caches", &missing);
            return Ok(());
        }
        let name = format!("t{}", std::process::id());
        let volume = Volume::create(cluster, &name, volume::SIZE, &["s1", "s2"])?;
        let medium = volume.medium(&volume.attach(CLIENT, "fuse", false)?)?;
        let writer = Writer::start(&medium, OnLoss::End)?;
        writer.wait_for(300)?;
        engine_and_replicas_restart(cluster, volume, &["s1", "s2"])?;
        // Every request under way ends with an error, and none is acknowledged.
        let mut history = writer.ended()?;
        let attachment = volume.attachment(CLIENT)?;
        println!("{:?}: {}", attachment.state, attachment.reason);
        ensure!(attachment.state == AttachmentState::Failed, "{attachment:?}");
        volume.detach(CLIENT)?;
        let medium = volume.medium(&volume.attach(CLIENT, "fuse", false)?)?;
        volume.holds(&medium, &mut history)?;
        volume.closes_well(CLIENT, &medium, history)
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
