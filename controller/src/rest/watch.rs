//! `?watch=1`: the answer to a GET again whenever it changes, as server-sent events. Events themselves are streamed
//! one by one, from this controller's own catalogue.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Uri;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use serde::Deserialize;
use stor_raft::{HttpRequest, HttpResponse};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::extract::query;
use super::front::Front;
use super::problem::Failure;
use crate::catalogue::load;
use crate::show;

/// What satellites report moves answers without moving the catalogue, and is known to the leader only.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Changes that come together are one look.
const GATHER: Duration = Duration::from_millis(50);
/// Comments on a silent stream, so that both ends know that the other is there.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Events read at once.
const EVENTS: u64 = 256;

/// The request without `watch`, when it has it.
pub(super) fn wanted(request: &HttpRequest) -> Option<HttpRequest> {
    let (path, query) = request.path_and_query.split_once('?')?;
    let is_watch = |part: &str| matches!(part, "watch" | "watch=1" | "watch=true");
    if !query.split('&').any(is_watch) {
        return None;
    }
    let rest: Vec<&str> = query.split('&').filter(|part| !is_watch(part)).collect();
    let path_and_query = if rest.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{}", rest.join("&"))
    };
    Some(HttpRequest {
        path_and_query,
        ..request.clone()
    })
}

/// The stream, or why there is none. Cancel-safe.
pub(super) async fn stream(front: Arc<Front>, request: HttpRequest) -> Response {
    let Ok(permit) = Arc::clone(&front.watchers).try_acquire_owned() else {
        return Failure::new(
            axum::http::StatusCode::SERVICE_UNAVAILABLE,
            "too-many-watchers",
            "this controller has as many open streams as it takes",
        )
        .remedy("ask another controller")
        .into_response();
    };
    let applied = front.cluster.raft.applied();
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    let Ok(uri) = request.path_and_query.parse::<Uri>() else {
        return Failure::invalid("the path is not understood").into_response();
    };
    if uri.path() == "/api/v1/events" {
        return match query::<Since>(&uri) {
            Ok(Since { after }) => {
                let follow = Follow {
                    front,
                    after,
                    applied,
                    _permit: permit,
                };
                Sse::new(events(follow)).keep_alive(keep_alive).into_response()
            }
            Err(failure) => failure.into_response(),
        };
    }
    // What can't be answered can't be watched either. Without a leader the first answer is waited for.
    let first = front.answer(request.clone()).await;
    if first.status != 200 && !is_leaderless(first.status) {
        return super::front::unpacked(first);
    }
    let watch = Watch {
        front,
        request,
        applied,
        first: Some(first),
        last: None,
        ended: false,
        _permit: permit,
    };
    Sse::new(answers(watch)).keep_alive(keep_alive).into_response()
}

/// What a stream of events takes: it has no pages, and so no limit.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Since {
    #[serde(default)]
    after: u64,
}

struct Follow {
    front: Arc<Front>,
    after: u64,
    applied: watch::Receiver<u64>,
    _permit: OwnedSemaphorePermit,
}

fn events(follow: Follow) -> impl Stream<Item = Result<Event, Infallible>> {
    let pages = stream::unfold(follow, |mut follow| async move {
        loop {
            follow.applied.borrow_and_update();
            match page(&follow).await {
                Ok(page) if page.is_empty() => {}
                Ok(page) => {
                    follow.after = page.last().map_or(follow.after, |event| event.seq);
                    return Some((page, follow));
                }
                Err(failure) => {
                    tracing::warn!(?failure, "a stream of events ends");
                    return None;
                }
            }
            let stopping = follow.front.cluster.stopping.clone();
            tokio::select! {
                changed = follow.applied.changed() => changed.ok()?,
                () = stopping.cancelled() => return None,
            }
        }
    });
    futures_util::StreamExt::flat_map(pages, |page| {
        stream::iter(page.into_iter().filter_map(|event| {
            // Text and numbers always can be written.
            let data = serde_json::to_string(&event).ok()?;
            Some(Ok(Event::default().id(event.seq.to_string()).data(data)))
        }))
    })
}

async fn page(follow: &Follow) -> Result<Vec<stor_api::objects::Event>, Failure> {
    let mut look = follow.front.cluster.look_local().await?;
    let rows = load::events(look.rows(), follow.after, EVENTS).await?;
    Ok(rows.iter().map(show::event).collect())
}

struct Watch {
    front: Arc<Front>,
    request: HttpRequest,
    applied: watch::Receiver<u64>,
    first: Option<HttpResponse>,
    last: Option<Vec<u8>>,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

fn is_leaderless(status: u32) -> bool {
    matches!(status, 503 | 504)
}

fn answers(watch: Watch) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(watch, |mut watch| async move {
        if watch.ended {
            return None;
        }
        loop {
            let answer = if let Some(first) = watch.first.take() {
                first
            } else {
                watch.applied.borrow_and_update();
                watch.front.answer(watch.request.clone()).await
            };
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            // Without a leader there is no news; anything else that is no answer ends the stream.
            if answer.status != 200 && !is_leaderless(answer.status) {
                watch.ended = true;
                return Some((Ok(Event::default().event("problem").data(text)), watch));
            }
            if answer.status == 200 && watch.last.as_ref() != Some(&answer.body) {
                watch.last = Some(answer.body);
                return Some((Ok(Event::default().data(text)), watch));
            }
            let stopping = watch.front.cluster.stopping.clone();
            let ended = tokio::select! {
                changed = watch.applied.changed() => changed.is_err(),
                () = stopping.cancelled() => true,
                () = tokio::time::sleep(LOOK_AGAIN) => false,
            };
            if ended {
                return None;
            }
            tokio::time::sleep(GATHER).await;
        }
    })
}
