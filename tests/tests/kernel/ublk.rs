//! Volumes as devices of the kernel's ublk driver. They need a kernel that has it: `tests/kernels/build uml-6.12`.

use std::path::Path;

use anyhow::ensure;
use stor_device::ublk::Control;
use stor_tests::clients::run_ok;
use stor_tests::cluster::CLIENT;
use stor_tests::volume::{self, Volume};
use stor_tests::wait;

use crate::device::{self, Driver};

/// An agent that was killed in the midst of taking a device down leaves it so.
#[test]
fn a_device_that_was_stopped_is_made_anew_with_another_engine() -> anyhow::Result<()> {
    let test = "ublk::a_device_that_was_stopped_is_made_anew_with_another_engine";
    Driver::Ublk.with(test, |cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let before = volume.attach(CLIENT, "ublk", false)?;
        let write = |of: &str| run_ok("dd", &["if=/dev/urandom", of, "bs=1M", "count=4", "oflag=direct"]);
        let of = format!("of={}", before.device);
        write(&of)?;
        cluster.kill(&[CLIENT])?;
        let numbers = stor_device::ublk::numbers()?;
        let [index] = numbers.as_slice() else {
            anyhow::bail!("devices {numbers:?}");
        };
        Control::open()?.stop(*index)?;
        ensure!(!Path::new(&format!("/sys/block/ublkb{index}")).exists());
        cluster.start_again(&[CLIENT])?;
        wait::that(wait::LONG, "another engine serves another device", || {
            let now = volume.wait_attached(CLIENT)?;
            Ok(if now.epoch > before.epoch && now.device == before.device {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            })
        })?;
        write(&of)?;
        // The stopped device, started again, would be there for a while and fail everything.
        let said = run_ok("dmesg", &[] as &[&str])?;
        ensure!(!said.contains("I/O error, dev ublkb"), "{said}");
        Driver::Ublk.leaves_nothing(volume, &before.device)
    })
}

#[test]
fn file_systems_live_on_it_and_nothing_is_left() -> anyhow::Result<()> {
    device::has_file_systems(Driver::Ublk, "ublk::file_systems_live_on_it_and_nothing_is_left")
}

#[test]
fn a_device_in_use_is_not_taken_away() -> anyhow::Result<()> {
    device::is_not_taken_from_its_users(Driver::Ublk, "ublk::a_device_in_use_is_not_taken_away")
}

#[test]
fn it_goes_on_without_an_error_when_engine_and_agent_are_killed() -> anyhow::Result<()> {
    let test = "ublk::it_goes_on_without_an_error_when_engine_and_agent_are_killed";
    device::outlives_engine_and_agent(Driver::Ublk, test)
}

#[test]
fn fio_verifies_every_block_while_engines_are_killed_and_one_is_too_slow() -> anyhow::Result<()> {
    let test = "ublk::fio_verifies_every_block_while_engines_are_killed_and_one_is_too_slow";
    device::is_verified_by_fio(Driver::Ublk, test)
}

#[test]
fn an_agent_killed_at_any_moment_leaves_one_device_or_none() -> anyhow::Result<()> {
    let test = "ublk::an_agent_killed_at_any_moment_leaves_one_device_or_none";
    device::is_one_or_none_whenever_the_agent_dies(Driver::Ublk, test)
}

#[test]
fn it_grows_under_a_mounted_file_system() -> anyhow::Result<()> {
    device::grows_under_load(Driver::Ublk, "ublk::it_grows_under_a_mounted_file_system")
}

#[test]
fn a_trim_gives_space_back_on_every_copy() -> anyhow::Result<()> {
    device::gives_space_back(Driver::Ublk, "ublk::a_trim_gives_space_back_on_every_copy")
}
