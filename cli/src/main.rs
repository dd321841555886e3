//! `storctl`, the command line of Stor.
//!
//! Thin: a command becomes REST calls through `stor_api::client`, then a table, or the REST object as JSON or
//! YAML. The grammar, the exit statuses and the JSON are pinned, because scripts depend on them.

use std::process::ExitCode;

use clap::CommandFactory as _;

mod args;
mod class;
mod completion;
mod context;
mod controller;
mod disk;
mod event;
mod failure;
mod node;
mod output;
mod pool;
mod quickstart;
mod replica;
mod snapshot;
mod status;
mod table;
mod volume;
mod wait;

use args::{Cli, Noun};
use context::Context;
use failure::Failure;

fn main() -> ExitCode {
    clap_complete::CompleteEnv::with_factory(Cli::command).complete();
    let cli = match args::parse() {
        Ok(cli) => cli,
        Err(ended) => return ended,
    };
    let format = cli.global.output;
    if cli.global.no_color {
        anstream::ColorChoice::Never.write_global();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return Failure::failed(format!("the async runtime can't start: {error}")).report(format);
        }
    };
    let ended = runtime.block_on(run(cli));
    // A thread may hang in a system call on a device that does not answer; the exit does not wait for it.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(format),
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let global = cli.global;
    match cli.noun {
        Noun::Completion { shell } => completion::print(shell),
        Noun::Quickstart(args) => Box::pin(quickstart::run(&args, &global)).await,
        Noun::Status => status::run(&Context::new(&global)?).await,
        Noun::Node { verb } => Box::pin(node::run(&Context::new(&global)?, verb)).await,
        Noun::Disk { verb } => disk::run(&Context::new(&global)?, verb).await,
        Noun::Pool { verb } => Box::pin(pool::run(&Context::new(&global)?, verb)).await,
        Noun::Class { verb } => Box::pin(class::run(&Context::new(&global)?, verb)).await,
        Noun::Snapshot { verb } => Box::pin(snapshot::run(&Context::new(&global)?, verb)).await,
        Noun::Volume { verb } => Box::pin(volume::run(&Context::new(&global)?, verb)).await,
        Noun::Replica { verb } => Box::pin(replica::run(&Context::new(&global)?, verb)).await,
        Noun::Controller { verb } => Box::pin(controller::run(&Context::new(&global)?, verb)).await,
        Noun::Event { verb } => Box::pin(event::run(&Context::new(&global)?, verb)).await,
    }
}
