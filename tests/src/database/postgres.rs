//! PostgreSQL with checksums, small caches and frequent checkpoints.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{Database, TABLES, ask};
use crate::wait;

/// Where Debian puts the programs of each version.
const PLACE: &str = "/usr/lib/postgresql";
/// It refuses to run as root.
const USER: &str = "postgres";

/// See the module.
#[derive(Debug)]
pub struct Postgres {
    data: PathBuf,
    /// Of its socket, not on the volume.
    sockets: tempfile::TempDir,
    server: Option<Child>,
}

impl Postgres {
    fn programs() -> anyhow::Result<PathBuf> {
        let versions = std::fs::read_dir(PLACE).with_context(|| format!("looking into {PLACE}"))?;
        let mut found: Vec<PathBuf> = versions
            .flatten()
            .map(|entry| entry.path().join("bin"))
            .filter(|bin| bin.join("initdb").exists() && bin.join("pg_amcheck").exists())
            .collect();
        found.sort();
        found
            .pop()
            .with_context(|| format!("no version in {PLACE} has initdb and pg_amcheck"))
    }

    /// One of its programs, as its user.
    fn program(name: &str) -> anyhow::Result<Command> {
        let mut command = Command::new("setpriv");
        command.args([
            &format!("--reuid={USER}"),
            &format!("--regid={USER}"),
            "--clear-groups",
        ]);
        command
            .arg(Self::programs()?.join(name))
            .stdin(Stdio::null())
            .current_dir("/");
        Ok(command)
    }

    fn run(name: &str, words: &[&str]) -> anyhow::Result<()> {
        let output = Self::program(name)?.args(words).output()?;
        ensure!(
            output.status.success(),
            "{name} {}: {}{}",
            words.join(" "),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    fn socket_dir(&self) -> String {
        self.sockets.path().display().to_string()
    }

    /// Every process of the server: they work in its directory.
    fn processes(&self) -> Vec<i32> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter(|entry| std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == self.data))
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    }

    fn log(&self) -> PathBuf {
        self.sockets.path().join("log")
    }
}

impl Database for Postgres {
    fn missing() -> Option<String> {
        let user = Command::new("id")
            .arg(USER)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !user.is_ok_and(|status| status.success()) {
            return Some(format!("a user {USER} (package postgresql)"));
        }
        Self::programs()
            .err()
            .map(|error| format!("{error:#} (package postgresql)"))
    }

    fn make(tree: &Path) -> anyhow::Result<Self> {
        let data = tree.join("data");
        std::fs::create_dir(&data)?;
        let sockets = tempfile::Builder::new()
            .prefix("stor-pg-")
            .tempdir_in("/var/tmp")?;
        for path in [data.as_path(), sockets.path()] {
            let output = Command::new("chown").arg(USER).arg(path).output()?;
            ensure!(output.status.success(), "chown: {output:?}");
        }
        let at = data.display().to_string();
        Self::run(
            "initdb",
            &[
                "-D",
                &at,
                "--data-checksums",
                "--no-locale",
                "-E",
                "UTF8",
                "--no-sync",
                "-A",
                "trust",
            ],
        )?;
        let mut made = Self {
            data,
            sockets,
            server: None,
        };
        made.start()?;
        ask(&made, TABLES)?;
        ask(&made, "create extension amcheck;")?;
        for writer in 0..super::WRITERS {
            ask(&made, &format!("insert into tally values ({writer}, 0);"))?;
        }
        Ok(made)
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log())?;
        let mut command = Self::program("postgres")?;
        command.arg("-D").arg(&self.data).args(["-k", &self.socket_dir()]);
        let settings = [
            "listen_addresses=",
            "shared_buffers=8MB",
            "max_wal_size=32MB",
            "checkpoint_timeout=30s",
            "wal_recycle=off",
        ];
        for setting in settings {
            command.args(["-c", setting]);
        }
        command.stdout(log.try_clone()?).stderr(log);
        self.server = Some(command.spawn().context("starting postgres")?);
        wait::that(wait::LONG, "postgres answers", || {
            if let Some(server) = &mut self.server
                && let Some(status) = server.try_wait()?
            {
                anyhow::bail!(
                    "postgres ended with {status}:\n{}",
                    std::fs::read_to_string(self.log()).unwrap_or_default()
                );
            }
            Ok(ask(self, "select 1;")
                .map(drop)
                .map_err(|error| error.to_string()))
        })
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        let mut server = self.server.take().context("postgres does not run")?;
        let pid = i32::try_from(server.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("no pid")?;
        // "Fast": open sessions are ended, all is written.
        kill_process(pid, Signal::INT)?;
        let start = Instant::now();
        while server.try_wait()?.is_none() {
            ensure!(start.elapsed() < wait::LONG, "postgres does not end");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Self::run(
            "pg_checksums",
            &["--check", "-D", &self.data.display().to_string()],
        )
    }

    fn kill(&mut self) {
        let Some(mut server) = self.server.take() else {
            return;
        };
        // Gone already is as good. Its backends have sessions of their own, and one that waits for a lock of another
        // does not notice that the server is gone.
        _ = server.kill();
        _ = server.wait();
        let start = Instant::now();
        while let left = self.processes()
            && !left.is_empty()
            && start.elapsed() < wait::LONG
        {
            for pid in left.into_iter().filter_map(Pid::from_raw) {
                _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    fn client(&self) -> Command {
        let mut client = Self::program("psql").unwrap_or_else(|_| Command::new("psql"));
        client.args([
            "-qAtX",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            &self.socket_dir(),
            "-U",
            USER,
            "-d",
            "postgres",
        ]);
        client
    }

    fn check(&self) -> anyhow::Result<()> {
        Self::run(
            "pg_amcheck",
            &[
                "-h",
                &self.socket_dir(),
                "-U",
                USER,
                "--heapallindexed",
                "-d",
                "postgres",
            ],
        )
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}
