//! Storage nodes with a controller on each, switched off and on in the order users try first.

use std::time::Duration;

use stor_tests::cluster::{self, CLIENT, Cluster};
use stor_tests::volume::{self, Volume};
use stor_tests::writer::{OnLoss, Writer};

/// Acknowledged writes that show that I/O goes on.
const SOME: u64 = 200;

/// The daemons of the machine `N`.
fn machine(number: u8) -> [String; 2] {
    [format!("s{number}"), format!("c{number}")]
}

fn off(cluster: &Cluster, machines: &[u8]) -> anyhow::Result<()> {
    let names: Vec<String> = machines.iter().copied().flat_map(machine).collect();
    cluster.kill(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

fn on(cluster: &Cluster, machines: &[u8]) -> anyhow::Result<()> {
    let names: Vec<String> = machines.iter().copied().flat_map(machine).collect();
    cluster.start_again(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

/// One machine off, then another: I/O goes on, or waits while nobody can decide. Both on: everything comes back.
fn one_then_another(cluster: &Cluster, volume: Volume<'_>, writer: &Writer, first: u8) -> anyhow::Result<()> {
    off(cluster, &[first])?;
    writer.wait_for(SOME)?;
    println!("s{first} off: longest wait {:?}", writer.longest());
    volume.wait_member(&format!("s{first}"), false)?;
    off(cluster, &[3])?;
    // One controller of three is left: nothing can be decided, and nothing has to be.
    writer.wait_for(SOME)?;
    println!("s{first} and s3 off: longest wait {:?}", writer.longest());
    on(cluster, &[first, 3])?;
    writer.wait_for(SOME)?;
    volume.wait_in_sync()?;
    writer.wait_for(SOME)?;
    println!("both on and in sync: longest wait {:?}", writer.longest());
    Ok(())
}

#[test]
fn machines_go_off_and_on_in_turn_and_all_together() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        writer.wait_for(SOME)?;

        one_then_another(cluster, volume, &writer, 2)?;
        one_then_another(cluster, volume, &writer, 1)?;

        off(cluster, &[1, 2, 3])?;
        // What was on its way when the lights went out has arrived by then.
        std::thread::sleep(Duration::from_secs(1));
        writer.has_to_wait(Duration::from_secs(4))?;
        on(cluster, &[1, 2, 3])?;
        writer.wait_for(SOME)?;
        println!("all off and on: longest wait {:?}", writer.longest());
        volume.wait_in_sync()?;
        writer.wait_for(SOME)?;
        volume.closes_well(CLIENT, &medium, writer.stop()?)?;
        cluster.wait_healthy()
    })
}
