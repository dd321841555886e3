//! Which drive a file system is on, and which time the drive is there.
//!
//! A drive that loses power loses what is in its cache. When it comes back under the same running kernel it
//! gets its old device number again, and only `diskseq` tells: the kernel counts up (since Linux 5.15) each
//! time a drive appears.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// See the head of this file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
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

/// The drives that a mapped device is on, below all that is stacked on each other; itself, when it is on none.
pub(super) fn below(device: u64) -> Vec<Drive> {
    let mut drives = Vec::new();
    collect(Path::new("/sys/dev/block"), device, 0, &mut drives);
    drives.sort();
    drives.dedup();
    drives
}

/// Deeper than this nothing is stacked.
const MOST_LAYERS: u32 = 16;

fn collect(devices: &Path, device: u64, layer: u32, drives: &mut Vec<Drive>) {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let lower: Vec<u64> = fs::read_dir(devices.join(format!("{major}:{minor}/slaves")))
        .into_iter()
        .flatten()
        .filter_map(|entry| number(&fs::read_to_string(entry.ok()?.path().join("dev")).ok()?))
        .collect();
    if lower.is_empty() || layer >= MOST_LAYERS {
        drives.push(Drive {
            device,
            appearance: appearance(devices, device).unwrap_or(0),
        });
    }
    for lower in lower.into_iter().take_while(|_| layer < MOST_LAYERS) {
        collect(devices, lower, layer + 1, drives);
    }
}

/// `MAJOR:MINOR`.
fn number(text: &str) -> Option<u64> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
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
    fn what_is_mapped_is_on_the_drives_at_the_bottom() {
        let sys = TempDir::new().unwrap();
        let make = |device: &str, slaves: &[&str]| {
            fs::create_dir_all(sys.path().join(device).join("slaves")).unwrap();
            fs::write(sys.path().join(device).join("dev"), device).unwrap();
            for slave in slaves {
                symlink(
                    sys.path().join(slave),
                    sys.path().join(device).join("slaves").join(slave),
                )
                .unwrap();
            }
        };
        make("8:0", &[]);
        make("8:16", &[]);
        fs::write(sys.path().join("8:16/diskseq"), "5\n").unwrap();
        make("253:0", &["8:0"]);
        make("253:1", &["8:0", "8:16"]);
        make("253:2", &["253:0", "253:1"]);
        let mut drives = Vec::new();
        collect(sys.path(), makedev(253, 2), 0, &mut drives);
        let mut found: Vec<_> = drives
            .iter()
            .map(|drive| (drive.device, drive.appearance))
            .collect();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found, [(makedev(8, 0), 0), (makedev(8, 16), 5)]);
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
