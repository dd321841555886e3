//! Making and opening a replica's two files, or thin volumes.
//!
//! A replica exists once its metadata file has its name: data and metadata are made under other names,
//! made durable, and renamed data first. A crash in between leaves files that the next attempt replaces.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use stor_device::file::{self, DataFile, OpenData, OpenDataError};
use stor_replication::disk::{FormatError, PAGE, PageId, SLOTS, Superblock, encode_page};
use stor_replication::range::{MAX_VOLUME, REGION};
use stor_replication::replica::{LoadError, Replica};
use stor_replication::time::Time;
use thiserror::Error;

use super::{ReplicaSpec, mended, pre_sync, snapshot, thin};
use crate::data::Data;
use crate::failure;
use crate::pool::backing::Room;
use crate::pool::lvm::ThinError;

/// Why a replica can't be served.
#[derive(Debug, Error)]
pub(super) enum OpenError {
    /// Its files are not there, and it is not to be made.
    #[error("its files are not there")]
    Missing,
    /// The data file.
    #[error(transparent)]
    Data(#[from] OpenDataError),
    /// The data file is too small for the volume.
    #[error("{path} has {found} bytes, the volume {expected}: it was cut off or belongs to another volume")]
    Short {
        /// The file.
        path: PathBuf,
        /// Bytes there.
        found: u64,
        /// Bytes needed.
        expected: u64,
    },
    /// Doing something with a file.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// What was done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// See [`ThinError`].
    #[error(transparent)]
    Thin(#[from] ThinError),
    /// Another process has it, or I/O that one began is not over yet.
    #[error("{path} is in use: another satellite serves it, or I/O of one that ended is still under way")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The metadata can't be used.
    #[error("{path}: {source}")]
    Metadata {
        /// The file.
        path: PathBuf,
        /// Why.
        source: LoadError<io::Error>,
    },
}

impl OpenError {
    /// The files are there and can't be used, and that does not change by itself.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Short { .. } => true,
            Self::Metadata { source, .. } => matches!(
                source,
                LoadError::Format(FormatError::Superblock | FormatError::Empty)
            ),
            Self::Missing | Self::Data(_) | Self::File { .. } | Self::Thin(_) | Self::InUse { .. } => false,
        }
    }
}

/// The opened files of a replica, with all of its metadata in memory.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) data: OwnedFd,
    pub(super) meta: OwnedFd,
    data_size: u64,
    /// Of a block device: the chunks in which space is given back.
    pub(super) chunk: Option<u64>,
    /// What the replica held before a resync is there, or something of it.
    pub(super) pre_sync: bool,
    /// What of the metadata was damaged and done without, in words.
    pub(super) mended: String,
    /// What the state machine will ask for, by offset.
    pages: HashMap<u64, Vec<u8>>,
}

impl Files {
    /// Makes the state machine; reads nothing any more.
    pub(super) fn load(&self, spec: &ReplicaSpec, now: Time) -> Result<Replica<Data>, OpenError> {
        let mut read = |offset: u64, _: usize| {
            self.pages
                .get(&offset)
                .cloned()
                .ok_or(io::ErrorKind::NotFound.into())
        };
        let core = Replica::load(spec.volume, spec.replica, spec.cache, now, &mut read)
            .map_err(bad_metadata(spec))?;
        let expected = core.superblock().size;
        if self.data_size < expected {
            return Err(OpenError::Short {
                path: spec.data.clone(),
                found: self.data_size,
                expected,
            });
        }
        Ok(core)
    }
}

/// Makes the files, if asked and needed. May take a while: it flushes. Not for the data thread.
pub(super) fn make_if_asked(spec: &ReplicaSpec) -> Result<(), OpenError> {
    if let Room::Thin(room) = &spec.room {
        return thin::make_if_asked(spec, room);
    }
    if exists(&spec.meta)? {
        return Ok(());
    }
    let Some(in_sync) = spec.create else {
        return Err(OpenError::Missing);
    };
    let (data, meta) = (unfinished(&spec.data), unfinished(&spec.meta));
    for leftover in [&data, &meta, &spec.data] {
        remove(leftover)?;
    }
    pre_sync::drop_all(&spec.data).map_err(at("remove", &pre_sync::path_of(&spec.data)))?;
    match &spec.source {
        None => {
            let made = file::open_data(&data, OpenData::Create { size: spec.size })?;
            rustix::fs::fsync(&made.fd).map_err(|error| at("flush", &data)(error.into()))?;
        }
        Some(copy) => {
            snapshot::restore(copy, &data, spec.size).map_err(at("make it from the snapshot", copy))?;
        }
    }
    failure::point("replica-data");
    make_meta(spec, &meta, in_sync).map_err(at("make", &meta))?;
    failure::point("replica-meta");
    fs::rename(&data, &spec.data).map_err(at("name", &spec.data))?;
    sync_parent(&spec.data)?;
    failure::point("replica-data-named");
    fs::rename(&meta, &spec.meta).map_err(at("name", &spec.meta))?;
    sync_parent(&spec.meta)?;
    failure::point("replica-made");
    Ok(())
}

/// The metadata's first bytes, and how long it is: the first superblock, and zeroes where the dirty map of a volume of this size will be: a bit that is set
/// for the first time must not have to find space.
pub(super) fn first_pages(spec: &ReplicaSpec, in_sync: bool) -> (Vec<u8>, u64) {
    let member = in_sync.then_some(spec.replica);
    let superblock = Superblock::fresh(spec.size, spec.lineage, spec.cache, member);
    let page = encode_page(
        PageId::Superblock,
        spec.volume,
        spec.replica,
        0,
        &superblock.encode(),
    );
    let bits = stor_replication::disk::BITS;
    let pages = spec.size.div_ceil(REGION).div_ceil(bits);
    let end = PageId::Dirty(pages).offset(false);
    let mut first = page.to_vec();
    // Some MiB for the largest volume.
    first.resize(usize::try_from(end).unwrap_or(PAGE), 0);
    let slots = u8::try_from(SLOTS).unwrap_or(u8::MAX);
    let whole = PageId::OutOfSync(slots, 0).offset(false);
    debug_assert!(
        whole > end && MAX_VOLUME > spec.size,
        "the maps of the largest volume fit"
    );
    (first, whole)
}

fn make_meta(spec: &ReplicaSpec, path: &Path, in_sync: bool) -> io::Result<()> {
    let (first, whole) = first_pages(spec, in_sync);
    let mut file = File::create_new(path)?;
    file.write_all(&first)?;
    file.set_len(whole)?;
    file.sync_all()
}

/// Opens a replica that is there and reads its metadata. May take a while: not for the data thread.
pub(super) fn open(spec: &ReplicaSpec) -> Result<Files, OpenError> {
    let there = match &spec.room {
        Room::Directory(_) => exists(&spec.meta)?,
        Room::Thin(room) => thin::exists(spec, room)?,
    };
    if !there {
        return Err(OpenError::Missing);
    }
    // Before anything is read: what is in flight below may still change it.
    let data = open_existing(&spec.data)?;
    take(&data.fd, &spec.data)?;
    let meta = open_existing(&spec.meta)?;
    take(&meta.fd, &spec.meta)?;
    let mut reader = File::open(&spec.meta).map_err(at("open", &spec.meta))?;
    let mut pages = HashMap::new();
    let mut read = |offset: u64, len: usize| -> io::Result<Vec<u8>> {
        reader.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::with_capacity(len);
        (&mut reader).take(len as u64).read_to_end(&mut bytes)?;
        pages.insert(offset, bytes.clone());
        Ok(bytes)
    };
    // Loaded once here, to learn which pages it takes, and once more where it will live.
    let probe = Replica::<()>::load(spec.volume, spec.replica, spec.cache, Time::default(), &mut read);
    let probe = probe.map_err(bad_metadata(spec))?;
    let mended = mended::tell(spec, probe.superblock(), &pages);
    Ok(Files {
        mended,
        data: data.fd,
        meta: meta.fd,
        data_size: data.size,
        chunk: data.discards,
        pre_sync: pre_sync::exists(&spec.data),
        pages,
    })
}

fn bad_metadata(spec: &ReplicaSpec) -> impl FnOnce(LoadError<io::Error>) -> OpenError {
    let path = spec.meta.clone();
    move |source| OpenError::Metadata { path, source }
}

/// Opens a file or block device; the latter for this process alone, as [`take`] does it for a file.
fn open_existing(path: &Path) -> Result<DataFile, OpenError> {
    file::open_data(path, OpenData::Existing).map_err(|error| match error {
        OpenDataError::Open { source, .. } if source.kind() == io::ErrorKind::ResourceBusy => {
            OpenError::InUse {
                path: path.to_owned(),
            }
        }
        other => other.into(),
    })
}

/// Takes a file for this process alone. The kernel gives such a lock back when the last reference to the
/// open file goes, and a request in flight is one: a satellite that was killed keeps it until the last
/// write it had begun is over. Whoever gets it has nothing old below it (R4, case 11).
//= docs/replication.md#R4
fn take(file: &OwnedFd, path: &Path) -> Result<(), OpenError> {
    match rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse {
            path: path.to_owned(),
        }),
        Err(error) => Err(at("lock", path)(error.into())),
    }
}

fn exists(path: &Path) -> Result<bool, OpenError> {
    path.try_exists().map_err(at("look for", path))
}

fn remove(path: &Path) -> Result<(), OpenError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(error)),
        _ => Ok(()),
    }
}

fn sync_parent(path: &Path) -> Result<(), OpenError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    file::fsync_dir(parent).map_err(at("flush", parent))
}

fn unfinished(path: &Path) -> PathBuf {
    path.with_added_extension("unfinished")
}

pub(super) fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::File {
        what,
        path: path.to_owned(),
        source,
    }
}
