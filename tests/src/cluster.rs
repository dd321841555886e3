//! A cluster of real processes on loopback for one test: three controllers `c1 c2 c3`, storage nodes `s1 s2 s3`,
//! a diskless node `k1`, as `storctl quickstart` makes them, with programs, ports and a directory of its own.
//!
//! [`Cluster::start_on_machines`] makes one on machines of its own instead, network namespaces between which the
//! network can be cut.
//!
//! Promises: however the test ends, its processes, mounts and loop devices end too (after a SIGKILL of the test
//! itself, at the start of the next one). When it failed, or `STOR_TESTS_KEEP_LOGS` is set, its logs are kept and
//! it is said where.

mod breaking;
mod machines;
mod points;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context as _, bail, ensure};
use serde_json::json;
use stor_api::client::{Client, Error, Options};
use stor_api::objects::{ControllerRole, Health, NodeState, Status};

use crate::network::Network;
use crate::ports::Ports;
use crate::{leftovers, process, wait};

pub use machines::{SECOND, machine_of};

/// Controllers.
pub const CONTROLLERS: [&str; 3] = ["c1", "c2", "c3"];
/// Storage nodes.
pub const STORAGE: [&str; 3] = ["s1", "s2", "s3"];
/// The diskless node.
pub const CLIENT: &str = "k1";
/// The pool of every storage node.
pub const POOL: &str = "sp01";

const PROGRAMS: [&str; 3] = ["storctl", "stor-controller", "stor-satellite"];
/// Each call of the API; calls while controllers are down are given up by the tests' own deadlines.
const CALL: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub struct Cluster {
    runtime: tokio::runtime::Runtime,
    client: Client,
    root: PathBuf,
    /// None when the cluster is on machines of its own.
    quickstart: Option<Child>,
    /// Of the machines, when it is.
    network: Option<Network>,
    /// Addresses of the controllers' APIs.
    apis: [String; 3],
    ports: Ports,
}

/// Runs a test on a cluster of its own.
pub fn with(test: impl FnOnce(&mut Cluster) -> anyhow::Result<()>) -> anyhow::Result<()> {
    on(Cluster::start()?, test)
}

/// Runs a test on a cluster on machines of its own.
pub fn with_machines(test: impl FnOnce(&mut Cluster) -> anyhow::Result<()>) -> anyhow::Result<()> {
    on(Cluster::start_on_machines()?, test)
}

fn on(mut cluster: Cluster, test: impl FnOnce(&mut Cluster) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let done = test(&mut cluster).and_then(|()| cluster.leaves_nothing());
    if done.is_err() || std::env::var_os("STOR_TESTS_KEEP_LOGS").is_some() {
        cluster.keep_logs();
    }
    done
}

impl Cluster {
    /// Starts one and waits until it is healthy.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_prepared(|_| Ok(()))
    }

    /// Starts one in a directory that `prepare` has put something into or under.
    pub fn start_prepared(prepare: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<Self> {
        leftovers::sweep();
        let root = leftovers::new_root()?;
        match Self::start_in(root.clone(), prepare) {
            Ok(cluster) => Ok(cluster),
            Err(error) => {
                leftovers::remove(&root);
                Err(error)
            }
        }
    }

    fn start_in(root: PathBuf, prepare: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<Self> {
        let dir = put_programs(&root)?;
        prepare(&dir)?;
        let ports = Ports::take()?;
        let record = json!({
            "version": 1,
            "controllers": {
                "c1": { "api": ports.get(0), "peer": ports.get(1) },
                "c2": { "api": ports.get(2), "peer": ports.get(3) },
                "c3": { "api": ports.get(4), "peer": ports.get(5) },
            },
            "satellites": { "s1": ports.get(6), "s2": ports.get(7), "s3": ports.get(8), "k1": null },
            "set_up": [],
        });
        fs::write(dir.join("quickstart.json"), record.to_string())?;
        let apis = [0, 2, 4].map(|index| format!("127.0.0.1:{}", ports.get(index)));
        let (client, runtime) = (api(&apis)?, runtime()?);
        let quickstart = start_quickstart(&root)?;
        let mut cluster = Self {
            runtime,
            client,
            root,
            quickstart: Some(quickstart),
            network: None,
            apis,
            ports,
        };
        cluster.up()?;
        Ok(cluster)
    }

    /// Waits until every daemon is up and the cluster is healthy.
    fn up(&mut self) -> anyhow::Result<()> {
        let record = self.dir().join("quickstart.json");
        wait::until(wait::LONG, "the quickstart is ready", || {
            self.quickstart_runs()?;
            let text = fs::read_to_string(&record).unwrap_or_default();
            let set_up = serde_json::from_str::<serde_json::Value>(&text)
                .ok()
                .and_then(|value| {
                    value
                        .pointer("/set_up")
                        .and_then(|list| list.as_array().map(Vec::len))
                });
            Ok(set_up == Some(STORAGE.len() + 1))
        })?;
        self.wait_healthy()
    }

    /// What the quickstart printed.
    pub fn said(&self) -> String {
        fs::read_to_string(self.root.join("quickstart.log")).unwrap_or_default()
    }

    /// The directory the quickstart was given.
    pub fn dir(&self) -> PathBuf {
        self.root.join("d")
    }

    /// A place for the test's own files, removed with the cluster.
    pub fn scratch(&self) -> PathBuf {
        self.root.clone()
    }

    /// A port that nobody of this cluster uses.
    pub fn spare_port(&self, index: u16) -> u16 {
        self.ports.get(12 + index % 4)
    }

    /// The port of a replica server or of a controller's API.
    pub fn port(&self, name: &str) -> anyhow::Result<u16> {
        let place = |names: [&str; 3]| names.iter().position(|known| *known == name);
        let index = match (place(CONTROLLERS), place(STORAGE)) {
            (Some(number), _) => 2 * number,
            (_, Some(number)) => 6 + number,
            _ => bail!("{name} has no port"),
        };
        Ok(self.ports.get(u16::try_from(index)?))
    }

    /// The port on which a controller listens for others.
    pub fn peer_port(&self, controller: &str) -> anyhow::Result<u16> {
        let place = CONTROLLERS.iter().position(|known| *known == controller);
        let place = place.with_context(|| format!("there is no controller {controller}"))?;
        Ok(self.ports.get(u16::try_from(2 * place + 1)?))
    }

    // ---- the API --------------------------------------------------------------------------------

    /// The API of any controller.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The API of one controller only.
    pub fn client_of(&self, controller: &str) -> anyhow::Result<Client> {
        let place = CONTROLLERS.iter().position(|known| *known == controller);
        let address = place.and_then(|place| self.apis.get(place));
        api(std::slice::from_ref(address.with_context(|| {
            format!("there is no controller {controller}")
        })?))
    }

    /// Runs a call to its end.
    pub fn run<T>(&self, call: impl Future<Output = T>) -> T {
        self.runtime.block_on(call)
    }

    /// Runs a call in the background.
    pub fn spawn<T: Send + 'static>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.runtime.spawn(call)
    }

    /// The cluster's state; `None` while no controller can tell.
    pub fn status(&self) -> anyhow::Result<Option<Status>> {
        match self.run(self.client.status()) {
            Ok(status) => Ok(Some(status)),
            Err(Error::Unreachable { .. } | Error::TimedOut { .. } | Error::Failed(_)) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }

    /// Waits until there is nothing to report but, perhaps, that the machine's own disk is rather full: that is no
    /// fault of the cluster and would fail every test.
    pub fn wait_healthy(&self) -> anyhow::Result<()> {
        wait::that(wait::LONG, "the cluster is healthy", || {
            Ok(match self.status()? {
                None => Err("no controller answers".to_owned()),
                Some(status) if status.health == Health::Ok => Ok(()),
                Some(status) if status.checks.iter().all(|check| check.code == "POOL_FULL") => Ok(()),
                Some(status) => Err(format!("{:?}", status.checks)),
            })
        })
    }

    /// Waits until a node's satellite is connected, or until it is known to be away.
    pub fn wait_node(&self, node: &str, state: NodeState) -> anyhow::Result<()> {
        wait::that(wait::LONG, &format!("node {node} is {state:?}"), || {
            Ok(match self.run(self.client.node(node)) {
                Ok(found) if found.state == state => Ok(()),
                Ok(found) => Err(format!("{:?}", found.state)),
                Err(error) => Err(error.to_string()),
            })
        })
    }

    /// The controller that leads now.
    pub fn leader(&self) -> anyhow::Result<String> {
        wait::that(wait::LONG, "a controller leads", || {
            Ok(match self.run(self.client.controllers()) {
                Ok(all) => all
                    .iter()
                    .find(|c| c.role == ControllerRole::Leader)
                    .map(|c| c.name.clone())
                    .ok_or_else(|| format!("{all:?}")),
                Err(error) => Err(error.to_string()),
            })
        })
    }

    /// Runs `storctl` against the cluster. Returns its exit status, what it said, and what it complained of.
    pub fn storctl(&self, args: &[&str]) -> anyhow::Result<(i32, String, String)> {
        let output = Command::new(self.root.join("bin/storctl"))
            .args(args)
            .env("STOR_URL", self.client.urls().join(","))
            .stdin(Stdio::null())
            .output()
            .context("running storctl")?;
        Ok((
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }

    /// One of the cluster's programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.root.join("bin").join(name)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            self.keep_logs();
        }
        for pid in process::all_of(&self.root) {
            // What a test has stopped could not end otherwise.
            _ = process::resume(pid, &self.root);
        }
        self.interrupt();
        leftovers::remove(&self.root);
    }
}

fn api(addresses: &[String]) -> anyhow::Result<Client> {
    Ok(Client::new(&Options {
        urls: addresses
            .iter()
            .map(|address| format!("http://{address}"))
            .collect(),
        token_file: None,
        ca_file: None,
        timeout: CALL,
    })?)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?)
}

/// Puts the programs where the cluster runs them from, and makes its directory.
fn put_programs(root: &Path) -> anyhow::Result<PathBuf> {
    let bin = root.join("bin");
    fs::create_dir(&bin)?;
    for name in PROGRAMS {
        let built = built(name)?;
        // The same file under another name: a build that runs meanwhile puts new files in their places.
        fs::hard_link(&built, bin.join(name))
            .or_else(|_| fs::copy(&built, bin.join(name)).map(drop))
            .with_context(|| format!("copying {}", built.display()))?;
    }
    let dir = root.join("d");
    fs::create_dir(&dir)?;
    Ok(dir)
}

fn start_quickstart(root: &Path) -> anyhow::Result<Child> {
    let log = fs::File::create(root.join("quickstart.log"))?;
    Command::new(root.join("bin/storctl"))
        .args(["quickstart", "--dir"])
        .arg(root.join("d"))
        .envs(points::environment(root))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting storctl quickstart")
}

/// A program of this build: tests lie in `deps` beside them.
pub fn built(name: &str) -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe().context("finding the test's own program")?;
    let path = test
        .parent()
        .and_then(Path::parent)
        .context("the test's program is in no build directory")?
        .join(name);
    ensure!(
        path.exists(),
        "{} is not built: run `cargo build --workspace` first",
        path.display()
    );
    Ok(path)
}
