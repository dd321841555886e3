//! Engine processes as the kernel knows them: started, found again, ended.
//!
//! A process is named by its pid *and* the time it began, so that a pid that the kernel has given to
//! somebody else is never taken for the engine, and never killed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Pid, Signal};
use stor_replication::ids::{Epoch, VolumeId};
use thiserror::Error;
use tokio::process::{Child, Command};
use uuid::Uuid;

use crate::agent::durable::{self, ReplaceError};
use crate::agent::state_dir::Paths;

/// A log above this size begins anew at the next start of the engine; the one before is kept.
const LOG_SIZE: u64 = 4 << 20;

/// A process: the pid alone may be somebody else's by now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProcessId {
    pid: Pid,
    /// Clock ticks since boot.
    start: u64,
}

impl std::fmt::Display for ProcessId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.pid.as_raw_nonzero())
    }
}

impl ProcessId {
    /// The process that has this pid now, unless it has ended (a zombie has).
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the name in brackets, and may hold anything.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        if matches!(state, "Z" | "X" | "x") {
            return None;
        }
        // Field 22 of the line; the state is field 3.
        let start = fields.nth(18)?.parse().ok()?;
        Some(Self {
            pid: Pid::from_raw(pid)?,
            start,
        })
    }

    /// Its number.
    pub fn pid(self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Whether it is still there.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid()) == Some(self)
    }

    /// Ends it at once, when it is the engine of `volume`; anything else is left alone.
    pub fn kill(self, volume: VolumeId, paths: &Paths) -> io::Result<()> {
        if !self.is_alive() || engine_of(self.pid(), paths) != Some(volume) {
            return Ok(());
        }
        match rustix::process::kill_process(self.pid, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Which of our volumes the process is the engine of, told by its command line.
fn engine_of(pid: i32, paths: &Paths) -> Option<VolumeId> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    words.nth(1).filter(|word| word == "engine")?;
    let words: Vec<_> = words.collect();
    let after = |name: &str| {
        let place = words.iter().position(|word| word == name)?;
        words.get(place + 1)
    };
    let volume = VolumeId(Uuid::parse_str(after("--volume")?).ok()?);
    let control = Path::new(after("--control")?.as_ref());
    (control == paths.control_socket(volume)).then_some(volume)
}

/// Every engine of this state directory that runs.
pub fn running(paths: &Paths) -> io::Result<Vec<(VolumeId, ProcessId)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if let Some(volume) = engine_of(pid, paths)
            && let Some(process) = ProcessId::of(pid)
        {
            found.push((volume, process));
        }
    }
    Ok(found)
}

/// Why an engine could not be started.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// Its directory.
    #[error(transparent)]
    Directory(#[from] crate::agent::state_dir::StateDirError),
    /// The note of its epoch, without which it must not run.
    #[error(transparent)]
    Record(#[from] ReplaceError),
    /// Its log.
    #[error("cannot open {}: {source}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A socket of the engine before it.
    #[error("cannot remove {}: {source}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The process itself.
    #[error("cannot start an engine ({}): {source}", program.display())]
    Start {
        /// What was to run.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The FUSE descriptor could not be handed over.
    #[error("cannot hand the FUSE connection to the engine: {0}")]
    Fuse(#[source] io::Error),
}

/// Starts the engine of `volume` under `epoch`. The epoch is on disk before the process is there: no
/// second one is ever started under it.
pub fn spawn(
    program: &Path,
    paths: &Paths,
    volume: VolumeId,
    epoch: Epoch,
    fuse: Option<&OwnedFd>,
) -> Result<(ProcessId, Child), SpawnError> {
    paths.make_engine(volume)?;
    record_epoch(paths, volume, epoch)?;
    let control = paths.control_socket(volume);
    match fs::remove_file(&control) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(SpawnError::Socket {
                path: control,
                source,
            });
        }
        _ => {}
    }
    let log = open_log(&paths.engine(volume).join("engine.log"))?;
    let errors = log.try_clone().map_err(SpawnError::Fuse)?;
    let mut command = std::process::Command::new(program);
    command
        .arg0("stor-satellite")
        .arg("engine")
        .args(["--volume", &volume.to_string()])
        .arg("--control")
        .arg(&control)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .current_dir("/");
    if let Some(fuse) = fuse {
        let fuse = fuse.try_clone().map_err(SpawnError::Fuse)?;
        command.args(["--fuse-fd", &fuse.as_raw_fd().to_string()]);
        stor_device::process::keep_open(&mut command, vec![fuse]);
    }
    // Neither our end nor a signal to our terminal is the engine's.
    stor_device::process::own_session(&mut command);
    let start_error = |source| SpawnError::Start {
        program: program.to_owned(),
        source,
    };
    let child = Command::from(command).spawn().map_err(start_error)?;
    let process = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(ProcessId::of)
        .ok_or_else(|| start_error(io::Error::other("it ended at once")))?;
    let note = format!("{} {}\n", process.pid(), process.start);
    durable::replace(&paths.engine(volume).join("pid"), note.as_bytes())?;
    Ok((process, child))
}

fn open_log(path: &Path) -> Result<File, SpawnError> {
    let error = |source| SpawnError::Log {
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).is_ok_and(|log| log.len() > LOG_SIZE) {
        fs::rename(path, path.with_extension("log.1")).map_err(error)?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(error)
}

/// Notes that `epoch` is used: whatever happened to its engine, the next one needs a later epoch.
pub fn record_epoch(paths: &Paths, volume: VolumeId, epoch: Epoch) -> Result<(), ReplaceError> {
    durable::replace(
        &paths.engine(volume).join("epoch"),
        format!("{epoch}\n").as_bytes(),
    )?;
    // The directory may be new, and the note must not vanish with it.
    let engines = paths.engines();
    durable::sync_directory(&engines).map_err(|source| ReplaceError {
        path: engines,
        source,
    })
}

/// The last epoch an engine was started under here; zero when there was none. What cannot be read counts
/// as the highest there is: a new epoch is asked for, and no used one is taken for unused.
pub fn used_epoch(paths: &Paths, volume: VolumeId) -> Epoch {
    let path = paths.engine(volume).join("epoch");
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(epoch) => Epoch(epoch),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the note of the last epoch is damaged");
                Epoch(u64::MAX)
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Epoch(0),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "the note of the last epoch cannot be read");
            Epoch(u64::MAX)
        }
    }
}

/// Writes a line of ours into an engine's log, beside its own.
pub fn note_in_log(paths: &Paths, volume: VolumeId, line: &str) {
    let noted = open_log(&paths.engine(volume).join("engine.log"))
        .map_err(io::Error::other)
        .and_then(|mut log| writeln!(log, "agent: {line}"));
    if let Err(error) = noted {
        tracing::debug!(%volume, %error, "no line in the engine's log");
    }
}
