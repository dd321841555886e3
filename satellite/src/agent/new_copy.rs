//! A copy of a snapshot while it is made anew: a file or thin volume under an unfinished name, which begins by sharing
//! what it can with other data of its volume. It gets its name when it is equal to another copy and durable.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use stor_device::file;
use stor_replication::ids::{ReplicaId, VolumeId};
use stor_replication::range::ByteRange;
use stor_replication::recopy::{Digest, Target};

use super::copies::CopyKey;
use crate::failure;
use crate::pool::backing::Room;
use crate::pool::lvm::room::{Part, ThinRoom};
use crate::replicas::content::Content;
use crate::replicas::snapshot;

/// Below this part of a pool's space no copy is made anew: the rest is for the volumes in it.
const RESERVE: u64 = 20;

/// What a copy may begin as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Base {
    /// Another copy in the same pool.
    Copy(CopyKey),
    /// What a replica in the same pool holds now.
    Replica(VolumeId, ReplicaId),
}

/// See the module.
#[derive(Debug)]
pub(super) struct NewCopy {
    room: Room,
    key: CopyKey,
    size: u64,
    bases: Vec<Base>,
    content: Option<Content>,
}

impl NewCopy {
    /// Of a snapshot of `size` bytes. Nothing is done yet.
    pub(super) fn new(room: &Room, key: CopyKey, size: u64, bases: Vec<Base>) -> Self {
        Self {
            room: room.clone(),
            key,
            size,
            bases,
            content: None,
        }
    }

    /// It has its name already, and was made before: by an attempt whose end nobody heard of.
    pub(super) fn is_whole(&self) -> Result<bool, String> {
        match &self.room {
            Room::Directory(_) => {
                let path = self.room.copy(self.key);
                path.try_exists()
                    .map_err(|error| format!("cannot look at {}: {error}", path.display()))
            }
            Room::Thin(room) => {
                let found = room.named(&name(self.key)).map_err(|error| error.to_string())?;
                Ok(found.is_some())
            }
        }
    }

    /// Makes what is to be written to, or goes on with what an earlier attempt has left.
    pub(super) fn begin(&mut self) -> Result<(), String> {
        let mut content = match &self.room {
            Room::Directory(_) => self.begin_file()?,
            Room::Thin(room) => self.begin_thin(room)?,
        };
        content
            .cut(self.size)
            .map_err(|error| format!("cannot give it its size: {error}"))?;
        self.content = Some(content);
        Ok(())
    }

    fn begin_file(&self) -> Result<Content, String> {
        let path = snapshot::unfinished(&self.room.copy(self.key));
        let directory = path.parent().unwrap_or(Path::new("/"));
        let told = |doing: &'static str, path: &Path| {
            let path = path.display().to_string();
            move |error: io::Error| format!("cannot {doing} {path}: {error}")
        };
        let space = file::space(directory).map_err(told("look at the space of", directory))?;
        if space.available < space.total / RESERVE {
            return Err(format!("less than 1/{RESERVE} of the pool is free"));
        }
        let there = path.try_exists().map_err(told("look at", &path))?;
        if !there {
            let to = OpenOptions::new()
                .create_new(true)
                .read(true)
                .write(true)
                .mode(0o600)
                .open(&path)
                .map_err(told("make", &path))?;
            failure::point("recopy-begun");
            for base in &self.bases {
                let shared = fs::File::open(self.base(*base))
                    .and_then(|from| Ok(rustix::fs::ioctl_ficlone(&to, &from)?));
                match shared {
                    Ok(()) => break,
                    // Then all of it is copied.
                    Err(error) => {
                        tracing::debug!(path = %path.display(), ?base, %error, "no blocks to share");
                    }
                }
            }
        }
        Content::open_to_write(&path).map_err(told("open", &path))
    }

    fn begin_thin(&self, room: &ThinRoom) -> Result<Content, String> {
        let told = |error: crate::pool::lvm::ThinError| error.to_string();
        let (data_used, data) = room.fill().map_err(told)?.data;
        if data.saturating_sub(data_used) < data / RESERVE {
            return Err(format!("less than 1/{RESERVE} of the pool is free"));
        }
        let unfinished = ThinRoom::unfinished(&name(self.key));
        if room.named(&unfinished).map_err(told)?.is_none() {
            let of = |base: &Base| match base {
                Base::Copy(key) => name(*key),
                Base::Replica(volume, replica) => ThinRoom::name(*volume, *replica, Part::Data),
            };
            // One that is smaller would have to grow, and nothing is behind its end in the others.
            let fits = |name: &String| {
                let found = room.named(name);
                matches!(found, Ok(Some(lv)) if lv.size >= self.size)
            };
            match self.bases.iter().map(of).find(fits) {
                Some(base) => room.share(&base, &unfinished).map_err(told)?,
                None => room.carve(&unfinished, self.size).map_err(told)?,
            }
        }
        let made = room.named(&unfinished).map_err(told)?;
        let lv = made.ok_or_else(|| format!("{unfinished} was just made and is not there"))?;
        room.activate(&[&lv]).map_err(told)?;
        let lv = room.named(&unfinished).map_err(told)?.unwrap_or(lv);
        room.make_nodes(&[&lv]);
        room.check_node(&lv).map_err(told)?;
        let path = room.node(&unfinished);
        Content::open_to_write(&path).map_err(|error| format!("cannot open {}: {error}", path.display()))
    }

    fn base(&self, base: Base) -> PathBuf {
        match base {
            Base::Copy(key) => self.room.copy(key),
            Base::Replica(volume, replica) => self.room.replica((volume, replica)).0,
        }
    }

    fn content(&self) -> io::Result<&Content> {
        let none = || io::Error::other("it was not begun");
        self.content.as_ref().ok_or_else(none)
    }

    fn give_name(&mut self) -> Result<(), String> {
        // A volume that is open can be renamed, but not by everything that may come next.
        self.content = None;
        match &self.room {
            Room::Directory(_) => {
                let path = self.room.copy(self.key);
                let directory = path.parent().unwrap_or(Path::new("/"));
                failure::point("recopy-to-name");
                fs::rename(snapshot::unfinished(&path), &path)
                    .and_then(|()| file::fsync_dir(directory))
                    .map_err(|error| format!("cannot name {}: {error}", path.display()))
            }
            Room::Thin(room) => {
                let name = name(self.key);
                let renamed = room.rename(&ThinRoom::unfinished(&name), &name);
                renamed.map_err(|error| error.to_string())
            }
        }
    }
}

fn name((volume, snapshot, replica): CopyKey) -> String {
    ThinRoom::copy_name(volume, snapshot, replica)
}

//= docs/replication.md#S6
impl Target<Vec<u8>> for NewCopy {
    type Error = String;

    fn digests(&mut self, range: ByteRange) -> Result<Vec<Digest>, String> {
        let found = self.content().and_then(|content| content.digests(range));
        found.map_err(|error| error.to_string())
    }

    fn write(&mut self, range: ByteRange, data: Vec<u8>) -> Result<(), String> {
        let written = self.content().and_then(|content| content.write(range, &data));
        failure::point("recopy-written");
        written.map_err(|error| error.to_string())
    }

    fn free(&mut self, range: ByteRange) -> Result<(), String> {
        let freed = self.content().and_then(|content| content.free(range));
        freed.map_err(|error| error.to_string())
    }

    fn flush(&mut self) -> Result<(), String> {
        let flushed = self.content().and_then(Content::flush);
        failure::point("recopy-flushed");
        flushed.map_err(|error| error.to_string())
    }

    fn name(&mut self) -> Result<(), String> {
        self.give_name()
    }
}
