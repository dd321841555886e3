//! Somebody dies in the middle: every snapshot is ready with equal copies, or failed, and nothing is left of it.

use std::time::Duration;

use anyhow::ensure;
use stor_api::objects::SnapshotState;
use stor_tests::cluster::{CLIENT, CONTROLLERS};
use stor_tests::process;
use stor_tests::volume::{SIZE, Volume};
use stor_tests::writer::{OnLoss, Writer};

use super::copies::{ask, decided, equal, nothing_leaks};

#[test]
fn whoever_dies_in_the_middle_a_snapshot_is_whole_or_not_there() -> anyhow::Result<()> {
    super::with(
        "whoever_dies_in_the_middle_a_snapshot_is_whole_or_not_there",
        |cluster| {
            let volume = Volume::create(cluster, "db1", SIZE, &["s1", "s2"])?;
            let medium = volume.attach_socket()?;
            let writer = Writer::start(&medium, OnLoss::Reconnect)?;
            writer.wait_for(100)?;
            let (mut ready, mut failed) = (0, 0);
            // Later and later: from before the first message to after the last.
            for (round, delay) in [0_u64, 2, 5, 10, 15, 20, 30, 50, 100].into_iter().enumerate() {
                let name = format!("n{round}");
                ask(cluster, &["db1"], &name)?;
                std::thread::sleep(Duration::from_millis(delay));
                match round % 3 {
                    0 => process::kill(volume.engine(CLIENT)?, &cluster.dir())?,
                    1 => {
                        cluster.kill(&["s2"])?;
                        cluster.start_again(&["s2"])?;
                    }
                    _ => {
                        let leader = cluster.leader()?;
                        cluster.kill(&[&leader])?;
                        ensure!(CONTROLLERS.contains(&leader.as_str()));
                        cluster.start_again(&[&leader])?;
                    }
                }
                let one = decided(cluster, "db1", &name)?;
                match one.state {
                    SnapshotState::Ready => {
                        ready += 1;
                        equal(cluster, &one)?;
                    }
                    SnapshotState::Failed => {
                        failed += 1;
                        println!("{name} after {delay} ms: {}", one.reason);
                    }
                    other => anyhow::bail!("{other:?}"),
                }
                volume.wait_attached(CLIENT)?;
                writer.wait_for(20)?;
                volume.wait_in_sync()?;
                cluster.wait_healthy()?;
            }
            println!("{ready} ready, {failed} failed");
            let history = writer.stop()?;
            volume.closes_well(CLIENT, &medium, history)?;
            nothing_leaks(cluster)
        },
    )
}
