//! Directories of clusters, and the removal of all that hangs on one: processes, mounts, loop devices, files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::Signal;

use crate::{network, process};

/// Not /tmp: that may be memory, and the replicas want O_DIRECT.
const PLACE: &str = "/var/tmp";
const PREFIX: &str = "stor-test-";
/// Killed processes are gone within this time.
const GONE: Duration = Duration::from_secs(20);

/// Makes the directory of a new cluster, named after this process.
pub fn new_root() -> anyhow::Result<PathBuf> {
    let root = tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{}-", std::process::id()))
        .tempdir_in(PLACE)
        .with_context(|| format!("making a directory in {PLACE}"))?
        .keep();
    // Replicas and states are the satellites' own business; the directory itself is looked into by people.
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;
    Ok(root)
}

/// What is named `PREFIX`, then the id of a process that is no more.
pub fn of_the_dead(place: &str, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| {
            let pid = name.strip_prefix(prefix).and_then(|rest| rest.split('-').next());
            let pid = pid.and_then(|pid| pid.parse::<i32>().ok());
            pid.is_some_and(process::is_gone)
        })
        .collect()
}

/// Removes what tests left that were killed themselves.
pub fn sweep() {
    for name in of_the_dead(PLACE, PREFIX) {
        remove(&Path::new(PLACE).join(name));
    }
    network::sweep();
    forget_clocks();
}

/// What libfaketime shares between processes of one owner, and leaves when they are killed.
fn forget_clocks() {
    for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix("faketime_shm_")
            .or_else(|| name.strip_prefix("sem.faketime_sem_"))
            .and_then(|pid| pid.parse::<i32>().ok());
        if let Some(pid) = owner
            && process::is_gone(pid)
        {
            // Another test may sweep as well.
            _ = fs::remove_file(entry.path());
        }
    }
}

/// Ends everything that names `root`, and removes it. What does not go is told, for nobody can do more.
pub fn remove(root: &Path) {
    let start = Instant::now();
    loop {
        let left = process::all_of(root);
        if left.is_empty() {
            break;
        }
        for pid in &left {
            // It may have ended this moment.
            _ = process::signal(*pid, Signal::KILL, root);
        }
        if start.elapsed() > GONE {
            eprintln!("processes {left:?} of {} do not end", root.display());
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    detach_loops(root);
    unmount(root);
    if let Err(error) = fs::remove_dir_all(root)
        && root.exists()
    {
        eprintln!("{} could not be removed: {error}", root.display());
    }
}

/// Loop devices over files in `root`.
fn detach_loops(root: &Path) {
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(backing.trim()).starts_with(root) {
            quietly(
                "losetup",
                &["-d", &format!("/dev/{}", entry.file_name().to_string_lossy())],
            );
        }
    }
}

/// Mounts in `root`, the innermost first.
fn unmount(root: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points
        .filter(|point| Path::new(point).starts_with(root))
        .collect::<Vec<_>>()
        .iter()
        .rev()
    {
        quietly("umount", &["-l", point]);
    }
}

fn quietly(program: &str, args: &[&str]) {
    let mut command = Command::new(program);
    _ = command
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}
