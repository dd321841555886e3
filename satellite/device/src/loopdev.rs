//! Loop devices: a file as a block device of the kernel.
//!
//! Used for the `fuse` transport, whose volume is a file in a FUSE mount. Everything here blocks; attaching a
//! file served by our own process needs another thread to answer the requests meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use thiserror::Error;

/// Another process may take the free device before us; after this many of them something else is wrong.
const ATTEMPTS: u32 = 64;
/// How often we look whether a device let go of its file, and the pause between: half a second altogether,
/// for udev's look at the device that often follows a change.
const SETTLE_TRIES: u32 = 50;
const SETTLE_PAUSE: Duration = Duration::from_millis(10);

const CONTROL: &str = "/dev/loop-control";
const LOOP_MAJOR: u32 = 7;

const FLAG_READ_ONLY: u32 = 1;
const FLAG_DIRECT_IO: u32 = 16;

/// `struct loop_info64` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

mod call {
    nix::ioctl_write_int_bad!(set_fd, 0x4C00);
    nix::ioctl_none_bad!(clear_fd, 0x4C01);
    nix::ioctl_write_ptr_bad!(set_status, 0x4C04, super::LoopInfo);
    nix::ioctl_none_bad!(set_capacity, 0x4C07);
    nix::ioctl_write_int_bad!(set_direct_io, 0x4C08);
    nix::ioctl_write_int_bad!(set_block_size, 0x4C09);
    nix::ioctl_write_ptr_bad!(configure, 0x4C0A, super::LoopConfig);
    nix::ioctl_none_bad!(get_free, 0x4C82);
}

/// How a file is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachOptions {
    /// Logical block size of the device.
    pub block_size: u32,
    /// Refuse writes.
    pub read_only: bool,
}

impl Default for AttachOptions {
    fn default() -> Self {
        Self {
            block_size: 4096,
            read_only: false,
        }
    }
}

/// An attached loop device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopDevice {
    /// The N of `/dev/loopN`.
    pub number: u32,
    /// The device node.
    pub path: PathBuf,
    /// It reads and writes its file without the page cache.
    pub direct_io: bool,
}

/// Why a file could not be attached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The kernel has no loop devices for us.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// No free device.
    #[error("cannot get a free loop device: {0}")]
    GetFree(#[source] io::Error),
    /// The node cannot be opened.
    #[error("cannot open {path}: {source}; in a container, mount the host's /dev")]
    OpenDevice {
        /// The device.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel refuses the file.
    #[error("cannot attach the file to {path}: {source}")]
    Configure {
        /// The device.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others were faster every time.
    #[error("others took {ATTEMPTS} free loop devices before us; is something attaching devices in a loop?")]
    Contended,
}

/// Why loop devices cannot be used here.
#[derive(Debug, Error)]
pub enum Unavailable {
    /// No control device.
    #[error("{CONTROL} is missing: load the module (modprobe loop) or give the container the host's /dev")]
    NoControl,
    /// No right to use it.
    #[error("cannot open {CONTROL}: {0}; run as root, in a container as a privileged one")]
    OpenControl(#[source] io::Error),
}

/// Why a device could not be detached.
#[derive(Debug, Error)]
pub enum DetachError {
    /// Mounted, or held by another block device.
    #[error("{path} is in use: unmount it or stop what is stacked on it")]
    Busy {
        /// The device.
        path: PathBuf,
    },
    /// Anything else.
    #[error("cannot detach {path}: {source}")]
    Clear {
        /// The device.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What became of a detached device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detached {
    /// It has let go of its file.
    Now,
    /// Somebody has it open; it lets go when they close it.
    WhenClosed,
}

/// Whether loop devices can be made here, or what to do about it.
pub fn is_available() -> Result<(), Unavailable> {
    control().map(drop)
}

fn control() -> Result<File, Unavailable> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(CONTROL)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Unavailable::NoControl,
            _ => Unavailable::OpenControl(error),
        })
}

/// Attaches an open file to a free loop device, with direct I/O where the file can. `name` is what `losetup`
/// shows for it.
pub fn attach(file: impl AsFd, name: &Path, options: AttachOptions) -> Result<LoopDevice, AttachError> {
    let control = control()?;
    let mut config = LoopConfig::new(file.as_fd().as_raw_fd(), name, options);
    for attempt in 0..ATTEMPTS {
        // SAFETY: the call takes no pointer; the descriptor is open.
        let number = unsafe { call::get_free(control.as_raw_fd()) };
        let number = number.map_err(|errno| AttachError::GetFree(errno.into()))?;
        let number = u32::try_from(number).unwrap_or(0);
        config.info.number = number;
        let path = node(number);
        let device =
            open_device(&path, number, options.read_only).map_err(|source| AttachError::OpenDevice {
                path: path.clone(),
                source,
            })?;
        match configure(&device, &config) {
            Ok(()) => {
                return Ok(LoopDevice {
                    number,
                    path,
                    direct_io: direct_io(number),
                });
            }
            Err(nix::errno::Errno::EBUSY) => {
                std::thread::sleep(Duration::from_millis(u64::from(attempt.min(10))));
            }
            Err(errno) => {
                return Err(AttachError::Configure {
                    path,
                    source: errno.into(),
                });
            }
        }
    }
    Err(AttachError::Contended)
}

fn configure(device: &File, config: &LoopConfig) -> nix::Result<()> {
    // SAFETY: `config` has the kernel's layout (sizes asserted above) and is only read during the call.
    match unsafe { call::configure(device.as_raw_fd(), std::ptr::from_ref(config)) } {
        // Before Linux 5.8 the call does not exist.
        Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOTTY) => configure_stepwise(device, config),
        result => result.map(drop),
    }
}

/// As older kernels do it: several calls, during which the device can be seen half made. Whether it is read
/// only follows there from how the device was opened.
fn configure_stepwise(device: &File, config: &LoopConfig) -> nix::Result<()> {
    let raw = device.as_raw_fd();
    let block_size = i32::try_from(config.block_size).map_err(|_| nix::errno::Errno::EINVAL)?;
    let fd = i32::try_from(config.fd).map_err(|_| nix::errno::Errno::EBADF)?;
    // SAFETY: takes a number; both descriptors are open.
    unsafe { call::set_fd(raw, fd) }?;
    let mut info = config.info;
    info.flags = 0;
    // SAFETY: `info` has the kernel's layout and is only read during the call; the other call takes a number.
    let set =
        unsafe { call::set_block_size(raw, block_size).and_then(|_| call::set_status(raw, &raw const info)) };
    if let Err(errno) = set {
        // SAFETY: takes no pointer.
        if let Err(error) = unsafe { call::clear_fd(raw) } {
            tracing::warn!(%error, "cannot take back a loop device that could not be set up");
        }
        return Err(errno);
    }
    // SAFETY: takes a number.
    if let Err(error) = unsafe { call::set_direct_io(raw, 1) } {
        tracing::debug!(%error, "no direct I/O on a loop device");
    }
    Ok(())
}

impl LoopConfig {
    fn new(fd: i32, name: &Path, options: AttachOptions) -> Self {
        // SAFETY: a C struct of integers, for which all zeroes is the kernel's "default".
        let mut config: Self = unsafe { std::mem::zeroed() };
        config.fd = fd.unsigned_abs();
        config.block_size = options.block_size;
        config.info.flags = FLAG_DIRECT_IO | if options.read_only { FLAG_READ_ONLY } else { 0 };
        // The last byte stays zero.
        let room = config.info.file_name.iter_mut().take(63);
        for (place, byte) in room.zip(name.as_os_str().as_bytes()) {
            *place = *byte;
        }
        config
    }
}

fn node(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

/// Opens a device. Where nobody makes nodes in /dev (a container with a /dev of its own), makes it.
fn open_device(path: &Path, number: u32, read_only: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mode = Mode::RUSR | Mode::WUSR;
            match mknodat(
                CWD,
                path,
                FileType::BlockDevice,
                mode,
                makedev(LOOP_MAJOR, number),
            ) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => options.open(path),
                Err(errno) => Err(errno.into()),
            }
        }
        result => result,
    }
}

/// An attribute of a loop device; none when it is on no file.
fn attribute(number: u32, name: &str) -> Option<Vec<u8>> {
    fs::read(format!("/sys/block/loop{number}/loop/{name}")).ok()
}

fn direct_io(number: u32) -> bool {
    attribute(number, "dio").is_some_and(|value| value.starts_with(b"1"))
}

/// Takes the new size of the file over.
pub fn refresh_size(number: u32) -> io::Result<()> {
    let device = open_device(&node(number), number, true)?;
    // SAFETY: the call takes no pointer; the descriptor is open.
    unsafe { call::set_capacity(device.as_raw_fd()) }?;
    Ok(())
}

/// Detaches a device from its file. One that is not attached is fine. Refused while it is mounted; while
/// somebody merely has it open, it is detached when they close it.
pub fn detach(number: u32) -> Result<Detached, DetachError> {
    let path = node(number);
    // An exclusive open fails on a device that is mounted or stacked on, which clearing alone would only
    // mark to be detached some day.
    let device = match OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(&path)
    {
        Ok(device) => device,
        Err(error) => {
            return match error.raw_os_error() {
                Some(libc::EBUSY) => Err(DetachError::Busy { path }),
                Some(libc::ENOENT | libc::ENXIO) => Ok(Detached::Now),
                _ => Err(DetachError::Clear { path, source: error }),
            };
        }
    };
    // SAFETY: the call takes no pointer; the descriptor is open.
    match unsafe { call::clear_fd(device.as_raw_fd()) } {
        Ok(_) => {}
        Err(nix::errno::Errno::ENXIO) => return Ok(Detached::Now),
        Err(nix::errno::Errno::EBUSY) => return Err(DetachError::Busy { path }),
        Err(errno) => {
            return Err(DetachError::Clear {
                path,
                source: errno.into(),
            });
        }
    }
    // Newer kernels let go of the file only now, when the last user closes the device.
    drop(device);
    for _ in 0..SETTLE_TRIES {
        if attribute(number, "backing_file").is_none() {
            return Ok(Detached::Now);
        }
        std::thread::sleep(SETTLE_PAUSE);
    }
    Ok(Detached::WhenClosed)
}

/// The devices attached to this file, by the name the kernel knows it under (absolute, without links).
pub fn find(backing: &Path) -> io::Result<Vec<LoopDevice>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("loop"))
            .and_then(|number| number.parse().ok());
        if let Some(number) = number
            && let Some(file) = attribute(number, "backing_file")
            && same_file(&file, backing)
        {
            found.push(LoopDevice {
                number,
                path: node(number),
                direct_io: direct_io(number),
            });
        }
    }
    found.sort_unstable_by_key(|device| device.number);
    Ok(found)
}

/// sysfs ends the name with a newline, and says so when the file has been removed meanwhile.
fn same_file(shown: &[u8], backing: &Path) -> bool {
    let shown = shown.strip_suffix(b"\n").unwrap_or(shown);
    let wanted = backing.as_os_str().as_bytes();
    shown == wanted || shown.strip_suffix(b" (deleted)") == Some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_files_are_found_by_their_old_name() {
        let path = Path::new("/srv/pool/vol 1");
        assert!(same_file(b"/srv/pool/vol 1\n", path));
        assert!(same_file(b"/srv/pool/vol 1 (deleted)\n", path));
        assert!(!same_file(b"/srv/pool/vol 11\n", path));
    }

    #[test]
    fn the_way_of_older_kernels_attaches_too() {
        if let Err(error) = is_available() {
            return stor_skip::skipped("loopdev", error);
        }
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("backing");
        let data = crate::file::open_data(&path, crate::file::OpenData::Create { size: 1 << 20 }).unwrap();
        let config = LoopConfig::new(data.fd.as_raw_fd(), &path, AttachOptions::default());
        let number = (0..ATTEMPTS)
            .find_map(|_| {
                // SAFETY: takes no pointer.
                let number = unsafe { call::get_free(control().unwrap().as_raw_fd()) }
                    .unwrap()
                    .unsigned_abs();
                let device = open_device(&node(number), number, false).unwrap();
                match configure_stepwise(&device, &config) {
                    Ok(()) => Some(number),
                    Err(nix::errno::Errno::EBUSY) => None,
                    Err(errno) => panic!("{errno}"),
                }
            })
            .unwrap();
        let found = find(&path).unwrap();
        let block_size =
            fs::read_to_string(format!("/sys/block/loop{number}/queue/logical_block_size")).unwrap();
        assert_eq!(detach(number).unwrap(), Detached::Now);
        assert_eq!(
            found,
            [LoopDevice {
                number,
                path: node(number),
                direct_io: true
            }]
        );
        assert_eq!(block_size.trim(), "4096");
    }
}
