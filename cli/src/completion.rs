//! Completion for shells: the script asks `storctl` itself, so that names of volumes, nodes, pools and classes
//! are those the cluster has now.

use std::time::Duration;

use clap::ValueEnum;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::Shells;
use stor_api::client::{Client, DEFAULT_URL, Error, Filter, Options};

use crate::failure::Failure;
use crate::output;

/// Longest wait for names; a shell that hangs on Tab is worse than one that completes nothing.
const PATIENCE: Duration = Duration::from_millis(800);

/// Shells with a script.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
}

/// Prints the script.
pub(crate) fn print(shell: Shell) -> Result<(), Failure> {
    let name = match shell {
        Shell::Bash => "bash",
        Shell::Elvish => "elvish",
        Shell::Fish => "fish",
        Shell::Powershell => "powershell",
        Shell::Zsh => "zsh",
    };
    let shells = Shells::builtins();
    let completer = shells
        .completer(name)
        .ok_or_else(|| Failure::failed(format!("there is no completion for {name}")))?;
    let mut script = Vec::new();
    completer.write_registration("COMPLETE", "storctl", "storctl", "storctl", &mut script)?;
    output::print(&String::from_utf8_lossy(&script))
}

/// Completes names of volumes.
pub(crate) fn volumes() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        ask(async |c| {
            Ok(c.volumes(&Filter::default())
                .await?
                .into_iter()
                .map(|v| v.name)
                .collect())
        })
    })
}

/// Completes names of nodes.
pub(crate) fn nodes() -> ArgValueCandidates {
    ArgValueCandidates::new(|| ask(async |c| Ok(c.nodes().await?.into_iter().map(|n| n.name).collect())))
}

/// Completes names of pools.
pub(crate) fn pools() -> ArgValueCandidates {
    ArgValueCandidates::new(|| ask(async |c| Ok(c.pools().await?.into_iter().map(|p| p.name).collect())))
}

/// Completes names of classes.
pub(crate) fn classes() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        ask(async |c| Ok(c.classes().await?.into_iter().map(|k| k.spec.name).collect()))
    })
}

/// Completes snapshots.
pub(crate) fn snapshots() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        ask(async |c| {
            let all = c.snapshots(&Filter::default()).await?;
            Ok(all
                .into_iter()
                .map(|one| format!("{}@{}", one.volume, one.name))
                .collect())
        })
    })
}

/// Completes names of controllers.
pub(crate) fn controllers() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        ask(async |c| Ok(c.controllers().await?.into_iter().map(|k| k.name).collect()))
    })
}

/// Names from the cluster the environment points to; none when it does not answer.
fn ask(question: impl AsyncFn(Client) -> Result<Vec<String>, Error>) -> Vec<CompletionCandidate> {
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let urls = variable("STOR_URL").unwrap_or_else(|| DEFAULT_URL.to_owned());
    let options = Options {
        urls: urls.split(',').map(str::to_owned).collect(),
        token_file: variable("STOR_TOKEN_FILE").map(Into::into),
        ca_file: variable("STOR_CA_FILE").map(Into::into),
        timeout: PATIENCE,
    };
    let Ok(client) = Client::new(&options) else {
        return Vec::new();
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let mut names = runtime.block_on(question(client)).unwrap_or_default();
    names.sort();
    names.dedup();
    names.into_iter().map(CompletionCandidate::new).collect()
}
