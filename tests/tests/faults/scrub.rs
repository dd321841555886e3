//! Bits of a replica's file change behind Stor's back: a scrub finds exactly that, mends it, and tells, whether the
//! volume is used or not and whoever is killed meanwhile.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, ensure};
use stor_api::objects::{Event, Scrub, ScrubSpec, ScrubState};
use stor_tests::block::BLOCK;
use stor_tests::cluster::{self, CLIENT, Cluster};
use stor_tests::medium::Medium;
use stor_tests::volume::{self, Volume};
use stor_tests::writer::{OnLoss, SLOTS, Writer};
use stor_tests::{maps, process, wait};

const MIB: u64 = 1 << 20;
/// What nobody writes once it is there: behind what the writers write.
const STILL: std::ops::Range<u64> = 16 * MIB..40 * MIB;
/// No test waits for the pace but the one that is about interruptions.
const FAST: u64 = 4 << 30;

fn pattern(offset: u64) -> Vec<u8> {
    let word = (offset ^ 0x5bd1_e995).to_le_bytes();
    word.iter().copied().cycle().take(BLOCK).collect()
}

/// Writes what stays as it is.
fn put_still(medium: &Medium) -> anyhow::Result<()> {
    let mut open = medium.open()?;
    for offset in STILL.step_by(BLOCK) {
        open.write(offset, &pattern(offset))?;
    }
    Ok(open.flush()?)
}

fn is_still(medium: &Medium) -> anyhow::Result<()> {
    let mut open = medium.open()?;
    let mut bytes = vec![0; BLOCK];
    for offset in STILL.step_by(BLOCK) {
        open.read(offset, &mut bytes)?;
        ensure!(
            bytes == pattern(offset),
            "the block at {offset} is not what was written"
        );
    }
    Ok(())
}

/// Turns a bit over in the file of a replica.
fn rot(volume: Volume<'_>, node: &str, offset: u64) -> anyhow::Result<()> {
    let (data, _) = volume.files(node)?;
    let file = OpenOptions::new().read(true).write(true).open(&data)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    file.write_all_at(&[byte[0] ^ 0x10], offset)?;
    file.sync_all().context("flushing the damage")
}

fn scrub_of(volume: Volume<'_>) -> anyhow::Result<Scrub> {
    volume.shown()?.scrub.context("no scrub is known")
}

fn begin(cluster: &Cluster, volume: Volume<'_>, rate: u64, check_only: bool) -> anyhow::Result<u64> {
    let spec = ScrubSpec {
        check_only,
        bytes_per_second: Some(rate),
    };
    let shown = cluster.run(cluster.client().scrub(volume.name, &spec))?;
    Ok(shown.scrub.context("no scrub was begun")?.run)
}

fn wait_ended(volume: Volume<'_>, run: u64) -> anyhow::Result<Scrub> {
    wait::that(wait::LONG, "the scrub has ended", || {
        Ok(match volume.shown() {
            Err(error) => Err(error.to_string()),
            Ok(shown) => match shown.scrub {
                Some(scrub) if scrub.run == run && scrub.state != ScrubState::Running => Ok(scrub),
                other => Err(format!("{other:?}")),
            },
        })
    })
}

/// What was told of places, by kind, in the order it was told.
fn told(cluster: &Cluster, kinds: &[&str]) -> anyhow::Result<Vec<Event>> {
    let mut events = cluster.run(cluster.client().events(0))?;
    events.retain(|event| kinds.contains(&event.kind.as_str()));
    Ok(events)
}

fn checks(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let status = cluster.status()?.context("no controller answers")?;
    let checks = status.checks.into_iter().map(|check| check.code);
    Ok(checks.filter(|code| code.starts_with("SCRUB")).collect())
}

/// A place as an event tells it.
fn tells(event: &Event, offset: u64, node: &str) -> bool {
    let place = format!("{BLOCK} bytes at offset {}:", offset - offset % BLOCK as u64);
    event.message.contains(&place) && event.message.contains(&format!("on node {node} differs"))
}

#[test]
fn what_rots_under_a_writer_is_found_mended_and_told() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2", "s3"])?;
        let medium = volume.attach_socket()?;
        put_still(&medium)?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        writer.wait_for(300)?;

        let run = begin(cluster, volume, FAST, false)?;
        let sound = wait_ended(volume, run)?;
        ensure!(
            (sound.state, sound.found, sound.compared_bytes) == (ScrubState::Complete, 0, volume::SIZE),
            "{sound:?}"
        );
        // In a block, in the next one's neighbour, and where there was a hole.
        let places = [
            (17 * MIB + 5000, "s1"),
            (30 * MIB + 70_000, "s2"),
            (50 * MIB, "s3"),
        ];
        for (offset, node) in places {
            rot(volume, node, offset)?;
        }
        let run = begin(cluster, volume, FAST, false)?;
        let mended = wait_ended(volume, run)?;
        ensure!(
            (mended.found, mended.mended, mended.remaining, mended.chosen) == (3, 3, 0, 0),
            "{mended:?}"
        );
        let events = told(
            cluster,
            &["scrub-mismatch", "scrub-unreadable", "scrub-not-mended"],
        )?;
        ensure!(events.len() == places.len(), "{events:?}");
        for ((offset, node), event) in places.into_iter().zip(&events) {
            ensure!(
                tells(event, offset, node),
                "{event:?} does not tell of {offset} on {node}"
            );
        }
        ensure!(checks(cluster)? == ["SCRUB_FOUND"], "{:?}", checks(cluster)?);
        is_still(&medium)?;

        let run = begin(cluster, volume, FAST, false)?;
        let clean = wait_ended(volume, run)?;
        ensure!((clean.found, clean.unacknowledged) == (0, 0), "{clean:?}");
        ensure!(checks(cluster)?.is_empty(), "a clean scrub takes the check back");
        writer.wait_for(300)?;
        println!("longest wait {:?}", writer.longest());
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}

#[test]
fn a_volume_nobody_uses_is_scrubbed_and_of_two_copies_the_choice_is_told() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let history = volume.fill(&medium, SLOTS)?;
        volume.detach(CLIENT)?;
        volume.copies_are_equal()?;
        // What is noted as written lately would be made equal by the next engine, without a scrub.
        for node in ["s1", "s2"] {
            let (_, metadata) = volume.files(node)?;
            wait::until(wait::LONG, "no region is dirty", || {
                Ok(maps::dirty_regions(&metadata)? == 0)
            })?;
        }
        // The engine of a volume that nobody uses runs beside the first copy, which reads are then served from.
        rot(volume, "s2", MIB)?;

        let run = begin(cluster, volume, FAST, true)?;
        let checked = wait_ended(volume, run)?;
        ensure!(
            (checked.found, checked.mended, checked.remaining) == (1, 0, 1),
            "{checked:?}"
        );
        ensure!(
            volume.copies_are_equal().is_err(),
            "what was only to be told was changed"
        );

        let (status, said, complaint) =
            cluster.storctl(&["volume", "scrub", "db1", "--wait", "--rate", "4Gi"])?;
        ensure!(status == 0, "{said}{complaint}");
        println!("{said}");
        let mended = scrub_of(volume)?;
        ensure!(
            (mended.found, mended.chosen, mended.mended, mended.remaining) == (1, 1, 1, 0),
            "{mended:?}"
        );
        let events = told(cluster, &["scrub-mismatch"])?;
        ensure!(
            events.len() == 2 && events.iter().all(|event| tells(event, MIB, "s2")),
            "{events:?}"
        );
        ensure!(
            events
                .iter()
                .all(|event| event.message.contains("can't be known")),
            "{events:?}"
        );
        wait::until(wait::LONG, "its engine is gone", || {
            Ok(volume.engines("s1")?.is_empty() && volume.engines("s2")?.is_empty())
        })?;
        volume.copies_are_equal()?;
        volume.copies_hold(&history)?;
        ensure!(checks(cluster)? == ["SCRUB_FOUND"], "{:?}", checks(cluster)?);
        let (status, said, complaint) = cluster.storctl(&["volume", "scrub", "db1", "--acknowledge"])?;
        ensure!(status == 0, "{said}{complaint}");
        ensure!(checks(cluster)?.is_empty(), "acknowledged, and still a check");
        for args in [&["volume", "describe", "db1"][..], &["event", "list"]] {
            println!("{}", cluster.storctl(args)?.1);
        }
        Ok(())
    })
}

#[test]
fn a_scrub_goes_on_when_engine_agent_and_leader_are_killed() -> anyhow::Result<()> {
    /// Ten seconds are between two reports of where it is, at this pace ten mebibytes.
    const SLOW: u64 = MIB;
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2", "s3"])?;
        let medium = volume.attach_socket()?;
        put_still(&medium)?;
        rot(volume, "s2", STILL.start + 100)?;
        rot(volume, "s3", STILL.end - 100)?;
        let run = begin(cluster, volume, SLOW, false)?;
        let beyond = |least: u64| {
            wait::that(wait::LONG, "the scrub goes on", || {
                Ok(match volume.shown() {
                    Err(error) => Err(error.to_string()),
                    Ok(shown) => match shown.scrub {
                        Some(scrub) if scrub.compared_bytes >= least => Ok(scrub.compared_bytes),
                        other => Err(format!("{other:?}")),
                    },
                })
            })
        };
        beyond(STILL.start + 12 * MIB)?;
        process::kill(volume.engine(CLIENT)?, &cluster.dir())?;
        volume.wait_attached(CLIENT)?;
        let after = beyond(1)?;
        ensure!(after > STILL.start, "the next engine began at {after}");
        // The engine goes on without its agent; nobody hears of it before there is one again.
        cluster.kill(&[CLIENT])?;
        std::thread::sleep(std::time::Duration::from_secs(2));
        cluster.start_again(&[CLIENT])?;
        beyond(after + 2 * MIB)?;
        let leader = cluster.leader()?;
        cluster.kill(&[leader.as_str()])?;
        let ended = wait_ended(volume, run)?;
        cluster.start_again(&[leader.as_str()])?;
        ensure!(
            (ended.state, ended.found, ended.mended) == (ScrubState::Complete, 2, 2),
            "{ended:?}"
        );
        let events = told(cluster, &["scrub-mismatch"])?;
        ensure!(events.len() == 2, "told more than once, or not: {events:?}");
        is_still(&medium)?;
        volume.wait_in_sync()?;
        volume.detach(CLIENT)?;
        volume.copies_are_equal()
    })
}

#[test]
fn one_that_is_ended_by_request_begins_anew_the_next_time() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        put_still(&medium)?;
        let run = begin(cluster, volume, MIB, false)?;
        let (status, said, complaint) = cluster.storctl(&["volume", "scrub", "db1", "--cancel"])?;
        ensure!(
            status == 0 && said.contains("ended by request"),
            "{said}{complaint}"
        );
        ensure!(wait_ended(volume, run)?.state == ScrubState::Cancelled);
        let next = begin(cluster, volume, FAST, false)?;
        ensure!(next == run + 1, "{next} after {run}");
        ensure!(wait_ended(volume, next)?.state == ScrubState::Complete);
        volume.detach(CLIENT)?;
        volume.copies_are_equal()
    })
}
