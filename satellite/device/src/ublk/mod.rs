//! Devices of the kernel's ublk driver: block devices whose requests a process takes from an io_uring.
//!
//! ```text
//! /dev/ublk-control   commands ([`Control`]): make, start, recover, stop, delete
//! /dev/ublkcN         requests of device N ([`Queue`]), for one process at a time
//! /dev/ublkbN         the block device
//! ```
//!
//! Devices are made so that they outlive the process that serves them (`USER_RECOVERY`), and so that what it had
//! not answered is given to the next one (`REISSUE`). Data is copied by reads and writes of /dev/ublkcN
//! (`USER_COPY`): no memory is set aside for requests that are not there, and no bytes that the writer can still
//! change are handed on. Only ioctl-encoded commands are used; kernels to come know no others.
//!
//! A device carries a number of its maker's choice ([`Device::mark`]), which the kernel keeps and does not look at.

mod control;
mod queue;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use thiserror::Error;

pub use control::{Control, NewDevice};
pub use queue::{INVALID, IO_ERROR, Operation, Queue, Request, commit, fetch};

/// Where commands go.
const CONTROL: &str = "/dev/ublk-control";

/// What a device that nobody serves does with requests: it keeps them.
const USER_RECOVERY: u64 = 1 << 3;
const USER_RECOVERY_REISSUE: u64 = 1 << 4;
const CMD_IOCTL_ENCODE: u64 = 1 << 6;
const USER_COPY: u64 = 1 << 7;
const UPDATE_SIZE: u64 = 1 << 10;
/// Without these there are no devices as they should be.
const NEEDED: u64 = USER_RECOVERY | USER_RECOVERY_REISSUE | CMD_IOCTL_ENCODE | USER_COPY;

/// Why the driver cannot be used, or did not do something.
#[derive(Debug, Error)]
pub enum UblkError {
    /// There is no such driver in this kernel now.
    #[error("the kernel's ublk driver is not there ({CONTROL} is missing)")]
    Absent,
    /// Its features are not all there.
    #[error("the kernel's ublk driver is too old: of features {NEEDED:#x} it has {0:#x}")]
    TooOld(u64),
    /// No ring for commands.
    #[error("io_uring: {0}")]
    Ring(#[source] io::Error),
    /// It refused.
    #[error("the kernel refuses to {doing}: {source}")]
    Refused {
        /// To do what.
        doing: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// It did not answer; the command may take effect later.
    #[error("the kernel does not answer when asked to {doing}")]
    NoAnswer {
        /// To do what.
        doing: &'static str,
    },
    /// The device is another's by now.
    #[error("ublk device {index} is not the one it should be")]
    Another {
        /// Its number.
        index: u32,
    },
    /// Something of a device in the file system.
    #[error("cannot {doing} {}: {source}", path.display())]
    System {
        /// To do what.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl UblkError {
    /// What the kernel said, when it refused.
    pub fn refusal(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// How a device stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It has no block device: not started yet, or stopped.
    Dead,
    /// A process serves it.
    Live,
    /// The process that served it has ended. Requests wait for the next one.
    Waiting,
}

/// A device of the driver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// The N of `/dev/ublkbN`.
    pub index: u32,
    /// Its maker's number.
    pub mark: u64,
    /// How it stands.
    pub state: State,
    /// The process that serves it, or did last.
    pub pid: i32,
    /// Requests at a time.
    pub depth: u16,
}

impl Device {
    /// Its node as a block device.
    pub fn path(&self) -> PathBuf {
        block_path(self.index)
    }
}

/// The node of a block device.
pub fn block_path(index: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{index}"))
}

fn sysfs(index: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/sys/block/ublkb{index}/{name}"))
}

/// Numbers of all devices that there are, whosever they are.
pub fn numbers() -> io::Result<Vec<u32>> {
    let entries = match fs::read_dir("/sys/class/ublk-char") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("ublkc"));
        found.extend(number.and_then(|number| number.parse::<u32>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

/// Bytes of the block device; `None`: it is not there.
pub fn size(index: u32) -> Option<u64> {
    let sectors = fs::read_to_string(sysfs(index, "size")).ok()?;
    Some(sectors.trim().parse::<u64>().ok()?.saturating_mul(512))
}

/// Sees to it that the block device has its node.
pub fn make_block_node(index: u32) -> Result<(), UblkError> {
    let path = block_path(index);
    make_node(&path, FileType::BlockDevice, &sysfs(index, "dev"))
}

fn make_node(path: &Path, kind: FileType, number: &Path) -> Result<(), UblkError> {
    crate::devnode::make(path, kind, number).map_err(|source| UblkError::System {
        doing: "use",
        path: path.to_owned(),
        source,
    })
}

/// How often the kernel looks at requests that take long. A process that dies with as many requests as the device
/// can have is noticed then and not before. A process that is merely slow is left alone.
const LOOK_AT_SLOW: &str = "2000";

/// Has the kernel notice soon when the serving process dies with all requests in its hands.
pub fn look_at_slow(index: u32) -> Result<(), UblkError> {
    let path = sysfs(index, "queue/io_timeout");
    fs::write(&path, LOOK_AT_SLOW).map_err(|source| UblkError::System {
        doing: "write",
        path,
        source,
    })
}
