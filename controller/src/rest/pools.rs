//! Pools: one object for each pool on each node.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use stor_api::name;
use stor_api::objects::{Page, Pool, PoolChange, PoolSpec};
use stor_api::problem::Problem;

use super::answer::{Answer, change, created, cut, done, object};
use super::extract::{At, Body, IfMatch, List, Manner, Nothing, Params};
use super::place;
use super::problem::Failure;
use crate::catalogue::command::{PoolKind, PoolWish};
use crate::catalogue::{Action, load};
use crate::cluster::Cluster;
use crate::show;

/// Thin volumes are promised more than there is; this much, unless another limit is given.
const OVERPROVISION_MILLI: u64 = 20_000;
/// No limit above this: it would be none.
const MOST_OVERPROVISION: f64 = 1_000.0;

/// Pools, by name and node.
#[utoipa::path(get, path = "/api/v1/pools", operation_id = "pools_list", tag = "pools", params(List),
    responses((status = 200, body = Page<Pool>), (status = "default", body = Problem)))]
pub(super) async fn list(State(cluster): State<Arc<Cluster>>, Params(list): Params<List>) -> Answer {
    let mut look = cluster.look().await?;
    let rows = load::pools(look.rows()).await?;
    let mut pools: Vec<Pool> = rows
        .iter()
        .filter(|row| list.node.as_ref().is_none_or(|node| *node == row.wish.node))
        .map(|row| show::pool(row, &look.seen))
        .collect();
    pools.sort_by_key(key);
    Ok(cut(pools, &list, key))
}

fn key(pool: &Pool) -> String {
    format!("{} {}", pool.name, pool.node)
}

/// A pool on one node.
#[utoipa::path(get, path = "/api/v1/pools/{pool}/nodes/{node}", operation_id = "pools_get", tag = "pools",
    params(("pool" = String, Path), ("node" = String, Path)),
    responses((status = 200, body = Pool), (status = "default", body = Problem)))]
pub(super) async fn get(
    State(cluster): State<Arc<Cluster>>,
    At((name, node)): At<(String, String)>,
    _: Params<Nothing>,
) -> Answer {
    show_pool(&cluster, &name, &node, StatusCode::OK).await
}

async fn show_pool(cluster: &Cluster, name: &str, node: &str, status: StatusCode) -> Answer {
    let mut look = cluster.look().await?;
    let row = load::pool(look.rows(), name, node)
        .await?
        .ok_or_else(|| Failure::not_found(format!("pool {name} on {node}")))?;
    Ok(object(status, row.revision, &show::pool(&row, &look.seen)))
}

/// Make a pool on a node.
#[utoipa::path(post, path = "/api/v1/pools", operation_id = "pools_create", tag = "pools", params(Manner), request_body = PoolSpec,
    responses((status = 201, body = Pool), (status = 200, body = Pool, description = "It was there already"),
        (status = "default", body = Problem)))]
pub(super) async fn create(
    State(cluster): State<Arc<Cluster>>,
    Params(manner): Params<Manner>,
    Body(spec): Body<PoolSpec>,
) -> Answer {
    name::check(name::Kind::Pool, &spec.name).map_err(Failure::invalid)?;
    name::check_tags(&spec.tags).map_err(Failure::invalid)?;
    let place = place::place(&cluster, &spec).await?;
    let wish = PoolWish {
        name: spec.name,
        node: spec.node,
        kind: place.kind,
        dir: place.dir,
        devices: place.devices,
        adopt: spec.adopt,
        wipe: spec.wipe,
        tags: sorted(spec.tags),
        overprovision_milli: if spec.overprovision == 0.0 {
            OVERPROVISION_MILLI
        } else {
            thousandths(spec.overprovision)?
        },
    };
    let (name, node) = (wish.name.clone(), wish.node.clone());
    let step = place::step(&wish);
    change(&cluster, manner, Action::CreatePool(wish), step, |outcome| {
        show_pool(&cluster, &name, &node, created(&outcome))
    })
    .await
}

fn sorted(mut tags: Vec<String>) -> Vec<String> {
    tags.sort();
    tags
}

/// The limit as it is stored.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the range is checked before"
)]
fn thousandths(limit: f64) -> Result<u64, Failure> {
    if !(1.0..=MOST_OVERPROVISION).contains(&limit) {
        return Err(Failure::invalid(format!(
            "{limit} is not an over-provisioning limit; allowed are 1 to {MOST_OVERPROVISION}"
        )));
    }
    Ok((limit * 1000.0).round() as u64)
}

/// Change a pool on a node.
#[utoipa::path(patch, path = "/api/v1/pools/{pool}/nodes/{node}", operation_id = "pools_set", tag = "pools",
    params(("pool" = String, Path), ("node" = String, Path), Manner), request_body = PoolChange,
    responses((status = 200, body = Pool), (status = "default", body = Problem)))]
pub(super) async fn set(
    State(cluster): State<Arc<Cluster>>,
    At((name, node)): At<(String, String)>,
    Params(manner): Params<Manner>,
    IfMatch(expect): IfMatch,
    Body(wanted): Body<PoolChange>,
) -> Answer {
    if let Some(tags) = &wanted.tags {
        name::check_tags(tags).map_err(Failure::invalid)?;
    }
    let action = Action::ChangePool {
        name: name.clone(),
        node: node.clone(),
        expect,
        tags: wanted.tags.map(sorted),
        overprovision_milli: wanted.overprovision.map(thousandths).transpose()?,
    };
    change(
        &cluster,
        manner,
        action,
        format!("change pool {name} on node {node}"),
        |_| show_pool(&cluster, &name, &node, StatusCode::OK),
    )
    .await
}

/// Take an empty pool away from a node; its directory stays, a thin pool that Stor made is removed. With `force` also when the node still has to remove
/// something there of deleted volumes, which is left behind.
#[utoipa::path(delete, path = "/api/v1/pools/{pool}/nodes/{node}", operation_id = "pools_delete", tag = "pools",
    params(("pool" = String, Path), ("node" = String, Path), Manner),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn delete(
    State(cluster): State<Arc<Cluster>>,
    At((name, node)): At<(String, String)>,
    Params(manner): Params<Manner>,
    IfMatch(expect): IfMatch,
) -> Answer {
    let mut look = cluster.look().await?;
    let row = load::pool(look.rows(), &name, &node).await?;
    let left = match row.map_or(PoolKind::File, |row| row.wish.kind) {
        PoolKind::File => "its directory stays",
        PoolKind::LvmThin => "the node gives its thin pool back",
    };
    let step = format!("take pool {name} away from node {node}; {left}");
    let seen = look.end();
    let report = seen.node(&node).and_then(|heard| heard.pools.get(&name));
    let refused = report
        .map(|report| report.error.clone())
        .filter(|error| !error.is_empty());
    change(
        &cluster,
        manner,
        Action::DeletePool {
            name,
            node,
            expect,
            force: manner.force,
            refused,
        },
        step,
        |_| async { Ok(done()) },
    )
    .await
}
