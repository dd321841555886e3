//! The agent of a node: makes it what the catalogue wants, and says what it sees.
//!
//! Data flows one way: a controller says what should be ([`desired`]), [`node`] hands it to those who make
//! it so ([`storage`] for pools and replicas, [`crate::attach`] for volumes), and what they see goes back
//! as status ([`session`]). Everything can be killed at any instant: what should be is on disk, what is
//! can be seen, and the difference is worked off again.

pub mod ask;
pub mod copies;
mod copy_client;
pub mod desired;
pub mod dial;
pub mod durable;
pub mod history;
pub mod keeper;
mod kept;
pub mod known;
mod new_copy;
mod node;
pub mod recopies;
pub mod row;
pub mod session;
pub mod state_dir;
pub mod storage;
mod thin_copies;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use stor_proto::satellite as proto;
use thiserror::Error;
use tokio::sync::{Notify, mpsc, watch};

use self::desired::{Store, StoreError};
use self::dial::Dialer;
use self::history::{Pin, PinError};
use self::known::{Known, KnownError};
use self::node::Node;
use self::session::{Ends, PROTOCOL, Session};
use self::state_dir::{StateDir, StateDirError};
use self::storage::Storage;
use crate::attach::kernel::KernelDevices;
use crate::attach::{Context, Volumes, transports};
use crate::pool::disk::Looks;
use crate::replicas::{Server, StartError};

/// Messages between the agent's parts; each part is quick to take them.
const QUEUE: usize = 16;

/// How an agent is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's name.
    pub node: String,
    /// Where it keeps its state.
    pub state_dir: PathBuf,
    /// Controllers to dial, `http://host:port`.
    pub controllers: Vec<String>,
    /// Where replicas are served; `None` on a diskless node.
    pub data_listen: Option<SocketAddr>,
    /// `host:port` by which other nodes reach that.
    pub data_address: Option<String>,
    /// Where the names of devices go.
    pub device_dir: PathBuf,
    /// Restricts the transports.
    pub transports: Option<Vec<String>>,
    /// What is listed beside disks.
    pub looks: Looks,
    /// What is run as an engine.
    pub engine_program: PathBuf,
}

/// How an agent ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Engines and devices go on; another agent will take over.
    Leave,
    /// The node stops: devices down, engines stopped. The volumes stay attached.
    Halt,
}

/// Why an agent could not run.
#[derive(Debug, Error)]
pub enum AgentError {
    /// See [`StateDirError`].
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// See [`StoreError`].
    #[error(transparent)]
    Desired(#[from] StoreError),
    /// See [`KnownError`].
    #[error(transparent)]
    Known(#[from] KnownError),
    /// See [`PinError`].
    #[error(transparent)]
    History(#[from] PinError),
    /// See [`StartError`].
    #[error(transparent)]
    Server(#[from] StartError),
    /// What other nodes would have to dial is not known.
    #[error("--data-listen {address} is no address other nodes can dial: give --data-address HOST:PORT too")]
    NoDataAddress {
        /// Where the server listens.
        address: SocketAddr,
    },
    /// The kernel does not say which boot this is.
    #[error("cannot read the kernel's boot id: {0}; is /proc mounted?")]
    BootId(#[source] io::Error),
    /// /proc.
    #[error("cannot look for running engines: {0}; is /proc mounted?")]
    Processes(#[source] io::Error),
    /// No thread for the session with the controllers.
    #[error("cannot start a thread for the session with the controllers: {0}")]
    Session(#[source] io::Error),
    /// An epoch could not be noted.
    #[error(transparent)]
    Record(#[from] durable::ReplaceError),
}

/// Runs an agent until `ending` says how it ends.
/// Not cancel-safe: what it has begun is left as by a kill.
pub async fn run(options: Options, ending: watch::Receiver<Option<Ending>>) -> Result<(), AgentError> {
    crate::failure::arm(&options.node);
    let state = StateDir::open(&options.state_dir, &options.node)?;
    let paths = state.paths().clone();
    let store = Store::load(&paths.desired())?;
    let known = Known::load(&paths.known())?;
    let pin = Pin::load(&paths.history())?;
    let boot_id = stor_device::clock::boot_id().map_err(AgentError::BootId)?;
    let server = options.data_listen.map(Server::start).transpose()?;
    if let Some(server) = &server {
        tracing::info!(address = %server.address(), "replica server started");
    }
    let hello = proto::Hello {
        protocol: PROTOCOL,
        node: options.node.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: boot_id.clone(),
        data_address: data_address(&options, server.as_ref())?,
        transports: transports::probe(options.transports.as_deref()),
    };
    for probe in hello.transports.iter().filter(|probe| !probe.available) {
        tracing::info!(
            transport = probe.name,
            remedy = probe.remedy,
            "transport not available"
        );
    }
    let (asker, asks) = ask::channel();
    let changed = Arc::new(Notify::new());
    let context = Context {
        node: options.node.clone(),
        paths: paths.clone(),
        engine_program: options.engine_program.clone(),
        asker,
        devices: Arc::new(KernelDevices::new(paths.clone(), options.device_dir.clone())),
        changed: Arc::clone(&changed),
    };
    let volumes = Volumes::find(Arc::new(context)).map_err(AgentError::Processes)?;
    let (done, storage_done) = mpsc::channel(QUEUE);
    let storage = Storage::new(&options.node, &boot_id, known, server, done);
    let (told, status) = watch::channel(None);
    let (desired, wishes) = mpsc::channel(QUEUE);
    let (removals, to_remove) = mpsc::channel(QUEUE);
    let dialer = Dialer::new(options.controllers.clone(), paths.controllers());
    let session = Session::new(
        hello,
        dialer,
        Ends {
            status,
            asks,
            desired,
            removals,
        },
    )
    .pinned(pin);
    tracing::info!(
        node = options.node,
        version = env!("CARGO_PKG_VERSION"),
        "satellite started"
    );
    let session = session::run_apart(session).map_err(AgentError::Session)?;
    let node = Node::new(paths, store, storage, volumes, told, changed, options.looks);
    node.run(wishes, storage_done, to_remove, ending).await;
    drop(session);
    drop(state);
    Ok(())
}

fn data_address(options: &Options, server: Option<&Server>) -> Result<String, AgentError> {
    match (server, &options.data_address) {
        (None, _) => Ok(String::new()),
        (Some(_), Some(address)) => Ok(address.clone()),
        // The port may have been chosen by the kernel.
        (Some(server), None) => {
            let address = server.address();
            if address.ip().is_unspecified() {
                return Err(AgentError::NoDataAddress { address });
            }
            Ok(address.to_string())
        }
    }
}
