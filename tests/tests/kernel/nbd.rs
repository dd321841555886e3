//! Volumes as devices of the kernel's nbd driver.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use stor_api::objects::AttachmentSpec;
use stor_tests::clients::{self, run_ok};
use stor_tests::cluster::{self, CLIENT, Cluster};
use stor_tests::filesystem::{FileSystem, Kind};
use stor_tests::volume::{self, Volume};
use stor_tests::writer::{OnLoss, Writer};
use stor_tests::{process, vm, wait};

const MEMORY: u32 = 1536;
/// Engines killed in a row.
const KILLS: usize = 2;
/// Twice the time after which the kernel gives a connection up.
const TOO_SLOW: Duration = Duration::from_secs(12);

/// Runs a test in a virtual machine on a cluster whose nodes have nbd.
fn with(test: &str, body: impl FnOnce(&mut Cluster) -> anyhow::Result<()>) -> anyhow::Result<()> {
    vm::inside(test, MEMORY, &[], || {
        run_ok("modprobe", &["nbd"])?;
        cluster::with(body)
    })
}

/// The texts that say whose the kernel's devices are.
fn backends() -> anyhow::Result<Vec<String>> {
    let devices = fs::read_dir("/sys/block")?.flatten();
    Ok(devices
        .filter_map(|device| fs::read_to_string(device.path().join("backend")).ok())
        .collect())
}

/// Detaches, and sees that nothing is left in the kernel.
fn leaves_nothing(volume: Volume<'_>, device: &str) -> anyhow::Result<()> {
    volume.detach(CLIENT)?;
    let left = backends()?;
    ensure!(left.is_empty(), "devices are left: {left:?}");
    ensure!(!Path::new(device).exists(), "{device} is left");
    volume.copies_are_equal()
}

#[test]
fn without_the_driver_the_remedy_is_told_and_another_transport_is_taken() -> anyhow::Result<()> {
    let test = "nbd::without_the_driver_the_remedy_is_told_and_another_transport_is_taken";
    vm::inside(test, MEMORY, &[], || {
        cluster::with(|cluster| {
            let node = cluster.run(cluster.client().node(CLIENT))?;
            let order: Vec<_> = node.transports.iter().map(|probe| probe.name.as_str()).collect();
            ensure!(order == ["nbd", "fuse", "socket"], "{order:?}");
            let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1"])?;
            let forced = cluster.run(
                cluster
                    .client()
                    .attach("db1", &volume::wish(CLIENT, "nbd", false)),
            );
            let refused = format!("{:?}", forced.err().context("attached without a driver")?);
            ensure!(refused.contains("modprobe nbd"), "{refused}");
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
    with("nbd::file_systems_live_on_it_and_nothing_is_left", |cluster| {
        let scratch = cluster.scratch();
        for kind in ["ext4", "xfs"] {
            // xfs wants 300 MiB and more.
            let volume = Volume::create(cluster, kind, 5 * volume::SIZE, &["s1", "s2"])?;
            let any = AttachmentSpec {
                transport: None,
                ..volume::wish(CLIENT, "", false)
            };
            cluster.run(cluster.client().attach(kind, &any))?;
            let attached = volume.wait_attached(CLIENT)?;
            ensure!(
                attached.transport == "nbd" && attached.nbd_uri.is_empty(),
                "{attached:?}"
            );
            let told = backends()?;
            let id = volume.shown()?.id;
            ensure!(
                told.len() == 1 && told.iter().all(|told| told.contains(&id)),
                "{told:?}"
            );
            let size = run_ok("blockdev", &["--getsize64", &attached.device])?;
            ensure!(size.trim() == (5 * volume::SIZE).to_string(), "{size}");
            clients::check_file_system(kind, &attached.device, &scratch)?;
            leaves_nothing(volume, &attached.device)?;
        }
        Ok(())
    })
}

#[test]
fn a_device_in_use_is_not_taken_away() -> anyhow::Result<()> {
    with("nbd::a_device_in_use_is_not_taken_away", |cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let device = volume.attach(CLIENT, "nbd", false)?.device;
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
        ensure!(backends()?.is_empty());
        let device = volume.attach(CLIENT, "nbd", false)?.device;
        disk.check()?;
        disk.mount()?;
        let found = fs::read_to_string(disk.tree().join("file"))?;
        ensure!(found == "written while it is being detached", "{found}");
        disk.unmount()?;
        leaves_nothing(volume, &device)
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

#[test]
fn it_goes_on_without_an_error_when_engine_and_agent_are_killed() -> anyhow::Result<()> {
    with(
        "nbd::it_goes_on_without_an_error_when_engine_and_agent_are_killed",
        |cluster| {
            let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
            let medium = volume.medium(&volume.attach(CLIENT, "nbd", false)?)?;
            let before = backends()?;
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
            ensure!(backends()? == before, "another device: {:?}", backends()?);
            println!("agent and engine killed: longest wait {:?}", writer.longest());
            volume.closes_well(CLIENT, &medium, writer.stop()?)?;
            ensure!(backends()?.is_empty());
            Ok(())
        },
    )
}

#[test]
fn fio_verifies_every_block_while_engines_are_killed_and_one_is_too_slow() -> anyhow::Result<()> {
    with(
        "nbd::fio_verifies_every_block_while_engines_are_killed_and_one_is_too_slow",
        |cluster| {
            let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
            let device = volume.attach(CLIENT, "nbd", false)?.device;
            let (path, scratch) = (device.clone(), cluster.scratch());
            let load = std::thread::spawn(move || {
                for _ in 0..3 {
                    clients::check_device_fio(&path, 16, &scratch)?;
                }
                anyhow::Ok(())
            });
            for _ in 0..KILLS {
                std::thread::sleep(Duration::from_secs(2));
                kill_engine(cluster, volume)?;
            }
            // The kernel gives the connections up and sends again what was unanswered.
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
            leaves_nothing(volume, &device)
        },
    )
}

#[test]
fn an_agent_killed_at_any_moment_leaves_one_device_or_none() -> anyhow::Result<()> {
    with(
        "nbd::an_agent_killed_at_any_moment_leaves_one_device_or_none",
        |cluster| {
            let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
            for after in [0, 100, 200, 400, 800] {
                let killed = || {
                    std::thread::sleep(Duration::from_millis(after));
                    cluster.kill(&[CLIENT])?;
                    cluster.start_again(&[CLIENT])
                };
                let wish = volume::wish(CLIENT, "nbd", false);
                cluster.run(cluster.client().attach("db1", &wish))?;
                killed()?;
                let device = volume.wait_attached(CLIENT)?.device;
                let there = backends()?;
                ensure!(
                    there.len() == 1 && Path::new(&device).exists(),
                    "{device}: {there:?}"
                );
                cluster.run(cluster.client().detach("db1", CLIENT, false))?;
                killed()?;
                wait::until(wait::LONG, "it is detached", || {
                    Ok(volume.shown()?.attachments.is_empty())
                })?;
                let left = backends()?;
                ensure!(
                    left.is_empty() && !Path::new(&device).exists(),
                    "left after {after} ms: {left:?}"
                );
            }
            volume.copies_are_equal()
        },
    )
}
