//! Replicas that move under a client that never stops writing, while nodes and controllers die; volumes that grow.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, ensure};
use stor_api::objects::NodeState;
use stor_tests::cluster::{self, CLIENT, Cluster};
use stor_tests::volume::{self, Volume};
use stor_tests::wait;
use stor_tests::writer::{OnLoss, Writer};

fn ask(cluster: &Cluster, args: &[&str]) -> anyhow::Result<String> {
    let (status, said, complained) = cluster.storctl(args)?;
    ensure!(status == 0, "storctl {args:?}: {status}: {said}{complained}");
    Ok(said)
}

/// A volume on s1 and s2 that may be on s3, too.
fn on_two(cluster: &Cluster) -> anyhow::Result<Volume<'_>> {
    let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
    ask(
        cluster,
        &["pool", "set", "sp01", "--node", "s3", "--tag", "for-db1"],
    )?;
    Ok(volume)
}

/// Waits until the volume's replicas are on these nodes and in sync.
fn is_on(volume: &Volume<'_>, nodes: &[&str]) -> anyhow::Result<()> {
    wait::that(wait::LONG, &format!("replicas on {nodes:?}"), || {
        let shown = volume.shown().map_err(|error| error.to_string());
        Ok(shown.and_then(|shown| {
            let mut on: Vec<&str> = shown.replicas.iter().map(|one| one.node.as_str()).collect();
            on.sort_unstable();
            let all = shown.replicas.iter().all(|one| one.in_sync);
            if on == nodes && all {
                Ok(())
            } else {
                Err(format!("{:?}", shown.replicas))
            }
        }))
    })
}

/// No files of the volume are left on a node.
fn is_gone(cluster: &Cluster, volume: &Volume<'_>, node: &str) -> anyhow::Result<()> {
    let place = cluster.dir().join(node).join("pool").join(volume.shown()?.id);
    wait::until(wait::LONG, &format!("{} is gone", place.display()), || {
        Ok(!place.exists())
    })
}

#[test]
fn a_replica_moves_while_those_who_carry_it_out_die() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = on_two(cluster)?;
        let medium = volume.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        writer.wait_for(200)?;
        let args = [
            "replica",
            "move",
            "db1",
            "--from",
            "s1",
            "--to",
            "s3",
            "--no-wait",
        ];
        ask(cluster, &args)?;
        // Whichever step it has come to: asked again it is the same move.
        cluster.kill(&["s3"])?;
        let leader = cluster.leader()?;
        cluster.kill(&[&leader])?;
        writer.wait_for(100)?;
        ask(cluster, &["replica", "list", "db1"])?;
        cluster.start_again(&["s3", &leader])?;
        is_on(&volume, &["s2", "s3"])?;
        is_gone(cluster, &volume, "s1")?;
        writer.wait_for(200)?;
        println!("moved: longest wait {:?}", writer.longest());
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}

#[test]
fn a_node_is_drained_and_used_again() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let used = on_two(cluster)?;
        let medium = used.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        ask(cluster, &["volume", "create", "idle", "16Mi", "--replicas", "2"])?;
        writer.wait_for(200)?;
        let plan = ask(cluster, &["node", "drain", "s1", "--dry-run"])?;
        ensure!(
            plan.contains("move the replica of volume db1 from s1 to s3"),
            "{plan}"
        );
        ask(cluster, &["node", "drain", "s1"])?;
        is_on(&used, &["s2", "s3"])?;
        is_gone(cluster, &used, "s1")?;
        // Nothing new goes there, and the reason says so.
        let (status, said, why) = cluster.storctl(&["volume", "create", "x3", "16Mi", "--replicas", "3"])?;
        ensure!(status != 0 && why.contains("being drained"), "{said}{why}");
        ask(cluster, &["node", "undrain", "s1"])?;
        ask(cluster, &["volume", "create", "x3", "16Mi", "--replicas", "3"])?;
        used.closes_well(CLIENT, &medium, writer.stop()?)
    })
}

#[test]
fn what_was_on_a_lost_node_is_replaced() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let used = on_two(cluster)?;
        let medium = used.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        writer.wait_for(200)?;
        let (status, _, why) = cluster.storctl(&["node", "lost", "s1", "--yes"])?;
        ensure!(status == 4 && why.contains("is connected"), "{why}");
        cluster.kill(&["s1"])?;
        cluster.wait_node("s1", NodeState::Offline)?;
        ask(cluster, &["node", "lost", "s1", "--yes"])?;
        is_on(&used, &["s2", "s3"])?;
        cluster.start_again(&["s1"])?;
        is_gone(cluster, &used, "s1")?;
        writer.wait_for(200)?;
        used.closes_well(CLIENT, &medium, writer.stop()?)
    })
}

#[test]
fn a_detached_volume_moves_and_stays_thin() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = on_two(cluster)?;
        ask(cluster, &["replica", "move", "db1", "--from", "s2", "--to", "s3"])?;
        is_on(&volume, &["s1", "s3"])?;
        let allocated = |node| -> anyhow::Result<u64> {
            let (data, _) = volume.files(node)?;
            Ok(fs::metadata(&data)
                .with_context(|| data.display().to_string())?
                .blocks()
                * 512)
        };
        let (from, to) = (allocated("s1")?, allocated("s3")?);
        println!("allocated: {from} on s1, {to} on s3 of {} bytes", volume::SIZE);
        ensure!(to <= from + (64 << 10), "the copy of nothing takes {to} bytes");
        volume.copies_are_equal()
    })
}

#[test]
fn a_volume_grows_while_a_node_and_the_leader_die() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = on_two(cluster)?;
        let medium = volume.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        writer.wait_for(200)?;
        let larger = volume::SIZE * 2;
        let size = larger.to_string();
        cluster.kill(&["s2"])?;
        ask(cluster, &["volume", "resize", "db1", &size, "--no-wait"])?;
        let leader = cluster.leader()?;
        cluster.kill(&[&leader])?;
        cluster.start_again(&[&leader, "s2"])?;
        ask(cluster, &["volume", "resize", "db1", &size])?;
        volume.wait_in_sync()?;
        for node in ["s1", "s2"] {
            let (data, _) = volume.files(node)?;
            ensure!(fs::metadata(&data)?.len() == larger, "{}", data.display());
        }
        let (status, _, why) = cluster.storctl(&["volume", "resize", "db1", "1Mi"])?;
        ensure!(status != 0 && why.contains("can't be made smaller"), "{why}");
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}
