//! What a directory's file system can do, found by trying it.
//!
//! Each probe makes a file of its own and removes it again; a file that a crash left behind is removed by
//! the next probe.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// Beginning of the names of probe files.
const PROBE: &str = ".stor-probe";

/// How a snapshot of a replica is made in a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Snapshots {
    /// The file system shares the blocks (XFS, btrfs): at once, without space.
    Reflink,
    /// The file is copied.
    Copy,
    /// The thin pool shares the chunks.
    Thin,
}

impl Snapshots {
    /// As the catalogue and people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reflink => "reflink",
            Self::Copy => "copy",
            Self::Thin => "thin",
        }
    }
}

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abilities {
    /// Files can be opened with `O_DIRECT`.
    pub direct: bool,
    /// How snapshots are made.
    pub snapshots: Snapshots,
}

/// Tries a directory. An error says that not even a file could be made in it.
pub fn probe(directory: &Path) -> io::Result<Abilities> {
    let source = Probe::make(directory, "source")?;
    let direct = source.opens_direct()?;
    let snapshots = if source.clones(directory)? {
        Snapshots::Reflink
    } else {
        Snapshots::Copy
    };
    Ok(Abilities { direct, snapshots })
}

/// A probe file; removed when dropped.
struct Probe {
    path: PathBuf,
    file: File,
}

impl Probe {
    fn make(directory: &Path, name: &str) -> io::Result<Self> {
        let path = directory.join(format!("{PROBE}-{name}"));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(&[0; 4096])?;
        Ok(Self { path, file })
    }

    fn opens_direct(&self) -> io::Result<bool> {
        let flags = i32::try_from(OFlags::DIRECT.bits()).map_err(io::Error::other)?;
        match OpenOptions::new()
            .write(true)
            .custom_flags(flags)
            .open(&self.path)
        {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn clones(&self, directory: &Path) -> io::Result<bool> {
        let target = Self::make(directory, "clone")?;
        // Every refusal means the same here: snapshots will be copies.
        Ok(rustix::fs::ioctl_ficlone(&target.file, &self.file).is_ok())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a probe file could not be removed");
        }
    }
}
