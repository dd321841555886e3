//! A block device of the kernel: file systems, discard, and direct I/O.

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use rustix::process::geteuid;

use super::fio::check_fio_file;
use super::pattern::write_pattern;
use super::{run, run_ok};

/// Bytes of the file that is copied into a file system.
const FILE: u64 = 24 << 20;

/// Why this machine can't have devices of volumes: `Ok` when it can.
pub fn has_devices() -> Result<(), String> {
    if !geteuid().is_root() {
        return Err("not root".to_owned());
    }
    for path in ["/dev/fuse", "/dev/loop-control"] {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|error| format!("{path}: {error}"))?;
    }
    Ok(())
}

/// `fio` with direct I/O, verified by checksum.
pub fn check_device_fio(device: &str, depth: u32, scratch: &Path) -> anyhow::Result<()> {
    let size = run_ok("blockdev", &["--getsize64", device])?.trim().parse()?;
    check_fio_file(device, depth, size, scratch)
}

/// Makes a file system, writes a file, takes it through a remount, trims, and has it checked by its own tool.
pub fn check_file_system(kind: &str, device: &str, scratch: &Path) -> anyhow::Result<()> {
    let force = if kind == "xfs" { "-f" } else { "-F" };
    run_ok(&format!("mkfs.{kind}"), &["-q", force, device])?;
    let tree = scratch.join(format!("{kind}.tree"));
    let source = scratch.join(format!("{kind}.file"));
    fs::create_dir_all(&tree)?;
    write_pattern(&source, FILE, 7)?;
    let mounted = |work: &dyn Fn() -> anyhow::Result<()>| {
        let tree = tree
            .to_str()
            .context("the scratch directory is not valid UTF-8")?;
        run_ok("mount", &["-o", "discard", device, tree])?;
        let worked = work();
        run_ok("umount", &[tree])?;
        worked
    };
    let copy = tree.join("file");
    mounted(&|| {
        fs::copy(&source, &copy).context("copying a file in")?;
        fs::copy(&source, tree.join("passing")).context("copying another in")?;
        File::open(&copy)?.sync_all().context("syncing the file")
    })?;
    mounted(&|| {
        ensure!(
            fs::read(&copy)? == fs::read(&source)?,
            "{kind}: the file is not what was written"
        );
        fs::remove_file(tree.join("passing"))?;
        run_ok("fstrim", &[tree.to_string_lossy()])?;
        ensure!(
            fs::read(&copy)? == fs::read(&source)?,
            "{kind}: the trim took more than was free"
        );
        Ok(())
    })?;
    match kind {
        "xfs" => run_ok("xfs_repair", &["-n", device]),
        _ => run_ok("e2fsck", &["-fn", device]),
    }
    .map(drop)
}

/// Discards the device, which reads as zeroes then.
pub fn check_discard(device: &str) -> anyhow::Result<()> {
    run_ok("blkdiscard", &["-f", device])?;
    let mut zeroes = true;
    let mut file = File::open(device).with_context(|| format!("opening {device}"))?;
    let mut piece = vec![0; 1 << 20];
    loop {
        let read = file
            .read(&mut piece)
            .with_context(|| format!("reading {device}"))?;
        if read == 0 {
            break;
        }
        zeroes &= piece.iter().take(read).all(|byte| *byte == 0);
    }
    ensure!(zeroes, "what was discarded does not read as zeroes");
    // wipefs and udev look at devices too; nobody may hold it when it is detached.
    ensure!(
        run("blockdev", &["--flushbufs", device])?.ok,
        "the device is held by somebody"
    );
    Ok(())
}
