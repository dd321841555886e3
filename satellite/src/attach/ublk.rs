//! Devices of the kernel's ublk driver, for the transport `ublk`.
//!
//! The engine takes requests from the kernel itself, without a socket in between. All commands are the agent's:
//!
//! ```text
//! make    before an engine starts: a new device, or the one there waits for another process
//!         (the engine starts, takes the device's queue, serves)
//! start   the block device appears, or goes on with what its last engine left unanswered
//! ```
//!
//! A device without an engine keeps what is written to it. Whose a device is, is told by a number that the kernel keeps
//! for its maker ([`mark`]): made of the volume's id and the state directory. Only those of our own are ever touched.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use stor_device::blockdev;
use stor_device::ublk::{self, Control, Device, NewDevice, State, UblkError};
use stor_replication::ids::VolumeId;
use stor_replication::range::SECTOR;

use super::device::{Connected, DeviceError, Found, Wish};
use super::users::{processes, users};
use crate::agent::state_dir::Paths;

/// How long a process that was killed may take to let go of its device. With all requests in its hands the kernel
/// notices only when it looks at slow ones.
const LETS_GO: Duration = Duration::from_secs(20);

/// Between looks whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// See the module.
#[derive(Debug)]
pub(super) struct UblkDevices {
    paths: Paths,
    /// Devices made by this process and not started yet. One that is dead otherwise was stopped, and to start it
    /// would give a block device that fails everything: its engine has been sent away from it.
    made: Mutex<BTreeSet<u32>>,
}

fn failed(error: &UblkError) -> DeviceError {
    DeviceError::Failed(error.to_string())
}

/// What this node lacks for these devices; `None`: nothing.
pub(super) fn remedy() -> Option<String> {
    match Control::open() {
        Ok(_) => stor_device::reactor::io_uring_available()
            .err()
            .map(|error| error.to_string()),
        Err(UblkError::Absent) => Some(
            "load the kernel module ublk_drv (`modprobe ublk_drv`; at every boot: \
             `echo ublk_drv >/etc/modules-load.d/stor-ublk.conf`), in a container on its host, and start the container \
             with --privileged -v /dev:/dev; a kernel without it is older than Linux 6.5 or was built without \
             CONFIG_BLK_DEV_UBLK"
                .to_owned(),
        ),
        Err(UblkError::TooOld(_)) => Some("use a kernel of Linux 6.5 or later".to_owned()),
        Err(UblkError::Ring(error)) => Some(format!(
            "cannot set up io_uring ({error}): allow it (sysctl kernel.io_uring_disabled=0, the container's seccomp \
             profile)"
        )),
        Err(error) => Some(error.to_string()),
    }
}

/// The number that devices of a volume carry. Nobody else's is the same but by chance, one in 2^64.
pub(super) fn mark(paths: &Paths, volume: VolumeId) -> u64 {
    let text = format!("stor ublk:{volume}:{}", paths.root().display());
    let hash = blake3::hash(text.as_bytes());
    let first = hash.as_bytes().first_chunk().copied().unwrap_or_default();
    // Zero is what makers leave who have nothing to say.
    u64::from_le_bytes(first) | 1
}

impl UblkDevices {
    pub(super) fn new(paths: Paths) -> Self {
        Self {
            paths,
            made: Mutex::default(),
        }
    }

    fn made(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The devices of a volume; one, or none. A kernel without the driver has none.
    fn devices(&self, volume: VolumeId) -> Result<Vec<Device>, DeviceError> {
        // Mostly there are none at all, and nothing is to be asked.
        if ublk::numbers().is_ok_and(|numbers| numbers.is_empty()) {
            return Ok(Vec::new());
        }
        Control::open()
            .and_then(|mut control| control.marked(mark(&self.paths, volume)))
            .map_err(|error| failed(&error))
    }

    pub(super) fn find(&self, volume: VolumeId) -> Result<Option<Found>, DeviceError> {
        let Some(device) = self.devices(volume)?.into_iter().next() else {
            return Ok(None);
        };
        let read_only = Control::open()
            .and_then(|mut control| control.is_read_only(device.index))
            .map_err(|error| failed(&error))?;
        let index = device.index;
        Ok(Some(Found::Ublk { index, read_only }))
    }

    /// Whose a device is that is not this volume's; `None`: this one's, or nobody's.
    pub(super) fn owner(&self, volume: VolumeId, index: u32) -> Result<Option<String>, DeviceError> {
        if ublk::size(index).is_none() || self.devices(volume)?.iter().any(|device| device.index == index) {
            return Ok(None);
        }
        Ok(Some("somebody else's".to_owned()))
    }

    /// Sees to it that there is a device that waits for an engine. Returns its number, and whether it is new.
    pub(super) fn make(
        &self,
        volume: VolumeId,
        wish: &Wish,
        unlink: &dyn Fn(&Path) -> Result<(), DeviceError>,
    ) -> Result<(u32, bool), DeviceError> {
        let mut control = Control::open().map_err(|error| failed(&error))?;
        if let Some(device) = self.devices(volume)?.first() {
            let recovered = match device.state {
                State::Dead => Err(None),
                State::Live | State::Waiting => recover(&mut control, device.index).map_err(Some),
            };
            match recovered {
                Ok(()) => return Ok((device.index, false)),
                // It still has its process, or nobody can say: not for good.
                Err(Some(error))
                    if error.refusal().is_none()
                        || is_busy(&error) && Path::new(&format!("/proc/{}", device.pid)).exists() =>
                {
                    return Err(failed(&error));
                }
                Err(error) => {
                    if let Some(error) = error {
                        tracing::warn!(%volume, index = device.index, %error, "the device is beyond help");
                    }
                    self.take_down(volume, true, unlink)?;
                }
            }
        }
        let new = NewDevice {
            mark: mark(&self.paths, volume),
            size: wish.size,
            block_size: u32::try_from(SECTOR).unwrap_or(u32::MAX),
            read_only: wish.read_only,
        };
        let device = control.add(&new).map_err(|error| failed(&error))?;
        self.made().insert(device.index);
        Ok((device.index, true))
    }

    /// Lets requests go to the engine, which has taken the queue.
    pub(super) fn start(
        &self,
        volume: VolumeId,
        wish: &Wish,
        unlink: &dyn Fn(&Path) -> Result<(), DeviceError>,
    ) -> Result<Connected, DeviceError> {
        let found = self.devices(volume)?;
        let [device] = found.as_slice() else {
            return Err(DeviceError::Failed(format!(
                "the volume should have one ublk device and has {found:?}"
            )));
        };
        let mut control = Control::open().map_err(|error| failed(&error))?;
        let index = device.index;
        match device.state {
            State::Live if device.pid == wish.engine => {}
            State::Live => {
                return Err(DeviceError::Failed(format!(
                    "ublk device {index} is served by process {}, and the engine is {}",
                    device.pid, wish.engine
                )));
            }
            State::Waiting => control
                .end_recovery(index, wish.engine)
                .map_err(|error| failed(&error))?,
            State::Dead if self.made().remove(&index) => {
                control
                    .start(index, wish.engine)
                    .map_err(|error| failed(&error))?;
            }
            State::Dead => {
                self.take_down(volume, true, unlink)?;
                return Err(DeviceError::Failed(format!(
                    "ublk device {index} was stopped, or never started: it has to be made anew"
                )));
            }
        }
        // Nobody is sent to a device that is not surely this volume's, with this engine.
        let now = control.device(index).map_err(|error| failed(&error))?;
        let right = now
            .is_some_and(|now| now.mark == device.mark && now.state == State::Live && now.pid == wish.engine);
        let (true, Some(size)) = (right, ublk::size(index)) else {
            return Err(DeviceError::Failed(format!(
                "ublk device {index} is not what it was just made to be"
            )));
        };
        if device.state == State::Dead {
            // The kernel waits for all requests first. Should the engine die now, those wait for the next one, and that
            // must not wait for this.
            let looks = thread::Builder::new().name("ublk-timeout".to_owned());
            let started = looks.spawn(move || {
                if let Err(error) = ublk::look_at_slow(index) {
                    tracing::warn!(index, %error, "should the engine die under full load, I/O may wait half a minute");
                }
            });
            if let Err(error) = started {
                tracing::warn!(%volume, %error, "should the engine die under full load, I/O may wait half a minute");
            }
        }
        ublk::make_block_node(index).map_err(|error| failed(&error))?;
        Ok(Connected {
            path: device.path(),
            index,
            size,
        })
    }

    /// Gives the volume's device another size, if it has one.
    pub(super) fn resize(&self, volume: VolumeId, size: u64) -> Result<(), DeviceError> {
        for device in self.devices(volume)? {
            let mut control = Control::open().map_err(|error| failed(&error))?;
            if !control.can_resize() {
                return Err(DeviceError::Fixed(
                    "the device keeps its size until the volume is attached anew: this kernel cannot resize ublk \
                     devices (Linux 6.16 can)"
                        .to_owned(),
                ));
            }
            control
                .set_size(device.index, size)
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
        let devices = self.devices(volume)?;
        for device in &devices {
            let path = device.path();
            let busy = || DeviceError::Busy(users(&format!("ublkb{}", device.index), &path));
            let claim = match device.state {
                State::Live if !force => {
                    if !processes(&path).is_empty() {
                        return Err(busy());
                    }
                    ublk::make_block_node(device.index).map_err(|error| failed(&error))?;
                    let claimed = blockdev::claim(&path).map_err(|error| {
                        DeviceError::Failed(format!("cannot write out {}: {error}", path.display()))
                    })?;
                    Some(claimed.ok_or_else(busy)?)
                }
                State::Waiting if !force => {
                    return Err(DeviceError::Failed(format!(
                        "what was written to {} waits for an engine",
                        path.display()
                    )));
                }
                _ => None,
            };
            unlink(&path)?;
            let mut control = Control::open().map_err(|error| failed(&error))?;
            control.stop(device.index).map_err(|error| failed(&error))?;
            if let Some(claim) = claim {
                claim.release();
            }
            control.delete(device.index).map_err(|error| failed(&error))?;
            self.made().remove(&device.index);
        }
        if !devices.is_empty() {
            // The device was the engine's client, and is no more.
            crate::engine::forget_guest(&self.paths.control_socket(volume));
        }
        Ok(())
    }
}

fn is_busy(error: &UblkError) -> bool {
    error.refusal() == Some(Errno::BUSY.raw_os_error())
}

/// Has a device wait for another process, once the one before has let go of it.
fn recover(control: &mut Control, index: u32) -> Result<(), UblkError> {
    let until = Instant::now() + LETS_GO;
    loop {
        match control.start_recovery(index) {
            Err(error) if is_busy(&error) && Instant::now() < until => thread::sleep(LOOK),
            // It waits already: an agent or an engine died before any request was fetched.
            Err(error) if error.refusal() == Some(Errno::INVAL.raw_os_error()) => {
                return match control.device(index)? {
                    Some(device) if device.state == State::Waiting => Ok(()),
                    _ => Err(error),
                };
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::state_dir::StateDir;

    #[test]
    fn each_volume_of_each_state_directory_has_a_mark_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let open = |name| StateDir::open(&directory.path().join(name), "k1").unwrap();
        let (one, two) = (open("one"), open("two"));
        let volumes = [1_u128, 2].map(|id| VolumeId(uuid::Uuid::from_u128(id)));
        let mut marks: Vec<_> = [one.paths(), two.paths()]
            .into_iter()
            .flat_map(|paths| volumes.map(|volume| mark(paths, volume)))
            .collect();
        assert_eq!(marks[0], mark(one.paths(), volumes[0]), "not always the same");
        assert!(!marks.contains(&0));
        marks.sort_unstable();
        marks.dedup();
        assert_eq!(marks.len(), 4);
    }
}
