//! Volumes as devices of the kernel's nbd driver.

use std::path::Path;

use anyhow::{Context as _, ensure};
use stor_api::objects::AttachmentSpec;
use stor_tests::cluster::{self, CLIENT};
use stor_tests::volume::{self, Volume};
use stor_tests::{skip, vm};

use crate::device::{self, Driver};

const MEMORY: u32 = 1536;

#[test]
fn without_the_driver_the_remedy_is_told_and_another_transport_is_taken() -> anyhow::Result<()> {
    let test = "nbd::without_the_driver_the_remedy_is_told_and_another_transport_is_taken";
    vm::inside(test, MEMORY, &[], || {
        if Path::new("/dev/nbd0").exists() {
            skip::skipped(test, "a kernel whose nbd is a module");
            return Ok(());
        }
        cluster::with(|cluster| {
            let node = cluster.run(cluster.client().node(CLIENT))?;
            let order: Vec<_> = node.transports.iter().map(|probe| probe.name.as_str()).collect();
            ensure!(order == ["ublk", "nbd", "fuse", "socket"], "{order:?}");
            let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1"])?;
            for (transport, remedy) in [("nbd", "modprobe nbd"), ("ublk", "modprobe ublk_drv")] {
                let wish = volume::wish(CLIENT, transport, false);
                let forced = cluster.run(cluster.client().attach("db1", &wish));
                let refused = format!("{:?}", forced.err().context("attached without a driver")?);
                ensure!(refused.contains(remedy), "{refused}");
            }
            let any = AttachmentSpec {
                transport: None,
                ..volume::wish(CLIENT, "", false)
            };
            cluster.run(cluster.client().attach("db1", &any))?;
            ensure!(volume.wait_attached(CLIENT)?.transport == "socket");
            Ok(())
        })
    })
}

#[test]
fn file_systems_live_on_it_and_nothing_is_left() -> anyhow::Result<()> {
    device::has_file_systems(Driver::Nbd, "nbd::file_systems_live_on_it_and_nothing_is_left")
}

#[test]
fn a_device_in_use_is_not_taken_away() -> anyhow::Result<()> {
    device::is_not_taken_from_its_users(Driver::Nbd, "nbd::a_device_in_use_is_not_taken_away")
}

#[test]
fn it_goes_on_without_an_error_when_engine_and_agent_are_killed() -> anyhow::Result<()> {
    let test = "nbd::it_goes_on_without_an_error_when_engine_and_agent_are_killed";
    device::outlives_engine_and_agent(Driver::Nbd, test)
}

#[test]
fn fio_verifies_every_block_while_engines_are_killed_and_one_is_too_slow() -> anyhow::Result<()> {
    let test = "nbd::fio_verifies_every_block_while_engines_are_killed_and_one_is_too_slow";
    device::is_verified_by_fio(Driver::Nbd, test)
}

#[test]
fn an_agent_killed_at_any_moment_leaves_one_device_or_none() -> anyhow::Result<()> {
    let test = "nbd::an_agent_killed_at_any_moment_leaves_one_device_or_none";
    device::is_one_or_none_whenever_the_agent_dies(Driver::Nbd, test)
}

#[test]
fn it_grows_under_a_mounted_file_system() -> anyhow::Result<()> {
    device::grows_under_load(Driver::Nbd, "nbd::it_grows_under_a_mounted_file_system")
}

#[test]
fn a_trim_gives_space_back_on_every_copy() -> anyhow::Result<()> {
    device::gives_space_back(Driver::Nbd, "nbd::a_trim_gives_space_back_on_every_copy")
}
