//! A virtual machine with a kernel of its own, for what the machine's own kernel lacks: nbd, ublk, device-mapper with
//! thin pools. It is user-mode Linux ([`kernel`] says which): a kernel that runs as an ordinary process, boots in
//! seconds and computes at native speed; one processor, slow system calls. Or, when asked for, a distribution's own kernel in
//! an emulator, ten times slower.
//!
//! Its root is the host's file system, read-only, with memory laid over it: nothing is built or fetched for it, and
//! programs and this build are found under their own paths. What a guest writes is gone with it, but for
//! its disks and the directories shared with it.
//!
//! Promises: everything has a deadline; the machine is killed when it is dropped, or when the thread that
//! started it ends, however that happens; what is still in its memory is then lost, as when its plug is pulled.
//!
//! [`inside()`] runs a test's own body in one.

mod inside;
mod kernel;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::leftovers;

pub use inside::{inside, inside_with};
pub use kernel::Kernel;

use kernel::Boot;

/// Far above what a boot takes on a busy machine.
const BOOT: Duration = Duration::from_mins(2);
/// For a command, when nothing else is said.
const COMMAND: Duration = Duration::from_mins(3);
/// For an end in order.
const OFF: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);
/// A job's name is said again after this, until it has begun.
const SAY_AGAIN: Duration = Duration::from_secs(2);
/// Disks that the kernel can have.
const MAX_DISKS: usize = 14;

/// A directory of the host that the guest has too, read and write.
#[derive(Clone, Debug)]
pub struct Share {
    /// On the host.
    pub host: PathBuf,
    /// In the guest.
    pub guest: PathBuf,
}

/// What a machine is to have.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What runs in it.
    pub kernel: Kernel,
    /// Memory, MiB.
    pub memory: u32,
    /// Files that are its disks: `/dev/ubda`, `/dev/ubdb` and so on.
    pub disks: Vec<PathBuf>,
    /// Directories.
    pub shares: Vec<Share>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            kernel: Kernel::chosen(),
            memory: 512,
            disks: Vec::new(),
            shares: Vec::new(),
        }
    }
}

/// Where the test's own program and the daemons are.
fn build() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("finding the test's own program")?;
    let build = program.parent().and_then(Path::parent);
    Ok(build.context("the test's own program is nowhere")?.to_owned())
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit status.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// See the module.
#[derive(Debug)]
pub struct Vm {
    root: PathBuf,
    kernel: Child,
    console: UnixStream,
    jobs: u32,
}

/// What this machine lacks to run one with the kernel that is used where no other is needed; `None` when it lacks nothing.
pub fn missing() -> Option<String> {
    Kernel::chosen().missing()
}

/// Makes a file for a disk, of which nothing is used yet.
pub fn disk(path: &Path, bytes: u64) -> anyhow::Result<PathBuf> {
    let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    file.set_len(bytes)?;
    Ok(path.to_owned())
}

impl Vm {
    /// Boots one.
    pub fn start(setup: &Setup) -> anyhow::Result<Self> {
        leftovers::sweep();
        let root = leftovers::new_root()?;
        match Self::boot(root.clone(), setup) {
            Ok(vm) => Ok(vm),
            Err(error) => {
                leftovers::remove(&root);
                Err(error)
            }
        }
    }

    fn boot(root: PathBuf, setup: &Setup) -> anyhow::Result<Self> {
        ensure!(setup.disks.len() <= MAX_DISKS, "more than {MAX_DISKS} disks");
        let jobs = root.join("jobs");
        fs::create_dir(&jobs)?;
        let line = |share: &Share| format!("{}\t{}\n", share.host.display(), share.guest.display());
        fs::write(
            jobs.join("shares"),
            setup.shares.iter().map(line).collect::<String>(),
        )?;
        fs::write(jobs.join("build"), build()?.display().to_string())?;
        let init = root.join("init");
        fs::write(&init, include_str!("guest.sh"))?;
        fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let (console, theirs) = UnixStream::pair()?;
        console.set_write_timeout(Some(Duration::from_secs(1)))?;
        let log = File::create(root.join("console.log"))?;
        let mut command = setup.kernel.command(&Boot {
            root: &root,
            init: &init,
            jobs: &jobs,
            build: &build()?,
            setup,
        });
        command
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let kernel = command.spawn().context("starting a virtual machine")?;
        let mut vm = Self {
            root,
            kernel,
            console,
            jobs: 0,
        };
        let start = Instant::now();
        while !vm.root.join("jobs/ready").exists() {
            if start.elapsed() > BOOT || !vm.runs()? {
                bail!(
                    "the virtual machine has not booted; its console: {}",
                    vm.console()
                );
            }
            thread::sleep(PAUSE);
        }
        Ok(vm)
    }

    /// The process that is its kernel, and leads the group of all its processes.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.kernel.id()).unwrap_or_default()
    }

    fn runs(&mut self) -> anyhow::Result<bool> {
        Ok(self.kernel.try_wait()?.is_none())
    }

    /// What it has said on its console.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.root.join("console.log")).unwrap_or_default()).into_owned()
    }

    /// Runs a script of bash that has to succeed. Returns what it wrote to its standard output.
    pub fn run(&mut self, script: &str) -> anyhow::Result<String> {
        self.run_within(COMMAND, script)
    }

    /// As [`Vm::run`], with a deadline.
    pub fn run_within(&mut self, limit: Duration, script: &str) -> anyhow::Result<String> {
        let output = self.try_within(limit, script)?;
        ensure!(
            output.status == 0,
            "`{script}` ended with {}\n{}{}",
            output.status,
            output.stdout,
            output.stderr
        );
        Ok(output.stdout)
    }

    /// Runs a script however it ends.
    pub fn try_run(&mut self, script: &str) -> anyhow::Result<Output> {
        self.try_within(COMMAND, script)
    }

    /// As [`Vm::try_run`], with a deadline. What is still running then goes on; the machine should be dropped.
    pub fn try_within(&mut self, limit: Duration, script: &str) -> anyhow::Result<Output> {
        self.jobs += 1;
        let name = self.jobs.to_string();
        let file = |end: &str| self.root.join("jobs").join(format!("{name}.{end}"));
        let (script_file, begun, status) = (file("sh"), file("begun"), file("status"));
        let read = |path: PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let (out, err) = (file("out"), file("err"));
        fs::write(script_file, script)?;
        let start = Instant::now();
        let mut said: Option<Instant> = None;
        loop {
            if let Ok(status) = fs::read_to_string(&status) {
                let status = status.trim().parse().context("reading a status of the guest")?;
                let (stdout, stderr) = (read(out), read(err));
                return Ok(Output {
                    status,
                    stdout,
                    stderr,
                });
            }
            let why = if !self.runs()? {
                "the virtual machine has ended"
            } else if start.elapsed() > limit {
                "no end in time"
            } else {
                if !begun.exists() && said.is_none_or(|said| said.elapsed() > SAY_AGAIN) {
                    self.say(&name)?;
                    said = Some(Instant::now());
                }
                thread::sleep(PAUSE);
                continue;
            };
            bail!(
                "`{script}`: {why} ({limit:?})\n{}{}\nconsole: {}",
                read(out),
                read(err),
                self.console()
            );
        }
    }

    fn say(&mut self, line: &str) -> anyhow::Result<()> {
        self.console
            .write_all(format!("{line}\n").as_bytes())
            .context("the virtual machine does not listen")
    }

    /// Ends it in order: what was written is on its disks.
    pub fn power_off(mut self) -> anyhow::Result<()> {
        self.say("off")?;
        let start = Instant::now();
        while self.runs()? {
            ensure!(
                start.elapsed() < OFF,
                "it does not go off; its console: {}",
                self.console()
            );
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Pulls its plug: what it had not written to its disks is lost.
    pub fn pull_the_plug(self) {
        drop(self);
    }

    fn kill(&mut self) {
        // The kernel's process leads a group in which are its helpers and, as processes of the host, the guest's.
        if let Some(group) = Pid::from_raw(self.pid())
            && matches!(self.kernel.try_wait(), Ok(None))
        {
            _ = kill_process_group(group, Signal::KILL);
        }
        if let Err(error) = self.kernel.wait() {
            eprintln!("a virtual machine does not end: {error}");
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if thread::panicking() || std::env::var_os("STOR_TESTS_KEEP_LOGS").is_some() {
            eprintln!("console of the virtual machine:\n{}", self.console());
        }
        self.kill();
        leftovers::remove(&self.root);
    }
}
