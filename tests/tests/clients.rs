//! Real NBD clients on a replicated volume of a real cluster.
//!
//! One test with one cluster: two clusters of a machine would be after the same ports. Every client is tried, whatever
//! became of the ones before it, each on a volume of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::path::Path;

use stor_tests::clients::{self, Cluster, Export};

const SIZE: u64 = 64 << 20;

/// A client's name, which is its volume's as well, and its check.
type Client = (&'static str, fn(&Export, &Path) -> anyhow::Result<()>);

const CLIENTS: [Client; 6] = [
    ("nbdinfo", |export, _| {
        clients::check_info(export)?;
        clients::check_unknown_export(export)?;
        clients::check_map(export).map(drop)
    }),
    ("nbdcopy", clients::check_nbdcopy),
    ("qemu-img", clients::check_qemu_img),
    ("qemu-io", |export, _| clients::check_qemu_io(export)),
    ("fio-1", |export, scratch| clients::check_fio(export, 1, scratch)),
    ("fio-32", |export, scratch| {
        clients::check_fio(export, 32, scratch)
    }),
];

fn on_a_volume(cluster: &Cluster, (name, check): Client) -> anyhow::Result<()> {
    cluster.create(name, SIZE)?;
    let export = cluster.attach(name, &[])?;
    check(&export, cluster.scratch())?;
    if name == "qemu-io" {
        // What one attachment wrote is there for the next one, which may not change it.
        cluster.storctl_ok(&["volume", "detach", name])?;
        clients::check_read_only(&cluster.attach(name, &["--read-only"])?)?;
    }
    cluster.remove(name)
}

#[test]
fn real_clients_work_on_a_replicated_volume() {
    let cluster = Cluster::start().unwrap();
    let failures: Vec<String> = CLIENTS
        .into_iter()
        .filter_map(|client| {
            on_a_volume(&cluster, client)
                .err()
                .map(|error| format!("{}: {error:#}", client.0))
        })
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} failed:\n{}",
        failures.len(),
        CLIENTS.len(),
        failures.join("\n\n")
    );
}
