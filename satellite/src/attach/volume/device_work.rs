//! The device of a volume: one operation at a time, each on a thread made for blocking.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::device::{ALL_NBD, Devices, Found};
use super::super::plan::Device;
use super::{DEVICE_IS_SLOW, DeviceDone, VolumeTask};

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
            DeviceDone::Connected(Ok((path, index)), read_only) => {
                tracing::info!(volume = %self.volume, device = %path.display(), index, "the device is connected");
                self.device_path = Some(path);
                self.loop_read_only = Some(read_only);
                self.nbd = Some(index);
                if let Some(running) = &self.running {
                    self.connection_epoch = Some(running.epoch);
                }
                self.device = if self.relink {
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
                self.nbd = None;
                self.device = Device::None;
                None
            }
            DeviceDone::Resized(Ok(()), size) => {
                self.device_size = size;
                None
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
        if index != ALL_NBD && self.nbd != Some(index) {
            return;
        }
        // The device may be being made just now.
        self.relink = true;
        self.unlinked();
    }

    /// What the nbd device is connected to may be gone.
    pub(super) fn unlinked(&mut self) {
        if self.nbd.is_some() && self.device == Device::Attached {
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
        self.nbd = None;
        match found {
            Ok(Found::Nbd { index, read_only }) => {
                self.loop_read_only = Some(read_only);
                if self.connection_epoch.is_none() {
                    // It was of the last engine that was started here, whoever the agent was then.
                    self.connection_epoch = Some(self.used);
                }
                self.nbd = Some(index);
                self.device = match self.device_path {
                    Some(_) => Device::Attached,
                    None => Device::Mounted,
                };
            }
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
}
