//! Failure points: places in between two steps of an operation where a test has this process die.
//!
//! Nothing of it is active unless [`DIRECTORY`] is set, as tests do: then each point that is passed is noted in
//! `DIRECTORY/NODE.passed`, and the process ends at the one named in `DIRECTORY/NODE.die`, which it removes first: as a
//! SIGKILL would end it. So a test runs an operation once, learns by which points it leads, and runs it again for each.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::OnceLock;

/// Where tests say what is to fail.
pub const DIRECTORY: &str = "STOR_TEST_FAILURE_POINTS";

static ARMED: OnceLock<(PathBuf, String)> = OnceLock::new();

/// Has points of this process count, if a test wants that: `node` is whose it is.
pub fn arm(node: &str) {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        // A second node in one process is none that tests make.
        let _: &(PathBuf, String) = ARMED.get_or_init(|| (directory.into(), node.to_owned()));
        tracing::warn!(node, "failure points are armed: this is a test");
    }
}

/// A point is passed.
pub fn point(name: &str) {
    let Some((directory, node)) = ARMED.get() else {
        return;
    };
    let noted = OpenOptions::new()
        .create(true)
        .append(true)
        .open(directory.join(format!("{node}.passed")))
        .and_then(|mut file| file.write_all(format!("{name}\n").as_bytes()));
    if let Err(error) = noted {
        tracing::error!(name, %error, "a failure point can't be noted");
    }
    let die = directory.join(format!("{node}.die"));
    let here = fs::read_to_string(&die).is_ok_and(|text| text.trim() == name);
    if here && fs::remove_file(&die).is_ok() {
        let gone = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        tracing::error!(name, ?gone, "this process should not live");
    }
}
