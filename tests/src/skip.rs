//! Tests that need what not every machine has. A skip says what is missing, and is counted: its line goes to
//! the file named by `STOR_TESTS_SKIPPED`, when there is one.

use std::fs::OpenOptions;
use std::io::Write as _;

use crate::cluster::Cluster;

/// What a node lacks for a transport, as it says itself; `None` when it lacks nothing.
pub fn without_transport(cluster: &Cluster, node: &str, transport: &str) -> anyhow::Result<Option<String>> {
    let node = cluster.run(cluster.client().node(node))?;
    let found = node.transports.iter().find(|t| t.name == transport);
    Ok(match found {
        Some(t) if t.available => None,
        Some(t) => Some(t.remedy.clone()),
        None => Some(format!(
            "node {} does not tell of transport {transport}",
            node.name
        )),
    })
}

/// Says that a test was not run.
pub fn skipped(test: &str, missing: &str) {
    let line = format!("SKIPPED {test}: {missing}");
    println!("{line}");
    if let Some(path) = std::env::var_os("STOR_TESTS_SKIPPED") {
        let noted = OpenOptions::new().create(true).append(true).open(&path);
        if let Err(error) = noted.and_then(|mut file| writeln!(file, "{line}")) {
            eprintln!("the skip could not be noted in {}: {error}", path.display());
        }
    }
}
