//! `stor-satellite`: the one program on a storage or diskless node. `run` is the node's agent, `engine` the
//! process of one volume.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use stor_replication::ids::VolumeId;
use stor_satellite::agent::{self, Ending, Options};
use stor_satellite::attach::transports;
use stor_satellite::pool::disk::Looks;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;
use uuid::Uuid;

/// Enough for the control path; I/O has threads and processes of its own.
const WORKERS: usize = 2;

/// Stor's satellite: makes a node part of the cluster.
#[derive(Parser, Debug)]
#[command(name = "stor-satellite", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the satellite of a node.
    ///
    /// SIGTERM ends it and leaves attached volumes working, for an upgrade. SIGINT (Ctrl-C) takes the
    /// volumes' devices down first; they stay attached and come back at the next start.
    Run(Run),
    /// Serve one attached volume. Started by the agent, not by hand.
    #[command(hide = true)]
    Engine(Engine),
}

#[derive(Args, Debug)]
struct Engine {
    /// Volume.
    #[arg(long, value_name = "UUID")]
    volume: Uuid,
    /// Socket on which the agent talks to this engine.
    #[arg(long, value_name = "PATH")]
    control: PathBuf,
    /// Inherited descriptor of the volume's FUSE connection.
    #[arg(long, value_name = "N")]
    fuse_fd: Option<i32>,
}

#[derive(Args, Debug)]
struct Run {
    /// Name of the node, as given to `storctl node create`.
    #[arg(long, value_parser = node)]
    node: String,
    /// Directory for the satellite's state.
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// Address of a controller, http://HOST:PORT; give every one.
    #[arg(
        long = "controller",
        value_name = "URL",
        env = "STOR_CONTROLLER",
        value_delimiter = ',',
        required = true,
        value_parser = controller
    )]
    controllers: Vec<String>,
    /// Serve replicas on this address (a storage node); leave out on a diskless node.
    #[arg(long, value_name = "IP:PORT")]
    data_listen: Option<SocketAddr>,
    /// Address by which other nodes reach --data-listen; needed when that is 0.0.0.0.
    #[arg(long, value_name = "HOST:PORT", requires = "data_listen")]
    data_address: Option<String>,
    /// Directory for the names of devices.
    #[arg(long, value_name = "DIR", default_value = "/dev/stor")]
    device_dir: PathBuf,
    /// Use only these transports: ublk, nbd, fuse, socket.
    #[arg(long, value_name = "LIST", value_parser = transport_list)]
    transports: Option<TransportList>,
    /// List loop devices as disks too, so that pools can be made of them. For tests.
    #[arg(long)]
    loop_disks: bool,
}

/// A list as one value: a bare `Vec` would make clap take several arguments.
#[derive(Clone, Debug)]
struct TransportList(Vec<String>);

/// Before anything is made: a state directory belongs to the node it was made for.
fn node(text: &str) -> Result<String, stor_name::NameError> {
    stor_name::check(stor_name::Kind::Node, text)?;
    Ok(text.to_owned())
}

fn transport_list(text: &str) -> Result<TransportList, String> {
    transports::parse(text).map(TransportList)
}

fn controller(text: &str) -> Result<String, String> {
    if !text.starts_with("http://") {
        return Err("an address begins with http://, as in http://10.0.0.1:3369".to_owned());
    }
    match agent::session::endpoint(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(run) => run_agent(run),
        Command::Engine(engine) => run_engine(&engine),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error);
            ExitCode::FAILURE
        }
    }
}

/// An error on one line: each cause that is not already in the text before it.
fn say(error: &anyhow::Error) {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    eprintln!("stor-satellite: {text}");
}

/// No runtime here: see [`stor_satellite::engine`].
fn run_engine(engine: &Engine) -> anyhow::Result<()> {
    // First of all: as long as there is one thread, nobody else can own the descriptor.
    let fuse = engine.fuse_fd.map(stor_device::process::inherited).transpose();
    let fuse = fuse.context("cannot take the FUSE connection over")?;
    log_to_stderr()?;
    raise_file_limit();
    // Started as /proc/self/exe, it would be "exe" in every list of processes.
    rustix::thread::set_name(c"stor-engine").context("cannot name the process")?;
    let volume = VolumeId(engine.volume);
    Ok(stor_satellite::engine::run(stor_satellite::engine::Args {
        volume,
        control: engine.control.clone(),
        fuse,
    })?)
}

fn run_agent(run: Run) -> anyhow::Result<()> {
    log_to_stderr()?;
    raise_file_limit();
    let options = Options {
        node: run.node,
        state_dir: run.state_dir,
        controllers: run.controllers,
        data_listen: run.data_listen,
        data_address: run.data_address,
        device_dir: run.device_dir,
        transports: run.transports.map(|list| list.0),
        looks: Looks {
            loops: run.loop_disks,
        },
        // The same file, even when an upgrade has put another one in its place.
        engine_program: PathBuf::from("/proc/self/exe"),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let done = runtime.block_on(async {
        let (say, ending) = watch::channel(None);
        let (terminate, interrupt) = (
            signals(SignalKind::terminate())?,
            signals(SignalKind::interrupt())?,
        );
        let listening = tokio::spawn(listen(say, terminate, interrupt));
        let done = agent::run(options, ending).await;
        listening.abort();
        anyhow::Ok(done?)
    });
    // A thread may hang in the kernel on a sick disk: nothing waits for it.
    runtime.shutdown_background();
    done
}

fn log_to_stderr() -> anyhow::Result<()> {
    let filter = match std::env::var("STOR_LOG") {
        Ok(text) => {
            EnvFilter::try_new(&text).with_context(|| format!("STOR_LOG={text:?} is no log filter"))?
        }
        Err(_) => EnvFilter::new("info"),
    };
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal)
        .init();
    Ok(())
}

/// Every replica has two files and every engine a few connections; the usual 1024 is soon used up.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

fn signals(kind: SignalKind) -> anyhow::Result<Signal> {
    signal(kind).context("cannot listen for signals")
}

/// The first signal says how the agent ends; the second ends it at once.
async fn listen(say: watch::Sender<Option<Ending>>, mut terminate: Signal, mut interrupt: Signal) {
    loop {
        let ending = tokio::select! {
            _ = terminate.recv() => Ending::Leave,
            _ = interrupt.recv() => Ending::Halt,
        };
        if say.borrow().is_some() {
            tracing::warn!("ends at once; what runs is left running");
            std::process::exit(1);
        }
        say.send_replace(Some(ending));
    }
}
