//! `storctl quickstart`: a whole cluster on this machine, on loopback, in one directory: three controllers,
//! storage nodes with a file pool each, and one diskless node.
//!
//! ```text
//! DIR/quickstart.json    ports and nodes, kept so that the next start is the same cluster
//! DIR/quickstart.lock    held while a quickstart runs; its pid inside
//! DIR/env                STOR_URL and the rest, to be sourced
//! DIR/c1 c2 c3           the controllers' data
//! DIR/s1 …               the storage nodes: state and, in `pool`, replicas
//! DIR/k1                 the diskless node's state
//! DIR/run/NAME.start     starts a daemon again, detached
//! DIR/run/NAME.pid       written by NAME.start, removed when the cluster is stopped
//! DIR/run/dev/sN         devices of volumes attached on a storage node
//! DIR/log/NAME.log       what a daemon says
//! ```
//!
//! Promises: started again, it is the same cluster with its volumes. What it started it stops, and nothing
//! else; but an engine whose device is in use is left alive, for what uses it must not lose anything. It does not restart what was killed: people and tests break parts of it and look what happens.

use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::Global;
use crate::failure::{Exit, Failure};
use crate::output::{Output, note};

mod cluster;
mod daemon;
mod engine;
mod fleet;
mod place;
mod ports;
mod process;
mod story;
mod welcome;

use cluster::Cluster;
use place::Place;

/// Of `quickstart`.
#[derive(Debug, Args)]
pub(crate) struct QuickstartArgs {
    /// Directory of the cluster; made when it is not there
    #[arg(long, default_value = "./stor-data")]
    dir: std::path::PathBuf,
    /// Storage nodes [default: 3, or as many as the cluster in DIR has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: Option<u8>,
    /// Run the whole story by itself (create, attach, fill, kill a node under load, resync, compare, read
    /// elsewhere), say what each step measured, and stop
    #[arg(long)]
    once: bool,
}

/// Runs the command.
pub(crate) async fn run(args: &QuickstartArgs, global: &Global) -> Result<(), Failure> {
    if global.dry_run {
        return Err(Failure::new(Exit::Usage, "quickstart has no dry run")
            .why("it starts a whole cluster on this machine; nothing was started or written")
            .help("leave --dry-run out; `storctl quickstart --help` says what is made where"));
    }
    let mut stop = Stop::listen()?;
    let place = Place::take(&args.dir)?;
    let mut cluster = Cluster::prepare(place, args.nodes, global)?;
    let out = Output {
        format: global.output,
    };
    let ended = tokio::select! {
        ended = live(&mut cluster, args.once, out) => ended,
        name = stop.asked() => Err(Failure::failed(format!("stopped by {name}"))),
    };
    if args.once {
        story::clean(&cluster).await;
    }
    let ended = match ended {
        // Ready, and to be kept until somebody ends it.
        Ok(()) if !args.once => {
            let name = stop.asked().await;
            note(&format!(
                "\n{name}: stopping the cluster; its volumes stay in {}",
                cluster.place().dir().display()
            ));
            Ok(())
        }
        other => other,
    };
    let stopped = tokio::select! {
        () = cluster.stop() => true,
        _ = stop.asked() => false,
    };
    if !stopped {
        note("asked again: killing what is left");
        cluster.kill(&[]).await;
    }
    ended
}

/// Brings the cluster up; with `once`, goes through the story.
async fn live(cluster: &mut Cluster, once: bool, out: Output) -> Result<(), Failure> {
    Box::pin(cluster.start()).await?;
    if once {
        return Box::pin(story::tell(cluster, out)).await;
    }
    out.object(&welcome::Made::of(cluster), welcome::text)
}

/// The signals that end a quickstart.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Stop {
    fn listen() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|e| Failure::failed(format!("signals can't be caught: {e}")));
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hang_up: on(SignalKind::hangup())?,
        })
    }

    /// Waits for one of them. Cancel-safe.
    async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "Ctrl-C",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hang_up.recv() => "SIGHUP",
        }
    }
}

/// Pause between two looks at something that takes tens of milliseconds.
const LOOK: Duration = Duration::from_millis(25);
