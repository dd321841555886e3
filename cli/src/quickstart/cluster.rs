//! The life of a quickstart's cluster: up, step by step, each one looked at until it holds, and down again,
//! devices before replicas before controllers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use stor_api::client::{Client, Error, Options};
use stor_api::objects::{ControllerRole, NodeKind, NodeSpec, NodeState, PoolSpec, PoolState};

use super::daemon::Daemon;
use super::fleet::{self, POOL, Programs};
use super::place::{Place, Record, cannot};
use super::{LOOK, process};
use crate::args::{Format, Global};
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::output::{Output, note};

mod ending;

/// A controller answers within this time after its start, also on a machine that is busy compiling.
const CONTROLLER_DEADLINE: Duration = Duration::from_mins(1);
/// A satellite is connected within this time, the heartbeat that a restarted leader waits for included.
const NODE_DEADLINE: Duration = Duration::from_mins(1);
const POOL_DEADLINE: Duration = Duration::from_secs(30);
/// A daemon that is not seen for this long has ended. One that is just becoming our program is not seen either, which
/// takes seconds where the program has to be read from a busy disk.
const GONE: Duration = Duration::from_secs(8);

/// See the module.
#[derive(Debug)]
pub(crate) struct Cluster {
    place: Place,
    record: Record,
    controllers: Vec<Daemon>,
    satellites: Vec<Daemon>,
    client: Client,
    /// Names of volumes by id; filled when some are found in use at the end.
    volumes: BTreeMap<String, String>,
}

impl Cluster {
    /// Chooses or recalls ports and names, writes the scripts and `env`; starts nothing yet.
    pub(crate) fn prepare(place: Place, nodes: Option<u8>, global: &Global) -> Result<Self, Failure> {
        let programs = Programs::find()?;
        let mut record = fleet::complete(place.record()?, nodes)?;
        let nobody_runs = process::all(place.dir()).is_empty();
        if nobody_runs {
            fleet::move_taken(&mut record)?;
        }
        place.save(&record)?;
        let controllers = fleet::controllers(&place, &programs, &record);
        let satellites = fleet::satellites(&place, &programs, &record);
        for daemon in controllers.iter().chain(&satellites) {
            daemon.write_script()?;
            if nobody_runs {
                // Left by a machine that lost its power: another daemon, or its script, may get the number now.
                daemon.forget();
            }
        }
        let urls: Vec<String> = record
            .controllers
            .values()
            .map(|c| format!("http://127.0.0.1:{}", c.api))
            .collect();
        let env = format!("STOR_URL={}\nSTOR_TOKEN_FILE=\nSTOR_CA_FILE=\n", urls.join(","));
        let exported = format!("{env}export STOR_URL STOR_TOKEN_FILE STOR_CA_FILE\n");
        Place::write(&place.env(), &exported, 0o644)?;
        let timeout = global.timeout.min(Duration::from_secs(30));
        let client = Client::new(&Options {
            urls,
            token_file: None,
            ca_file: None,
            timeout,
        })?;
        Ok(Self {
            place,
            record,
            controllers,
            satellites,
            client,
            volumes: BTreeMap::new(),
        })
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn controllers(&self) -> &[Daemon] {
        &self.controllers
    }

    pub(crate) fn satellites(&self) -> &[Daemon] {
        &self.satellites
    }

    /// The satellite of a node.
    pub(crate) fn satellite(&self, node: &str) -> Result<&Daemon, Failure> {
        let found = self.satellites.iter().find(|s| s.name == node);
        found.ok_or_else(|| Failure::new(Exit::NotFound, format!("this quickstart started no node {node}")))
    }

    /// For waiting as other commands do, silently, at most `limit`.
    pub(crate) fn context(&self, limit: Duration) -> Context {
        Context {
            client: self.client.clone(),
            out: Output { format: Format::Json },
            deadline: Instant::now() + limit,
            timeout: limit,
            dry_run: false,
            yes: true,
            no_wait: false,
        }
    }

    /// Brings everything up. Not cancel-safe as such: what was started is stopped by [`Cluster::stop`].
    pub(crate) async fn start(&mut self) -> Result<(), Failure> {
        note(&format!("starting controllers {}", names(&self.controllers)));
        self.start_controllers().await?;
        self.register_nodes().await?;
        note(&format!("starting satellites {}", names(&self.satellites)));
        for satellite in &self.satellites {
            satellite.start(&[]).await?;
        }
        self.nodes_online().await?;
        self.make_pools().await
    }

    /// Those that are set up at once, new ones one after the other: a cluster takes in one at a time.
    async fn start_controllers(&self) -> Result<(), Failure> {
        let is_new = |controller: &Daemon| !fleet::is_set_up(&self.place.of(&controller.name));
        for controller in self.controllers.iter().filter(|c| !is_new(c)) {
            controller.start(&[]).await?;
        }
        for (controller, first) in self
            .controllers
            .iter()
            .zip(fleet::first_words(&self.place, &self.record))
        {
            if is_new(controller) {
                controller.start(&first).await?;
                self.controller_ready(controller, true).await?;
            }
        }
        let mut missing = Vec::new();
        for controller in &self.controllers {
            if let Err(failure) = self.controller_ready(controller, false).await {
                missing.push((controller, failure));
            }
        }
        let ready = self.controllers.len() - missing.len();
        // A majority carries the cluster; one that is damaged must not keep the volumes from their users.
        let carried = ready * 2 > self.controllers.len();
        for (controller, failure) in missing {
            if !carried {
                return Err(failure);
            }
            note(&failure.render());
            let (name, dir) = (&controller.name, self.place.of(&controller.name));
            note(&format!(
                "going on without {}: the other {ready} carry the cluster, as long as none of them fails. To replace it: \
                 storctl controller remove {name}, delete {}, start the quickstart again",
                controller.title,
                dir.display()
            ));
        }
        Ok(())
    }

    /// Waits until a controller is a voter that the leader hears. One that the user has removed is left alone.
    async fn controller_ready(&self, controller: &Daemon, is_new: bool) -> Result<(), Failure> {
        let client = self.client.with_timeout(Duration::from_secs(5));
        self.hold(
            controller,
            CONTROLLER_DEADLINE,
            "is not ready",
            async || match client.controllers().await {
                Ok(all) => match all.iter().find(|c| c.name == controller.name) {
                    Some(found) => Ok(found.online && found.role != ControllerRole::Learner),
                    None => Ok(!is_new),
                },
                Err(Error::Unreachable { .. } | Error::TimedOut { .. } | Error::Failed(_)) => Ok(false),
                Err(other) => Err(other.into()),
            },
        )
        .await
    }

    /// Looks until `look` says yes, at most `limit`, as long as `daemon` lives.
    async fn hold(
        &self,
        daemon: &Daemon,
        limit: Duration,
        otherwise: &str,
        look: impl AsyncFn() -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        let mut seen = Instant::now();
        loop {
            if daemon.pid().is_some() {
                seen = Instant::now();
            }
            if look().await? {
                return Ok(());
            }
            if seen.elapsed() > GONE {
                return Err(daemon.ended());
            }
            if Instant::now() >= deadline {
                let waited = crate::wait::seconds(limit);
                return Err(Failure::new(
                    Exit::TimedOut,
                    format!("{} {otherwise} after {waited}", daemon.title),
                )
                .help(format!("its log is {}", daemon.log().display())));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn register_nodes(&self) -> Result<(), Failure> {
        for (name, port) in &self.record.satellites {
            if self.record.set_up.contains(name) {
                continue;
            }
            let spec = NodeSpec {
                name: name.clone(),
                address: "127.0.0.1".to_owned(),
                kind: if port.is_some() {
                    NodeKind::Storage
                } else {
                    NodeKind::Diskless
                },
                properties: BTreeMap::new(),
            };
            self.client
                .create_node(&spec)
                .await
                .map_err(|e| Failure::from(e).during(&format!("node {name}")))?;
        }
        Ok(())
    }

    async fn nodes_online(&self) -> Result<(), Failure> {
        for satellite in &self.satellites {
            self.hold(satellite, NODE_DEADLINE, "is not connected", async || match self
                .client
                .node(&satellite.name)
                .await
            {
                // A new leader takes the nodes for online at first; it has heard those with a time.
                Ok(node) => Ok(node.state == NodeState::Online && node.last_seen.is_some()),
                // The user has taken it away; its satellite is none of the cluster's any more.
                Err(Error::NotFound { .. }) => Ok(true),
                Err(error) => Err(error.into()),
            })
            .await?;
        }
        Ok(())
    }

    async fn make_pools(&mut self) -> Result<(), Failure> {
        let new: Vec<(String, bool)> = self
            .record
            .satellites
            .iter()
            .filter(|(name, _)| !self.record.set_up.contains(name))
            .map(|(name, port)| (name.clone(), port.is_some()))
            .collect();
        for (name, _) in new.iter().filter(|(_, storage)| *storage) {
            let dir = self.place.pool(name);
            std::fs::create_dir_all(&dir).map_err(|e| cannot("make the directory", &dir, &e))?;
            let spec = PoolSpec {
                name: POOL.to_owned(),
                node: name.clone(),
                dir: dir.display().to_string(),
                ..PoolSpec::default()
            };
            self.client
                .create_pool(&spec)
                .await
                .map_err(|e| Failure::from(e).during(&format!("pool {POOL} on {name}")))?;
        }
        for (name, storage) in new {
            if storage {
                self.pool_ready(&name).await?;
            }
            self.record.set_up.push(name);
        }
        self.place.save(&self.record)
    }

    async fn pool_ready(&self, node: &str) -> Result<(), Failure> {
        let satellite = self.satellite(node)?;
        self.hold(satellite, POOL_DEADLINE, "does not report its pool", async || {
            let pool = self.client.pool(POOL, node).await?;
            match pool.state {
                PoolState::Ready => Ok(true),
                PoolState::Failed => {
                    Err(Failure::failed(format!("pool {POOL} on {node} can't be used")).why(pool.error))
                }
                PoolState::Pending | PoolState::Offline => Ok(false),
            }
        })
        .await
    }
}

fn names(daemons: &[Daemon]) -> String {
    daemons
        .iter()
        .map(|d| d.name.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}
