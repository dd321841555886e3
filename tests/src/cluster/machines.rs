//! A cluster on machines of its own: `n1 n2 n3` with a controller and a storage node each, and the clients `k1`
//! and `k2`, every one a network namespace with an address. The pool of a storage node is a small file system, so
//! that it can be filled, and the wall clock of each daemon can be set.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use stor_api::objects::{ControllerRole, NodeKind, NodeSpec, NodeState, PoolSpec, PoolState};

use super::{CLIENT, CONTROLLERS, Cluster, POOL, STORAGE, api, put_programs, runtime};
use crate::network::{API_PORT, DATA_PORT, Network, PEER_PORT};
use crate::ports::Ports;
use crate::{leftovers, process, wait};

/// The second diskless node.
pub const SECOND: &str = "k2";
/// Size of a storage node's disk, MiB: a volume of the tests and what it loses to a file system.
const DISK: u32 = 400;
/// What fills a disk up.
const BALLAST: &str = "ballast";
/// Where Debian's package has it.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// The machine on which a daemon runs.
pub fn machine_of(daemon: &str) -> String {
    match daemon.split_at_checked(1) {
        Some(("c" | "s", number)) => format!("n{number}"),
        _ => daemon.to_owned(),
    }
}

impl Cluster {
    /// Starts one on machines and waits until it is healthy.
    pub fn start_on_machines() -> anyhow::Result<Self> {
        leftovers::sweep();
        let ports = Ports::take()?;
        let network = Network::make(Some(ports.block()), &["n1", "n2", "n3", CLIENT, SECOND])?;
        let root = leftovers::new_root()?;
        let made = Self::prepare(root.clone(), ports, network);
        // From here on it removes itself.
        let cluster = made.inspect_err(|_| leftovers::remove(&root))?;
        if let Err(error) = cluster.set_up() {
            cluster.keep_logs();
            return Err(error);
        }
        Ok(cluster)
    }

    fn prepare(root: PathBuf, ports: Ports, network: Network) -> anyhow::Result<Self> {
        let dir = put_programs(&root)?;
        for part in ["run", "log"] {
            fs::create_dir(dir.join(part))?;
        }
        let address = |name: &str| network.address(&machine_of(name));
        let [first, second, third] = CONTROLLERS;
        let apis = [address(first)?, address(second)?, address(third)?];
        let apis = apis.map(|host| format!("{host}:{API_PORT}"));
        let cluster = Self {
            client: api(&apis)?,
            runtime: runtime()?,
            root,
            quickstart: None,
            network: Some(network),
            apis,
            ports,
        };
        for name in CONTROLLERS {
            let at = dir.join(name).display().to_string();
            cluster.write_script(name, "stor-controller", &["run", "--dir", &at])?;
        }
        for name in STORAGE.into_iter().chain([CLIENT, SECOND]) {
            cluster.write_satellite(name)?;
        }
        Ok(cluster)
    }

    fn write_satellite(&self, name: &str) -> anyhow::Result<()> {
        let state = self.dir().join(name);
        let mut words = vec![
            "run".to_owned(),
            "--node".to_owned(),
            name.to_owned(),
            "--state-dir".to_owned(),
            state.display().to_string(),
            "--device-dir".to_owned(),
            self.dir().join(format!("dev-{name}")).display().to_string(),
        ];
        for controller in CONTROLLERS {
            let address = self.address(controller)?;
            words.extend(["--controller".to_owned(), format!("http://{address}:{PEER_PORT}")]);
        }
        if STORAGE.contains(&name) {
            let data = format!("{}:{DATA_PORT}", self.address(name)?);
            words.extend(["--data-listen".to_owned(), data]);
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.write_script(name, "stor-satellite", &words)
    }

    /// The only way a daemon is started. `STOR_TESTS_SHIFT` sets the clocks that never jump, from boot on, to
    /// others than the machine's, for they can't be set later; the wall clock is read from a file.
    fn write_script(&self, name: &str, program: &str, words: &[&str]) -> anyhow::Result<()> {
        let dir = self.dir();
        let namespace = self.network()?.namespace(&machine_of(name));
        let clock = if Path::new(FAKETIME).exists() {
            format!(
                "export FAKETIME_TIMESTAMP_FILE={} FAKETIME_CACHE_DURATION=1 FAKETIME_DONT_FAKE_MONOTONIC=1 \
                 NO_FAKE_STAT=1\nclock=LD_PRELOAD={FAKETIME}\n",
                self.clock_file(name).display()
            )
        } else {
            String::new()
        };
        let pid = dir.join("run").join(format!("{name}.pid"));
        let text = format!(
            "#!/bin/sh\n\
             set -eu\n\
             [ $# -gt 0 ] || set -- {words}\n\
             cd /\n\
             clock=STOR=tests\n\
             {clock}\
             shift=\n\
             [ -z \"${{STOR_TESTS_SHIFT:-}}\" ] || \
             shift=\"unshare --time --boottime=$STOR_TESTS_SHIFT --monotonic=$STOR_TESTS_SHIFT\"\n\
             setsid nsenter --net={namespace} $shift env \"$clock\" {program} \"$@\" \
             </dev/null >>{log} 2>&1 &\n\
             echo $! >{pid}.new\n\
             mv {pid}.new {pid}\n",
            words = words.join(" "),
            namespace = namespace.display(),
            program = self.program(program).display(),
            log = dir.join("log").join(format!("{name}.log")).display(),
            pid = pid.display(),
        );
        let script = dir.join("run").join(format!("{name}.start"));
        fs::write(&script, text).with_context(|| format!("writing {}", script.display()))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        self.set_wall_clock(name, 0)
    }

    fn set_up(&self) -> anyhow::Result<()> {
        let mut seed = None;
        for name in CONTROLLERS {
            let address = self.address(name)?;
            let (peer, api) = (format!("{address}:{PEER_PORT}"), format!("{address}:{API_PORT}"));
            let dir = self.dir().join(name).display().to_string();
            let verb = if seed.is_some() { "join" } else { "init" };
            let mut words = vec![verb, "--run", "--dir", &dir, "--name", name];
            words.extend(["--peer-listen", &peer, "--api-listen", &api]);
            words.extend(seed.as_deref().map(|seed| ["--seed", seed]).into_iter().flatten());
            self.run_script(name, &words, None)?;
            wait::that(wait::LONG, &format!("controller {name} is a voter"), || {
                Ok(match self.run(self.client.controllers()) {
                    Ok(all) => all
                        .iter()
                        .find(|c| c.name == name && c.online && c.role != ControllerRole::Learner)
                        .map(drop)
                        .ok_or_else(|| format!("{all:?}")),
                    Err(error) => Err(error.to_string()),
                })
            })?;
            seed.get_or_insert(format!("http://{peer}"));
        }
        for name in STORAGE.into_iter().chain([CLIENT, SECOND]) {
            self.add_node(name)?;
        }
        self.wait_healthy()
    }

    fn add_node(&self, name: &str) -> anyhow::Result<()> {
        let storage = STORAGE.contains(&name);
        let spec = NodeSpec {
            name: name.to_owned(),
            address: self.address(name)?,
            kind: if storage {
                NodeKind::Storage
            } else {
                NodeKind::Diskless
            },
            properties: std::collections::BTreeMap::new(),
        };
        self.run(self.client.create_node(&spec))?;
        if storage {
            self.make_disk(name)?;
        }
        self.start_again(&[name])?;
        self.wait_node(name, NodeState::Online)?;
        if !storage {
            return Ok(());
        }
        let spec = PoolSpec {
            name: POOL.to_owned(),
            node: name.to_owned(),
            dir: self.disk(name).display().to_string(),
            ..PoolSpec::default()
        };
        self.run(self.client.create_pool(&spec))?;
        wait::that(wait::LONG, &format!("the pool of {name} is ready"), || {
            let pool = self.run(self.client.pool(POOL, name))?;
            Ok(if pool.state == PoolState::Ready {
                Ok(())
            } else {
                Err(format!("{pool:?}"))
            })
        })
    }

    /// Where a storage node's disk is mounted.
    fn disk(&self, node: &str) -> PathBuf {
        self.dir().join(node).join("pool")
    }

    fn make_disk(&self, node: &str) -> anyhow::Result<()> {
        let (image, place) = (self.root.join(format!("{node}.img")), self.disk(node));
        fs::create_dir_all(&place)?;
        let (image, place) = (image.display().to_string(), place.display().to_string());
        tool("truncate", &["-s", &format!("{DISK}M"), &image])?;
        tool("mkfs.ext4", &["-q", "-m", "0", &image])?;
        tool("mount", &["-o", "loop", &image, &place])
    }

    /// Fills a storage node's disk up to the last block.
    pub fn fill_disk(&self, node: &str) -> anyhow::Result<()> {
        let path = self.disk(node).join(BALLAST);
        let mut file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
        let block = vec![0xb5_u8; 1 << 20];
        // By halves, from a MiB down to a sector: what is left does not hold a block of a volume.
        let mut size = block.len();
        while size >= 512 {
            match file.write_all(block.get(..size).unwrap_or_default()) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => size /= 2,
                Err(error) => return Err(error).context("filling a disk"),
            }
        }
        Ok(())
    }

    /// Makes room again.
    pub fn free_disk(&self, node: &str) -> anyhow::Result<()> {
        let path = self.disk(node).join(BALLAST);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// The network of its machines.
    pub fn network(&self) -> anyhow::Result<&Network> {
        self.network.as_ref().context("the cluster is on loopback")
    }

    fn address(&self, daemon: &str) -> anyhow::Result<String> {
        self.network()?.address(&machine_of(daemon))
    }

    fn clock_file(&self, name: &str) -> PathBuf {
        self.dir().join("run").join(format!("{name}.clock"))
    }

    /// Why wall clocks can't be set here; `None` when they can.
    pub fn without_clocks() -> Option<String> {
        let missing = !Path::new(FAKETIME).exists();
        missing.then(|| format!("{FAKETIME} (package faketime)"))
    }

    /// Puts the wall clock of a daemon, and of the engines it starts, so many seconds beside the machine's. They
    /// notice within a second.
    pub fn set_wall_clock(&self, name: &str, seconds: i64) -> anyhow::Result<()> {
        let path = self.clock_file(name);
        let new = path.with_extension("new");
        fs::write(&new, format!("{seconds:+}\n")).with_context(|| format!("writing {}", new.display()))?;
        fs::rename(&new, &path).with_context(|| format!("writing {}", path.display()))
    }

    /// Starts a daemon with boot-time and monotonic clocks so many seconds beside the machine's.
    pub fn start_shifted(&self, name: &str, seconds: i64) -> anyhow::Result<()> {
        self.run_script(name, &[], Some(seconds))
    }

    fn run_script(&self, name: &str, words: &[&str], shift: Option<i64>) -> anyhow::Result<()> {
        let script = self.dir().join("run").join(format!("{name}.start"));
        let mut command = Command::new(&script);
        command.args(words).stdin(Stdio::null());
        if let Some(seconds) = shift {
            command.env("STOR_TESTS_SHIFT", seconds.to_string());
        }
        let output = command
            .output()
            .with_context(|| format!("running {}", script.display()))?;
        ensure!(output.status.success(), "{} failed: {output:?}", script.display());
        wait::until(wait::LONG, &format!("{name} runs"), || {
            Ok(self.pid(name).is_some())
        })
    }

    /// Ends a daemon as an upgrade does, and waits until it is gone.
    pub fn terminate(&self, name: &str) -> anyhow::Result<()> {
        let pid = self.pid(name).with_context(|| format!("{name} does not run"))?;
        process::signal(pid, Signal::TERM, &self.root)?;
        wait::until(wait::LONG, &format!("{name} has ended"), || {
            Ok(process::is_gone(pid))
        })
    }
}

fn tool(program: &str, words: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", words.join(" "), said.trim());
    }
    Ok(())
}
