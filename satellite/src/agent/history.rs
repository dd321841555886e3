//! Which history of the catalogue this node follows.
//!
//! A catalogue restored from a backup begins a history of its own, one generation above the backup's. Controllers of
//! the history before may still run somewhere, and two restores may have been made of the same backup. Following
//! both would be following two catalogues that give the same epochs away. So a node that has heard a generation
//! never goes back to a lower one, nor to another history of the same.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::durable::{self, ReplaceError, Unreadable};

/// The newest version this program reads.
const VERSION: u32 = 1;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Followed {
    version: u32,
    history: String,
    generation: u64,
}

/// Why the record could not be used.
#[derive(Debug, Error)]
pub enum PinError {
    /// The system refused.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not what was written.
    #[error("{} is damaged ({source}). It records which catalogue this node follows. If no catalogue was restored \
             lately, delete it and start again; otherwise stop the controllers of the old one first", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Of a later release.
    #[error("{} has version {version}, this stor-satellite reads up to {VERSION}: install the newer release", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// What it says.
        version: u32,
    },
    /// See [`ReplaceError`].
    #[error(transparent)]
    Write(#[from] ReplaceError),
    /// Controllers of a catalogue that was superseded, or of a second restore of the same backup.
    #[error(
        "its catalogue (history {history}, generation {generation}) is not the one this node follows \
         (history {followed}, generation {above}): stop the controllers of the one that is given up"
    )]
    Superseded {
        /// Theirs.
        history: String,
        /// Theirs.
        generation: u64,
        /// Ours.
        followed: String,
        /// Ours.
        above: u64,
    },
}

/// The record and its file.
#[derive(Debug)]
pub struct Pin {
    path: PathBuf,
    followed: Option<Followed>,
}

impl Pin {
    /// Reads the record; an absent file follows whoever comes first.
    pub fn load(path: &Path) -> Result<Self, PinError> {
        let path = path.to_owned();
        match durable::read_record(&path, VERSION) {
            Ok(followed) => Ok(Self { path, followed }),
            Err(Unreadable::Read(source)) => Err(PinError::Read { path, source }),
            Err(Unreadable::Damaged(source)) => Err(PinError::Damaged { path, source }),
            Err(Unreadable::Newer(version)) => Err(PinError::Newer { path, version }),
        }
    }

    /// Follows a catalogue from now on, durably, or refuses it.
    pub fn admit(&mut self, history: &str, generation: u64) -> Result<(), PinError> {
        match &self.followed {
            Some(known) if known.history == history => return Ok(()),
            // A controller of a release that knows no histories, which can't have been restored.
            None if history.is_empty() => return Ok(()),
            Some(known) if known.generation == 0 && history.is_empty() => return Ok(()),
            Some(known) if generation <= known.generation => {
                return Err(PinError::Superseded {
                    history: history.to_owned(),
                    generation,
                    followed: known.history.clone(),
                    above: known.generation,
                });
            }
            Some(known) => tracing::warn!(
                history, generation, before = %known.history,
                "the catalogue was restored from a backup; this node follows the new history from here on"
            ),
            None => {}
        }
        let followed = Followed {
            version: VERSION,
            history: history.to_owned(),
            generation,
        };
        let text = serde_json::to_vec(&followed).map_err(|source| PinError::Damaged {
            path: self.path.clone(),
            source,
        })?;
        durable::replace(&self.path, &text)?;
        self.followed = Some(followed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_node_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.json");
        let mut pin = Pin::load(&path).unwrap();
        pin.admit("", 0).unwrap();
        pin.admit("a", 0).unwrap();
        pin.admit("", 0).unwrap();
        assert!(pin.admit("b", 0).is_err(), "another cluster");
        pin.admit("c", 1).unwrap();
        let mut pin = Pin::load(&path).unwrap();
        for (history, generation) in [("a", 0), ("d", 1), ("", 0), ("e", 0)] {
            let refused = pin.admit(history, generation);
            assert!(matches!(refused, Err(PinError::Superseded { .. })), "{history}");
        }
        pin.admit("c", 1).unwrap();
        pin.admit("f", 5).unwrap();
        fs::write(&path, b"{").unwrap();
        assert!(matches!(Pin::load(&path), Err(PinError::Damaged { .. })));
        fs::write(&path, br#"{"version":2,"otherwise":9}"#).unwrap();
        assert!(matches!(
            Pin::load(&path),
            Err(PinError::Newer { version: 2, .. })
        ));
    }
}
