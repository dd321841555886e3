//! The sessions of satellites: one gRPC stream each, dialled by the satellite, served by the leader only.
//!
//! ```text
//! Hello ──► known node? ──► Welcome, Desired ──► Status in, Desired out when it changed, Requests answered
//! ```
//!
//! A second session of a node replaces the first. When leadership is lost, all sessions end, so that
//! satellites dial the new leader. Nothing in a session is state: it can end at any moment.

pub mod desired;
mod open;
mod quiet;
mod requests;
#[cfg(test)]
mod tests;
pub mod wire;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::Stream;
use stor_proto::satellite::satellites_server::{Satellites, SatellitesServer};
use stor_proto::satellite::{
    Desired, FromController, FromSatellite, Hello, Welcome, from_controller, from_satellite,
};
use stor_right::Seconds;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

pub use open::{Sessions, follow_desired};

use self::quiet::Quiet;
use crate::catalogue::row::History;
use crate::catalogue::{Action, Kind, Object, Refused, load};
use crate::cluster::{Cluster, Trouble, now};
use crate::observed::{HEARTBEAT, Heard};
use crate::rights::{self, Issuer};

/// Version of the protocol spoken.
const PROTOCOL: u32 = 1;
/// Messages waiting to be sent to one satellite. Desired states are coalesced, so that only answers queue.
const OUTGOING: usize = 64;
/// Requests of one satellite answered at the same time.
const REQUESTS: usize = 256;
/// A satellite that does not say hello, or does not take a message, in this time is dropped.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between looks whether the satellite's rights are to be renewed.
const RENEW_LOOK: Duration = Duration::from_secs(5);
/// A session without any message for this long is dead: its satellite is gone or stuck.
const SILENCE: Duration = Duration::from_secs(15);

/// The gRPC service.
#[derive(Clone, Debug)]
pub struct Service {
    cluster: Arc<Cluster>,
    /// Why sessions ended.
    ended: Arc<Quiet>,
}

impl Service {
    /// The service for a server of tonic.
    pub fn new(cluster: Arc<Cluster>) -> SatellitesServer<Self> {
        SatellitesServer::new(Self {
            cluster,
            ended: Arc::default(),
        })
    }
}

type Outgoing = mpsc::Sender<Result<FromController, Status>>;

#[tonic::async_trait]
impl Satellites for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<FromController, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<FromSatellite>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if !self.cluster.leads() {
            return Err(not_leader(&self.cluster));
        }
        let (out, receiver) = mpsc::channel(OUTGOING);
        let (cluster, ended) = (Arc::clone(&self.cluster), Arc::clone(&self.ended));
        tokio::spawn(async move {
            if let Err(status) = run(&cluster, request.into_inner(), &out).await {
                // Of a node that is refused; others end for reasons of their own.
                let refused = matches!(status.code(), Code::NotFound | Code::FailedPrecondition);
                let times = if refused {
                    ended.say(Instant::now(), status.message())
                } else {
                    Some(1)
                };
                if let Some(times) = times {
                    tracing::info!(code = ?status.code(), reason = status.message(), times, "a satellite's session ended");
                }
                // Best effort: the satellite may be what is gone.
                let _closed = tokio::time::timeout(PATIENCE, out.send(Err(status))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Refuses a session and names the leader where it is known.
fn not_leader(cluster: &Cluster) -> Status {
    let mut status = Status::failed_precondition("this controller does not lead the cluster");
    let leadership = cluster.raft.leadership().borrow().clone();
    if let Some(leader) = leadership.leader.filter(|_| !leadership.is_self)
        && let Ok(address) = http(&leader.peer_address).parse()
    {
        status.metadata_mut().insert("stor-leader", address);
    }
    status
}

/// A peer's address as a URL.
pub fn http(address: &str) -> String {
    if address.contains("://") {
        address.to_owned()
    } else {
        format!("http://{address}")
    }
}

fn trouble(cluster: &Cluster, trouble: &Trouble) -> Status {
    match trouble {
        Trouble::NotLeader => not_leader(cluster),
        Trouble::Undecided(_) | Trouble::TooLarge(_) => Status::unavailable(trouble.to_string()),
        Trouble::Database(source) => {
            tracing::error!(error = %source, "reading the catalogue for a satellite failed");
            Status::internal(trouble.to_string())
        }
    }
}

async fn run(
    cluster: &Arc<Cluster>,
    mut incoming: Streaming<FromSatellite>,
    out: &Outgoing,
) -> Result<(), Status> {
    let first = tokio::time::timeout(PATIENCE, incoming.next())
        .await
        .map_err(|_| Status::deadline_exceeded("no hello in time"))?;
    let hello = match first {
        Some(Ok(FromSatellite {
            kind: Some(from_satellite::Kind::Hello(hello)),
        })) => hello,
        Some(Ok(_)) => return Err(Status::invalid_argument("the first message must be a hello")),
        Some(Err(status)) => return Err(status),
        None => return Ok(()),
    };
    if hello.protocol != PROTOCOL {
        let message = format!(
            "the satellite speaks protocol {}, this controller {PROTOCOL}; install the same version on both",
            hello.protocol
        );
        return Err(Status::failed_precondition(message));
    }
    admit(cluster, &hello).await?;
    let (touched, replaced) = cluster.sessions.begin(&hello.node, out);
    tracing::info!(node = %hello.node, version = %hello.version, "a satellite is connected");
    let session = Session {
        cluster,
        node: &hello.node,
        out,
        requests: Arc::new(Semaphore::new(REQUESTS)),
        stuck: CancellationToken::new(),
        sent: None,
        turn: Seconds::default(),
    };
    let result = session.serve(incoming, touched, &replaced).await;
    cluster.sessions.end(&hello.node, &replaced);
    result
}

/// Checks that the node is registered and records what it says of itself.
async fn admit(cluster: &Cluster, hello: &Hello) -> Result<(), Status> {
    let mut look = cluster.look().await.map_err(|t| trouble(cluster, &t))?;
    let unknown = || {
        Status::not_found(format!(
            "there is no node {}; register it first: storctl node create {} ADDRESS",
            hello.node, hello.node
        ))
    };
    let row = load::node(look.rows(), &hello.node)
        .await
        .map_err(|e| trouble(cluster, &e.into()))?
        .ok_or_else(|| {
            cluster.observed.stranger(&hello.node);
            unknown()
        })?;
    drop(look);
    let seen = wire::seen(hello);
    let same = row.data_address == seen.data_address
        && row.version.as_ref() == Some(&seen.version)
        && row.boot_id.as_ref() == Some(&seen.boot_id)
        && row.transports == seen.transports;
    if same {
        return Ok(());
    }
    let action = Action::NodeSeen {
        name: hello.node.clone(),
        seen,
    };
    match cluster.propose(action).await.map_err(|t| trouble(cluster, &t))? {
        Ok(_) => Ok(()),
        Err(Refused::NoSuch {
            object: Object { kind: Kind::Node, .. },
        }) => Err(unknown()),
        Err(refused) => Err(Status::failed_precondition(refused.to_string())),
    }
}

/// The history of the catalogue. It never changes while a controller runs: a restore makes another cluster.
async fn history(cluster: &Cluster) -> Result<History, Status> {
    let mut look = cluster.look().await.map_err(|t| trouble(cluster, &t))?;
    load::history(look.rows())
        .await
        .map_err(|e| trouble(cluster, &e.into()))?
        .ok_or_else(|| Status::unavailable("the cluster is just being made"))
}

struct Session<'a> {
    cluster: &'a Arc<Cluster>,
    node: &'a str,
    out: &'a Outgoing,
    requests: Arc<Semaphore>,
    /// An answer was not taken.
    stuck: CancellationToken,
    /// What the satellite was last told, without its revision.
    sent: Option<Desired>,
    /// The turn of the rights it was told.
    turn: Seconds,
}

/// What a session wakes up for.
enum Wake {
    Message(Option<Result<FromSatellite, Status>>),
    Touched,
    Time,
    NotLeader,
    Replaced,
    Silent,
    HungUp,
    Stuck,
}

impl Session<'_> {
    async fn serve(
        mut self,
        mut incoming: Streaming<FromSatellite>,
        mut touched: watch::Receiver<u64>,
        replaced: &CancellationToken,
    ) -> Result<(), Status> {
        let mut leadership = self.cluster.raft.leadership();
        let controllers = self
            .cluster
            .raft
            .members()
            .into_iter()
            .map(|m| http(&m.peer.peer_address))
            .collect();
        let heartbeat_ms = u32::try_from(HEARTBEAT.as_millis()).unwrap_or(u32::MAX);
        let history = history(self.cluster).await?;
        self.send(from_controller::Kind::Welcome(Welcome {
            controllers,
            heartbeat_ms,
            generation: history.generation,
            history: history.id.to_string(),
        }))
        .await?;
        self.send_desired().await?;
        let mut time = tokio::time::interval(RENEW_LOOK);
        time.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut heard = tokio::time::Instant::now();
        loop {
            let wake = tokio::select! {
                biased;
                () = replaced.cancelled() => Wake::Replaced,
                lost = leadership.wait_for(|l| !l.is_self) => { drop(lost); Wake::NotLeader }
                () = self.out.closed() => Wake::HungUp,
                () = self.stuck.cancelled() => Wake::Stuck,
                changed = touched.changed() => if changed.is_ok() { Wake::Touched } else { Wake::Replaced },
                _ = time.tick() => Wake::Time,
                // From what was heard last: the other wake-ups are no sign of life.
                message = tokio::time::timeout_at(heard + SILENCE, incoming.next()) => {
                    heard = tokio::time::Instant::now();
                    message.map_or(Wake::Silent, Wake::Message)
                }
            };
            match wake {
                Wake::Message(Some(Ok(message))) => self.hear(message).await?,
                Wake::Message(Some(Err(status))) => return Err(status),
                Wake::Message(None) | Wake::HungUp => return Ok(()),
                Wake::Time if self.turn == rights::turn(self.node, Seconds::now()) => {}
                Wake::Touched | Wake::Time => self.send_desired().await?,
                Wake::NotLeader => return Err(not_leader(self.cluster)),
                Wake::Replaced => {
                    return Err(Status::aborted("the node opened another session or was deleted"));
                }
                Wake::Stuck => return Err(Status::deadline_exceeded("the satellite takes no messages")),
                Wake::Silent => {
                    return Err(Status::deadline_exceeded("the satellite was silent for too long"));
                }
            }
        }
    }

    async fn hear(&self, message: FromSatellite) -> Result<(), Status> {
        match message.kind {
            Some(from_satellite::Kind::Status(status)) => {
                self.cluster
                    .observed
                    .hear(self.node, Heard::new(status, Instant::now(), now()));
                Ok(())
            }
            Some(from_satellite::Kind::Request(request)) => {
                // Each is answered, since the satellite waits for it as long as the session lasts: the next ones
                // wait here, and with them the satellite.
                let permit = Arc::clone(&self.requests).acquire_owned();
                let Ok(Ok(permit)) = tokio::time::timeout(PATIENCE, permit).await else {
                    return Err(Status::resource_exhausted("requests are not answered in time"));
                };
                let (cluster, node) = (Arc::clone(self.cluster), self.node.to_owned());
                let (out, stuck) = (self.out.clone(), self.stuck.clone());
                tokio::spawn(async move {
                    let _permit = permit;
                    let answer = requests::answer(&cluster, &node, request).await;
                    let message = FromController {
                        kind: Some(from_controller::Kind::Answer(answer)),
                    };
                    if tokio::time::timeout(PATIENCE, out.send(Ok(message)))
                        .await
                        .is_err()
                    {
                        stuck.cancel();
                    }
                });
                Ok(())
            }
            Some(from_satellite::Kind::Hello(_)) => Err(Status::invalid_argument("hello comes once")),
            // From a newer satellite.
            None => Ok(()),
        }
    }

    /// Sends the node's desired state when it is not what was sent last.
    async fn send_desired(&mut self) -> Result<(), Status> {
        let issuer = Issuer::new(&self.cluster.signer, self.node);
        let mut look = self.cluster.look().await.map_err(|t| trouble(self.cluster, &t))?;
        let loaded = desired::load(look.rows(), self.node, issuer).await;
        drop(look);
        let Some(desired) = loaded.map_err(|e| trouble(self.cluster, &e.into()))? else {
            return Err(Status::not_found(format!("node {} was deleted", self.node)));
        };
        let content = Desired {
            revision: 0,
            ..desired.clone()
        };
        self.turn = issuer.turn();
        if self.sent.as_ref() == Some(&content) {
            return Ok(());
        }
        self.send(from_controller::Kind::Desired(desired)).await?;
        self.sent = Some(content);
        Ok(())
    }

    async fn send(&self, kind: from_controller::Kind) -> Result<(), Status> {
        let message = FromController { kind: Some(kind) };
        match tokio::time::timeout(PATIENCE, self.out.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the satellite hung up")),
            Err(_) => Err(Status::deadline_exceeded("the satellite takes no messages")),
        }
    }
}
