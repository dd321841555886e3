//! One daemon of a quickstart: its start script, its pid file, its end.
//!
//! The script is the only way a daemon is started, by the quickstart as by people and tests, so that what was
//! killed comes back exactly as it was.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use super::place::{Place, cannot};
use super::{LOOK, process};
use crate::failure::Failure;

/// A script only forks; one that takes longer is stuck.
const SCRIPT_DEADLINE: Duration = Duration::from_secs(15);

/// A daemon handles signals tens of milliseconds after its start, on a busy machine somewhat later.
const BEGUN: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Daemon {
    pub(crate) name: String,
    /// "controller c1", for messages.
    pub(crate) title: String,
    pub(crate) program: PathBuf,
    /// After the program's name.
    pub(crate) arguments: Vec<String>,
    /// What it listens on.
    pub(crate) ports: Vec<u16>,
    dir: PathBuf,
    script: PathBuf,
    pid_file: PathBuf,
    log: PathBuf,
    /// Length of the log when it was last started: what comes after is what it says now.
    said_before: Arc<AtomicU64>,
}

impl Daemon {
    pub(crate) fn new(
        place: &Place,
        name: &str,
        kind: &str,
        program: PathBuf,
        arguments: Vec<String>,
        ports: Vec<u16>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            title: format!("{kind} {name}"),
            program,
            arguments,
            ports,
            dir: place.dir().to_owned(),
            script: place.script(name),
            pid_file: place.pid_file(name),
            log: place.log(name),
            said_before: Arc::default(),
        }
    }

    /// The pid it was last started with, if that process is still it.
    pub(crate) fn pid(&self) -> Option<i32> {
        let pid = fs::read_to_string(&self.pid_file).ok()?.trim().parse().ok()?;
        process::is_ours(pid, &self.dir).then_some(pid)
    }

    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Writes its start script.
    pub(crate) fn write_script(&self) -> Result<(), Failure> {
        Place::write(&self.script, &self.script_text(), 0o755)
    }

    fn script_text(&self) -> String {
        let arguments: Vec<String> = self.arguments.iter().map(|a| quoted(a)).collect();
        let path = |path: &Path| quoted(&path.display().to_string());
        format!(
            "#!/bin/sh\n\
             # Starts Stor's {title} of this quickstart cluster, detached.\n\
             set -eu\n\
             [ $# -gt 0 ] || set -- {arguments}\n\
             pid_file={pid_file}\n\
             if [ -r \"$pid_file\" ]; then\n\
             \x20   pid=$(cat \"$pid_file\")\n\
             \x20   if grep -qsF -- {dir} \"/proc/$pid/cmdline\"; then\n\
             \x20       echo \"{title} already runs as process $pid\"\n\
             \x20       exit 0\n\
             \x20   fi\n\
             fi\n\
             cd /\n\
             setsid {program} \"$@\" </dev/null >>{log} 2>&1 &\n\
             echo $! >\"$pid_file.new\"\n\
             mv \"$pid_file.new\" \"$pid_file\"\n",
            title = self.title,
            pid_file = path(&self.pid_file),
            dir = quoted(&format!("{}/", self.dir.display())),
            program = path(&self.program),
            arguments = arguments.join(" "),
            log = path(&self.log),
        )
    }

    /// Starts it by its script, unless it runs. `words` instead of its usual arguments set up a new controller.
    pub(crate) async fn start(&self, words: &[String]) -> Result<(), Failure> {
        if self.pid().is_some() {
            return Ok(());
        }
        for port in &self.ports {
            super::ports::require_free(*port, &self.title)?;
        }
        self.said_before.store(
            fs::metadata(&self.log).map_or(0, |log| log.len()),
            Ordering::Relaxed,
        );
        let mut command = tokio::process::Command::new(&self.script);
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let child = command.spawn().map_err(|e| cannot("run", &self.script, &e))?;
        let ended = tokio::time::timeout(SCRIPT_DEADLINE, child.wait_with_output()).await;
        let failed = |why: String| Failure::failed(format!("{} can't be started", self.title)).why(why);
        match ended {
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => Err(failed(String::from_utf8_lossy(&output.stderr).into_owned())),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("{} hangs", self.script.display()))),
        }
    }

    /// Why it is not running, with the end of its log.
    pub(crate) fn ended(&self) -> Failure {
        let log = fs::read(&self.log).unwrap_or_default();
        let before = usize::try_from(self.said_before.load(Ordering::Relaxed)).unwrap_or(0);
        let text = String::from_utf8_lossy(log.get(before..).unwrap_or(&log));
        let lines: Vec<&str> = text.lines().rev().take(8).collect();
        let last: Vec<&str> = lines.into_iter().rev().collect();
        Failure::failed(format!("{} ended", self.title))
            .why(if last.is_empty() {
                "it said nothing".to_owned()
            } else {
                last.join("\n")
            })
            .help(format!("its log is {}", self.log.display()))
    }

    /// Removes its pid file once it is gone: the number may be somebody else's soon, and people kill by it.
    pub(crate) fn forget(&self) {
        if self.pid().is_some() {
            return;
        }
        match fs::remove_file(&self.pid_file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let file = self.pid_file.display();
                crate::output::note(&format!("cannot remove {file}: {error}"));
            }
            _ => {}
        }
    }

    /// Sends a signal; nothing when it does not run.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            process::signal(pid, signal, &self.dir);
        }
    }

    /// Waits until it would take notice of a signal, or is gone; not long, for it is told all the same.
    pub(crate) async fn listens(&self, signal: Signal) {
        let waited = tokio::time::timeout(BEGUN, async {
            while self.pid().is_some_and(|pid| !process::handles(pid, signal)) {
                tokio::time::sleep(LOOK).await;
            }
        });
        // It is told either way.
        let _in_time = waited.await;
    }

    /// Waits until it is gone, at most `limit`. `false` when it is still there.
    pub(crate) async fn gone(&self, limit: Duration) -> bool {
        let waited = tokio::time::timeout(limit, async {
            while self.pid().is_some() {
                tokio::time::sleep(LOOK).await;
            }
        });
        waited.await.is_ok()
    }
}

/// One word for the shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_the_shell() {
        assert_eq!(quoted("--dir=/a/b:1"), "--dir=/a/b:1");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("$(x)"), "'$(x)'");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    /// `tail` goes on although there is no file called `run`, and its command line names the directory.
    fn pretend(place: &Place, bin: &Path) -> Daemon {
        let program = bin.join("stor-satellite");
        fs::copy("/usr/bin/tail", &program).unwrap();
        let state = place.of("s1");
        fs::write(&state, "").unwrap();
        Daemon::new(
            place,
            "s1",
            "satellite",
            program,
            vec!["-f".into(), state.display().to_string()],
            Vec::new(),
        )
    }

    #[tokio::test]
    async fn started_by_its_script_found_by_its_pid_and_ended() {
        let dir = tempfile::tempdir().unwrap();
        let bin = tempfile::tempdir().unwrap();
        let place = Place::take(dir.path()).unwrap();
        let daemon = pretend(&place, bin.path());
        daemon.write_script().unwrap();
        daemon.start(&[]).await.unwrap();
        // The shell's child becomes `tail` a moment after the script has ended.
        let begin = std::time::Instant::now();
        while daemon.pid().is_none() && begin.elapsed() < Duration::from_secs(20) {
            tokio::time::sleep(LOOK).await;
        }
        let pid = daemon.pid().unwrap();
        assert_eq!(process::all(place.dir()), [pid]);
        daemon.start(&[]).await.unwrap();
        assert_eq!(daemon.pid(), Some(pid), "it is not started twice");
        daemon.forget();
        assert_eq!(daemon.pid(), Some(pid), "it is not forgotten while it runs");
        daemon.signal(Signal::TERM);
        assert!(daemon.gone(Duration::from_secs(20)).await);
        assert!(process::all(place.dir()).is_empty());
        daemon.forget();
        assert!(!place.pid_file("s1").exists());
    }

    #[tokio::test]
    async fn a_daemon_that_ends_at_once_is_told_with_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::take(dir.path()).unwrap();
        let program = PathBuf::from("/bin/false");
        let daemon = Daemon::new(
            &place,
            "s1",
            "satellite",
            program,
            vec![place.of("s1").display().to_string()],
            Vec::new(),
        );
        daemon.write_script().unwrap();
        fs::write(place.log("s1"), "of yesterday\n").unwrap();
        daemon.start(&[]).await.unwrap();
        assert!(daemon.gone(Duration::from_secs(20)).await);
        fs::write(place.log("s1"), "of yesterday\nfirst\nport 3370 is in use\n").unwrap();
        let failure = daemon.ended();
        assert!(!failure.why.contains("yesterday"), "{failure:?}");
        assert!(
            failure.why.contains("port 3370 is in use") && failure.help.contains("s1.log"),
            "{failure:?}"
        );
    }
}
