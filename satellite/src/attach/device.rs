//! What the task of a volume needs of the kernel: a FUSE mount and a loop device on the file in it, or an nbd or ublk
//! device; and the name `/dev/stor/<volume>`.
//!
//! Every call blocks, possibly for long (a loop device is detached only when what was written to it has
//! been written), so that they run on threads made for that.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use stor_replication::ids::VolumeId;
use thiserror::Error;
use tokio::sync::broadcast;

use crate::agent::desired::TransportKind;

/// Why a device could not be made or taken away.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// Somebody uses it; said who.
    #[error("the device is in use: {0}")]
    Busy(String),
    /// The system refused.
    #[error("{0}")]
    Failed(String),
    /// This device will never be as it should.
    #[error("{0}")]
    Fixed(String),
}

/// How much of a volume's device is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// The FUSE mount.
    Mount,
    /// The mount and a loop device on it.
    Loop {
        /// Writes to it are refused.
        read_only: bool,
    },
    /// An nbd device. Whether its sockets live is not known.
    Nbd {
        /// Its number.
        index: u32,
        /// Writes to it are refused.
        read_only: bool,
    },
    /// A ublk device. Whether it has a process is not known.
    Ublk {
        /// Its number.
        index: u32,
        /// Writes to it are refused.
        read_only: bool,
    },
}

/// What an nbd or ublk device is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wish {
    /// Of which of them.
    pub transport: TransportKind,
    /// The process that serves it.
    pub engine: i32,
    /// The volume's name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
}

/// A device that an engine serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connected {
    /// Its name.
    pub path: PathBuf,
    /// Its number.
    pub index: u32,
    /// Bytes.
    pub size: u64,
}

/// Stands for every nbd device, in [`Devices::links`].
pub const ALL_NBD: u32 = u32::MAX;

/// The kernel's side of volumes.
pub trait Devices: Send + Sync + std::fmt::Debug {
    /// What is there of a volume; asks no engine.
    fn find(&self, volume: VolumeId) -> Result<Found, DeviceError>;

    /// Mounts the FUSE file system of a volume. The connection lives as long as the descriptor or a
    /// copy of it.
    fn mount(&self, volume: VolumeId) -> Result<OwnedFd, DeviceError>;

    /// Makes a ublk device that waits for an engine, or has the one that is there wait for another. Returns its number,
    /// and whether it is new.
    fn make(&self, volume: VolumeId, wish: &Wish) -> Result<(u32, bool), DeviceError>;

    /// Gives the device the size that the engine serves now. [`DeviceError::Fixed`]: it cannot have it.
    fn resize(&self, volume: VolumeId, size: u64) -> Result<(), DeviceError>;

    /// Puts a loop device on the volume's file and the name on the loop device. Returns the name. Doing
    /// it again finds what is there.
    fn attach(&self, volume: VolumeId, name: &str, read_only: bool) -> Result<PathBuf, DeviceError>;

    /// Connects an nbd device to the volume's engine, anew if it was connected to an earlier one; or lets requests of
    /// its ublk device go to the engine. Puts the name on it.
    fn connect(&self, volume: VolumeId, wish: &Wish) -> Result<Connected, DeviceError>;

    /// Numbers of nbd devices that lose a connection, from now on; [`ALL_NBD`]: any may have. `None`: there are no
    /// such devices here.
    fn links(&self) -> Option<broadcast::Receiver<u32>>;

    /// Takes name, device and mount away. Without `force` a device that is used stays; with it the
    /// engine is gone for good, and what is still open fails with I/O errors.
    fn take_down(&self, volume: VolumeId, name: &str, force: bool) -> Result<(), DeviceError>;

    /// Volumes of which something is there.
    fn leftovers(&self) -> Result<Vec<VolumeId>, DeviceError>;
}
