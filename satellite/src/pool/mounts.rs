//! The file systems that are mounted on the node and could hold pools.

use std::fs;
use std::io;
use std::path::PathBuf;

use rustix::fs::statvfs;

/// Told at most; more are no help to anybody.
const MOST: usize = 256;

/// Those on which replicas can be kept: on disks, with direct I/O.
const KINDS: [&str; 8] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs"];

/// A mounted file system.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Mount {
    /// Where.
    pub path: String,
    /// `xfs`, `ext4`.
    pub filesystem: String,
    /// Bytes.
    pub capacity: u64,
    /// Bytes for us.
    pub free: u64,
}

/// Lists them, by path. Blocks where a file system hangs.
pub fn list() -> io::Result<Vec<Mount>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mut mounts: Vec<_> = parse(&table)
        .into_iter()
        .filter_map(|(path, filesystem)| {
            // What can't be looked at is hidden by another mount, or broken.
            let info = statvfs(&path).ok()?;
            Some(Mount {
                path: path.into_os_string().into_string().ok()?,
                filesystem,
                capacity: info.f_frsize.saturating_mul(info.f_blocks),
                free: info.f_frsize.saturating_mul(info.f_bavail),
            })
        })
        .take(MOST)
        .collect();
    mounts.sort();
    mounts.dedup();
    Ok(mounts)
}

fn parse(table: &str) -> Vec<(PathBuf, String)> {
    table
        .lines()
        .filter_map(|line| {
            let (mount, system) = line.split_once(" - ")?;
            let kind = system.split(' ').next()?;
            // A file that is mounted on a file has no directory.
            let path = plain(mount.split(' ').nth(4)?);
            (KINDS.contains(&kind) && path.is_dir()).then(|| (path, kind.to_owned()))
        })
        .collect()
}

/// Blanks and the like are written as `\040`.
fn plain(text: &str) -> PathBuf {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(code) = code {
            out.push(char::from(code));
            rest = after.get(3..).unwrap_or_default();
        } else {
            out.push('\\');
            rest = after;
        }
    }
    out.push_str(rest);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_on_disks_are_listed() {
        let table = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                     40 22 0:41 / /proc rw - proc proc rw\n41 22 0:42 / /tmp rw - tmpfs tmpfs rw\n\
                     42 22 8:1 / /no\\040where rw - xfs /dev/sdb rw\nnonsense\n";
        assert_eq!(parse(table), [(PathBuf::from("/"), "ext4".to_owned())]);
        assert_eq!(plain("/a\\040b\\x"), PathBuf::from("/a b\\x"));
    }
}
