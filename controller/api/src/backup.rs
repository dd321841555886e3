//! The file of a backup: the catalogue as one SQLite database behind a head that says whose it is.
//!
//! ```text
//!  0  magic "STORBKUP"
//!  8  version, u32 LE
//! 12  length of the description, u32 LE
//! 16  length of the database, u64 LE
//! 24  zero
//! 32  BLAKE3 of bytes 0..32, the description and the database, 32 bytes
//! 64  the description: JSON
//!  …  the database
//! ```
//!
//! The checksum covers every byte but itself. Nothing of a file is used before it was compared.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The newest version this program reads, and the one it writes.
pub const VERSION: u32 = 1;
/// Bytes before the description.
pub const HEAD: usize = 64;

const MAGIC: &[u8; 8] = b"STORBKUP";
const CHECKED: usize = 32;
/// No description is longer.
const LONGEST: usize = 64 << 10;
const CHUNK: usize = 256 << 10;

/// What a backup is of. Fields of later versions are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Identity of the cluster.
    pub cluster_id: String,
    /// History of the catalogue; another one begins with each restore.
    pub history: String,
    /// Restores before it.
    pub generation: u64,
    /// Last entry in it.
    pub applied: u64,
    /// When it was made, RFC 3339.
    pub at: String,
    /// Version of the controller that made it.
    pub version: String,
    /// Name of that controller.
    pub controller: String,
    /// It holds everything that was acknowledged before it was made; otherwise what that controller had, without
    /// asking the others.
    pub complete: bool,
    /// Controllers of the cluster, by name.
    pub controllers: Vec<String>,
}

/// A backup can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else.
    #[error("{} is no backup of a catalogue: it does not begin like one", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Of a later version.
    #[error("{} has version {found}, this program reads up to {VERSION}: use the newer one", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Not what was written.
    #[error("{} is damaged: {what}; use another copy of it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
}

fn file_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::File { doing, path, source }
}

/// Everything before the database, for the database in `database`, which is read once.
pub fn head(description: &Description, database: &Path) -> Result<Vec<u8>, BackupError> {
    let json = serde_json::to_vec(description).map_err(|error| BackupError::File {
        doing: "describe",
        path: database.to_owned(),
        source: io::Error::other(error),
    })?;
    let mut file = File::open(database).map_err(file_error("open", database))?;
    let length = file.metadata().map_err(file_error("look at", database))?.len();
    let mut head = Vec::with_capacity(HEAD + json.len());
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&u32::try_from(json.len()).unwrap_or(u32::MAX).to_le_bytes());
    head.extend_from_slice(&length.to_le_bytes());
    head.extend_from_slice(&[0; 8]);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head).update(&json);
    let read =
        pass(&mut file, u64::MAX, &mut hasher, &mut io::sink()).map_err(file_error("read", database))?;
    if read != length {
        return Err(BackupError::Damaged {
            path: database.to_owned(),
            what: "its length changed while it was read",
        });
    }
    head.extend_from_slice(hasher.finalize().as_bytes());
    head.extend_from_slice(&json);
    Ok(head)
}

/// Checks a file to its last byte.
pub fn check(path: &Path) -> Result<Description, BackupError> {
    read(path, &mut io::sink(), path)
}

/// Checks a file and writes its database to `to`, durably. When it fails, `to` holds nothing to be used.
pub fn extract(path: &Path, to: &Path) -> Result<Description, BackupError> {
    let mut file = File::create(to).map_err(file_error("create", to))?;
    let description = read(path, &mut file, to)?;
    file.sync_all().map_err(file_error("sync", to))?;
    Ok(description)
}

fn read(path: &Path, out: &mut impl Write, to: &Path) -> Result<Description, BackupError> {
    let damaged = |what| BackupError::Damaged {
        path: path.to_owned(),
        what,
    };
    let short = |source: io::Error| match source.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it is cut off"),
        _ => file_error("read", path)(source),
    };
    let mut file = File::open(path).map_err(file_error("open", path))?;
    let mut head = [0; HEAD];
    let mut begin = Vec::new();
    let begun = (&mut file).take(HEAD as u64).read_to_end(&mut begin);
    begun.map_err(file_error("read", path))?;
    if !begin.starts_with(MAGIC) {
        return Err(BackupError::Foreign {
            path: path.to_owned(),
        });
    }
    if begin.len() < HEAD {
        return Err(damaged("it is cut off"));
    }
    head.copy_from_slice(&begin);
    // Before the checksum: a later version may compute another one.
    let found = word(&head, 8);
    if found > VERSION {
        return Err(BackupError::Newer {
            path: path.to_owned(),
            found,
        });
    }
    let described = usize::try_from(word(&head, 12)).unwrap_or(usize::MAX);
    if described > LONGEST {
        return Err(damaged("its description is too long"));
    }
    let mut json = vec![0; described];
    file.read_exact(&mut json).map_err(short)?;
    let length = u64::from(word(&head, 16)) | u64::from(word(&head, 20)) << 32;
    let (checked, sum) = head.split_at(CHECKED);
    let mut hasher = blake3::Hasher::new();
    hasher.update(checked).update(&json);
    let passed = pass(&mut file, length, &mut hasher, out).map_err(file_error("copy", to))?;
    if passed != length {
        return Err(damaged("it is cut off"));
    }
    if file.read(&mut [0]).map_err(file_error("read", path))? != 0 {
        return Err(damaged("it is longer than it says"));
    }
    if hasher.finalize().as_bytes() != sum {
        return Err(damaged("its checksum is wrong"));
    }
    serde_json::from_slice(&json).map_err(|_| damaged("its description can't be read"))
}

fn word(head: &[u8; HEAD], at: usize) -> u32 {
    let bytes = head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    u32::from_le_bytes(bytes.unwrap_or_default())
}

/// Reads up to `limit` bytes into the hash and `out`; says how many there were.
fn pass(
    from: &mut impl Read,
    limit: u64,
    hasher: &mut blake3::Hasher,
    out: &mut impl Write,
) -> io::Result<u64> {
    let mut from = from.take(limit);
    let mut buffer = vec![0; CHUNK];
    let mut passed = 0;
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(passed),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let bytes = buffer.get(..read).unwrap_or_default();
        hasher.update(bytes);
        out.write_all(bytes)?;
        passed += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description() -> Description {
        Description {
            cluster_id: "c".into(),
            history: "h".into(),
            generation: 1,
            applied: 42,
            at: "2026-01-01T00:00:00Z".into(),
            version: "0.1.0".into(),
            controller: "c1".into(),
            complete: true,
            controllers: vec!["c1".into()],
        }
    }

    fn backup(dir: &Path) -> (PathBuf, Vec<u8>) {
        let database = dir.join("db");
        let content: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&database, &content).unwrap();
        let mut bytes = head(&description(), &database).unwrap();
        bytes.extend(content);
        let path = dir.join("backup");
        std::fs::write(&path, &bytes).unwrap();
        (path, bytes)
    }

    #[test]
    fn what_was_written_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = backup(dir.path());
        assert_eq!(check(&path).unwrap(), description());
        let to = dir.path().join("out");
        assert_eq!(extract(&path, &to).unwrap(), description());
        assert_eq!(
            std::fs::read(&to).unwrap(),
            std::fs::read(dir.path().join("db")).unwrap()
        );
    }

    #[test]
    fn every_kind_of_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, bytes) = backup(dir.path());
        let places = (0..300).chain([bytes.len() / 2, bytes.len() - 1]);
        for at in places {
            let mut broken = bytes.clone();
            broken[at] ^= 0x10;
            std::fs::write(&path, &broken).unwrap();
            assert!(check(&path).is_err(), "byte {at}");
        }
        for length in [0, 7, 20, 63, 64, 100, 300, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(check(&path).is_err(), "length {length}");
        }
        std::fs::write(&path, [bytes.as_slice(), &[0]].concat()).unwrap();
        assert!(check(&path).is_err(), "a byte too many");
        let mut newer = bytes;
        newer[8] = 2;
        std::fs::write(&path, newer).unwrap();
        assert!(matches!(check(&path), Err(BackupError::Newer { found: 2, .. })));
    }
}
