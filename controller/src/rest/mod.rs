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
mod controllers;
mod deletion;
mod extract;
mod front;
mod local;
mod nodes;
mod pools;
mod problem;
mod volumes;
mod watch;

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::routing::{any, get};
use tower::limit::GlobalConcurrencyLimitLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use stor_api::objects::Plan;

use crate::cluster::Cluster;
pub use backup::sweep;
pub use front::Front;
use problem::Failure;

/// Largest body of a request, bytes.
pub const MAX_BODY: usize = 1 << 20;
/// Requests handled at the same time; more wait their turn, and what a controller says of itself does not.
const AT_ONCE: usize = 512;

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
        .routes(routes!(pools::list, pools::create))
        .routes(routes!(pools::get, pools::set, pools::delete))
        .routes(routes!(classes::list, classes::create))
        .routes(routes!(classes::get, classes::delete))
        .routes(routes!(volumes::list, volumes::create))
        .routes(routes!(volumes::get, deletion::delete))
        .routes(routes!(deletion::tombstones))
        .routes(routes!(volumes::replicas_of))
        .routes(routes!(volumes::replicas))
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

/// The OpenAPI document.
pub fn openapi() -> utoipa::openapi::OpenApi {
    documented().into_openapi()
}

/// Handles requests on the leader.
fn router(cluster: Arc<Cluster>) -> Router {
    let (router, _) = documented().split_for_parts();
    router
        .fallback(async |uri: Uri| no_such_path(&uri))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            let title = format!("{} does not take {method}", uri.path());
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", title)
        })
        .with_state(cluster)
}

fn no_such_path(uri: &Uri) -> Failure {
    let path: String = uri.path().chars().take(200).collect();
    Failure::new(
        StatusCode::NOT_FOUND,
        "no-such-path",
        format!("there is nothing at {path}"),
    )
    .remedy("the paths are listed in /api/v1/openapi.json")
}

/// What a controller serves on its API address.
pub fn app(front: Arc<Front>) -> Router {
    Router::new()
        .route("/healthz", get(local::alive))
        .route("/readyz", get(local::ready))
        .route("/metrics", get(local::metrics))
        .route("/api/v1/openapi.json", get(local::openapi))
        .route("/api/v1/backup", get(backup::download))
        .route(
            "/api/v1/{*rest}",
            any(front::take).layer(GlobalConcurrencyLimitLayer::new(AT_ONCE)),
        )
        .fallback(async |uri: Uri| no_such_path(&uri))
        .with_state(front)
}
