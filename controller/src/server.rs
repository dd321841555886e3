//! A controller at work: its listeners, its Raft node, its loops.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use stor_raft::{
    InitializeError, JoinError, Node, OpenError, Options, PeerHandler, ProposeError, ServeError, Timing,
};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use uuid::Uuid;

use crate::catalogue::{Action, Catalogue, Command, Refused};
use crate::cluster::{Cluster, now};
use crate::rest::{Front, app};
use crate::settings::{Settings, SettingsError, Wanted};
use crate::signing_key::{self, SigningKeyError};
use crate::{reconcile, rest, session, signers};

/// Requests under way when the process ends get this long.
const DRAIN: Duration = Duration::from_secs(3);
/// A leader that ends hands over first, if somebody takes it in this time.
const HAND_OVER: Duration = Duration::from_secs(3);

/// A controller does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Its settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Its storage.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its key for rights.
    #[error(transparent)]
    SigningKey(#[from] SigningKeyError),
    /// The peers' port.
    #[error("{source}; is another program on it? choose another port with --peer-listen")]
    Peer {
        /// Why.
        source: ServeError,
    },
    /// The API's port.
    #[error(
        "cannot listen for API requests on {address}: {source}; is another program on it? choose another port \
         with --api-listen"
    )]
    Api {
        /// Address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Raft made no cluster.
    #[error("no cluster was made: {0}")]
    Make(#[from] InitializeError),
    /// The new cluster did not take its identity.
    #[error("the new cluster does not work: {0}")]
    Init(#[source] ProposeError),
    /// The new cluster refused its identity.
    #[error("no cluster was made: {0}")]
    Refused(#[from] Refused),
    /// The cluster did not take it in.
    #[error("the controller could not join: {0}")]
    Join(#[from] JoinError),
}

/// A controller that runs. Call [`Running::stop`]; dropping it leaves its tasks running.
#[derive(Debug)]
pub struct Running {
    cluster: Arc<Cluster>,
    api: SocketAddr,
    stop: CancellationToken,
    serving: Vec<JoinHandle<()>>,
    working: Vec<JoinHandle<()>>,
}

pub(crate) async fn open(
    dir: &Path,
    settings: &Settings,
    timing: Timing,
) -> Result<Node<Catalogue>, OpenError> {
    let mut options = Options::new(dir, settings.peer_listen, settings.peer());
    options.timing = timing;
    Node::open(options).await
}

/// Whether both ports could be listened on. Asked before a cluster is made, which nobody wants to be left with when it
/// can't run.
pub async fn check_ports(wanted: &Wanted) -> Result<(), StartError> {
    let address = wanted.api_listen;
    let _api = TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Api { address, source })?;
    let address = wanted.peer_listen;
    let _peers = TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Peer {
            source: ServeError::Bind { address, source },
        })?;
    Ok(())
}

impl StartError {
    /// Whether it can be said for certain that no other controller knows of the one that did not start.
    pub fn nobody_heard(&self) -> bool {
        matches!(
            self,
            Self::Api { .. } | Self::Peer { .. } | Self::Join(JoinError::Refused { .. })
        )
    }
}

/// Makes a cluster of one. Continues what an earlier attempt left; not cancel-safe: await it to the end.
pub async fn init(dir: &Path, settings: Settings, timing: Timing) -> Result<Settings, StartError> {
    let node = open(dir, &settings, timing).await?;
    let done = async {
        if !node.is_initialized().await {
            node.initialize().await?;
        }
        let command = Command {
            at: now(),
            action: Action::InitCluster { id: Uuid::new_v4() },
        };
        // One that is there already is no refusal: an attempt before was cut off.
        node.propose(command).await.map_err(StartError::Init)??;
        let command = Command {
            at: now(),
            action: Action::AddSigner {
                controller: node.me().id,
                name: node.me().name.clone(),
                key: signing_key::open(dir)?.public(),
            },
        };
        if let Err(refused) = node.propose(command).await.map_err(StartError::Init)? {
            tracing::warn!(%refused, "the controller's signing key is not registered yet; it is when it runs");
        }
        Ok::<(), StartError>(())
    };
    let result = done.await;
    node.shutdown().await;
    result?;
    Ok(settings.complete(dir)?)
}

/// Joins the cluster of `seeds` and goes on running. Not cancel-safe: await it to the end.
pub async fn join(
    dir: &Path,
    settings: Settings,
    seeds: &[String],
    timing: Timing,
) -> Result<Running, StartError> {
    let running = start(dir, &settings, timing).await?;
    let seeds: Vec<String> = seeds.iter().map(|seed| plain(seed)).collect();
    let joined = stor_raft::join(&seeds, &settings.peer()).await;
    let complete = match joined {
        Ok(()) => settings.complete(dir).map(drop).map_err(StartError::from),
        Err(error) => Err(error.into()),
    };
    match complete {
        Ok(()) => Ok(running),
        Err(error) => {
            running.stop().await;
            Err(error)
        }
    }
}

fn plain(address: &str) -> String {
    address
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned()
}

/// Starts a controller. Both ports are bound before anything is opened, so that a second start in the same place
/// leaves the first alone. Not cancel-safe: await it to the end.
pub async fn start(dir: &Path, settings: &Settings, timing: Timing) -> Result<Running, StartError> {
    let address = settings.api_listen;
    let api = TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Api { address, source })?;
    let api_address = api
        .local_addr()
        .map_err(|source| StartError::Api { address, source })?;
    let node = open(dir, settings, timing).await?;
    let signer = match signing_key::open(dir) {
        Ok(signer) => signer,
        Err(error) => {
            node.shutdown().await;
            return Err(error.into());
        }
    };
    rest::sweep(dir);
    let peers = match node.bind().await {
        Ok(listener) => listener,
        Err(source) => {
            node.shutdown().await;
            return Err(StartError::Peer { source });
        }
    };
    let cluster = Arc::new(Cluster::new(node.clone(), signer, settings.policy));
    let front = Arc::new(Front::new(Arc::clone(&cluster)));
    let stop = cluster.stopping.clone();
    let handler: Arc<dyn PeerHandler> = Arc::clone(&front) as Arc<dyn PeerHandler>;
    let satellites = Routes::new(session::Service::new(Arc::clone(&cluster)))
        .add_service(signers::Service::new(Arc::clone(&cluster)));
    let peer_server = tokio::spawn(async move {
        if let Err(error) = node.serve_with(peers, handler, satellites).await {
            tracing::error!(%error, "peers and satellites are not served any more");
        }
    });
    let ended = stop.clone();
    let api_server = tokio::spawn(async move {
        let serving = axum::serve(api, app(front)).with_graceful_shutdown(ended.cancelled_owned());
        if let Err(error) = serving.await {
            tracing::error!(%error, "the API is not served any more");
        }
    });
    let working = vec![
        tokio::spawn(session::follow_desired(Arc::clone(&cluster))),
        tokio::spawn(reconcile::run(Arc::clone(&cluster))),
        tokio::spawn(signers::run(Arc::clone(&cluster))),
    ];
    tracing::info!(name = %settings.name, api = %api_address, peers = %settings.peer_listen, "controller runs");
    Ok(Running {
        cluster,
        api: api_address,
        stop,
        serving: vec![api_server, peer_server],
        working,
    })
}

impl Running {
    /// What it shares.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Where the API is served.
    pub fn api(&self) -> SocketAddr {
        self.api
    }

    /// Waits until the controller can't go on; says why. Cancel-safe.
    pub async fn failed(&self) -> String {
        self.cluster.raft.failed().await
    }

    /// Hands over the leadership, lets requests under way end, closes everything. Not cancel-safe.
    pub async fn stop(self) {
        self.hand_over().await;
        self.stop_now().await;
    }

    /// As [`Running::stop`], without handing over: the others have to find out.
    pub async fn stop_now(self) {
        self.stop.cancel();
        for task in &self.working {
            task.abort();
        }
        let mut serving = self.serving.into_iter();
        if let Some(mut api) = serving.next()
            && tokio::time::timeout(DRAIN, &mut api).await.is_err()
        {
            // A stream that its client keeps open.
            api.abort();
        }
        self.cluster.raft.shutdown().await;
        for task in serving {
            task.abort();
        }
    }

    async fn hand_over(&self) {
        if !self.cluster.leads() {
            return;
        }
        let members = self.cluster.raft.members();
        let heir = members
            .iter()
            .find(|member| member.voter && !member.leader && member.heard == Some(true));
        let Some(heir) = heir else { return };
        match tokio::time::timeout(HAND_OVER, self.cluster.raft.transfer_leader(heir.peer.id)).await {
            Ok(Ok(())) => tracing::info!(to = %heir.peer.name, "handed over the leadership"),
            Ok(Err(error)) => tracing::warn!(%error, "the leadership was not handed over"),
            Err(_) => tracing::warn!("the leadership was not handed over in time"),
        }
    }
}
