//! A file system that can share blocks between files, for the pools of a test: XFS on a file.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::clients::run_ok;

/// Sparse: it takes what is written.
const SIZE: u64 = 6 << 30;

/// Mounts one on `dir`; its file is beside it. It goes with the directory of the cluster.
pub fn mount(dir: &Path) -> anyhow::Result<()> {
    let image = image_of(dir);
    File::create_new(&image)?.set_len(SIZE)?;
    run_ok("mkfs.xfs", &["-q", "-m", "reflink=1", &image.to_string_lossy()])?;
    run_ok(
        "mount",
        &["-o", "loop", &image.to_string_lossy(), &dir.to_string_lossy()],
    )?;
    Ok(())
}

/// Why a test can't have one, if so.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root, to mount a file system".to_owned());
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).any(|path| path.join("mkfs.xfs").exists());
    if !found {
        return Some("needs mkfs.xfs".to_owned());
    }
    let loops = Path::new("/dev/loop-control").exists();
    (!loops).then(|| "needs loop devices".to_owned())
}

fn image_of(dir: &Path) -> PathBuf {
    dir.with_extension("xfs")
}
