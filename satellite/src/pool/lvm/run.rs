//! Running `lvm` and `dmsetup`. Reports are read as JSON, never as tables. What a command that was ended midway has
//! left behind is seen by the next look at the volume group, and every change here can be made again.

use std::path::PathBuf;
use std::time::Duration;

use crate::failure;
use crate::pool::command::{CommandError, line, run};

/// A question: seconds on a machine that is busy, unless a disk hangs.
const ASK: Duration = Duration::from_secs(30);
/// A change: it may have to wait for another program's change of the volume group.
const CHANGE: Duration = Duration::from_mins(1);

/// Without udev, LVM makes the nodes in /dev itself and waits for nobody: in a container, nobody would answer. What
/// is inside of volumes is not LVM's business, and the fill of pools is watched here.
const CONFIG: &str = "activation{udev_sync=0 udev_rules=0 monitoring=0} devices{scan_lvs=0}";

/// The programs and their limits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lvm {
    program: PathBuf,
    dmsetup: PathBuf,
    ask: Duration,
    change: Duration,
}

impl Default for Lvm {
    fn default() -> Self {
        Self {
            program: "lvm".into(),
            dmsetup: "dmsetup".into(),
            ask: ASK,
            change: CHANGE,
        }
    }
}

impl Lvm {
    /// With other programs and limits, for tests.
    pub fn with(program: PathBuf, dmsetup: PathBuf, limit: Duration) -> Self {
        Self {
            program,
            dmsetup,
            ask: limit,
            change: limit,
        }
    }

    /// Asks for a report, in JSON: sizes in bytes, everything under its own name.
    pub fn report(&self, command: &str, arguments: &[&str]) -> Result<serde_json::Value, CommandError> {
        let mut all = vec![command, "--reportformat", "json", "--units", "b", "--nosuffix"];
        all.extend(["--config", CONFIG]);
        all.extend(arguments);
        let printed = run(&self.program, &all, self.ask)?;
        serde_json::from_slice(&printed).map_err(|source| CommandError::Unreadable {
            command: line(&self.program, &all),
            source,
        })
    }

    /// Changes something.
    pub fn change(&self, command: &str, arguments: &[&str]) -> Result<(), CommandError> {
        let mut all = vec![command, "--yes", "--config", CONFIG];
        all.extend(arguments);
        tracing::debug!(command = line(&self.program, &all), "lvm");
        failure::point(&format!("before-{command}"));
        run(&self.program, &all, self.change)?;
        failure::point(&format!("after-{command}"));
        Ok(())
    }

    /// Asks the kernel how all mapped devices are. It is the kernel's own format, the same since it has it.
    pub fn status(&self) -> Result<String, CommandError> {
        // Without a flush: to look must not cost a commit.
        let printed = run(&self.dmsetup, &["status", "--noflush"], self.ask)?;
        Ok(String::from_utf8_lossy(&printed).into_owned())
    }
}
