//! One round: a volume of its own, a crowd on it, faults by a schedule, everything good again, and the judgement.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::hand::Hand;
use super::schedule::schedule;
use crate::cluster::{Cluster, STORAGE};
use crate::registers::{Crowd, Done};
use crate::volume::Volume;

/// Bytes of a round's volume: a disk holds two, for the next is made while the last is being removed.
const SIZE: u64 = 96 << 20;
/// Requests that show that the volume is served again.
const SOME: u64 = 300;
/// Clients that are no client: the last look through the volume, and the replicas' own files.
const LAST_LOOK: u16 = 60_000;

/// What a round is made of.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Of its schedule.
    pub seed: u64,
    /// Of its faults.
    pub length: Duration,
    /// Its place among the rounds on one cluster.
    pub number: u16,
}

/// What a round came to.
#[derive(Debug, Default)]
pub struct Report {
    /// Faults done.
    pub faults: u32,
    /// Take-overs by force among them.
    pub taken_over: u32,
    /// Requests answered to clients.
    pub answered: u64,
    /// Operations on blocks, those whose fate stays unknown, the most on one block.
    pub operations: (usize, usize, usize),
    /// Connections made again.
    pub reconnects: u64,
    /// The longest wait for an answer.
    pub longest: Duration,
    /// Replicas that left the in-sync set, by reason.
    pub removals: BTreeMap<String, u32>,
    /// From the end of the faults until every replica was in sync.
    pub healed: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (operations, unknown, most) = self.operations;
        write!(
            f,
            "{} faults, {} take-overs; {} requests answered, {} reconnects, longest wait {:.1} s; {operations} operations \
             on blocks ({unknown} of unknown fate, at most {most} on one), all linearizable; replicas removed {:?}; in \
             sync {:.1} s after the last fault, copies equal",
            self.faults,
            self.taken_over,
            self.answered,
            self.reconnects,
            self.longest.as_secs_f32(),
            self.removals,
            self.healed.as_secs_f32()
        )
    }
}

impl Round {
    /// Plays it. The error says what was wrong; the seed is printed before.
    pub fn play(self, cluster: &Cluster) -> anyhow::Result<Report> {
        let steps = schedule(self.seed, self.length);
        println!("seed {}, {} faults:", self.seed, steps.len());
        for step in &steps {
            println!("  {step}");
        }
        // Three copies, or two that must do with one.
        let nodes: &[&str] = match self.seed % 3 {
            0 => &STORAGE,
            1 => &["s1", "s2"],
            _ => &["s2", "s3"],
        };
        let name = format!("r{}", self.number);
        let volume = Volume::create(cluster, &name, SIZE, nodes)?;
        let crowd = Crowd::new(self.number + 1, SIZE);
        crowd.serve(&volume.attach_socket()?)?;
        crowd.wait_for(SOME)?;
        let mut hand = Hand::new(cluster, volume, &crowd)?;
        hand.play(&steps)?;
        let healed = Instant::now();
        volume.wait_in_sync()?;
        let healed = healed.elapsed();
        crowd.wait_for(SOME)?;
        let mut done = crowd.stop()?;
        judge(cluster, volume, &crowd, &mut done, hand.node())
            .with_context(|| format!("seed {}", self.seed))?;
        cluster.wait_healthy()?;
        let removals = removals(cluster, &name)?;
        cluster.run(cluster.client().delete_volume(&name, false))?;
        Ok(Report {
            faults: hand.faults,
            taken_over: hand.taken_over,
            answered: done.answered,
            operations: done.record.counts(),
            reconnects: done.reconnects,
            longest: done.longest,
            removals,
            healed,
        })
    }
}

/// Why replicas of a volume left its in-sync set, and how often.
fn removals(cluster: &Cluster, name: &str) -> anyhow::Result<BTreeMap<String, u32>> {
    let mut reasons = BTreeMap::new();
    let object = format!("volume/{name}");
    for event in cluster.run(cluster.client().events(0))? {
        if event.kind == "replica-removed" && event.object == object {
            let reason = event.message.rsplit(": ").next().unwrap_or_default();
            *reasons
                .entry(reason.trim_end_matches('.').to_owned())
                .or_default() += 1;
        }
    }
    Ok(reasons)
}

/// What the volume shows, what each copy's file holds, and all that was ever answered must be of one history.
fn judge(
    cluster: &Cluster,
    volume: Volume<'_>,
    crowd: &Crowd,
    done: &mut Done,
    node: &str,
) -> anyhow::Result<()> {
    let mut open = volume.medium(&volume.wait_attached(node)?)?.open()?;
    crowd.read_all(&mut done.record, LAST_LOOK, |offset, into| {
        Ok(open.read(offset, into)?)
    })?;
    drop(open);
    volume.detach(node)?;
    volume.copies_are_equal()?;
    for (client, replica) in (LAST_LOOK + 1..).zip(volume.shown()?.replicas) {
        let (data, _) = volume.files(&replica.node)?;
        let file = File::open(&data)?;
        let length = file.metadata()?.len();
        crowd
            .read_all(&mut done.record, client, |offset, into| {
                let left = usize::try_from(length.saturating_sub(offset))?.min(into.len());
                Ok(file.read_exact_at(into.get_mut(..left).unwrap_or_default(), offset)?)
            })
            .with_context(|| format!("the copy on {}", replica.node))?;
    }
    let (operations, ..) = done.record.counts();
    ensure!(operations > 0, "nothing was done");
    let name = format!("stor-tests-history-{}-{}", std::process::id(), volume.name);
    done.record.check(&std::env::temp_dir().join(name))?;
    cluster.network()?.heal_all()
}
