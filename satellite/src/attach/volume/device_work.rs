//! The device of a volume: one operation at a time, each on a thread made for blocking.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::device::{ALL_NBD, Connected, DeviceError, Devices, Found};
use super::super::plan::Device;
use super::{DEVICE_IS_SLOW, DeviceDone, VolumeTask};
use crate::agent::desired::TransportKind;

/// Between attempts on a device that is used or fails: people are told within a second of its release.
const DEVICE_AGAIN: Duration = Duration::from_secs(1);

/// Between the loss of an nbd connection and new ones: mostly several are lost, one after the other.
const RELINK_AFTER: Duration = Duration::from_millis(100);

impl VolumeTask {
    /// Whether a device operation takes long.
    pub(super) fn device_is_slow(&self) -> bool {
        self.operation_since
            .is_some_and(|since| since.elapsed() >= DEVICE_IS_SLOW)
    }

    pub(super) fn operate(
        &mut self,
        now: Instant,
        work: impl FnOnce(&dyn Devices) -> DeviceDone + Send + 'static,
    ) {
        let devices = Arc::clone(&self.context.devices);
        self.operation_since = Some(now);
        self.operations.spawn_blocking(move || work(&*devices));
    }

    pub(super) fn device_done(&mut self, done: DeviceDone) {
        self.operation_since = None;
        let error = match done {
            DeviceDone::Mounted(Ok(connection)) => {
                self.connection = Some(Arc::new(connection));
                self.connection_epoch = None;
                self.device = Device::Mounted;
                None
            }
            DeviceDone::Attached(Ok(path), read_only) => {
                tracing::info!(volume = %self.volume, device = %path.display(), "the device is there");
                self.device_path = Some(path);
                self.loop_read_only = Some(read_only);
                // One that was there may be of before the volume grew.
                self.device_size = 0;
                self.device = Device::Attached;
                None
            }
            DeviceDone::Made(Ok((index, new)), read_only) => {
                tracing::info!(volume = %self.volume, index, new, "the device waits for an engine");
                self.loop_read_only = Some(read_only);
                self.driver = Some((TransportKind::Ublk, index));
                if new {
                    self.connection_epoch = None;
                }
                self.device = Device::Mounted;
                self.free = true;
                None
            }
            DeviceDone::Connected(Ok(made), wish) => {
                let Connected { path, index, size } = made;
                tracing::info!(volume = %self.volume, device = %path.display(), index, "the device is connected");
                self.device_path = Some(path);
                self.loop_read_only = Some(wish.read_only);
                self.driver = Some((wish.transport, index));
                self.device_size = size;
                self.fixed.clear();
                if let Some(running) = &self.running {
                    self.connection_epoch = Some(running.epoch);
                }
                let served = self.running.as_ref().map(|running| running.process.pid());
                // What was lost meanwhile was lost to this connection, or to the next.
                self.device = if self.relink || served != Some(wish.engine) {
                    Device::Mounted
                } else {
                    Device::Attached
                };
                None
            }
            DeviceDone::Down(Ok(())) => {
                tracing::info!(volume = %self.volume, "the device is taken down");
                self.connection = None;
                self.connection_epoch = None;
                self.device_path = None;
                self.loop_read_only = None;
                self.driver = None;
                self.free = false;
                self.fixed.clear();
                self.device = Device::None;
                None
            }
            DeviceDone::Resized(Ok(()), size) => {
                self.device_size = size;
                None
            }
            DeviceDone::Resized(Err(DeviceError::Fixed(why)), _) => {
                tracing::warn!(volume = %self.volume, why, "the device does not grow");
                self.fixed = why;
                None
            }
            DeviceDone::Made(Err(error), _) => {
                // One that was there may be gone.
                self.find_device();
                Some(error)
            }
            DeviceDone::Resized(Err(error), _)
            | DeviceDone::Mounted(Err(error))
            | DeviceDone::Attached(Err(error), _) => Some(error),
            DeviceDone::Connected(Err(error), _) => {
                // It may have been made, or found beyond help.
                self.device_path = None;
                if let Some(running) = &self.running {
                    self.connection_epoch = Some(running.epoch);
                }
                self.find_device();
                Some(error)
            }
            DeviceDone::Down(Err(error)) => {
                // Half of it may be gone.
                self.find_device();
                Some(error)
            }
        };
        let error = error.map_or_else(String::new, |error| error.to_string());
        if error != self.device_error && !error.is_empty() {
            tracing::warn!(volume = %self.volume, reason = %error, "the device has to wait");
        }
        if !error.is_empty() {
            self.device_not_before = Instant::now() + DEVICE_AGAIN;
        }
        self.device_error = error;
    }

    /// An nbd device lost a connection.
    pub(super) fn link_dead(&mut self, index: u32) {
        let nbd = self.driver.filter(|(driver, _)| *driver == TransportKind::Nbd);
        if index != ALL_NBD && nbd != Some((TransportKind::Nbd, index)) {
            return;
        }
        // The device may be being made just now.
        self.relink = true;
        self.unlinked();
    }

    /// What the nbd or ublk device is connected to may be gone.
    pub(super) fn unlinked(&mut self) {
        if self.driver.is_some() && self.device == Device::Attached {
            self.device = Device::Mounted;
            self.device_not_before = self.device_not_before.max(Instant::now() + RELINK_AFTER);
        }
    }

    pub(super) fn find_device(&mut self) {
        let found = self.context.devices.find(self.volume);
        if found.is_ok() && self.device == Device::Unknown {
            self.device_error.clear();
        }
        self.loop_read_only = None;
        self.driver = None;
        self.free = false;
        match found {
            Ok(Found::Nbd { index, read_only }) => self.found_in(TransportKind::Nbd, index, read_only),
            Ok(Found::Ublk { index, read_only }) => self.found_in(TransportKind::Ublk, index, read_only),
            Ok(Found::Nothing) => self.device = Device::None,
            Ok(Found::Mount) => self.device = Device::Mounted,
            Ok(Found::Loop { read_only }) => {
                self.loop_read_only = Some(read_only);
                // The name is put on a loop device once more by an attach, which finds the rest there.
                self.device = match self.device_path {
                    Some(_) => Device::Attached,
                    None => Device::Mounted,
                };
            }
            Err(error) => {
                tracing::warn!(volume = %self.volume, %error, "cannot look for the volume's device");
                self.device = Device::Unknown;
                self.device_error = error.to_string();
                self.device_not_before = Instant::now() + DEVICE_AGAIN;
            }
        }
    }

    fn found_in(&mut self, driver: TransportKind, index: u32, read_only: bool) {
        self.loop_read_only = Some(read_only);
        if self.connection_epoch.is_none() {
            // It was of the last engine that was started here, whoever the agent was then.
            self.connection_epoch = Some(self.used);
        }
        self.driver = Some((driver, index));
        self.device = match self.device_path {
            Some(_) => Device::Attached,
            None => Device::Mounted,
        };
    }
}
