//! The node's block devices, and why each can or cannot become a pool.
//!
//! `lsblk` is asked because it knows what udev and blkid know; what it prints differs between releases
//! (numbers as strings, columns that are missing), so that everything is read leniently. A disk is only
//! called free when nothing speaks against it, its own first bytes included.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use super::command::{self, CommandError};

/// `lsblk` answers in milliseconds unless a disk hangs.
const LSBLK_DEADLINE: Duration = Duration::from_secs(5);

/// Where file systems, partition tables and LVM keep what they are recognised by.
const FIRST_BYTES: usize = 128 << 10;

/// A block device of the node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disk {
    /// `/dev/…`.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// As the device says.
    pub model: String,
    /// As the device says.
    pub serial: String,
    /// It has a seek time.
    pub rotational: bool,
    /// Why it can't be given to a pool; `None` when it can.
    pub in_use: Option<String>,
    /// Nobody uses what speaks against it: partitions, signatures, data. With consent, it can be overwritten.
    pub wipeable: bool,
}

/// What is looked at beside disks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Looks {
    /// Loop devices, for tests.
    pub loops: bool,
}

/// Why the disks could not be listed.
#[derive(Debug, Error)]
pub enum DiskError {
    /// `lsblk` gave no answer.
    #[error(transparent)]
    Run(#[from] CommandError),
    /// The first bytes of a disk can't be read.
    #[error("a disk gives no answer within {} s", LSBLK_DEADLINE.as_secs())]
    Deadline,
    /// Not JSON.
    #[error("cannot read what lsblk printed: {0}")]
    Parse(#[source] serde_json::Error),
    /// The look at the disks was cut short.
    #[error("the disks could not be looked at")]
    Interrupted,
}

/// Lists the disks. Cancel-safe: what was begun comes to its end on a thread of its own.
pub async fn list(looks: Looks) -> Result<Vec<Disk>, DiskError> {
    let looked = tokio::task::spawn_blocking(move || look(looks));
    tokio::time::timeout(LSBLK_DEADLINE * 2, looked)
        .await
        .map_err(|_| DiskError::Deadline)?
        .map_err(|_| DiskError::Interrupted)?
}

/// As [`list`], on this thread.
pub fn look(looks: Looks) -> Result<Vec<Disk>, DiskError> {
    // Not memory, and not nbd: a device of a volume whose engine is gone for the moment answers nothing.
    let arguments = ["--json", "--bytes", "--output-all", "--exclude", "1,43"];
    let printed = command::run(Path::new("lsblk"), &arguments, LSBLK_DEADLINE)?;
    let disks = parse_with(&printed, looks).map_err(DiskError::Parse)?;
    Ok(disks.into_iter().map(look_inside).collect())
}

#[derive(Deserialize)]
struct Listing {
    blockdevices: Vec<Device>,
}

#[derive(Deserialize)]
struct Device {
    name: String,
    #[serde(rename = "type", default)]
    kind: Value,
    #[serde(default)]
    path: Value,
    #[serde(default)]
    size: Value,
    #[serde(default)]
    model: Value,
    #[serde(default)]
    serial: Value,
    #[serde(default)]
    rota: Value,
    #[serde(default)]
    ro: Value,
    #[serde(default)]
    fstype: Value,
    #[serde(default)]
    pttype: Value,
    #[serde(default)]
    mountpoint: Value,
    #[serde(default)]
    mountpoints: Value,
    #[serde(default)]
    children: Vec<Device>,
}

/// Reads what `lsblk --json` printed: whole disks with a size, without what is no disk.
pub fn parse(json: &[u8]) -> Result<Vec<Disk>, serde_json::Error> {
    parse_with(json, Looks::default())
}

/// As [`parse`], with what else is looked at.
pub fn parse_with(json: &[u8], looks: Looks) -> Result<Vec<Disk>, serde_json::Error> {
    let listing: Listing = serde_json::from_slice(json)?;
    Ok(listing
        .blockdevices
        .iter()
        .filter_map(|device| disk(device, looks))
        .collect())
}

fn disk(device: &Device, looks: Looks) -> Option<Disk> {
    let kind = text(&device.kind);
    let size = number(&device.size);
    let virtual_disk = ["loop", "zram", "ram", "sr", "fd", "nbd", "ublkb"]
        .iter()
        .any(|kind| is_numbered(&device.name, kind));
    let wanted = (kind == "disk" && !virtual_disk) || (kind == "loop" && looks.loops);
    if !wanted || size == 0 {
        return None;
    }
    let path = text(&device.path);
    let used = use_of(device);
    Some(Disk {
        path: if path.is_empty() {
            format!("/dev/{}", device.name)
        } else {
            path
        },
        size,
        model: text(&device.model),
        serial: text(&device.serial),
        rotational: flag(&device.rota),
        wipeable: matches!(used, Some(Use::Left(_))),
        in_use: used.map(|used| match used {
            Use::Now(why) | Use::Left(why) => why,
        }),
    })
}

/// `zram0`, but not `zramdisk`.
fn is_numbered(name: &str, kind: &str) -> bool {
    name.strip_prefix(kind)
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// What speaks against a disk.
enum Use {
    /// It is used.
    Now(String),
    /// Something is on it that nobody uses.
    Left(String),
}

fn use_of(device: &Device) -> Option<Use> {
    if let Some(why) = used_now(device, 0) {
        return Some(Use::Now(why));
    }
    if flag(&device.ro) {
        return Some(Use::Now("is read-only".to_owned()));
    }
    match device.children.len() {
        0 => {}
        1 => return Some(Use::Left("has 1 partition".to_owned())),
        more => return Some(Use::Left(format!("has {more} partitions"))),
    }
    let (table, content) = (text(&device.pttype), text(&device.fstype));
    if !table.is_empty() {
        return Some(Use::Left(format!("has a partition table ({table})")));
    }
    (!content.is_empty()).then(|| Use::Left(format!("has a signature ({content})")))
}

/// Deeper than this nothing is stacked on a disk.
const MOST_LAYERS: u32 = 16;

/// Who uses a disk, or a partition of it.
fn used_now(device: &Device, layer: u32) -> Option<String> {
    let of = if layer == 0 {
        String::new()
    } else {
        format!(" (its partition {})", device.name)
    };
    if let Some(place) = mounts(device).first() {
        return Some(format!("is mounted on {place}{of}"));
    }
    let holder = device.children.iter().find(|child| text(&child.kind) != "part");
    if let Some(holder) = holder {
        return Some(format!("is used by {} ({}){of}", holder.name, text(&holder.kind)));
    }
    let deeper = device.children.iter().take_while(|_| layer < MOST_LAYERS);
    deeper.into_iter().find_map(|child| used_now(child, layer + 1))
}

fn mounts(device: &Device) -> Vec<String> {
    let mut places = vec![text(&device.mountpoint)];
    if let Value::Array(more) = &device.mountpoints {
        places.extend(more.iter().map(text));
    }
    places.retain(|place| !place.is_empty());
    places
}

/// Without udev, `lsblk` knows no signatures: a disk that is free by its account is read before it is
/// called free. And it is tried whether the kernel lets it go: who uses it is not always told.
fn look_inside(mut disk: Disk) -> Disk {
    let claimed = || match stor_device::blockdev::is_claimed(disk.path.as_ref()) {
        Ok(false) => None,
        Ok(true) => Some("is used by the kernel".to_owned()),
        Err(error) => Some(format!("cannot be opened: {error}")),
    };
    if (disk.in_use.is_none() || disk.wipeable)
        && let Some(why) = claimed()
    {
        (disk.in_use, disk.wipeable) = (Some(why), false);
    }
    if disk.in_use.is_none() {
        (disk.in_use, disk.wipeable) = match first_bytes(&disk.path) {
            Ok(bytes) if bytes.iter().all(|byte| *byte == 0) => (None, false),
            Ok(_) => (
                Some(format!("holds data in its first {} KiB", FIRST_BYTES >> 10)),
                true,
            ),
            Err(error) => (Some(format!("cannot be read: {error}")), false),
        };
    }
    disk
}

fn first_bytes(path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(FIRST_BYTES);
    File::open(path)?
        .take(FIRST_BYTES as u64)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.trim().to_owned(),
        _ => String::new(),
    }
}

fn number(value: &Value) -> u64 {
    match value {
        Value::Number(number) => number.as_u64().unwrap_or(0),
        Value::String(text) => text.trim().parse().unwrap_or(0),
        _ => 0,
    }
}

fn flag(value: &Value) -> bool {
    match value {
        Value::Bool(flag) => *flag,
        Value::String(text) => text.trim() == "1",
        _ => false,
    }
}
