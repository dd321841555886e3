//! Running the system's programs.
//!
//! A command gets its answer within a limit or is ended: first asked to (LVM ends at a safe place then), then
//! killed, with all it started. What it prints for people is passed on, never read. Blocks.

use std::io::{self, Read};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use thiserror::Error;

/// How long a command that was asked to end may take for it.
const END: Duration = Duration::from_secs(5);
/// How long one that was killed is waited for. One that hangs in the kernel does not end before its disk answers.
const DIE: Duration = Duration::from_secs(1);
/// Between looks whether it ended: from the first to the second, doubling.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));
/// Most bytes taken of what it prints; a report of 64 Ki volumes needs 30 MiB.
const MOST: u64 = 64 << 20;
/// Most characters of an error passed on.
const MOST_SAID: usize = 600;

/// Why a command gave no answer.
#[derive(Debug, Error)]
pub enum CommandError {
    /// Not installed, not allowed.
    #[error("cannot run {program}: {source}; install it where the satellite runs")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// It hung.
    #[error(
        "`{command}` gave no answer within {seconds} s and was ended: look for a hanging disk, or another LVM command that holds the volume group"
    )]
    Deadline {
        /// The command line.
        command: String,
        /// The limit.
        seconds: u64,
    },
    /// It failed.
    #[error("`{command}` failed ({status}): {said}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
    /// It printed something else.
    #[error("`{command}` printed what can't be read: {source}")]
    Unreadable {
        /// The command line.
        command: String,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// Runs a program to its end; what it printed. See the head of this file.
pub fn run(program: &Path, arguments: &[&str], limit: Duration) -> Result<Vec<u8>, CommandError> {
    let start = |source| CommandError::Start {
        program: program.display().to_string(),
        source,
    };
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .env("DM_DISABLE_UDEV", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(start)?;
    let printed = take(child.stdout.take()).map_err(start)?;
    let said = take(child.stderr.take()).map_err(start)?;
    let Some(status) = wait(&mut child, limit).map_err(start)? else {
        end(child);
        return Err(CommandError::Deadline {
            command: line(program, arguments),
            seconds: limit.as_secs(),
        });
    };
    // A child of its own may still hold the pipe.
    let printed = printed.recv_timeout(END).unwrap_or_default();
    if status.success() {
        return Ok(printed);
    }
    let said = said.recv_timeout(END).unwrap_or_default();
    Err(CommandError::Failed {
        command: line(program, arguments),
        status,
        said: one_line(&said),
    })
}

/// Reads a pipe to its end on a thread of its own: one that fills up would stop the program.
fn take(pipe: Option<impl Read + Send + 'static>) -> io::Result<Receiver<Vec<u8>>> {
    let (tell, told) = sync_channel(1);
    std::thread::Builder::new()
        .name("lvm-output".to_owned())
        .spawn(move || {
            let mut bytes = Vec::new();
            if let Some(pipe) = pipe {
                // What could be read is passed on; whether it is whole shows when it is read.
                drop(pipe.take(MOST).read_to_end(&mut bytes));
            }
            drop(tell.send(bytes));
        })?;
    Ok(told)
}

fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    let mut pause = PAUSE.0;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Ends a command and what it started.
fn end(mut child: Child) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    for (signal, patience) in [(Signal::TERM, END), (Signal::KILL, DIE)] {
        if let Some(group) = group
            && let Err(error) = kill_process_group(group, signal)
        {
            tracing::debug!(%error, "a command that hung is gone already");
        }
        if matches!(wait(&mut child, patience), Ok(Some(_))) {
            return;
        }
    }
    tracing::warn!(pid = child.id(), "a command can't be killed: it waits for a disk");
    let reaper = std::thread::Builder::new()
        .name("lvm-reaper".to_owned())
        .spawn(move || drop(child.wait()));
    if let Err(error) = reaper {
        tracing::warn!(%error, "no thread to wait for it");
    }
}

/// The command line as it is told; a configuration given with it is left out.
pub fn line(program: &Path, arguments: &[&str]) -> String {
    let mut text = program.display().to_string();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if *argument == "--config" {
            rest.next();
            continue;
        }
        text.push(' ');
        text.push_str(argument);
    }
    text
}

fn one_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines.join("; ").chars().take(MOST_SAID).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASK: Duration = Duration::from_secs(30);

    fn shell(script: &str, limit: Duration) -> Result<Vec<u8>, CommandError> {
        run(Path::new("/bin/sh"), &["-c", script], limit)
    }

    #[test]
    fn what_is_printed_is_answered_and_a_failure_says_what_was_said() {
        assert_eq!(shell("echo yes; echo no >&2", ASK).unwrap(), b"yes\n");
        let error = shell("echo '  one'; echo two >&2; echo three >&2; exit 5", ASK).unwrap_err();
        let text = error.to_string();
        assert!(text.ends_with("(exit status: 5): two; three"), "{text}");
        let error = run(Path::new("/nowhere/lvm"), &[], ASK).unwrap_err();
        assert!(error.to_string().contains("install it"), "{error}");
    }

    #[test]
    fn more_than_a_pipe_holds_is_no_hindrance() {
        let printed = shell("head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2", ASK).unwrap();
        assert_eq!(printed.len(), 3_000_000);
    }

    #[test]
    fn what_hangs_is_ended_with_what_it_started() {
        let directory = tempfile::TempDir::new().unwrap();
        let pid = directory.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
        let error = shell(&script, Duration::from_millis(300)).unwrap_err();
        assert!(matches!(error, CommandError::Deadline { .. }), "{error}");
        let pid: u32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        let gone = || {
            // A zombie has no command line.
            let line = std::fs::read(format!("/proc/{pid}/cmdline"));
            line.map_or(true, |line| line.is_empty())
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !gone() {
            assert!(Instant::now() < deadline, "the child of what hung lives on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn what_does_not_listen_is_killed() {
        let error = shell(
            "trap '' TERM; sleep 1000 & wait; wait; sleep 1000",
            Duration::from_millis(200),
        );
        assert!(matches!(error, Err(CommandError::Deadline { .. })));
    }
}
