//! A volume made of what another one holds is one wish: whoever dies, it is there in the end and nothing else is.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::ensure;
use stor_api::client::Filter;
use stor_api::objects::{RestoreSpec, SnapshotState};
use stor_tests::cluster::{CLIENT, Cluster};
use stor_tests::volume::{SIZE, Volume};
use stor_tests::wait;

use super::copies::nothing_leaks;

/// Waits until nobody is at it any more; whether the volume is there. What failed is shown for a minute: `shown`: that
/// is not waited for.
fn over(cluster: &Cluster, name: &str, shown: bool) -> anyhow::Result<bool> {
    wait::that(wait::LONG, &format!("the clone {name} is made or undone"), || {
        let left = cluster.run(cluster.client().snapshots(&Filter::default()))?;
        let failed = left.iter().all(|one| one.state == SnapshotState::Failed);
        Ok(if left.is_empty() || (shown && failed) {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        })
    })?;
    let all = cluster.run(cluster.client().volumes(&Filter::default()))?;
    Ok(all.iter().any(|volume| volume.name == name))
}

#[test]
fn a_clone_is_made_or_not_there_whoever_dies() -> anyhow::Result<()> {
    super::with("a_clone_is_made_or_not_there_whoever_dies", |cluster| {
        let volume = Volume::create(cluster, "db1", SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let history = volume.fill(&medium, 256)?;
        let mut made = 0;
        for (round, delay) in [0_u64, 20, 50, 100, 150, 250, 400, 700].into_iter().enumerate() {
            let name = format!("copy{round}");
            let mut child = Command::new(cluster.program("storctl"))
                .args(["volume", "create", &name, "--from-volume", "db1"])
                .env("STOR_URL", cluster.client().urls().join(","))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            std::thread::sleep(Duration::from_millis(delay));
            // Who asked is gone, and with it whoever carries it out, or makes it.
            child.kill()?;
            child.wait()?;
            let victim = match round % 3 {
                0 => None,
                1 => Some(cluster.leader()?),
                _ => Some("s2".to_owned()),
            };
            if let Some(victim) = &victim {
                cluster.kill(&[victim])?;
                cluster.start_again(&[victim])?;
            }
            if over(cluster, &name, true)? {
                made += 1;
                let clone = Volume::of(cluster, &name);
                clone.wait_in_sync()?;
                clone.copies_are_equal()?;
                clone.copies_hold(&history)?;
            }
            volume.wait_in_sync()?;
            cluster.wait_healthy()?;
        }
        println!("{made} of 8 were made");
        ensure!(made > 0, "none was made");
        volume.detach(CLIENT)?;
        nothing_leaks(cluster)
    })
}

#[test]
fn a_clone_that_has_no_place_is_undone() -> anyhow::Result<()> {
    super::with("a_clone_that_has_no_place_is_undone", |cluster| {
        let _volume = Volume::create(cluster, "db1", SIZE, &["s1", "s2"])?;
        let (status, _, why) = cluster.storctl(&[
            "volume",
            "create",
            "wide",
            "--from-volume",
            "db1",
            "--replicas",
            "5",
        ])?;
        ensure!(
            status == 1 && why.contains("can't be made of snapshot"),
            "{status} {why}"
        );
        let spec = RestoreSpec {
            name: "db2".to_owned(),
            replicas: Some(2),
            min_in_sync: None,
        };
        // Asked for twice, it is one.
        cluster.run(cluster.client().clone_volume("db1", &spec))?;
        cluster.run(cluster.client().clone_volume("db1", &spec))?;
        let (status, said, why) = cluster.storctl(&[
            "volume",
            "create",
            "db2",
            "--from-volume",
            "db1",
            "--replicas",
            "2",
        ])?;
        ensure!(status == 0, "{said}{why}");
        let (status, _, why) = cluster.storctl(&["volume", "create", "db1", "--from-volume", "db2"])?;
        ensure!(status == 4, "{status} {why}");
        // What failed is shown for a minute, then it goes by itself.
        ensure!(
            !over(cluster, "wide", false)?,
            "there is a volume of five replicas"
        );
        ensure!(over(cluster, "db2", false)?);
        nothing_leaks(cluster)
    })
}
