//! The satellite's state directory: what is where, and that one satellite has it.
//!
//! ```text
//! STATE/lock                     held (flock) while a satellite runs; its pid inside
//! STATE/satellite.json           version of this layout, the node's name
//! STATE/desired                  what the node should hold, as last heard (see `desired`)
//! STATE/controllers.json         addresses of the controllers, as last heard
//! STATE/known.json               pools and replicas this node has had (see `known`)
//! STATE/engines/<volume>/        control.sock, nbd.sock, pid, epoch, engine.log
//! STATE/fuse/<volume>/           FUSE mount points
//! ```
//!
//! Unix sockets have paths of at most 107 bytes. Where the state directory is too deep for them, they are
//! under `/run/stor/` instead, in a directory named by a hash of the state directory's path.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use stor_replication::ids::VolumeId;
use thiserror::Error;
use uuid::Uuid;

use super::durable::{self, ReplaceError, Unreadable};

/// The newest layout this program knows.
const VERSION: u32 = 1;

/// Longest path of a unix socket: `sun_path` less its terminator.
pub const MAX_SOCKET_PATH: usize = 107;

/// How long the lock of a satellite that is gone may be held by a process it was just starting: such a child has
/// every open file until its own program begins, which on a busy machine takes some milliseconds.
const INHERITED: Duration = Duration::from_secs(5);

/// Between looks at such a lock.
const LOCK_LOOK: Duration = Duration::from_millis(20);

/// Where sockets go that do not fit into the state directory.
const SHORT_SOCKETS: &str = "/run/stor";

/// Why a state directory cannot be used.
#[derive(Debug, Error)]
pub enum StateDirError {
    /// A file or directory in it.
    #[error("cannot {doing} {}: {source}", path.display())]
    System {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Locked.
    #[error("{} is in use by another stor-satellite{}; stop it, or give this one its own --state-dir",
            path.display(), holder(pid))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Its holder, as it wrote.
        pid: String,
    },
    /// Of a later release.
    #[error("{} has version {version}, this stor-satellite reads up to {VERSION}: install the newer \
             release again; nothing was changed", path.display())]
    Newer {
        /// The directory.
        path: PathBuf,
        /// What it says.
        version: u32,
    },
    /// Of another node.
    #[error("{} belongs to node {found}, this satellite was started as {wanted}: check --node and \
             --state-dir", path.display())]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// Not JSON.
    #[error("{} is damaged ({source}); when the directory is node {node}'s, delete that file and start again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The node asked for.
        node: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// No place for sockets.
    #[error("{} is too long for unix sockets (at most {MAX_SOCKET_PATH} bytes with what follows it) and \
             {SHORT_SOCKETS} cannot be used ({source}): choose a shorter --state-dir", path.display())]
    TooLong {
        /// The directory.
        path: PathBuf,
        /// Why not the other place.
        source: io::Error,
    },
    /// See [`ReplaceError`].
    #[error(transparent)]
    Write(#[from] ReplaceError),
}

fn holder(pid: &str) -> String {
    if pid.is_empty() {
        String::new()
    } else {
        format!(" (pid {pid})")
    }
}

/// A state directory held by this process.
#[derive(Debug)]
pub struct StateDir {
    paths: Paths,
    _lock: File,
}

/// Where things are; can be copied to where they are used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Paths {
    root: PathBuf,
    /// Where the sockets of engines are: `STATE/engines`, or the short place.
    sockets: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Identity {
    version: u32,
    node: String,
}

impl StateDir {
    /// Takes the directory; makes it at first use.
    pub fn open(root: &Path, node: &str) -> Result<Self, StateDirError> {
        make_directory(root)?;
        // Absolute: an engine is found again by the paths on its command line.
        let root = fs::canonicalize(root).map_err(|source| system("find", root, source))?;
        let lock = take_lock(&root)?;
        check_identity(&root, node)?;
        for name in ["engines", "fuse"] {
            make_directory(&root.join(name))?;
        }
        let sockets = socket_place(&root)?;
        Ok(Self {
            paths: Paths { root, sockets },
            _lock: lock,
        })
    }

    /// Where things are.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }
}

impl Paths {
    /// The state directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The desired state.
    pub fn desired(&self) -> PathBuf {
        self.root.join("desired")
    }

    /// The controllers.
    pub fn controllers(&self) -> PathBuf {
        self.root.join("controllers.json")
    }

    /// Which history of the catalogue this node follows.
    pub fn history(&self) -> PathBuf {
        self.known().with_file_name("history.json")
    }

    /// Pools and replicas this node has had.
    pub fn known(&self) -> PathBuf {
        self.root.join("known.json")
    }

    /// The directory of the engines' directories.
    pub fn engines(&self) -> PathBuf {
        self.root.join("engines")
    }

    /// An engine's directory.
    pub fn engine(&self, volume: VolumeId) -> PathBuf {
        self.engines().join(volume.to_string())
    }

    /// The directory of the sockets of an engine; mostly the same.
    pub fn engine_sockets(&self, volume: VolumeId) -> PathBuf {
        self.sockets.join(volume.to_string())
    }

    /// The socket an engine is controlled by.
    pub fn control_socket(&self, volume: VolumeId) -> PathBuf {
        self.engine_sockets(volume).join("control.sock")
    }

    /// The socket an engine serves NBD on.
    pub fn nbd_socket(&self, volume: VolumeId) -> PathBuf {
        self.engine_sockets(volume).join("nbd.sock")
    }

    /// The directory of FUSE mount points.
    pub fn fuse(&self) -> PathBuf {
        self.root.join("fuse")
    }

    /// The FUSE mount point of a volume.
    pub fn mount_point(&self, volume: VolumeId) -> PathBuf {
        self.fuse().join(volume.to_string())
    }

    /// Makes the directories of an engine.
    pub fn make_engine(&self, volume: VolumeId) -> Result<(), StateDirError> {
        make_directory(&self.engine(volume))?;
        make_directory(&self.engine_sockets(volume))
    }

    /// Removes what an engine left.
    pub fn remove_engine(&self, volume: VolumeId) -> Result<(), StateDirError> {
        for path in [self.engine_sockets(volume), self.engine(volume)] {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(system("remove", &path, error));
                }
                _ => {}
            }
        }
        // Empty unless something is mounted on it, and then it is refused, as it should be.
        let mount_point = self.mount_point(volume);
        match fs::remove_dir(&mount_point) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(system("remove", &mount_point, error))
            }
            _ => Ok(()),
        }
    }
}

fn system(doing: &'static str, path: &Path, source: io::Error) -> StateDirError {
    StateDirError::System {
        doing,
        path: path.to_owned(),
        source,
    }
}

fn make_directory(path: &Path) -> Result<(), StateDirError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| system("make the directory", path, source))
}

fn take_lock(root: &Path) -> Result<File, StateDirError> {
    let path = root.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|source| system("open", &path, source))?;
    let until = Instant::now() + INHERITED;
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(system("lock", &path, error.into())),
        }
        let mut pid = String::new();
        // To say more in the message, which is right without it.
        if file
            .rewind()
            .and_then(|()| file.read_to_string(&mut pid))
            .is_err()
        {
            pid.clear();
        }
        let pid = pid.trim().to_owned();
        if runs(&pid) || Instant::now() >= until {
            return Err(StateDirError::InUse {
                path: root.to_owned(),
                pid,
            });
        }
        std::thread::sleep(LOCK_LOOK);
    }
    file.rewind().map_err(|source| system("write", &path, source))?;
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|source| system("write", &path, source))?;
    Ok(file)
}

/// Whether the process that wrote its id into the lock is still there. One that can't be told counts as there.
fn runs(pid: &str) -> bool {
    let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) else {
        return true;
    };
    rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}

fn check_identity(root: &Path, node: &str) -> Result<(), StateDirError> {
    let path = root.join("satellite.json");
    let damaged = |source| StateDirError::Damaged {
        path: path.clone(),
        node: node.to_owned(),
        source,
    };
    match durable::read_record::<Identity>(&path, VERSION) {
        Ok(Some(identity)) if identity.node != node => Err(StateDirError::OtherNode {
            path: root.to_owned(),
            found: identity.node,
            wanted: node.to_owned(),
        }),
        Ok(Some(_)) => Ok(()),
        Ok(None) => {
            let identity = Identity {
                version: VERSION,
                node: node.to_owned(),
            };
            let text = serde_json::to_vec_pretty(&identity).map_err(damaged)?;
            Ok(durable::replace(&path, &text)?)
        }
        Err(Unreadable::Newer(version)) => Err(StateDirError::Newer {
            path: root.to_owned(),
            version,
        }),
        Err(Unreadable::Damaged(source)) => Err(damaged(source)),
        Err(Unreadable::Read(source)) => Err(system("read", &path, source)),
    }
}

fn socket_place(root: &Path) -> Result<PathBuf, StateDirError> {
    let engines = root.join("engines");
    let longest = engines.join(Uuid::nil().to_string()).join("control.sock");
    if longest.as_os_str().as_bytes().len() <= MAX_SOCKET_PATH {
        return Ok(engines);
    }
    let hash = blake3::hash(root.as_os_str().as_bytes()).to_hex();
    let name = hash.get(..12).unwrap_or_default();
    let place = Path::new(SHORT_SOCKETS).join(name);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&place)
        .map_err(|source| StateDirError::TooLong {
            path: root.to_owned(),
            source,
        })?;
    Ok(place)
}
