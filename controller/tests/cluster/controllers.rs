//! Starts controllers in temporary directories.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use stor_api::client::{Client, Options};
use stor_api::objects::{Node, NodeKind, NodeSpec, PoolSpec};
use stor_controller::server::{self, Running};
use stor_controller::settings::{Settings, Wanted};
use stor_raft::Timing;
use tempfile::TempDir;

use crate::satellite::Satellite;

/// How long anything may take on a busy machine before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) struct Controller {
    pub(crate) running: Running,
    pub(crate) dir: PathBuf,
    pub(crate) peer: SocketAddr,
}

impl Controller {
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.running.api())
    }

    pub(crate) fn client(&self) -> Client {
        client(&[self.url()])
    }
}

pub(crate) fn client(urls: &[String]) -> Client {
    Client::new(&Options {
        urls: urls.to_vec(),
        token_file: None,
        ca_file: None,
        timeout: PATIENCE,
    })
    .unwrap()
}

/// A free port below those the kernel gives to clients; test processes begin at different ones.
fn free() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let turn = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id() * 32;
        let port = u16::try_from(10_000 + turn % 20_000).unwrap();
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return listener.local_addr().unwrap();
        }
    }
}

fn wanted(name: &str) -> Wanted {
    Wanted {
        name: name.into(),
        peer_listen: free(),
        api_listen: free(),
        peer_address: None,
        api_address: None,
    }
}

/// A cluster of `count` controllers.
pub(crate) async fn cluster(count: usize) -> (TempDir, Vec<Controller>) {
    let root = tempfile::tempdir().unwrap();
    let mut controllers: Vec<Controller> = Vec::new();
    for n in 1..=count {
        let name = format!("c{n}");
        let dir = root.path().join(&name);
        let settings = Settings::begin(&dir, wanted(&name)).unwrap();
        let peer = settings.peer_listen;
        let running = match controllers.first() {
            None => {
                let settings = server::init(&dir, settings, Timing::fast()).await.unwrap();
                server::start(&dir, &settings, Timing::fast()).await.unwrap()
            }
            Some(first) => {
                let seed = format!("http://{}", first.peer);
                server::join(&dir, settings, &[seed], Timing::fast())
                    .await
                    .unwrap()
            }
        };
        controllers.push(Controller { running, dir, peer });
    }
    (root, controllers)
}

/// Storage nodes s1…, each with pool sp01, and their satellites; all ready for volumes.
pub(crate) async fn storage(controllers: &[Controller], count: usize) -> Vec<Satellite> {
    let client = controllers[0].client();
    let peers: Vec<SocketAddr> = controllers.iter().map(|c| c.peer).collect();
    let mut satellites = Vec::new();
    for n in 1..=count {
        let name = format!("s{n}");
        client.create_node(&node(&name, NodeKind::Storage)).await.unwrap();
        client.create_pool(&pool(&name)).await.unwrap();
        satellites.push(Satellite::start(&name, peers.clone()));
    }
    until("the pools are ready", async || {
        let pools = client.pools().await.unwrap();
        pools.len() == count
            && pools
                .iter()
                .all(|pool| pool.state == stor_api::objects::PoolState::Ready)
    })
    .await;
    satellites
}

/// Diskless node k1 with its satellite, online.
pub(crate) async fn diskless(controllers: &[Controller], name: &str) -> Satellite {
    let client = controllers[0].client();
    client.create_node(&node(name, NodeKind::Diskless)).await.unwrap();
    let satellite = Satellite::start(name, controllers.iter().map(|c| c.peer).collect());
    until("the node is online", async || {
        online(&client.node(name).await.unwrap())
    })
    .await;
    satellite
}

pub(crate) fn online(node: &Node) -> bool {
    node.state == stor_api::objects::NodeState::Online
}

pub(crate) fn node(name: &str, kind: NodeKind) -> NodeSpec {
    NodeSpec {
        name: name.into(),
        address: "127.0.0.1".into(),
        kind,
        properties: [].into(),
    }
}

pub(crate) fn pool(node: &str) -> PoolSpec {
    PoolSpec {
        name: "sp01".into(),
        node: node.into(),
        dir: "/pools/sp01".into(),
        ..PoolSpec::default()
    }
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, waiting).await.is_ok(),
        "in vain: {what}"
    );
}
