//! A cluster on loopback, as `storctl quickstart` makes it, for as long as a test needs it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::{Export, Outcome, run};

/// How long the cluster may take to start, and to stop. Far above what it takes on a busy machine.
const DEADLINE: Duration = Duration::from_mins(2);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// A running cluster; stopped with all its processes when dropped.
#[derive(Debug)]
pub struct Cluster {
    dir: TempDir,
    storctl: PathBuf,
    quickstart: Child,
}

impl Cluster {
    /// Starts one and waits until it is up and healthy.
    pub fn start() -> anyhow::Result<Self> {
        let storctl = binary("storctl")?;
        for daemon in ["stor-controller", "stor-satellite"] {
            binary(daemon)?;
        }
        let dir = tempfile::Builder::new().prefix("stor").tempdir()?;
        let log = File::create(dir.path().join("quickstart.log"))?;
        let quickstart = Command::new(&storctl)
            .args(["-o", "json", "quickstart", "--dir"])
            .arg(dir.path().join("data"))
            .stdin(Stdio::null())
            .stdout(File::create(dir.path().join("made.json"))?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", storctl.display()))?;
        let mut cluster = Self {
            dir,
            storctl,
            quickstart,
        };
        cluster.wait_until_healthy()?;
        Ok(cluster)
    }

    /// Where tests may put their files.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("quickstart.log")).unwrap_or_default()
    }

    fn wait_until_healthy(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        let mut last = String::from("it does not say that it is up");
        while start.elapsed() < DEADLINE {
            if let Some(status) = self.quickstart.try_wait()? {
                bail!("storctl quickstart ended with {status}:\n{}", self.log());
            }
            // What it made is its one document, printed once everything is up.
            let made = fs::read(self.dir.path().join("made.json"))?;
            if serde_json::from_slice::<Value>(&made).is_ok() {
                let outcome = self.storctl(&["-o", "json", "status"])?;
                if outcome.ok && outcome.stdout.contains("HEALTH_OK") {
                    return Ok(());
                }
                last = format!("{}{}", outcome.stdout, outcome.stderr);
            }
            thread::sleep(PAUSE);
        }
        bail!(
            "the cluster is not healthy after {DEADLINE:?}: {last}\n{}",
            self.log()
        )
    }

    /// Runs `storctl` against the cluster.
    pub fn storctl(&self, args: &[&str]) -> anyhow::Result<Outcome> {
        let env = self.data().join("env");
        let env = env
            .to_str()
            .context("the temporary directory is not valid UTF-8")?;
        let storctl = self
            .storctl
            .to_str()
            .context("the build directory is not valid UTF-8")?;
        let script = r#"set -a; . "$0"; set +a; exec "$@""#;
        let mut command = vec!["-c", script, env, storctl];
        command.extend(args);
        run("sh", &command)
    }

    /// Runs `storctl`, which has to succeed.
    pub fn storctl_ok(&self, args: &[&str]) -> anyhow::Result<String> {
        let outcome = self.storctl(args)?;
        ensure!(
            outcome.ok,
            "failed: storctl {}\n{}{}",
            args.join(" "),
            outcome.stdout,
            outcome.stderr
        );
        Ok(outcome.stdout)
    }

    /// Makes a volume with two replicas.
    pub fn create(&self, name: &str, size: u64) -> anyhow::Result<()> {
        self.storctl_ok(&[
            "volume",
            "create",
            name,
            &size.to_string(),
            "--replicas",
            "2",
            "--pool",
            "sp01",
        ])
        .map(drop)
    }

    /// Attaches a volume to the diskless node and tells where it is served.
    pub fn attach(&self, name: &str, options: &[&str]) -> anyhow::Result<Export> {
        let mut args = vec!["volume", "attach", name, "--node", "k1", "--transport", "socket"];
        args.extend(options);
        self.storctl_ok(&args)?;
        let volume = self.volume(name)?;
        let uri = volume
            .pointer("/attachments/0/nbd_uri")
            .and_then(Value::as_str)
            .with_context(|| format!("the volume has no nbd_uri: {volume}"))?;
        let socket = uri
            .strip_prefix(&format!("nbd+unix:///{name}?socket="))
            .with_context(|| format!("the nbd_uri is not of the form pinned: {uri}"))?;
        let size = volume
            .get("size_bytes")
            .and_then(Value::as_u64)
            .context("the volume has no size_bytes")?;
        Ok(Export {
            socket: socket.into(),
            name: name.into(),
            size,
        })
    }

    /// Detaches a volume and deletes it.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        self.storctl_ok(&["volume", "detach", name])?;
        self.storctl_ok(&["--yes", "volume", "delete", name]).map(drop)
    }

    /// A volume as the API describes it.
    pub fn volume(&self, name: &str) -> anyhow::Result<Value> {
        let json = self.storctl_ok(&["-o", "json", "volume", "describe", name])?;
        serde_json::from_str(&json).with_context(|| format!("reading the description of {name}"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // As Ctrl-C does. Failures here have nobody to hear them; what is left is killed below.
        if let Some(pid) = Pid::from_raw(i32::try_from(self.quickstart.id()).unwrap_or(0)) {
            _ = kill_process(pid, Signal::INT);
        }
        let start = Instant::now();
        while matches!(self.quickstart.try_wait(), Ok(None)) {
            if start.elapsed() > DEADLINE {
                eprintln!(
                    "storctl quickstart did not end within {DEADLINE:?}:\n{}",
                    self.log()
                );
                _ = self.quickstart.kill();
                _ = self.quickstart.wait();
                break;
            }
            thread::sleep(PAUSE);
        }
        kill_leftovers(self.dir.path());
    }
}

/// Kills every process that was started with this directory on its command line: only ours has its random name.
fn kill_leftovers(dir: &Path) {
    let Some(needle) = dir.to_str() else { return };
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(Pid::from_raw)
        else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(needle) {
            _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// A binary of this build: tests lie in `deps` beside them.
fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe().context("finding the test's own binary")?;
    let dir = test
        .parent()
        .and_then(Path::parent)
        .context("the test's binary is in no build directory")?;
    let path = dir.join(name);
    ensure!(
        path.exists(),
        "{} is not built: run `cargo build --workspace` first",
        path.display()
    );
    Ok(path)
}
