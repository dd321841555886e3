//! The leading controller killed at inconvenient moments.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::ensure;
use stor_api::client::Filter;
use stor_tests::cluster::{self, CLIENT, Cluster};
use stor_tests::volume::{self, Volume};
use stor_tests::wait;
use stor_tests::writer::{OnLoss, Writer};

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
