//! A file system on a volume's device: made, mounted, taken away in order or by a power cut, and looked at by its
//! own checker.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::clients::{run, run_ok};
use crate::wait;

/// Which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ext4, checked by `e2fsck -fn`.
    Ext4,
    /// XFS, checked by `xfs_repair -n`.
    Xfs,
}

/// See the module.
#[derive(Debug)]
pub struct FileSystem {
    kind: Kind,
    device: PathBuf,
    tree: PathBuf,
}

impl FileSystem {
    /// Makes one on `device`, and mounts it on the new directory `tree`.
    pub fn make(kind: Kind, device: &Path, tree: PathBuf) -> anyhow::Result<Self> {
        let name = device.to_string_lossy();
        match kind {
            Kind::Ext4 => run_ok("mkfs.ext4", &["-q", "-F", &name])?,
            Kind::Xfs => run_ok("mkfs.xfs", &["-q", "-f", &name])?,
        };
        std::fs::create_dir_all(&tree)?;
        let made = Self {
            kind,
            device: device.to_owned(),
            tree,
        };
        made.mount()?;
        Ok(made)
    }

    /// Where it is mounted.
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// Mounts it, which replays its journal after a power cut.
    pub fn mount(&self) -> anyhow::Result<()> {
        run_ok(
            "mount",
            &[self.device.to_string_lossy(), self.tree.to_string_lossy()],
        )
        .map(drop)
    }

    /// Unmounts it: in order, or what is left of it when its device is gone.
    pub fn unmount(&self) -> anyhow::Result<()> {
        // A process that has just ended may hold a file for a moment.
        wait::that(wait::LONG, "the file system is unmounted", || {
            let outcome = run("umount", &[self.tree.to_string_lossy()])?;
            Ok(if outcome.ok { Ok(()) } else { Err(outcome.stderr) })
        })
    }

    /// Looks whether all of it hangs together, while it is not mounted.
    pub fn check(&self) -> anyhow::Result<()> {
        let device = self.device.to_string_lossy();
        match self.kind {
            Kind::Ext4 => run_ok("e2fsck", &["-fn", &device]),
            Kind::Xfs => run_ok("xfs_repair", &["-n", &device]),
        }
        .map(drop)
        .with_context(|| format!("{:?} on {device}", self.kind))
    }
}
