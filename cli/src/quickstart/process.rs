//! Processes as /proc shows them. A pid alone may be somebody else's by now: nothing is signalled whose
//! command line does not name the cluster's directory.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// Whether process `pid` is there, not a zombie, and a daemon or engine of the cluster in `dir`: one of our
/// programs, or the start script that is about to become one, with the directory on its command line.
pub(crate) fn is_ours(pid: i32, dir: &Path) -> bool {
    // A zombie's command line is empty.
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let words: Vec<PathBuf> = line
        .split(|byte| *byte == 0)
        .map(|word| PathBuf::from(std::ffi::OsStr::from_bytes(word)))
        .collect();
    let Some((program, words)) = words.split_first() else {
        return false;
    };
    let is_daemon = match program.file_name().and_then(|name| name.to_str()) {
        Some("stor-controller" | "stor-satellite" | "setsid") => true,
        Some("sh") => words
            .first()
            .is_some_and(|script| script.extension().is_some_and(|e| e == "start")),
        _ => false,
    };
    is_daemon && words.iter().any(|word| word.starts_with(dir))
}

/// Every daemon and engine of the cluster in `dir`.
pub(crate) fn all(dir: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| is_ours(*pid, dir))
        .collect()
}

/// Sends `signal` to process `pid` when it is one of the cluster in `dir`. `false` when it is not there.
pub(crate) fn signal(pid: i32, signal: Signal, dir: &Path) -> bool {
    if !is_ours(pid, dir) {
        return false;
    }
    match Pid::from_raw(pid) {
        Some(pid) => kill_process(pid, signal).is_ok(),
        None => false,
    }
}

/// Whether process `pid` has a handler for `signal`. One that has just begun has none yet, and what a shell
/// put into the background even ignores SIGINT until then.
pub(crate) fn handles(pid: i32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_some_and(|mask| mask >> (signal.as_raw() - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_a_handler_is_told_from_one_with() {
        // The runtime of Rust handles SIGSEGV, to tell of stack overflows, and nothing at all is done with SIGURG.
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(handles(me, Signal::SEGV));
        assert!(!handles(me, Signal::URG));
        assert!(!handles(i32::MAX, Signal::SEGV));
    }

    #[test]
    fn strangers_are_not_ours() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(!is_ours(me, Path::new("/")));
        assert!(!signal(me, Signal::TERM, Path::new("/")));
        assert!(!is_ours(i32::MAX, Path::new("/")));
    }
}
