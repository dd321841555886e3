//! `stor-pool.json` in a pool's directory: whose pool it is.
//!
//! Written at the pool's first use and checked at every start. It keeps two nodes, or two pools, from
//! putting their replicas into one directory, and it tells a pool from the empty mount point under it:
//! without it, a disk that was not mounted at boot would look like a new pool, and replicas would be made
//! empty in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::agent::durable::{self, ReplaceError};

/// Its name in the pool's directory.
pub const MARKER: &str = "stor-pool.json";

/// The newest version this program reads.
const VERSION: u32 = 1;

/// What the marker says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Marker {
    /// Of this layout.
    pub version: u32,
    /// Identity of the pool: made with the marker, never changed.
    pub id: Uuid,
    /// The node that uses it.
    pub node: String,
    /// The pool's name there.
    pub pool: String,
}

impl Marker {
    /// A marker for a directory that has none.
    pub fn new(node: &str, pool: &str) -> Self {
        Self {
            version: VERSION,
            id: Uuid::new_v4(),
            node: node.to_owned(),
            pool: pool.to_owned(),
        }
    }
}

/// Why a marker could not be read or written.
#[derive(Debug, Error)]
pub enum MarkerError {
    /// The system refused.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The marker.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what a satellite wrote.
    #[error("{} is damaged ({source}); if the directory is this pool's, restore the file from a backup, or \
             delete it when the directory holds no volumes", path.display())]
    Damaged {
        /// The marker.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Written by a later release.
    #[error("{} has version {version}, this satellite reads up to {VERSION}: install a newer \
             stor-satellite", path.display())]
    Newer {
        /// The marker.
        path: PathBuf,
        /// What it says.
        version: u32,
    },
    /// It could not be made.
    #[error(transparent)]
    Write(#[from] ReplaceError),
}

/// Reads the marker of a directory; `None` where there is none.
pub fn read(directory: &Path) -> Result<Option<Marker>, MarkerError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let path = directory.join(MARKER);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(MarkerError::Read { path, source }),
    };
    let damaged = |source| MarkerError::Damaged {
        path: path.clone(),
        source,
    };
    let Version { version } = serde_json::from_slice(&text).map_err(damaged)?;
    if version > VERSION {
        return Err(MarkerError::Newer { path, version });
    }
    serde_json::from_slice(&text).map(Some).map_err(damaged)
}

/// Writes the marker of a directory.
pub fn write(directory: &Path, marker: &Marker) -> Result<(), MarkerError> {
    // A struct of strings and numbers always serialises; an error here would be ours, and is still told.
    let path = directory.join(MARKER);
    let text = serde_json::to_vec_pretty(marker).map_err(|source| MarkerError::Damaged {
        path: path.clone(),
        source,
    })?;
    Ok(durable::replace(&path, &text)?)
}

/// Takes the marker away: the directory is nobody's pool any more.
pub fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_file(directory.join(MARKER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => durable::sync_directory(directory),
    }
}
