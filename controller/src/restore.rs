//! `stor-controller init --restore`: a new cluster of one, out of a backup of the catalogue.
//!
//! Promises: nothing is made of a file that is damaged, of a later version, or of a cluster whose controllers still
//! answer; the new cluster begins a history of its own, in which every volume is locked until its replicas were
//! heard; a restore that was cut off is begun anew by repeating it, and no controller runs on a half of one.

use std::path::Path;

use stor_api::backup::{self, BackupError, Description};
use stor_raft::{Origin, RestoreError, Timing, who_listens};
use thiserror::Error;
use uuid::Uuid;

use crate::catalogue::command::NewHistory;
use crate::catalogue::{Action, Catalogue, Command, Refused};
use crate::cluster::now;
use crate::server::{self, StartError};
use crate::settings::{Settings, SettingsError, Wanted};

/// The database out of the file, until it is taken.
const DRAFT: &str = "restore.tmp";

/// No cluster was made of a backup.
#[derive(Debug, Error)]
pub enum FailedRestore {
    /// Its file.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// Its database, or the directory.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The directory's settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The new cluster.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The catalogue did not take the new history.
    #[error("the new history was refused: {0}")]
    Refused(#[from] Refused),
    /// The cluster is not lost.
    #[error(
        "controllers of the cluster in the backup still answer: {}. As long as a majority of them lives nothing has to \
         be restored: remove the others and join new ones. If they are to be given up, stop them first and for good; \
         with --force this is not looked at, and what they go on to do is lost", names.join(", ")
    )]
    Alive {
        /// Who.
        names: Vec<String>,
    },
}

/// Makes the cluster in `dir`. Not cancel-safe: await it to the end; a repetition begins anew.
pub async fn restore(
    dir: &Path,
    wanted: Wanted,
    file: &Path,
    force: bool,
    timing: Timing,
) -> Result<(Settings, Description), FailedRestore> {
    let whole = file.to_owned();
    // Reading it all: before anything is touched, and not on a thread that others need.
    let checked = tokio::task::spawn_blocking(move || backup::check(&whole)).await;
    let described = checked.map_err(|error| broken(file, std::io::Error::other(error)))??;
    let settings = Settings::begin_restore(dir, wanted, &mark(&described))?;
    stor_raft::discard(dir)?;
    let draft = dir.join(DRAFT);
    let description = backup::extract(file, &draft)?;
    let origin = stor_raft::examine::<Catalogue>(&draft).await?;
    if !force {
        refuse_alive(&origin).await?;
    }
    stor_raft::restore::<Catalogue>(dir, &settings.peer(), &draft).await?;
    std::fs::remove_file(&draft).map_err(|error| broken(&draft, error))?;
    begin(dir, &settings, &description, timing).await?;
    Ok((settings.complete(dir)?, description))
}

fn broken(path: &Path, source: std::io::Error) -> BackupError {
    BackupError::File {
        doing: "use",
        path: path.to_owned(),
        source,
    }
}

/// Names the backup that a directory was begun from.
fn mark(description: &Description) -> String {
    format!(
        "{}/{}/{}",
        description.history, description.applied, description.at
    )
}

async fn refuse_alive(origin: &Origin) -> Result<(), FailedRestore> {
    let asked = origin.members.iter().map(|member| async move {
        let answer = who_listens(&member.peer_address).await?;
        (answer.id == member.id).then(|| member.name.clone())
    });
    let names: Vec<String> = futures_util::future::join_all(asked)
        .await
        .into_iter()
        .flatten()
        .collect();
    if names.is_empty() {
        Ok(())
    } else {
        Err(FailedRestore::Alive { names })
    }
}

/// The first entry of the new history.
async fn begin(
    dir: &Path,
    settings: &Settings,
    of: &Description,
    timing: Timing,
) -> Result<(), FailedRestore> {
    let node = server::open(dir, settings, timing)
        .await
        .map_err(StartError::from)?;
    let done = async {
        node.lead_alone().await.map_err(StartError::from)?;
        let command = Command {
            at: now(),
            action: Action::BeginHistory(NewHistory {
                id: Uuid::new_v4(),
                backup_index: of.applied,
                backup_at: of.at.clone(),
            }),
        };
        // Without it every row would be trusted as it stands in the backup.
        node.propose(command).await.map_err(StartError::Init)??;
        Ok::<(), FailedRestore>(())
    };
    let result = done.await;
    node.shutdown().await;
    result
}
