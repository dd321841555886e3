//! Other programs (`mkfs.ext4`, `mount`) and blocking work, each with a deadline: what a device does that does
//! not answer is what the story is about.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use crate::failure::{Exit, Failure};
use crate::wait::seconds;

/// Where administrators' programs are, which are not on everybody's PATH.
const ADMIN: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Where a program is.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.extend(ADMIN.iter().map(PathBuf::from));
    places
        .into_iter()
        .map(|dir| dir.join(program))
        .find(|p| p.is_file())
}

/// Runs a program to its end, at most `limit`.
pub(crate) async fn run(program: &str, arguments: &[&str], limit: Duration) -> Result<(), Failure> {
    let shown = format!("{program} {}", arguments.join(" "));
    let path = find(program).ok_or_else(|| {
        Failure::failed(format!("{program} is missing")).help(format!("install the package with {program}"))
    })?;
    let mut command = tokio::process::Command::new(path);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let child = command
        .spawn()
        .map_err(|e| Failure::failed(format!("{shown} can't run")).why(e.to_string()))?;
    match tokio::time::timeout(limit, child.wait_with_output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(Failure::failed(format!("{shown} failed: {}", output.status))
            .why(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        Ok(Err(error)) => Err(Failure::failed(format!("{shown} failed")).why(error.to_string())),
        Err(_) => Err(Failure::new(
            Exit::TimedOut,
            format!("{shown} has not ended after {}", seconds(limit)),
        )),
    }
}

/// Blocking work on a thread of its own. When the time is over the thread is left behind: it may hang in a
/// system call that nobody can end.
pub(crate) async fn blocking<T: Send + 'static>(
    limit: Duration,
    what: &str,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => Err(Failure::failed(format!("{what}: the thread ended: {error}"))),
        Err(_) => Err(Failure::new(
            Exit::TimedOut,
            format!("{what}: not done after {}", seconds(limit)),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_fails_or_hangs_is_told() {
        assert!(run("true", &[], Duration::from_mins(1)).await.is_ok());
        let failed = run("sh", &["-c", "echo no room >&2; exit 3"], Duration::from_mins(1))
            .await
            .unwrap_err();
        assert_eq!(failed.why, "no room");
        let hung = run("sleep", &["100"], Duration::from_millis(20))
            .await
            .unwrap_err();
        assert_eq!(hung.exit, Exit::TimedOut);
        assert!(
            run("no-such-program-at-all", &[], Duration::from_mins(1))
                .await
                .unwrap_err()
                .what
                .contains("missing")
        );
    }
}
