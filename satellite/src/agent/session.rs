//! The session with the leading controller: says who we are and what we see, hears what the node should
//! hold, asks the catalogue.
//!
//! Promises: every change of the status is told at once, and the whole of it at every heartbeat; every
//! question is asked again on each new session until it is answered. It dials for ever, because a node
//! without controllers goes on with what it has and must be there when they come back. A controller that says
//! nothing any more is left within three seconds, and another one is dialled first. It runs on a thread of its
//! own ([`run_apart`]): whatever in the agent waits for a disk, the controllers go on hearing that the node is there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use stor_proto::satellite as proto;
use stor_proto::satellite::from_controller::Kind as FromController;
use stor_proto::satellite::from_satellite::Kind as FromSatellite;
use stor_proto::satellite::satellites_client::SatellitesClient;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

use super::ask::{Ask, Reply};
use super::dial::Dialer;
use super::history::{Pin, PinError};
use super::row::Volume;

/// TCP connect; on a LAN it takes a millisecond.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// From the call to Welcome, and for a message to be taken by the connection. A leader asks the others before it
/// answers, which takes milliseconds; one that is stopped is connected to by its kernel, and then says nothing.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// A controller that is stopped or cut off is noticed after both together. As long as an election takes: a write may be
/// waiting for it, and a session that ends for nothing costs a dial.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));

/// For the disk to keep the controllers' addresses.
const KEEP_DEADLINE: Duration = Duration::from_millis(500);

/// Threads that may hang on that disk, or on a name server.
const BLOCKING: usize = 4;

/// An unanswered question is asked again on the same session after this.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Messages on their way into the connection.
const OUTGOING: usize = 16;

/// Questions open at once; more wait in their queue.
const OPEN_QUESTIONS: usize = 1024;

/// The largest desired state: about 100,000 replicas.
const LARGEST_MESSAGE: usize = 64 << 20;

/// Heartbeats outside this range are a controller's mistake.
const HEARTBEAT: std::ops::RangeInclusive<u32> = 50..=60_000;

/// The protocol version spoken.
pub const PROTOCOL: u32 = 1;

/// Why a session ended, or did not begin.
#[derive(Debug, Error)]
enum SessionError {
    #[error("{address:?} is no address of a controller: {source}")]
    Address {
        address: String,
        source: tonic::transport::Error,
    },
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("no answer within {} s", ANSWER_DEADLINE.as_secs())]
    Deadline,
    #[error("it does not lead")]
    NotLeader { leader: Option<String> },
    #[error("{}", refusal(.0))]
    Refused(Box<tonic::Status>),
    #[error("it ended the session")]
    Ended,
    #[error("it began with something else than Welcome")]
    NoWelcome,
    #[error("{0}")]
    History(PinError),
    #[error("the agent ends")]
    AgentEnds,
}

impl SessionError {
    /// Nothing came in time, or nothing comes any more: of a controller that hangs, or whose packets are lost. One that is
    /// dead or that refuses has answered.
    fn is_silence(&self) -> bool {
        match self {
            Self::Deadline => true,
            // The connection's own word: its keep-alive, or the kernel's.
            Self::Refused(status) => chain(status.as_ref()).contains("timed out"),
            Self::Address { .. }
            | Self::Connect(_)
            | Self::NotLeader { .. }
            | Self::Ended
            | Self::NoWelcome
            | Self::History(_)
            | Self::AgentEnds => false,
        }
    }
}

impl From<tonic::Status> for SessionError {
    fn from(status: tonic::Status) -> Self {
        if status.code() != Code::FailedPrecondition {
            return Self::Refused(Box::new(status));
        }
        let leader = status
            .metadata()
            .get("stor-leader")
            .and_then(|value| value.to_str().ok());
        match leader {
            Some(leader) => Self::NotLeader {
                leader: Some(leader.to_owned()),
            },
            // A controller says so when it refuses the node for good, too: the message tells which.
            None if status.message().is_empty() => Self::NotLeader { leader: None },
            None => Self::Refused(Box::new(status)),
        }
    }
}

/// The other ends of a session.
#[derive(Debug)]
pub struct Ends {
    /// What the node sees.
    pub status: watch::Receiver<Option<Arc<proto::Status>>>,
    /// Questions to ask.
    pub asks: mpsc::Receiver<Ask>,
    /// Where the desired state goes.
    pub desired: mpsc::Sender<proto::Desired>,
    /// Where it goes what is to be removed of what belongs to nothing.
    pub removals: mpsc::Sender<proto::RemoveOrphans>,
}

/// The session's task.
#[derive(Debug)]
pub struct Session {
    hello: proto::Hello,
    dialer: Dialer,
    ends: Ends,
    open: BTreeMap<u64, Open>,
    next_id: u64,
    said: String,
    pin: Option<Pin>,
}

#[derive(Debug)]
struct Open {
    ask: Ask,
    asked: Instant,
}

struct Connection {
    outgoing: mpsc::Sender<proto::FromSatellite>,
    incoming: Streaming<proto::FromController>,
    heartbeat: Duration,
}

enum Event {
    Heard(Box<proto::FromController>),
    StatusChanged,
    Heartbeat,
    Asked(Ask),
    Failed(SessionError),
}

impl Session {
    /// Ready to dial.
    pub fn new(hello: proto::Hello, dialer: Dialer, ends: Ends) -> Self {
        Self {
            hello,
            dialer,
            ends,
            open: BTreeMap::new(),
            next_id: 1,
            said: String::new(),
            pin: None,
        }
    }

    /// Follows one history of the catalogue only.
    #[must_use]
    pub fn pinned(mut self, pin: Pin) -> Self {
        self.pin = Some(pin);
        self
    }

    /// Dials until the agent ends. Cancel-safe: what was asked and not answered is lost with the asker.
    pub async fn run(mut self) {
        loop {
            let next = self.dialer.choose();
            tokio::time::sleep(next.pause).await;
            let error = match self.connect(&next.address).await {
                Ok(connection) => {
                    tracing::info!(controller = %next.address, "session with the leading controller began");
                    self.said.clear();
                    self.serve(connection).await
                }
                Err(error) => error,
            };
            match &error {
                SessionError::AgentEnds => return,
                SessionError::NotLeader { leader: Some(leader) } if *leader != next.address => {
                    self.dialer.leads(leader.clone());
                    continue;
                }
                error if error.is_silence() => self.dialer.silent(&next.address),
                _ => self.dialer.failed(),
            }
            self.say(&next.address, &error);
        }
    }

    /// One line for each new reason of a controller, not one for every attempt.
    fn say(&mut self, address: &str, error: &SessionError) {
        let text = format!("{address}: {error}");
        if !self.said.contains(&text) {
            tracing::warn!(controller = %address, reason = %error, "no session with this controller; dialling on");
            self.said.push_str(&text);
        }
        if self.said.len() > 4096 {
            self.said.clear();
        }
    }

    async fn connect(&mut self, address: &str) -> Result<Connection, SessionError> {
        let channel = dial(address).await?;
        let mut client = SatellitesClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
        let (outgoing, queue) = mpsc::channel(OUTGOING);
        // The queue is empty and takes it; a controller may answer the call only after it has read it.
        send(&outgoing, FromSatellite::Hello(self.hello.clone())).await?;
        let mut incoming = timeout(ANSWER_DEADLINE, client.session(ReceiverStream::new(queue)))
            .await
            .map_err(|_| SessionError::Deadline)??
            .into_inner();
        let first = timeout(ANSWER_DEADLINE, incoming.message())
            .await
            .map_err(|_| SessionError::Deadline)??
            .ok_or(SessionError::Ended)?;
        let Some(FromController::Welcome(welcome)) = first.kind else {
            return Err(SessionError::NoWelcome);
        };
        // Before anything is told or asked: these may be controllers of a catalogue that was given up.
        if let Some(pin) = &mut self.pin {
            pin.admit(&welcome.history, welcome.generation)
                .map_err(SessionError::History)?;
        }
        self.welcomed(welcome.controllers).await;
        let heartbeat = welcome.heartbeat_ms.clamp(*HEARTBEAT.start(), *HEARTBEAT.end());
        Ok(Connection {
            outgoing,
            incoming,
            heartbeat: Duration::from_millis(heartbeat.into()),
        })
    }

    async fn welcomed(&mut self, controllers: Vec<String>) {
        if let Some(keep) = self.dialer.welcomed(controllers) {
            let written = tokio::task::spawn_blocking(move || keep.write());
            // With a disk that hangs it is written later, or the next start dials by the command line.
            if timeout(KEEP_DEADLINE, written).await.is_err() {
                tracing::warn!("the addresses of the controllers are not kept yet: the disk does not answer");
            }
        }
    }

    async fn serve(&mut self, mut connection: Connection) -> SessionError {
        let mut heartbeat = tokio::time::interval(connection.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if let Err(error) = self.ask_again(&connection, Duration::ZERO).await {
            return error;
        }
        loop {
            let room = self.open.len() < OPEN_QUESTIONS;
            let event = tokio::select! {
                heard = connection.incoming.message() => match heard {
                    Ok(Some(message)) => Event::Heard(Box::new(message)),
                    Ok(None) => Event::Failed(SessionError::Ended),
                    Err(status) => Event::Failed(status.into()),
                },
                changed = self.ends.status.changed() => match changed {
                    Ok(()) => Event::StatusChanged,
                    Err(_) => Event::Failed(SessionError::AgentEnds),
                },
                asked = self.ends.asks.recv(), if room => match asked {
                    Some(ask) => Event::Asked(ask),
                    None => Event::Failed(SessionError::AgentEnds),
                },
                _ = heartbeat.tick() => Event::Heartbeat,
            };
            let done = match event {
                Event::Failed(error) => return error,
                Event::Heard(message) => self.heard(*message).await,
                Event::StatusChanged => self.tell_status(&connection).await,
                Event::Heartbeat => match self.tell_status(&connection).await {
                    Ok(()) => self.ask_again(&connection, ASK_AGAIN).await,
                    failed => failed,
                },
                Event::Asked(ask) => self.ask(&connection, ask).await,
            };
            if let Err(error) = done {
                return error;
            }
        }
    }

    async fn tell_status(&mut self, connection: &Connection) -> Result<(), SessionError> {
        let status = self.ends.status.borrow_and_update().clone();
        match status {
            Some(status) => send(&connection.outgoing, FromSatellite::Status((*status).clone())).await,
            // Nothing was looked at yet; the first look is a change.
            None => Ok(()),
        }
    }

    async fn ask(&mut self, connection: &Connection, ask: Ask) -> Result<(), SessionError> {
        let id = self.next_id;
        self.next_id += 1;
        let message = match ask.message(id) {
            Ok(message) => message,
            Err(error) => {
                // The asker learns nothing, as from a controller that does not answer; but this is ours.
                tracing::error!(volume = %ask.volume, %error, "a question that cannot be asked");
                return Ok(());
            }
        };
        let asked = Instant::now();
        self.open.insert(id, Open { ask, asked });
        send(&connection.outgoing, FromSatellite::Request(message)).await
    }

    /// Asks what has waited for longer than `age`; forgets what nobody wants to know any more.
    async fn ask_again(&mut self, connection: &Connection, age: Duration) -> Result<(), SessionError> {
        self.open.retain(|_, open| !open.ask.reply.is_closed());
        let now = Instant::now();
        for (id, open) in &mut self.open {
            if now.duration_since(open.asked) < age {
                continue;
            }
            // One that can't be put into a message was refused when it was asked first.
            if let Ok(message) = open.ask.message(*id) {
                open.asked = now;
                send(&connection.outgoing, FromSatellite::Request(message)).await?;
            }
        }
        Ok(())
    }

    async fn heard(&mut self, message: proto::FromController) -> Result<(), SessionError> {
        match message.kind {
            Some(FromController::Welcome(welcome)) => {
                self.welcomed(welcome.controllers).await;
                Ok(())
            }
            Some(FromController::Desired(desired)) => self
                .ends
                .desired
                .send(desired)
                .await
                .map_err(|_| SessionError::AgentEnds),
            Some(FromController::Answer(answer)) => self.answered(&answer),
            Some(FromController::RemoveOrphans(remove)) => self
                .ends
                .removals
                .send(remove)
                .await
                .map_err(|_| SessionError::AgentEnds),
            // A message of a later release.
            None => Ok(()),
        }
    }

    fn answered(&mut self, answer: &proto::Answer) -> Result<(), SessionError> {
        let Some(open) = self.open.get(&answer.id) else {
            return Ok(());
        };
        let reply = match reply(answer.clone()) {
            Some(Ok(reply)) => reply,
            Some(Err(error)) => {
                tracing::error!(volume = %open.ask.volume, %error, "a controller's answer cannot be read");
                return Ok(());
            }
            None => return Ok(()),
        };
        if matches!(&reply, Reply::Refused { code, .. } if code == "not-leader") {
            // No answer at all: the question stays open for the next leader.
            return Err(SessionError::NotLeader { leader: None });
        }
        if let Some(Open { ask, .. }) = self.open.remove(&answer.id) {
            if let Reply::Refused { code, message, .. } = &reply {
                tracing::info!(volume = %ask.volume, change = ?ask.change, code, message, "the catalogue refused a change");
            }
            // Nobody waits any more: then it does not matter.
            drop(ask.reply.send(reply));
        }
        Ok(())
    }
}

/// What a controller says, in its own words; the code's only where it has none.
fn refusal(status: &tonic::Status) -> String {
    if status.message().is_empty() {
        status.code().to_string()
    } else {
        status.message().to_owned()
    }
}

/// Runs a session on a thread and runtime of its own, until the answer is dropped: its timers and its connection
/// wait for nothing that the rest of the agent does.
pub fn run_apart(session: Session) -> std::io::Result<Apart> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("session-disk")
        .max_blocking_threads(BLOCKING)
        .build()?;
    let (end, ended) = oneshot::channel::<()>();
    std::thread::Builder::new()
        .name("session".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = session.run() => {}
                    // Dropped by whoever runs the agent.
                    _ = ended => {}
                }
            });
            // It may be writing to a disk that hangs.
            runtime.shutdown_background();
        })?;
    Ok(Apart { _end: end })
}

/// A session that runs on a thread of its own; it ends when this is dropped.
#[derive(Debug)]
pub struct Apart {
    _end: oneshot::Sender<()>,
}

fn reply(answer: proto::Answer) -> Option<Result<Reply, super::row::RowError>> {
    use proto::answer::Kind;
    let boxed = |volume: proto::Volume| Volume::try_from(volume).map(Box::new);
    Some(match answer.kind? {
        Kind::Volume(volume) => boxed(volume).map(Reply::Row),
        Kind::Refused(refused) => refused
            .volume
            .map(boxed)
            .transpose()
            .map(|volume| Reply::Refused {
                code: refused.code,
                message: refused.message,
                volume,
            }),
    })
}

async fn dial(address: &str) -> Result<Channel, SessionError> {
    let endpoint = endpoint(address).map_err(|source| SessionError::Address {
        address: address.to_owned(),
        source,
    })?;
    timeout(CONNECT_DEADLINE, endpoint.connect())
        .await
        .map_err(|_| SessionError::Deadline)?
        .map_err(|error| SessionError::Connect(chain(&error)))
}

/// Reads a controller's address, `http://host:port`.
pub fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(address.to_owned())?
        // The deadline around it is the one that counts: it is told apart from a refusal.
        .connect_timeout(CONNECT_DEADLINE * 2)
        .http2_keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true))
}

/// tonic says "transport error"; what is meant is in the sources.
fn chain(error: &dyn std::error::Error) -> String {
    let mut last = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        last = inner.to_string();
        source = inner.source();
    }
    last
}

async fn send(
    outgoing: &mpsc::Sender<proto::FromSatellite>,
    kind: FromSatellite,
) -> Result<(), SessionError> {
    let message = proto::FromSatellite { kind: Some(kind) };
    timeout(ANSWER_DEADLINE, outgoing.send(message))
        .await
        .map_err(|_| SessionError::Deadline)?
        .map_err(|_| SessionError::Ended)
}
