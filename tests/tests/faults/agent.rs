//! The agent of the node where a volume is used, killed: the engine goes on by itself.

use anyhow::ensure;
use stor_api::objects::NodeState;
use stor_tests::cluster::{self, CLIENT};
use stor_tests::volume::{self, Volume};
use stor_tests::writer::{OnLoss, Writer};

#[test]
fn an_agent_killed_under_load_finds_its_engine_again() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let before = volume.attachment(CLIENT)?;
        let engine = volume.engine(CLIENT)?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        writer.wait_for(200)?;

        cluster.kill(&[CLIENT])?;
        writer.wait_for(500)?;
        cluster.wait_node(CLIENT, NodeState::Offline)?;
        println!("agent away: longest wait {:?}", writer.longest());
        cluster.start_again(&[CLIENT])?;
        cluster.wait_node(CLIENT, NodeState::Online)?;
        let after = volume.wait_attached(CLIENT)?;
        writer.wait_for(500)?;
        println!("agent back: longest wait {:?}", writer.longest());

        ensure!(
            volume.engine(CLIENT)? == engine,
            "another engine than {engine} runs"
        );
        ensure!(
            (after.epoch, &after.nbd_uri) == (before.epoch, &before.nbd_uri),
            "{before:?} became {after:?}"
        );
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}

#[test]
fn a_member_lost_while_the_agent_is_away_is_removed_when_it_returns() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let engine = volume.engine(CLIENT)?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        writer.wait_for(200)?;

        cluster.kill(&[CLIENT, "s2"])?;
        // Nobody may acknowledge what s2 has not before its removal is committed.
        std::thread::sleep(std::time::Duration::from_secs(1));
        writer.has_to_wait(std::time::Duration::from_secs(3))?;
        cluster.start_again(&[CLIENT])?;
        writer.wait_for(200)?;
        println!("longest wait {:?}", writer.longest());
        ensure!(
            volume.engine(CLIENT)? == engine,
            "another engine than {engine} runs"
        );
        volume.wait_member("s2", false)?;
        cluster.start_again(&["s2"])?;
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}
