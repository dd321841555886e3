//! A file system in use when the snapshot is made: the clone mounts, and is whole.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::ensure;
use stor_tests::clients::run_ok;
use stor_tests::cluster::CLIENT;
use stor_tests::filesystem::{FileSystem, Kind};
use stor_tests::skip;
use stor_tests::volume::Volume;

use super::copies::{make, nothing_leaks};

const SIZE: u64 = 128 << 20;

#[test]
fn ext4_is_whole_on_a_clone_made_while_it_was_written() -> anyhow::Result<()> {
    super::with("ext4_is_whole_on_a_clone_made_while_it_was_written", |cluster| {
        if let Some(missing) = skip::without_transport(cluster, CLIENT, "fuse")? {
            skip::skipped("ext4_is_whole_on_a_clone_made_while_it_was_written", &missing);
            return Ok(());
        }
        // Devices of all clusters of a machine are in one directory.
        let name = format!("t{}", std::process::id());
        let volume = Volume::create(cluster, &name, SIZE, &["s1", "s2"])?;
        let attachment = volume.attach(CLIENT, "fuse", false)?;
        let tree = cluster.scratch().join("tree");
        let disk = FileSystem::make(Kind::Ext4, Path::new(&attachment.device), tree)?;
        fs::write(disk.tree().join("kept"), b"before the snapshot")?;
        run_ok("sync", &["-f", &disk.tree().to_string_lossy()])?;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| -> anyhow::Result<()> {
            let writing = scope.spawn(|| -> std::io::Result<u32> {
                let mut files = 0;
                while !stop.load(Ordering::Relaxed) {
                    fs::write(disk.tree().join(format!("f{}", files % 200)), vec![7; 20_000])?;
                    files += 1;
                }
                Ok(files)
            });
            let made = make(cluster, &name, "in-use");
            stop.store(true, Ordering::Relaxed);
            let files = writing
                .join()
                .map_err(|_| anyhow::anyhow!("the writer panicked"))??;
            println!("{files} files written meanwhile");
            made.map(drop)
        })?;
        let clone_name = format!("{name}c");
        let from = format!("{name}@in-use");
        let (status, said, complained) =
            cluster.storctl(&["volume", "create", &clone_name, "--from-snapshot", &from])?;
        ensure!(status == 0, "{said} {complained}");
        let clone = Volume::of(cluster, &clone_name);
        let attached = clone.attach(CLIENT, "fuse", false)?;
        let other = cluster.scratch().join("clone");
        fs::create_dir(&other)?;
        run_ok(
            "mount",
            &[attached.device.clone(), other.to_string_lossy().into_owned()],
        )?;
        let kept = fs::read(other.join("kept"))?;
        run_ok("umount", &[other.to_string_lossy()])?;
        ensure!(kept == b"before the snapshot");
        // The journal was replayed by the mount.
        run_ok("e2fsck", &["-fn", &attached.device])?;
        clone.detach(CLIENT)?;
        disk.unmount()?;
        disk.check()?;
        volume.detach(CLIENT)?;
        nothing_leaks(cluster)
    })
}
