//! Mounting FUSE by the kernel's own calls: no libfuse, no fusermount.
//!
//! The descriptor that [`mount`] returns *is* the connection: requests are read from it and answers written to
//! it by whoever holds it (also after a hand-over to another process), and the mount is dead when its last
//! copy is closed. The protocol is spoken elsewhere.

use std::ffi::{CString, OsString};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};
use thiserror::Error;

/// What our mounts are called in `mount` and mountinfo.
pub const NAME: &str = "stor";

const DEVICE: &str = "/dev/fuse";
const FILE_SYSTEM: &str = "fuse";
/// CAP_SYS_ADMIN, which mounting takes.
const MOUNT_CAPABILITY: u32 = 21;

/// What the root of a mount is. It is mounted on something of the same kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Root {
    /// A directory with files in it.
    #[default]
    Directory,
    /// A single file.
    File,
}

/// How to mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MountOptions {
    /// What the root is.
    pub root: Root,
    /// Users other than root may look in.
    pub allow_other: bool,
    /// Largest read the kernel asks for; its own default otherwise.
    pub max_read: Option<u32>,
}

/// Why FUSE cannot be used here.
#[derive(Debug, Error)]
pub enum Unavailable {
    /// No device.
    #[error("{DEVICE} is missing: load the module (modprobe fuse) or give the container the device")]
    NoDevice,
    /// It cannot be opened.
    #[error("cannot open {DEVICE}: {0}; run as root, in a container as a privileged one")]
    OpenDevice(#[source] io::Error),
    /// We may not mount.
    #[error(
        "mounting takes CAP_SYS_ADMIN, which this process lacks: run as root, in a container as a privileged one"
    )]
    MayNotMount,
}

/// Why a mount did not come about.
#[derive(Debug, Error)]
pub enum MountError {
    /// FUSE is not there for us.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The place does not exist or cannot be used.
    #[error("cannot mount a FUSE file system at {at}: {source}")]
    Mount {
        /// Where.
        at: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// How to take a mount away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmount {
    /// Refused while something uses it.
    Now,
    /// Out of sight at once, gone when the last user is.
    Lazy,
    /// As `Lazy`, and the connection ends: whatever waits for an answer gets an error.
    Abort,
}

/// Why a mount is still there.
#[derive(Debug, Error)]
pub enum UnmountError {
    /// Files in it are open.
    #[error("{at} is in use: close what has files open in it, or unmount it lazily")]
    Busy {
        /// Where.
        at: PathBuf,
    },
    /// Nothing is mounted there.
    #[error("nothing is mounted at {at}")]
    NotMounted {
        /// Where.
        at: PathBuf,
    },
    /// Anything else.
    #[error("cannot unmount {at}: {source}")]
    Unmount {
        /// Where.
        at: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Whether we could mount here, or what to do about it.
pub fn is_available() -> Result<(), Unavailable> {
    open_device()?;
    let status = fs::read_to_string("/proc/self/status").map_err(Unavailable::OpenDevice)?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        // A kernel that does not say gives no right.
        .unwrap_or(0);
    if effective >> MOUNT_CAPABILITY & 1 == 1 {
        Ok(())
    } else {
        Err(Unavailable::MayNotMount)
    }
}

fn open_device() -> Result<OwnedFd, Unavailable> {
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(file) => Ok(file.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Unavailable::NoDevice),
        Err(error) => Err(Unavailable::OpenDevice(error)),
    }
}

/// Mounts and answers the connection. The first access waits until somebody answers on it.
pub fn mount(at: &Path, options: MountOptions) -> Result<OwnedFd, MountError> {
    let device = open_device()?;
    let data = mount_data(device.as_raw_fd(), options);
    let failed = |source| MountError::Mount {
        at: at.into(),
        source,
    };
    let data = CString::new(data).map_err(|error| failed(error.into()))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    match rustix::mount::mount(NAME, at, FILE_SYSTEM, flags, data.as_c_str()) {
        Ok(()) => Ok(device),
        Err(rustix::io::Errno::PERM) => Err(Unavailable::MayNotMount.into()),
        Err(errno) => Err(failed(errno.into())),
    }
}

fn mount_data(fd: i32, options: MountOptions) -> String {
    let root_mode = match options.root {
        Root::Directory => "40000",
        Root::File => "100000",
    };
    let mut data = format!("fd={fd},rootmode={root_mode},user_id=0,group_id=0");
    if options.allow_other {
        data.push_str(",allow_other");
    }
    if let Some(bytes) = options.max_read {
        data.push_str(",max_read=");
        data.push_str(&bytes.to_string());
    }
    data
}

/// Takes a mount away.
pub fn unmount(at: &Path, how: Unmount) -> Result<(), UnmountError> {
    let flags = match how {
        Unmount::Now => UnmountFlags::NOFOLLOW,
        Unmount::Lazy => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
        Unmount::Abort => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH | UnmountFlags::FORCE,
    };
    rustix::mount::unmount(at, flags).map_err(|errno| match errno {
        rustix::io::Errno::BUSY => UnmountError::Busy { at: at.into() },
        rustix::io::Errno::INVAL | rustix::io::Errno::NOENT => UnmountError::NotMounted { at: at.into() },
        errno => UnmountError::Unmount {
            at: at.into(),
            source: errno.into(),
        },
    })
}

/// Where our mounts are, in this mount namespace.
pub fn mounts() -> io::Result<Vec<PathBuf>> {
    Ok(parse_mounts(&fs::read("/proc/self/mountinfo")?))
}

/// One line of mountinfo: `36 35 98:0 /root /at options [optional fields] - type source super-options`.
fn parse_mounts(mountinfo: &[u8]) -> Vec<PathBuf> {
    let ours = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let at = fields.nth(4)?;
        fields.find(|field| *field == b"-")?;
        let is_ours = fields.next()? == FILE_SYSTEM.as_bytes() && fields.next()? == NAME.as_bytes();
        is_ours.then(|| unescape(at))
    };
    mountinfo.split(|byte| *byte == b'\n').filter_map(ours).collect()
}

/// Blanks and the like stand in mountinfo as a backslash and three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

/// Whether a path is one of our mounts.
pub fn is_mounted(at: &Path) -> io::Result<bool> {
    Ok(mounts()?.iter().any(|mount| mount == at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_with_its_escapes() {
        let text = b"22 28 0:20 / /proc rw,nosuid - proc proc rw\n\
            91 28 0:47 / /run/with\\040blank\\134end rw,nosuid shared:5 master:1 - fuse stor rw,user_id=0\n\
            92 28 0:48 / /other rw - fuse sshfs rw\n\
            93 28 0:49 / /plain rw - fuse stor rw\nbroken line\n";
        assert_eq!(
            parse_mounts(text),
            [PathBuf::from("/run/with blank\\end"), PathBuf::from("/plain")]
        );
    }

    #[test]
    fn options_are_what_the_kernel_wants() {
        let options = MountOptions {
            root: Root::File,
            allow_other: true,
            max_read: Some(1 << 20),
        };
        assert_eq!(
            mount_data(7, options),
            "fd=7,rootmode=100000,user_id=0,group_id=0,allow_other,max_read=1048576"
        );
        assert_eq!(
            mount_data(3, MountOptions::default()),
            "fd=3,rootmode=40000,user_id=0,group_id=0"
        );
    }
}
