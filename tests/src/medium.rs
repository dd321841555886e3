//! How a writer reaches a volume: NBD on a unix socket, or the block device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use crate::nbd::{Cutter, Failure, Nbd};

/// Where a volume is used.
#[derive(Clone, Debug)]
pub enum Medium {
    /// An NBD export.
    Socket {
        /// The unix socket.
        path: PathBuf,
        /// The volume's name.
        export: String,
    },
    /// A block device, used past the page cache.
    Device(PathBuf),
}

impl Medium {
    /// Opens it once more.
    pub fn open(&self) -> io::Result<Open> {
        match self {
            Self::Socket { path, export } => Nbd::connect(path, export).map(Open::Socket),
            Self::Device(path) => OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap_or(0))
                .open(path)
                .map(|file| Open::Device(file, Aligned::default())),
        }
    }
}

/// A volume in use.
#[derive(Debug)]
pub enum Open {
    /// Over NBD.
    Socket(Nbd),
    /// The device, and memory as it wants it.
    Device(File, Aligned),
}

impl Open {
    /// Writes, for as long as it takes.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Socket(nbd) => nbd.write(offset, bytes),
            Self::Device(file, memory) => {
                let memory = memory.of(bytes.len());
                memory.copy_from_slice(bytes);
                file.write_all_at(memory, offset).map_err(Failure::Refused)
            }
        }
    }

    /// Reads, for as long as it takes.
    pub fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        match self {
            Self::Socket(nbd) => nbd.read(offset, bytes),
            Self::Device(file, memory) => {
                let memory = memory.of(bytes.len());
                file.read_exact_at(memory, offset).map_err(Failure::Refused)?;
                bytes.copy_from_slice(memory);
                Ok(())
            }
        }
    }

    /// Makes zeroes of a range, by a discard or not. Of sockets only.
    pub fn zero(&mut self, offset: u64, length: usize, trim: bool) -> Result<(), Failure> {
        match self {
            Self::Socket(nbd) => nbd.zero(offset, length, trim),
            Self::Device(..) => Err(Failure::Refused(io::ErrorKind::Unsupported.into())),
        }
    }

    /// Makes durable what was written.
    pub fn flush(&mut self) -> Result<(), Failure> {
        match self {
            Self::Socket(nbd) => nbd.flush(),
            Self::Device(file, _) => file.sync_all().map_err(Failure::Refused),
        }
    }

    /// Ends a connection from another thread. A device has none: its I/O ends when the device lets it.
    pub fn cutter(&self) -> Option<Cutter> {
        match self {
            Self::Socket(nbd) => nbd.cutter().ok(),
            Self::Device(..) => None,
        }
    }
}

/// Memory at a multiple of 4096, as O_DIRECT wants it.
#[derive(Debug, Default)]
pub struct Aligned(Vec<u8>);

impl Aligned {
    fn of(&mut self, length: usize) -> &mut [u8] {
        const ALIGN: usize = 4096;
        if self.0.len() < length + ALIGN {
            self.0 = vec![0; length + ALIGN];
        }
        let start = self.0.as_ptr().align_offset(ALIGN);
        self.0.get_mut(start..start + length).unwrap_or_default()
    }
}
