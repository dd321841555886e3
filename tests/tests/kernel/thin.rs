//! LVM thin pools on disks of the machine's own: made, used, filled up, cut short, given back.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use stor_api::objects::{Pool, PoolState, ReplicaState};
use stor_tests::clients::run_ok;
use stor_tests::cluster::{self, CLIENT, Cluster};
use stor_tests::volume::Volume;
use stor_tests::{skip, vm, wait};

const MEMORY: u32 = 1280;
const MIB: u64 = 1 << 20;
/// The pool of these tests.
const POOL: &str = "thin";
/// Node, disk, and what is made of it: all nodes are one machine to LVM.
const FIRST: Place = Place("s1", "/dev/ubdb", "vga/thin");
const SECOND: Place = Place("s2", "/dev/ubdc", "vgb/thin");

#[derive(Clone, Copy)]
struct Place(&'static str, &'static str, &'static str);

impl Place {
    fn group(self) -> &'static str {
        self.2.split('/').next().unwrap_or_default()
    }
}

/// Runs a test in a virtual machine with disks of these sizes.
fn with(
    test: &str,
    disks: &[u64],
    prepare: impl FnOnce() -> anyhow::Result<()>,
    body: impl FnOnce(&mut Cluster) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if !Path::new("/usr/sbin/lvm").exists() || !Path::new("/usr/sbin/thin_check").exists() {
        skip::skipped(test, "lvm2 and thin-provisioning-tools (Debian's packages)");
        return Ok(());
    }
    vm::inside(test, MEMORY, disks, || {
        run_ok("modprobe", &["dm-thin-pool"])?;
        prepare()?;
        cluster::with(body)
    })
}

/// Runs `storctl`, which has to succeed.
fn storctl(cluster: &Cluster, args: &[&str]) -> anyhow::Result<String> {
    let (status, said, complained) = cluster.storctl(args)?;
    ensure!(
        status == 0,
        "storctl {}: {status}\n{said}{complained}",
        args.join(" ")
    );
    Ok(said)
}

/// Waits until a node reports its disk as one that can become a pool, or why not.
fn disk_is(cluster: &Cluster, path: &str, good: impl Fn(&str) -> bool) -> anyhow::Result<String> {
    wait::that(wait::LONG, &format!("{path} is as it should be"), || {
        let disks = cluster.run(cluster.client().disks(&stor_api::client::Filter::default()))?;
        let of = |node: &str| {
            disks
                .iter()
                .find(|disk| disk.node == node && disk.path == path)
                .map(|disk| disk.in_use.clone())
        };
        Ok(match (of("s1"), of("s2")) {
            (Some(one), Some(two)) if good(&one) && good(&two) => Ok(one),
            other => Err(format!("{other:?}")),
        })
    })
}

fn make(cluster: &Cluster, Place(node, disk, thin): Place) -> anyhow::Result<Pool> {
    disk_is(cluster, disk, str::is_empty)?;
    storctl(
        cluster,
        &[
            "pool",
            "create",
            POOL,
            "--node",
            node,
            "--device",
            disk,
            "--lvm-thin",
            thin,
        ],
    )?;
    pool(cluster, node)
}

fn pool(cluster: &Cluster, node: &str) -> anyhow::Result<Pool> {
    let pool = cluster.run(cluster.client().pool(POOL, node))?;
    ensure!(
        pool.state == PoolState::Ready && pool.kind == "lvm-thin",
        "{pool:?}"
    );
    Ok(pool)
}

fn used(cluster: &Cluster, node: &str) -> anyhow::Result<u64> {
    let pool = pool(cluster, node)?;
    Ok(pool.capacity_bytes - pool.free_bytes)
}

/// A volume with a replica in both pools.
fn create<'a>(cluster: &'a Cluster, name: &'static str, size: &str) -> anyhow::Result<Volume<'a>> {
    storctl(
        cluster,
        &["volume", "create", name, size, "--pool", POOL, "--replicas", "2"],
    )?;
    let volume = Volume::of(cluster, name);
    volume.wait_in_sync()?;
    Ok(volume)
}

/// Takes everything away, and sees that nothing of it is left on the machine.
fn take_away(cluster: &Cluster, volumes: &[&str], places: &[Place]) -> anyhow::Result<()> {
    for name in volumes {
        storctl(cluster, &["volume", "delete", name, "--yes"])?;
    }
    for Place(node, ..) in places {
        storctl(cluster, &["pool", "delete", POOL, "--node", node, "--yes"])?;
    }
    for Place(_, disk, _) in places {
        disk_is(cluster, disk, str::is_empty).context("a disk is not given back")?;
    }
    let left = run_ok("lvm", &["pvs", "--noheadings"])?;
    ensure!(left.trim().is_empty(), "LVM still has {left}");
    let mapped = run_ok("dmsetup", &["ls"])?;
    ensure!(
        mapped.contains("No devices found"),
        "mapped devices are left: {mapped}"
    );
    Ok(())
}

/// Finds something that belongs to nothing, and has it removed; then there is nothing.
fn checked(cluster: &Cluster) -> anyhow::Result<()> {
    let stray = "stor.00000000000000000000000000000001.r1.data";
    let make = [
        "lvcreate",
        "-q",
        "-V",
        "8M",
        "--thinpool",
        "thin",
        "-n",
        stray,
        "--addtag",
        "stor",
        FIRST.group(),
    ];
    run_ok("lvm", &make)?;
    wait::until(wait::LONG, "the stray volume is found", || {
        let (status, said, _) = cluster.storctl(&["pool", "check"])?;
        Ok(status == 0 && said.contains(stray))
    })?;
    storctl(cluster, &["pool", "check", "--remove", "--yes"])?;
    let left = Path::new("/dev").join(FIRST.group()).join(stray).exists();
    ensure!(!left, "{stray} is still there");
    ensure!(
        !storctl(cluster, &["pool", "check"])?.contains("stor."),
        "something is left"
    );
    Ok(())
}

/// The data of a volume's replica.
fn data(volume: Volume<'_>, place: Place) -> anyhow::Result<Vec<u8>> {
    let shown = volume.shown()?;
    let replica = shown.replicas.iter().find(|replica| replica.node == place.0);
    let number = replica.context("no replica there")?.id;
    let name = format!("stor.{}.r{number}.data", shown.id.replace('-', ""));
    let mut bytes = Vec::new();
    let device = File::open(Path::new("/dev").join(place.group()).join(&name)).context(name)?;
    device.take(shown.size_bytes).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn are_equal(volume: Volume<'_>) -> anyhow::Result<()> {
    ensure!(data(volume, FIRST)? == data(volume, SECOND)?, "the copies differ");
    Ok(())
}

#[test]
fn disks_become_pools_in_which_volumes_live() -> anyhow::Result<()> {
    let test = "thin::disks_become_pools_in_which_volumes_live";
    let prepare = || run_ok("mkfs.ext4", &["-q", "/dev/ubdd"]).map(drop);
    with(test, &[1024 * MIB, 1024 * MIB, 300 * MIB], prepare, |cluster| {
        // A disk with something on it.
        disk_is(cluster, "/dev/ubdd", |why| !why.is_empty())?;
        let taken = ["pool", "create", POOL, "--node", "s3", "--device", "/dev/ubdd"];
        let (status, _, complained) = cluster.storctl(&taken)?;
        ensure!(
            status == 4 && complained.contains("--wipe"),
            "{status} {complained}"
        );
        // And without consent on the terminal.
        let (status, ..) = cluster.storctl(&[&taken[..], &["--wipe"]].concat())?;
        ensure!(status != 0, "a disk is wiped without being asked about");
        storctl(cluster, &[&taken[..], &["--wipe", "--yes"]].concat())?;
        ensure!(pool(cluster, "s3")?.devices == ["/dev/ubdd"]);
        storctl(cluster, &["pool", "delete", POOL, "--node", "s3", "--yes"])?;

        make(cluster, FIRST)?;
        make(cluster, SECOND)?;
        let volume = create(cluster, "db1", "200Mi")?;
        let medium = volume.attach_socket()?;
        let mut open = medium.open()?;
        let before = used(cluster, "s1")?;
        let written = vec![0xa7; usize::try_from(MIB)?];
        for at in 0..64 {
            open.write(at * MIB, &written)?;
        }
        open.flush()?;
        wait::until(wait::LONG, "the pool has what was written", || {
            Ok(used(cluster, "s1")? >= before + 64 * MIB)
        })?;
        // From the middle of a chunk to the middle of another: what is between goes, what is around stays.
        let (from, length) = (8192, 30 * MIB);
        open.zero(from, usize::try_from(length)?, true)?;
        open.flush()?;
        wait::until(wait::LONG, "the pool has its space back", || {
            Ok(used(cluster, "s1")? <= before + 36 * MIB)
        })?;
        let mut back = vec![1; usize::try_from(64 * MIB)?];
        for piece in back.chunks_mut(usize::try_from(MIB)?).zip(0..) {
            open.read(piece.1 * MIB, piece.0)?;
        }
        let expected = |at: u64| {
            if (from..from + length).contains(&at) {
                0
            } else {
                0xa7
            }
        };
        let wrong = (0..).zip(&back).find(|(at, byte)| **byte != expected(*at));
        ensure!(wrong.is_none(), "{wrong:?}");

        // Killed, and its volumes inactive as after a boot: found again, by their tags.
        cluster.kill(&["s1"])?;
        volume.wait_member("s1", false).or_else(|_| volume.shown())?;
        open.write(100 * MIB, &written)?;
        run_ok("lvm", &["vgchange", "-an", FIRST.group()])?;
        cluster.start_again(&["s1"])?;
        volume.wait_in_sync()?;
        open.write(101 * MIB, &written)?;
        open.flush()?;
        drop(open);
        volume.detach(CLIENT)?;
        volume.wait_in_sync()?;
        are_equal(volume)?;
        checked(cluster)?;
        take_away(cluster, &["db1"], &[FIRST, SECOND])
    })
}

#[test]
fn a_full_pool_loses_its_replica_and_gets_it_back_with_room() -> anyhow::Result<()> {
    let test = "thin::a_full_pool_loses_its_replica_and_gets_it_back_with_room";
    with(
        test,
        &[200 * MIB, 1024 * MIB, 400 * MIB],
        || Ok(()),
        |cluster| {
            make(cluster, FIRST)?;
            make(cluster, SECOND)?;
            let volume = create(cluster, "db1", "300Mi")?;
            let medium = volume.attach_socket()?;
            let mut open = medium.open()?;
            let written = vec![0x5c; usize::try_from(MIB)?];
            for at in 0..300 {
                open.write(at * MIB, &written)?;
            }
            open.flush()?;
            let shown = volume.wait_member("s1", false)?;
            let lost = shown.replicas.iter().find(|replica| replica.node == "s1");
            let lost = lost.context("the replica is gone")?;
            ensure!(
                lost.state != ReplicaState::InSync && lost.reason.contains("no-space"),
                "{lost:?}"
            );
            // Nothing new goes there, and it is said.
            let status = cluster.status()?.context("no controller answers")?;
            let about = |code: &str| {
                status
                    .checks
                    .iter()
                    .any(|check| check.code == code && check.objects.iter().any(|o| o.contains("thin/s1")))
            };
            ensure!(about("POOL_FULL") || about("POOL_FAILED"), "{:?}", status.checks);
            let more = [
                "volume",
                "create",
                "db2",
                "10Mi",
                "--pool",
                POOL,
                "--replicas",
                "2",
            ];
            let (refused, _, complained) = cluster.storctl(&more)?;
            ensure!(
                refused != 0 && complained.contains("full"),
                "{refused} {complained}"
            );
            // Room, made by hand as an administrator would.
            run_ok("lvm", &["vgextend", "-y", FIRST.group(), "/dev/ubdd"])?;
            run_ok("lvm", &["lvextend", "-l", "+100%FREE", FIRST.2])?;
            volume.wait_in_sync()?;
            drop(open);
            volume.detach(CLIENT)?;
            volume.wait_in_sync()?;
            are_equal(volume)?;
            take_away(cluster, &["db1"], &[FIRST, SECOND])
        },
    )
}
