//! An engine without replicas, for the tests of the agent: speaks the control protocol and notes what it
//! hears in `heard` beside its control socket. How it behaves is told by the volume's name:
//!
//! * `deaf…`: hears Stop and goes on.
//! * `proposer…`: proposes to remove replica 2, once configured, on every connection until it hears the outcome.
//! * `grown…`: serves twice the bytes that the row says.
//! * anything else: serves, stops clean.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use stor_replication::catalogue::{Change, EjectReason};
use stor_replication::ids::{ReplicaId, VolumeId};
use stor_satellite::control::{Config, Counters, FromEngine, Report, State, ToEngine};

struct Engine {
    volume: VolumeId,
    fuse: Option<OwnedFd>,
    heard: PathBuf,
    config: Option<Config>,
    outcome: bool,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let after = |name: &str| {
        args.iter()
            .position(|arg| arg == name)
            .map(|at| args[at + 1].clone())
    };
    let control = PathBuf::from(after("--control").unwrap());
    let mut engine = Engine {
        volume: VolumeId(after("--volume").unwrap().parse().unwrap()),
        fuse: after("--fuse-fd").map(|fd| stor_device::process::inherited(fd.parse().unwrap()).unwrap()),
        heard: control.with_file_name("heard"),
        config: None,
        outcome: false,
    };
    let listener = UnixListener::bind(&control).unwrap();
    loop {
        let (stream, _) = listener.accept().unwrap();
        // The agent went away: the next one will come.
        drop(engine.serve(&stream));
    }
}

impl Engine {
    fn serve(&mut self, stream: &UnixStream) -> io::Result<()> {
        let hello = FromEngine::Hello {
            volume: self.volume,
            epoch: self.config.as_ref().map(|config| config.epoch),
        };
        let fds: Vec<_> = self.fuse.iter().map(|fuse| fuse.as_fd()).collect();
        stor_device::scm::send_all(stream, &frame(&hello), &fds)?;
        if self.config.is_some() {
            self.report(stream)?;
        }
        loop {
            let message = receive(stream)?;
            writeln!(
                OpenOptions::new().create(true).append(true).open(&self.heard)?,
                "{}",
                serde_json::to_string(&message)?
            )?;
            match message {
                ToEngine::Configure(config) => {
                    self.config = Some(config);
                    self.report(stream)?;
                }
                ToEngine::Outcome { .. } => self.outcome = true,
                ToEngine::Stop if self.name().starts_with("deaf") => {}
                ToEngine::Stop => {
                    send(stream, &FromEngine::Stopped { clean: true })?;
                    std::process::exit(0);
                }
            }
        }
    }

    fn name(&self) -> &str {
        self.config.as_ref().map_or("", |config| &config.name)
    }

    fn report(&self, stream: &UnixStream) -> io::Result<()> {
        let report = Report {
            state: State::Serving,
            size: if self.name().starts_with("grown") {
                self.config.as_ref().map_or(0, |config| 2 * config.row.size)
            } else {
                0
            },
            reason: String::new(),
            syncing: Vec::new(),
            counters: Counters::default(),
            snapshot: None,
            scrub: None,
        };
        send(stream, &FromEngine::Report(report))?;
        if self.name().starts_with("proposer") && !self.outcome {
            let expect = self.config.as_ref().unwrap().row.view;
            let members = vec![(ReplicaId(2), EjectReason::Unreachable)];
            let change = Change::Remove { expect, members };
            send(stream, &FromEngine::Propose { id: 1, change })?;
        }
        Ok(())
    }
}

fn frame(message: &FromEngine) -> Vec<u8> {
    let text = serde_json::to_vec(message).unwrap();
    let mut frame = u32::try_from(text.len()).unwrap().to_le_bytes().to_vec();
    frame.extend(text);
    frame
}

fn send(mut stream: &UnixStream, message: &FromEngine) -> io::Result<()> {
    stream.write_all(&frame(message))
}

fn receive(mut stream: &UnixStream) -> io::Result<ToEngine> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut text = vec![0; usize::try_from(u32::from_le_bytes(length)).unwrap()];
    stream.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}
