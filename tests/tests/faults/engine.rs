//! The engine killed under load: the next one has a later epoch, and clients go on.

use std::path::Path;

use anyhow::{Context as _, ensure};
use stor_tests::cluster::{self, CLIENT, Cluster};
use stor_tests::volume::{self, Volume};
use stor_tests::writer::{OnLoss, Writer};
use stor_tests::{process, skip, wait};

/// Engines killed in a row.
const KILLS: usize = 3;

/// Kills the engine and waits for the next one.
fn kill_engine(cluster: &Cluster, volume: Volume<'_>) -> anyhow::Result<()> {
    let before = (volume.engine(CLIENT)?, volume.attachment(CLIENT)?);
    process::kill(before.0, &cluster.dir())?;
    wait::that(wait::LONG, "the next engine serves", || {
        let now = volume.wait_attached(CLIENT)?;
        Ok(if now.epoch > before.1.epoch {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        })
    })?;
    ensure!(volume.engine(CLIENT)? != before.0, "the engine lives on");
    let now = volume.attachment(CLIENT)?;
    ensure!(
        (&now.nbd_uri, &now.device) == (&before.1.nbd_uri, &before.1.device),
        "{:?} became {now:?}",
        before.1
    );
    Ok(())
}

#[test]
fn clients_of_a_killed_engine_s_socket_reconnect_and_go_on() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::Reconnect)?;
        for _ in 0..KILLS {
            writer.wait_for(300)?;
            kill_engine(cluster, volume)?;
        }
        writer.wait_for(300)?;
        ensure!(writer.reconnects() > 0, "nobody noticed");
        println!("longest wait {:?}", writer.longest());
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}

#[test]
fn a_device_goes_on_without_an_error_when_its_engine_is_killed() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        if let Some(missing) = skip::without_transport(cluster, CLIENT, "fuse")? {
            skip::skipped("a device whose engine is killed", &missing);
            return Ok(());
        }
        // Devices of all clusters of a machine are in one directory.
        let name = format!("t{}", std::process::id());
        let volume = Volume::create(cluster, &name, volume::SIZE, &["s1", "s2"])?;
        let medium = volume.medium(&volume.attach(CLIENT, "fuse", false)?)?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        for _ in 0..KILLS {
            writer.wait_for(300)?;
            kill_engine(cluster, volume)?;
        }
        writer.wait_for(300)?;
        println!("longest wait {:?}", writer.longest());
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}

#[test]
fn a_device_goes_on_without_an_error_when_the_agent_is_killed_and_then_its_engine() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        if let Some(missing) = skip::without_transport(cluster, CLIENT, "fuse")? {
            skip::skipped("a device whose agent and engine are killed", &missing);
            return Ok(());
        }
        let name = format!("t{}", std::process::id());
        let volume = Volume::create(cluster, &name, volume::SIZE, &["s1", "s2"])?;
        let medium = volume.medium(&volume.attach(CLIENT, "fuse", false)?)?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        writer.wait_for(300)?;
        cluster.kill(&[CLIENT])?;
        writer.wait_for(300)?;
        cluster.start_again(&[CLIENT])?;
        // Until the engine has given it the connection, the engine is the only one who holds it.
        wait::until(wait::LONG, "the agent has the connection back", || {
            let agent = cluster.pid(CLIENT).context("the agent does not run")?;
            Ok(process::has_open(agent, Path::new("/dev/fuse")))
        })?;
        kill_engine(cluster, volume)?;
        writer.wait_for(300)?;
        println!("longest wait {:?}", writer.longest());
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}
