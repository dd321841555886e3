//! Commands to the driver, each in a ring of its own and with a deadline.
//!
//! The kernel carries commands out on threads of its own, and some wait: for requests to end, for another command,
//! for users of a device. One that does not end in time is left to the kernel, with the memory that it was given.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use io_uring::squeue::Entry128;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, types};
use nix::libc;

use super::{CONTROL, Device, NEEDED, State, UPDATE_SIZE, UblkError};

/// For commands that wait for nothing but locks.
const SOON: Duration = Duration::from_secs(10);
/// For those that wait for requests: the kernel reads the partition table when a device starts.
const WITH_REQUESTS: Duration = Duration::from_secs(30);

/// Requests of a device at a time. An engine takes this many at once; each costs it 24 bytes when idle.
const DEPTH: u16 = 128;
/// The longest request.
const MAX_REQUEST: u32 = 1 << 20;
/// The longest discard and zeroing.
const MAX_DISCARD: u32 = 1 << 30;
/// Bytes of a sector as the kernel counts.
const KERNEL_SECTOR: u64 = 512;

const READ: u32 = 2 << 30;
const READ_WRITE: u32 = 3 << 30;

const fn command(direction: u32, number: u32) -> u32 {
    // The size is that of `Command`.
    direction | 32 << 16 | (b'u' as u32) << 8 | number
}

const GET_DEVICE: u32 = command(READ, 0x02);
const ADD_DEVICE: u32 = command(READ_WRITE, 0x04);
const DELETE_DEVICE: u32 = command(READ_WRITE, 0x05);
const START_DEVICE: u32 = command(READ_WRITE, 0x06);
const STOP_DEVICE: u32 = command(READ_WRITE, 0x07);
const SET_PARAMETERS: u32 = command(READ_WRITE, 0x08);
const GET_PARAMETERS: u32 = command(READ, 0x09);
const START_RECOVERY: u32 = command(READ_WRITE, 0x10);
const END_RECOVERY: u32 = command(READ_WRITE, 0x11);
const GET_FEATURES: u32 = command(READ, 0x13);
const DELETE_LATER: u32 = command(READ, 0x14);
const SET_SIZE: u32 = command(READ_WRITE, 0x15);

/// "Any free number."
const ANY: u32 = u32::MAX;

/// `struct ublksrv_ctrl_cmd` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct Command {
    device: u32,
    queue: u16,
    length: u16,
    address: u64,
    value: u64,
    path_length: u16,
    pad: u16,
    reserved: u32,
}

impl Command {
    fn bytes(self) -> [u8; 80] {
        let mut bytes = [0; 80];
        let fields = self
            .device
            .to_ne_bytes()
            .into_iter()
            .chain(self.queue.to_ne_bytes())
            .chain(self.length.to_ne_bytes())
            .chain(self.address.to_ne_bytes())
            .chain(self.value.to_ne_bytes())
            .chain(self.path_length.to_ne_bytes());
        bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        bytes
    }
}

/// `struct ublksrv_ctrl_dev_info` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Info {
    queues: u16,
    depth: u16,
    state: u16,
    pad: u16,
    max_request: u32,
    device: u32,
    pid: i32,
    pad1: u32,
    flags: u64,
    mark: u64,
    uid: u32,
    gid: u32,
    reserved: [u64; 2],
}

/// `struct ublk_params` of the kernel, with the kinds of parameters that are used.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Parameters {
    length: u32,
    kinds: u32,
    attributes: u32,
    logical_shift: u8,
    physical_shift: u8,
    optimal_shift: u8,
    minimal_shift: u8,
    max_sectors: u32,
    chunk_sectors: u32,
    sectors: u64,
    boundary_mask: u64,
    discard_alignment: u32,
    discard_granularity: u32,
    max_discard: u32,
    max_zeroes: u32,
    discard_segments: u16,
    discard_reserved: u16,
    numbers: [u32; 4],
    zoned: [u32; 8],
}

const KIND_BASIC: u32 = 1;
const KIND_DISCARD: u32 = 2;
const READ_ONLY: u32 = 1;
const VOLATILE_CACHE: u32 = 4;
const FUA: u32 = 8;

const _: () = assert!(size_of::<Command>() == 32 && size_of::<Info>() == 64);
const _: () = assert!(size_of::<Parameters>() == 112);

/// What the kernel reads or fills: plain numbers, whatever their bits are.
trait Plain: Copy + 'static {}
impl Plain for u64 {}
impl Plain for Info {}
impl Plain for Parameters {}

/// What a new device is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewDevice {
    /// Its maker's number; see [`Device::mark`].
    pub mark: u64,
    /// Bytes.
    pub size: u64,
    /// Bytes of a block: a power of two.
    pub block_size: u32,
    /// Writes are refused.
    pub read_only: bool,
}

/// Commands to the driver.
pub struct Control {
    ring: IoUring<Entry128, cqueue::Entry>,
    file: File,
    features: u64,
    /// A command was given up: the ring is the kernel's until it ends.
    stuck: bool,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field("features", &self.features)
            .field("stuck", &self.stuck)
            .finish_non_exhaustive()
    }
}

impl Control {
    /// Finds the driver, and sees whether it has what is needed.
    pub fn open() -> Result<Self, UblkError> {
        let file = match OpenOptions::new().read(true).write(true).open(CONTROL) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(UblkError::Absent),
            // The node is there and the module is not.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => {
                return Err(UblkError::Absent);
            }
            opened => opened.map_err(|source| UblkError::System {
                doing: "open",
                path: CONTROL.into(),
                source,
            })?,
        };
        let ring = IoUring::<Entry128, cqueue::Entry>::builder()
            .build(2)
            .map_err(UblkError::Ring)?;
        let mut control = Self {
            ring,
            file,
            features: 0,
            stuck: false,
        };
        control.features = match control.ask("tell its features", GET_FEATURES, ANY, 0, Box::new(0_u64), SOON)
        {
            Ok(features) => *features,
            // Before Linux 6.5.
            Err(UblkError::Refused { .. }) => 0,
            Err(error) => return Err(error),
        };
        if control.features & NEEDED != NEEDED {
            return Err(UblkError::TooOld(control.features & NEEDED));
        }
        Ok(control)
    }

    /// Whether devices can be given another size.
    pub fn can_resize(&self) -> bool {
        self.features & UPDATE_SIZE != 0
    }

    /// A device; `None`: there is none of this number, or it is one that was made in another way.
    pub fn device(&mut self, index: u32) -> Result<Option<Device>, UblkError> {
        let info = Box::new(Info::default());
        let info = match self.ask("tell of a device", GET_DEVICE, index, 0, info, SOON) {
            Ok(info) => info,
            // Devices of others who are not root are told of in another way.
            Err(error) if matches!(error.refusal(), Some(libc::ENODEV | libc::EINVAL | libc::EPERM)) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let state = match info.state {
            1 => State::Live,
            2 => State::Waiting,
            // Others come with features that are not asked for.
            _ => State::Dead,
        };
        Ok((info.flags & NEEDED == NEEDED).then_some(Device {
            index,
            mark: info.mark,
            state,
            pid: info.pid,
            depth: info.depth,
        }))
    }

    /// The devices with a mark.
    pub fn marked(&mut self, mark: u64) -> Result<Vec<Device>, UblkError> {
        let numbers = super::numbers().map_err(|source| UblkError::System {
            doing: "list",
            path: "/sys/class/ublk-char".into(),
            source,
        })?;
        let mut found = Vec::new();
        for index in numbers {
            found.extend(self.device(index)?.filter(|device| device.mark == mark));
        }
        Ok(found)
    }

    /// Makes a device on any free number. It has to be started.
    pub fn add(&mut self, new: &NewDevice) -> Result<Device, UblkError> {
        let info = Info {
            queues: 1,
            depth: DEPTH,
            max_request: MAX_REQUEST,
            device: ANY,
            flags: NEEDED | self.features & UPDATE_SIZE,
            mark: new.mark,
            ..Info::default()
        };
        let made = self.ask("make a ublk device", ADD_DEVICE, ANY, 0, Box::new(info), SOON)?;
        let done = self.set_parameters(made.device, new);
        let found = done.and_then(|()| self.device(made.device));
        match found {
            Ok(Some(device)) if device.mark == new.mark => Ok(device),
            Ok(_) => Err(UblkError::Another { index: made.device }),
            Err(error) => {
                // What cannot be used must not be found later.
                self.delete(made.device)?;
                Err(error)
            }
        }
    }

    fn set_parameters(&mut self, index: u32, new: &NewDevice) -> Result<(), UblkError> {
        let shift = u8::try_from(new.block_size.trailing_zeros()).unwrap_or(u8::MAX);
        let sectors = |bytes: u32| bytes / 512;
        let parameters = Parameters {
            length: SIZE_OF_PARAMETERS,
            kinds: KIND_BASIC | KIND_DISCARD,
            attributes: VOLATILE_CACHE | FUA | if new.read_only { READ_ONLY } else { 0 },
            logical_shift: shift,
            physical_shift: shift,
            optimal_shift: shift,
            minimal_shift: shift,
            max_sectors: sectors(MAX_REQUEST),
            sectors: new.size / KERNEL_SECTOR,
            discard_granularity: new.block_size,
            max_discard: sectors(MAX_DISCARD),
            max_zeroes: sectors(MAX_DISCARD),
            discard_segments: 1,
            ..Parameters::default()
        };
        let doing = "set the parameters of a ublk device";
        self.ask(doing, SET_PARAMETERS, index, 0, Box::new(parameters), SOON)
            .map(drop)
    }

    /// Whether writes to a device are refused.
    pub fn is_read_only(&mut self, index: u32) -> Result<bool, UblkError> {
        let wanted = Parameters {
            length: SIZE_OF_PARAMETERS,
            ..Parameters::default()
        };
        let doing = "tell the parameters of a ublk device";
        let told = self.ask(doing, GET_PARAMETERS, index, 0, Box::new(wanted), SOON)?;
        Ok(told.attributes & READ_ONLY != 0)
    }

    /// Makes the block device, once process `pid` has taken the queue.
    pub fn start(&mut self, index: u32, pid: i32) -> Result<(), UblkError> {
        let pid = u64::from(pid.unsigned_abs());
        self.order("start a ublk device", START_DEVICE, index, pid, WITH_REQUESTS)
    }

    /// Has the device wait for another process. `EBUSY`: the one before has not ended wholly, or still serves.
    pub fn start_recovery(&mut self, index: u32) -> Result<(), UblkError> {
        let doing = "give a ublk device to another process";
        self.order(doing, START_RECOVERY, index, 0, SOON)
    }

    /// Lets requests go to process `pid`, once it has taken the queue.
    pub fn end_recovery(&mut self, index: u32, pid: i32) -> Result<(), UblkError> {
        let pid = u64::from(pid.unsigned_abs());
        let doing = "let a ublk device go on";
        self.order(doing, END_RECOVERY, index, pid, WITH_REQUESTS)
    }

    /// Takes the block device away. What waits in it, and all that comes, fails.
    pub fn stop(&mut self, index: u32) -> Result<(), UblkError> {
        self.order("stop a ublk device", STOP_DEVICE, index, 0, WITH_REQUESTS)
    }

    /// Removes a device; its number is free when nobody has it open any more.
    pub fn delete(&mut self, index: u32) -> Result<(), UblkError> {
        let doing = "delete a ublk device";
        match self.order(doing, DELETE_LATER, index, 0, WITH_REQUESTS) {
            Err(error) if error.refusal() == Some(libc::EOPNOTSUPP) => {
                match self.order(doing, DELETE_DEVICE, index, 0, SOON) {
                    // It is marked as deleted, and goes with its last user.
                    Err(UblkError::NoAnswer { .. }) => Ok(()),
                    other => other,
                }
            }
            other => other,
        }
    }

    /// Gives a device another size. Only where [`Control::can_resize`].
    pub fn set_size(&mut self, index: u32, size: u64) -> Result<(), UblkError> {
        let sectors = size / KERNEL_SECTOR;
        self.order("resize a ublk device", SET_SIZE, index, sectors, SOON)
    }

    fn order(
        &mut self,
        doing: &'static str,
        code: u32,
        index: u32,
        value: u64,
        limit: Duration,
    ) -> Result<(), UblkError> {
        match self.carry_out(code, index, value, (0, 0), limit) {
            Some(result) => result.map_err(|source| UblkError::Refused { doing, source }),
            None => Err(UblkError::NoAnswer { doing }),
        }
    }

    /// A command with something to read or fill.
    fn ask<T: Plain>(
        &mut self,
        doing: &'static str,
        code: u32,
        index: u32,
        value: u64,
        mut payload: Box<T>,
        limit: Duration,
    ) -> Result<Box<T>, UblkError> {
        let length = u16::try_from(size_of::<T>()).unwrap_or(u16::MAX);
        let address = std::ptr::from_mut(&mut *payload).expose_provenance() as u64;
        match self.carry_out(code, index, value, (address, length), limit) {
            Some(Ok(())) => Ok(payload),
            Some(Err(source)) => Err(UblkError::Refused { doing, source }),
            None => {
                // The kernel may still write to it.
                Box::leak(payload);
                Err(UblkError::NoAnswer { doing })
            }
        }
    }

    /// `None`: it did not end in time. `payload`: address and length of memory that stays valid until it ends.
    fn carry_out(
        &mut self,
        code: u32,
        index: u32,
        value: u64,
        payload: (u64, u16),
        limit: Duration,
    ) -> Option<io::Result<()>> {
        if self.stuck {
            return None;
        }
        let command = Command {
            device: index,
            queue: u16::MAX,
            length: payload.1,
            address: payload.0,
            value,
            path_length: 0,
            pad: 0,
            reserved: 0,
        };
        let entry = opcode::UringCmd80::new(types::Fd(self.file.as_raw_fd()), code)
            .cmd(command.bytes())
            .build();
        // SAFETY: the command leads to memory that its caller keeps until the command ended, or for ever; the
        // descriptor is open as long as this struct is, and the kernel has its own hold on the file afterwards.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            return Some(Err(io::ErrorKind::WouldBlock.into()));
        }
        let deadline = Instant::now() + limit;
        loop {
            if let Some(done) = self.ring.completion().next() {
                return Some(match done.result() {
                    error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
                    _ => Ok(()),
                });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.stuck = true;
                return None;
            }
            let limit = Timespec::from(left);
            let args = SubmitArgs::new().timespec(&limit);
            if let Err(error) = self.ring.submitter().submit_with_args(1, &args)
                && !matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
                )
            {
                // Whether the kernel has the command is not known.
                self.stuck = true;
                tracing::error!(%error, "the ring for commands to the ublk driver fails");
                return None;
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "checked above to be 112")]
const SIZE_OF_PARAMETERS: u32 = size_of::<Parameters>() as u32;
