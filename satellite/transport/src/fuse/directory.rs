//! The two nodes there are: their attributes and the root's listing.

use zerocopy::IntoBytes;

use super::connection::{FILE_NAME, FILE_NODE};
use super::wire::{Attr, Dirent, EntryOut, ROOT, StatfsOut};

/// Block size that `stat` and `statfs` tell; the latter becomes the loop device's discard granularity.
const BLOCK: u32 = 4096;

/// How long the kernel may believe names and attributes, seconds: they change only when we say so.
pub(super) const VALIDITY: u64 = 365 * 24 * 3600;

const DIRECTORY_MODE: u32 = 0o040_000;
const FILE_MODE: u32 = 0o100_000;

/// Attributes of a node, when it is one of the two.
pub(super) fn attributes(node: u64, size: u64, read_only: bool) -> Option<Attr> {
    let (size, mode, nlink) = match node {
        ROOT => (0, DIRECTORY_MODE | 0o500, 2),
        FILE_NODE => (size, FILE_MODE | if read_only { 0o400 } else { 0o600 }, 1),
        _ => return None,
    };
    Some(Attr {
        ino: node,
        size,
        blocks: size.div_ceil(512),
        atime: 0,
        mtime: 0,
        ctime: 0,
        atimensec: 0,
        mtimensec: 0,
        ctimensec: 0,
        mode,
        nlink,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    })
}

/// What LOOKUP answers.
pub(super) fn entry(attr: Attr) -> EntryOut {
    EntryOut {
        node: attr.ino,
        generation: 0,
        entry_valid: VALIDITY,
        attr_valid: VALIDITY,
        entry_valid_nsec: 0,
        attr_valid_nsec: 0,
        attr,
    }
}

/// What STATFS answers. Nothing is free: the file has its size and no other can be made.
pub(super) fn statfs(size: u64) -> StatfsOut {
    StatfsOut {
        blocks: size.div_ceil(u64::from(BLOCK)),
        bfree: 0,
        bavail: 0,
        files: 2,
        ffree: 0,
        bsize: BLOCK,
        namelen: 255,
        frsize: BLOCK,
        padding: 0,
        spare: [0; 6],
    }
}

/// Entries of the root after the one with the cookie `offset`, in at most `size` bytes.
pub(super) fn list(offset: u64, size: u32) -> Vec<u8> {
    let room = usize::try_from(size).unwrap_or(usize::MAX);
    let names: [(&str, u64, u32); 3] = [
        (".", ROOT, DIRECTORY_MODE),
        ("..", ROOT, DIRECTORY_MODE),
        (FILE_NAME, FILE_NODE, FILE_MODE),
    ];
    let mut entries = Vec::new();
    for ((name, ino, mode), cookie) in names
        .into_iter()
        .zip(1u64..)
        .filter(|(_, cookie)| *cookie > offset)
    {
        let length = (size_of::<Dirent>() + name.len()).next_multiple_of(8);
        if entries.len() + length > room {
            break;
        }
        // The names are ours and short.
        let namelen = u32::try_from(name.len()).unwrap_or(0);
        let end = entries.len() + length;
        entries.extend_from_slice(
            Dirent {
                ino,
                off: cookie,
                namelen,
                kind: mode >> 12,
            }
            .as_bytes(),
        );
        entries.extend_from_slice(name.as_bytes());
        entries.resize(end, 0);
    }
    entries
}
