//! Machines of a test as network namespaces on one bridge, and cuts between them.
//!
//! ```text
//!   test's own namespace ── veth ──┐
//!   n1 ── veth ──┐                 │
//!   n2 ── veth ──┼── bridge in a namespace of its own; cuts are its filters
//!   k1 ── veth ──┘
//! ```
//!
//! A cut drops frames silently, as a broken switch does: connections hang, nobody is told. The test reaches every
//! machine whatever is cut. Nothing of the machine's own network is changed but for one veth.
//!
//! Promises: names carry the test's pid; dropped, or swept by the next test after a SIGKILL, nothing is left.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, bail, ensure};
use rustix::process::geteuid;

use crate::leftovers;

/// Ports are the same on every machine, so that filters can tell kinds of traffic apart.
pub const PEER_PORT: u16 = 3369;
/// The REST API of a controller.
pub const API_PORT: u16 = 3370;
/// A replica server.
pub const DATA_PORT: u16 = 3371;

const PREFIX: &str = "stor-test-";
const PLACE: &str = "/run/netns";
/// Networks made by this process so far.
static MADE: AtomicU32 = AtomicU32::new(0);

/// What a cut drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Traffic {
    /// Everything.
    All,
    /// What controllers say and are told: Raft, sessions of satellites, the API.
    Control,
    /// Between engines and replicas.
    Data,
}

/// Frames of one kind from one machine to another are dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Sender.
    pub from: String,
    /// Receiver; all others when there is none.
    pub to: Option<String>,
    /// What.
    pub traffic: Traffic,
}

impl Cut {
    /// From one to another.
    pub fn between(from: &str, to: &str, traffic: Traffic) -> Self {
        Self {
            from: from.to_owned(),
            to: Some(to.to_owned()),
            traffic,
        }
    }

    fn rule(&self) -> Vec<String> {
        let way = match &self.to {
            // The test itself keeps its sight.
            None => format!("iifname \"p-{}\" oifname != \"p-test\"", self.from),
            Some(to) => format!("iifname \"p-{}\" oifname \"p-{to}\"", self.from),
        };
        let ports = match self.traffic {
            Traffic::All => return vec![format!("{way} drop")],
            Traffic::Control => format!("{{ {PEER_PORT}, {API_PORT} }}"),
            Traffic::Data => DATA_PORT.to_string(),
        };
        ["dport", "sport"]
            .map(|side| format!("{way} tcp {side} {ports} drop"))
            .to_vec()
    }
}

/// Both ways between two machines.
pub fn both_ways(one: &str, other: &str, traffic: Traffic) -> Vec<Cut> {
    vec![
        Cut::between(one, other, traffic),
        Cut::between(other, one, traffic),
    ]
}

/// One machine from all others, both ways.
pub fn isolate(machine: &str, others: &[&str], traffic: Traffic) -> Vec<Cut> {
    let mut cuts = vec![Cut {
        from: machine.to_owned(),
        to: None,
        traffic,
    }];
    let others = others.iter().filter(|other| **other != machine);
    cuts.extend(others.map(|other| Cut::between(other, machine, traffic)));
    cuts
}

/// See the module.
#[derive(Debug)]
pub struct Network {
    prefix: String,
    subnet: Option<u8>,
    machines: Vec<String>,
    cuts: Mutex<Vec<(u32, Vec<Cut>)>>,
}

impl Network {
    /// What this machine lacks for one; `None` when it lacks nothing.
    pub fn missing() -> Option<String> {
        if !geteuid().is_root() {
            return Some("root, for network namespaces".to_owned());
        }
        for (tool, package) in [("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux")] {
            let found = Command::new(tool)
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            if found.is_err() {
                return Some(format!("`{tool}` (package {package})"));
            }
        }
        // A kernel may lack bridges, veths or their filters.
        let probe = Self::make(None, &["a", "b"]).and_then(|network| {
            network.cut(both_ways("a", "b", Traffic::Data))?;
            network.heal_all()
        });
        probe
            .err()
            .map(|error| format!("a kernel that can do it: {error:#}"))
    }

    /// Makes one with these machines. `subnet` is nobody else's as long as it lives; without one the test itself
    /// reaches nobody.
    pub fn make(subnet: Option<u8>, machines: &[&str]) -> anyhow::Result<Self> {
        let number = MADE.fetch_add(1, Ordering::SeqCst);
        let network = Self {
            prefix: format!("{PREFIX}{}-{number}-", std::process::id()),
            subnet,
            machines: machines.iter().map(|name| (*name).to_owned()).collect(),
            cuts: Mutex::default(),
        };
        network.build(&format!("st{}-{number}", std::process::id()))?;
        Ok(network)
    }

    fn build(&self, host_end: &str) -> anyhow::Result<()> {
        let switch = self.name("switch");
        ip(&format!("netns add {switch}"))?;
        ip(&format!("-n {switch} link add br0 type bridge forward_delay 0"))?;
        ip(&format!("-n {switch} link set br0 up"))?;
        ip(&format!(
            "link add {host_end} type veth peer name p-test netns {switch}"
        ))?;
        ip(&format!("-n {switch} link set p-test master br0 up"))?;
        if let Some(subnet) = self.subnet {
            ip(&format!("addr add 198.18.{subnet}.1/24 dev {host_end}"))?;
        }
        ip(&format!("link set {host_end} up"))?;
        for machine in &self.machines {
            let name = self.name(machine);
            ip(&format!("netns add {name}"))?;
            ip(&format!(
                "link add p-{machine} netns {switch} type veth peer name eth0 netns {name}"
            ))?;
            ip(&format!("-n {switch} link set p-{machine} master br0 up"))?;
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!(
                "-n {name} addr add {}/24 dev eth0",
                self.address(machine)?
            ))?;
            ip(&format!("-n {name} link set eth0 up"))?;
        }
        Ok(())
    }

    fn name(&self, machine: &str) -> String {
        format!("{}{machine}", self.prefix)
    }

    /// A machine's address. 198.18.0.0/15 is for tests of networks and nobody's own.
    pub fn address(&self, machine: &str) -> anyhow::Result<String> {
        let place = self.machines.iter().position(|known| known == machine);
        let place = place.with_context(|| format!("there is no machine {machine}"))?;
        Ok(format!("198.18.{}.{}", self.subnet.unwrap_or(0), 11 + place))
    }

    /// A machine's namespace, as `nsenter --net=` takes it.
    pub fn namespace(&self, machine: &str) -> PathBuf {
        Path::new(PLACE).join(self.name(machine))
    }

    /// Names of all machines.
    pub fn machines(&self) -> Vec<&str> {
        self.machines.iter().map(String::as_str).collect()
    }

    /// Cuts, besides what is cut already. The number heals it.
    pub fn cut(&self, cuts: Vec<Cut>) -> anyhow::Result<u32> {
        let mut all = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        let number = all.iter().map(|(number, _)| number + 1).max().unwrap_or(0);
        all.push((number, cuts));
        self.apply(&all)?;
        Ok(number)
    }

    /// Takes one cut back.
    pub fn heal(&self, number: u32) -> anyhow::Result<()> {
        let mut all = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(known, _)| *known != number);
        self.apply(&all)
    }

    /// Takes all cuts back.
    pub fn heal_all(&self) -> anyhow::Result<()> {
        let mut all = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        all.clear();
        self.apply(&all)
    }

    /// The whole filter in one transaction: there is no moment with half of it.
    fn apply(&self, all: &[(u32, Vec<Cut>)]) -> anyhow::Result<()> {
        let mut text = String::from(
            "table bridge stor\ndelete table bridge stor\ntable bridge stor {\n\
             chain forward { type filter hook forward priority 0; policy accept;\n",
        );
        for rule in all.iter().flat_map(|(_, cuts)| cuts).flat_map(Cut::rule) {
            writeln!(text, "{rule}")?;
        }
        text.push_str("}\n}\n");
        let switch = Path::new(PLACE).join(self.name("switch"));
        let mut child = Command::new("nsenter")
            .arg(format!("--net={}", switch.display()))
            .args(["nft", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("running nft")?;
        // Dropped at once: nft reads to the end.
        child
            .stdin
            .take()
            .context("nft takes no input")?
            .write_all(text.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "nft refuses\n{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        remove(&self.prefix);
    }
}

/// Removes the networks of tests that were killed.
pub fn sweep() {
    for name in leftovers::of_the_dead(PLACE, PREFIX) {
        remove(&name);
    }
}

/// The namespaces whose names begin so. Their veths go with them.
fn remove(prefix: &str) {
    for entry in fs::read_dir(PLACE).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix)
            && let Err(error) = ip(&format!("netns del {name}"))
        {
            eprintln!("network namespace {name} stays: {error:#}");
        }
    }
}

fn ip(words: &str) -> anyhow::Result<()> {
    let output = Command::new("ip")
        .args(words.split(' '))
        .stdin(Stdio::null())
        .output()
        .context("running ip")?;
    if !output.status.success() {
        bail!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stdout)]

    use super::*;

    fn reaches(network: &Network, from: &str, to: &str, port: u16) -> bool {
        let server = Command::new("nsenter")
            .arg(format!("--net={}", network.namespace(to).display()))
            .args(["python3", "-c"])
            .arg(format!(
                "import socket; s = socket.create_server(('0.0.0.0', {port})); s.settimeout(5); \
                 print('on', flush=True); s.accept()"
            ))
            .stdout(Stdio::piped())
            .spawn();
        let mut server = server.unwrap();
        let mut line = String::new();
        let mut out = std::io::BufReader::new(server.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        let address = network.address(to).unwrap();
        let client = Command::new("nsenter")
            .arg(format!("--net={}", network.namespace(from).display()))
            .args(["python3", "-c"])
            .arg(format!(
                "import socket; socket.create_connection(('{address}', {port}), 1)"
            ))
            .stderr(Stdio::null())
            .status();
        _ = server.kill();
        _ = server.wait();
        client.unwrap().success()
    }

    #[test]
    fn cuts_drop_what_they_name_and_nothing_else() {
        if let Some(missing) = Network::missing() {
            crate::skip::skipped("cuts between network namespaces", &missing);
            return;
        }
        if Command::new("python3").arg("--version").output().is_err() {
            crate::skip::skipped("cuts between network namespaces", "python3");
            return;
        }
        let ports = crate::ports::Ports::take().unwrap();
        let network = Network::make(Some(ports.block()), &["a", "b", "c"]).unwrap();
        assert!(reaches(&network, "a", "b", DATA_PORT));
        let cut = network.cut(both_ways("a", "b", Traffic::Data)).unwrap();
        assert!(!reaches(&network, "a", "b", DATA_PORT));
        assert!(reaches(&network, "a", "b", PEER_PORT), "not that kind");
        assert!(reaches(&network, "a", "c", DATA_PORT), "not that machine");
        let other = network
            .cut(isolate("c", &["a", "b", "c"], Traffic::Control))
            .unwrap();
        assert!(!reaches(&network, "a", "c", API_PORT));
        network.heal(cut).unwrap();
        assert!(reaches(&network, "a", "b", DATA_PORT));
        assert!(!reaches(&network, "c", "b", PEER_PORT), "that one was not healed");
        network.heal(other).unwrap();
        assert!(reaches(&network, "c", "b", PEER_PORT));
        // One way is enough to keep a connection from being made.
        network.cut(vec![Cut::between("b", "a", Traffic::All)]).unwrap();
        assert!(!reaches(&network, "a", "b", DATA_PORT));
        let names: Vec<PathBuf> = ["a", "b", "c", "switch"]
            .iter()
            .map(|m| network.namespace(m))
            .collect();
        drop(network);
        assert!(names.iter().all(|name| !name.exists()));
    }
}
