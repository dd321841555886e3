//! A cluster of which every daemon has a disk of its own that loses what was not flushed, and whose machines can
//! lose their power, alone or all at one moment.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use stor_tests::cluster::{CLIENT, CONTROLLERS, Cluster, STORAGE};
use stor_tests::lossy::Disk;
use stor_tests::lossy::chance::Chance;
use stor_tests::lossy::tree::Lost;
use stor_tests::{process, wait};

/// Killed processes are gone within this time.
const GONE: Duration = Duration::from_mins(1);
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// The daemons of all machines.
pub(crate) fn all() -> Vec<&'static str> {
    CONTROLLERS
        .iter()
        .chain(&STORAGE)
        .chain([&CLIENT])
        .copied()
        .collect()
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Machines {
    /// The processes; goes before the disks do.
    pub(crate) cluster: Cluster,
    disks: BTreeMap<&'static str, Disk>,
    boots: u64,
}

impl Machines {
    /// Starts all of them on empty disks.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut disks = BTreeMap::new();
        let cluster = Cluster::start_prepared(|dir| {
            for name in all() {
                let point = dir.join(name);
                fs::create_dir(&point)?;
                let disk = Disk::mount(&point)?;
                if STORAGE.contains(&name) {
                    // Made by whoever set the machine up, long ago.
                    fs::create_dir(point.join("pool"))?;
                    disk.settle()?;
                }
                disks.insert(name, disk);
            }
            Ok(())
        })?;
        Ok(Self {
            cluster,
            disks,
            boots: 0,
        })
    }

    /// The disk of a daemon.
    pub(crate) fn disk(&self, name: &str) -> anyhow::Result<&Disk> {
        self.disks
            .get(name)
            .with_context(|| format!("{name} has no disk"))
    }

    /// These lose their power at one moment: their processes are gone, and what their disks had not made durable
    /// is as `chance` has it.
    pub(crate) fn cut(&mut self, names: &[&str], chance: &mut Chance) -> anyhow::Result<Lost> {
        for name in names {
            self.disk(name)?.hold();
        }
        let killed = self.kill(names);
        for name in names {
            self.disk(name)?.release();
        }
        let killed = killed?;
        wait::until(GONE, "the processes of the machines are gone", || {
            Ok(killed.iter().all(|pid| process::is_gone(*pid)))
        })?;
        let mut lost = Lost::default();
        for (_, disk) in self.disks.iter_mut().filter(|(name, _)| names.contains(name)) {
            let one = disk.cut(chance)?;
            lost.blocks += one.blocks;
            lost.names += one.names;
        }
        Ok(lost)
    }

    /// Kills until nobody new appears: what is killed can't start anything, but may wait for its disk still.
    fn kill(&self, names: &[&str]) -> anyhow::Result<Vec<i32>> {
        let mut killed = Vec::new();
        wait::until(GONE, "no process of the machines is left to be killed", || {
            let mut more = false;
            for name in names {
                for pid in process::all_of(&self.cluster.dir().join(name)) {
                    if !killed.contains(&pid) {
                        more = true;
                        killed.push(pid);
                        // It may end this very moment.
                        _ = process::signal(pid, rustix::process::Signal::KILL, &self.cluster.dir());
                    }
                }
            }
            Ok(!more)
        })?;
        Ok(killed)
    }

    /// Switches machines on again. To their programs it is another boot of the kernel.
    pub(crate) fn boot(&mut self, names: &[&str]) -> anyhow::Result<()> {
        self.boots += 1;
        let id = self.cluster.scratch().join(format!("boot-{}", self.boots));
        let (process, boot) = (std::process::id(), self.boots);
        fs::write(&id, format!("{process:08x}-0000-4000-8000-{boot:012x}\n"))?;
        for name in names {
            let script = self.cluster.dir().join("run").join(format!("{name}.start"));
            let output = Command::new("unshare")
                .args(["--mount", "--propagation", "private", "sh", "-c"])
                .arg(format!("mount --bind \"$1\" {BOOT} && exec \"$2\""))
                .arg("sh")
                .arg(&id)
                .arg(&script)
                .output()
                .context("running unshare")?;
            ensure!(output.status.success(), "{}: {output:?}", script.display());
        }
        for name in names {
            wait::until(wait::LONG, &format!("{name} runs"), || {
                Ok(self.cluster.pid(name).is_some())
            })?;
        }
        Ok(())
    }

    /// An error when a daemon of these does not run: it refused what it found on its disk.
    pub(crate) fn all_run(&self) -> anyhow::Result<()> {
        for name in all() {
            if self.cluster.pid(name).is_none() {
                let log = self.cluster.log(name);
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                anyhow::bail!("{name} does not run: {last:#?}");
            }
        }
        Ok(())
    }
}
