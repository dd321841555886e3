//! The REST API.
//!
//! ```text
//! any controller:  front ──► leads? ──► router() ──► handlers ──► catalogue, observations
//!                    │ no
//!                    └──► leader, over the peer connection
//! ```
//!
//! Every controller answers every request: what [`front`] takes is handled here when this controller leads and
//! handed to the leader otherwise, again and again until there is an outcome or the deadline is over. Every
//! request may be repeated, which is what makes that safe.

mod answer;
mod attachments;
mod backup;
mod behind;
mod classes;
mod clones;
mod controllers;
mod deletion;
mod emptying;
mod extract;
mod front;
mod local;
mod nodes;
mod orphans;
mod place;
mod pools;
mod problem;
mod replicas;
mod scrubs;
mod snapshots;
#[cfg(test)]
mod tests;
mod volumes;
mod watch;

pub(crate) use clones::{NotDrafted, draft_clone};

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::routing::any;
use tower::limit::GlobalConcurrencyLimitLayer;
use utoipa::OpenApi;
use utoipa::openapi::RefOr;
use utoipa::openapi::path::Operation;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use stor_api::objects::Plan;
use stor_api::problem::{CONTENT_TYPE, Problem};

use crate::cluster::Cluster;
pub use backup::sweep;
pub use front::Front;
use problem::Failure;

/// Largest body of a request, bytes.
pub const MAX_BODY: usize = 1 << 20;
/// Requests handled at the same time; more wait their turn, and what a controller says of itself does not.
const AT_ONCE: usize = 512;
/// What the leader answers.
const BELOW: &str = "/api/v1/{*rest}";

#[derive(OpenApi)]
#[openapi(
    components(schemas(Plan)),
    info(
        title = "Stor",
        description = "Replicated block storage. Sizes are bytes, times RFC 3339 in UTC. Creates are idempotent by \
        name, every request may be repeated. Failures are application/problem+json. `?watch=1` on any GET \
        streams the answer whenever it changes (server-sent events)."
    )
)]
struct Document;

/// The handlers of everything that the leader answers, and their OpenAPI document.
fn documented() -> OpenApiRouter<Arc<Cluster>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(nodes::list, nodes::create))
        .routes(routes!(nodes::get, nodes::set, nodes::delete))
        .routes(routes!(nodes::disks))
        .routes(routes!(orphans::mounts))
        .routes(routes!(orphans::list))
        .routes(routes!(orphans::remove))
        .routes(routes!(emptying::drain))
        .routes(routes!(emptying::lost))
        .routes(routes!(emptying::undrain))
        .routes(routes!(pools::list, pools::create))
        .routes(routes!(pools::get, pools::set, pools::delete))
        .routes(routes!(classes::list, classes::create))
        .routes(routes!(classes::get, classes::delete))
        .routes(routes!(volumes::list, volumes::create))
        .routes(routes!(volumes::get, deletion::delete, replicas::change))
        .routes(routes!(scrubs::start, scrubs::cancel))
        .routes(routes!(scrubs::acknowledge))
        .routes(routes!(deletion::tombstones))
        .routes(routes!(volumes::replicas_of, replicas::create))
        .routes(routes!(replicas::delete))
        .routes(routes!(volumes::replicas))
        .routes(routes!(snapshots::list, snapshots::create))
        .routes(routes!(snapshots::get, snapshots::delete))
        .routes(routes!(snapshots::restore))
        .routes(routes!(clones::create))
        .routes(routes!(snapshots::rollback))
        .routes(routes!(behind::adopt))
        .routes(routes!(behind::catalogue))
        .routes(routes!(attachments::list))
        .routes(routes!(attachments::list_of, attachments::create))
        .routes(routes!(attachments::get, attachments::delete))
        .routes(routes!(controllers::list))
        .routes(routes!(controllers::get, controllers::delete))
        .routes(routes!(controllers::transfer_leader))
        .routes(routes!(controllers::status))
        .routes(routes!(controllers::events))
}

/// The handlers of what a controller answers by itself, and their OpenAPI document.
fn own() -> OpenApiRouter<Arc<Front>> {
    OpenApiRouter::new()
        .routes(routes!(local::alive))
        .routes(routes!(local::ready))
        .routes(routes!(local::metrics))
        .routes(routes!(local::openapi))
        .routes(routes!(backup::download))
}

/// The OpenAPI document: of everything that is served on the API's address.
pub fn openapi() -> utoipa::openapi::OpenApi {
    let mut document = documented().into_openapi();
    document.merge(own().into_openapi());
    for path in document.paths.paths.values_mut() {
        let operations = [&mut path.get, &mut path.post, &mut path.patch, &mut path.delete];
        operations.into_iter().flatten().for_each(fail_by_problem);
    }
    document
}

/// Failures have a content type of their own, which the attributes of the handlers need not repeat.
fn fail_by_problem(operation: &mut Operation) {
    if let Some(RefOr::T(failed)) = operation.responses.responses.get_mut("default")
        && let Some(content) = failed.content.shift_remove("application/json")
    {
        failed.content.insert(CONTENT_TYPE.to_owned(), content);
    }
}

/// What a handler is given of the body of a request.
pub fn body<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Box<Problem>> {
    extract::read(bytes).map_err(|failure| Box::new(failure.into_problem()))
}

/// Handles requests on the leader.
fn router(cluster: Arc<Cluster>) -> Router {
    let (router, _) = documented().split_for_parts();
    router
        .fallback(async |uri: Uri| no_such_path(&uri))
        .method_not_allowed_fallback(not_taken)
        .with_state(cluster)
}

async fn not_taken(method: Method, uri: Uri) -> Failure {
    Failure::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        format!("{} does not take {method}", shortened(uri.path())),
    )
}

fn no_such_path(uri: &Uri) -> Failure {
    Failure::new(
        StatusCode::NOT_FOUND,
        "no-such-path",
        format!("there is nothing at {}", shortened(uri.path())),
    )
    .remedy("the paths are listed in /api/v1/openapi.json")
}

/// As much of a path as a message needs.
fn shortened(path: &str) -> String {
    path.chars().take(200).collect()
}

/// What a controller serves on its API address.
pub fn app(front: Arc<Front>) -> Router {
    entrances()
        .fallback(async |uri: Uri| no_such_path(&uri))
        .method_not_allowed_fallback(not_taken)
        .with_state(front)
}

fn entrances() -> Router<Arc<Front>> {
    let (own, _) = own().split_for_parts();
    let led = any(front::take).layer(GlobalConcurrencyLimitLayer::new(AT_ONCE));
    own.route(BELOW, led)
}
