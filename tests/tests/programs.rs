//! Real programs on the device of a replicated volume: a database on a file system, while what is below it is
//! killed. After each fault the database's own checks, the file system's own check, and every transaction that was
//! committed.

#![allow(clippy::print_stdout)]

use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use stor_tests::cluster::{self, CLIENT, CONTROLLERS, Cluster, STORAGE};
use stor_tests::database::{self, Committed, Database, Postgres, Sessions, Sqlite, WRITERS};
use stor_tests::filesystem::{FileSystem, Kind};
use stor_tests::medium::Medium;
use stor_tests::volume::Volume;
use stor_tests::{process, skip, wait};

/// xfs wants 300 MiB and more.
const SIZE: u64 = 384 << 20;
/// Transactions between two events.
const SOME: u64 = 60;

/// The file system is checked in the time between two runs of the database.
fn checked<D: Database>(
    disk: &FileSystem,
    database: &mut D,
    committed: &mut [Committed],
) -> anyhow::Result<()> {
    database::holds(database, committed)?;
    database.stop()?;
    disk.unmount()?;
    disk.check()?;
    disk.mount()?;
    database.start()?;
    database::holds(database, committed)
}

/// Every daemon and the engine end at once, and so does the database. The storage nodes say when they are back that
/// what was not flushed is lost.
fn power_cut<D: Database>(
    cluster: &Cluster,
    volume: Volume<'_>,
    disk: &FileSystem,
    (database, sessions): (&mut D, Sessions),
) -> anyhow::Result<Vec<Committed>> {
    let engine = volume.engine(CLIENT)?;
    let daemons: Vec<&str> = CONTROLLERS.into_iter().chain(STORAGE).chain([CLIENT]).collect();
    cluster.kill(&daemons)?;
    process::kill(engine, &cluster.dir())?;
    database.kill();
    let committed = sessions.stop()?;
    // As long as anybody held it, the next mount would be of the same dead file system.
    disk.unmount()?;
    cluster.start_again(&CONTROLLERS)?;
    for node in STORAGE {
        let script = cluster.dir().join("run").join(format!("{node}.start"));
        let output = Command::new(&script)
            .env("STOR_TEST_CACHE_ID", "after-the-cut")
            .output()?;
        ensure!(output.status.success(), "{}: {output:?}", script.display());
    }
    cluster.start_again(&[CLIENT])?;
    cluster.wait_healthy()?;
    volume.wait_attached(CLIENT)?;
    Ok(committed)
}

fn survives<D: Database>(kind: Kind, test: &str) -> anyhow::Result<()> {
    if let Some(missing) = D::missing() {
        skip::skipped(test, &missing);
        return Ok(());
    }
    cluster::with(|cluster| {
        if let Some(missing) = skip::without_transport(cluster, CLIENT, "fuse")? {
            skip::skipped(test, &missing);
            return Ok(());
        }
        // Devices of all clusters of a machine are in one directory.
        let name = format!("t{}", std::process::id());
        let volume = Volume::create(cluster, &name, SIZE, &["s1", "s2"])?;
        let Medium::Device(device) = volume.medium(&volume.attach(CLIENT, "fuse", false)?)? else {
            anyhow::bail!("attached, and there is no device");
        };
        let disk = FileSystem::make(kind, &device, cluster.scratch().join("tree"))?;
        let mut database = D::make(disk.tree())?;
        let mut committed = vec![Committed::default(); WRITERS];

        let sessions = Sessions::start(&database, &committed)?;
        sessions.wait_for(SOME)?;
        cluster.kill(&["s2"])?;
        sessions.wait_for(SOME)?;
        volume.wait_member("s2", false)?;
        cluster.start_again(&["s2"])?;
        volume.wait_in_sync()?;
        sessions.wait_for(SOME)?;
        committed = sessions.stop()?;
        checked(&disk, &mut database, &mut committed)?;
        println!("{test}: s2 was killed and is back");

        let sessions = Sessions::start(&database, &committed)?;
        sessions.wait_for(SOME)?;
        process::kill(volume.engine(CLIENT)?, &cluster.dir())?;
        sessions.wait_for(SOME)?;
        committed = sessions.stop()?;
        checked(&disk, &mut database, &mut committed)?;
        println!("{test}: the engine was killed");

        let sessions = Sessions::start(&database, &committed)?;
        sessions.wait_for(SOME)?;
        committed = power_cut(cluster, volume, &disk, (&mut database, sessions))?;
        recovered(&disk, &mut database, &mut committed, &device)?;
        println!("{test}: the power was cut");

        let sessions = Sessions::start(&database, &committed)?;
        sessions.wait_for(SOME)?;
        committed = sessions.stop()?;
        checked(&disk, &mut database, &mut committed)?;
        database.stop()?;
        disk.unmount()?;
        volume.wait_in_sync()?;
        volume.detach(CLIENT)?;
        volume.copies_are_equal()
    })
}

/// A mount to replay the journal, the file system's check, and the database's own recovery.
fn recovered<D: Database>(
    disk: &FileSystem,
    database: &mut D,
    committed: &mut [Committed],
    device: &Path,
) -> anyhow::Result<()> {
    wait::until(wait::LONG, "the device is there", || Ok(device.exists()))?;
    disk.mount()?;
    disk.unmount()?;
    disk.check()?;
    disk.mount()?;
    database.start()?;
    database::holds(database, committed)
}

#[test]
fn postgresql_on_ext4_keeps_every_transaction() -> anyhow::Result<()> {
    survives::<Postgres>(Kind::Ext4, "PostgreSQL on ext4")
}

#[test]
fn sqlite_on_xfs_keeps_every_transaction() -> anyhow::Result<()> {
    survives::<Sqlite>(Kind::Xfs, "SQLite on xfs")
}
