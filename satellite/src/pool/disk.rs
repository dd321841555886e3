//! The node's block devices, and why each can or cannot become a pool.
//!
//! `lsblk` is asked because it knows what udev and blkid know; what it prints differs between releases
//! (numbers as strings, columns that are missing), so that everything is read leniently. A disk is only
//! called free when nothing speaks against it, its own first bytes included.

use std::fs::File;
use std::io::{self, Read as _};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;
use tokio::process::Command;

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
}

/// Why the disks could not be listed.
#[derive(Debug, Error)]
pub enum DiskError {
    /// Not installed, not allowed.
    #[error("cannot run lsblk: {0}; install util-linux")]
    Run(#[source] io::Error),
    /// A disk hangs.
    #[error("lsblk gave no answer within {} s: look for a hanging disk", LSBLK_DEADLINE.as_secs())]
    Deadline,
    /// It failed.
    #[error("lsblk failed ({status}): {stderr}")]
    Failed {
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// Not JSON.
    #[error("cannot read what lsblk printed: {0}")]
    Parse(#[source] serde_json::Error),
    /// The look at the disks was cut short.
    #[error("the disks could not be looked at")]
    Interrupted,
}

/// Lists the disks. Cancel-safe: `lsblk` is killed when the caller goes.
pub async fn list() -> Result<Vec<Disk>, DiskError> {
    let command = Command::new("lsblk")
        .args(["--json", "--bytes", "--output-all"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LSBLK_DEADLINE, command)
        .await
        .map_err(|_| DiskError::Deadline)?
        .map_err(DiskError::Run)?;
    if !output.status.success() {
        return Err(DiskError::Failed {
            status: output.status,
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    let disks = parse(&output.stdout).map_err(DiskError::Parse)?;
    let looked = tokio::task::spawn_blocking(move || disks.into_iter().map(look).collect());
    tokio::time::timeout(LSBLK_DEADLINE, looked)
        .await
        .map_err(|_| DiskError::Deadline)?
        .map_err(|_| DiskError::Interrupted)
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
    let listing: Listing = serde_json::from_slice(json)?;
    Ok(listing.blockdevices.iter().filter_map(disk).collect())
}

fn disk(device: &Device) -> Option<Disk> {
    let kind = text(&device.kind);
    let size = number(&device.size);
    let virtual_disk = ["loop", "zram", "ram", "sr", "fd", "nbd"]
        .iter()
        .any(|kind| is_numbered(&device.name, kind));
    if kind != "disk" || virtual_disk || size == 0 {
        return None;
    }
    let path = text(&device.path);
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
        in_use: in_use(device),
    })
}

/// `zram0`, but not `zramdisk`.
fn is_numbered(name: &str, kind: &str) -> bool {
    name.strip_prefix(kind)
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn in_use(device: &Device) -> Option<String> {
    if let Some(place) = mounts(device).first() {
        return Some(format!("mounted on {place}"));
    }
    let partitions = device
        .children
        .iter()
        .filter(|child| text(&child.kind) == "part")
        .count();
    if partitions > 0 {
        return Some(match partitions {
            1 => "has 1 partition".to_owned(),
            more => format!("has {more} partitions"),
        });
    }
    if let Some(holder) = device.children.first() {
        return Some(format!("used by {} ({})", holder.name, text(&holder.kind)));
    }
    let (table, content) = (text(&device.pttype), text(&device.fstype));
    if !table.is_empty() {
        return Some(format!("has a partition table ({table})"));
    }
    if !content.is_empty() {
        return Some(format!("has a signature ({content})"));
    }
    flag(&device.ro).then(|| "is read-only".to_owned())
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
/// called free.
fn look(mut disk: Disk) -> Disk {
    if disk.in_use.is_none() {
        disk.in_use = match first_bytes(&disk.path) {
            Ok(bytes) if bytes.iter().all(|byte| *byte == 0) => None,
            Ok(_) => Some(format!("holds data in its first {} KiB", FIRST_BYTES >> 10)),
            Err(error) => Some(format!("cannot be read: {error}")),
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
