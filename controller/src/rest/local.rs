//! What a controller answers about itself, leader or not: liveness, readiness, metrics, the API's document.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use stor_api::problem::Problem;

use super::front::Front;
use super::problem::Failure;
use crate::catalogue::load;
use crate::cluster::Trouble;

/// The process runs.
#[utoipa::path(get, path = "/healthz", operation_id = "controller_alive", tag = "controller",
    responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn alive() -> &'static str {
    "ok\n"
}

/// It hears a leader, so that requests sent here are answered.
#[utoipa::path(get, path = "/readyz", operation_id = "controller_ready", tag = "controller",
    responses((status = 200, body = String, content_type = "text/plain"),
        (status = 503, body = String, content_type = "text/plain", description = "Why it is not")))]
pub(super) async fn ready(State(front): State<Arc<Front>>) -> Response {
    if let Some(failure) = front.no_quorum() {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", failure.title())).into_response();
    }
    if front.cluster.raft.is_led() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no leader is heard\n").into_response()
    }
}

/// The OpenAPI document.
#[utoipa::path(get, path = "/api/v1/openapi.json", operation_id = "controller_openapi", tag = "controller",
    responses((status = 200, body = Object, description = "This document")))]
pub(super) async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(super::openapi())
}

/// Prometheus text format.
#[utoipa::path(get, path = "/metrics", operation_id = "controller_metrics", tag = "controller",
    responses((status = 200, body = String, content_type = "text/plain"),
        (status = "default", body = Problem)))]
pub(super) async fn metrics(State(front): State<Arc<Front>>) -> Result<Response, Failure> {
    let text = gauges(&front).await?;
    Ok((
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
        .into_response())
}

async fn gauges(front: &Front) -> Result<String, Trouble> {
    let cluster = &front.cluster;
    let leadership = cluster.raft.leadership().borrow().clone();
    let applied = *cluster.raft.applied().borrow();
    let mut look = cluster.look_local().await?;
    let (volumes, replicas) = load::counts(look.rows()).await?;
    let event = load::last_event(look.rows()).await?;
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, value: u64| {
        // Writing to a String does not fail.
        let _ok = write!(
            text,
            "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n"
        );
    };
    gauge(
        "stor_controller_is_leader",
        "1 on the leading controller.",
        u64::from(leadership.is_self),
    );
    gauge(
        "stor_controller_has_leader",
        "1 when a leader is heard and has a majority.",
        u64::from(cluster.raft.is_led()),
    );
    gauge("stor_raft_term", "Elections so far.", leadership.term);
    gauge(
        "stor_raft_applied_index",
        "Last log entry applied to the catalogue.",
        applied,
    );
    gauge(
        "stor_controllers",
        "Controllers in the cluster.",
        cluster.raft.members().len() as u64,
    );
    gauge(
        "stor_satellite_sessions",
        "Satellites connected to this controller.",
        cluster.sessions.count() as u64,
    );
    gauge("stor_volumes", "Volumes in the catalogue.", volumes);
    gauge("stor_replicas", "Replicas in the catalogue.", replicas);
    gauge("stor_last_event", "Number of the newest event.", event);
    for (node, heard) in look.seen.nodes() {
        let online = u64::from(look.seen.online(node));
        let _ok = writeln!(text, "stor_node_online{{node=\"{node}\"}} {online}");
        for (pool, report) in &heard.pools {
            let labels = format!("node=\"{node}\",pool=\"{pool}\"");
            let _ok = writeln!(
                text,
                "stor_pool_capacity_bytes{{{labels}}} {}",
                report.capacity_bytes
            );
            let _ok = writeln!(text, "stor_pool_free_bytes{{{labels}}} {}", report.free_bytes);
        }
    }
    Ok(text)
}
