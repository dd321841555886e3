//! What handlers answer.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use stor_api::objects::{Page, PlacementVerdict, Plan};

use super::extract::{List, Manner};
use super::problem::Failure;
use crate::catalogue::{self, Action, Outcome};
use crate::cluster::Cluster;

pub(super) type Answer = Result<Response, Failure>;

/// An object with its revision as ETag.
pub(super) fn object<T: Serialize>(status: StatusCode, revision: u64, value: &T) -> Response {
    let mut response = (status, Json(value)).into_response();
    // A number always is one.
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{revision}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// 201 for a new object, 200 for one that was there.
pub(super) fn created(outcome: &Outcome) -> StatusCode {
    if matches!(outcome, Outcome::Unchanged) {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    }
}

/// Nothing more to say.
pub(super) fn done() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

/// A page of `items`, which are all there is from `after` on, keyed by `key`.
pub(super) fn page<T: Serialize>(mut items: Vec<T>, list: &List, key: impl Fn(&T) -> String) -> Response {
    let limit = usize::try_from(list.limit()).unwrap_or(usize::MAX);
    let next = if items.len() > limit {
        items.truncate(limit);
        items.last().map(key)
    } else {
        None
    };
    Json(Page { items, next }).into_response()
}

/// A page of a list that is complete in memory and ordered by its key.
pub(super) fn cut<T: Serialize>(items: Vec<T>, list: &List, key: impl Fn(&T) -> String) -> Response {
    let rest = items
        .into_iter()
        .filter(|item| list.after.is_empty() || key(item) > list.after)
        .collect();
    page(rest, list, key)
}

/// What would happen.
pub(super) fn plan(steps: Vec<String>, placement: Vec<PlacementVerdict>) -> Response {
    Json(Plan { steps, placement }).into_response()
}

/// Makes a change and answers what `made` shows, or says what it would do.
pub(super) async fn change<F>(
    cluster: &Cluster,
    manner: Manner,
    action: Action,
    step: String,
    made: impl FnOnce(Outcome) -> F,
) -> Answer
where
    F: Future<Output = Answer>,
{
    if !manner.dry_run {
        let shown = made(cluster.propose(action).await??).await;
        return shown.map_err(Failure::after_change);
    }
    let mut look = cluster.look().await?;
    let steps = match catalogue::check(look.rows(), &action).await?? {
        Outcome::Unchanged => Vec::new(),
        Outcome::Created | Outcome::Changed | Outcome::Row(_) => vec![step],
    };
    Ok(plan(steps, Vec::new()))
}
