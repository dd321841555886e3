//! The file system as the kernel asks for it.
//!
//! Nothing is cached by the kernel beyond what it must (pages of files that are open, for mmap): each name and
//! attribute is asked for again. Direct I/O, hole punching and O_DSYNC arrive here as what they are.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{FallocateFlags, FileType as Mode, OFlags, RawMode};

use super::content::{BLOCK, Content};
use super::power::{Power, Powered};
use super::tree::{Directory, Kind, Tree};

/// Names and attributes are asked for each time: a power cut changes them behind the kernel's back.
const ASK_AGAIN: Duration = Duration::ZERO;
/// Blocks of the whole file system: 16 GiB.
const CAPACITY: u64 = 4 << 20;
/// O_DSYNC by itself; what rustix calls so has the bits of O_SYNC too.
const DSYNC: i32 = 0o10000;
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// Serves one mount until its power goes for good.
#[derive(Debug)]
pub(super) struct Server(pub(super) Arc<Power>);

impl Server {
    fn on<T>(&self, act: impl FnOnce(&mut Powered<'_>) -> Result<T, rustix::io::Errno>) -> Result<T, Errno> {
        let mut powered = self.0.wait().map_err(code)?;
        act(&mut powered).map_err(code)
    }

    /// As [`Server::on`], for what changes something.
    fn change<T>(
        &self,
        act: impl FnOnce(&mut Powered<'_>) -> Result<T, rustix::io::Errno>,
    ) -> Result<T, Errno> {
        let mut powered = self.0.wait_to_change().map_err(code)?;
        act(&mut powered).map_err(code)
    }

    fn make(
        &self,
        parent: INodeNo,
        name: &OsStr,
        kind: Kind,
        mode: u32,
        req: &Request,
    ) -> Result<FileAttr, Errno> {
        self.change(|disk| {
            let node = disk
                .tree()
                .make(parent.0, name, kind, mode & 0o7777, (req.uid(), req.gid()))?;
            attributes(disk.tree(), node)
        })
    }
}

fn code(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

fn attributes(tree: &Tree, number: u64) -> Result<FileAttr, rustix::io::Errno> {
    let node = tree.node(number)?;
    let (size, blocks) = match &node.kind {
        Kind::File(content) => (content.length(), content.blocks()),
        Kind::Link(target) => (target.as_os_str().len() as u64, 0),
        Kind::Directory(_) | Kind::Special(_) => (0, 0),
    };
    Ok(FileAttr {
        ino: INodeNo(number),
        size,
        blocks: blocks * (BLOCK / 512),
        atime: node.changed,
        mtime: node.changed,
        ctime: node.changed,
        crtime: node.changed,
        kind: file_type(&node.kind),
        perm: u16::try_from(node.mode & 0o7777).unwrap_or(0o600),
        nlink: if matches!(node.kind, Kind::Directory(_)) {
            2
        } else {
            1
        },
        uid: node.uid,
        gid: node.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}

fn file_type(kind: &Kind) -> FileType {
    match kind {
        Kind::File(_) => FileType::RegularFile,
        Kind::Directory(_) => FileType::Directory,
        Kind::Link(_) => FileType::Symlink,
        Kind::Special(mode) => match Mode::from_raw_mode(*mode as RawMode) {
            Mode::Socket => FileType::Socket,
            _ => FileType::NamedPipe,
        },
    }
}

/// Past the page cache where that is asked for. Elsewhere the kernel follows a write with O_DSYNC by a sync of the
/// whole file, and durable is more than was asked to be.
fn how(flags: i32) -> FopenFlags {
    if OFlags::from_bits_retain(flags.cast_unsigned()).contains(OFlags::DIRECT) {
        FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
    } else {
        FopenFlags::empty()
    }
}

/// Answers with an entry or an error.
macro_rules! answer_entry {
    ($reply:expr, $result:expr) => {
        match $result {
            Ok(attributes) => $reply.entry(&ASK_AGAIN, &attributes, Generation(0)),
            Err(error) => $reply.error(error),
        }
    };
}

/// Answers with nothing or an error.
macro_rules! answer_empty {
    ($reply:expr, $result:expr) => {
        match $result {
            Ok(()) => $reply.ok(),
            Err(error) => $reply.error(error),
        }
    };
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.on(|disk| {
            let node = disk.tree().look_up(parent.0, name)?;
            attributes(disk.tree(), node)
        });
        answer_entry!(reply, found);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.on(|disk| attributes(disk.tree(), ino.0)) {
            Ok(attributes) => reply.attr(&ASK_AGAIN, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.change(|disk| {
            if let Some(size) = size {
                disk.tree().file_mut(ino.0)?.set_length(size);
            }
            let node = disk.tree().node_mut(ino.0)?;
            node.mode = mode.unwrap_or(node.mode);
            node.uid = uid.unwrap_or(node.uid);
            node.gid = gid.unwrap_or(node.gid);
            match mtime {
                Some(TimeOrNow::SpecificTime(time)) => node.changed = time,
                Some(TimeOrNow::Now) => node.changed = SystemTime::now(),
                None => {}
            }
            attributes(disk.tree(), ino.0)
        });
        match changed {
            Ok(attributes) => reply.attr(&ASK_AGAIN, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let target = self.on(|disk| match &disk.tree().node(ino.0)?.kind {
            Kind::Link(target) => Ok(target.clone()),
            _ => Err(rustix::io::Errno::INVAL),
        });
        match target {
            Ok(target) => reply.data(target.as_os_str().as_bytes()),
            Err(error) => reply.error(error),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let kind = match Mode::from_raw_mode(mode as RawMode) {
            Mode::RegularFile => Kind::File(Content::default()),
            Mode::Socket | Mode::Fifo => Kind::Special(mode),
            _ => return reply.error(Errno::EPERM),
        };
        answer_entry!(reply, self.make(parent, name, kind, mode & !umask, req));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let kind = Kind::Directory(Directory::default());
        answer_entry!(reply, self.make(parent, name, kind, mode & !umask, req));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let kind = Kind::Link(target.to_owned());
        answer_entry!(reply, self.make(parent, name, kind, 0o777, req));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer_empty!(
            reply,
            self.change(|disk| disk.tree().remove(parent.0, name, false))
        );
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer_empty!(
            reply,
            self.change(|disk| disk.tree().remove(parent.0, name, true))
        );
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if flags.intersects(RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_WHITEOUT) {
            return reply.error(Errno::EINVAL);
        }
        if parent != new_parent {
            return reply.error(Errno::EXDEV);
        }
        let replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
        answer_empty!(
            reply,
            self.change(|disk| disk.tree().rename(parent.0, name, new, replace))
        );
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.on(|disk| {
            disk.tree().node_mut(ino.0)?.open += 1;
            Ok(())
        });
        match opened {
            Ok(()) => reply.opened(FileHandle(0), how(flags.0)),
            Err(error) => reply.error(error),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let kind = Kind::File(Content::default());
        let made = self
            .make(parent, name, kind, mode & !umask, req)
            .and_then(|attributes| {
                self.on(|disk| {
                    disk.tree().node_mut(attributes.ino.0)?.open += 1;
                    Ok(attributes)
                })
            });
        match made {
            Ok(attributes) => {
                reply.created(&ASK_AGAIN, &attributes, Generation(0), FileHandle(0), how(flags));
            }
            Err(error) => reply.error(error),
        }
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let closed = self.on(|disk| {
            let node = disk.tree().node_mut(ino.0)?;
            node.open = node.open.saturating_sub(1);
            Ok(())
        });
        answer_empty!(reply, closed);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.on(|disk| Ok(disk.tree().file(ino.0)?.read(offset, size.into()))) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let durable = flags.0 & DSYNC != 0;
        let written = self.change(|disk| {
            disk.tree().file_mut(ino.0)?.write(offset, data);
            if durable {
                disk.sync_range(ino.0, offset..offset + data.len() as u64)?;
            }
            Ok(u32::try_from(data.len()).unwrap_or(u32::MAX))
        });
        match written {
            Ok(count) => reply.written(count),
            Err(error) => reply.error(error),
        }
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer_empty!(reply, self.change(|disk| disk.sync_file(ino.0)));
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer_empty!(reply, self.change(|disk| disk.sync_directory(ino.0)));
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.on(|disk| {
            let tree = disk.tree();
            let mut entries = vec![
                (ino.0, FileType::Directory, ".".into()),
                (ino.0, FileType::Directory, "..".into()),
            ];
            for (name, node) in tree.directory(ino.0)?.entries() {
                entries.push((node, file_type(&tree.node(node)?.kind), name.clone()));
            }
            Ok(entries)
        });
        let entries = match listed {
            Ok(entries) => entries,
            Err(error) => return reply.error(error),
        };
        for (place, (node, kind, name)) in (1..)
            .zip(entries)
            .skip(usize::try_from(offset).unwrap_or(usize::MAX))
        {
            if reply.add(INodeNo(node), place, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.on(|disk| Ok(CAPACITY.saturating_sub(disk.tree().blocks()))) {
            Ok(free) => reply.statfs(CAPACITY, free, free, 1 << 20, 1 << 20, 4096, 255, 4096),
            Err(error) => reply.error(error),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let flags = FallocateFlags::from_bits_retain(u32::try_from(mode).unwrap_or(u32::MAX));
        let kind = flags & !FallocateFlags::KEEP_SIZE;
        let done = self.change(|disk| {
            let content = disk.tree().file_mut(ino.0)?;
            let end = offset.saturating_add(length);
            if !flags.contains(FallocateFlags::KEEP_SIZE) && end > content.length() {
                content.set_length(end);
            }
            if kind == FallocateFlags::PUNCH_HOLE {
                content.zero(offset..end.min(content.length()), false);
            } else if kind == FallocateFlags::ZERO_RANGE {
                content.zero(offset..end.min(content.length()), true);
            } else if !kind.is_empty() {
                return Err(rustix::io::Errno::OPNOTSUPP);
            }
            Ok(())
        });
        answer_empty!(reply, done);
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let found = self.on(|disk| {
            let offset = u64::try_from(offset).map_err(|_| rustix::io::Errno::INVAL)?;
            if whence != SEEK_DATA && whence != SEEK_HOLE {
                return Err(rustix::io::Errno::INVAL);
            }
            let found = disk.tree().file(ino.0)?.seek(offset, whence == SEEK_HOLE);
            found
                .and_then(|at| i64::try_from(at).ok())
                .ok_or(rustix::io::Errno::NXIO)
        });
        match found {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(error),
        }
    }
}
