//! Backups of the catalogue: any controller makes one from its own copy, after it has caught up with the leader.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Deserialize;
use stor_api::backup::{self, Description};
use stor_api::objects::CatalogueInfo;
use stor_api::problem::Problem;
use stor_raft::HttpRequest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

use super::extract::{Params, flag};
use super::front::{Front, unpacked};
use super::problem::Failure;
use crate::catalogue::{Catalogue, load};
use crate::cluster::now;

/// A controller that is further behind is not a good one to ask.
const CATCH_UP: Duration = Duration::from_secs(15);
const CHUNK: usize = 256 << 10;
/// Chunks read ahead of the connection.
const QUEUE: usize = 4;
/// Of the drafts in a controller's directory; what a crash leaves is removed at the next start.
const DRAFTS: &str = "backup-";

/// How it is made.
#[derive(Clone, Copy, Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct How {
    /// What this controller has, without asking the others: for when they are gone.
    #[serde(default, deserialize_with = "flag")]
    #[param(value_type = bool, required = false)]
    local: bool,
}

/// The file, in the form of [`stor_api::backup`].
#[derive(utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "stands for the stream in the API's document")]
struct Backup(Vec<u8>);

/// A backup of the catalogue, with everything that was acknowledged before.
#[utoipa::path(get, path = "/api/v1/backup", operation_id = "controller_backup", tag = "controller", params(How),
    responses((status = 200, body = Backup, content_type = "application/octet-stream",
        description = "For `stor-controller init --restore`; its end holds a checksum, which tells whether all has come"),
        (status = "default", body = Problem)))]
pub(super) async fn download(
    State(front): State<Arc<Front>>,
    Params(how): Params<How>,
) -> Result<Response, Response> {
    if !how.local {
        catch_up(&front).await?;
    }
    let draft = front
        .cluster
        .raft
        .dir()
        .join(format!("{DRAFTS}{}.tmp", Uuid::new_v4()));
    let made = make(&front, &draft, !how.local).await;
    if made.is_err() {
        discard(&draft);
    }
    let (head, file) = made.map_err(axum::response::IntoResponse::into_response)?;
    Ok(stream(head, file))
}

/// Waits until this controller has all that was acknowledged before the call.
async fn catch_up(front: &Front) -> Result<(), Response> {
    use axum::response::IntoResponse;
    let request = HttpRequest {
        method: "GET".into(),
        path_and_query: "/api/v1/catalogue".into(),
        headers: Vec::new(),
        body: Vec::new(),
    };
    let response = front.answer(request).await;
    if response.status != u32::from(StatusCode::OK.as_u16()) {
        return Err(unpacked(response));
    }
    let info: CatalogueInfo = serde_json::from_slice(&response.body).map_err(|error| {
        tracing::error!(%error, "the leader's word on the catalogue can't be read");
        Failure::internal().into_response()
    })?;
    let mut applied = front.cluster.raft.applied();
    let caught_up = applied.wait_for(|at| *at >= info.applied);
    match tokio::time::timeout(CATCH_UP, caught_up).await {
        Ok(Ok(_)) => Ok(()),
        _ => Err(Failure::no_leader().into_response()),
    }
}

/// The head, and the database behind an open file that has no name any more.
async fn make(front: &Front, draft: &Path, complete: bool) -> Result<(Vec<u8>, File), Failure> {
    let raft = &front.cluster.raft;
    raft.backup(draft).await?;
    let origin = stor_raft::examine::<Catalogue>(draft).await.map_err(|error| {
        tracing::error!(%error, "the backup just made can't be used");
        Failure::internal()
    })?;
    let mut conn = open(draft).await?;
    let (Some(cluster), Some(history)) = (
        load::cluster_id(&mut conn).await?,
        load::history(&mut conn).await?,
    ) else {
        return Err(Failure::conflict("state", "the cluster is just being made"));
    };
    sqlx::Connection::close(conn).await?;
    let mut controllers: Vec<String> = origin.members.into_iter().map(|member| member.name).collect();
    controllers.sort();
    let description = Description {
        cluster_id: cluster.to_string(),
        history: history.id.to_string(),
        generation: history.generation,
        applied: origin.index,
        at: now(),
        version: env!("CARGO_PKG_VERSION").into(),
        controller: raft.me().name.clone(),
        complete,
        controllers,
    };
    let draft = draft.to_owned();
    let finished = tokio::task::spawn_blocking(move || finish(&description, &draft)).await;
    finished
        .map_err(std::io::Error::other)
        .flatten()
        .map_err(|error| {
            tracing::error!(%error, "a backup could not be made");
            Failure::internal()
        })
}

async fn open(draft: &Path) -> Result<sqlx::SqliteConnection, sqlx::Error> {
    use sqlx::ConnectOptions;
    sqlx::sqlite::SqliteConnectOptions::new()
        .filename(draft)
        .read_only(true)
        .immutable(true)
        .connect()
        .await
}

fn finish(description: &Description, draft: &PathBuf) -> std::io::Result<(Vec<u8>, File)> {
    let head = backup::head(description, draft).map_err(std::io::Error::other)?;
    let file = File::open(draft)?;
    std::fs::remove_file(draft)?;
    Ok((head, file))
}

fn discard(draft: &Path) {
    if let Err(error) = std::fs::remove_file(draft)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %draft.display(), %error, "a draft could not be removed");
    }
}

fn stream(head: Vec<u8>, mut file: File) -> Response {
    let (chunks, queue) = mpsc::channel::<std::io::Result<Bytes>>(QUEUE);
    tokio::task::spawn_blocking(move || {
        let mut next = Ok(Bytes::from(head));
        // A failure ends the stream in its middle, and the checksum shows it.
        while chunks.blocking_send(next).is_ok() {
            let mut buffer = vec![0; CHUNK];
            next = match file.read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => {
                    buffer.truncate(read);
                    Ok(buffer.into())
                }
                Err(error) => Err(error),
            };
        }
    });
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(queue)));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    response
}

/// Removes what backups that were cut off left behind.
pub fn sweep(dir: &Path) {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(path = %dir.display(), %error, "drafts of backups can't be looked for");
            return;
        }
    };
    // One that can't be looked at is left for the next start.
    for entry in entries.flatten() {
        if entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(DRAFTS))
        {
            discard(&entry.path());
        }
    }
}
