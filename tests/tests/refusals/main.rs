//! Wrong input of every kind: one clear error each, nothing half made, nothing lost.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout
)]

mod command_lines;
mod damage;
mod pools;
mod requests;
mod start;

use stor_api::client::Filter;
use stor_tests::cluster::Cluster;

/// All names in the catalogue.
fn catalogue(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let client = cluster.client();
    let mut all: Vec<String> = Vec::new();
    for node in cluster.run(client.nodes())? {
        all.push(format!("node {} {}", node.name, node.revision));
    }
    for pool in cluster.run(client.pools())? {
        all.push(format!("pool {} {} {}", pool.name, pool.node, pool.revision));
    }
    for class in cluster.run(client.classes())? {
        all.push(format!("class {}", class.spec.name));
    }
    for volume in cluster.run(client.volumes(&Filter::default()))? {
        all.push(format!("volume {} {}", volume.name, volume.size_bytes));
    }
    Ok(all)
}

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(160).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
