//! Storage nodes that are told to stop together, while a volume on one of them is used.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use stor_tests::cluster::{self, Cluster};
use stor_tests::volume::{self, Volume};
use stor_tests::writer::{OnLoss, Writer};
use stor_tests::{process, wait};

/// Asks a satellite to stop as Ctrl-C does.
fn interrupt(cluster: &Cluster, node: &str) -> anyhow::Result<()> {
    let pid = cluster.pid(node).with_context(|| format!("{node} runs"))?;
    process::signal(pid, Signal::INT, &cluster.scratch())
}

/// The replicas stay until the engines that use them have drained: nobody is taken out of the set for being stopped.
#[test]
fn a_node_that_stops_serves_engines_on_others_until_they_have_drained() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.medium(&volume.attach("s1", "socket", false)?)?;
        let writer = Writer::start(&medium, OnLoss::End)?;
        writer.wait_for(200)?;
        let before = volume.shown()?;
        interrupt(cluster, "s2")?;
        // Less than an engine waits for a replica that is gone, more than a satellite takes to close it.
        std::thread::sleep(Duration::from_millis(300));
        interrupt(cluster, "s1")?;
        let history = writer.ended()?;
        wait::until(wait::LONG, "both have ended", || {
            Ok(cluster.pid("s1").is_none() && cluster.pid("s2").is_none())
        })?;
        let after = volume.shown()?;
        ensure!(
            after.config == before.config,
            "the in-sync set was changed: {before:?}\n{after:?}"
        );
        for node in ["s1", "s2"] {
            let said = cluster.log(node);
            ensure!(!said.contains("left as by a kill"), "{node}: {said}");
        }
        cluster.start_again(&["s1", "s2"])?;
        // What was reported before they stopped is believed for a while.
        wait::until(wait::LONG, "it has the next engine", || {
            Ok(volume.shown()?.epoch > before.epoch)
        })?;
        let medium = volume.medium(&volume.wait_attached("s1")?)?;
        let shown = volume.wait_in_sync()?;
        ensure!(shown.config == before.config, "{shown:?}");
        cluster.wait_healthy()?;
        volume.closes_well("s1", &medium, history)
    })
}
