//! Devices of the kernel's nbd driver, made and ruled by generic netlink.
//!
//! A device is on sockets on which the transmission phase of NBD has begun; the kernel is the client. It outlives
//! whoever made it, and, for as long as was said at its making, the loss of all its sockets: what is
//! written to it waits then, until it is given new ones ([`Control::reconnect`]).
//!
//! Each device carries a text ([`Device::backend`]) that says whose it is. The kernel gives new sockets only to a
//! device with the same text. Kernels before 5.14 know no such thing and are refused.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use rustix::fs::FileType;
use thiserror::Error;

use crate::netlink::{Attributes, Socket, attribute, u32_at};

const FAMILY: &str = "nbd";

const CONNECT: u8 = 1;
const DISCONNECT: u8 = 2;
const RECONFIGURE: u8 = 3;
const LINK_DEAD: u8 = 4;

const INDEX: u16 = 1;
const SIZE: u16 = 2;
const BLOCK_SIZE: u16 = 3;
const TIMEOUT: u16 = 4;
const SERVER_FLAGS: u16 = 5;
const SOCKETS: u16 = 7;
const DEAD_TIMEOUT: u16 = 8;
const BACKEND: u16 = 10;
const SOCKET_ITEM: u16 = 1;
const SOCKET_FD: u16 = 1;

/// How often it is looked whether a device is gone, and the pause between: half a second altogether, for udev's
/// look at the device that often follows a change.
const SETTLE_TRIES: u32 = 50;
const SETTLE_PAUSE: Duration = Duration::from_millis(10);

/// Why the driver cannot be used, or did not do something.
#[derive(Debug, Error)]
pub enum NbdError {
    /// There is no such driver in this kernel now.
    #[error("the kernel's nbd driver is not there")]
    Absent,
    /// It does not know whose a device is.
    #[error("the kernel's nbd driver is older than that of Linux 5.14")]
    TooOld,
    /// Netlink itself.
    #[error("netlink: {0}")]
    Netlink(#[source] io::Error),
    /// It refused.
    #[error("the kernel refuses to {doing}: {source}")]
    Refused {
        /// To do what.
        doing: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// A device cannot be looked at.
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

/// What a new device is to be.
#[derive(Clone, Debug)]
pub struct NewDevice<'a> {
    /// Bytes.
    pub size: u64,
    /// Bytes of a block.
    pub block_size: u64,
    /// The transmission flags that the server named.
    pub flags: u16,
    /// A request that is not answered for this long is given to another socket, and its own is not used any more.
    pub timeout: Duration,
    /// How long requests wait for new sockets when all are lost.
    pub patience: Duration,
    /// Whose it is.
    pub backend: &'a str,
}

/// A device that is set up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// The N of `/dev/nbdN`.
    pub index: u32,
    /// Whose it is.
    pub backend: String,
    /// Bytes.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
}

impl Device {
    /// Its node.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/nbd{}", self.index))
    }
}

/// Commands to the driver.
#[derive(Debug)]
pub struct Control {
    socket: Socket,
}

impl Control {
    /// Finds the driver.
    pub fn open() -> Result<Self, NbdError> {
        let socket = Socket::open(FAMILY)
            .map_err(NbdError::Netlink)?
            .ok_or(NbdError::Absent)?;
        if socket.family.max_attribute < u32::from(BACKEND) {
            return Err(NbdError::TooOld);
        }
        Ok(Self { socket })
    }

    /// Makes a device on any free number. Returns the number.
    pub fn connect(&mut self, device: &NewDevice<'_>, sockets: &[BorrowedFd<'_>]) -> Result<u32, NbdError> {
        let attributes = Attributes::default()
            .u64(SIZE, device.size)
            .u64(BLOCK_SIZE, device.block_size)
            .u64(SERVER_FLAGS, u64::from(device.flags))
            .u64(TIMEOUT, device.timeout.as_secs())
            .u64(DEAD_TIMEOUT, device.patience.as_secs())
            .text(BACKEND, device.backend)
            .nested(SOCKETS, &list(sockets));
        let refused = |source| NbdError::Refused {
            doing: "make an nbd device",
            source,
        };
        let answer = self.socket.ask(CONNECT, &attributes).map_err(refused)?;
        attribute(&answer, INDEX)
            .and_then(|index| u32_at(index, 0))
            .ok_or_else(|| refused(io::Error::other("it does not say which it made")))
    }

    /// Gives a device new sockets in the places of those it has lost; those it has no place for are left alone.
    /// Its size stays: the kernel would wait for all requests before it gave the sockets, which they wait for. Refused with `EINVAL` when the device is not set up any more, or is another's.
    pub fn reconnect(
        &mut self,
        index: u32,
        backend: &str,
        sockets: &[BorrowedFd<'_>],
    ) -> Result<(), NbdError> {
        let attributes = Attributes::default()
            .u32(INDEX, index)
            .text(BACKEND, backend)
            .nested(SOCKETS, &list(sockets));
        let refused = |source| NbdError::Refused {
            doing: "give an nbd device new sockets",
            source,
        };
        self.socket
            .ask(RECONFIGURE, &attributes)
            .map_err(refused)
            .map(drop)
    }

    /// Gives a device another size. Waits until no request is under way; its users may go on meanwhile.
    pub fn set_size(&mut self, index: u32, size: u64, backend: &str) -> Result<(), NbdError> {
        let attributes = Attributes::default()
            .u32(INDEX, index)
            .u64(SIZE, size)
            .text(BACKEND, backend);
        let refused = |source| NbdError::Refused {
            doing: "resize an nbd device",
            source,
        };
        self.socket
            .ask(RECONFIGURE, &attributes)
            .map_err(refused)
            .map(drop)
    }

    /// Takes a device from whoever uses it: what waits in it, and all that comes, fails. One that is not set up
    /// is left alone.
    pub fn disconnect(&mut self, index: u32) -> Result<(), NbdError> {
        match self
            .socket
            .ask(DISCONNECT, &Attributes::default().u32(INDEX, index))
        {
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => Err(NbdError::Refused {
                doing: "take an nbd device down",
                source: error,
            }),
            _ => Ok(()),
        }
    }
}

fn list(sockets: &[BorrowedFd<'_>]) -> Attributes {
    let item =
        |socket: &BorrowedFd<'_>| Attributes::default().u32(SOCKET_FD, socket.as_raw_fd().unsigned_abs());
    sockets.iter().fold(Attributes::default(), |list, socket| {
        list.nested(SOCKET_ITEM, &item(socket))
    })
}

/// Tells of devices that lose a socket.
#[derive(Debug)]
pub struct DeadLinks {
    socket: Socket,
}

impl DeadLinks {
    /// Listens from now on; each [`DeadLinks::wait`] waits at most this long.
    pub fn listen(wait: Duration) -> Result<Self, NbdError> {
        let Control { socket } = Control::open()?;
        let group = socket.family.group.ok_or(NbdError::TooOld)?;
        socket.subscribe(group).map_err(NbdError::Netlink)?;
        socket.set_wait(wait).map_err(NbdError::Netlink)?;
        Ok(Self { socket })
    }

    /// Numbers of devices that lost a socket; none when nothing happened. An error of kind
    /// `ENOBUFS` says that notices were lost.
    pub fn wait(&mut self) -> io::Result<Vec<u32>> {
        let notices = self.socket.notices()?;
        let dead = notices.iter().filter(|(command, _)| *command == LINK_DEAD);
        Ok(dead
            .filter_map(|(_, attributes)| u32_at(attribute(attributes, INDEX)?, 0))
            .collect())
    }
}

fn told(index: u32, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/sys/block/nbd{index}/{name}")).ok()?;
    Some(text.trim_end().to_owned())
}

/// The devices that are set up and say whose they are.
pub fn devices() -> io::Result<Vec<Device>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let index = name
            .to_str()
            .and_then(|name| name.strip_prefix("nbd"))
            .and_then(|index| index.parse().ok());
        if let Some(index) = index
            && let Some(backend) = told(index, "backend")
            && let Some(sectors) = told(index, "size").and_then(|size| size.parse::<u64>().ok())
        {
            found.push(Device {
                index,
                backend,
                size: sectors.saturating_mul(512),
                read_only: told(index, "ro").is_some_and(|flag| flag != "0"),
            });
        }
    }
    found.sort_unstable_by_key(|device| device.index);
    Ok(found)
}

/// Whether `path` is the node of the device of this number. Where nobody makes nodes in /dev (a container with a
/// /dev of its own), makes it.
pub fn make_node(index: u32, path: &Path) -> Result<(), NbdError> {
    let number = PathBuf::from(format!("/sys/block/nbd{index}/dev"));
    crate::devnode::make(path, FileType::BlockDevice, &number).map_err(|source| NbdError::System {
        doing: "use",
        path: path.to_owned(),
        source,
    })
}

/// Waits a little until a device that was taken down has no user any more. Answers whether it has none.
pub fn settled(index: u32, backend: &str) -> bool {
    for _ in 0..SETTLE_TRIES {
        if told(index, "backend").as_deref() != Some(backend) {
            return true;
        }
        std::thread::sleep(SETTLE_PAUSE);
    }
    false
}
