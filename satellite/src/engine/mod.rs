//! The process that serves one attached volume: `stor-satellite engine`.
//!
//! Started by the node's agent in a session of its own, configured through its control socket
//! ([`crate::control`]), it runs the replication core's [`stor_replication::engine::Engine`] on one thread:
//! `completions → step → commands → submit`. A second thread talks to the agent, which may come and go.
//! It ends when it was stopped, when a newer epoch has the volume, or when nobody configures it.

mod agent;
mod clients;
mod fuse;
mod guest;
mod links;
mod nbd;
mod request;
mod shell;
mod ublk;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use stor_device::ublk::UblkError;
use stor_device::{Choice, Reactor, ReactorError};
use stor_replication::ids::VolumeId;
use thiserror::Error;

use agent::AgentError;
pub use fuse::forget_session;
pub use guest::forget as forget_guest;
use shell::Shell;

/// An engine that nobody configures in this time ends: its agent died right after starting it.
const CONFIGURE_WITHIN: Duration = Duration::from_secs(30);

/// What the process was started with.
#[derive(Debug)]
pub struct Args {
    /// Volume it is for.
    pub volume: VolumeId,
    /// Its control socket.
    pub control: PathBuf,
    /// The FUSE connection of the volume's mount.
    pub fuse: Option<OwnedFd>,
}

/// Why an engine ended other than in order.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The control socket.
    #[error(transparent)]
    Control(#[from] AgentError),
    /// The reactor.
    #[error(transparent)]
    Reactor(#[from] ReactorError),
    /// See [`CONFIGURE_WITHIN`].
    #[error("no agent configured this engine within {} s", CONFIGURE_WITHIN.as_secs())]
    NotConfigured,
    /// The place clients connect to.
    #[error("cannot serve clients on {path}: {source}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The transport asked for needs what was not handed over.
    #[error("transport fuse without a FUSE connection (--fuse-fd)")]
    NoFuse,
    /// The ublk device.
    #[error(transparent)]
    Ublk(#[from] UblkError),
    /// It was there.
    #[error("the ublk device was taken away by somebody else")]
    DeviceGone,
    /// The reactor can't go on.
    #[error("cannot wait for work: {0}")]
    Wait(#[source] std::io::Error),
}

/// Runs an engine to its end.
pub fn run(args: Args) -> Result<(), EngineError> {
    let fuse = args
        .fuse
        .as_ref()
        .map(OwnedFd::try_clone)
        .transpose()
        .map_err(EngineError::Wait)?;
    let mut reactor = Reactor::new(Choice::Auto)?;
    let link = agent::AgentLink::start(&args, fuse, reactor.waker())?;
    let config = link
        .configured(&mut reactor, CONFIGURE_WITHIN)
        .ok_or(EngineError::NotConfigured)?;
    tracing::info!(volume = %config.name, epoch = %config.epoch, backend = reactor.backend(), "engine begins");
    Shell::new(reactor, link, config, args)?.serve()
}
