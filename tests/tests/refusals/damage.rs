//! Replicas whose files are damaged: one good copy of a page is enough, what can't be read is never taken for
//! clean, and a replica that can't be used says why while the others serve.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use stor_api::objects::ReplicaState;
use stor_tests::cluster::{self, CLIENT, Cluster};
use stor_tests::history::History;
use stor_tests::maps::{self, DIRTY, SUPERBLOCK};
use stor_tests::volume::Volume;
use stor_tests::wait;

const SIZE: u64 = 8 << 20;

/// What happens to the files of the replica on `s1`, given data and metadata.
type Damage = fn(&Path, &Path) -> anyhow::Result<()>;

/// What must come of it.
enum Then {
    /// As if nothing had been.
    Fine,
    /// All of it counts as written and not known to be equal: it is made equal again.
    Repaired,
    /// The replica is out of use and says this.
    Says(&'static str),
}

const CASES: [(&str, Damage, Then); 9] = [
    (
        "superblock-a",
        |_, meta| maps::damage(meta, SUPERBLOCK[0]),
        Then::Fine,
    ),
    (
        "superblock-b",
        |_, meta| maps::damage(meta, SUPERBLOCK[1]),
        Then::Fine,
    ),
    (
        "superblock",
        |_, meta| {
            maps::damage(meta, SUPERBLOCK[0])?;
            maps::damage(meta, SUPERBLOCK[1])
        },
        Then::Says("superblock"),
    ),
    ("map-a", |_, meta| maps::damage(meta, DIRTY[0]), Then::Fine),
    ("map-b", |_, meta| maps::damage(meta, DIRTY[1]), Then::Fine),
    (
        "map",
        |_, meta| {
            maps::damage(meta, DIRTY[0])?;
            maps::damage(meta, DIRTY[1])
        },
        Then::Repaired,
    ),
    (
        "newer",
        |_, meta| {
            let first = maps::make_version(meta, SUPERBLOCK[0], 99)?;
            let second = maps::make_version(meta, SUPERBLOCK[1], 99)?;
            ensure!(first || second, "no superblock was ever written");
            Ok(())
        },
        Then::Says("99"),
    ),
    (
        "cut-off",
        |data, _| {
            let file = fs::File::options().write(true).open(data)?;
            Ok(file.set_len(SIZE / 2)?)
        },
        Then::Says("cut off"),
    ),
    (
        "no-data",
        |data, _| Ok(fs::rename(data, data.with_extension("away"))?),
        Then::Says("r"),
    ),
];

/// Makes a volume of each name with something in it, all detached again.
fn prepare(cluster: &Cluster, names: &[&'static str]) -> anyhow::Result<BTreeMap<&'static str, History>> {
    let mut histories = BTreeMap::new();
    for name in names {
        let volume = Volume::create(cluster, name, SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        histories.insert(*name, volume.fill(&medium, 300)?);
        volume.detach(CLIENT)?;
        volume.copies_are_equal()?;
    }
    Ok(histories)
}

fn is_served_well(volume: Volume<'_>, history: &History, then: &Then) -> anyhow::Result<()> {
    if let Then::Says(word) = then {
        let what = format!("{} tells what is wrong with its replica on s1", volume.name);
        let reason = wait::that(wait::LONG, &what, || {
            let shown = volume.shown()?;
            let replica = shown.replicas.into_iter().find(|r| r.node == "s1");
            let replica = replica.context("the replica on s1 is gone")?;
            Ok(
                if replica.state == ReplicaState::Failed && replica.reason.contains(word) {
                    Ok(replica.reason)
                } else {
                    Err(format!("{replica:?}"))
                },
            )
        })?;
        println!("{}: {reason}", volume.name);
    }
    let medium = volume.attach_socket()?;
    match then {
        Then::Fine => volume.closes_well(CLIENT, &medium, history.clone()),
        Then::Repaired => {
            wait::that(wait::LONG, "everything was repaired", || {
                let counters = volume.attachment(CLIENT)?.counters;
                let copied = counters.repaired_bytes + counters.resynced_bytes;
                Ok(if copied >= SIZE {
                    Ok(())
                } else {
                    Err(format!("{counters:?}"))
                })
            })?;
            volume.closes_well(CLIENT, &medium, history.clone())
        }
        Then::Says(_) => {
            volume.holds(&medium, &mut history.clone())?;
            volume.detach(CLIENT)
        }
    }
}

#[test]
fn damaged_metadata_is_never_taken_for_good_and_costs_no_acknowledged_write() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let names: Vec<&'static str> = CASES.iter().map(|(name, ..)| *name).collect();
        let histories = prepare(cluster, &names)?;
        let files: BTreeMap<&str, _> = names
            .iter()
            .map(|name| Ok((*name, Volume::of(cluster, name).files("s1")?)))
            .collect::<anyhow::Result<_>>()?;
        cluster.kill(&["s1"])?;
        for (name, damage, _) in &CASES {
            let (data, meta) = &files[name];
            damage(data, meta).with_context(|| format!("damaging {name}"))?;
        }
        cluster.start_again(&["s1"])?;
        cluster.wait_node("s1", stor_api::objects::NodeState::Online)?;
        let mut wrong = Vec::new();
        for (name, _, then) in &CASES {
            if let Err(error) = is_served_well(Volume::of(cluster, name), &histories[name], then) {
                wrong.push(format!("{name}: {error:#}"));
            }
        }
        ensure!(
            wrong.is_empty(),
            "{} of {} are wrong:\n{}",
            wrong.len(),
            CASES.len(),
            wrong.join("\n")
        );
        Ok(())
    })
}

#[test]
fn a_volume_with_no_good_superblock_is_not_served_until_one_is_back() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let histories = prepare(cluster, &["db1"])?;
        let volume = Volume::of(cluster, "db1");
        let mut kept = Vec::new();
        for node in ["s1", "s2"] {
            let (_, meta) = volume.files(node)?;
            cluster.kill(&[node])?;
            kept.push((node, meta.clone(), maps::superblocks(&meta)?));
            maps::damage(&meta, SUPERBLOCK[0])?;
            maps::damage(&meta, SUPERBLOCK[1])?;
            cluster.start_again(&[node])?;
        }
        let why = volume.is_not_served(CLIENT, Duration::from_secs(6))?;
        println!("not served: {why}");
        ensure!(why.contains("superblock"), "it does not say why: {why}");
        for (node, meta, superblocks) in kept {
            cluster.kill(&[node])?;
            maps::restore(&meta, &superblocks)?;
            cluster.start_again(&[node])?;
        }
        let medium = volume.medium(&volume.attach(CLIENT, "socket", false)?)?;
        volume.closes_well(CLIENT, &medium, histories["db1"].clone())?;
        one_flipped_byte_is_seen(volume, &histories["db1"])
    })
}

/// What the other tests rely on when they compare copies.
fn one_flipped_byte_is_seen(volume: Volume<'_>, history: &History) -> anyhow::Result<()> {
    let (data, _) = volume.files("s2")?;
    let file = fs::File::options().read(true).write(true).open(data)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5000)?;
    file.write_all_at(&[byte[0] ^ 1], 5000)?;
    ensure!(
        volume.copies_are_equal().is_err(),
        "copies that differ were found equal"
    );
    ensure!(
        volume.copies_hold(history).is_err(),
        "a damaged copy was found good"
    );
    Ok(())
}
