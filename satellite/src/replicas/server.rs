//! The thread that serves the node's replicas: one reactor, every connection, every file.
//!
//! `completions → state machines → operations and answers → submit`, in batches. Files are made, opened and
//! first read on threads of their own: a sick disk holds up its own replicas and nothing else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use stor_device::{BufPool, Choice, Completion, Fd, Outcome, Reactor, ReactorError, Waker, clock};
use stor_replication::body::Body;
use stor_replication::ids::{ConnId, ReplicaId, VolumeId};
use stor_replication::replica::Event;
use stor_replication::right::RightRefusal;
use stor_replication::time::Time;
use stor_replication::wire::{Header, Kind, Status, flags};
use stor_right::Granted;

use super::errands::{Errand, says_full};
use super::gate::Gate;
use super::open::{Files, OpenError};
use super::readers::{ReadDone, Reader, is_for_copy};
use super::report::stored;
use super::serve::{Asked, Served, Tokens, Work};
use super::{ReplicaSpec, ReplicaState, Shared};
use crate::agent::copies::CopyKey;
use crate::channel::Channel;
use crate::data::Data;
use crate::quiet::Quiet;

/// Unused buffers kept: enough for a busy replica, little for an idle node.
const KEEP: usize = 4 << 20;
/// Outcomes waiting to be taken; a thread with one more waits for its place.
const MADE: usize = 64;
/// Connections at once. An engine needs one per replica it uses.
const MAX_CONNECTIONS: usize = 8192;
/// Pause after a connection could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// How long the thread sleeps at most.
const NAP: Duration = Duration::from_secs(10);

pub(super) type Key = (VolumeId, ReplicaId);
/// How the making or opening of a replica's files went.
pub(super) type Made = (Key, PathBuf, Result<Files, OpenError>);

const ACCEPT: u64 = 1 << 56;
const RECV: u64 = 2 << 56;
const SEND: u64 = 3 << 56;
const WORK: u64 = 4 << 56;
const KIND: u64 = 0xff << 56;

struct Conn {
    channel: Channel,
    key: Option<Key>,
    /// It was refused once; the next time ends it.
    refused: bool,
}

/// A replica as far as it has come.
pub(super) enum Slot {
    /// Its files are being made.
    Making,
    /// Served, or being closed.
    Served(Box<Served>),
    /// Not usable; tried again later.
    Failed { state: ReplicaState, again: Time },
}

/// Work under way, by token.
#[derive(Default)]
struct Pending {
    next: u64,
    work: HashMap<u64, (Key, Work)>,
}

struct ForReplica<'a>(&'a mut Pending, Key);

impl Tokens for ForReplica<'_> {
    fn token(&mut self, work: Work) -> u64 {
        let token = WORK | self.0.next;
        self.0.next = (self.0.next + 1) & !KIND;
        self.0.work.insert(token, (self.1, work));
        token
    }
}

pub(super) struct Loop<'a> {
    pub(super) reactor: Reactor,
    pool: BufPool,
    pub(super) shared: &'a Mutex<Shared>,
    listener: Fd,
    conns: HashMap<ConnId, Conn>,
    next_conn: u64,
    pub(super) wanted: HashMap<Key, ReplicaSpec>,
    pub(super) slots: HashMap<Key, Slot>,
    pending: Pending,
    pub(super) gate: Gate,
    /// Deadlines of state machines; entries may be outdated, a tick too many does no harm.
    pub(super) due: BTreeSet<(Time, Key)>,
    pub(super) made: (SyncSender<Made>, Receiver<Made>),
    /// What others do for this thread.
    pub(super) errands: (SyncSender<Errand>, Receiver<Errand>),
    /// Copies of snapshots that may be read, who reads some, and what was read.
    pub(super) copies: BTreeMap<CopyKey, PathBuf>,
    pub(super) readers: HashMap<ConnId, Reader>,
    pub(super) reads: (SyncSender<ReadDone>, Receiver<ReadDone>),
    /// Errands that could not begin.
    pub(super) errands_failed: Vec<Errand>,
    /// By pool.
    pub(super) making: HashMap<PathBuf, usize>,
    /// Connections with something to send.
    stirred: Vec<ConnId>,
    /// Why replicas can't be served, by what was tried last.
    pub(super) troubles: HashMap<Key, ReplicaState>,
    /// Connections bound to a replica.
    pub(super) sessions: usize,
    /// Connections that could not be taken.
    turned_away: Quiet,
    /// When to accept again after that failed.
    accept_at: Option<Time>,
    pub(super) changed: bool,
}

/// The thread's whole life.
pub(super) fn run(
    listener: TcpListener,
    shared: &Mutex<Shared>,
    tell: &SyncSender<Result<(Waker, &'static str), ReactorError>>,
) {
    let mut reactor = match Reactor::new(Choice::Auto) {
        Ok(reactor) => reactor,
        // Whoever started this thread waits for the word; when it is gone, so is the satellite.
        Err(error) => return drop(tell.send(Err(error))),
    };
    let listener = match reactor.register(listener.into()) {
        Ok(listener) => listener,
        Err(error) => return drop(tell.send(Err(ReactorError::SetUpEpoll(error)))),
    };
    if tell.send(Ok((reactor.waker(), reactor.backend()))).is_err() {
        return;
    }
    let mut server = Loop {
        reactor,
        pool: BufPool::keeping(KEEP),
        shared,
        listener,
        conns: HashMap::new(),
        next_conn: 1,
        wanted: HashMap::new(),
        slots: HashMap::new(),
        pending: Pending::default(),
        gate: Gate::new(),
        due: BTreeSet::new(),
        made: sync_channel(MADE),
        errands: sync_channel(MADE),
        copies: BTreeMap::new(),
        readers: HashMap::new(),
        reads: sync_channel(MADE),
        errands_failed: Vec::new(),
        making: HashMap::new(),
        stirred: Vec::new(),
        troubles: HashMap::new(),
        sessions: 0,
        turned_away: Quiet::default(),
        accept_at: None,
        changed: false,
    };
    server.reactor.accept(listener, ACCEPT);
    server.serve();
}

impl Loop<'_> {
    fn serve(&mut self) {
        let mut completions = Vec::new();
        loop {
            let next = self
                .due
                .first()
                .map(|(due, _)| *due)
                .into_iter()
                .chain(self.accept_at)
                .min();
            let timeout = next.map_or(NAP, |due| due.since(now())).min(NAP);
            if let Err(error) = self.reactor.wait(Some(timeout), &mut completions) {
                tracing::error!(%error, "the data thread cannot wait for its work");
                std::thread::sleep(Duration::from_millis(100));
            }
            for completion in completions.drain(..) {
                self.complete(completion);
            }
            self.tick();
            self.take_wanted();
            self.take_made();
            self.begin_making();
            self.take_errands();
            self.take_reads();
            for conn in std::mem::take(&mut self.stirred) {
                let flushed = self
                    .conns
                    .get_mut(&conn)
                    .map(|conn| conn.channel.flush(&mut self.reactor));
                if let Some(Err(error)) = flushed {
                    self.drop_conn(conn, &error.to_string());
                }
            }
            self.publish();
        }
    }

    fn complete(&mut self, completion: Completion) {
        let id = completion.token & !KIND;
        match completion.token & KIND {
            ACCEPT => self.accepted(completion),
            RECV => self.received(ConnId(id), completion),
            SEND => {
                let Some(conn) = self.conns.get_mut(&ConnId(id)) else {
                    return;
                };
                if let Err(error) = conn.channel.sent(completion, &mut self.reactor) {
                    self.drop_conn(ConnId(id), &error.to_string());
                }
            }
            WORK => {
                let Some((key, work)) = self.pending.work.remove(&completion.token) else {
                    return;
                };
                let Some(Slot::Served(served)) = self.slots.get_mut(&key) else {
                    return;
                };
                let mut tokens = ForReplica(&mut self.pending, key);
                if let Some(event) = served.completed(now(), work, completion, &mut self.reactor, &mut tokens)
                {
                    let full = says_full(&event);
                    self.step(key, event);
                    if full {
                        self.make_room(key);
                    }
                }
                self.close_when_idle(key);
            }
            _ => {}
        }
    }

    fn accepted(&mut self, completion: Completion) {
        match completion.result {
            Ok(Outcome::Accepted(fd)) if self.conns.len() < MAX_CONNECTIONS => {
                let id = ConnId(self.next_conn);
                self.next_conn += 1;
                if let Err(error) = self.watch_peer(fd) {
                    tracing::warn!(%error, "a peer that loses power will not be noticed");
                }
                let channel = Channel::new(fd, RECV | id.0, SEND | id.0, &mut self.reactor, &self.pool);
                self.conns.insert(
                    id,
                    Conn {
                        channel,
                        key: None,
                        refused: false,
                    },
                );
            }
            Ok(Outcome::Accepted(fd)) => {
                if let Some(times) = self.turned_away.say(now(), "too many") {
                    tracing::warn!(
                        limit = MAX_CONNECTIONS,
                        times,
                        "a connection is refused: there are too many"
                    );
                }
                self.reactor.close(fd);
            }
            Ok(_) => {}
            Err(error) => {
                // Out of descriptors, mostly: tried again when some may be free, without holding I/O up.
                if let Some(times) = self.turned_away.say(now(), &error.to_string()) {
                    tracing::warn!(%error, times, "a connection could not be accepted");
                }
                self.accept_at = Some(now() + ACCEPT_AGAIN);
                return;
            }
        }
        self.reactor.accept(self.listener, ACCEPT);
    }

    /// A peer whose machine is gone without a word is noticed in about twenty seconds.
    fn watch_peer(&mut self, fd: Fd) -> std::io::Result<()> {
        use rustix::net::sockopt;
        let Some(socket) = self.reactor.descriptor(fd) else {
            return Ok(());
        };
        sockopt::set_socket_keepalive(socket, true)?;
        sockopt::set_tcp_keepidle(socket, Duration::from_secs(10))?;
        sockopt::set_tcp_keepintvl(socket, Duration::from_secs(3))?;
        sockopt::set_tcp_keepcnt(socket, 3)?;
        sockopt::set_tcp_user_timeout(socket, 20_000)?;
        Ok(())
    }

    fn received(&mut self, id: ConnId, completion: Completion) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let mut messages = Vec::new();
        let received = conn
            .channel
            .received(completion, &mut self.reactor, &self.pool, &mut messages);
        for (header, body) in messages {
            self.request(id, header, body);
        }
        if let Err(error) = received {
            self.drop_conn(id, &error.to_string());
        }
    }

    /// A request: to the replica it names, which its connection is then bound to.
    fn request(&mut self, id: ConnId, header: Header, body: Body<Data>) {
        if is_for_copy(header.kind) {
            return self.copy_request(id, header, &body);
        }
        if self.readers.contains_key(&id) {
            return self.drop_conn(id, "it is for a copy");
        }
        let key = (header.volume, header.replica);
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let Some(Slot::Served(served)) = self.slots.get_mut(&key) else {
            // Not here, or not yet: its files may be about to be opened. To the engine this is a replica it
            // can't reach, which costs nothing for as long as a restart takes.
            return self.drop_conn(id, "the replica is not served here");
        };
        if served.closing {
            return self.drop_conn(id, "the replica is being closed");
        }
        let other = conn.key.is_some_and(|bound| bound != key);
        if other || (conn.key.is_none() && header.kind != Kind::Open) {
            conn.channel.push(&header.reply(Status::NotOpen), Body::None);
            return self.stirred.push(id);
        }
        if header.kind == Kind::Open {
            let fenced = served.core().superblock().fence;
            return match self.gate.check(&header, body.bytes(), fenced) {
                Ok(granted) => self.open(id, key, header, &granted),
                Err(why) => self.refuse(id, &header, why),
            };
        }
        self.step(
            key,
            Event::Request {
                conn: id,
                header,
                body,
            },
        );
    }

    /// An Open whose right was checked. The connection is bound to the replica from here on.
    fn open(&mut self, id: ConnId, key: Key, header: Header, granted: &Granted) {
        let (Some(conn), Some(Slot::Served(served))) = (self.conns.get_mut(&id), self.slots.get_mut(&key))
        else {
            return;
        };
        if conn.key.replace(key).is_none() {
            self.sessions += 1;
            self.changed = true;
        }
        served.conns.insert(id);
        let node = granted.statement.node.as_str();
        tracing::debug!(volume = %key.0, replica = %key.1, epoch = %header.view.epoch, node, "an engine opens");
        let authorised = granted.authorised;
        if header.flags & flags::MEMBER == 0 {
            return self.open_to_catch_up(id, header, authorised);
        }
        self.step(
            key,
            Event::Open {
                conn: id,
                header,
                authorised,
            },
        );
    }

    /// Whether it is for a replica.
    pub(super) fn is_bound(&self, id: ConnId) -> bool {
        self.conns.get(&id).is_none_or(|conn| conn.key.is_some())
    }

    /// Queues a message.
    pub(super) fn push(&mut self, id: ConnId, header: &Header, body: Body<Data>) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.channel.push(header, body);
            self.stirred.push(id);
        }
    }

    /// An Open without a right to it: nothing is changed, and whoever has the replica goes on.
    pub(super) fn refuse(&mut self, id: ConnId, header: &Header, why: RightRefusal) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let socket = self.reactor.descriptor(conn.channel.fd());
        let peer = socket.and_then(|socket| rustix::net::getpeername(socket).ok()??.try_into().ok());
        self.gate.refused(now(), header, why, peer);
        if std::mem::replace(&mut conn.refused, true) {
            return self.drop_conn(id, "it has no right to the replica");
        }
        conn.channel.push(&header.refuse_right(why), Body::None);
        self.stirred.push(id);
    }

    pub(super) fn step(&mut self, key: Key, event: Event<Data>) {
        let Some(Slot::Served(served)) = self.slots.get_mut(&key) else {
            return;
        };
        let before = stored(served);
        let mut asked = Asked::default();
        let mut tokens = ForReplica(&mut self.pending, key);
        served.step(
            now(),
            event,
            &mut self.reactor,
            &self.pool,
            &mut tokens,
            &mut asked,
        );
        self.changed |= before != stored(served);
        let deadline = served.core().deadline();
        if deadline.is_some() && deadline != served.due {
            served.due = deadline;
            self.due.extend(deadline.map(|due| (due, key)));
        }
        for (conn, header, body) in asked.answers {
            if let Some(to) = self.conns.get_mut(&conn) {
                to.channel.push(&header, body);
                if self.stirred.last() != Some(&conn) {
                    self.stirred.push(conn);
                }
            }
        }
        for conn in asked.drop {
            self.drop_conn(conn, "another connection took its place");
        }
        self.look(key);
        self.copy(key);
        self.tend_pre_sync(key);
    }

    /// There is something new to report.
    pub(super) fn stir(&mut self) {
        self.changed = true;
    }

    pub(super) fn drop_conn(&mut self, id: ConnId, why: &str) {
        let Some(conn) = self.conns.remove(&id) else {
            return;
        };
        tracing::debug!(conn = %id, why, "connection ends");
        self.readers.remove(&id);
        self.reactor.close(conn.channel.fd());
        if let Some(key) = conn.key {
            self.sessions = self.sessions.saturating_sub(1);
            self.changed = true;
            if let Some(Slot::Served(served)) = self.slots.get_mut(&key) {
                served.conns.remove(&id);
                served.held.retain(|(conn, ..)| *conn != id);
            }
            self.step(key, Event::Gone { conn: id });
        }
    }

    fn tick(&mut self) {
        let now = now();
        if self.accept_at.take_if(|at| *at <= now).is_some() {
            self.reactor.accept(self.listener, ACCEPT);
        }
        // A deadline that a step leaves in the past is for the next turn: I/O comes in between.
        let later = self
            .due
            .split_off(&(now + Duration::from_nanos(1), Key::default()));
        for (_, key) in std::mem::replace(&mut self.due, later) {
            match self.slots.get_mut(&key) {
                Some(Slot::Served(served)) => {
                    served.due = None;
                    self.step(key, Event::Tick);
                }
                Some(Slot::Failed { again, .. }) if *again <= now => {
                    self.slots.remove(&key);
                }
                _ => {}
            }
        }
    }

    pub(super) fn serve_files(&mut self, key: Key, spec: ReplicaSpec, files: Files) -> Result<(), OpenError> {
        let core = files.load(&spec, now())?;
        let register = |source| OpenError::File {
            what: "use",
            path: spec.data.clone(),
            source,
        };
        let (pre_sync, chunk, mended) = (files.pre_sync, files.chunk, files.mended);
        let data = self.reactor.register(files.data).map_err(register)?;
        let meta = self.reactor.register(files.meta).map_err(register)?;
        let mut served = Served::new(spec, core, (data, meta), chunk, pre_sync);
        served.mended = mended;
        self.slots.insert(key, Slot::Served(Box::new(served)));
        self.troubles.remove(&key);
        self.grow_if_wanted(key);
        Ok(())
    }
}

/// What names the pool.
pub(super) fn pool_of(spec: &ReplicaSpec) -> PathBuf {
    spec.room.place()
}

pub(super) fn now() -> Time {
    Time(clock::boottime())
}
