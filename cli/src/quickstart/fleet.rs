//! Which daemons a quickstart consists of, and with which arguments they run.

use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use super::daemon::Daemon;
use super::place::{ControllerPorts, Place, Record};
use super::ports::{Ports, is_free};
use crate::failure::{Exit, Failure};

const CONTROLLERS: usize = 3;
/// The diskless node.
pub(crate) const CLIENT: &str = "k1";
/// The pool of every storage node.
pub(crate) const POOL: &str = "sp01";
const DEFAULT_NODES: u8 = 3;

/// The programs beside `storctl`.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    controller: PathBuf,
    satellite: PathBuf,
}

impl Programs {
    /// Finds them.
    pub(crate) fn find() -> Result<Self, Failure> {
        let me = std::env::current_exe().map_err(|e| {
            Failure::failed("storctl can't find itself, and so not the daemons").why(e.to_string())
        })?;
        let beside = me.parent().unwrap_or(Path::new("/"));
        let find = |name: &str| {
            let path = beside.join(name);
            if path.is_file() {
                return Ok(path);
            }
            Err(Failure::failed(format!("{name} is missing"))
                .why(format!(
                    "quickstart runs the programs beside storctl, in {}",
                    beside.display()
                ))
                .help("build them all with `cargo build --workspace`, or install them in that directory"))
        };
        Ok(Self {
            controller: find("stor-controller")?,
            satellite: find("stor-satellite")?,
        })
    }
}

/// The record of a new cluster, or the one that is there with the nodes it lacks.
pub(crate) fn complete(record: Option<Record>, nodes: Option<u8>) -> Result<Record, Failure> {
    let mut record = record.unwrap_or_default();
    let has = record.satellites.values().filter(|port| port.is_some()).count();
    let wanted = match nodes {
        Some(nodes) => usize::from(nodes),
        None if has > 0 => has,
        None => usize::from(DEFAULT_NODES),
    };
    if wanted < has {
        return Err(Failure::new(
            Exit::Conflict,
            format!("this cluster has {has} storage nodes, not {wanted}"),
        )
        .help("leave --nodes out, or give another directory with --dir"));
    }
    let inner = record.controllers.values().flat_map(|c| [c.api, c.peer]);
    let mut ports = Ports::without(
        inner
            .chain(record.satellites.values().flatten().copied())
            .collect::<Vec<_>>(),
    );
    for number in 1..=CONTROLLERS {
        if let Entry::Vacant(new) = record.controllers.entry(format!("c{number}")) {
            new.insert(ControllerPorts {
                api: ports.api()?,
                peer: ports.inner()?,
            });
        }
    }
    for number in 1..=wanted {
        if let Entry::Vacant(new) = record.satellites.entry(format!("s{number}")) {
            new.insert(Some(ports.inner()?));
        }
    }
    record.satellites.entry(CLIENT.to_owned()).or_insert(None);
    Ok(record)
}

/// Gives satellites other ports for theirs that somebody else has taken. Only for a cluster that is stopped
/// whole: they tell the controllers at their start where they listen, engines that run would not find them.
pub(crate) fn move_taken(record: &mut Record) -> Result<(), Failure> {
    let controllers = record.controllers.values().flat_map(|c| [c.api, c.peer]);
    let satellites = record.satellites.values().flatten().copied();
    let mut ports = Ports::without(controllers.chain(satellites).collect::<Vec<_>>());
    for port in record.satellites.values_mut().flatten() {
        if !is_free(*port) {
            *port = ports.inner()?;
        }
    }
    Ok(())
}

/// The controllers, in order.
pub(crate) fn controllers(place: &Place, programs: &Programs, record: &Record) -> Vec<Daemon> {
    let daemon = |(name, ports): (&String, &ControllerPorts)| {
        let arguments = words(&["run", "--dir", &place.of(name).display().to_string()]);
        let listens = vec![ports.api, ports.peer];
        Daemon::new(
            place,
            name,
            "controller",
            programs.controller.clone(),
            arguments,
            listens,
        )
    };
    record.controllers.iter().map(daemon).collect()
}

/// With which words each controller is started for the first time: the first makes the cluster, the others
/// join it.
pub(crate) fn first_words(place: &Place, record: &Record) -> Vec<Vec<String>> {
    let mut seed: Option<String> = None;
    let mut all = Vec::new();
    for (name, ports) in &record.controllers {
        let (peer, api) = (
            format!("127.0.0.1:{}", ports.peer),
            format!("127.0.0.1:{}", ports.api),
        );
        let dir = place.of(name).display().to_string();
        let verb = if seed.is_some() { "join" } else { "init" };
        let mut first = words(&[
            verb,
            "--run",
            "--dir",
            &dir,
            "--name",
            name,
            "--peer-listen",
            &peer,
            "--api-listen",
            &api,
        ]);
        match &seed {
            Some(seed) => first.extend(words(&["--seed", seed])),
            None => seed = Some(format!("http://{peer}")),
        }
        all.push(first);
    }
    all
}

/// Whether the controller in `dir` only needs to be run. One whose settings can't be read is run too: it says
/// itself what is wrong with them.
pub(crate) fn is_set_up(dir: &Path) -> bool {
    let Ok(text) = std::fs::read(dir.join("controller.json")) else {
        return false;
    };
    let settings: Result<serde_json::Value, _> = serde_json::from_slice(&text);
    settings.map_or(true, |s| {
        s.get("complete").and_then(serde_json::Value::as_bool) != Some(false)
    })
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The satellites, the diskless one last.
pub(crate) fn satellites(place: &Place, programs: &Programs, record: &Record) -> Vec<Daemon> {
    let (mut storage, mut diskless) = (Vec::new(), Vec::new());
    for (name, port) in &record.satellites {
        let mut arguments = words(&[
            "run",
            "--node",
            name,
            "--state-dir",
            &place.of(name).display().to_string(),
        ]);
        for controller in record.controllers.values() {
            arguments.extend([
                "--controller".to_owned(),
                format!("http://127.0.0.1:{}", controller.peer),
            ]);
        }
        if let Some(port) = port {
            arguments.extend(["--data-listen".to_owned(), format!("127.0.0.1:{port}")]);
        }
        // Only root can use /dev/stor, where the client node's devices belong.
        if port.is_some() || !rustix::process::geteuid().is_root() {
            arguments.extend([
                "--device-dir".to_owned(),
                place.devices(name).display().to_string(),
            ]);
        }
        let listens: Vec<u16> = port.iter().copied().collect();
        let daemon = Daemon::new(
            place,
            name,
            "satellite",
            programs.satellite.clone(),
            arguments,
            listens,
        );
        if port.is_some() {
            storage.push(daemon);
        } else {
            diskless.push(daemon);
        }
    }
    storage.append(&mut diskless);
    storage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_cluster_has_its_names_and_no_port_twice() {
        let record = complete(None, None).unwrap();
        assert_eq!(record.controllers.keys().collect::<Vec<_>>(), ["c1", "c2", "c3"]);
        assert_eq!(
            record.satellites.keys().collect::<Vec<_>>(),
            ["k1", "s1", "s2", "s3"]
        );
        assert_eq!(record.satellites[CLIENT], None);
        let mut ports: Vec<u16> = record
            .controllers
            .values()
            .flat_map(|c| [c.api, c.peer])
            .collect();
        ports.extend(record.satellites.values().flatten());
        let count = ports.len();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), count);
    }

    #[test]
    fn the_next_start_is_the_same_cluster_and_may_add_nodes() {
        let first = complete(None, Some(2)).unwrap();
        assert_eq!(complete(Some(first.clone()), None).unwrap(), first);
        let more = complete(Some(first.clone()), Some(4)).unwrap();
        assert_eq!(more.controllers, first.controllers);
        assert_eq!(more.satellites["s1"], first.satellites["s1"]);
        assert!(more.satellites.contains_key("s4"));
        assert_eq!(complete(Some(first), Some(1)).unwrap_err().exit, Exit::Conflict);
    }

    #[test]
    fn a_satellite_moves_from_a_port_that_was_taken() {
        let mut record = complete(None, None).unwrap();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        record.satellites.insert("s1".into(), Some(port));
        let before = record.clone();
        move_taken(&mut record).unwrap();
        assert_ne!(record.satellites["s1"], Some(port));
        assert_eq!(record.satellites[CLIENT], None);
        assert_eq!(record.controllers, before.controllers);
    }

    #[test]
    fn a_satellite_knows_every_controller_and_only_joiners_a_seed() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::take(dir.path()).unwrap();
        let programs = Programs {
            controller: "/bin/c".into(),
            satellite: "/bin/s".into(),
        };
        let record = complete(None, None).unwrap();
        let first = first_words(&place, &record);
        let seed = format!("http://127.0.0.1:{}", record.controllers["c1"].peer);
        assert_eq!(
            first.iter().map(|w| w[0].as_str()).collect::<Vec<_>>(),
            ["init", "join", "join"]
        );
        assert_eq!(
            first.iter().map(|w| w.contains(&seed)).collect::<Vec<_>>(),
            [false, true, true]
        );
        for controller in controllers(&place, &programs, &record) {
            assert_eq!(controller.arguments[..2], ["run", "--dir"]);
        }
        let satellites = satellites(&place, &programs, &record);
        assert_eq!(
            satellites.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
            ["s1", "s2", "s3", "k1"]
        );
        for satellite in &satellites {
            assert_eq!(
                satellite
                    .arguments
                    .iter()
                    .filter(|a| *a == "--controller")
                    .count(),
                3
            );
        }
        assert!(!satellites[3].arguments.contains(&"--data-listen".to_owned()));
    }

    #[test]
    fn a_controller_is_set_up_once_its_settings_say_so() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_set_up(dir.path()));
        for (text, set_up) in [
            (r#"{"complete":false}"#, false),
            (r#"{"complete":true}"#, true),
            ("{", true),
        ] {
            std::fs::write(dir.path().join("controller.json"), text).unwrap();
            assert_eq!(is_set_up(dir.path()), set_up, "{text}");
        }
    }
}
