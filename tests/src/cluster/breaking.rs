//! Breaking a cluster, and what is left of it to look at.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use stor_api::objects::NodeState;

use super::{CLIENT, CONTROLLERS, Cluster, SECOND, STORAGE, start_quickstart};
use crate::{process, wait};

/// A quickstart asked to end takes its devices down first.
const END: Duration = Duration::from_secs(45);

impl Cluster {
    /// The process of a daemon, when it lives.
    pub fn pid(&self, name: &str) -> Option<i32> {
        let path = self.dir().join("run").join(format!("{name}.pid"));
        let pid = fs::read_to_string(path).ok()?.trim().parse().ok()?;
        process::is_of(pid, &self.root).then_some(pid)
    }

    /// Kills daemons with SIGKILL, all at once, and waits until they are gone.
    pub fn kill(&self, names: &[&str]) -> anyhow::Result<()> {
        let mut pids = Vec::new();
        for name in names {
            let pid = self.pid(name).with_context(|| format!("{name} does not run"))?;
            process::signal(pid, Signal::KILL, &self.root)?;
            pids.push((name, pid));
        }
        for (name, pid) in pids {
            wait::until(wait::LONG, &format!("{name} is gone"), || {
                Ok(process::is_gone(pid))
            })?;
        }
        Ok(())
    }

    /// Starts daemons again, by their scripts.
    pub fn start_again(&self, names: &[&str]) -> anyhow::Result<()> {
        for name in names {
            self.start_script(name)?;
            wait::until(wait::LONG, &format!("{name} runs"), || {
                Ok(self.pid(name).is_some())
            })?;
        }
        Ok(())
    }

    /// Runs a start script without looking whether its daemon stays.
    pub fn start_script(&self, name: &str) -> anyhow::Result<()> {
        let script = self.dir().join("run").join(format!("{name}.start"));
        let output = Command::new(&script)
            .envs(super::points::environment(&self.root))
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("running {}", script.display()))?;
        ensure!(output.status.success(), "{} failed: {output:?}", script.display());
        Ok(())
    }

    /// Ends the quickstart as Ctrl-C does, and starts it again in the same directory.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.end()?;
        self.begin()
    }

    /// Ends the quickstart as Ctrl-C does.
    pub fn end(&mut self) -> anyhow::Result<()> {
        ensure!(self.interrupt(), "the quickstart did not end:\n{}", self.said());
        let left = process::all_of(&self.root);
        ensure!(left.is_empty(), "the quickstart left processes {left:?}");
        Ok(())
    }

    /// Starts the quickstart again after [`Cluster::end`].
    pub fn begin(&mut self) -> anyhow::Result<()> {
        self.begin_without("")
    }

    /// The same where one daemon can't start.
    pub fn begin_without(&mut self, missing: &str) -> anyhow::Result<()> {
        ensure!(self.network.is_none(), "no quickstart made this cluster");
        self.quickstart = Some(start_quickstart(&self.root)?);
        wait::until(wait::LONG, "every daemon runs", || {
            self.quickstart_runs()?;
            let names = CONTROLLERS.iter().chain(&STORAGE).chain([&CLIENT]);
            let mut names = names.filter(|name| **name != missing);
            Ok(names.all(|name| self.pid(name).is_some()))
        })?;
        for node in STORAGE.iter().chain([&CLIENT]) {
            self.wait_node(node, NodeState::Online)?;
        }
        Ok(())
    }

    /// The end of a daemon's log.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dir().join("log").join(format!("{name}.log"))).unwrap_or_default()
    }

    /// An error with what it said when it does not.
    pub(super) fn quickstart_runs(&mut self) -> anyhow::Result<()> {
        let child = self.quickstart.as_mut().context("there is no quickstart")?;
        if let Some(status) = child.try_wait()? {
            bail!("storctl quickstart ended with {status}:\n{}", self.said());
        }
        Ok(())
    }

    /// Asks the quickstart to end; `false` when it had to be killed.
    pub(super) fn interrupt(&mut self) -> bool {
        let Some(quickstart) = self.quickstart.as_mut() else {
            return true;
        };
        let pid = i32::try_from(quickstart.id()).ok().and_then(Pid::from_raw);
        let start = Instant::now();
        if let Some(pid) = pid
            && matches!(quickstart.try_wait(), Ok(None))
        {
            // It may end this very moment.
            _ = kill_process(pid, Signal::INT);
        }
        while matches!(quickstart.try_wait(), Ok(None)) {
            if start.elapsed() > END {
                _ = quickstart.kill();
                _ = quickstart.wait();
                return false;
            }
            thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// Keeps the logs for whoever wants to know why a test failed.
    pub fn keep_logs(&self) {
        let name = thread::current().name().unwrap_or("test").replace("::", "-");
        let to = std::env::temp_dir().join("stor-tests-failed").join(name);
        _ = fs::remove_dir_all(&to);
        _ = fs::create_dir_all(&to);
        let logs = fs::read_dir(self.dir().join("log"))
            .into_iter()
            .flatten()
            .flatten();
        let mut paths: Vec<PathBuf> = logs.map(|entry| entry.path()).collect();
        paths.push(self.root.join("quickstart.log"));
        for node in STORAGE.iter().chain([&CLIENT, &SECOND]) {
            let engines = self.dir().join(node).join("engines");
            for engine in fs::read_dir(engines).into_iter().flatten().flatten() {
                let log = engine.path().join("engine.log");
                let volume = engine.file_name().to_string_lossy().into_owned();
                _ = fs::copy(log, to.join(format!("{node}-engine-{volume}.log")));
            }
        }
        for path in paths {
            _ = fs::copy(&path, to.join(path.file_name().unwrap_or_default()));
        }
        eprintln!("the cluster's logs are in {}", to.display());
    }
}
