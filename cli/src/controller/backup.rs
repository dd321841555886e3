//! `storctl controller backup`: a copy of the catalogue in a file.
//!
//! The file gets its name only when it is whole, checked and on disk: whatever is cut off leaves the one before.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use stor_api::backup::{self, Description};
use stor_api::client::DownloadError;
use stor_api::size;

use crate::context::Context;
use crate::failure::Failure;

/// A backup as it is shown.
#[derive(Debug, Serialize)]
struct Made {
    file: PathBuf,
    bytes: u64,
    #[serde(flatten)]
    of: Description,
}

pub(super) async fn backup(context: &Context, file: &Path, local: bool) -> Result<(), Failure> {
    let draft = draft(file)?;
    if context.dry_run {
        return context.out.plan(&stor_api::objects::Plan {
            steps: vec![format!("write a backup of the catalogue to {}", file.display())],
            placement: Vec::new(),
        });
    }
    let made = write(context, file, &draft, local).await;
    if made.is_err()
        && let Err(error) = std::fs::remove_file(&draft)
        && error.kind() != io::ErrorKind::NotFound
    {
        crate::output::note(&format!("{} is left: {error}", draft.display()));
    }
    context.out.object(&made?, |made| {
        let all = if made.of.complete {
            ""
        } else {
            " (what this one had; later entries may be missing)"
        };
        format!(
            "catalogue of cluster {} written to {}: {}, up to entry {}, from controller {}{all}\n",
            made.of.cluster_id,
            made.file.display(),
            size::format(made.bytes),
            made.of.applied,
            made.of.controller
        )
    })
}

fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let text = format!("cannot {doing} {}", path.display());
    move |error| Failure::failed(text).why(error.to_string())
}

/// In the same directory, so that it can be renamed.
fn draft(file: &Path) -> Result<PathBuf, Failure> {
    let name = file
        .file_name()
        .ok_or_else(|| Failure::failed(format!("{} is not the name of a file", file.display())))?;
    let mut draft = name.to_owned();
    draft.push(format!(".{}.part", std::process::id()));
    Ok(file.with_file_name(draft))
}

async fn write(context: &Context, file: &Path, draft: &Path, local: bool) -> Result<Made, Failure> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // The catalogue holds what users call secrets.
    let mut out = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(draft)
        .map_err(failed("write", draft))?;
    context
        .client
        .backup(local, &mut out)
        .await
        .map_err(|error| match error {
            DownloadError::Call(error) => {
                let failure = Failure::from(error);
                if local {
                    failure
                } else {
                    let help = "with --local, one controller that still runs gives what it has";
                    let help = if failure.help.is_empty() {
                        help.to_owned()
                    } else {
                        format!("{}; {help}", failure.help)
                    };
                    failure.help(help)
                }
            }
            other => Failure::failed(other.to_string()).help("ask again"),
        })?;
    out.sync_all().map_err(failed("write", draft))?;
    drop(out);
    let of = backup::check(draft).map_err(|error| {
        Failure::failed("what was received is no whole backup")
            .why(error.to_string())
            .help("ask again")
    })?;
    let bytes = std::fs::metadata(draft).map_err(failed("look at", draft))?.len();
    std::fs::rename(draft, file).map_err(failed("name", file))?;
    let directory = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync", directory))?;
    Ok(Made {
        file: file.to_owned(),
        bytes,
        of,
    })
}
