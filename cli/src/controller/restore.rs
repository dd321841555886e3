//! `storctl controller restore`: checks a backup and makes a new cluster of it on this machine, with
//! `stor-controller init --restore`.
//!
//! Refused while a cluster answers: one that lives needs no backup, and a second one of the same volumes is what
//! this must never make.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Serialize;
use stor_api::backup::{self, Description};
use stor_api::client::Error;
use stor_api::objects::Plan;

use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::output::confirm;

/// Of `controller restore`.
#[derive(Debug, clap::Args)]
pub(crate) struct RestoreArgs {
    /// The backup, as `storctl controller backup` wrote it
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// Name of the controller that is made here
    #[arg(long)]
    name: String,
    /// Its directory, which must be empty
    #[arg(long, env = "STOR_CONTROLLER_DIR", default_value = "/var/lib/stor/controller")]
    dir: PathBuf,
    /// Where it listens for controllers and satellites [default: as stor-controller init]
    #[arg(long, value_name = "ADDRESS")]
    peer_listen: Option<String>,
    /// Where it listens for the API [default: as stor-controller init]
    #[arg(long, value_name = "ADDRESS")]
    api_listen: Option<String>,
    /// HOST:PORT under which others reach the first
    #[arg(long, value_name = "ADDRESS")]
    peer_address: Option<String>,
    /// HOST:PORT under which others reach the second
    #[arg(long, value_name = "ADDRESS")]
    api_address: Option<String>,
    /// Also while a cluster answers, which is then to be given up
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Serialize)]
struct Restored<'a> {
    kind: &'static str,
    name: &'a str,
    dir: &'a Path,
    result: &'static str,
    backup: &'a Description,
}

pub(super) async fn restore(context: &Context, args: RestoreArgs) -> Result<(), Failure> {
    let of = backup::check(&args.file)
        .map_err(|error| Failure::failed("this backup can't be restored").why(error.to_string()))?;
    if context.dry_run {
        return context.out.plan(&plan(&args, &of));
    }
    if !args.force {
        refuse_alive(context, &of).await?;
    }
    if !context.yes {
        confirm(
            &question(&args, &of),
            "storctl controller restore FILE --name NAME",
        )?;
    }
    run(&args).await?;
    let restored = Restored {
        kind: "controller",
        name: &args.name,
        dir: &args.dir,
        result: "restored",
        backup: &of,
    };
    context.out.object(&restored, |_| {
        format!(
            "controller {name} holds the catalogue of {at}\n\
             start it:      stor-controller run --dir {dir}\n\
             join others:   stor-controller join --name NAME --seed http://HOST:PORT   (with empty directories)\n\
             then look at:  storctl status   (volumes are locked until every storage node was heard)\n",
            name = args.name,
            at = of.at,
            dir = args.dir.display()
        )
    })
}

fn plan(args: &RestoreArgs, of: &Description) -> Plan {
    let all = if of.complete {
        ""
    } else {
        "; it was made of one controller alone and may lack entries"
    };
    Plan {
        steps: vec![
            format!(
                "use the catalogue of cluster {} of {} (entry {}, controllers {}){all}",
                of.cluster_id,
                of.at,
                of.applied,
                of.controllers.join(", ")
            ),
            format!(
                "make a cluster of the one controller {} in {}",
                args.name,
                args.dir.display()
            ),
            "lock every volume until every storage node was heard".to_owned(),
        ],
        placement: Vec::new(),
    }
}

fn question(args: &RestoreArgs, of: &Description) -> String {
    format!(
        "A new cluster of the one controller {} is made from the catalogue of {}. The controllers {} must never run \
         again on the directories they had.",
        args.name,
        of.at,
        of.controllers.join(", ")
    )
}

async fn refuse_alive(context: &Context, of: &Description) -> Result<(), Failure> {
    let conflict = |what: String| Failure::new(Exit::Conflict, what);
    match context.client.catalogue().await {
        Ok(info) if info.cluster_id == of.cluster_id => Err(conflict(
            "the cluster of this backup answers; nothing has to be restored".to_owned(),
        )
        .why("As long as a majority of its controllers lives, lost ones are replaced: storctl controller remove, then join.")
        .help("to give up what happened since the backup, stop all of its controllers for good first; or say --force")),
        Ok(info) => Err(conflict(format!("another cluster ({}) answers there", info.cluster_id))
            .why(format!("The backup is of cluster {}. A catalogue is never restored into another cluster.", of.cluster_id))
            .help("name the controllers of the lost cluster with --url, or say --force to restore on this machine anyway")),
        // Nobody, or too few: what a restore is for.
        Err(Error::Unreachable { .. } | Error::TimedOut { .. } | Error::Failed(_)) => Ok(()),
        Err(other) => Err(other.into()),
    }
}

async fn run(args: &RestoreArgs) -> Result<(), Failure> {
    let program = std::env::current_exe()
        .ok()
        .map(|me| me.with_file_name("stor-controller"))
        .filter(|beside| beside.exists())
        .unwrap_or_else(|| PathBuf::from("stor-controller"));
    let mut command = tokio::process::Command::new(&program);
    command.arg("init").arg("--restore").arg(&args.file);
    command.arg("--name").arg(&args.name).arg("--dir").arg(&args.dir);
    for (flag, value) in [
        ("--peer-listen", &args.peer_listen),
        ("--api-listen", &args.api_listen),
        ("--peer-address", &args.peer_address),
        ("--api-address", &args.api_address),
    ] {
        if let Some(value) = value {
            command.arg(flag).arg(value);
        }
    }
    if args.force {
        command.arg("--force");
    }
    let output = command.stdin(Stdio::null()).output().await.map_err(|error| {
        Failure::failed(format!("cannot run {}", program.display())).why(error.to_string())
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let why = said.lines().last().unwrap_or_default();
    Err(Failure::failed("nothing was restored").why(why.trim_start_matches("stor-controller: ").to_owned()))
}
