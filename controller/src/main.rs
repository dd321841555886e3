//! `stor-controller`: one controller of a Stor cluster.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use stor_api::name;
use stor_controller::policy::Policy;
use stor_controller::restore;
use stor_controller::server::{self, Running};
use stor_controller::settings::{Before, Settings, Wanted};
use stor_raft::Timing;
use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Debug, Parser)]
#[command(name = "stor-controller", version, about = "One controller of a Stor cluster")]
struct Cli {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Debug, Subcommand)]
enum Commands {
    /// Make a new cluster with this controller as its only member
    Init {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        who: Who,
        /// Out of this backup of a cluster whose controllers are lost (`storctl controller backup`)
        #[arg(long, value_name = "FILE")]
        restore: Option<PathBuf>,
        /// With --restore: also while controllers of that cluster still answer
        #[arg(long, requires = "restore")]
        force: bool,
        /// Go on running afterwards
        #[arg(long)]
        run: bool,
        #[command(flatten)]
        tending: Tending,
    },
    /// Join this controller to a cluster
    Join {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        who: Who,
        /// Peer address of a controller of the cluster, http://HOST:PORT
        #[arg(long, required = true)]
        seed: Vec<String>,
        /// Go on running afterwards
        #[arg(long)]
        run: bool,
        #[command(flatten)]
        tending: Tending,
    },
    /// Run a controller that was made by init or join
    Run {
        #[command(flatten)]
        place: Place,
        /// Listen for controllers and satellites here instead
        #[arg(long)]
        peer_listen: Option<SocketAddr>,
        /// Listen for the API here instead
        #[arg(long)]
        api_listen: Option<SocketAddr>,
        #[command(flatten)]
        tending: Tending,
    },
}

#[derive(Debug, Args)]
struct Place {
    /// Directory of this controller's data
    #[arg(long, env = "STOR_CONTROLLER_DIR", default_value = "/var/lib/stor/controller")]
    dir: PathBuf,
}

/// What the cluster does by itself. The leader's values count: give all controllers the same
#[derive(Debug, Args)]
struct Tending {
    /// Minutes after which a storage node that is away is taken for lost and its replicas are replaced; 0: never
    #[arg(
        long,
        env = "STOR_REPLACE_AFTER",
        value_name = "MINUTES",
        default_value_t = 60
    )]
    replace_after: u64,
    /// Not while more than this share of the storage nodes is away, in percent
    #[arg(long, env = "STOR_REPLACE_SHARE", value_name = "PERCENT", default_value_t = 34,
        value_parser = clap::value_parser!(u8).range(1..=100))]
    replace_share: u8,
    /// Days after which the copies of a volume are compared again, where its class does not say; 0: never
    #[arg(long, env = "STOR_SCRUB_DAYS", value_name = "DAYS", default_value_t = 30)]
    scrub_days: u16,
    /// MiB a second that a scrub reads of each replica; a quarter of that while clients wait for something
    #[arg(long, env = "STOR_SCRUB_RATE", value_name = "MIB", default_value_t = 32,
        value_parser = clap::value_parser!(u32).range(1..=65_536))]
    scrub_rate: u32,
}

impl Tending {
    fn policy(&self) -> Policy {
        Policy {
            replace_after: (self.replace_after > 0)
                .then(|| Duration::from_secs(self.replace_after.saturating_mul(60))),
            replace_share: self.replace_share,
            scrub_days: self.scrub_days,
            scrub_rate: u64::from(self.scrub_rate) << 20,
        }
    }
}

#[derive(Debug, Args)]
struct Who {
    /// Name of this controller
    #[arg(long)]
    name: String,
    /// Where to listen for controllers and satellites
    #[arg(long, default_value = "127.0.0.1:3369")]
    peer_listen: SocketAddr,
    /// Where to listen for the API
    #[arg(long, default_value = "127.0.0.1:3370")]
    api_listen: SocketAddr,
    /// HOST:PORT under which others reach the first [default: where it listens]
    #[arg(long)]
    peer_address: Option<String>,
    /// HOST:PORT under which others reach the second [default: where it listens]
    #[arg(long)]
    api_address: Option<String>,
}

impl Who {
    fn wanted(self) -> anyhow::Result<Wanted> {
        name::check(name::Kind::Controller, &self.name)?;
        Ok(Wanted {
            name: self.name,
            peer_listen: self.peer_listen,
            api_listen: self.api_listen,
            peer_address: self.peer_address,
            api_address: self.api_address,
        })
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // openraft warns several times a second of a member that is down; the status and the events tell it once.
    let wanted = std::env::var("STOR_LOG").unwrap_or_else(|_| "info,openraft=error".to_owned());
    let filter = match tracing_subscriber::EnvFilter::try_new(&wanted) {
        Ok(filter) => filter,
        Err(error) => return last_word(&format!("STOR_LOG={wanted:?} is no log filter: {error}")),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    // Two threads carry a controller of thousands of volumes; more would only cost memory.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .map_err(|error| anyhow::anyhow!("the runtime does not start: {error}"));
    let result = runtime.and_then(|runtime| runtime.block_on(execute(cli.command)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Its causes are in its text.
        Err(error) => last_word(&error.to_string()),
    }
}

fn last_word(why: &str) -> ExitCode {
    #[expect(clippy::print_stderr, reason = "the last word of a program")]
    {
        eprintln!("stor-controller: {why}");
    }
    ExitCode::FAILURE
}

async fn execute(command: Commands) -> anyhow::Result<()> {
    let timing = Timing::default();
    match command {
        Commands::Init {
            place,
            who,
            restore: file,
            force,
            run,
            tending,
        } => {
            let wanted = who.wanted()?;
            if run {
                server::check_ports(&wanted).await?;
            }
            let mut settings = match file {
                None => {
                    let settings = Settings::begin(&place.dir, wanted)?;
                    let settings = server::init(&place.dir, settings, timing).await?;
                    tracing::info!(name = %settings.name, dir = %place.dir.display(), "a new cluster was made");
                    settings
                }
                Some(file) => {
                    let (settings, of) = restore::restore(&place.dir, wanted, &file, force, timing).await?;
                    tracing::info!(
                        name = %settings.name, dir = %place.dir.display(), cluster = %of.cluster_id, at = %of.at,
                        entry = of.applied, "a new cluster was made of the backup"
                    );
                    settings
                }
            };
            settings.policy = tending.policy();
            if run {
                serve(server::start(&place.dir, &settings, timing).await?).await?;
            }
            Ok(())
        }
        Commands::Join {
            place,
            who,
            seed,
            run,
            tending,
        } => {
            let wanted = who.wanted()?;
            let before = Before::look(&place.dir);
            let mut settings = Settings::begin(&place.dir, wanted)?;
            settings.policy = tending.policy();
            let running = match server::join(&place.dir, settings, &seed, timing).await {
                Err(error) if error.nobody_heard() => {
                    before.restore(&place.dir)?;
                    return Err(error.into());
                }
                other => other?,
            };
            tracing::info!(dir = %place.dir.display(), "joined the cluster");
            if run {
                serve(running).await
            } else {
                stop(running).await
            }
        }
        Commands::Run {
            place,
            peer_listen,
            api_listen,
            tending,
        } => {
            let mut settings = Settings::load(&place.dir)?;
            settings.policy = tending.policy();
            settings.peer_listen = peer_listen.unwrap_or(settings.peer_listen);
            settings.api_listen = api_listen.unwrap_or(settings.api_listen);
            serve(server::start(&place.dir, &settings, timing).await?).await
        }
    }
}

async fn stop(running: Running) -> anyhow::Result<()> {
    running.stop().await;
    Ok(())
}

fn caught(kind: SignalKind) -> anyhow::Result<Signal> {
    signal(kind).map_err(|error| anyhow::anyhow!("signals can't be caught: {error}"))
}

/// Runs until a signal or a failure of the storage.
async fn serve(running: Running) -> anyhow::Result<()> {
    let mut terminate = caught(SignalKind::terminate())?;
    let mut interrupt = caught(SignalKind::interrupt())?;
    let failure = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        why = running.failed() => Some(why),
    };
    match failure {
        None => {
            tracing::info!("stopping");
            running.stop().await;
            Ok(())
        }
        Some(why) => {
            running.stop_now().await;
            anyhow::bail!("the controller can't go on: {why}")
        }
    }
}
