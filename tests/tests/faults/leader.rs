//! The leading controller killed at inconvenient moments.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use stor_api::client::Filter;
use stor_tests::cluster::{self, CLIENT, CONTROLLERS, Cluster};
use stor_tests::volume::{self, Volume};
use stor_tests::writer::{OnLoss, Writer};
use stor_tests::{process, wait};

/// Clients that create at the same time, and creates of each.
const CLIENTS: usize = 3;
const CREATES: usize = 15;

/// Names and ids of the volumes whose creation was answered.
type Answered = Arc<Mutex<BTreeMap<String, String>>>;

fn answers(answered: &Answered) -> BTreeMap<String, String> {
    answered.lock().unwrap().clone()
}

async fn create_all(
    client: stor_api::client::Client,
    number: usize,
    answered: Answered,
) -> anyhow::Result<()> {
    for count in 0..CREATES {
        let name = format!("v{number}-{count}");
        let made = client.create_volume(&volume::spec(&name, 1 << 20)).await?;
        ensure!(made.name == name, "asked for {name}, answered {}", made.name);
        answered.lock().unwrap().insert(name, made.id);
    }
    Ok(())
}

#[test]
fn no_answered_create_is_lost_and_none_is_done_twice() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let answered = Answered::default();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let call = create_all(cluster.client().clone(), number, Arc::clone(&answered));
                cluster.spawn(call)
            })
            .collect();
        let leader = cluster.leader()?;
        wait::until(wait::LONG, "some creates were answered", || {
            Ok(answers(&answered).len() >= CLIENTS * CREATES / 4)
        })?;
        cluster.kill(&[&leader])?;
        println!(
            "{leader} led and was killed after {} answers",
            answers(&answered).len()
        );
        for client in clients {
            cluster.run(client)??;
        }
        let answered = answers(&answered);
        ensure!(answered.len() == CLIENTS * CREATES, "{} answers", answered.len());
        exactly_these(cluster, &answered)?;
        // Asked again, each is still the same.
        for (name, id) in &answered {
            let again = cluster.run(cluster.client().create_volume(&volume::spec(name, 1 << 20)))?;
            ensure!(again.id == *id, "{name} was {id} and is {}", again.id);
        }
        cluster.start_again(&[&leader])?;
        cluster.wait_healthy()?;
        exactly_these(cluster, &answered)
    })
}

fn exactly_these(cluster: &Cluster, answered: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let listed = cluster.run(cluster.client().volumes(&Filter::default()))?;
    let found: BTreeMap<String, String> = listed.iter().map(|v| (v.name.clone(), v.id.clone())).collect();
    ensure!(found.len() == listed.len(), "a name is listed twice: {listed:?}");
    ensure!(found == *answered, "answered: {answered:?}\nlisted: {found:?}");
    let events = cluster.run(cluster.client().events(0))?;
    for name in answered.keys() {
        let object = format!("volume/{name}");
        let times = events
            .iter()
            .filter(|event| event.object == object && event.kind == "volume-created")
            .count();
        ensure!(times == 1, "{name} was created {times} times");
    }
    Ok(())
}

/// A controller that hangs is connected to by its kernel, and the others name it until they have elected another. What is
/// seen meanwhile may be unknown; nothing failed.
#[test]
fn a_leader_that_hangs_is_left_and_nothing_is_called_failed() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        writer.wait_for(200)?;
        let leader = cluster.leader()?;
        let pid = cluster.pid(&leader).context("the leader runs")?;
        process::pause(pid, &cluster.scratch())?;
        cluster.kill(&["s1"])?;
        let others = CONTROLLERS.into_iter().filter(|name| *name != leader);
        let others: Vec<_> = others
            .map(|name| cluster.client_of(name))
            .collect::<Result<_, _>>()?;
        let removed = wait::that(wait::LONG, "s1 is removed and every other node is back", || {
            let Ok(status) = cluster.run(others[0].status()) else {
                return Ok(Err("no answer".to_owned()));
            };
            let failed = status.checks.iter().find(|check| check.code == "VOLUME_FAILED");
            ensure!(failed.is_none(), "{failed:?}");
            let Ok(shown) = cluster.run(others[0].volume("db1")) else {
                return Ok(Err("no answer".to_owned()));
            };
            let gone = shown
                .replicas
                .iter()
                .any(|replica| replica.node == "s1" && !replica.in_sync);
            let back = status.nodes.storage_online == 2 && status.nodes.diskless_online == 1;
            Ok(if gone && back {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            })
        });
        println!("{leader} hangs, s1 off: longest wait {:?}", writer.longest());
        process::resume(pid, &cluster.scratch())?;
        removed?;
        writer.wait_for(200)?;
        cluster.start_again(&["s1"])?;
        volume.wait_in_sync()?;
        cluster.wait_healthy()?;
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}

#[test]
fn the_leader_dies_while_a_node_is_removed_from_the_in_sync_set() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        writer.wait_for(200)?;

        for pause in [0, 450, 550] {
            let leader = cluster.leader()?;
            cluster.kill(&["s1"])?;
            // The engine takes a member for unreachable after half a second: before, at, after its proposal.
            std::thread::sleep(Duration::from_millis(pause));
            cluster.kill(&[&leader])?;
            writer.wait_for(200)?;
            println!(
                "s1 and, {pause} ms later, the leader {leader} off: longest wait {:?}",
                writer.longest()
            );
            volume.wait_member("s1", false)?;
            cluster.start_again(&[&leader, "s1"])?;
            volume.wait_in_sync()?;
            cluster.wait_healthy()?;
        }
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}
