//! Snapshots of volumes in use: their copies are equal, hold one moment, and become volumes again; whoever dies in
//! the middle, nothing is left behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "tests"
)]

mod anew;
mod clones;
mod copies;
mod deaths;
mod files;
mod restored;

use std::path::Path;

use stor_tests::cluster::Cluster;
use stor_tests::{reflink, skip};

/// Runs a test on a cluster whose pools can share blocks.
pub(crate) fn with(name: &str, test: impl FnOnce(&mut Cluster) -> anyhow::Result<()>) -> anyhow::Result<()> {
    if let Some(missing) = reflink::missing() {
        skip::skipped(name, &missing);
        return Ok(());
    }
    let mut cluster = Cluster::start_prepared(|dir: &Path| reflink::mount(dir))?;
    let done = test(&mut cluster).and_then(|()| cluster.leaves_nothing());
    if done.is_err() {
        cluster.keep_logs();
    }
    done
}
