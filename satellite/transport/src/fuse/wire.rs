//! The structures and numbers of the kernel's FUSE interface, in the byte order of the machine.
//!
//! Only the fields that are read or written have names one can rely on; sizes are checked against the
//! kernel's at compile time.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Longest read or write, bytes.
pub const MAX_IO: u32 = 1 << 20;

/// What a buffer for reading from `/dev/fuse` has to hold: the kernel refuses to read into one that is
/// smaller than the longest write with its headers. A page more, for headers to come.
pub const READ_BUFFER: usize = (1 << 20) + 4096;

/// Set in [`Unique`](super::Unique) when the kernel gives a request again.
pub const RESENT: u64 = 1 << 63;

pub(super) const MAJOR: u32 = 7;
/// The newest minor version whose replies are known here: 7.40 brought resending.
pub(super) const MINOR: u32 = 40;
/// The oldest: before it, INIT's reply is shorter.
pub(super) const OLDEST_MINOR: u32 = 23;

/// `FUSE_ROOT_ID`.
pub(super) const ROOT: u64 = 1;

pub(super) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const ACCESS: u32 = 34;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const TMPFILE: u32 = 51;
}

/// `FUSE_*` of INIT.
pub(super) mod init_flag {
    pub(crate) const ASYNC_READ: u64 = 1;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const INIT_EXT: u64 = 1 << 30;
    pub(crate) const HAS_RESEND: u64 = 1 << 39;
}

/// `FOPEN_DIRECT_IO`: no page cache above the volume.
pub(super) const OPEN_DIRECT_IO: u32 = 1;
/// `FOPEN_PARALLEL_DIRECT_WRITES`: no lock of the file around each write.
pub(super) const OPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

pub(super) const SET_MODE: u32 = 1;
pub(super) const SET_UID: u32 = 1 << 1;
pub(super) const SET_GID: u32 = 1 << 2;
pub(super) const SET_SIZE: u32 = 1 << 3;

pub(super) const FALLOC_KEEP_SIZE: u32 = 1;
pub(super) const FALLOC_PUNCH_HOLE: u32 = 2;
pub(super) const FALLOC_ZERO_RANGE: u32 = 0x10;

pub(super) const NOTIFY_INVAL_INODE: i32 = 2;
pub(super) const NOTIFY_RESEND: i32 = 7;

macro_rules! wire_structs {
    ($($(#[$doc:meta])* $name:ident [$size:literal] { $($field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Debug)]
        #[repr(C)]
        pub(super) struct $name { $(pub(super) $field: $kind,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

wire_structs! {
    InHeader[40] { len: u32, opcode: u32, unique: u64, node: u64, uid: u32, gid: u32, pid: u32, extensions: u16,
        padding: u16, }
    OutHeader[16] { len: u32, error: i32, unique: u64, }

    /// The part every version has.
    InitIn[16] { major: u32, minor: u32, max_readahead: u32, flags: u32, }
    InitOut[64] { major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16,
        congestion_threshold: u16, max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16,
        flags2: u32, unused: [u32; 7], }

    Attr[88] { ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32,
        mtimensec: u32, ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32,
        flags: u32, }
    EntryOut[128] { node: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32,
        attr_valid_nsec: u32, attr: Attr, }
    AttrOut[104] { attr_valid: u64, attr_valid_nsec: u32, padding: u32, attr: Attr, }
    /// The part that is read.
    SetattrIn[24] { valid: u32, padding: u32, handle: u64, size: u64, }

    OpenIn[8] { flags: u32, open_flags: u32, }
    OpenOut[16] { handle: u64, open_flags: u32, padding: u32, }
    ReadIn[40] { handle: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32,
        padding: u32, }
    WriteIn[40] { handle: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32,
        padding: u32, }
    WriteOut[8] { size: u32, padding: u32, }
    FallocateIn[32] { handle: u64, offset: u64, length: u64, mode: u32, padding: u32, }
    StatfsOut[80] { blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32,
        frsize: u32, padding: u32, spare: [u32; 6], }
    Dirent[24] { ino: u64, off: u64, namelen: u32, kind: u32, }
    InvalInode[24] { ino: u64, off: i64, len: i64, }
}
