//! Processes of one cluster, found and signalled by pid. A pid alone may be somebody else's by now: nothing
//! is signalled whose command line does not name the cluster's directory.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// The kernel ends a killed process within this time, also when it has to take a device down first.
const END: Duration = Duration::from_mins(1);

/// A process's command line; empty when it is not there or a zombie.
pub fn command_line(pid: i32) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// Whether process `pid` lives and names `dir` on its command line.
pub fn is_of(pid: i32, dir: &Path) -> bool {
    let (line, needle) = (command_line(pid), dir.as_os_str().as_bytes());
    !needle.is_empty() && line.windows(needle.len()).any(|piece| piece == needle)
}

/// Whether nothing is left of process `pid`. Its command line goes first, its sockets and files with its last
/// thread; a zombie holds none.
pub fn is_gone(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    match state(pid) {
        None => true,
        Some(state) => matches!(state, 'Z' | 'X') && threads <= 1,
    }
}

/// The letter the kernel has for what a process does.
fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in brackets and may hold anything.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// The process group of a process that is there.
pub fn group(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(2)?.parse().ok()
}

/// Whether a process has this file open.
pub fn has_open(pid: i32, path: &Path) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    files
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|target| target == path)
}

/// Every process that names `dir` on its command line.
pub fn all_of(dir: &Path) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own && is_of(*pid, dir))
        .collect()
}

/// Sends a signal to a process of the cluster in `dir`. An error when it is not there.
pub fn signal(pid: i32, signal: Signal, dir: &Path) -> anyhow::Result<()> {
    ensure!(
        is_of(pid, dir),
        "process {pid} is not one of {}, or not there",
        dir.display()
    );
    let known = Pid::from_raw(pid).context("0 is no pid")?;
    kill_process(known, signal).with_context(|| format!("signalling process {pid}"))
}

/// Kills a process as a power cut would, and waits until it is gone.
pub fn kill(pid: i32, dir: &Path) -> anyhow::Result<()> {
    signal(pid, Signal::KILL, dir)?;
    wait::until(END, &format!("process {pid} is gone after SIGKILL"), || {
        Ok(is_gone(pid))
    })
}

/// Stops a process's clock, and waits until the kernel says so.
pub fn pause(pid: i32, dir: &Path) -> anyhow::Result<()> {
    signal(pid, Signal::STOP, dir)?;
    wait::until(END, &format!("process {pid} is stopped"), || {
        let state = state(pid).with_context(|| format!("process {pid} is gone"))?;
        Ok(state == 'T')
    })
}

/// Lets a paused process go on.
pub fn resume(pid: i32, dir: &Path) -> anyhow::Result<()> {
    signal(pid, Signal::CONT, dir)
}
