//! Devices of the kernel's nbd driver, for the transport `nbd`.
//!
//! The kernel is a client on the engine's NBD socket, on several connections. This module makes them, negotiates,
//! and hands them over by netlink. A device waits for its engine: when all connections are lost, what is
//! written to it stays in the kernel until [`NbdDevices::connect`] has given it new ones.
//!
//! Whose a device is stands in the kernel (`/sys/block/nbdN/backend`): `stor:VOLUME:STATE-DIRECTORY`. Only those of
//! our own state directory are ever touched.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use stor_device::blockdev;
use stor_device::nbddev::{self, Control, DeadLinks, Device, NbdError, NewDevice};
use stor_replication::ids::VolumeId;
use stor_replication::range::SECTOR;
use stor_transport::nbd::client::Client;
use tokio::sync::broadcast;
use uuid::Uuid;

use super::device::{ALL_NBD, Connected, DeviceError, Wish};
use super::users::{processes, users};
use crate::agent::state_dir::Paths;

/// Connections of a device. An engine has one thread; more than these only cost.
const CONNECTIONS: usize = 4;

/// A request that is unanswered for this long is sent on another connection, and so are those that were under way to
/// an engine that died. A short time lets I/O go on soon after a crash; an engine that is slow beyond it costs a
/// new connection, and nothing else.
const REQUEST: Duration = Duration::from_secs(5);

/// How long a device without an engine keeps what is written to it, before it fails: in effect until somebody
/// does something about it. The kernel wants an end.
const PATIENCE: Duration = Duration::from_hours(30 * 24);

/// For each step of a negotiation with an engine.
const NEGOTIATION: Duration = Duration::from_secs(5);

/// Notices of lost connections that a volume's task has not looked at yet.
const NOTICES: usize = 256;

/// How often the listener looks whether it should end, and its pause after an error.
const LISTEN: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct NbdDevices {
    paths: Paths,
    /// None: the kernel has no such driver.
    links: Option<Arc<broadcast::Sender<u32>>>,
}

fn failed(error: &NbdError) -> DeviceError {
    DeviceError::Failed(error.to_string())
}

/// What this node lacks for these devices; `None`: nothing.
pub(super) fn remedy() -> Option<String> {
    match Control::open() {
        Ok(_) => None,
        Err(NbdError::Absent) => Some(
            "load the kernel module nbd (`modprobe nbd`; at every boot: `echo nbd >/etc/modules-load.d/stor.conf`), \
             in a container on its host, and start the container with --network host; a kernel without it was built \
             without CONFIG_BLK_DEV_NBD"
                .to_owned(),
        ),
        Err(NbdError::TooOld) => Some("use a kernel of Linux 5.14 or later".to_owned()),
        Err(error) => Some(error.to_string()),
    }
}

impl NbdDevices {
    pub(super) fn new(paths: Paths) -> Self {
        let links = Control::open().is_ok().then(|| {
            let links = Arc::new(broadcast::Sender::new(NOTICES));
            let told = Arc::downgrade(&links);
            let started = thread::Builder::new()
                .name("nbd-links".to_owned())
                .spawn(move || listen(&told));
            if let Err(error) = started {
                tracing::error!(%error, "nbd devices that lose a connection are not noticed");
            }
            links
        });
        Self { paths, links }
    }

    pub(super) fn links(&self) -> Option<broadcast::Receiver<u32>> {
        self.links.as_ref().map(|links| links.subscribe())
    }

    /// What stands before the state directory.
    fn backend(&self, volume: VolumeId) -> String {
        format!("stor:{volume}:{}", self.paths.root().display())
    }

    fn all() -> Result<Vec<Device>, DeviceError> {
        nbddev::devices()
            .map_err(|error| DeviceError::Failed(format!("cannot look for nbd devices: {error}")))
    }

    /// The devices of a volume; one, or none.
    pub(super) fn find(&self, volume: VolumeId) -> Result<Vec<Device>, DeviceError> {
        let backend = self.backend(volume);
        let mut devices = Self::all()?;
        devices.retain(|device| device.backend == backend);
        Ok(devices)
    }

    /// Volumes that have a device of this state directory.
    pub(super) fn leftovers(&self) -> Result<Vec<VolumeId>, DeviceError> {
        let ours = |device: Device| {
            let id = device.backend.strip_prefix("stor:")?.split(':').next()?;
            let volume = VolumeId(Uuid::parse_str(id).ok()?);
            (device.backend == self.backend(volume)).then_some(volume)
        };
        Ok(Self::all()?.into_iter().filter_map(ours).collect())
    }

    /// Whose a device is that is not this volume's; `None`: this one's, or nobody's.
    pub(super) fn owner(&self, volume: VolumeId, index: u32) -> Result<Option<String>, DeviceError> {
        let found = Self::all()?.into_iter().find(|device| device.index == index);
        Ok(match found {
            Some(device) if device.backend == self.backend(volume) => None,
            Some(device) => Some(device.backend),
            // Set up by somebody who did not say who he is.
            None if Path::new(&format!("/sys/block/nbd{index}/pid")).exists() => {
                Some("somebody else's".to_owned())
            }
            None => None,
        })
    }

    /// Connects the volume's device, or a new one, to the engine that listens now. `unlink`: as in
    /// [`NbdDevices::take_down`].
    pub(super) fn connect(
        &self,
        volume: VolumeId,
        wish: &Wish,
        unlink: &dyn Fn(&Path) -> Result<(), DeviceError>,
    ) -> Result<Connected, DeviceError> {
        let backend = self.backend(volume);
        let path = self.paths.nbd_socket(volume);
        let mut flags = 0;
        let mut sockets = Vec::new();
        for _ in 0..CONNECTIONS {
            let (socket, told) = negotiate(&path, wish).map_err(|error| {
                DeviceError::Failed(format!(
                    "cannot connect to the engine on {}: {error}",
                    path.display()
                ))
            })?;
            flags = told;
            sockets.push(socket);
        }
        let sockets: Vec<_> = sockets.iter().map(OwnedFd::as_fd).collect();
        let mut control = Control::open().map_err(|error| failed(&error))?;
        let mut index = None;
        if let Some(device) = self.find(volume)?.first() {
            match control.reconnect(device.index, &backend, &sockets) {
                Ok(()) => index = Some(device.index),
                // It was taken down, and somebody still has it open. It is not to be revived.
                Err(error) => {
                    tracing::warn!(%volume, device = %device.path().display(), %error, "the device is beyond help");
                    self.take_down(volume, true, unlink)?;
                }
            }
        }
        let new = NewDevice {
            size: wish.size,
            block_size: SECTOR,
            flags,
            timeout: REQUEST,
            patience: PATIENCE,
            backend: &backend,
        };
        let index = match index {
            Some(index) => index,
            None => control.connect(&new, &sockets).map_err(|error| failed(&error))?,
        };
        // Nobody is sent to a device that is not surely this volume's. One from before the volume grew is smaller, and
        // grows now that its requests have somewhere to go.
        let found = self.find(volume)?;
        let [device] = found.as_slice() else {
            return Err(DeviceError::Failed(format!(
                "the kernel was asked for one device and has {found:?}"
            )));
        };
        if device.index != index || device.read_only != wish.read_only || device.size > wish.size {
            return Err(DeviceError::Failed(format!(
                "the kernel was asked for device {index} of {} bytes and has {device:?}",
                wish.size
            )));
        }
        nbddev::make_node(index, &device.path()).map_err(|error| failed(&error))?;
        Ok(Connected {
            path: device.path(),
            index,
            size: device.size,
        })
    }

    /// Gives the volume's device another size, if it has one.
    pub(super) fn resize(&self, volume: VolumeId, size: u64) -> Result<(), DeviceError> {
        for device in self.find(volume)? {
            Control::open()
                .and_then(|mut control| control.set_size(device.index, size, &device.backend))
                .map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// Takes the volume's devices down. `unlink` takes away the names of a node, before its device goes: nothing
    /// else would tell the next agent of them if this one were killed in between.
    pub(super) fn take_down(
        &self,
        volume: VolumeId,
        force: bool,
        unlink: &dyn Fn(&Path) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let devices = self.find(volume)?;
        for device in &devices {
            let (path, name) = (device.path(), format!("nbd{}", device.index));
            let busy = || DeviceError::Busy(users(&name, &path));
            let claim = if force {
                None
            } else {
                if !processes(&path).is_empty() {
                    return Err(busy());
                }
                nbddev::make_node(device.index, &path).map_err(|error| failed(&error))?;
                let claimed = blockdev::claim(&path).map_err(|error| {
                    DeviceError::Failed(format!("cannot write out {}: {error}", path.display()))
                })?;
                Some(claimed.ok_or_else(busy)?)
            };
            unlink(&path)?;
            let mut control = Control::open().map_err(|error| failed(&error))?;
            control.disconnect(device.index).map_err(|error| failed(&error))?;
            if let Some(claim) = claim {
                claim.release();
            }
            // With its last user the kernel forgets whose it was.
            if !nbddev::settled(device.index, &device.backend) {
                return Err(busy());
            }
        }
        if !devices.is_empty() {
            // The device was the engine's client, and is no more.
            crate::engine::forget_guest(&self.paths.control_socket(volume));
        }
        Ok(())
    }
}

/// A connection to an engine on which requests may follow, and the transmission flags.
fn negotiate(path: &Path, wish: &Wish) -> io::Result<(OwnedFd, u16)> {
    const READ_ONLY: u16 = 1 << 1;
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // It counts for the connecting as well, should the engine not accept.
    set_socket_timeout(&socket, Timeout::Send, Some(NEGOTIATION))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(NEGOTIATION))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let client = Client::negotiate(UnixStream::from(socket), &wish.name)?;
    let (size, flags) = (client.size(), client.flags());
    if size != wish.size || (flags & READ_ONLY != 0) != wish.read_only {
        return Err(io::Error::other(format!(
            "it serves {size} bytes with flags {flags:#x}, not {} bytes{}",
            wish.size,
            if wish.read_only { " read-only" } else { "" }
        )));
    }
    let socket = OwnedFd::from(client.into_stream());
    // The kernel would take a quiet connection for a dead one.
    set_socket_timeout(&socket, Timeout::Send, None)?;
    set_socket_timeout(&socket, Timeout::Recv, None)?;
    Ok((socket, flags))
}

/// Passes notices on as long as anybody could want them.
fn listen(told: &Weak<broadcast::Sender<u32>>) {
    while told.strong_count() > 0 {
        let error = match DeadLinks::listen(LISTEN) {
            Ok(mut links) => loop {
                let dead = match links.wait() {
                    Ok(dead) => dead,
                    Err(error) => break error.to_string(),
                };
                let Some(told) = told.upgrade() else {
                    return;
                };
                for index in dead {
                    // Nobody listens: no volume has a task.
                    _ = told.send(index);
                }
            },
            Err(error) => error.to_string(),
        };
        tracing::warn!(error, "notices of lost nbd connections are lost themselves");
        if let Some(told) = told.upgrade() {
            _ = told.send(ALL_NBD);
        }
        thread::sleep(LISTEN);
    }
}
