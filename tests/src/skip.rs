//! What a test needs and the cluster can't give.

pub use stor_skip::skipped;

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
