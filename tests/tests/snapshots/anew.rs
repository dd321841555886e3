//! Copies of snapshots made anew: for a replica that was away, for one that took another's place; and none vanishes
//! with the replica it was made for.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use stor_api::objects::{RestoreSpec, Snapshot, SnapshotCopyState};
use stor_tests::cluster::{CLIENT, Cluster};
use stor_tests::volume::{SIZE, Volume};
use stor_tests::wait;
use stor_tests::writer::{OnLoss, Writer};

use super::copies::{equal, files, make, nothing_leaks};

fn ask(cluster: &Cluster, args: &[&str]) -> anyhow::Result<String> {
    let (status, said, complained) = cluster.storctl(args)?;
    ensure!(status == 0, "storctl {args:?}: {status}: {said}{complained}");
    Ok(said)
}

/// Waits until a snapshot has a copy on each of these nodes and nowhere else.
fn is_on(cluster: &Cluster, volume: &str, name: &str, nodes: &[&str]) -> anyhow::Result<Snapshot> {
    wait::that(wait::LONG, &format!("{volume}@{name} is on {nodes:?}"), || {
        let one = cluster.run(cluster.client().snapshot(volume, name))?;
        let mut on: Vec<&str> = one.copies.iter().map(|copy| copy.node.as_str()).collect();
        on.sort_unstable();
        let all = one
            .copies
            .iter()
            .all(|copy| copy.state == SnapshotCopyState::Present);
        Ok(if on == nodes && all && one.reason.is_empty() {
            Ok(one)
        } else {
            Err(format!("{one:?}"))
        })
    })
}

/// Makes a volume of one replica of it.
fn restored<'a>(cluster: &'a Cluster, of: &str, name: &str, new: &'a str) -> anyhow::Result<Volume<'a>> {
    let spec = RestoreSpec {
        name: new.to_owned(),
        replicas: Some(1),
        min_in_sync: None,
    };
    cluster.run(cluster.client().restore(of, name, &spec))?;
    let volume = Volume::of(cluster, new);
    volume.wait_in_sync()?;
    Ok(volume)
}

#[test]
fn a_replica_that_was_away_gets_every_copy_it_missed() -> anyhow::Result<()> {
    super::with("a_replica_that_was_away_gets_every_copy_it_missed", |cluster| {
        let volume = Volume::create(cluster, "db1", SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let before = volume.fill(&medium, 256)?;
        cluster.kill(&["s2"])?;
        volume.wait_member("s2", false)?;
        let one = make(cluster, "db1", "first")?;
        ensure!(
            one.wanted_copies == 2 && one.reason.starts_with("1 of 2 replicas hold"),
            "{one:?}"
        );
        // Later content in the same blocks: the second copy has to differ from the first.
        let writer = Writer::go_on(&medium, OnLoss::Fail, before.clone())?;
        writer.wait_for(300)?;
        make(cluster, "db1", "second")?;
        writer.wait_for(300)?;
        cluster.start_again(&["s2"])?;
        volume.wait_in_sync()?;
        let mut held = Vec::new();
        for name in ["first", "second"] {
            let one = is_on(cluster, "db1", name, &["s1", "s2"])?;
            held.push(equal(cluster, &one)?);
        }
        ensure!(held[0] != held[1], "both hold the same");
        println!("{}", ask(cluster, &["snapshot", "list"])?);
        cluster.wait_healthy()?;
        writer.stop()?;
        volume.detach(CLIENT)?;
        // It is as good as the other: what is made of it alone holds what there was.
        cluster.kill(&["s1"])?;
        cluster.wait_node("s1", stor_api::objects::NodeState::Offline)?;
        let of_it = restored(cluster, "db1", "first", "db2")?;
        let (on, _) = of_it.files("s2")?;
        ensure!(on.exists());
        of_it.copies_hold(&before)?;
        cluster.start_again(&["s1"])?;
        cluster.wait_healthy()?;
        nothing_leaks(cluster)
    })
}

#[test]
fn whoever_dies_meanwhile_a_copy_made_anew_is_whole_or_does_not_count() -> anyhow::Result<()> {
    let name = "whoever_dies_meanwhile_a_copy_made_anew_is_whole_or_does_not_count";
    super::with(name, |cluster| {
        let volume = Volume::create(cluster, "db1", SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::Reconnect)?;
        writer.wait_for(200)?;
        cluster.kill(&["s2"])?;
        volume.wait_member("s2", false)?;
        for name in ["a", "b", "c"] {
            make(cluster, "db1", name)?;
            writer.wait_for(200)?;
        }
        cluster.start_again(&["s2"])?;
        volume.wait_in_sync()?;
        for (round, delay) in [0_u64, 50, 100, 200, 400, 800].into_iter().enumerate() {
            std::thread::sleep(Duration::from_millis(delay));
            let victim = match round % 3 {
                0 => "s2".to_owned(),
                1 => "s1".to_owned(),
                _ => cluster.leader()?,
            };
            cluster.kill(&[&victim])?;
            for name in ["a", "b", "c"] {
                let counted = cluster.run(cluster.client().snapshot("db1", name));
                let both = |one: &Snapshot| {
                    let there = |copy: &&stor_api::objects::SnapshotCopy| {
                        matches!(
                            copy.state,
                            SnapshotCopyState::Present | SnapshotCopyState::Offline
                        )
                    };
                    one.copies.iter().filter(there).count() == 2 && !one.reason.contains("hold it")
                };
                if let Some(one) = counted.ok().filter(both) {
                    equal(cluster, &one).with_context(|| format!("{name} counts as whole"))?;
                }
            }
            cluster.start_again(&[&victim])?;
        }
        for name in ["a", "b", "c"] {
            let one = is_on(cluster, "db1", name, &["s1", "s2"])?;
            equal(cluster, &one)?;
        }
        let left = files(cluster)?;
        ensure!(left.len() == 6, "{left:?}");
        volume.wait_attached(CLIENT)?;
        volume.wait_in_sync()?;
        let history = writer.stop()?;
        volume.closes_well(CLIENT, &medium, history)?;
        nothing_leaks(cluster)
    })
}

#[test]
fn copies_follow_a_replica_that_moves_and_the_last_one_does_not_vanish() -> anyhow::Result<()> {
    let name = "copies_follow_a_replica_that_moves_and_the_last_one_does_not_vanish";
    super::with(name, |cluster| {
        let volume = Volume::create(cluster, "db1", SIZE, &["s1", "s2"])?;
        ask(
            cluster,
            &["pool", "set", "sp01", "--node", "s3", "--tag", "for-db1"],
        )?;
        let medium = volume.attach_socket()?;
        let before = volume.fill(&medium, 128)?;
        make(cluster, "db1", "a")?;
        let writer = Writer::go_on(&medium, OnLoss::Fail, before.clone())?;
        writer.wait_for(200)?;
        make(cluster, "db1", "b")?;
        ask(
            cluster,
            &[
                "replica",
                "move",
                "db1",
                "--from",
                "s1",
                "--to",
                "s3",
                "--no-wait",
            ],
        )?;
        cluster.kill(&["s3"])?;
        let leader = cluster.leader()?;
        cluster.kill(&[&leader])?;
        cluster.start_again(&["s3", &leader])?;
        for name in ["a", "b"] {
            let one = is_on(cluster, "db1", name, &["s2", "s3"])?;
            equal(cluster, &one)?;
        }
        let left = files(cluster)?;
        let on_s1 = cluster.dir().join("s1");
        ensure!(!left.iter().any(|path| path.starts_with(&on_s1)), "{left:?}");
        writer.wait_for(100)?;
        writer.stop()?;
        volume.detach(CLIENT)?;
        // One replica left: what it missed is copied to it before the other's copies go.
        ask(cluster, &["replica", "remove", "db1", "--node", "s3", "--yes"])?;
        let one = is_on(cluster, "db1", "a", &["s2"])?;
        equal(cluster, &one)?;
        // And that one moves: its copies were the last ones.
        let plan = ask(cluster, &["node", "drain", "s2", "--dry-run"])?;
        ensure!(plan.contains("copy of snapshot db1@a on s2"), "{plan}");
        let (status, _, why) = cluster.storctl(&["pool", "delete", "sp01", "--node", "s2", "--yes"])?;
        ensure!(status != 0, "a pool with the last copies was given up: {why}");
        ask(
            cluster,
            &["pool", "set", "sp01", "--node", "s1", "--tag", "for-db1"],
        )?;
        ask(cluster, &["node", "drain", "s2"])?;
        let one = cluster.run(cluster.client().snapshot("db1", "a"))?;
        ensure!(one.copies.len() == 1 && one.copies[0].node != "s2", "{one:?}");
        let of_it = restored(cluster, "db1", "a", "db2")?;
        of_it.copies_hold(&before)?;
        ask(cluster, &["node", "undrain", "s2"])?;
        cluster.wait_healthy()?;
        nothing_leaks(cluster)
    })
}
