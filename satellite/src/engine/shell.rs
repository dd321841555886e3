//! The engine's loop: completions to events, commands to operations.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stor_device::{BufPool, Completion, Fd, Reactor, clock};
use stor_replication::body::Body;
use stor_replication::engine::{Command, Engine, Event, Start, State};
use stor_replication::time::Time;
use stor_replication::wire::Kind;
use stor_transport::nbd::Export;

use super::agent::AgentLink;
use super::fuse::{self, Fuse};
use super::guest;
use super::links::Link;
use super::nbd::Client;
use super::request::{Asker, Requests};
use super::ublk::Ublk;
use super::{Args, EngineError};
use crate::channel::Channel;
use crate::control::{
    Config, Counters, FromEngine, Progress, Report, Scrub, State as ToldState, ToEngine, Transport,
};
use crate::data::Data;
use crate::quiet::Quiet;

/// Unused buffers kept. An idle engine is to stay below 8 MiB in all.
const KEEP: usize = 1 << 20;
/// NBD clients at once.
pub(super) const MAX_CLIENTS: usize = 64;
/// Counters are told this often.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// An engine whose ublk device was stopped, and that is not told to end in this time, was not meant to lose it.
const DEVICE_MISSED: Duration = Duration::from_mins(1);
/// How long the end waits for the last messages to leave.
const LAST_WORDS: Duration = Duration::from_secs(1);

pub(super) const KIND: u64 = 0xff << 56;
pub(super) const CONNECT: u64 = 1 << 56;
pub(super) const LINK_RECV: u64 = 2 << 56;
pub(super) const LINK_SEND: u64 = 3 << 56;
pub(super) const ACCEPT: u64 = 4 << 56;
pub(super) const CLIENT_RECV: u64 = 5 << 56;
pub(super) const CLIENT_SEND: u64 = 6 << 56;
const FUSE_READ: u64 = 7 << 56;
const FUSE_WRITE: u64 = 8 << 56;
const UBLK: u64 = 9 << 56;

/// See the module.
pub(super) struct Shell {
    pub(super) reactor: Reactor,
    pub(super) pool: BufPool,
    pub(super) agent: AgentLink,
    pub(super) config: Config,
    pub(super) engine: Engine<Data>,
    pub(super) commands: Vec<Command<Data>>,
    pub(super) links: HashMap<u64, Link>,
    /// Links with something to send.
    pub(super) stirred: Vec<u64>,
    pub(super) export: Export,
    pub(super) listener: Option<Fd>,
    pub(super) clients: HashMap<u64, Client>,
    pub(super) next_client: u64,
    /// Clients with something to send.
    pub(super) answered: Vec<u64>,
    pub(super) fuse: Option<Fuse>,
    pub(super) ublk: Option<Ublk>,
    pub(super) requests: Requests,
    /// For notes beside it.
    pub(super) control: PathBuf,
    /// That there is a client is noted.
    pub(super) guest_noted: bool,
    /// Somebody may be waiting for [`Requests::is_full`] to end.
    pub(super) paused: bool,
    pub(super) report_at: Time,
    pub(super) report_due: bool,
    /// Who refused the right, as it was told last.
    pub(super) barred: String,
    /// Clients turned away and connections lost, said with a pause in between.
    pub(super) quiet: Quiet,
    /// When to accept again after that failed.
    pub(super) accept_at: Option<Time>,
}

impl Shell {
    /// Opens the place clients come to and makes the state machine.
    pub(super) fn new(
        mut reactor: Reactor,
        agent: AgentLink,
        config: Config,
        args: Args,
    ) -> Result<Self, EngineError> {
        let pool = BufPool::keeping(KEEP);
        let row = config.row.clone();
        let guest_alive = match config.transport {
            Transport::Fuse => fuse::earlier_session(&args.control).is_some(),
            Transport::Socket { .. } | Transport::Nbd { .. } | Transport::Ublk { .. } => {
                guest::may_live(&args.control)
            }
            Transport::None => false,
        };
        let local = row
            .replicas
            .iter()
            .find(|(_, member)| Some(&member.node) == row.owner.as_ref());
        let local = local.map(|(replica, _)| *replica);
        let mut export = Export::new(config.name.clone(), row.size);
        export.read_only = config.read_only;
        export.multi_conn = true;
        let (mut listener, mut mount, mut ublk) = (None, None, None);
        match (&config.transport, args.fuse) {
            (Transport::Socket { path } | Transport::Nbd { path }, _) => {
                let opened = listen(path, &mut reactor);
                listener = Some(opened.map_err(|source| EngineError::Listen {
                    path: path.clone(),
                    source,
                })?);
            }
            (Transport::Fuse, Some(fd)) => {
                let size = (row.size, config.read_only);
                let made = Fuse::new(
                    fd,
                    &args.control,
                    size,
                    (FUSE_READ, FUSE_WRITE),
                    &mut reactor,
                    &pool,
                );
                mount = Some(made.map_err(EngineError::Wait)?);
            }
            (Transport::Fuse, None) => return Err(EngineError::NoFuse),
            (Transport::Ublk { device, mark }, _) => {
                ublk = Some(Ublk::open(*device, *mark, UBLK, &mut reactor)?);
            }
            (Transport::None, _) => {}
        }
        let engine = Engine::new(
            now(),
            Start {
                row,
                guest_alive,
                local,
            },
        );
        Ok(Self {
            reactor,
            pool,
            agent,
            config,
            engine,
            commands: Vec::new(),
            links: HashMap::new(),
            stirred: Vec::new(),
            export,
            listener,
            clients: HashMap::new(),
            next_client: 1,
            answered: Vec::new(),
            fuse: mount,
            ublk,
            requests: Requests::default(),
            control: args.control,
            guest_noted: false,
            paused: false,
            report_at: Time::default(),
            report_due: true,
            barred: String::new(),
            quiet: Quiet::default(),
            accept_at: None,
        })
    }

    /// Runs until the engine ends.
    pub(super) fn serve(mut self) -> Result<(), EngineError> {
        if let Some(listener) = self.listener {
            self.reactor.accept(listener, ACCEPT);
        }
        let mut completions = Vec::new();
        self.step(Event::Tick);
        self.step(Event::Snapshot(self.config.snapshot));
        self.step(Event::Scrub(self.config.scrub));
        loop {
            self.settle();
            match self.engine.state(now()) {
                State::Stopped { clean } => {
                    self.last_words();
                    guest::forget(&self.control);
                    self.agent.stopped(clean);
                    tracing::info!(clean, "engine ends");
                    return Ok(());
                }
                State::Fenced => {
                    tracing::info!("a newer engine has the volume, or the right to it was withdrawn: ends");
                    self.last_words();
                    std::thread::sleep(Duration::from_millis(100));
                    return Ok(());
                }
                State::Starting
                | State::Serving
                | State::Suspended(_)
                | State::Failed(_)
                | State::Stopping => {}
            }
            let next = self.engine.deadline().min(self.report_at + REPORT_EVERY);
            let next = self.accept_at.map_or(next, |at| at.min(next));
            self.reactor
                .wait(Some(next.since(now())), &mut completions)
                .map_err(EngineError::Wait)?;
            for completion in completions.drain(..) {
                self.complete(completion);
            }
            while let Some(message) = self.agent.take() {
                self.told(message);
            }
            if self.accept_at.take_if(|at| *at <= now()).is_some()
                && let Some(listener) = self.listener
            {
                self.reactor.accept(listener, ACCEPT);
            }
            if now() >= self.engine.deadline() {
                self.step(Event::Tick);
            }
            let gone = self.ublk.as_ref().and_then(Ublk::gone);
            if gone.is_some_and(|since| now().since(since) >= DEVICE_MISSED) {
                return Err(EngineError::DeviceGone);
            }
        }
    }

    /// After a batch: sends what it left to be sent, lets waiting clients go on, reports.
    fn settle(&mut self) {
        if self.paused && !self.requests.is_full() {
            let (stuffed, free): (Vec<_>, Vec<_>) =
                self.clients.values_mut().partition(|client| client.is_stuffed());
            self.paused = !stuffed.is_empty();
            for client in free {
                client.resume(&mut self.reactor);
            }
            if let Some(fuse) = &mut self.fuse {
                fuse.resume(&mut self.reactor);
            }
            self.resume_ublk();
        }
        for id in std::mem::take(&mut self.answered) {
            if self
                .clients
                .get_mut(&id)
                .is_some_and(|client| client.flush(&mut self.reactor))
            {
                self.drop_client(id);
            }
        }
        while !self.stirred.is_empty() {
            for id in std::mem::take(&mut self.stirred) {
                let channel = self.links.get_mut(&id).and_then(|link| link.channel.as_mut());
                if let Some(Err(error)) = channel.map(|channel| channel.flush(&mut self.reactor)) {
                    self.link_lost(id, &error.to_string());
                }
            }
        }
        self.tell_size();
        let now = now();
        if self.report_due || now.since(self.report_at) >= REPORT_EVERY {
            self.report_due = false;
            self.report_at = now;
            self.agent.report(self.report(now));
        }
    }

    /// The volume has grown: new NBD clients see it, the kernel asks again. Those that are connected don't: the
    /// protocol has no word for it.
    //= docs/replication.md#G3
    fn tell_size(&mut self) {
        let size = self.engine.row().size;
        if size <= self.export.size {
            return;
        }
        self.export.size = size;
        if let Some(fuse) = &mut self.fuse {
            fuse.set_size(size, &mut self.reactor);
        }
        self.report_due = true;
    }

    fn complete(&mut self, completion: Completion) {
        let id = completion.token & !KIND;
        match completion.token & KIND {
            CONNECT => self.connected(id, completion),
            LINK_RECV => self.link_received(id, completion),
            LINK_SEND => {
                let channel = self.links.get_mut(&id).and_then(|link| link.channel.as_mut());
                if let Some(Err(error)) = channel.map(|channel| channel.sent(completion, &mut self.reactor)) {
                    self.link_lost(id, &error.to_string());
                }
            }
            ACCEPT => self.accepted(completion),
            CLIENT_RECV => self.client_received(id, completion),
            CLIENT_SEND => {
                if let Some(Err(error)) = self.clients.get_mut(&id).map(|client| client.sent(completion)) {
                    tracing::debug!(client = id, %error, "client dropped");
                    self.drop_client(id);
                } else {
                    self.answered.push(id);
                }
            }
            FUSE_READ => self.fuse_read(completion),
            UBLK => self.ublk_completed(&completion),
            FUSE_WRITE => {
                if let Err(error) = completion.result {
                    tracing::debug!(%error, "a reply the kernel no longer waits for");
                }
            }
            _ => {}
        }
    }

    pub(super) fn step(&mut self, event: Event<Data>) {
        let now = now();
        let mut commands = std::mem::take(&mut self.commands);
        self.engine.step(now, event, &mut commands);
        for command in commands.drain(..) {
            self.execute(command);
        }
        self.commands = commands;
    }

    fn execute(&mut self, command: Command<Data>) {
        match command {
            Command::Send {
                link, header, body, ..
            } => {
                if let Some(channel) = self.links.get_mut(&link.0).and_then(|link| link.channel.as_mut()) {
                    //= docs/replication.md#R14
                    let body = match header.kind {
                        Kind::Open => Body::Bytes(self.config.right.bytes().to_vec()),
                        _ => body,
                    };
                    channel.push(&header, body);
                    if !self.stirred.contains(&link.0) {
                        self.stirred.push(link.0);
                    }
                }
            }
            Command::Complete { io, result } => {
                if let Some((asker, outcome)) = self.requests.complete(io, result) {
                    self.reply(asker, outcome);
                }
            }
            Command::CompleteExtents { io, extents } => {
                if let Some((asker, _)) = self.requests.complete(io, Ok(None)) {
                    self.tell_extents(asker, &extents);
                }
            }
            Command::Connect { replica, link } => self.connect(replica, link),
            Command::Disconnect { link, .. } => {
                if let Some(link) = self.links.remove(&link.0) {
                    self.reactor.close(link.fd);
                }
            }
            Command::Propose { proposal, change } => {
                tracing::info!(proposal, ?change, "asks the catalogue");
                self.agent
                    .ask(proposal, FromEngine::Propose { id: proposal, change });
            }
            Command::StateChanged => {
                tracing::info!(state = ?self.engine.state(now()), "state");
                self.report_due = true;
                let barred = self.engine.barred();
                if barred != self.barred && !barred.is_empty() {
                    tracing::warn!(reason = barred, "not let in");
                }
                self.barred = barred;
            }
        }
    }

    fn reply(&mut self, asker: Asker, outcome: super::request::Outcome) {
        match asker {
            Asker::Nbd { client, cookie, what } => {
                if let Some(to) = self.clients.get_mut(&client) {
                    to.reply(cookie, what, outcome);
                    if !self.answered.contains(&client) {
                        self.answered.push(client);
                    }
                }
            }
            Asker::Fuse { unique, what } => {
                if let Some(fuse) = &mut self.fuse {
                    fuse.reply(unique, what, outcome, &mut self.reactor);
                }
            }
            Asker::Ublk { tag, what } => {
                if let Some(ublk) = &mut self.ublk {
                    ublk.reply(tag, what, outcome, &mut self.reactor);
                }
            }
        }
    }

    fn told(&mut self, message: ToEngine) {
        match message {
            ToEngine::Configure(config) if config.epoch != self.config.epoch => {
                tracing::warn!(epoch = %config.epoch, "a configuration of another epoch is not for this engine");
            }
            ToEngine::Configure(config) => {
                let row = config.row.clone();
                self.config = config;
                self.step(Event::Row(row));
                self.step(Event::Snapshot(self.config.snapshot));
                self.step(Event::Scrub(self.config.scrub));
            }
            ToEngine::Outcome { id, row, refusal } => {
                self.agent.settled(id);
                tracing::info!(proposal = id, view = %row.view, ?refusal, "the catalogue answered");
                self.step(Event::Outcome {
                    proposal: id,
                    row,
                    refusal,
                });
            }
            ToEngine::Stop => self.step(Event::Stop),
        }
    }

    fn report(&self, now: Time) -> Report {
        let (state, reason) = match self.engine.state(now) {
            State::Starting => {
                let barred = self.engine.barred();
                let waits = || self.engine.waits_for(now).unwrap_or_default();
                (
                    ToldState::Starting,
                    if barred.is_empty() { waits() } else { barred },
                )
            }
            State::Serving => (ToldState::Serving, String::new()),
            State::Suspended(reason) => (ToldState::Suspended, reason),
            State::Fenced => (ToldState::Fenced, "a newer engine has the volume".to_owned()),
            State::Failed(reason) => (ToldState::Failed, reason.to_string()),
            State::Stopping | State::Stopped { .. } => (ToldState::Stopping, String::new()),
        };
        let progress = |p: stor_replication::engine::Progress| Progress {
            replica: p.replica,
            total_bytes: p.total,
            done_bytes: p.done,
        };
        let c = self.engine.counters();
        Report {
            state,
            reason,
            size: self.export.size,
            syncing: self.engine.progress().into_iter().map(progress).collect(),
            counters: Counters {
                reads: c.reads,
                read_bytes: c.read_bytes,
                writes: c.writes,
                written_bytes: c.written_bytes,
                flushes: c.flushes,
                resynced_bytes: c.resynced_bytes,
                repaired_bytes: c.repaired_bytes,
                snapshots: c.snapshots,
                held_last_us: c.held_last_us,
                held_longest_us: c.held_longest_us,
            },
            snapshot: self.engine.snapshot(),
            scrub: self.engine.scrub().map(|scrub| Scrub {
                run: scrub.run,
                cursor: scrub.cursor,
                waits: scrub.waits.unwrap_or_default(),
            }),
        }
    }

    /// Lets what is queued leave before the process does.
    fn last_words(&mut self) {
        let until = now() + LAST_WORDS;
        self.report_due = true;
        self.settle();
        let mut completions = Vec::new();
        while self
            .links
            .values()
            .filter_map(|link| link.channel.as_ref())
            .any(Channel::is_sending)
            && now() < until
        {
            if let Err(error) = self.reactor.wait(Some(until.since(now())), &mut completions) {
                tracing::debug!(%error, "the end comes early");
                return;
            }
            for completion in completions
                .drain(..)
                .filter(|done| done.token & KIND == LINK_SEND)
            {
                self.complete(completion);
            }
        }
    }
}

/// Listens where clients will look, in place of whatever an earlier engine left there.
fn listen(path: &Path, reactor: &mut Reactor) -> io::Result<Fd> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    reactor.register(UnixListener::bind(path)?.into())
}

pub(super) fn now() -> Time {
    Time(clock::boottime())
}
