//! The engine's end of the control socket, on a thread of its own.
//!
//! One agent at a time; a new connection takes the place of the old one and is told everything that is
//! still open: who this is, the last report, every proposal without an outcome, the end.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{self, Read as _};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use stor_device::{Reactor, Waker, scm};
use stor_replication::ids::{Epoch, VolumeId};
use thiserror::Error;

use super::Args;
use crate::control::{Config, FromEngine, MAX_MESSAGE, Report, ToEngine};

/// Messages of the agent not yet taken by the engine; more stay in the socket.
const INBOX: usize = 64;

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum AgentError {
    /// Can't be made.
    #[error("cannot listen on the control socket {path}: {source}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its thread.
    #[error("cannot start the control thread: {0}")]
    Thread(#[source] io::Error),
}

#[derive(Debug, Default)]
struct State {
    epoch: Option<Epoch>,
    /// From the agent, for the engine.
    inbox: VecDeque<ToEngine>,
    report: Option<Report>,
    /// The report changed since it was sent.
    report_due: bool,
    /// Proposals without an outcome.
    open: BTreeMap<u64, FromEngine>,
    /// Those of them not yet sent on the present connection.
    unsent: Vec<u64>,
    stopped: Option<FromEngine>,
    stopped_sent: bool,
}

/// Handle on the thread.
#[derive(Debug)]
pub(super) struct AgentLink {
    state: Arc<Mutex<State>>,
    event: Arc<OwnedFd>,
}

impl AgentLink {
    /// Listens and starts the thread.
    pub(super) fn start(args: &Args, fuse: Option<OwnedFd>, waker: Waker) -> Result<Self, AgentError> {
        let listen_error = |source| AgentError::Listen {
            path: args.control.clone(),
            source,
        };
        match fs::remove_file(&args.control) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(listen_error(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&args.control).map_err(listen_error)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let event = Arc::new(event.map_err(|error| AgentError::Thread(error.into()))?);
        let state = Arc::new(Mutex::new(State::default()));
        let thread = Thread {
            volume: args.volume,
            listener,
            fuse,
            state: Arc::clone(&state),
            event: Arc::clone(&event),
            waker,
            agent: None,
            received: Vec::new(),
        };
        let builder = std::thread::Builder::new()
            .name("control".to_owned())
            .stack_size(256 << 10);
        builder.spawn(move || thread.run()).map_err(AgentError::Thread)?;
        Ok(Self { state, event })
    }

    /// Waits for the first configuration.
    pub(super) fn configured(&self, reactor: &mut Reactor, within: Duration) -> Option<Config> {
        let until = Instant::now() + within;
        let mut none = Vec::new();
        loop {
            match self.take() {
                Some(ToEngine::Configure(config)) => {
                    self.lock().epoch = Some(config.epoch);
                    return Some(config);
                }
                Some(ToEngine::Stop) => return None,
                Some(ToEngine::Outcome { .. }) => {}
                None => {
                    let left = until.checked_duration_since(Instant::now())?;
                    if let Err(error) = reactor.wait(Some(left), &mut none) {
                        tracing::error!(%error, "cannot wait for the configuration");
                        return None;
                    }
                }
            }
        }
    }

    /// The agent's next message.
    pub(super) fn take(&self) -> Option<ToEngine> {
        self.lock().inbox.pop_front()
    }

    /// Tells the agent how it goes.
    pub(super) fn report(&self, report: Report) {
        let mut state = self.lock();
        if state.report.as_ref() != Some(&report) {
            state.report = Some(report);
            state.report_due = true;
            drop(state);
            self.wake();
        }
    }

    /// Asks for something until [`AgentLink::settled`].
    pub(super) fn ask(&self, id: u64, message: FromEngine) {
        let mut state = self.lock();
        state.open.insert(id, message);
        state.unsent.push(id);
        drop(state);
        self.wake();
    }

    /// The outcome of `id` came.
    pub(super) fn settled(&self, id: u64) {
        self.lock().open.remove(&id);
    }

    /// Says the last word, and waits a moment for an agent to hear it.
    pub(super) fn stopped(&self, clean: bool) {
        self.lock().stopped = Some(FromEngine::Stopped { clean });
        self.wake();
        let until = Instant::now() + Duration::from_secs(2);
        while !self.lock().stopped_sent && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // The counter can't be full: the thread empties it before every look at the state.
        if let Err(error) = rustix::io::write(&*self.event, &1_u64.to_ne_bytes()) {
            tracing::debug!(%error, "the control thread is awake already");
        }
    }
}

struct Thread {
    volume: VolumeId,
    listener: UnixListener,
    fuse: Option<OwnedFd>,
    state: Arc<Mutex<State>>,
    event: Arc<OwnedFd>,
    waker: Waker,
    agent: Option<UnixStream>,
    received: Vec<u8>,
}

impl Thread {
    fn run(mut self) {
        loop {
            match self.turn() {
                Ok(()) => {}
                Err(error) => {
                    tracing::debug!(%error, "the agent is gone");
                    self.agent = None;
                    self.received.clear();
                }
            }
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        let full = self.state().inbox.len() >= INBOX;
        let mut fds = vec![
            PollFd::new(&self.listener, PollFlags::IN),
            PollFd::from_borrowed_fd(self.event.as_fd(), PollFlags::IN),
        ];
        if let Some(agent) = self.agent.as_ref().filter(|_| !full) {
            fds.push(PollFd::new(agent, PollFlags::IN));
        }
        let nap = rustix::event::Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&nap))?;
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready.get(1) == Some(&true) {
            let mut count = [0; 8];
            if let Err(error) = rustix::io::read(&*self.event, &mut count) {
                tracing::debug!(%error, "a wake-up was taken already");
            }
        }
        if ready.first() == Some(&true) {
            self.greet()?;
        } else if ready.get(2) == Some(&true) {
            self.read()?;
        }
        self.tell()
    }

    /// A new agent: it takes the place of any other and is told everything again.
    fn greet(&mut self) -> io::Result<()> {
        let (agent, _) = self.listener.accept()?;
        // An agent that does not read for this long is as good as gone; it will come back.
        agent.set_write_timeout(Some(Duration::from_secs(5)))?;
        self.received.clear();
        let epoch = {
            let mut state = self.state();
            state.report_due = state.report.is_some();
            state.unsent = state.open.keys().copied().collect();
            state.epoch
        };
        let hello = frame(&FromEngine::Hello {
            volume: self.volume,
            epoch,
        })?;
        let fds: Vec<_> = self.fuse.iter().map(OwnedFd::as_fd).collect();
        self.agent = None;
        scm::send_all(&agent, &hello, &fds)?;
        self.agent = Some(agent);
        Ok(())
    }

    fn read(&mut self) -> io::Result<()> {
        let Some(agent) = &mut self.agent else {
            return Ok(());
        };
        let mut chunk = [0; 16 << 10];
        let count = agent.read(&mut chunk)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.received
            .extend_from_slice(chunk.get(..count).unwrap_or_default());
        let mut came = false;
        while let Some(head) = self.received.first_chunk::<4>() {
            let length = usize::try_from(u32::from_le_bytes(*head)).unwrap_or(usize::MAX);
            if length > MAX_MESSAGE {
                return Err(io::Error::other(format!(
                    "a message of {length} bytes, above the limit"
                )));
            }
            let Some(text) = self.received.get(4..4 + length) else {
                break;
            };
            let mut message = serde_json::from_slice(text).map_err(io::Error::other)?;
            if let ToEngine::Configure(config) = &mut message {
                resolve(config);
            }
            self.received.drain(..4 + length);
            self.state().inbox.push_back(message);
            came = true;
        }
        if came {
            self.waker.wake();
        }
        Ok(())
    }

    /// Sends what is due.
    fn tell(&mut self) -> io::Result<()> {
        if self.agent.is_none() {
            return Ok(());
        }
        let (due, last) = {
            let mut state = self.state();
            let mut due = Vec::new();
            if std::mem::take(&mut state.report_due) {
                due.extend(state.report.clone().map(FromEngine::Report));
            }
            let unsent = std::mem::take(&mut state.unsent);
            due.extend(unsent.iter().filter_map(|id| state.open.get(id).cloned()));
            let last = state.stopped.clone().filter(|_| !state.stopped_sent);
            (due, last)
        };
        let mut bytes = Vec::new();
        for message in due.iter().chain(&last) {
            bytes.extend(frame(message)?);
        }
        if let Some(agent) = self.agent.as_ref().filter(|_| !bytes.is_empty()) {
            scm::send_all(agent, &bytes, &[])?;
        }
        if last.is_some() {
            self.state().stopped_sent = true;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Turns host names into addresses here, where waiting for a name server holds up no I/O. A name that is
/// not known stays as it is: the engine can't reach that replica until the next configuration.
fn resolve(config: &mut Config) {
    for (replica, address) in &mut config.addresses {
        if address.parse::<SocketAddr>().is_ok() {
            continue;
        }
        match address.to_socket_addrs().map(|mut found| found.next()) {
            Ok(Some(found)) => *address = found.to_string(),
            Ok(None) => tracing::warn!(%replica, address, "the name has no address"),
            Err(error) => tracing::warn!(%replica, address, %error, "the name can't be resolved"),
        }
    }
}

fn frame(message: &FromEngine) -> io::Result<Vec<u8>> {
    let text = serde_json::to_vec(message).map_err(io::Error::other)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(text);
    Ok(bytes)
}
