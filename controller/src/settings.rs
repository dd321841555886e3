//! Who a controller is: `controller.json` in its directory, written by `init` and `join`, read by `run`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stor_raft::PeerInfo;
use thiserror::Error;
use uuid::Uuid;

use crate::policy::Policy;

/// Version of the file this program writes, and the newest it reads.
const FORMAT: u32 = 1;
const FILE: &str = "controller.json";
/// The file before it has its name.
const DRAFT: &str = "controller.json.new";
/// In every new file system, which may be mounted for a controller alone.
const LOST_AND_FOUND: &str = "lost+found";

/// What `controller.json` holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Version of the file.
    format: u32,
    /// Whether `init` or `join` came to its end; if not, it is continued.
    pub complete: bool,
    /// While `init --restore` is not at its end: which backup it is of. What is in the directory then may be emptied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    restoring: Option<String>,
    /// Raft id; random, so that it is never used again.
    pub id: u64,
    /// For people.
    pub name: String,
    /// Where other controllers and satellites are taken.
    pub peer_listen: SocketAddr,
    /// Where the REST API is served.
    pub api_listen: SocketAddr,
    /// `host:port` under which others reach `peer_listen`.
    pub peer_address: String,
    /// `host:port` under which others reach `api_listen`.
    pub api_address: String,
    /// What the cluster does by itself; given at each start.
    #[serde(skip)]
    pub policy: Policy,
}

/// The settings can't be used.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// No `init` or `join` before.
    #[error(
        "{} is not initialised; run `stor-controller init` (a new cluster) or `stor-controller join` first",
        dir.display()
    )]
    Missing {
        /// Directory.
        dir: PathBuf,
    },
    /// An `init` or `join` before.
    #[error("{} is initialised already, as controller {name}; start it with `stor-controller run`", dir.display())]
    Present {
        /// Directory.
        dir: PathBuf,
        /// Who it is.
        name: String,
    },
    /// It was begun as somebody else.
    #[error(
        "{} was begun as controller {name} on {address}; go on with these values, or empty the directory",
        dir.display()
    )]
    Other {
        /// Directory.
        dir: PathBuf,
        /// Who it was.
        name: String,
        /// Where.
        address: String,
    },
    /// `init` or `join` did not end.
    #[error("{} was not set up to the end; repeat the `stor-controller init` or `join` that was interrupted", dir.display())]
    Incomplete {
        /// Directory.
        dir: PathBuf,
    },
    /// A restore was begun in it.
    #[error(
        "in {} a restore from a backup was begun and not ended; repeat it with the same file, or empty the directory",
        dir.display()
    )]
    Restoring {
        /// Directory.
        dir: PathBuf,
    },
    /// Something of a controller is in it.
    #[error(
        "{} holds {file} of a controller, and not who it was ({FILE}); give an empty directory, or bring that file back",
        dir.display()
    )]
    Occupied {
        /// Directory.
        dir: PathBuf,
        /// What was found.
        file: &'static str,
    },
    /// The directory is somebody else's.
    #[error(
        "{} holds other things ({found}); a controller wants a directory of its own: give an empty one, or one that is \
         not there yet", dir.display()
    )]
    Foreign {
        /// Directory.
        dir: PathBuf,
        /// One of them.
        found: String,
    },
    /// From the future.
    #[error(
        "{} was written by a newer version (format {found}, this one knows {FORMAT}); start that version", path.display()
    )]
    Newer {
        /// File.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// Not ours, or damaged.
    #[error("{} is damaged: {source}; restore it from a backup", path.display())]
    Damaged {
        /// File.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The file can't be read or written.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// File or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others can't connect to "any address".
    #[error("{listen} is no address others can connect to; say with {flag} how they reach this machine")]
    NoAddress {
        /// Where it listens.
        listen: SocketAddr,
        /// Flag to give.
        flag: &'static str,
    },
}

/// What `init` and `join` are told.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Name.
    pub name: String,
    /// See [`Settings::peer_listen`].
    pub peer_listen: SocketAddr,
    /// See [`Settings::api_listen`].
    pub api_listen: SocketAddr,
    /// See [`Settings::peer_address`]; absent: `peer_listen`.
    pub peer_address: Option<String>,
    /// See [`Settings::api_address`]; absent: `api_listen`.
    pub api_address: Option<String>,
}

impl Settings {
    /// The settings of a directory that was set up to the end.
    pub fn load(dir: &Path) -> Result<Self, SettingsError> {
        match Self::read(dir)? {
            None => Err(SettingsError::Missing { dir: dir.to_owned() }),
            Some(settings) if !settings.complete => Err(SettingsError::Incomplete { dir: dir.to_owned() }),
            Some(settings) => Ok(settings),
        }
    }

    /// Begins to set up a directory, or goes on where an earlier attempt was cut off: with the same id, since
    /// others may have heard of it.
    pub fn begin(dir: &Path, wanted: Wanted) -> Result<Self, SettingsError> {
        Self::begin_as(dir, wanted, None)
    }

    /// The same for a restore of the backup that `mark` names.
    pub fn begin_restore(dir: &Path, wanted: Wanted, mark: &str) -> Result<Self, SettingsError> {
        Self::begin_as(dir, wanted, Some(mark.to_owned()))
    }

    fn begin_as(dir: &Path, wanted: Wanted, restoring: Option<String>) -> Result<Self, SettingsError> {
        let peer_address = address(wanted.peer_address, wanted.peer_listen, "--peer-address")?;
        let api_address = address(wanted.api_address, wanted.api_listen, "--api-address")?;
        if let Some(present) = Self::read(dir)? {
            if present.complete {
                return Err(SettingsError::Present {
                    dir: dir.to_owned(),
                    name: present.name,
                });
            }
            if present.restoring != restoring {
                return Err(SettingsError::Restoring { dir: dir.to_owned() });
            }
            if present.name != wanted.name || present.peer_address != peer_address {
                return Err(SettingsError::Other {
                    dir: dir.to_owned(),
                    name: present.name,
                    address: present.peer_address,
                });
            }
            return Ok(present);
        }
        fs::create_dir_all(dir).map_err(io_error("cannot create", dir))?;
        for file in ["log.db", "catalogue.db"] {
            if dir.join(file).exists() {
                let dir = dir.to_owned();
                return Err(SettingsError::Occupied { dir, file });
            }
        }
        if let Some(found) = foreign(dir).map_err(io_error("cannot look into", dir))? {
            let dir = dir.to_owned();
            return Err(SettingsError::Foreign { dir, found });
        }
        let settings = Self {
            format: FORMAT,
            complete: false,
            restoring,
            id: random_id(),
            name: wanted.name,
            peer_listen: wanted.peer_listen,
            api_listen: wanted.api_listen,
            peer_address,
            api_address,
            policy: Policy::default(),
        };
        settings.store(dir)?;
        Ok(settings)
    }

    /// Notes that the directory is set up.
    pub fn complete(mut self, dir: &Path) -> Result<Self, SettingsError> {
        self.complete = true;
        self.restoring = None;
        self.store(dir)?;
        Ok(self)
    }

    /// This controller as the others know it.
    pub fn peer(&self) -> PeerInfo {
        PeerInfo {
            id: self.id,
            name: self.name.clone(),
            peer_address: self.peer_address.clone(),
            api_address: self.api_address.clone(),
        }
    }

    fn read(dir: &Path) -> Result<Option<Self>, SettingsError> {
        let path = dir.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(SettingsError::Io {
                    doing: "cannot read",
                    path,
                    source,
                });
            }
        };
        let damaged = |source| SettingsError::Damaged {
            path: path.clone(),
            source,
        };
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(damaged)?;
        let found = value
            .get("format")
            .and_then(serde_json::Value::as_u64)
            .unwrap_or(0);
        if found > u64::from(FORMAT) {
            return Err(SettingsError::Newer { path, found });
        }
        serde_json::from_value(value).map(Some).map_err(damaged)
    }

    /// The old content or the new one after a crash, never a part.
    fn store(&self, dir: &Path) -> Result<(), SettingsError> {
        let (path, draft) = (dir.join(FILE), dir.join(DRAFT));
        let mut text = serde_json::to_vec_pretty(self).map_err(|source| SettingsError::Damaged {
            path: path.clone(),
            source,
        })?;
        text.push(b'\n');
        let write = || {
            let mut file = File::create(&draft)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            File::open(dir)?.sync_all()
        };
        write().map_err(io_error("cannot write", &path))
    }
}

/// What a directory held before a controller was set up in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Before {
    /// It was not there.
    Absent,
    /// Nothing of a controller.
    Empty,
    /// A controller that was set up, or begun to be.
    Controller,
}

impl Before {
    /// Looks.
    pub fn look(dir: &Path) -> Self {
        if dir.join(FILE).exists() {
            Self::Controller
        } else if dir.exists() {
            Self::Empty
        } else {
            Self::Absent
        }
    }

    /// Takes away what was made since, of a controller that nobody has heard of; what was there before stays.
    pub fn restore(self, dir: &Path) -> Result<(), SettingsError> {
        let removed = match self {
            Self::Controller => return Ok(()),
            Self::Absent => fs::remove_dir_all(dir),
            Self::Empty => fs::read_dir(dir).and_then(|entries| {
                for entry in entries {
                    let entry = entry?;
                    if entry.file_name() == LOST_AND_FOUND {
                        continue;
                    }
                    if entry.file_type()?.is_dir() {
                        fs::remove_dir_all(entry.path())?;
                    } else {
                        fs::remove_file(entry.path())?;
                    }
                }
                Ok(())
            }),
        };
        removed.map_err(io_error("cannot empty", dir))
    }
}

/// Something in a directory that is no controller's, nor what every new file system has.
fn foreign(dir: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if name != LOST_AND_FOUND && name != DRAFT {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SettingsError {
    let path = path.to_owned();
    move |source| SettingsError::Io { doing, path, source }
}

fn address(given: Option<String>, listen: SocketAddr, flag: &'static str) -> Result<String, SettingsError> {
    match given {
        Some(address) => Ok(address
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .to_owned()),
        None if listen.ip().is_unspecified() => Err(SettingsError::NoAddress { listen, flag }),
        None => Ok(listen.to_string()),
    }
}

/// 48 random bits: JSON readers keep them exact, and they do not meet twice in one cluster.
fn random_id() -> u64 {
    let random = Uuid::new_v4().as_u64_pair().1;
    (random & ((1 << 48) - 1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(name: &str) -> Wanted {
        Wanted {
            name: name.into(),
            peer_listen: ([127, 0, 0, 1], 3369).into(),
            api_listen: ([127, 0, 0, 1], 3370).into(),
            peer_address: None,
            api_address: Some("http://c1.example:3370/".into()),
        }
    }

    #[test]
    fn a_set_up_that_was_cut_off_goes_on_with_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("new/c1");
        assert!(matches!(Settings::load(&dir), Err(SettingsError::Missing { .. })));
        let begun = Settings::begin(&dir, wanted("c1")).unwrap();
        assert_eq!(
            (begun.peer_address.as_str(), begun.api_address.as_str()),
            ("127.0.0.1:3369", "c1.example:3370")
        );
        assert!(matches!(
            Settings::load(&dir),
            Err(SettingsError::Incomplete { .. })
        ));
        assert!(matches!(
            Settings::begin(&dir, wanted("c2")),
            Err(SettingsError::Other { .. })
        ));
        let again = Settings::begin(&dir, wanted("c1")).unwrap();
        assert_eq!(again, begun);
        let complete = again.complete(&dir).unwrap();
        assert_eq!(Settings::load(&dir).unwrap(), complete);
        assert!(matches!(
            Settings::begin(&dir, wanted("c1")),
            Err(SettingsError::Present { .. })
        ));
    }

    #[test]
    fn a_directory_with_other_things_is_no_controllers() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        fs::create_dir(dir.join(LOST_AND_FOUND)).unwrap();
        fs::write(dir.join(DRAFT), "of an attempt that was cut off").unwrap();
        fs::write(dir.join("letters.txt"), "dear").unwrap();
        let refused = Settings::begin(dir, wanted("c1")).unwrap_err();
        assert!(refused.to_string().contains("letters.txt"), "{refused}");
        assert!(!dir.join(FILE).exists(), "nothing was made");
        fs::rename(dir.join("letters.txt"), dir.join("log.db")).unwrap();
        let refused = Settings::begin(dir, wanted("c1")).unwrap_err();
        assert!(matches!(refused, SettingsError::Occupied { .. }), "{refused}");
        fs::remove_file(dir.join("log.db")).unwrap();
        Settings::begin(dir, wanted("c1")).unwrap();
    }

    #[test]
    fn what_came_to_nothing_is_taken_away_and_nothing_else() {
        let outer = tempfile::tempdir().unwrap();
        let absent = outer.path().join("c1");
        let before = Before::look(&absent);
        Settings::begin(&absent, wanted("c1")).unwrap();
        before.restore(&absent).unwrap();
        assert!(!absent.exists() && outer.path().exists());

        let empty = outer.path().join("disk");
        fs::create_dir_all(empty.join(LOST_AND_FOUND)).unwrap();
        let before = Before::look(&empty);
        Settings::begin(&empty, wanted("c1")).unwrap();
        fs::create_dir(empty.join("snapshots")).unwrap();
        before.restore(&empty).unwrap();
        let left: Vec<_> = fs::read_dir(&empty)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, [LOST_AND_FOUND]);

        Settings::begin(&empty, wanted("c1")).unwrap();
        Before::look(&empty).restore(&empty).unwrap();
        assert!(empty.join(FILE).exists(), "that one others may have heard of");
    }

    #[test]
    fn any_address_is_not_one_to_connect_to() {
        let dir = tempfile::tempdir().unwrap();
        let listen_anywhere = Wanted {
            peer_listen: ([0, 0, 0, 0], 3369).into(),
            ..wanted("c1")
        };
        let refused = Settings::begin(dir.path(), listen_anywhere).unwrap_err();
        assert!(refused.to_string().contains("--peer-address"), "{refused}");
    }

    #[test]
    fn damaged_and_newer_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        for (text, newer) in [("{\"format\":2}", true), ("{\"format\":1}", false), ("{", false)] {
            fs::write(dir.path().join(FILE), text).unwrap();
            let error = Settings::load(dir.path()).unwrap_err();
            assert_eq!(matches!(error, SettingsError::Newer { .. }), newer, "{error}");
            assert_eq!(matches!(error, SettingsError::Damaged { .. }), !newer, "{error}");
        }
    }
}
