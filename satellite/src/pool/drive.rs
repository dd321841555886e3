//! Which drive a file system is on, and which time the drive is there.
//!
//! A drive that loses power loses what is in its cache. When it comes back under the same running kernel it
//! gets its old device number again, and only `diskseq` tells: the kernel counts up (since Linux 5.15) each
//! time a drive appears.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// See the head of this file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Drive {
    /// Of the file system.
    pub(super) device: u64,
    /// Of the drive, or zero where the kernel does not tell: an older one, or no block device.
    pub(super) appearance: u64,
}

impl Drive {
    /// Of the file system `path` is in.
    pub(super) fn under(path: &Path, metadata: &Metadata) -> Self {
        let device = metadata.dev();
        let appearance = appearance(Path::new("/sys/dev/block"), device)
            // btrfs has a device number of its own; the drive is the one that was named when it was mounted.
            .or_else(|| appearance(Path::new("/sys/dev/block"), source(path)?));
        Self {
            device,
            appearance: appearance.unwrap_or(0),
        }
    }
}

fn appearance(devices: &Path, device: u64) -> Option<u64> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    // Where the link leads: the directory of a partition is in that of its drive.
    let directory = fs::canonicalize(devices.join(format!("{major}:{minor}"))).ok()?;
    let read = |directory: &Path| fs::read_to_string(directory.join("diskseq")).ok();
    let text = read(&directory).or_else(|| read(directory.parent()?))?;
    text.trim().parse().ok()
}

/// The block device that was named when the file system of `path` was mounted.
fn source(path: &Path) -> Option<u64> {
    let path = fs::canonicalize(path).ok()?;
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let metadata = fs::metadata(source_in(&table, &path)?).ok()?;
    metadata.file_type().is_block_device().then(|| metadata.rdev())
}

fn source_in(table: &str, path: &Path) -> Option<PathBuf> {
    let mount = |line: &str| {
        let (mount, system) = line.split_once(" - ")?;
        let at = PathBuf::from(mount.split(' ').nth(4)?);
        let source = PathBuf::from(system.split(' ').nth(1)?);
        path.starts_with(&at).then(|| (at.components().count(), source))
    };
    // Of two at the same place, the later one hides the earlier.
    let (_, source) = table.lines().filter_map(mount).max_by_key(|(depth, _)| *depth)?;
    Some(source)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::symlink;

    use rustix::fs::makedev;
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_drive_that_was_away_is_another_one() {
        let sys = TempDir::new().unwrap();
        let drive = sys.path().join("devices/sda");
        fs::create_dir_all(drive.join("sda1")).unwrap();
        let devices = sys.path().join("dev");
        fs::create_dir(&devices).unwrap();
        symlink(&drive, devices.join("8:0")).unwrap();
        symlink(drive.join("sda1"), devices.join("8:1")).unwrap();
        assert_eq!(appearance(&devices, makedev(8, 0)), None, "an older kernel");
        for sequence in [7, 12] {
            fs::write(drive.join("diskseq"), format!("{sequence}\n")).unwrap();
            assert_eq!(appearance(&devices, makedev(8, 0)), Some(sequence), "the drive");
            assert_eq!(appearance(&devices, makedev(8, 1)), Some(sequence), "a partition");
        }
        assert_eq!(appearance(&devices, makedev(0, 31)), None, "no drive");
    }

    #[test]
    fn the_drive_of_a_mount_is_the_one_of_the_deepest_and_latest() {
        let table = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                     40 22 0:41 / /srv/pool rw - btrfs /dev/sdb rw\n\
                     41 22 0:42 / /srv/pool rw,noatime shared:2 - btrfs /dev/sdc rw\n";
        let source = |path: &str| source_in(table, Path::new(path));
        assert_eq!(source("/srv/pool/x"), Some("/dev/sdc".into()));
        assert_eq!(source("/srv/pools"), Some("/dev/vda".into()));
    }
}
