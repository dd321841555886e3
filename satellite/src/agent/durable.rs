//! Files that are replaced whole: after a crash at any instant a reader finds the old content or the new
//! one, never a mixture and never nothing.
//!
//! Not here: what the content means.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// End of the name of a file that is being written. One found later is what a crash left.
pub const TEMPORARY: &str = ".new";

/// Why a file could not be replaced. The old content is still there.
#[derive(Debug, Error)]
#[error("cannot write {}: {source}", path.display())]
pub struct ReplaceError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Why a record could not be read.
#[derive(Debug)]
pub enum Unreadable {
    /// The system refused.
    Read(io::Error),
    /// Not what was written.
    Damaged(serde_json::Error),
    /// Of a later release, with the version it says.
    Newer(u32),
}

/// Reads a record that begins with its version; none where there is no file. The version is looked at first: what
/// else a later one holds says nothing to this release.
pub fn read_record<T: DeserializeOwned>(path: &Path, newest: u32) -> Result<Option<T>, Unreadable> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Unreadable::Read(source)),
    };
    let Version { version } = serde_json::from_slice(&text).map_err(Unreadable::Damaged)?;
    if version > newest {
        return Err(Unreadable::Newer(version));
    }
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(Unreadable::Damaged)
}

/// Replaces the content of `path`. When it returns, the new content is on disk.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), ReplaceError> {
    try_replace(path, content).map_err(|source| ReplaceError {
        path: path.to_owned(),
        source,
    })
}

fn try_replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not the path of a file",
        ));
    };
    let mut name = name.to_owned();
    name.push(TEMPORARY);
    let temporary = directory.join(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    // Without this the rename may reach the disk before the content: an empty file after a power cut.
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_directory(directory)
}

/// Makes creations, renames and removals in a directory durable.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
