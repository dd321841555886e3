//! A second node takes a volume: never without force, and with it the first one is out, however late it wakes up.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use stor_api::client::Error;
use stor_tests::block::{self, BLOCK};
use stor_tests::cluster::{self, CLIENT, Cluster};
use stor_tests::medium::Medium;
use stor_tests::nbd::Nbd;
use stor_tests::volume::{self, Volume};
use stor_tests::writer::{OnLoss, Writer};
use stor_tests::{process, wait};

/// The node that takes over: it has no replica.
const OTHER: &str = "s3";
/// A slot beyond the writer's, for single requests.
const BESIDE: u64 = 8192;

#[test]
fn a_second_node_is_refused_and_with_force_the_first_is_fenced() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::End)?;
        writer.wait_for(200)?;

        let wish = volume::wish(OTHER, "socket", false);
        match cluster.run(cluster.client().attach("db1", &wish)) {
            Err(Error::Conflict(problem)) => {
                let text = format!("{} {} {}", problem.title, problem.detail, problem.remedy);
                ensure!(problem.status == 409, "{problem:?}");
                ensure!(text.contains(CLIENT), "it does not name the node: {problem:?}");
                ensure!(text.contains("force"), "it does not say what to do: {problem:?}");
            }
            other => bail!("attached on {CLIENT}, and then on {OTHER}: {other:?}"),
        }
        let (exit, _, said) = cluster.storctl(&["volume", "attach", "db1", "--node", OTHER])?;
        ensure!(exit == 4 && said.contains(CLIENT), "exit status {exit}: {said}");
        // In use, it can't be deleted either.
        match cluster.run(cluster.client().delete_volume("db1", false)) {
            Err(Error::Conflict(problem)) => {
                let text = format!("{} {}", problem.title, problem.detail);
                ensure!(text.contains(CLIENT), "it does not name the node: {problem:?}");
            }
            other => bail!("deleted while it was attached: {other:?}"),
        }
        writer.wait_for(200)?;
        ensure!(
            volume.engines(OTHER)?.is_empty(),
            "a refused attach has left an engine"
        );

        let attachment = volume.attach(OTHER, "socket", true)?;
        let there = volume.medium(&attachment)?;
        let mut history = writer.ended()?;
        volume.holds(&there, &mut history)?;
        gone(volume, CLIENT)?;
        let nodes: Vec<String> = volume.shown()?.attachments.into_iter().map(|a| a.node).collect();
        ensure!(nodes == [OTHER], "attached on {nodes:?}");
        let writer = Writer::go_on(&there, OnLoss::Fail, history)?;
        writer.wait_for(200)?;
        volume.closes_well(OTHER, &there, writer.stop()?)
    })
}

#[test]
fn of_two_nodes_that_ask_at_once_exactly_one_gets_the_volume() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        for round in 0..4 {
            let ask = |controller: &str, node: &'static str| {
                let client = cluster.client_of(controller)?;
                anyhow::Ok(cluster.spawn(async move {
                    let wish = volume::wish(node, "socket", false);
                    client.attach("db1", &wish).await
                }))
            };
            let (one, other) = (ask("c2", CLIENT)?, ask("c3", OTHER)?);
            let answers = [(CLIENT, cluster.run(one)?), (OTHER, cluster.run(other)?)];
            let [winner] = answers
                .iter()
                .filter(|(_, answer)| answer.is_ok())
                .map(|(node, _)| *node)
                .collect::<Vec<_>>()[..]
            else {
                bail!("not exactly one got it: {answers:?}");
            };
            let refused = answers.iter().find_map(|(_, answer)| answer.as_ref().err());
            match refused {
                Some(Error::Conflict(problem)) => {
                    let text = format!("{} {}", problem.title, problem.detail);
                    ensure!(text.contains(winner), "it does not name {winner}: {problem:?}");
                }
                other => bail!("{other:?}"),
            }
            println!("round {round}: {winner}");
            volume.wait_attached(winner)?;
            volume.detach(winner)?;
        }
        Ok(())
    })
}

/// Waits until no engine of the volume is on a node any more.
fn gone(volume: Volume<'_>, node: &str) -> anyhow::Result<()> {
    wait::that(wait::LONG, &format!("the engine on {node} has ended"), || {
        let left = volume.engines(node)?;
        Ok(if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        })
    })
}

fn socket(medium: &Medium) -> anyhow::Result<Nbd> {
    match medium {
        Medium::Socket { path, export } => Ok(Nbd::connect(path, export)?),
        Medium::Device(path) => bail!("{} is a device", path.display()),
    }
}

/// A machine that stops for a while, as a VM does, and goes on with all it had under way.
fn sleeper(pause: Duration) -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::End)?;
        writer.wait_for(300)?;
        // Both have been served before: nothing is left to negotiate.
        let (mut reads, mut writes) = (socket(&medium)?, socket(&medium)?);
        writes.write(BESIDE * BLOCK as u64, &block::fill(BESIDE, 1))?;
        let mut bytes = vec![0; BLOCK];
        reads.read(BESIDE * BLOCK as u64, &mut bytes)?;

        let (agent, engine) = (
            cluster.pid(CLIENT).context("the agent does not run")?,
            volume.engine(CLIENT)?,
        );
        process::pause(agent, &cluster.dir())?;
        process::pause(engine, &cluster.dir())?;
        // Asked while it sleeps, answered, if at all, after it.
        reads.send_read(BESIDE * BLOCK as u64, BLOCK)?;
        writes.send_write((BESIDE + 1) * BLOCK as u64, &block::fill(BESIDE + 1, 1))?;

        let there = volume.medium(&volume.attach(OTHER, "socket", true)?)?;
        let mut new = socket(&there)?;
        new.write(BESIDE * BLOCK as u64, &block::fill(BESIDE, 2))?;
        new.write((BESIDE + 1) * BLOCK as u64, &block::fill(BESIDE + 1, 2))?;
        std::thread::sleep(pause);

        wake(cluster, engine, agent, &mut reads, &mut writes)?;
        let mut history = writer.ended()?;
        volume.holds(&there, &mut history)?;
        for slot in [BESIDE, BESIDE + 1] {
            new.read(slot * BLOCK as u64, &mut bytes)?;
            let number = block::number(slot, &bytes)?;
            ensure!(number == 2, "slot {slot} holds write {number} of the old engine");
        }
        gone(volume, CLIENT)?;
        let writer = Writer::go_on(&there, OnLoss::Fail, history)?;
        writer.wait_for(200)?;
        volume.closes_well(OTHER, &there, writer.stop()?)
    })
}

/// The engine first, which has nobody to tell it that it is out; its agent when it has answered.
fn wake(cluster: &Cluster, engine: i32, agent: i32, reads: &mut Nbd, writes: &mut Nbd) -> anyhow::Result<()> {
    process::resume(engine, &cluster.dir())?;
    let mut bytes = vec![0; BLOCK];
    match reads.receive(&mut bytes) {
        Ok(()) => {
            let number = block::number(BESIDE, &bytes)?;
            ensure!(number == 2, "a stale read: write {number} instead of 2");
        }
        Err(failure) => println!("the sleeper's read: {failure}"),
    }
    match writes.receive(&mut []) {
        Ok(()) => bail!("the sleeper acknowledged a write"),
        Err(failure) => println!("the sleeper's write: {failure}"),
    }
    process::resume(agent, &cluster.dir())
}

#[test]
fn an_engine_that_slept_while_another_took_over_neither_writes_nor_reads_stale_data() -> anyhow::Result<()> {
    // Several leases.
    sleeper(Duration::from_secs(5))
}

#[test]
#[ignore = "takes more than a minute"]
fn an_engine_that_slept_for_a_minute_neither_writes_nor_reads_stale_data() -> anyhow::Result<()> {
    sleeper(Duration::from_mins(1))
}
