//! What this node can attach volumes with, found once at the start.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use rustix::thread::CapabilitySet;
use stor_proto::satellite as proto;

/// The transports, in the order in which they are preferred.
const ALL: [&str; 4] = ["ublk", "nbd", "fuse", "socket"];

/// A restriction of the command line (`--transports nbd,socket`); unknown names are refused.
pub fn parse(names: &str) -> Result<Vec<String>, String> {
    let names: Vec<_> = names
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    match names.iter().find(|name| !ALL.contains(name)) {
        Some(name) => Err(format!(
            "unknown transport {name:?}; there are: {}",
            ALL.join(", ")
        )),
        None => Ok(names.into_iter().map(str::to_owned).collect()),
    }
}

/// Tries each. `allowed`: the restriction, if there is one.
pub fn probe(allowed: Option<&[String]>) -> Vec<proto::TransportProbe> {
    let switched_off = |name: &str| allowed.is_some_and(|allowed| !allowed.iter().any(|one| one == name));
    ALL.iter()
        .map(|name| {
            let remedy = match *name {
                name if switched_off(name) => {
                    Some(format!("add {name} to --transports of this node's satellite"))
                }
                "ublk" => together([privilege_remedy(), super::ublk::remedy()]),
                "nbd" => together([privilege_remedy(), super::nbd::remedy()]),
                "fuse" => fuse_remedy(),
                _ => None,
            };
            proto::TransportProbe {
                name: (*name).to_owned(),
                available: remedy.is_none(),
                remedy: remedy.unwrap_or_default(),
            }
        })
        .collect()
}

/// What is missing, in one line; `None`: nothing is.
fn together<const N: usize>(missing: [Option<String>; N]) -> Option<String> {
    let missing: Vec<_> = missing.into_iter().flatten().collect();
    (!missing.is_empty()).then(|| missing.join("; "))
}

fn fuse_remedy() -> Option<String> {
    together([
        privilege_remedy(),
        device_remedy("/dev/fuse", "load the kernel module fuse", "--device /dev/fuse"),
        device_remedy(
            "/dev/loop-control",
            "load the kernel module loop",
            "--privileged -v /dev:/dev",
        ),
    ])
}

fn privilege_remedy() -> Option<String> {
    let may_mount = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    (!may_mount).then(|| {
        "making devices is not allowed: run the satellite as root (in a container with --privileged)"
            .to_owned()
    })
}

fn device_remedy(path: &str, on_host: &str, in_container: &str) -> Option<String> {
    let error = OpenOptions::new()
        .read(true)
        .write(true)
        .open(Path::new(path))
        .err()?;
    Some(match error.kind() {
        io::ErrorKind::NotFound => {
            format!("{path} is missing: {on_host}, or start the container with {in_container}")
        }
        io::ErrorKind::PermissionDenied => {
            format!(
                "{path} cannot be opened ({error}): run the satellite as root, or start the container with {in_container}"
            )
        }
        _ => format!("{path} cannot be opened ({error}): {on_host}"),
    })
}
