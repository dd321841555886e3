//! Where a new pool is to be: the three ways to say it, and whether the disks named may be taken.

use stor_api::objects::PoolSpec;

use super::problem::Failure;
use crate::catalogue::command::{Device, PoolKind, PoolWish};
use crate::catalogue::load;
use crate::cluster::Cluster;

/// Disks of one pool; LVM could do more.
const MOST_DEVICES: usize = 64;
/// Bytes of a volume group's and a thin pool's name, hyphens counted twice: with the name of a volume in it, the device
/// mapper takes 127, and a snapshot's has up to 84.
const MOST_NAME: usize = 40;
/// The thin pool in a volume group that is made for it.
const THIN: &str = "thin";

/// A pool's place as it is stored.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) kind: PoolKind,
    pub(super) dir: String,
    pub(super) devices: Vec<Device>,
}

/// Reads the place out of what was asked for.
pub(super) async fn place(cluster: &Cluster, spec: &PoolSpec) -> Result<Place, Failure> {
    let thin = !spec.lvm_thin.is_empty() || !spec.devices.is_empty();
    match (spec.dir.is_empty(), thin) {
        (false, true) => Err(Failure::invalid(
            "a pool is in a directory or in an LVM thin pool, not in both",
        )),
        (true, false) => Err(Failure::invalid(
            "a pool needs a place: a directory, an LVM thin pool, or disks to make one of",
        )),
        (false, false) if spec.adopt || spec.wipe => Err(Failure::invalid(
            "only an LVM thin pool has volume groups to adopt and disks to wipe",
        )),
        (false, false) => Ok(Place {
            kind: PoolKind::File,
            dir: directory(&spec.dir)?,
            devices: Vec::new(),
        }),
        (true, true) => Ok(Place {
            kind: PoolKind::LvmThin,
            dir: thin_pool(spec)?,
            devices: devices(cluster, spec).await?,
        }),
    }
}

/// What making the pool means, in a plan.
pub(super) fn step(wish: &PoolWish) -> String {
    let PoolWish { name, node, dir, .. } = wish;
    let paths: Vec<_> = wish.devices.iter().map(|device| device.path.as_str()).collect();
    match wish.kind {
        PoolKind::File => format!("make pool {name} on node {node} in {dir}"),
        PoolKind::LvmThin if paths.is_empty() => {
            format!("make pool {name} on node {node} of the LVM thin pool {dir}")
        }
        PoolKind::LvmThin => {
            let wipe = if wish.wipe {
                ", overwriting what is on them"
            } else {
                ""
            };
            let paths = paths.join(", ");
            format!("make pool {name} on node {node}: the LVM thin pool {dir} of {paths}{wipe}")
        }
    }
}

/// Absolute, without `.` and `..`, so that one directory has one spelling.
fn directory(dir: &str) -> Result<String, Failure> {
    let trimmed = dir.trim_end_matches('/');
    let plain = trimmed.starts_with('/')
        && dir.len() <= 1024
        && !dir.chars().any(char::is_control)
        && !trimmed
            .split('/')
            .skip(1)
            .any(|part| matches!(part, "" | "." | ".."));
    if !plain {
        return Err(Failure::invalid(format!(
            "{:?} is not a directory for a pool; give an absolute path without . and .., not the root",
            dir.chars().take(200).collect::<String>()
        )));
    }
    Ok(trimmed.to_owned())
}

/// `VG/POOL`, as LVM takes names.
fn thin_pool(spec: &PoolSpec) -> Result<String, Failure> {
    let text = if spec.lvm_thin.is_empty() {
        format!("stor-{}/{THIN}", spec.name)
    } else {
        spec.lvm_thin.clone()
    };
    let good = |name: &str| {
        let bytes = |byte: u8| byte.is_ascii_alphanumeric() || b"+_.-".contains(&byte);
        let long = name.len() + name.bytes().filter(|byte| *byte == b'-').count();
        !name.is_empty() && long <= MOST_NAME && name.bytes().all(bytes) && !name.starts_with(['-', '.'])
    };
    match text.split_once('/') {
        Some((group, pool)) if good(group) && good(pool) => Ok(text),
        _ => Err(Failure::invalid(format!(
            "{:?} does not name an LVM thin pool",
            text.chars().take(200).collect::<String>()
        ))
        .remedy(format!(
            "write VG/POOL, each of letters, digits and + _ . -, and of at most {MOST_NAME} bytes, hyphens counted twice"
        ))),
    }
}

/// The disks as their node sees them now. Of a pool that is there already, as they were.
async fn devices(cluster: &Cluster, spec: &PoolSpec) -> Result<Vec<Device>, Failure> {
    if spec.devices.is_empty() {
        if spec.wipe {
            return Err(Failure::invalid("there are no disks to wipe: none is given"));
        }
        return Ok(Vec::new());
    }
    let mut paths = spec.devices.clone();
    paths.sort();
    paths.dedup();
    if paths.len() != spec.devices.len() || paths.len() > MOST_DEVICES {
        return Err(Failure::invalid(format!(
            "a pool has at most {MOST_DEVICES} disks, each given once"
        )));
    }
    let mut look = cluster.look().await?;
    if let Some(row) = load::pool(look.rows(), &spec.name, &spec.node).await?
        && row.wish.devices.iter().map(|device| &device.path).eq(&paths)
    {
        return Ok(row.wish.devices);
    }
    let node = &spec.node;
    if load::node(look.rows(), node).await?.is_none() {
        return Err(Failure::not_found(format!("node {node}")));
    }
    let seen = look.end();
    let Some(heard) = seen.node(node) else {
        return Err(Failure::conflict(
            "offline",
            format!("node {node} is not connected: what is on its disks is not known"),
        )
        .remedy("start its satellite"));
    };
    paths
        .into_iter()
        .map(|path| {
            let Some(disk) = heard.disks.iter().find(|disk| disk.path == path) else {
                let path: String = path.chars().take(200).collect();
                return Err(
                    Failure::not_found(format!("disk {path} on node {node}")).remedy(format!(
                        "`storctl disk list --node {node}` shows the disks it has"
                    )),
                );
            };
            if disk.in_use.is_empty() || (spec.wipe && disk.wipeable) {
                return Ok(Device {
                    path,
                    size: disk.size_bytes,
                    model: disk.model.clone(),
                    serial: disk.serial.clone(),
                });
            }
            let refused = Failure::conflict("disk-in-use", format!("{path} on node {node} {}", disk.in_use));
            Err(refused.remedy(if disk.wipeable {
                "choose another disk; if what is on this one can go for good: --wipe"
            } else {
                "choose another disk, or free this one"
            }))
        })
        .collect()
}
