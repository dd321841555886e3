//! The directory of a quickstart: where things are in it, that one quickstart has it, and the record by which
//! the next start finds the same cluster.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::failure::{Exit, Failure};

/// The newest layout this program knows.
const VERSION: u32 = 1;
const RECORD: &str = "quickstart.json";
const LOCK: &str = "quickstart.lock";

/// A directory held by this process.
#[derive(Debug)]
pub(crate) struct Place {
    dir: PathBuf,
    /// The lock lives as long as this.
    _lock: File,
}

/// What is remembered of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Of the layout.
    version: u32,
    /// Ports of each controller.
    pub(crate) controllers: BTreeMap<String, ControllerPorts>,
    /// Port of each satellite's replica server; absent on a diskless node.
    pub(crate) satellites: BTreeMap<String, Option<u16>>,
    /// Nodes that were registered and given their pool. What the user takes away later is not made again.
    #[serde(default)]
    pub(crate) set_up: Vec<String>,
}

/// Where a controller listens on loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ControllerPorts {
    /// REST.
    pub(crate) api: u16,
    /// gRPC.
    pub(crate) peer: u16,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            version: VERSION,
            controllers: BTreeMap::new(),
            satellites: BTreeMap::new(),
            set_up: Vec::new(),
        }
    }
}

impl Place {
    /// Takes the directory; makes it when it is not there. Refuses one that holds something else.
    pub(crate) fn take(given: &Path) -> Result<Self, Failure> {
        fs::create_dir_all(given).map_err(|e| cannot("make the directory", given, &e))?;
        let dir = fs::canonicalize(given).map_err(|e| cannot("find", given, &e))?;
        if dir.to_str().is_none_or(|text| text.chars().any(char::is_control)) {
            return Err(Failure::new(
                Exit::Usage,
                format!("{} can't be used: its path has odd characters", dir.display()),
            )
            .help("give another with --dir"));
        }
        refuse_foreign(&dir)?;
        let lock = lock(&dir)?;
        let place = Self { dir, _lock: lock };
        for name in ["run", "run/dev", "log"] {
            let path = place.dir.join(name);
            fs::create_dir_all(&path).map_err(|e| cannot("make the directory", &path, &e))?;
        }
        Ok(place)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A daemon's own directory.
    pub(crate) fn of(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A storage node's pool.
    pub(crate) fn pool(&self, node: &str) -> PathBuf {
        self.of(node).join("pool")
    }

    pub(crate) fn script(&self, name: &str) -> PathBuf {
        self.dir.join("run").join(format!("{name}.start"))
    }

    pub(crate) fn pid_file(&self, name: &str) -> PathBuf {
        self.dir.join("run").join(format!("{name}.pid"))
    }

    pub(crate) fn devices(&self, node: &str) -> PathBuf {
        self.dir.join("run/dev").join(node)
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.dir.join("log").join(format!("{name}.log"))
    }

    pub(crate) fn env(&self) -> PathBuf {
        self.dir.join("env")
    }

    /// Reads the record; `None` in a new directory.
    pub(crate) fn record(&self) -> Result<Option<Record>, Failure> {
        let path = self.dir.join(RECORD);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(cannot("read", &path, &e)),
        };
        parse(&text, &path).map(Some)
    }

    /// Replaces the record, whole or not at all.
    pub(crate) fn save(&self, record: &Record) -> Result<(), Failure> {
        let text = crate::output::json(record)?;
        Self::write(&self.dir.join(RECORD), &format!("{text}\n"), 0o644)
    }

    /// Replaces a file, whole or not at all.
    pub(crate) fn write(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = path.with_file_name(name);
        let written = File::create(&new).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            file.sync_all()?;
            fs::rename(&new, path)
        });
        written.map_err(|e| cannot("write", path, &e))
    }
}

/// Says what could not be done with a file.
pub(crate) fn cannot(doing: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!("cannot {doing} {}", path.display())).why(error.to_string())
}

fn parse(text: &str, path: &Path) -> Result<Record, Failure> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let damaged = |error: serde_json::Error| {
        Failure::failed(format!("{} is damaged", path.display()))
            .why(error.to_string())
            .help("nothing was changed; give another directory with --dir, or restore the file")
    };
    let head: Head = serde_json::from_str(text).map_err(damaged)?;
    if head.version > VERSION {
        return Err(Failure::new(
            Exit::Conflict,
            format!("{} is of a newer storctl", path.display()),
        )
        .why(format!(
            "it has version {}, this program reads up to {VERSION}; nothing was changed",
            head.version
        ))
        .help("use the newer storctl, or give another directory with --dir"));
    }
    serde_json::from_str(text).map_err(damaged)
}

/// A directory with other things in it is not filled with ours.
fn refuse_foreign(dir: &Path) -> Result<(), Failure> {
    if dir.join(RECORD).exists() || dir.join(LOCK).exists() {
        return Ok(());
    }
    let mut entries = fs::read_dir(dir).map_err(|e| cannot("read", dir, &e))?;
    if entries.next().is_none() {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Conflict,
        format!("{} is not empty and holds no quickstart cluster", dir.display()),
    )
    .help("give a new directory with --dir"))
}

fn lock(dir: &Path) -> Result<File, Failure> {
    let path = dir.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| cannot("open", &path, &e))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let who = match file.read_to_string(&mut pid) {
                Ok(_) if !pid.trim().is_empty() => format!("its process is {}", pid.trim()),
                _ => "its process is not known".to_owned(),
            };
            return Err(Failure::new(
                Exit::Conflict,
                format!("a quickstart already runs in {}", dir.display()),
            )
            .why(who)
            .help(format!(
                "use it (`. {}/env`), stop it, or give another directory with --dir",
                dir.display()
            )));
        }
        Err(errno) => return Err(cannot("lock", &path, &errno.into())),
    }
    let written = file
        .set_len(0)
        .and_then(|()| write!(file, "{}", std::process::id()));
    written.map_err(|e| cannot("write", &path, &e))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_quickstart_is_refused_and_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Place::take(dir.path()).unwrap();
        let failure = Place::take(dir.path()).unwrap_err();
        assert_eq!(failure.exit, Exit::Conflict);
        assert_eq!(failure.why, format!("its process is {}", std::process::id()));
        drop(first);
        Place::take(dir.path()).unwrap();
    }

    #[test]
    fn a_directory_with_other_things_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "years of work").unwrap();
        let failure = Place::take(dir.path()).unwrap_err();
        assert_eq!(failure.exit, Exit::Conflict);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_record_comes_back_and_a_newer_or_damaged_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::take(dir.path()).unwrap();
        assert_eq!(place.record().unwrap(), None);
        let mut record = Record::default();
        record.controllers.insert(
            "c1".into(),
            ControllerPorts {
                api: 3370,
                peer: 3371,
            },
        );
        record.satellites.insert("s1".into(), Some(3372));
        record.satellites.insert("k1".into(), None);
        place.save(&record).unwrap();
        assert_eq!(place.record().unwrap(), Some(record));

        let path = dir.path().join(RECORD);
        fs::write(&path, r#"{"version": 2, "everything": "is different"}"#).unwrap();
        let newer = place.record().unwrap_err();
        assert!(newer.what.contains("newer"), "{newer:?}");
        fs::write(&path, r#"{"version": 1"#).unwrap();
        let damaged = place.record().unwrap_err();
        assert!(damaged.what.contains("damaged"), "{damaged:?}");
    }
}
