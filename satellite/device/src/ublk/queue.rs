//! The serving process's side of a device: its requests, and their data.
//!
//! A tag is a place for one request. Each is fetched once ([`fetch`]); the operation completes when a request has come
//! there, and the answer ([`commit`]) fetches the next one. An operation that completes with `ENODEV` is the end of
//! the device for this process.
//!
//! All tags have to be fetched by one thread, and at once: a process that dies between the first and the last leaves a
//! device that no other can take over.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::ptr::NonNull;

use nix::libc;
use rustix::fs::FileType;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{Control, Device, UblkError, make_node};
use crate::reactor::DriverCommand;

/// Where data of requests begins in the file, and how tag and offset make up a place in it.
const DATA: u64 = 0x8000_0000;
const TAG_SHIFT: u32 = 25;

/// `struct ublksrv_io_desc` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    operation_and_flags: u32,
    sectors: u32,
    start: u64,
    address: u64,
}

const _: () = assert!(size_of::<Descriptor>() == 24);

const FLAG_FUA: u32 = 1 << 13;
const FLAG_KEEP: u32 = 1 << 15;

/// The ioctl numbers of `struct ublksrv_io_cmd`, 16 bytes.
const FETCH: u32 = 3 << 30 | 16 << 16 | (b'u' as u32) << 8 | 0x20;
const COMMIT_AND_FETCH: u32 = 3 << 30 | 16 << 16 | (b'u' as u32) << 8 | 0x21;

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Data is given by [`Queue::write_data`].
    Read,
    /// Data is taken by [`Queue::read_data`].
    Write {
        /// On stable storage before it is answered.
        fua: bool,
    },
    /// All that was answered before is to be on stable storage.
    Flush,
    /// The range is not needed any more.
    Discard,
    /// The range is to read as zeroes.
    Zero {
        /// Its space is to be kept.
        keep: bool,
        /// On stable storage before it is answered.
        fua: bool,
    },
    /// Something of a later kernel.
    Unknown(u8),
}

/// A request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// What.
    pub operation: Operation,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// The result that says "cannot be read or written".
pub const IO_ERROR: i32 = -libc::EIO;
/// The result that says "cannot be asked for".
pub const INVALID: i32 = -libc::EINVAL;

/// The operation that waits for the first request of a tag.
pub fn fetch(tag: u16) -> DriverCommand {
    DriverCommand::new(FETCH, bytes(tag, 0))
}

/// The operation that answers a tag's request and waits for the next. `result`: bytes read or written, zero
/// for what has none, or a negative error number.
pub fn commit(tag: u16, result: i32) -> DriverCommand {
    DriverCommand::new(COMMIT_AND_FETCH, bytes(tag, result))
}

/// `struct ublksrv_io_cmd`: queue 0, and no address, so that the kernel is told of no memory.
fn bytes(tag: u16, result: i32) -> [u8; 16] {
    let mut bytes = [0; 16];
    let fields = tag.to_ne_bytes().into_iter().chain(result.to_ne_bytes());
    bytes
        .iter_mut()
        .skip(2)
        .zip(fields)
        .for_each(|(to, from)| *to = from);
    bytes
}

/// The queue of a device, taken by this process.
#[derive(Debug)]
pub struct Queue {
    file: File,
    depth: u16,
    map: Map,
}

/// The descriptors, which the kernel writes.
#[derive(Debug)]
struct Map {
    start: NonNull<Descriptor>,
    bytes: usize,
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped by `Queue::open` with this size; nobody else has its address.
        if let Err(error) = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) } {
            tracing::error!(%error, "cannot unmap the descriptors of a ublk device");
        }
    }
}

impl Queue {
    /// Takes the queue of a device with this mark. Nobody else may have it.
    pub fn open(index: u32, mark: u64) -> Result<Self, UblkError> {
        let path = PathBuf::from(format!("/dev/ublkc{index}"));
        let number = PathBuf::from(format!("/sys/class/ublk-char/ublkc{index}/dev"));
        make_node(&path, FileType::CharacterDevice, &number)?;
        let system = |doing, source| UblkError::System {
            doing,
            path: path.clone(),
            source,
        };
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        let file = opened.map_err(|error| system("open", error))?;
        // Whose it is, now that it cannot be deleted and its number given to another.
        let device = Control::open()?.device(index)?;
        let Some(Device { depth, .. }) = device.filter(|device| device.mark == mark) else {
            return Err(UblkError::Another { index });
        };
        let bytes =
            (usize::from(depth) * size_of::<Descriptor>()).next_multiple_of(rustix::param::page_size());
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let mapped = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ,
                MapFlags::SHARED,
                &file,
                0,
            )
        };
        let start = mapped
            .map_err(io::Error::from)
            .and_then(|start| NonNull::new(start.cast()).ok_or_else(|| io::ErrorKind::InvalidData.into()))
            .map_err(|error| system("map", error))?;
        let map = Map { start, bytes };
        Ok(Self { file, depth, map })
    }

    /// Its number of tags; they are counted from 0.
    pub fn depth(&self) -> u16 {
        self.depth
    }

    /// For the operations of [`fetch`] and [`commit`].
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// The request that has come to a tag. `None`: there is no such tag.
    pub fn request(&self, tag: u16) -> Option<Request> {
        if tag >= self.depth {
            return None;
        }
        // SAFETY: the mapping has `depth` descriptors, and the kernel aligned it to a page. It may be written to
        // at the same time when the tag has no request, in which case any bits are as good as others.
        let told = unsafe { self.map.start.add(usize::from(tag)).read_volatile() };
        Some(told.into())
    }

    /// The data of a write.
    pub fn read_data(&self, tag: u16, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, place(tag))
    }

    /// Gives the data of a read.
    pub fn write_data(&self, tag: u16, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, place(tag))
    }
}

fn place(tag: u16) -> u64 {
    DATA + (u64::from(tag) << TAG_SHIFT)
}

impl From<Descriptor> for Request {
    fn from(told: Descriptor) -> Self {
        let flag = |flag| told.operation_and_flags & flag != 0;
        let fua = flag(FLAG_FUA);
        Self {
            operation: match u8::try_from(told.operation_and_flags & 0xff).unwrap_or(u8::MAX) {
                0 => Operation::Read,
                1 => Operation::Write { fua },
                2 => Operation::Flush,
                3 => Operation::Discard,
                5 => Operation::Zero {
                    keep: flag(FLAG_KEEP),
                    fua,
                },
                other => Operation::Unknown(other),
            },
            offset: told.start.saturating_mul(512),
            len: u64::from(told.sectors) * 512,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(operation_and_flags: u32) -> Request {
        Request::from(Descriptor {
            operation_and_flags,
            sectors: 8,
            start: 16,
            address: 0,
        })
    }

    #[test]
    fn requests_are_read_as_the_kernel_writes_them() {
        let write = told(1 | FLAG_FUA);
        assert_eq!((write.offset, write.len), (8192, 4096));
        assert_eq!(write.operation, Operation::Write { fua: true });
        assert_eq!(told(1).operation, Operation::Write { fua: false });
        assert_eq!(told(0).operation, Operation::Read);
        assert_eq!(told(2).operation, Operation::Flush);
        assert_eq!(told(3).operation, Operation::Discard);
        let zero = |keep, fua| Operation::Zero { keep, fua };
        assert_eq!(told(5 | FLAG_KEEP).operation, zero(true, false));
        assert_eq!(told(5).operation, zero(false, false));
        assert_eq!(told(18).operation, Operation::Unknown(18));
    }

    #[test]
    fn answers_name_tag_and_result_and_no_memory() {
        assert_eq!(&bytes(0x0102, -5)[..2], [0, 0]);
        assert_eq!(bytes(0x0102, -5)[2..4], 0x0102_u16.to_ne_bytes());
        assert_eq!(bytes(0x0102, -5)[4..8], (-5_i32).to_ne_bytes());
        assert_eq!(bytes(0x0102, -5)[8..], [0; 8]);
        assert_eq!(place(3), 0x8000_0000 + (3 << 25));
    }
}
