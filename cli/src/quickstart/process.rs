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
    // Without /proc nothing would have started either.
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

/// Who listens on a port of this machine, for people: its program, pid, and the directory it was given if it is
/// one of ours, of another quickstart. `None` when that can't be seen.
pub(crate) fn listener(port: u16) -> Option<String> {
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let socket = PathBuf::from(format!("socket:[{}]", listening(&table, port)?));
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let pid = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| {
            let files = fs::read_dir(format!("/proc/{pid}/fd"));
            let mut files = files.into_iter().flatten().flatten();
            files.any(|file| fs::read_link(file.path()).is_ok_and(|target| target == socket))
        })?;
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    Some(described(&line, pid))
}

/// The inode of the socket that listens on `port`, from `/proc/net/tcp`.
fn listening(table: &str, port: u16) -> Option<&str> {
    table.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (_, local) = fields.next()?.split_once(':')?;
        let state = fields.nth(1)?;
        let matches = state == "0A" && u16::from_str_radix(local, 16) == Ok(port);
        matches.then(|| fields.nth(5)).flatten()
    })
}

fn described(line: &str, pid: u32) -> String {
    let mut words = line.split('\0');
    let program = words
        .next()
        .and_then(|word| word.rsplit('/').next())
        .unwrap_or("?");
    let mut text = format!("{program} (process {pid})");
    if program.starts_with("stor-")
        && words.any(|word| matches!(word, "--dir" | "--state-dir"))
        && let Some(dir) = words.next()
    {
        text = format!("{text} of the cluster with the directory {dir}");
    }
    text
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
    fn who_listens_is_told_with_its_directory() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:0D4D 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 11 1\n\
            1: 0100007F:0D4D 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22 1\n";
        assert_eq!(listening(table, 0x0d4d), Some("22"));
        assert_eq!(listening(table, 0x0d4e), None);
        let line = "/opt/stor-satellite\0run\0--node\0s1\0--state-dir\0/d/s1\0";
        assert_eq!(
            described(line, 7),
            "stor-satellite (process 7) of the cluster with the directory /d/s1"
        );
        assert_eq!(described("/usr/bin/nc\0-l\0", 7), "nc (process 7)");
    }

    #[test]
    fn strangers_are_not_ours() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(!is_ours(me, Path::new("/")));
        assert!(!signal(me, Signal::TERM, Path::new("/")));
        assert!(!is_ours(i32::MAX, Path::new("/")));
    }
}
