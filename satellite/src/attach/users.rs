//! Who uses a block device, for people.

use std::fs;
use std::path::Path;

/// The most users of a device that are named.
const NAMED: usize = 4;

/// What uses the device `name` of the kernel (`loop3`), whose node is `path`. Never empty.
pub(super) fn users(name: &str, path: &Path) -> String {
    let mut users = mounts(name);
    let holders = fs::read_dir(format!("/sys/block/{name}/holders"));
    users.extend(holders.into_iter().flatten().filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        Some(format!("/dev/{name} is on it"))
    }));
    if users.is_empty() {
        users = processes(path);
    }
    if users.is_empty() {
        return format!("{} is open somewhere, perhaps in a container", path.display());
    }
    let more = match users.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    users.truncate(NAMED);
    format!("{}: {}{more}", path.display(), users.join(", "))
}

fn mounts(name: &str) -> Vec<String> {
    let wanted = fs::read_to_string(format!("/sys/block/{name}/dev")).unwrap_or_default();
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let place = |line: &str| {
        let mut fields = line.split(' ');
        (fields.nth(2)? == wanted.trim()).then(|| format!("mounted on {}", fields.nth(1).unwrap_or("?")))
    };
    mountinfo.lines().filter_map(place).collect()
}

/// Processes that have the device open. What cannot be looked at is left out: this only says more.
pub(super) fn processes(device: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let is_process = process
            .file_name()
            .to_str()
            .is_some_and(|name| name.parse::<u32>().is_ok());
        if !is_process {
            continue;
        }
        let files = fs::read_dir(process.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        if files
            .into_iter()
            .any(|file| fs::read_link(file.path()).is_ok_and(|target| target == device))
        {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!(
                "open in {} (pid {})",
                name.trim(),
                process.file_name().to_string_lossy()
            ));
        }
    }
    found
}
