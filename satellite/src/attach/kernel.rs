//! [`Devices`] of the running kernel.
//!
//! ```text
//! STATE/fuse/<volume>/          FUSE mount; its connection is the engine's and the agent's
//! STATE/fuse/<volume>/volume    the volume as a file
//! /dev/loopN                    on that file, direct I/O, blocks of 4096 bytes
//! /dev/nbdN                     transport nbd, see [`super::nbd`]
//! /dev/ublkbN                   transport ublk, see [`super::ublk`]
//! DEVICE_DIR/<name>             symbolic link to one of these
//! ```
//!
//! A link is replaced or removed only when it is surely ours: it points to a device on our file or of our
//! engine, or to one that is on nothing at all.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};

use stor_device::fusemount::{self, MountOptions, Unmount, UnmountError};
use stor_device::loopdev::{self, AttachOptions, DetachError, Detached, LoopDevice};
use stor_replication::ids::VolumeId;
use uuid::Uuid;

use tokio::sync::broadcast;

use super::device::{Connected, DeviceError, Devices, Found, Wish};
use super::nbd::NbdDevices;
use super::ublk::UblkDevices;
use super::users::users;
use crate::agent::desired::TransportKind;
use crate::agent::state_dir::Paths;

/// The file in the FUSE mount.
const FILE: &str = "volume";

/// See the head of this file.
#[derive(Debug)]
pub struct KernelDevices {
    paths: Paths,
    directory: PathBuf,
    nbd: NbdDevices,
    ublk: UblkDevices,
}

fn failed(doing: &str, path: &Path, error: impl std::fmt::Display) -> DeviceError {
    DeviceError::Failed(format!("cannot {doing} {}: {error}", path.display()))
}

impl KernelDevices {
    /// `directory`: where the names of devices go.
    pub fn new(paths: Paths, directory: PathBuf) -> Self {
        Self {
            nbd: NbdDevices::new(paths.clone()),
            ublk: UblkDevices::new(paths.clone()),
            paths,
            directory,
        }
    }

    fn file(&self, volume: VolumeId) -> PathBuf {
        self.paths.mount_point(volume).join(FILE)
    }

    fn loops(&self, volume: VolumeId) -> Result<Vec<LoopDevice>, DeviceError> {
        let file = self.file(volume);
        loopdev::find(&file).map_err(|error| failed("look for loop devices of", &file, error))
    }

    fn is_mounted(&self, volume: VolumeId) -> Result<bool, DeviceError> {
        let at = self.paths.mount_point(volume);
        fusemount::is_mounted(&at).map_err(|error| failed("look for the mount", &at, error))
    }

    fn link_path(&self, name: &str) -> Result<PathBuf, DeviceError> {
        // A controller checks names; a path that leaves the directory must not come from one either.
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            return Err(DeviceError::Failed(format!(
                "{name:?} cannot be the name of a device"
            )));
        }
        Ok(self.directory.join(name))
    }

    fn make_loop(&self, volume: VolumeId, read_only: bool) -> Result<LoopDevice, DeviceError> {
        let file = self.file(volume);
        let opened = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(&file)
            .map_err(|error| failed("open", &file, error))?;
        let options = AttachOptions {
            read_only,
            ..AttachOptions::default()
        };
        loopdev::attach(&opened, &file, options).map_err(|error| DeviceError::Failed(error.to_string()))
    }

    fn link(&self, volume: VolumeId, name: &str, device: &Path) -> Result<PathBuf, DeviceError> {
        let link = self.link_path(name)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.directory)
            .map_err(|error| failed("make", &self.directory, error))?;
        match self.owner(volume, &link)? {
            Owner::Nobody | Owner::Us => {}
            Owner::Other(what) => {
                return Err(DeviceError::Failed(format!(
                    "{} is already there ({what}) and is not this volume's; move it away, or give this satellite \
                     another --device-dir",
                    link.display()
                )));
            }
        }
        let temporary = self.directory.join(format!(".{volume}"));
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &temporary, error));
            }
            _ => {}
        }
        symlink(device, &temporary)
            .and_then(|()| fs::rename(&temporary, &link))
            .map_err(|error| failed("make", &link, error))?;
        Ok(link)
    }

    fn unlink(&self, volume: VolumeId, name: &str) -> Result<(), DeviceError> {
        // An engine that never had a name has no link.
        let Ok(link) = self.link_path(name) else {
            return Ok(());
        };
        match self.owner(volume, &link)? {
            Owner::Us => fs::remove_file(&link).map_err(|error| failed("remove", &link, error)),
            Owner::Nobody | Owner::Other(_) => Ok(()),
        }
    }

    /// Removes the links to devices that are no more, under whatever name: the volume's may not be known.
    fn unlink_all(&self, devices: &[PathBuf]) -> Result<(), DeviceError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("list", &self.directory, error)),
        };
        for entry in entries {
            let link = entry
                .map_err(|error| failed("list", &self.directory, error))?
                .path();
            let points_here = fs::read_link(&link).is_ok_and(|target| devices.contains(&target));
            if points_here {
                fs::remove_file(&link).map_err(|error| failed("remove", &link, error))?;
            }
        }
        Ok(())
    }

    fn owner(&self, volume: VolumeId, link: &Path) -> Result<Owner, DeviceError> {
        let target = match fs::read_link(link) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Owner::Nobody),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Ok(Owner::Other("not a symbolic link".to_owned()));
            }
            Err(error) => return Err(failed("look at", link, error)),
        };
        let number_after = |prefix| target.to_str()?.strip_prefix(prefix)?.parse::<u32>().ok();
        let of_a_driver = match (number_after("/dev/nbd"), number_after("/dev/ublkb")) {
            (Some(index), _) => Some(self.nbd.owner(volume, index)?),
            (_, Some(index)) => Some(self.ublk.owner(volume, index)?),
            _ => None,
        };
        if let Some(owner) = of_a_driver {
            return Ok(match owner {
                Some(other) => Owner::Other(format!("a link to {}, which is {other}", target.display())),
                None => Owner::Us,
            });
        }
        let number = number_after("/dev/loop");
        let Some(number) = number else {
            return Ok(Owner::Other(format!("a link to {}", target.display())));
        };
        let ours = self.loops(volume)?.iter().any(|device| device.number == number);
        let file = fs::read_to_string(format!("/sys/block/loop{number}/loop/backing_file"));
        Ok(match file {
            // A loop device that is on no file: what a crash left, whosever it was.
            Err(error) if is_absent(&error) => Owner::Us,
            Err(error) => return Err(failed("look at", link, error)),
            Ok(_) if ours => Owner::Us,
            Ok(file) => Owner::Other(format!(
                "a link to {}, which is on {}",
                target.display(),
                file.trim_end()
            )),
        })
    }
}

/// sysfs has no such attribute, or not any more.
fn is_absent(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NODEV | Errno::NXIO)
    )
}

enum Owner {
    Nobody,
    Us,
    Other(String),
}

impl Devices for KernelDevices {
    fn find(&self, volume: VolumeId) -> Result<Found, DeviceError> {
        if let Some(device) = self.nbd.find(volume)?.first() {
            return Ok(Found::Nbd {
                index: device.index,
                read_only: device.read_only,
            });
        }
        if let Some(found) = self.ublk.find(volume)? {
            return Ok(found);
        }
        // A loop device may be left of a mount that is gone.
        match self.loops(volume)?.into_iter().next() {
            Some(device) => {
                let flag = PathBuf::from(format!("/sys/block/loop{}/ro", device.number));
                let flag = fs::read_to_string(&flag).map_err(|error| failed("read", &flag, error))?;
                Ok(Found::Loop {
                    read_only: flag.trim() != "0",
                })
            }
            None if self.is_mounted(volume)? => Ok(Found::Mount),
            None => Ok(Found::Nothing),
        }
    }

    fn mount(&self, volume: VolumeId) -> Result<OwnedFd, DeviceError> {
        let at = self.paths.mount_point(volume);
        match DirBuilder::new().mode(0o700).create(&at) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make", &at, error));
            }
            _ => {}
        }
        let control = self.paths.control_socket(volume);
        crate::engine::forget_session(&control).map_err(|error| failed("clear", &control, error))?;
        fusemount::mount(&at, MountOptions::default()).map_err(|error| DeviceError::Failed(error.to_string()))
    }

    fn attach(&self, volume: VolumeId, name: &str, read_only: bool) -> Result<PathBuf, DeviceError> {
        // Before anything is made: a name that cannot be given would leave a device nobody finds.
        self.link_path(name)?;
        let there = self.loops(volume)?.into_iter().next();
        let device = there.map_or_else(|| self.make_loop(volume, read_only), Ok)?;
        if !device.direct_io {
            tracing::warn!(%volume, device = %device.path.display(), "the loop device has no direct I/O: it will use more memory");
        }
        self.link(volume, name, &device.path)
    }

    fn make(&self, volume: VolumeId, wish: &Wish) -> Result<(u32, bool), DeviceError> {
        // As in `attach`.
        self.link_path(&wish.name)?;
        let unlink = |path: &Path| self.unlink_all(&[path.to_owned()]);
        self.ublk.make(volume, wish, &unlink)
    }

    fn connect(&self, volume: VolumeId, wish: &Wish) -> Result<Connected, DeviceError> {
        // As in `attach`.
        self.link_path(&wish.name)?;
        let unlink = |path: &Path| self.unlink_all(&[path.to_owned()]);
        let device = if wish.transport == TransportKind::Ublk {
            self.ublk.start(volume, wish, &unlink)?
        } else {
            self.nbd.connect(volume, wish, &unlink)?
        };
        let path = self.link(volume, &wish.name, &device.path)?;
        Ok(Connected { path, ..device })
    }

    fn links(&self) -> Option<broadcast::Receiver<u32>> {
        self.nbd.links()
    }

    fn resize(&self, volume: VolumeId, size: u64) -> Result<(), DeviceError> {
        self.nbd.resize(volume, size)?;
        self.ublk.resize(volume, size)?;
        if !self.is_mounted(volume)? {
            return Ok(());
        }
        let file = self.file(volume);
        // The kernel asks the engine for the size now; the loop device only takes what the kernel knows.
        fs::metadata(&file).map_err(|error| failed("look at", &file, error))?;
        for device in self.loops(volume)? {
            loopdev::refresh_size(device.number).map_err(|error| failed("resize", &device.path, error))?;
        }
        Ok(())
    }

    fn take_down(&self, volume: VolumeId, name: &str, force: bool) -> Result<(), DeviceError> {
        let unlink = |path: &Path| self.unlink_all(&[path.to_owned()]);
        self.nbd.take_down(volume, force, &unlink)?;
        self.ublk.take_down(volume, force, &unlink)?;
        let devices = self.loops(volume)?;
        for device in &devices {
            match loopdev::detach(device.number) {
                Ok(Detached::Now) => {}
                // Its users have it open already and only get errors from now on.
                Ok(Detached::WhenClosed) if force => {}
                Ok(Detached::WhenClosed) | Err(DetachError::Busy { .. }) => {
                    let name = format!("loop{}", device.number);
                    return Err(DeviceError::Busy(users(&name, &device.path)));
                }
                Err(error) => return Err(DeviceError::Failed(error.to_string())),
            }
        }
        self.unlink(volume, name)?;
        let gone: Vec<_> = devices.into_iter().map(|device| device.path).collect();
        self.unlink_all(&gone)?;
        let at = self.paths.mount_point(volume);
        if self.is_mounted(volume)? {
            let how = if force { Unmount::Abort } else { Unmount::Now };
            match fusemount::unmount(&at, how) {
                Ok(()) | Err(UnmountError::NotMounted { .. }) => {}
                Err(UnmountError::Busy { .. }) => {
                    return Err(DeviceError::Busy(format!("files in {} are open", at.display())));
                }
                Err(error) => return Err(DeviceError::Failed(error.to_string())),
            }
        }
        match fs::remove_dir(&at) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &at, error)),
            _ => Ok(()),
        }
    }

    fn leftovers(&self) -> Result<Vec<VolumeId>, DeviceError> {
        let directory = self.paths.fuse();
        // Only names are read: a look into a dead mount fails, one into a live mount waits for its engine.
        let entries = fs::read_dir(&directory).map_err(|error| failed("list", &directory, error))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names
            .filter_map(|name| Uuid::parse_str(&name).ok())
            .map(VolumeId)
            .chain(self.nbd.leftovers()?)
            .collect())
    }
}
