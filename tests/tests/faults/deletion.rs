//! A volume is deleted while one of its nodes is dead: it waits and says for whom, or goes by force and says what it
//! leaves; the node removes that when it is back.

use std::path::PathBuf;

use anyhow::ensure;
use serde_json::Value;
use stor_api::objects::NodeState;
use stor_tests::cluster::{self, Cluster};
use stor_tests::volume::{self, Volume};
use stor_tests::wait;

fn storctl(cluster: &Cluster, args: &[&str]) -> anyhow::Result<(i32, String, String)> {
    let (exit, out, said) = cluster.storctl(args)?;
    println!("storctl {}: {exit}\n{out}{said}", args.join(" "));
    Ok((exit, out, said))
}

/// The replica's data file on a node, made and written.
fn written(volume: &Volume<'_>, node: &str) -> anyhow::Result<PathBuf> {
    let (data, _) = volume.files(node)?;
    ensure!(data.exists(), "{} is not there", data.display());
    Ok(data)
}

#[test]
fn a_forced_delete_names_what_a_dead_node_has_and_the_node_removes_it() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        volume.fill(&medium, 256)?;
        drop(medium);
        volume.detach(cluster::CLIENT)?;
        let files = (written(&volume, "s1")?, written(&volume, "s2")?);
        wait::that(wait::LONG, "the nodes have told what they hold", || {
            let shown = cluster.run(cluster.client().volume("db1"))?;
            let told = shown.replicas.iter().all(|one| one.allocated_bytes > 256 * 4096);
            Ok(if told {
                Ok(())
            } else {
                Err(format!("{:?}", shown.replicas))
            })
        })?;
        cluster.kill(&["s2"])?;
        cluster.wait_node("s2", NodeState::Offline)?;

        let (exit, out, said) = storctl(
            cluster,
            &[
                "volume",
                "delete",
                "db1",
                "--yes",
                "--timeout",
                "3s",
                "-o",
                "json",
            ],
        )?;
        let problem: Value = serde_json::from_str(&said)?;
        ensure!(exit == 7 && out.is_empty(), "exit status {exit}: {out}");
        ensure!(problem["exit_status"] == 7, "{problem}");
        ensure!(
            problem["detail"] == "waits: node s2 is not connected",
            "{problem}"
        );
        ensure!(
            problem["remedy"]
                .as_str()
                .is_some_and(|text| text.contains("--force")),
            "{problem}"
        );
        let (_, status, _) = storctl(cluster, &["status"])?;
        ensure!(
            status.contains("VOLUME_DELETING") && status.contains("node s2 is not connected"),
            "{status}"
        );

        let (exit, out, said) = storctl(
            cluster,
            &["volume", "delete", "db1", "--force", "--yes", "-o", "json"],
        )?;
        ensure!(exit == 0, "exit status {exit}: {said}");
        let done: Value = serde_json::from_str(&out)?;
        let left = done["left_behind"].as_array().cloned().unwrap_or_default();
        ensure!(left.len() == 1, "{done}");
        ensure!(left[0]["node"] == "s2" && left[0]["pool"] == "sp01", "{done}");
        ensure!(
            left[0]["allocated_bytes"]
                .as_u64()
                .is_some_and(|bytes| bytes > 256 * 4096),
            "{done}"
        );
        ensure!(
            !files.0.exists() && files.1.exists(),
            "s1 has removed its copy, s2 could not"
        );

        // The name is free, and what has it now is another volume.
        let again = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s3"])?;
        cluster.start_again(&["s2"])?;
        wait::that(wait::LONG, "s2 has removed what it had", || {
            let (_, out, _) = cluster.storctl(&["node", "describe", "s2"])?;
            Ok(if files.1.exists() || out.contains("To be removed") {
                Err(out)
            } else {
                Ok(())
            })
        })?;
        again.wait_in_sync()?;
        cluster.wait_healthy()
    })
}

#[test]
fn a_dead_node_is_given_up_with_what_it_has_of_deleted_volumes() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let file = written(&volume, "s2")?;
        cluster.kill(&["s2"])?;
        cluster.wait_node("s2", NodeState::Offline)?;
        let (exit, _, said) = storctl(cluster, &["node", "delete", "s2", "--force"])?;
        ensure!(
            exit == 4 && said.contains("it holds 1 replica"),
            "exit status {exit}: {said}"
        );
        let (exit, out, _) = storctl(cluster, &["volume", "delete", "db1", "--force", "--yes"])?;
        ensure!(
            exit == 0 && out.contains("left behind"),
            "exit status {exit}: {out}"
        );
        let (exit, _, said) = storctl(cluster, &["node", "delete", "s2"])?;
        ensure!(exit == 4, "exit status {exit}: {said}");
        let (exit, _, said) = storctl(cluster, &["node", "delete", "s2", "--force"])?;
        ensure!(exit == 0, "exit status {exit}: {said}");
        let (_, status, _) = storctl(cluster, &["status"])?;
        ensure!(
            !status.contains("LEFT_BEHIND") && status.contains("2 of 2 nodes online"),
            "{status}"
        );
        ensure!(file.exists(), "nobody was there to remove it");
        Ok(())
    })
}
