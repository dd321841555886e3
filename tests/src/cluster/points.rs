//! Failure points of a cluster's satellites: which an operation passes, and death at one of them. And, of every
//! cluster, whether anything is left that belongs to nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stor_api::client::{Error, Filter};
use stor_api::objects::{NodeKind, NodeState};

use super::{Cluster, STORAGE};
use crate::wait;

/// What satellites read it from.
const VARIABLE: &str = "STOR_TEST_FAILURE_POINTS";
/// The list of what belongs to nothing is made anew as often.
const LISTED: Duration = Duration::from_secs(2);

fn directory(root: &Path) -> PathBuf {
    root.join("points")
}

/// What daemons of this cluster are started with: nothing, unless [`prepare`] was called.
pub(super) fn environment(root: &Path) -> Option<(&'static str, PathBuf)> {
    let directory = directory(root);
    directory.exists().then_some((VARIABLE, directory))
}

impl Cluster {
    /// To be called before a cluster starts, with its directory: its satellites' failure points count.
    pub fn prepare_points(dir: &Path) -> anyhow::Result<()> {
        let root = dir.parent().unwrap_or(dir);
        Ok(fs::create_dir(directory(root))?)
    }

    /// The points that were passed since this was asked last, with the node.
    pub fn points_passed(&self) -> anyhow::Result<BTreeSet<(String, String)>> {
        let mut passed = BTreeSet::new();
        for node in STORAGE {
            let path = directory(&self.root).join(format!("{node}.passed"));
            let text = fs::read_to_string(&path).unwrap_or_default();
            passed.extend(text.lines().map(|line| (node.to_owned(), line.to_owned())));
            if path.exists() {
                fs::remove_file(path)?;
            }
        }
        Ok(passed)
    }

    /// The node's satellite dies when it passes the point next.
    pub fn die_at(&self, node: &str, point: &str) -> anyhow::Result<()> {
        let path = directory(&self.root).join(format!("{node}.die"));
        // Whole at once: it may be looked at any time.
        fs::write(path.with_extension("new"), point)?;
        Ok(fs::rename(path.with_extension("new"), path)?)
    }

    /// Whether the node's satellite has died where it was to; from now on it does not.
    pub fn has_died(&self, node: &str) -> anyhow::Result<bool> {
        let path = directory(&self.root).join(format!("{node}.die"));
        let waits = path.exists();
        if waits {
            fs::remove_file(path)?;
        }
        Ok(!waits)
    }

    /// Of a cluster that is whole: nothing in its pools belongs to nothing. Of one that is not, nothing is asked.
    pub fn leaves_nothing(&self) -> anyhow::Result<()> {
        let filter = Filter::default();
        let whole = match self.run(self.client().nodes()) {
            Ok(nodes) => nodes
                .iter()
                .all(|node| node.kind == NodeKind::Diskless || node.state == NodeState::Online),
            Err(Error::Unreachable { .. } | Error::TimedOut { .. } | Error::Failed(_)) => false,
            Err(other) => return Err(other.into()),
        };
        if !whole {
            return Ok(());
        }
        for round in 0..2 {
            if round > 0 {
                std::thread::sleep(LISTED);
            }
            wait::that(wait::LONG, "nothing in the pools belongs to nothing", || {
                // Of a catalogue that was restored and does not know all, nothing is told.
                let left = self.run(self.client().orphans(&filter))?;
                Ok(if left.is_empty() {
                    Ok(())
                } else {
                    Err(format!("{left:?}"))
                })
            })?;
        }
        Ok(())
    }
}
