//! What the copies of a snapshot hold, and what is left when all is deleted.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use stor_api::client::Filter;
use stor_api::objects::{Snapshot, SnapshotSpec, SnapshotState, SnapshotsSpec};
use stor_tests::cluster::{CLIENT, Cluster, STORAGE};
use stor_tests::volume::{SIZE, Volume};
use stor_tests::wait;
use stor_tests::writer::{OnLoss, Writer};

/// Asks for snapshots of one moment.
pub(crate) fn ask(cluster: &Cluster, volumes: &[&str], name: &str) -> anyhow::Result<()> {
    let spec = SnapshotsSpec {
        snapshots: volumes
            .iter()
            .map(|volume| SnapshotSpec {
                volume: (*volume).to_owned(),
                name: name.to_owned(),
            })
            .collect(),
    };
    cluster.run(cluster.client().create_snapshots(&spec))?;
    Ok(())
}

/// Waits until it is known what became of one.
pub(crate) fn decided(cluster: &Cluster, volume: &str, name: &str) -> anyhow::Result<Snapshot> {
    wait::that(wait::LONG, &format!("{volume}@{name} is decided"), || {
        Ok(match cluster.run(cluster.client().snapshot(volume, name)) {
            Ok(one) if one.state == SnapshotState::Creating => Err(format!("{one:?}")),
            Ok(one) => Ok(one),
            Err(error) => Err(error.to_string()),
        })
    })
}

/// Makes one.
pub(crate) fn make(cluster: &Cluster, volume: &str, name: &str) -> anyhow::Result<Snapshot> {
    ask(cluster, &[volume], name)?;
    let one = decided(cluster, volume, name)?;
    ensure!(one.state == SnapshotState::Ready, "{one:?}");
    Ok(one)
}

fn pools(cluster: &Cluster) -> Vec<PathBuf> {
    STORAGE
        .iter()
        .map(|node| cluster.dir().join(node).join("pool"))
        .collect()
}

/// Every file of snapshots in any pool.
pub(crate) fn files(cluster: &Cluster) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for pool in pools(cluster) {
        for volume in fs::read_dir(&pool)?
            .flatten()
            .filter(|entry| entry.path().is_dir())
        {
            let entries = fs::read_dir(volume.path())?.flatten();
            let snapshots = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with('s'));
            found.extend(snapshots.map(|entry| entry.path()));
        }
    }
    Ok(found)
}

/// Compares the copies of a snapshot byte by byte, and returns what they hold.
pub(crate) fn equal(cluster: &Cluster, one: &Snapshot) -> anyhow::Result<Vec<u8>> {
    let of_it = format!("s{}.", one.id);
    let mut first: Option<(PathBuf, Vec<u8>)> = None;
    let all = files(cluster)?;
    let copies = all.iter().filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&of_it) && name.ends_with(".data")
    });
    let mut count = 0;
    for path in copies {
        count += 1;
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        match &first {
            None => first = Some((path.clone(), bytes)),
            Some((other, expected)) if *expected != bytes => {
                let at = expected.iter().zip(&bytes).position(|(a, b)| a != b);
                bail!("{} and {} differ at {at:?}", path.display(), other.display());
            }
            Some(_) => {}
        }
    }
    ensure!(count == one.copies.len(), "{count} files, {one:?}");
    first.map(|(_, bytes)| bytes).context("there is no copy at all")
}

/// Deletes every snapshot and volume, and finds nothing left of any.
pub(crate) fn nothing_leaks(cluster: &Cluster) -> anyhow::Result<()> {
    let client = cluster.client();
    for one in cluster.run(client.snapshots(&Filter::default()))? {
        cluster.run(client.delete_snapshot(&one.volume, &one.name))?;
    }
    wait::that(wait::LONG, "every snapshot is gone", || {
        let left = cluster.run(client.snapshots(&Filter::default()))?;
        Ok(if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        })
    })?;
    ensure!(files(cluster)?.is_empty(), "left: {:?}", files(cluster)?);
    for volume in cluster.run(client.volumes(&Filter::default()))? {
        cluster.run(client.delete_volume(&volume.name, false))?;
    }
    wait::that(wait::LONG, "every volume is gone", || {
        let left = cluster.run(client.volumes(&Filter::default()))?;
        let busy = cluster.run(client.tombstones(&Filter::default()))?;
        Ok(if left.is_empty() && busy.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?} {busy:?}"))
        })
    })?;
    for pool in pools(cluster) {
        let left: Vec<_> = fs::read_dir(&pool)?
            .flatten()
            .map(|entry| entry.file_name())
            .filter(|name| name != "stor-pool.json")
            .collect();
        ensure!(left.is_empty(), "{} holds {left:?}", pool.display());
    }
    Ok(())
}

#[test]
fn under_load_the_copies_are_equal_and_writers_wait_little() -> anyhow::Result<()> {
    super::with(
        "under_load_the_copies_are_equal_and_writers_wait_little",
        |cluster| {
            let volume = Volume::create(cluster, "db1", SIZE, &["s1", "s2"])?;
            let medium = volume.attach_socket()?;
            let writer = Writer::start(&medium, OnLoss::Fail)?;
            writer.wait_for(200)?;
            let rounds = std::env::var("STOR_SNAPSHOTS")
                .ok()
                .and_then(|text| text.parse().ok());
            let rounds: u64 = rounds.unwrap_or(20);
            let mut held = Vec::new();
            for round in 1..=rounds {
                let name = format!("n{round}");
                let one = make(cluster, "db1", &name)?;
                equal(cluster, &one)?;
                let counters = wait::that(wait::LONG, "the engine tells of the snapshot", || {
                    let counters = volume.attachment(CLIENT)?.counters;
                    Ok(if counters.snapshots >= round {
                        Ok(counters)
                    } else {
                        Err(format!("{counters:?}"))
                    })
                })?;
                held.push(counters.held_last_us);
                if round % 8 == 0 {
                    cluster.run(cluster.client().delete_snapshot("db1", &name))?;
                }
                writer.healthy()?;
            }
            held.sort_unstable();
            let at = |percent: usize| {
                held.get((held.len() * percent / 100).min(held.len() - 1))
                    .copied()
            };
            println!(
                "{rounds} snapshots under load; writes held: median {:?} us, p99 {:?} us, longest {:?} us; \
             longest wait of the writer {:?}",
                at(50).unwrap_or(0),
                at(99).unwrap_or(0),
                held.last(),
                writer.longest()
            );
            let history = writer.stop()?;
            volume.closes_well(CLIENT, &medium, history)?;
            nothing_leaks(cluster)
        },
    )
}

#[test]
fn of_several_volumes_all_are_made_or_none() -> anyhow::Result<()> {
    super::with("of_several_volumes_all_are_made_or_none", |cluster| {
        let one = Volume::create(cluster, "db1", SIZE, &["s1", "s2"])?;
        let other = Volume::create(cluster, "log1", SIZE, &["s2", "s3"])?;
        let media = [one.attach_socket()?, other.attach_socket()?];
        let writers = [
            Writer::start(&media[0], OnLoss::Fail)?,
            Writer::start(&media[1], OnLoss::Fail)?,
        ];
        writers[0].wait_for(100)?;
        ask(cluster, &["db1", "log1"], "both")?;
        let made = [
            decided(cluster, "db1", "both")?,
            decided(cluster, "log1", "both")?,
        ];
        ensure!(
            made.iter().all(|one| one.state == SnapshotState::Ready),
            "{made:?}"
        );
        ensure!(made[0].group == made[1].group);
        for one in &made {
            equal(cluster, one)?;
        }
        // One that can't be made takes the others with it: its volume has nobody to make it.
        cluster.kill(&["s3"])?;
        other.wait_member("s3", false)?;
        ask(cluster, &["db1", "log1"], "again")?;
        let again = [
            decided(cluster, "db1", "again")?,
            decided(cluster, "log1", "again")?,
        ];
        ensure!(again[0].state == again[1].state, "{again:?}");
        cluster.start_again(&["s3"])?;
        for (volume, writer, medium) in [(one, 0, 0), (other, 1, 1)] {
            writers[writer].wait_for(100)?;
            volume.wait_in_sync()?;
            ensure!(!format!("{:?}", media[medium]).is_empty());
        }
        for writer in writers {
            writer.stop()?;
        }
        one.detach(CLIENT)?;
        other.detach(CLIENT)?;
        nothing_leaks(cluster)
    })
}
