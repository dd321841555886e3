//! A satellite without disks: it reports what it is told to hold as held, and answers stops with a clean detach.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stor_proto::satellite::satellites_client::SatellitesClient;
use stor_proto::satellite::{
    Answer, ChangeView, Desired, Detach, Disk, EngineState, EngineStatus, FromController, FromSatellite,
    Hello, PoolStatus, ReplicaState, ReplicaStatus, Request, Status, Stored, TransportProbe, change_view,
    from_controller, from_satellite, request,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

const GIB: u64 = 1 << 30;

/// What a test may look at and change.
#[derive(Default)]
pub(crate) struct Inside {
    pub(crate) desired: Option<Desired>,
    /// Every `Desired` in order, by revision.
    pub(crate) revisions: Vec<u64>,
    pub(crate) sessions: usize,
    /// The last refusal of a session.
    pub(crate) refused: Option<tonic::Status>,
    /// The view replicas say they have stored.
    pub(crate) stored_epoch: u64,
    /// What the node holds that it was not asked for, and what it says of replicas instead of what it was asked.
    pub(crate) holds: Vec<ReplicaStatus>,
    /// Not all pools could be looked through.
    pub(crate) unsearched: bool,
    /// Replicas are not made while this is set.
    pub(crate) lazy: bool,
    /// Engines serve only while this is not set.
    pub(crate) stuck: bool,
    asks: Vec<(request::Kind, oneshot::Sender<Answer>)>,
}

pub(crate) struct Satellite {
    pub(crate) inside: Arc<Mutex<Inside>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Satellite {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Satellite {
    pub(crate) fn start(name: &str, controllers: Vec<SocketAddr>) -> Self {
        let inside = Arc::new(Mutex::new(Inside::default()));
        let (name, shared) = (name.to_owned(), Arc::clone(&inside));
        let task = tokio::spawn(async move {
            let mut leader: Option<String> = None;
            for turn in 0.. {
                let address = leader
                    .take()
                    .unwrap_or_else(|| format!("http://{}", controllers[turn % controllers.len()]));
                match session(&name, address, &shared).await {
                    Ok(()) => {}
                    Err(status) => {
                        leader = status
                            .metadata()
                            .get("stor-leader")
                            .and_then(|value| value.to_str().ok())
                            .map(str::to_owned);
                        shared.lock().unwrap().refused = Some(status);
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Self { inside, task }
    }

    pub(crate) fn desired(&self) -> Desired {
        self.inside.lock().unwrap().desired.clone().unwrap_or_default()
    }

    pub(crate) async fn ask(&self, kind: request::Kind) -> Answer {
        let (sender, receiver) = oneshot::channel();
        self.inside.lock().unwrap().asks.push((kind, sender));
        tokio::time::timeout(crate::controllers::PATIENCE, receiver)
            .await
            .unwrap()
            .unwrap()
    }

    pub(crate) async fn change(&self, volume_id: &str, change: change_view::Change) -> Answer {
        let change = ChangeView {
            volume_id: volume_id.into(),
            change: Some(change),
        };
        self.ask(request::Kind::Change(change)).await
    }
}

fn hello(name: &str) -> Hello {
    let transport = |name: &str, available, remedy: &str| TransportProbe {
        name: name.into(),
        available,
        remedy: remedy.into(),
    };
    Hello {
        protocol: 1,
        node: name.into(),
        version: "0.1.0".into(),
        boot_id: "b".into(),
        data_address: if name.starts_with('s') {
            format!("127.0.0.1:3{name}")
        } else {
            String::new()
        },
        transports: vec![
            transport("fuse", false, "load the module fuse"),
            transport("socket", true, ""),
        ],
    }
}

async fn session(name: &str, address: String, inside: &Arc<Mutex<Inside>>) -> Result<(), tonic::Status> {
    let mut client = SatellitesClient::connect(address)
        .await
        .map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let (out, outgoing) = mpsc::channel(64);
    let send = |kind| FromSatellite { kind: Some(kind) };
    out.send(send(from_satellite::Kind::Hello(hello(name))))
        .await
        .unwrap();
    let mut incoming = client.session(ReceiverStream::new(outgoing)).await?.into_inner();
    inside.lock().unwrap().sessions += 1;
    let mut waiting: BTreeMap<u64, oneshot::Sender<Answer>> = BTreeMap::new();
    let mut next = 1;
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    loop {
        tokio::select! {
            message = incoming.next() => match message {
                None => return Ok(()),
                Some(message) => hear(message?, inside, &mut waiting),
            },
            _ = tick.tick() => {
                let (status, stops) = status(inside);
                let gone = |_| tonic::Status::cancelled("hung up");
                out.send(send(from_satellite::Kind::Status(status))).await.map_err(gone)?;
                for request in stops {
                    out.send(send(from_satellite::Kind::Request(request))).await.map_err(gone)?;
                }
                let asks = std::mem::take(&mut inside.lock().unwrap().asks);
                for (kind, answer) in asks {
                    waiting.insert(next, answer);
                    let request = Request { id: next, kind: Some(kind) };
                    out.send(send(from_satellite::Kind::Request(request))).await.map_err(gone)?;
                    next += 1;
                }
            }
        }
    }
}

fn hear(
    message: FromController,
    inside: &Mutex<Inside>,
    waiting: &mut BTreeMap<u64, oneshot::Sender<Answer>>,
) {
    match message.kind.unwrap() {
        from_controller::Kind::Welcome(welcome) => assert!(!welcome.controllers.is_empty()),
        from_controller::Kind::Desired(desired) => {
            let mut inside = inside.lock().unwrap();
            inside.revisions.push(desired.revision);
            inside.desired = Some(desired);
        }
        from_controller::Kind::Answer(answer) => {
            if let Some(asker) = waiting.remove(&answer.id) {
                asker.send(answer).ok();
            }
        }
        from_controller::Kind::RemoveOrphans(_) => {}
    }
}

/// What the node reports, and the detaches of engines that are to stop.
fn status(inside: &Mutex<Inside>) -> (Status, Vec<Request>) {
    let inside = inside.lock().unwrap();
    let desired = inside.desired.clone().unwrap_or_default();
    let mut status = Status {
        desired_revision: desired.revision,
        disks: vec![Disk {
            path: "/dev/sdb".into(),
            size_bytes: GIB,
            ..Disk::default()
        }],
        history: desired.history.clone(),
        searched: desired.keep && !inside.unsearched,
        ..Status::default()
    };
    status.replicas.extend(inside.holds.iter().cloned());
    for pool in &desired.pools {
        status.pools.push(PoolStatus {
            name: pool.name.clone(),
            error: String::new(),
            capacity_bytes: 100 * GIB,
            free_bytes: 90 * GIB,
            snapshots: "reflink".into(),
            filesystem: String::new(),
            ..PoolStatus::default()
        });
    }
    for replica in &desired.replicas {
        let state = match (replica.delete, replica.create && inside.lazy) {
            (true, _) => ReplicaState::Deleted,
            (false, true) => continue,
            (false, false) => ReplicaState::Ready,
        };
        let same =
            |held: &&ReplicaStatus| (&held.volume_id, held.replica) == (&replica.volume_id, replica.replica);
        if inside.holds.iter().any(|held| same(&held)) {
            continue;
        }
        status.replicas.push(ReplicaStatus {
            volume_id: replica.volume_id.clone(),
            replica: replica.replica,
            state: state.into(),
            allocated_bytes: 4096,
            stored_epoch: inside.stored_epoch,
            stored: desired.keep.then(|| Stored {
                fence_epoch: inside.stored_epoch,
                size_bytes: replica.size_bytes,
                lineage: replica.lineage.clone(),
                in_sync: vec![0, 1],
                pool: replica.pool.clone(),
            }),
            ..ReplicaStatus::default()
        });
    }
    let mut stops = Vec::new();
    for engine in &desired.engines {
        let volume = engine.volume.clone().unwrap();
        let state = if inside.stuck {
            EngineState::Starting
        } else {
            EngineState::Serving
        };
        status.engines.push(EngineStatus {
            volume_id: volume.volume_id.clone(),
            epoch: volume.epoch,
            state: state.into(),
            nbd_uri: format!("nbd+unix:///{}?socket=/run/{}", volume.name, volume.name),
            ..EngineStatus::default()
        });
        if engine.stop && !inside.stuck {
            let detach = Detach {
                expect_epoch: volume.epoch,
                clean: true,
            };
            let change = ChangeView {
                volume_id: volume.volume_id,
                change: Some(change_view::Change::Detach(detach)),
            };
            stops.push(Request {
                id: 0,
                kind: Some(request::Kind::Change(change)),
            });
        }
    }
    (status, stops)
}
