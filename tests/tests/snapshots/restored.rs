//! What becomes of a snapshot: a new volume, a clone of a clone, the volume itself again.

use anyhow::ensure;
use stor_tests::cluster::CLIENT;
use stor_tests::volume::{SIZE, Volume};

use super::copies::{make, nothing_leaks};

/// Blocks written each time.
const SLOTS: usize = 512;

#[test]
fn a_snapshot_becomes_a_volume_and_the_volume_it_was_of() -> anyhow::Result<()> {
    super::with(
        "a_snapshot_becomes_a_volume_and_the_volume_it_was_of",
        |cluster| {
            let volume = Volume::create(cluster, "db1", SIZE, &["s1", "s2"])?;
            let medium = volume.attach_socket()?;
            let before = volume.fill(&medium, SLOTS)?;
            make(cluster, "db1", "before")?;
            // All of it written again: later numbers in every block.
            let mut after = volume.fill(&medium, SLOTS)?;
            let mut open = medium.open()?;
            for slot in after.slots() {
                let number = after.send(slot)?;
                open.write(slot * 4096, &stor_tests::block::fill(slot, number))?;
                after.acknowledged(slot, number)?;
            }
            open.flush()?;
            drop(open);

            let (status, said, complained) =
                cluster.storctl(&["volume", "create", "db2", "--from-snapshot", "db1@before"])?;
            ensure!(status == 0, "{said} {complained}");
            println!("{said}");
            let restored = Volume::of(cluster, "db2");
            let shown = restored.wait_in_sync()?;
            ensure!(shown.size_bytes == SIZE && shown.replicas.len() == 2, "{shown:?}");
            restored.copies_hold(&before)?;
            let other = restored.attach_socket()?;
            restored.holds(&other, &mut before.clone())?;
            // It goes its own way: what is written to it is in nothing else.
            restored.fill(&other, 8)?;
            restored.detach(CLIENT)?;

            let (status, said, complained) =
                cluster.storctl(&["volume", "create", "db3", "--from-volume", "db1"])?;
            ensure!(status == 0, "{said} {complained}");
            let clone = Volume::of(cluster, "db3");
            clone.wait_in_sync()?;
            clone.copies_hold(&after)?;
            let (status, said, complained) =
                cluster.storctl(&["volume", "create", "db4", "--from-volume", "db3"])?;
            ensure!(
                status == 0,
                "of a clone, of a detached volume: {said} {complained}"
            );
            let deeper = Volume::of(cluster, "db4");
            deeper.wait_in_sync()?;
            deeper.copies_hold(&after)?;

            let (status, _, complained) =
                cluster.storctl(&["snapshot", "rollback", "db1@before", "--yes"])?;
            ensure!(
                status == 4 && complained.contains("attached"),
                "{status} {complained}"
            );
            volume.detach(CLIENT)?;
            let (status, said, complained) =
                cluster.storctl(&["snapshot", "rollback", "db1@before", "--yes"])?;
            ensure!(status == 0, "{said} {complained}");
            volume.wait_in_sync()?;
            volume.copies_are_equal()?;
            volume.copies_hold(&before)?;
            let medium = volume.attach_socket()?;
            volume.holds(&medium, &mut before.clone())?;
            volume.detach(CLIENT)?;

            let (status, _, complained) = cluster.storctl(&["volume", "delete", "db1", "--yes"])?;
            ensure!(
                status == 4 && complained.contains("1 snapshot"),
                "{status} {complained}"
            );
            let (status, said, _) = cluster.storctl(&["snapshot", "list"])?;
            ensure!(status == 0 && said.contains("before"), "{said}");
            println!("{said}");
            let (status, said, _) = cluster.storctl(&["snapshot", "describe", "db1@before"])?;
            ensure!(status == 0, "{said}");
            println!("{said}");
            let (status, said, complained) =
                cluster.storctl(&["volume", "delete", "db1", "--snapshots", "--yes"])?;
            ensure!(status == 0, "{said} {complained}");
            // What was made of its snapshot needs neither.
            restored.copies_are_equal()?;
            nothing_leaks(cluster)
        },
    )
}
