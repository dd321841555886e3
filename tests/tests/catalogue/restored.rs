//! A catalogue restored from a backup that is older than the data, with real processes: what may not be done is not
//! done, nothing is deleted, nothing stale is read, and after the volumes were adopted every acknowledged write is
//! there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use stor_api::client::Error;
use stor_api::objects::{NodeState, VolumeAdoption, VolumeState};
use stor_tests::block::{self, BLOCK};
use stor_tests::cluster::{self, CLIENT, CONTROLLERS, Cluster, STORAGE};
use stor_tests::history::History;
use stor_tests::medium::Medium;
use stor_tests::volume::{SIZE, Volume, wish};
use stor_tests::wait;

/// Blocks written to each volume, each time.
const SLOTS: usize = 256;

/// Writes every slot once more.
fn write_again(medium: &Medium, history: &mut History) -> anyhow::Result<()> {
    let mut open = medium.open()?;
    for slot in history.slots() {
        let number = history.send(slot)?;
        open.write(slot * BLOCK as u64, &block::fill(slot, number))?;
        history.acknowledged(slot, number)?;
    }
    Ok(open.flush()?)
}

/// Every replica's files on every node.
fn files(cluster: &Cluster) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for node in STORAGE {
        for volume in fs::read_dir(cluster.dir().join(node).join("pool"))? {
            let volume = volume?.path();
            if volume.is_dir() {
                for file in fs::read_dir(&volume)? {
                    found.insert(file?.path());
                }
            }
        }
    }
    Ok(found)
}

fn peer(cluster: &Cluster, controller: &str) -> anyhow::Result<String> {
    let text = fs::read_to_string(cluster.dir().join("quickstart.json"))?;
    let record: serde_json::Value = serde_json::from_str(&text)?;
    let port = record
        .pointer(&format!("/controllers/{controller}/peer"))
        .and_then(serde_json::Value::as_u64)
        .context("no port")?;
    Ok(format!("127.0.0.1:{port}"))
}

fn storctl(cluster: &Cluster, args: &[&str]) -> anyhow::Result<String> {
    let (status, said, complaint) = cluster.storctl(args)?;
    ensure!(
        status == 0,
        "storctl {args:?} ended with {status}: {said}{complaint}"
    );
    Ok(said)
}

/// Makes a cluster of the first controller out of the backup, in the place it had; the others join it anew.
fn restore(cluster: &Cluster, backup: &Path) -> anyhow::Result<()> {
    for name in CONTROLLERS {
        fs::rename(
            cluster.dir().join(name),
            cluster.dir().join(format!("{name}.lost")),
        )?;
    }
    let (first, api) = (peer(cluster, "c1")?, cluster.port("c1")?);
    let said = storctl(
        cluster,
        &[
            "controller",
            "restore",
            backup.to_str().context("path")?,
            "--name",
            "c1",
            "--dir",
            cluster.dir().join("c1").to_str().context("path")?,
            "--peer-listen",
            &first,
            "--api-listen",
            &format!("127.0.0.1:{api}"),
            "--yes",
            "--timeout",
            "5s",
        ],
    )?;
    println!("{said}");
    cluster.start_again(&["c1"])?;
    for name in ["c2", "c3"] {
        let output = Command::new(cluster.program("stor-controller"))
            .args(["join", "--name", name, "--seed", &format!("http://{first}")])
            .args(["--peer-listen", &peer(cluster, name)?])
            .args(["--api-listen", &format!("127.0.0.1:{}", cluster.port(name)?)])
            .arg("--dir")
            .arg(cluster.dir().join(name))
            .output()?;
        ensure!(output.status.success(), "{name} did not join: {output:?}");
        cluster.start_again(&[name])?;
    }
    Ok(())
}

fn wait_check(cluster: &Cluster, code: &str, object: &str) -> anyhow::Result<()> {
    wait::that(wait::LONG, &format!("{code} of {object} is reported"), || {
        Ok(match cluster.status()? {
            None => Err("no controller answers".to_owned()),
            Some(status) => {
                let named = |check: &stor_api::objects::Check| {
                    check.code == code && check.objects.iter().any(|one| one == object)
                };
                if status.checks.iter().any(named) {
                    Ok(())
                } else {
                    Err(format!("{:?}", status.checks))
                }
            }
        })
    })
}

/// It is locked, and what could do harm is refused with its name.
fn is_locked(cluster: &Cluster, volume: &Volume<'_>) -> anyhow::Result<()> {
    let shown = volume.shown()?;
    ensure!(shown.state == VolumeState::CatalogueBehind, "{shown:?}");
    let client = cluster.client();
    let attach = cluster
        .run(client.attach(volume.name, &wish("s3", "socket", true)))
        .map(drop);
    let delete = cluster.run(client.delete_volume(volume.name, true));
    for refused in [attach, delete] {
        match refused {
            Err(Error::Conflict(problem)) if problem.code() == "catalogue-behind" => {}
            other => bail!("{} was not refused: {other:?}", volume.name),
        }
    }
    Ok(())
}

fn adopt(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    println!("{}", storctl(cluster, &["volume", "adopt", name, "--dry-run"])?);
    println!("{}", storctl(cluster, &["volume", "adopt", name])?);
    Ok(())
}

/// Reads all of a volume on some node and closes it well.
fn verify(volume: &Volume<'_>, history: &mut History) -> anyhow::Result<()> {
    let medium = volume.attach_socket()?;
    volume.holds(&medium, history)?;
    volume.detach(CLIENT)
}

#[test]
fn an_old_backup_loses_nothing_and_shows_nothing_stale() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let went_on = Volume::create(cluster, "went-on", SIZE, &["s1", "s2"])?;
        let moved = Volume::create(cluster, "moved", SIZE, &["s2", "s3"])?;
        let in_use = Volume::create(cluster, "in-use", SIZE, &["s1", "s3"])?;
        let untouched = Volume::create(cluster, "untouched", SIZE, &["s1", "s3"])?;
        let deleted = Volume::create(cluster, "deleted", SIZE, &["s1", "s2"])?;
        let mut histories = Vec::new();
        for volume in [&went_on, &moved, &untouched, &deleted] {
            let medium = volume.attach_socket()?;
            histories.push(volume.fill(&medium, SLOTS)?);
            volume.detach(CLIENT)?;
        }
        let [mut of_went_on, mut of_moved, mut of_untouched, _]: [History; 4] = histories.try_into().unwrap();
        let medium_in_use = in_use.attach_socket()?;
        let mut of_in_use = in_use.fill(&medium_in_use, SLOTS)?;

        let backup = cluster.scratch().join("catalogue.backup");
        println!(
            "{}",
            storctl(cluster, &["controller", "backup", backup.to_str().unwrap()])?
        );

        // What the backup does not know: a member leaves and misses writes, a set is used elsewhere, an engine
        // loses a member and goes on, a volume is deleted, another made.
        storctl(cluster, &["volume", "delete", "deleted", "--yes"])?;
        let medium = moved.medium(&moved.attach("s1", "socket", false)?)?;
        write_again(&medium, &mut of_moved)?;
        moved.detach("s1")?;
        let later = Volume::create(cluster, "later", SIZE, &["s1", "s3"])?;
        let medium = later.attach_socket()?;
        let mut of_later = later.fill(&medium, SLOTS)?;
        later.detach(CLIENT)?;
        let later_id = later.shown()?.id;
        let medium = went_on.attach_socket()?;
        cluster.kill(&["s2"])?;
        write_again(&medium, &mut of_went_on)?;
        went_on.wait_member("s2", false)?;
        went_on.detach(CLIENT)?;
        cluster.kill(&["s3"])?;
        write_again(&medium_in_use, &mut of_in_use)?;
        in_use.wait_member("s3", false)?;

        cluster.kill(&CONTROLLERS)?;
        let before = files(cluster)?;
        // Of those that have a replica only the ones with the older copies are there: s1, which knows, tells nobody.
        cluster.kill(&["s1"])?;
        restore(cluster, &backup)?;
        cluster.start_again(&["s2", "s3"])?;
        for node in ["s2", "s3"] {
            cluster.wait_node(node, NodeState::Online)?;
        }
        // The member that missed writes is all that is heard of it: it must not be believed.
        is_locked(cluster, &went_on)?;
        let refusal = cluster.run(
            cluster
                .client()
                .adopt_volume("went-on", &VolumeAdoption::default()),
        );
        ensure!(
            matches!(refusal, Err(Error::Conflict(_))),
            "adopted without s1: {refusal:?}"
        );
        cluster.start_again(&["s1"])?;

        wait_check(cluster, "CATALOGUE_BEHIND", "volume/went-on")?;
        wait_check(cluster, "CATALOGUE_BEHIND", "volume/moved")?;
        wait_check(cluster, "CATALOGUE_BEHIND", "volume/in-use")?;
        wait_check(cluster, "VOLUME_GONE", "volume/deleted")?;
        wait_check(cluster, "REPLICA_UNKNOWN", &format!("volume/{later_id}"))?;
        for volume in [&went_on, &moved, &in_use] {
            is_locked(cluster, volume)?;
        }
        // The one whose row is right is unlocked by itself.
        untouched.wait_in_sync()?;
        verify(&untouched, &mut of_untouched)?;
        // The engine that the catalogue does not know in this form was left alone.
        write_again(&medium_in_use, &mut of_in_use)?;
        in_use.holds(&medium_in_use, &mut of_in_use)?;
        let after = files(cluster)?;
        ensure!(before.is_subset(&after), "gone: {:?}", before.difference(&after));

        adopt(cluster, "went-on")?;
        adopt(cluster, "moved")?;
        verify(&went_on, &mut of_went_on)?;
        verify(&moved, &mut of_moved)?;
        adopt(cluster, "in-use")?;
        let served = in_use.wait_attached(CLIENT)?;
        let medium_in_use = in_use.medium(&served)?;
        in_use.holds(&medium_in_use, &mut of_in_use)?;
        write_again(&medium_in_use, &mut of_in_use)?;
        storctl(cluster, &["volume", "adopt", "found", "--id", &later_id])?;
        let found = Volume::of(cluster, "found");
        verify(&found, &mut of_later)?;
        storctl(cluster, &["volume", "delete", "deleted", "--yes"])?;
        cluster.wait_healthy()?;
        for (volume, history) in [(&went_on, &of_went_on), (&moved, &of_moved), (&found, &of_later)] {
            volume.wait_in_sync()?;
            volume.copies_are_equal()?;
            volume.copies_hold(history)?;
        }
        in_use.closes_well(CLIENT, &medium_in_use, of_in_use)
    })
}

#[test]
fn a_controller_of_the_time_before_is_not_followed() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db", SIZE, &["s1", "s2"])?;
        let backup = cluster.scratch().join("catalogue.backup");
        storctl(cluster, &["controller", "backup", backup.to_str().unwrap()])?;
        // Not beside the cluster itself.
        let target = cluster.scratch().join("beside");
        let (status, _, why) = cluster.storctl(&[
            "controller",
            "restore",
            backup.to_str().unwrap(),
            "--name",
            "x1",
            "--dir",
            target.to_str().unwrap(),
            "--yes",
        ])?;
        ensure!(status == 4 && why.contains("answers"), "{status} {why}");
        ensure!(!target.exists(), "something was made");
        cluster.kill(&CONTROLLERS)?;
        restore(cluster, &backup)?;
        volume.wait_in_sync()?;
        cluster.wait_healthy()?;

        // The old controllers come back, a majority of them, in the place of the new ones.
        cluster.kill(&CONTROLLERS)?;
        for name in CONTROLLERS {
            fs::rename(
                cluster.dir().join(name),
                cluster.dir().join(format!("{name}.new")),
            )?;
            fs::rename(
                cluster.dir().join(format!("{name}.lost")),
                cluster.dir().join(name),
            )?;
        }
        cluster.start_again(&CONTROLLERS)?;
        wait::that(wait::LONG, "satellites refuse them", || {
            let refused = |node: &&str| cluster.log(node).contains("is not the one this node follows");
            Ok(if STORAGE.iter().all(refused) {
                Ok(())
            } else {
                Err("not yet".to_owned())
            })
        })?;
        // A new leader presumes for a while that all are still there.
        wait::that(wait::LONG, "the old controllers have no node", || {
            Ok(match cluster.run(cluster.client().nodes()) {
                Ok(nodes) if nodes.iter().all(|node| node.state != NodeState::Online) => Ok(()),
                other => Err(format!("{other:?}")),
            })
        })?;
        Ok(())
    })
}
