//! Directories that can't be pools, and a pool that fills up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, ensure};
use stor_api::client::Error;
use stor_api::objects::{PoolState, ReplicaState};
use stor_tests::cluster::{self, CLIENT, Cluster};
use stor_tests::volume::Volume;
use stor_tests::{skip, wait};

fn sh(line: &str) -> anyhow::Result<()> {
    let output = Command::new("sh").args(["-c", line]).output()?;
    ensure!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// A small ext4 file system of its own, unmounted with the cluster's directory.
fn small_disk(cluster: &Cluster, name: &str, mebibytes: u64) -> anyhow::Result<PathBuf> {
    let (image, place) = (
        cluster.scratch().join(format!("{name}.img")),
        cluster.scratch().join(name),
    );
    fs::create_dir(&place)?;
    let (image, mount) = (image.display(), place.display());
    sh(&format!(
        "truncate -s {mebibytes}M {image} && mkfs.ext4 -q -m 0 {image} && mount -o loop {image} {mount}"
    ))?;
    Ok(place)
}

/// `pool create` has to fail, say why, and leave nothing.
fn refused(cluster: &Cluster, dir: &Path, says: &[&str]) -> anyhow::Result<()> {
    let before = fs::read_dir(dir).map(Iterator::count).ok();
    let dir_text = dir.display().to_string();
    let (exit, out, said) =
        cluster.storctl(&["pool", "create", "sp02", "--node", "s1", "--dir", &dir_text])?;
    println!(
        "storctl pool create sp02 --node s1 --dir {dir_text}\n{}",
        said.trim_end()
    );
    ensure!(exit != 0 && out.is_empty(), "exit status {exit}: {out}{said}");
    for word in says {
        ensure!(said.contains(word), "it does not say {word:?}: {said}");
    }
    match cluster.run(cluster.client().pool("sp02", "s1")) {
        Err(Error::NotFound { .. }) => {}
        other => bail!("{dir_text} was refused, and there is {other:?}"),
    }
    let after = fs::read_dir(dir).map(Iterator::count).ok();
    ensure!(
        before == after,
        "{before:?} entries in {dir_text} became {after:?}"
    );
    Ok(())
}

#[test]
fn a_directory_that_can_be_no_pool_is_refused_and_left_alone() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let scratch = cluster.scratch();
        refused(cluster, &scratch.join("nowhere"), &["does not exist"])?;
        fs::write(scratch.join("file"), "a file")?;
        refused(cluster, &scratch.join("file"), &["not a directory"])?;
        for node in ["s1", "s2"] {
            let used = cluster.dir().join(node).join("pool");
            refused(cluster, &used, &["sp01", node])?;
        }
        match small_disk(cluster, "small", 64) {
            Err(error) => skip::skipped(
                "pools on full and read-only file systems",
                format_args!("{error:#}"),
            ),
            Ok(disk) => {
                // Full first, then read-only.
                sh(&format!(
                    "dd if=/dev/zero of={}/fill bs=1M status=none || true",
                    disk.display()
                ))?;
                refused(cluster, &disk, &["full"])?;
                sh(&format!("rm {0}/fill && mount -o remount,ro {0}", disk.display()))?;
                refused(cluster, &disk, &["read-only"])?;
                sh(&format!("mount -o remount,rw {}", disk.display()))?;
                // Nothing was wrong with the directory itself.
                let dir = disk.display().to_string();
                let (exit, _, said) =
                    cluster.storctl(&["pool", "create", "sp02", "--node", "s1", "--dir", &dir])?;
                ensure!(exit == 0, "{said}");
                let pool = cluster.run(cluster.client().pool("sp02", "s1"))?;
                ensure!(pool.state == PoolState::Ready, "{pool:?}");
            }
        }
        cluster.wait_healthy()
    })
}

#[test]
fn a_replica_whose_pool_is_full_is_taken_out_and_nothing_is_lost() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let small = match small_disk(cluster, "small", 64) {
            Ok(small) => small,
            Err(error) => {
                skip::skipped("a pool that fills up", format_args!("{error:#}"));
                return Ok(());
            }
        };
        let large = cluster.scratch().join("large");
        fs::create_dir(&large)?;
        for (node, dir) in [("s1", &small), ("s2", &large)] {
            let dir = dir.display().to_string();
            let (exit, _, said) =
                cluster.storctl(&["pool", "create", "sp02", "--node", node, "--dir", &dir])?;
            ensure!(exit == 0, "{said}");
        }
        let (exit, _, said) = cluster.storctl(&[
            "volume",
            "create",
            "db1",
            "128Mi",
            "--pool",
            "sp02",
            "--replicas",
            "2",
        ])?;
        ensure!(exit == 0, "{said}");
        let volume = Volume::of(cluster, "db1");
        let medium = volume.attach_socket()?;
        // 80 MiB: more than the small one has.
        let mut history = volume.fill(&medium, 20 << 10)?;
        let shown = volume.wait_member("s1", false)?;
        let replica = shown.replicas.iter().find(|r| r.node == "s1").unwrap().clone();
        println!("the replica on the full pool: {replica:?}");
        ensure!(replica.state != ReplicaState::InSync, "{replica:?}");
        let status = wait::that(wait::LONG, "the status tells of the full pool", || {
            let (_, out, _) = cluster.storctl(&["status"])?;
            Ok(if out.contains("sp02") && out.contains("full") {
                Ok(out)
            } else {
                Err(out)
            })
        })?;
        println!("{status}");
        volume.holds(&medium, &mut history)?;
        volume.detach(CLIENT)
    })
}
