//! Real clients on a replicated volume of a real cluster: NBD clients on the socket, file systems on the device.
//!
//! Every client is tried, whatever became of the ones before it, each on a volume of its own, whose copies have to be
//! equal byte for byte at the end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use stor_api::objects::AttachmentSpec;
use stor_tests::clients::{self, Export};
use stor_tests::cluster::{self, CLIENT, Cluster};
use stor_tests::medium::Medium;
use stor_tests::volume::{self, SIZE, Volume};

const NODES: [&str; 2] = ["s1", "s2"];

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

fn export_of(name: &str, medium: Medium) -> anyhow::Result<Export> {
    match medium {
        Medium::Socket { path, export } => Ok(Export {
            socket: path,
            name: export,
            size: SIZE,
        }),
        Medium::Device(path) => bail!("{name} was attached as {} and not as a socket", path.display()),
    }
}

fn on_a_volume(cluster: &Cluster, (name, check): Client) -> anyhow::Result<()> {
    let volume = Volume::create(cluster, name, SIZE, &NODES)?;
    let export = export_of(name, volume.attach_socket()?)?;
    check(&export, &cluster.scratch())?;
    volume.detach(CLIENT)?;
    volume.copies_are_equal()
}

/// Does all of `work` and tells all that failed.
fn all<T>(work: impl IntoIterator<Item = T>, each: impl Fn(T) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let failures: Vec<String> = work
        .into_iter()
        .filter_map(|one| each(one).err())
        .map(|error| format!("{error:#}"))
        .collect();
    ensure!(
        failures.is_empty(),
        "{} failed:\n{}",
        failures.len(),
        failures.join("\n\n")
    );
    Ok(())
}

#[test]
fn nbd_clients_work_on_a_replicated_volume() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        all(CLIENTS, |client| {
            on_a_volume(cluster, client).with_context(|| client.0.to_owned())
        })
    })
}

/// Clients are told of holes, and a copy of a volume with little in it costs little.
#[test]
fn what_is_not_there_is_a_hole_and_is_not_read() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "sparse", SIZE, &NODES)?;
        let export = export_of("sparse", volume.attach_socket()?)?;
        let written = clients::check_holes(&export)?;
        let read = || -> anyhow::Result<u64> {
            // Counters are told once a second.
            std::thread::sleep(Duration::from_secs(3));
            Ok(volume.attachment(CLIENT)?.counters.read_bytes)
        };
        let before = read()?;
        clients::copy_sparse(&export, &cluster.scratch())?;
        let copied = read()? - before;
        println!("{written} bytes written, {copied} read to copy {SIZE}");
        ensure!(
            (written..SIZE / 16).contains(&copied),
            "{copied} bytes were read to copy {written} of {SIZE}"
        );
        volume.detach(CLIENT)?;
        volume.copies_are_equal()
    })
}

#[test]
fn what_one_attachment_wrote_another_may_read_and_not_write() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "image", SIZE, &NODES)?;
        let export = export_of("image", volume.attach_socket()?)?;
        let pattern = ["-f", "raw", "-c", "write -P 0x42 1M 64k", "-c", "flush"];
        clients::run_ok("qemu-io", &[&pattern[..], &[&export.uri()]].concat())?;
        volume.detach(CLIENT)?;

        // A storage node that has no copy.
        let wish = AttachmentSpec {
            read_only: true,
            ..volume::wish("s3", "socket", false)
        };
        cluster.run(cluster.client().attach("image", &wish))?;
        let export = export_of("image", volume.medium(&volume.wait_attached("s3")?)?)?;
        let pattern = ["-r", "-f", "raw", "-c", "read -P 0x42 1M 64k"];
        clients::run_ok("qemu-io", &[&pattern[..], &[&export.uri()]].concat())?;
        clients::check_read_only(&export)?;
        volume.detach("s3")?;
        volume.copies_are_equal()
    })
}

/// What was discarded on the device is given back by every copy.
fn check_discard(volume: Volume<'_>, device: &str) -> anyhow::Result<()> {
    let target = format!("of={device}");
    clients::run_ok(
        "dd",
        &["if=/dev/urandom", &target, "bs=1M", "count=64", "oflag=direct"],
    )?;
    let used = || -> anyhow::Result<Vec<u64>> {
        let of = |node: &&str| Ok(fs::metadata(volume.files(node)?.0)?.blocks() * 512);
        NODES.iter().map(of).collect()
    };
    let before = used()?;
    ensure!(
        before.iter().all(|bytes| *bytes >= 64 << 20),
        "64 MiB were written, the copies have {before:?}"
    );
    clients::check_discard(device)?;
    let after = used()?;
    ensure!(
        after.iter().all(|bytes| *bytes < 1 << 20),
        "all was discarded, the copies keep {after:?}"
    );
    Ok(())
}

#[test]
fn file_systems_live_on_the_device_of_a_replicated_volume() -> anyhow::Result<()> {
    if let Err(why) = clients::has_devices() {
        stor_tests::skip::skipped("file_systems_live_on_the_device_of_a_replicated_volume", why);
        return Ok(());
    }
    cluster::with(|cluster| {
        all(["ext4", "xfs", "fio", "discard"], |name| {
            // xfs wants 300 MiB and more.
            let volume = Volume::create(cluster, name, 5 * SIZE, &NODES)?;
            let device = volume.attach(CLIENT, "fuse", false)?.device;
            let scratch = cluster.scratch();
            match name {
                "fio" => clients::check_device_fio(&device, 32, &scratch),
                "discard" => check_discard(volume, &device),
                kind => clients::check_file_system(kind, &device, &scratch),
            }
            .with_context(|| name.to_owned())?;
            volume.detach(CLIENT)?;
            volume.copies_are_equal()
        })
    })
}
