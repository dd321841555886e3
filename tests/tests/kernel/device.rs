//! What is asked of volumes as devices of a driver of the kernel, whichever it is: nbd or ublk.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use stor_api::objects::AttachmentSpec;
use stor_tests::clients::{self, run_ok};
use stor_tests::cluster::{self, CLIENT, Cluster};
use stor_tests::filesystem::{FileSystem, Kind};
use stor_tests::vm::{self, Kernel};
use stor_tests::volume::{self, Volume};
use stor_tests::writer::{OnLoss, Writer};
use stor_tests::{process, wait};

const MEMORY: u32 = 1536;
/// Engines killed in a row.
const KILLS: usize = 2;
/// Twice the time after which the kernel gives a connection of nbd up.
const TOO_SLOW: Duration = Duration::from_secs(12);
/// xfs wants 300 MiB and more.
const FOR_A_FILE_SYSTEM: u64 = 5 * volume::SIZE;
const NODES: [&str; 2] = ["s1", "s2"];

/// A driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Driver {
    Nbd,
    Ublk,
}

impl Driver {
    pub(crate) fn transport(self) -> &'static str {
        match self {
            Self::Nbd => "nbd",
            Self::Ublk => "ublk",
        }
    }

    pub(crate) fn kernel(self) -> Kernel {
        match self {
            Self::Nbd => Kernel::chosen(),
            Self::Ublk => Kernel::with_ublk(),
        }
    }

    /// Runs a test in a virtual machine on a cluster whose nodes have the driver.
    pub(crate) fn with(
        self,
        test: &str,
        body: impl FnOnce(&mut Cluster) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        vm::inside_with(&self.kernel(), test, MEMORY, &[], || {
            let module = match self {
                Self::Nbd => "nbd",
                Self::Ublk => "ublk_drv",
            };
            run_ok("modprobe", &[module])?;
            cluster::with(|cluster| {
                body(cluster).inspect_err(|error| {
                    eprintln!("{error:?}");
                    let_go();
                })
            })
        })
    }

    /// The devices that there are: for nbd the texts that say whose they are.
    pub(crate) fn devices(self) -> anyhow::Result<Vec<String>> {
        let mut found: Vec<_> = match self {
            Self::Nbd => fs::read_dir("/sys/block")?
                .flatten()
                .filter_map(|device| fs::read_to_string(device.path().join("backend")).ok())
                .collect(),
            Self::Ublk => fs::read_dir("/sys/class/ublk-char")?
                .flatten()
                .filter_map(|device| device.file_name().into_string().ok())
                .collect(),
        };
        found.sort();
        Ok(found)
    }

    /// Detaches, and sees that nothing is left in the kernel.
    pub(crate) fn leaves_nothing(self, volume: Volume<'_>, device: &str) -> anyhow::Result<()> {
        volume.detach(CLIENT)?;
        let left = self.devices()?;
        ensure!(left.is_empty(), "devices are left: {left:?}");
        ensure!(!Path::new(device).exists(), "{device} is left");
        volume.copies_are_equal()
    }
}

/// Takes file systems off the devices of a test that failed: the end of its cluster would wait for them, and they for it.
fn let_go() {
    let drivers = ["/dev/stor/", "/dev/nbd", "/dev/ublkb"];
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for line in mounts
        .lines()
        .filter(|line| drivers.iter().any(|driver| line.starts_with(driver)))
    {
        let tree = line.split(' ').nth(1).unwrap_or_default();
        if let Err(error) = run_ok("umount", &["-l", tree]) {
            eprintln!("{error}");
        }
    }
}

pub(crate) fn has_file_systems(driver: Driver, test: &str) -> anyhow::Result<()> {
    driver.with(test, |cluster| {
        let scratch = cluster.scratch();
        for kind in ["ext4", "xfs"] {
            let volume = Volume::create(cluster, kind, FOR_A_FILE_SYSTEM, &NODES)?;
            // The first of those that are there is taken when none is asked for.
            let first = Path::new("/dev/ublk-control").exists() == (driver == Driver::Ublk);
            let wish = AttachmentSpec {
                transport: (!first).then(|| driver.transport().to_owned()),
                ..volume::wish(CLIENT, "", false)
            };
            cluster.run(cluster.client().attach(kind, &wish))?;
            let attached = volume.wait_attached(CLIENT)?;
            ensure!(
                attached.transport == driver.transport() && attached.nbd_uri.is_empty(),
                "{attached:?}"
            );
            let told = driver.devices()?;
            ensure!(told.len() == 1, "{told:?}");
            let id = volume.shown()?.id;
            ensure!(
                driver == Driver::Ublk || told.iter().all(|told| told.contains(&id)),
                "{told:?}"
            );
            let size = run_ok("blockdev", &["--getsize64", &attached.device])?;
            ensure!(size.trim() == FOR_A_FILE_SYSTEM.to_string(), "{size}");
            clients::check_file_system(kind, &attached.device, &scratch)?;
            driver.leaves_nothing(volume, &attached.device)?;
        }
        Ok(())
    })
}

pub(crate) fn is_not_taken_from_its_users(driver: Driver, test: &str) -> anyhow::Result<()> {
    driver.with(test, |cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &NODES)?;
        let device = volume.attach(CLIENT, driver.transport(), false)?.device;
        let disk = FileSystem::make(Kind::Ext4, Path::new(&device), cluster.scratch().join("tree"))?;
        cluster.run(cluster.client().detach("db1", CLIENT, false))?;
        wait::that(wait::LONG, "it is told who uses the device", || {
            let reasons: Vec<_> = volume
                .shown()?
                .attachments
                .into_iter()
                .map(|a| a.reason)
                .collect();
            let told = reasons.iter().any(|reason| reason.contains("mounted on"));
            Ok(if told { Ok(()) } else { Err(format!("{reasons:?}")) })
        })?;
        fs::write(disk.tree().join("file"), "written while it is being detached")?;
        disk.unmount()?;
        wait::until(wait::LONG, "it is detached", || {
            Ok(volume.shown()?.attachments.is_empty())
        })?;
        ensure!(driver.devices()?.is_empty());
        let device = volume.attach(CLIENT, driver.transport(), false)?.device;
        disk.check()?;
        disk.mount()?;
        let found = fs::read_to_string(disk.tree().join("file"))?;
        ensure!(found == "written while it is being detached", "{found}");
        disk.unmount()?;
        driver.leaves_nothing(volume, &device)
    })
}

/// Kills the engine and waits for the next one.
fn kill_engine(cluster: &Cluster, volume: Volume<'_>) -> anyhow::Result<()> {
    let before = volume.attachment(CLIENT)?;
    process::kill(volume.engine(CLIENT)?, &cluster.dir())?;
    wait::that(wait::LONG, "the next engine serves", || {
        let now = volume.wait_attached(CLIENT)?;
        Ok(if now.epoch > before.epoch && now.device == before.device {
            Ok(())
        } else {
            Err(format!("{before:?} became {now:?}"))
        })
    })
}

pub(crate) fn outlives_engine_and_agent(driver: Driver, test: &str) -> anyhow::Result<()> {
    driver.with(test, |cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &NODES)?;
        let medium = volume.medium(&volume.attach(CLIENT, driver.transport(), false)?)?;
        let before = driver.devices()?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        for _ in 0..KILLS {
            writer.wait_for(100)?;
            kill_engine(cluster, volume)?;
        }
        writer.wait_for(100)?;
        println!("engines killed: longest wait {:?}", writer.longest());
        // The next agent finds engine and device.
        cluster.kill(&[CLIENT])?;
        writer.wait_for(100)?;
        cluster.start_again(&[CLIENT])?;
        volume.wait_attached(CLIENT)?;
        kill_engine(cluster, volume)?;
        writer.wait_for(100)?;
        // Both at once: only the kernel has the device then.
        let engine = volume.engine(CLIENT)?;
        cluster.kill(&[CLIENT])?;
        process::kill(engine, &cluster.dir())?;
        cluster.start_again(&[CLIENT])?;
        wait::until(wait::LONG, "the next engine serves", || {
            volume.wait_attached(CLIENT)?;
            Ok(volume.engines(CLIENT)?.iter().any(|pid| *pid != engine))
        })?;
        writer.wait_for(100)?;
        ensure!(
            driver.devices()? == before,
            "another device: {:?}",
            driver.devices()?
        );
        println!("agent and engine killed: longest wait {:?}", writer.longest());
        volume.closes_well(CLIENT, &medium, writer.stop()?)?;
        ensure!(driver.devices()?.is_empty());
        Ok(())
    })
}

pub(crate) fn is_verified_by_fio(driver: Driver, test: &str) -> anyhow::Result<()> {
    driver.with(test, |cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &NODES)?;
        let device = volume.attach(CLIENT, driver.transport(), false)?.device;
        let (path, scratch) = (device.clone(), cluster.scratch());
        // More than a ublk device can have: an engine that dies has all of its requests in its hands.
        let depth = if driver == Driver::Ublk { 256 } else { 16 };
        let load = std::thread::spawn(move || {
            for _ in 0..3 {
                clients::check_device_fio(&path, depth, &scratch)?;
            }
            anyhow::Ok(())
        });
        for _ in 0..KILLS {
            std::thread::sleep(Duration::from_secs(2));
            kill_engine(cluster, volume)?;
        }
        // The kernel gives connections of nbd up then, and sends again what was unanswered.
        let engine = volume.engine(CLIENT)?;
        process::pause(engine, &cluster.dir())?;
        std::thread::sleep(TOO_SLOW);
        process::resume(engine, &cluster.dir())?;
        ensure!(
            !load.is_finished(),
            "the load has ended before all was done to it"
        );
        let loaded = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
        loaded.context("under load")?;
        ensure!(volume.engine(CLIENT)? == engine);
        volume.wait_attached(CLIENT)?;
        driver.leaves_nothing(volume, &device)
    })
}

pub(crate) fn is_one_or_none_whenever_the_agent_dies(driver: Driver, test: &str) -> anyhow::Result<()> {
    driver.with(test, |cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &NODES)?;
        for after in [0, 50, 100, 150, 200, 300, 400, 800] {
            let killed = || {
                std::thread::sleep(Duration::from_millis(after));
                cluster.kill(&[CLIENT])?;
                cluster.start_again(&[CLIENT])
            };
            let wish = volume::wish(CLIENT, driver.transport(), false);
            cluster.run(cluster.client().attach("db1", &wish))?;
            killed()?;
            let device = volume.wait_attached(CLIENT)?.device;
            let there = driver.devices()?;
            ensure!(
                there.len() == 1 && Path::new(&device).exists(),
                "{device}: {there:?}"
            );
            cluster.run(cluster.client().detach("db1", CLIENT, false))?;
            killed()?;
            wait::until(wait::LONG, "it is detached", || {
                Ok(volume.shown()?.attachments.is_empty())
            })?;
            let left = driver.devices()?;
            ensure!(
                left.is_empty() && !Path::new(&device).exists(),
                "left after {after} ms: {left:?}"
            );
        }
        volume.copies_are_equal()
    })
}

/// Writes files into a tree, each synced, until told to stop. Returns how many.
fn keep_writing(tree: &Path, stop: &AtomicBool) -> anyhow::Result<u64> {
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        // The same few again and again: the tree must not be filled.
        let path = tree.join(format!("load{}", written % 8));
        let file = fs::File::create(&path)?;
        std::io::Write::write_all(&mut &file, &vec![u8::try_from(written % 251)?; 64 << 10])?;
        file.sync_all()?;
        written += 1;
    }
    Ok(written)
}

fn size_of(device: &str) -> anyhow::Result<u64> {
    Ok(run_ok("blockdev", &["--getsize64", device])?.trim().parse()?)
}

/// Makes the file system as large as its device, while it is mounted.
fn grow(kind: Kind, device: &str, tree: &Path) -> anyhow::Result<()> {
    match kind {
        Kind::Ext4 => run_ok("resize2fs", &[device]),
        Kind::Xfs => run_ok("xfs_growfs", &[tree.to_string_lossy()]),
    }
    .map(drop)
}

/// Whether devices of the driver learn a new size while they are there.
fn grows_online(driver: Driver) -> bool {
    let version = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
    driver == Driver::Nbd || (numbers.next(), numbers.next()) >= (Some(6), Some(16))
}

pub(crate) fn grows_under_load(driver: Driver, test: &str) -> anyhow::Result<()> {
    driver.with(test, |cluster| {
        for (kind, name) in [(Kind::Ext4, "ext4"), (Kind::Xfs, "xfs")] {
            let volume = Volume::create(cluster, name, FOR_A_FILE_SYSTEM, &NODES)?;
            let device = volume.attach(CLIENT, driver.transport(), false)?.device;
            let tree = cluster.scratch().join(format!("{name}.tree"));
            let disk = FileSystem::make(kind, Path::new(&device), tree)?;
            let stop = AtomicBool::new(false);
            let larger = 2 * FOR_A_FILE_SYSTEM;
            std::thread::scope(|scope| {
                let load = scope.spawn(|| keep_writing(disk.tree(), &stop));
                let grown = grow_volume(driver, cluster, volume, &device, larger).and_then(|online| {
                    if online {
                        grow(kind, &device, disk.tree())
                    } else {
                        Ok(())
                    }
                });
                stop.store(true, Ordering::Relaxed);
                let written = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
                println!(
                    "{name}: {} files written meanwhile",
                    written.context("under load")?
                );
                grown
            })?;
            disk.unmount()?;
            disk.check()?;
            driver.leaves_nothing(volume, &device)?;
            // Whatever it was before, it is large when it comes back, and so is the file system.
            let device = volume.attach(CLIENT, driver.transport(), false)?.device;
            ensure!(size_of(&device)? == larger);
            disk.mount()?;
            grow(kind, &device, disk.tree())?;
            let room = rustix::fs::statvfs(disk.tree())?;
            let bytes = room.f_blocks * room.f_frsize;
            ensure!(bytes > FOR_A_FILE_SYSTEM, "{name} has {bytes} bytes");
            disk.unmount()?;
            disk.check()?;
            driver.leaves_nothing(volume, &device)?;
        }
        Ok(())
    })
}

/// Whether the device has grown with the volume; if not, it is said why.
fn grow_volume(
    driver: Driver,
    cluster: &Cluster,
    volume: Volume<'_>,
    device: &str,
    size: u64,
) -> anyhow::Result<bool> {
    let name = volume.shown()?.name;
    let (status, _, why) = cluster.storctl(&["volume", "resize", &name, &size.to_string()])?;
    ensure!(status == 0, "{why}");
    if grows_online(driver) {
        wait::until(wait::LONG, "the device grows", || Ok(size_of(device)? == size))?;
        return Ok(true);
    }
    wait::that(wait::LONG, "it is told that the device does not grow", || {
        let reason = volume.attachment(CLIENT)?.reason;
        Ok(if reason.contains("attached anew") {
            Ok(())
        } else {
            Err(reason)
        })
    })?;
    ensure!(size_of(device)? < size);
    Ok(false)
}

/// Bytes that each copy takes on its node's disk.
fn used(volume: Volume<'_>) -> anyhow::Result<Vec<u64>> {
    let of = |node: &&str| Ok(fs::metadata(volume.files(node)?.0)?.blocks() * 512);
    NODES.iter().map(of).collect()
}

pub(crate) fn gives_space_back(driver: Driver, test: &str) -> anyhow::Result<()> {
    const FILES: u64 = 128 << 20;
    driver.with(test, |cluster| {
        for (kind, name) in [(Kind::Ext4, "ext4"), (Kind::Xfs, "xfs")] {
            let volume = Volume::create(cluster, name, FOR_A_FILE_SYSTEM, &NODES)?;
            let device = volume.attach(CLIENT, driver.transport(), false)?.device;
            let tree: PathBuf = cluster.scratch().join(format!("{name}.tree"));
            let disk = FileSystem::make(kind, Path::new(&device), tree)?;
            let file = disk.tree().join("file");
            let fill = || {
                run_ok(
                    "dd",
                    &["if=/dev/urandom", &of(&file), "bs=1M", "count=128", "conv=fsync"],
                )
            };
            fill()?;
            let full = used(volume)?;
            ensure!(full.iter().all(|bytes| *bytes >= FILES), "{full:?}");
            fs::remove_file(&file)?;
            // What was freed is committed then, or there is nothing to trim.
            disk.unmount()?;
            disk.mount()?;
            run_ok("fstrim", &[disk.tree().to_string_lossy()])?;
            let trimmed = used(volume)?;
            println!("{name}: the copies took {full:?} bytes, and {trimmed:?} after the trim");
            let gave = full
                .iter()
                .zip(&trimmed)
                .all(|(full, trimmed)| trimmed + FILES * 9 / 10 <= *full);
            ensure!(gave, "trimmed from {full:?} to {trimmed:?}");
            disk.unmount()?;
            disk.check()?;
            driver.leaves_nothing(volume, &device)?;
        }
        Ok(())
    })
}

fn of(file: &Path) -> String {
    format!("of={}", file.display())
}
