//! Engines of a quickstart as the kernel shows them, and who uses their devices. Nothing here asks a daemon:
//! it is needed when the daemons are gone.
//!
//! An engine whose device is used must not be killed. What uses it only waits as long as the engine lives,
//! and goes on after the next start; without its engine it gets I/O errors, and loses what it has not written.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::process;

/// An engine whose volume is a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Engine {
    pub(crate) pid: i32,
    /// Id of its volume.
    pub(crate) volume: String,
    /// Its node.
    pub(crate) node: String,
    pub(crate) device: PathBuf,
    /// Who uses the device: "mounted on /mnt". Empty when nobody is seen.
    pub(crate) users: Vec<String>,
}

/// Every engine of the cluster in `dir` that has a block device.
pub(crate) fn with_device(dir: &Path) -> Vec<Engine> {
    let devices = devices(Path::new("/sys/block"));
    let find = |pid: i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let (volume, node) = volume_and_node(&line, dir)?;
        let by_volume = devices.iter().find(|(_, of)| is_of(of, &volume));
        let name = by_volume
            .map(|(name, _)| name.clone())
            .or_else(|| ublk_of(Path::new(&format!("/proc/{pid}/fd"))))?;
        Some(Engine {
            pid,
            volume,
            node,
            device: PathBuf::from(format!("/dev/{name}")),
            users: users(&name),
        })
    };
    process::all(dir).into_iter().filter_map(find).collect()
}

/// From the command line of an engine.
fn volume_and_node(line: &[u8], dir: &Path) -> Option<(String, String)> {
    let words: Vec<&std::ffi::OsStr> = line
        .split(|byte| *byte == 0)
        .map(std::ffi::OsStr::from_bytes)
        .collect();
    if words.get(1)?.to_str() != Some("engine") {
        return None;
    }
    let after = |name: &str| {
        let place = words.iter().position(|word| word.to_str() == Some(name))?;
        words.get(place + 1).copied()
    };
    let volume = after("--volume")?.to_str()?.to_owned();
    let below = Path::new(after("--control")?).strip_prefix(dir).ok()?;
    let node = below.components().next()?.as_os_str().to_str()?.to_owned();
    Some((volume, node))
}

/// The ublk device that a process serves, told by its open files.
fn ublk_of(open: &Path) -> Option<String> {
    let entries = fs::read_dir(open).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .find_map(|file| Some(format!("ublkb{}", file.to_str()?.strip_prefix("/dev/ublkc")?)))
}

/// Loop devices and the files they show, nbd devices of volumes and the volumes' ids; others are left out.
fn devices(block: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(block).into_iter().flatten().flatten();
    let one = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let is = |kind| {
            name.strip_prefix(kind)
                .is_some_and(|n: &str| n.parse::<u32>().is_ok())
        };
        let read = |file| fs::read(entry.path().join(file)).ok();
        let of = if is("loop") {
            let file = read("loop/backing_file")?;
            PathBuf::from(std::ffi::OsStr::from_bytes(file.trim_ascii_end()))
        } else if is("nbd") {
            // stor:VOLUME:STATE-DIRECTORY
            let backend = String::from_utf8(read("backend")?).ok()?;
            PathBuf::from(backend.strip_prefix("stor:")?.split(':').next()?)
        } else {
            return None;
        };
        Some((name, of))
    };
    entries.filter_map(one).collect()
}

/// Whether a device is of a volume: the id of an nbd device, or a file in the FUSE mount, which is named after it.
fn is_of(of: &Path, volume: &str) -> bool {
    of.components().any(|part| part.as_os_str() == volume)
}

/// What is mounted from a device, stacked on it, or has it open, as far as it can be seen.
fn users(name: &str) -> Vec<String> {
    let number = fs::read_to_string(format!("/sys/block/{name}/dev")).unwrap_or_default();
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut users = mounts(&mountinfo, number.trim());
    let holders = fs::read_dir(format!("/sys/block/{name}/holders"));
    users.extend(holders.into_iter().flatten().flatten().filter_map(|holder| {
        let name = holder.file_name().into_string().ok()?;
        Some(format!("/dev/{name} is on it"))
    }));
    if users.is_empty() {
        users = openers(Path::new(&format!("/dev/{name}")));
    }
    users
}

/// `number`: major and minor, as in the kernel's list.
fn mounts(mountinfo: &str, number: &str) -> Vec<String> {
    let place = |line: &str| {
        let mut fields = line.split(' ').skip(2);
        (fields.next()? == number).then_some(())?;
        Some(format!("mounted on {}", fields.nth(1)?))
    };
    mountinfo.lines().filter_map(place).collect()
}

/// Processes that have the device open.
fn openers(device: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let one = |process: fs::DirEntry| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let files = fs::read_dir(process.path().join("fd")).ok()?;
        files
            .flatten()
            .any(|file| fs::read_link(file.path()).is_ok_and(|target| target == device))
            .then_some(())?;
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        Some(format!("open in {} (process {pid})", name.trim()))
    };
    processes.filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0191d5b4-0000-7000-8000-000000000001";

    #[test]
    fn an_engine_names_its_volume_and_its_node() {
        let line =
            format!("stor-satellite\0engine\0--volume\0{ID}\0--control\0/d/k1/engines/{ID}/control.sock\0");
        let found = |dir: &str| volume_and_node(line.as_bytes(), Path::new(dir));
        assert_eq!(found("/d"), Some((ID.into(), "k1".into())));
        assert_eq!(found("/other"), None);
        let agent = b"stor-satellite\0run\0--node\0k1\0--state-dir\0/d/k1\0";
        assert_eq!(volume_and_node(agent, Path::new("/d")), None);
    }

    #[test]
    fn a_mount_is_told_by_the_number_of_its_device() {
        let info =
            "30 1 7:3 / /mnt/db rw - ext4 /dev/loop3 rw\n31 1 7:33 / /mnt/x rw - ext4 /dev/loop33 rw\n";
        assert_eq!(mounts(info, "7:3"), ["mounted on /mnt/db"]);
        assert!(mounts(info, "7:4").is_empty());
    }

    #[test]
    fn devices_are_told_by_the_file_they_show_or_by_whose_they_are() {
        let block = tempfile::tempdir().unwrap();
        for name in ["loop3/loop", "loop4", "sda", "nbd0", "nbd1", "nbd2"] {
            fs::create_dir_all(block.path().join(name)).unwrap();
        }
        let file = format!("/d/k1/fuse/{ID}/volume");
        fs::write(block.path().join("loop3/loop/backing_file"), format!("{file}\n")).unwrap();
        fs::write(block.path().join("nbd1/backend"), format!("stor:{ID}:/d/k1\n")).unwrap();
        fs::write(block.path().join("nbd2/backend"), "another's\n").unwrap();
        let mut found = devices(block.path());
        found.sort();
        let expected = [("loop3".into(), file.into()), ("nbd1".into(), ID.into())];
        assert_eq!(found, expected);
        assert!(
            found
                .iter()
                .all(|(_, of)| is_of(of, ID) && !is_of(of, "0191d5b4"))
        );
    }
}
