//! Scrubs of volumes: begun, looked at, ended, acknowledged.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use stor_api::objects::{ScrubSpec, Volume};
use stor_api::problem::Problem;

use super::answer::{Answer, change};
use super::extract::{At, Body, Manner, Params};
use super::problem::Failure;
use super::volumes::{need, show_volume};
use crate::behind;
use crate::catalogue::Action;
use crate::cluster::Cluster;

/// Less would never end, more is as good as none.
const RATES: std::ops::RangeInclusive<u64> = (64 << 10)..=(64 << 30);

/// Begin to compare all copies of a volume. One that is under way goes on, in the manner asked for now.
#[utoipa::path(post, path = "/api/v1/volumes/{volume}/scrub", operation_id = "volumes_scrub", tag = "volumes",
    params(("volume" = String, Path), Manner), request_body = ScrubSpec,
    responses((status = 202, body = Volume, description = "Its scrub is under way until it says otherwise"),
        (status = "default", body = Problem)))]
pub(super) async fn start(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    Params(manner): Params<Manner>,
    Body(spec): Body<ScrubSpec>,
) -> Answer {
    let rate = spec.bytes_per_second.unwrap_or(cluster.policy.scrub_rate);
    if !RATES.contains(&rate) {
        return Err(Failure::invalid(format!(
            "{rate} bytes a second are not possible; allowed are {} to {}",
            RATES.start(),
            RATES.end()
        )));
    }
    let mut look = cluster.look().await?;
    let row = need(&mut look, &name).await?;
    if let Some(why) = behind::in_short(&row, &look.seen) {
        return Err(Failure::behind(&row.name, &format!("It is known of it: {why}.")));
    }
    drop(look);
    let action = Action::StartScrub {
        volume: name.clone(),
        scheduled: false,
        mend: !spec.check_only,
        rate,
    };
    let then = if spec.check_only { "tell" } else { "mend" };
    let step = format!("compare all copies of volume {name} and {then} what differs");
    change(&cluster, manner, action, step, async |_| {
        show_volume(&cluster, &name, StatusCode::ACCEPTED).await
    })
    .await
}

/// End the scrub under way. What it has mended stays so.
#[utoipa::path(delete, path = "/api/v1/volumes/{volume}/scrub", operation_id = "volumes_scrub_cancel", tag = "volumes",
    params(("volume" = String, Path), Manner),
    responses((status = 200, body = Volume), (status = "default", body = Problem)))]
pub(super) async fn cancel(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    Params(manner): Params<Manner>,
) -> Answer {
    let action = Action::EndScrub {
        volume: name.clone(),
        run: None,
        overdue: false,
    };
    let step = format!("end the scrub of volume {name}");
    change(&cluster, manner, action, step, async |_| {
        show_volume(&cluster, &name, StatusCode::OK).await
    })
    .await
}

/// Say that what scrubs found was seen: the health check about it ends.
#[utoipa::path(post, path = "/api/v1/volumes/{volume}/scrub/acknowledge", operation_id = "volumes_scrub_acknowledge",
    tag = "volumes", params(("volume" = String, Path), Manner),
    responses((status = 200, body = Volume), (status = "default", body = Problem)))]
pub(super) async fn acknowledge(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    Params(manner): Params<Manner>,
) -> Answer {
    let action = Action::AcknowledgeScrub { volume: name.clone() };
    let step = format!("take what scrubs found in volume {name} for seen");
    change(&cluster, manner, action, step, async |_| {
        show_volume(&cluster, &name, StatusCode::OK).await
    })
    .await
}
