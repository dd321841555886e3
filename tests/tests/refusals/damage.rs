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

/// What is done without is told all the same: in the satellite's log, and once as an event.
fn is_told(cluster: &Cluster, name: &str, then: &Then) -> anyhow::Result<()> {
    if let Then::Says(_) = then {
        return Ok(());
    }
    let object = format!("volume/{name}");
    let event = wait::that(wait::LONG, &format!("an event tells of {name}"), || {
        let events = cluster.run(cluster.client().events(0))?;
        let mut told = events
            .into_iter()
            .filter(|event| event.object == object && event.kind == "replica-mended");
        let first = told.next().ok_or_else(|| "no event".to_owned());
        ensure!(told.next().is_none(), "it is told twice");
        Ok(first)
    })?;
    println!("{}", event.message);
    let what = if name.starts_with("superblock") {
        "superblock"
    } else {
        "map"
    };
    for word in ["node s1", what, ".meta"] {
        ensure!(event.message.contains(word), "without {word}: {}", event.message);
    }
    let log = cluster.log("s1");
    let line = log
        .lines()
        .find(|line| line.contains("a page of the replica's metadata is damaged") && line.contains(what));
    ensure!(line.is_some(), "nothing in the log of s1");
    Ok(())
}

/// The command that a replica beyond help names does help.
fn is_replaced(cluster: &Cluster, name: &str, history: &History) -> anyhow::Result<()> {
    let volume = Volume::of(cluster, name);
    let shown = volume.shown()?;
    let replica = shown.replicas.iter().find(|replica| replica.node == "s1");
    let replica = replica.context("the replica on s1 is gone")?;
    let id = replica.id.to_string();
    let remove = ["replica", "remove", name, "--id", &id];
    ensure!(
        replica.reason.contains(&format!("storctl {}", remove.join(" "))),
        "{}",
        replica.reason
    );
    let status = cluster.status()?.context("no controller answers")?;
    let check = status
        .checks
        .iter()
        .find(|check| check.code == "VOLUME_DEGRADED" && check.objects.contains(&format!("volume/{name}")));
    let remedy = &check.with_context(|| format!("{:?}", status.checks))?.remedy;
    ensure!(remedy.contains("storctl replica remove"), "{remedy}");
    for words in [&remove[..], &["replica", "add", name]] {
        let (exit, out, said) = cluster.storctl(&[words, &["--yes"][..]].concat())?;
        ensure!(
            exit == 0,
            "storctl {}: exit status {exit}\n{out}{said}",
            words.join(" ")
        );
    }
    volume.wait_in_sync()?;
    let medium = volume.attach_socket()?;
    volume.closes_well(CLIENT, &medium, history.clone())
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
            let volume = Volume::of(cluster, name);
            let done =
                is_told(cluster, name, then).and_then(|()| is_served_well(volume, &histories[name], then));
            if let Err(error) = done {
                wrong.push(format!("{name}: {error:#}"));
            }
        }
        // All this time they were tried again and again.
        let log = cluster.log("s1");
        for (name, ..) in CASES.iter().filter(|(.., then)| matches!(then, Then::Says(_))) {
            let id = Volume::of(cluster, name).shown()?.id;
            let lines = log.lines().filter(|line| line.contains(&id));
            let times = lines
                .filter(|line| line.contains("replica can't be served"))
                .count();
            if times != 1 {
                wrong.push(format!(
                    "{name}: the log says {times} times that it can't be served"
                ));
            }
        }
        if let Err(error) = is_replaced(cluster, "superblock", &histories["superblock"]) {
            wrong.push(format!("replacing: {error:#}"));
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
