//! A stage: a volume of its own with a crowd on it, and the judgement at its end. A round: faults on a stage by a
//! schedule.

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
        let stage = Stage::set(cluster, self.number, nodes)?;
        let mut hand = Hand::new(cluster, stage.volume(), &stage.crowd)?;
        hand.play(&steps)?;
        let healed = Instant::now();
        stage.volume().wait_in_sync()?;
        let healed = healed.elapsed();
        let done = stage
            .end(hand.node())
            .with_context(|| format!("seed {}", self.seed))?;
        let removals = removals(cluster, &stage.name)?;
        cluster.run(cluster.client().delete_volume(&stage.name, false))?;
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

/// A volume that is used by a crowd.
#[derive(Debug)]
pub struct Stage<'a> {
    cluster: &'a Cluster,
    name: String,
    /// Its users.
    pub crowd: Crowd,
}

impl<'a> Stage<'a> {
    /// Makes the volume on these nodes, attaches it on the first client, and lets the crowd begin.
    pub fn set(cluster: &'a Cluster, number: u16, nodes: &[&str]) -> anyhow::Result<Self> {
        let name = format!("r{number}");
        let volume = Volume::create(cluster, &name, SIZE, nodes)?;
        let crowd = Crowd::new(number + 1, SIZE);
        crowd.serve(&volume.attach_socket()?)?;
        crowd.wait_for(SOME)?;
        Ok(Self { cluster, name, crowd })
    }

    /// The volume.
    pub fn volume(&self) -> Volume<'_> {
        Volume::of(self.cluster, &self.name)
    }

    /// Everything is good again, and the volume used on `node`: it has to serve and come in sync, and what it
    /// shows, what each copy's file holds and all that was ever answered have to be of one history.
    pub fn end(&self, node: &str) -> anyhow::Result<Done> {
        let volume = self.volume();
        volume.wait_in_sync()?;
        self.crowd.wait_for(SOME)?;
        let mut done = self.crowd.stop()?;
        let (crowd, record) = (&self.crowd, &mut done.record);
        let mut open = volume.medium(&volume.wait_attached(node)?)?.open()?;
        crowd.read_all(record, LAST_LOOK, |offset, into| Ok(open.read(offset, into)?))?;
        drop(open);
        volume.detach(node)?;
        // A removal that was asked for while nobody led may have been decided only now: then it comes back first.
        volume.wait_in_sync()?;
        for (client, replica) in (LAST_LOOK + 1..).zip(volume.shown()?.replicas) {
            let (data, _) = volume.files(&replica.node)?;
            let file = File::open(&data)?;
            let length = file.metadata()?.len();
            let read = |offset: u64, into: &mut [u8]| {
                let left = usize::try_from(length.saturating_sub(offset))?.min(into.len());
                Ok(file.read_exact_at(into.get_mut(..left).unwrap_or_default(), offset)?)
            };
            crowd
                .read_all(record, client, read)
                .with_context(|| format!("the copy on {}", replica.node))?;
        }
        let file = format!("stor-tests-history-{}-{}", std::process::id(), self.name);
        let (operations, ..) = record.counts();
        ensure!(operations > 0, "nothing was done");
        record.check(&std::env::temp_dir().join(file))?;
        volume.copies_are_equal()?;
        self.cluster.wait_healthy()?;
        Ok(done)
    }
}
