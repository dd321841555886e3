//! The plug of a whole cluster is pulled while a volume of it is in use.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use stor_tests::vm::{self, Setup, Vm};
use stor_tests::{cluster, leftovers, skip};

use crate::device::Driver;

const DISK: u64 = 4 << 30;
const MEMORY: u32 = 1536;
/// A cluster that starts, or a volume that comes back, in a machine with one slow processor.
const START: Duration = Duration::from_mins(3);
const ROUNDS: u32 = 2;

/// Boots the machine and starts its cluster, which is on its disk.
fn start(driver: Driver, disk: &Path, programs: &Path) -> anyhow::Result<Vm> {
    let mut vm = Vm::start(&Setup {
        kernel: driver.kernel(),
        memory: MEMORY,
        disks: vec![disk.to_owned()],
        ..Setup::default()
    })?;
    // A file system is made once.
    vm.run("modprobe -a nbd ublk_drv; blkid /dev/ubda >/dev/null || mkfs.ext4 -q -E nodiscard /dev/ubda")?;
    vm.run("mkdir /srv/d && mount /dev/ubda /srv/d")?;
    vm.run_within(
        START,
        &format!(
            "export PATH={}:$PATH
             storctl quickstart --dir /srv/d/q >/srv/d/log 2>&1 &
             until [ -e /srv/d/q/env ] && . /srv/d/q/env && storctl status | grep -q '1 of 1 node online'; do
                 kill -0 $! || {{ cat /srv/d/log; exit 1; }}
                 sleep 0.5
             done",
            programs.display()
        ),
    )?;
    Ok(vm)
}

#[test]
fn what_was_synced_on_an_nbd_device_is_there_when_the_machine_is_back() -> anyhow::Result<()> {
    let test = "power::what_was_synced_on_an_nbd_device_is_there_when_the_machine_is_back";
    with(Driver::Nbd, test)
}

#[test]
fn what_was_synced_on_a_ublk_device_is_there_when_the_machine_is_back() -> anyhow::Result<()> {
    let test = "power::what_was_synced_on_a_ublk_device_is_there_when_the_machine_is_back";
    with(Driver::Ublk, test)
}

fn with(driver: Driver, test: &str) -> anyhow::Result<()> {
    if let Some(missing) = driver.kernel().missing() {
        skip::skipped(test, &missing);
        return Ok(());
    }
    let root = leftovers::new_root()?;
    let done = again_and_again(driver, &root);
    leftovers::remove(&root);
    done
}

fn again_and_again(driver: Driver, root: &Path) -> anyhow::Result<()> {
    let storctl = cluster::built("storctl")?;
    let programs = storctl.parent().context("a program in no directory")?;
    let disk = vm::disk(&root.join("disk"), DISK)?;
    let with_env = |script: &str| {
        format!(
            "set -e; PATH={}:$PATH; . /srv/d/q/env; {script}",
            programs.display()
        )
    };
    let mut vm = start(driver, &disk, programs)?;
    vm.run_within(
        START,
        &with_env(&format!(
            "until storctl volume create db 384Mi --replicas 2; do sleep 1; done
             storctl volume attach db --node k1 --transport {}
             mkfs.xfs -q /dev/stor/db
             mkdir /srv/tree && mount /dev/stor/db /srv/tree",
            driver.transport()
        )),
    )?;
    for round in 1..=ROUNDS {
        vm.run(&format!(
            "cd /srv/tree && head -c 20M /dev/urandom >synced{round} && sha256sum synced* >sums && sync -f ."
        ))?;
        vm.run(&format!(
            "cd /srv/tree && head -c 20M /dev/urandom >unsynced{round}"
        ))?;
        vm.pull_the_plug();

        vm = start(driver, &disk, programs)?;
        // The volume was attached, and is again.
        if let Err(error) = vm.run_within(START, "until [ -b /dev/stor/db ]; do sleep 0.2; done") {
            let why = "tail -n 30 /srv/d/log /srv/d/q/log/*; storctl volume describe db; tail -n 20 /srv/d/q/log/k1.log /srv/d/q/k1/engines/*/engine.log";
            eprintln!("{:#?}", vm.try_run(&with_env(why))?);
            return Err(error);
        }
        vm.run("mkdir /srv/tree && mount /dev/stor/db /srv/tree && umount /srv/tree")?;
        vm.run("xfs_repair -n /dev/stor/db")?;
        vm.run("mount /dev/stor/db /srv/tree")?;
        let sums = vm.run("cd /srv/tree && sha256sum -c sums")?;
        ensure!(sums.lines().count() == usize::try_from(round)?, "{sums}");
    }
    vm.run_within(
        START,
        &with_env(
            "umount /srv/tree
             storctl volume detach db --node k1
             ! cat /sys/block/nbd*/backend 2>/dev/null
             ! ls -d /sys/block/ublkb* 2>/dev/null
             ! [ -e /dev/stor/db ]",
        ),
    )?;
    vm.power_off()
}
