//! Volumes and their replicas.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use stor_api::objects::{Page, PlacementVerdict, Replica, Volume, VolumeSpec};
use stor_api::problem::Problem;
use stor_api::{name, size};
use stor_replication::catalogue::MAX_REPLICAS;
use stor_replication::ids::{Lineage, VolumeId};
use uuid::Uuid;

use super::answer::{Answer, created, cut, object, page, plan};
use super::extract::{At, Body, List, Manner, Nothing, Params};
use super::problem::Failure;
use crate::catalogue::command::{NewVolume, Placement, VolumeWish};
use crate::catalogue::load::{self, Which};
use crate::catalogue::{self, Action, Outcome, Refused, row};
use crate::cluster::{Cluster, Look};
use crate::plan as planner;
use crate::show;

pub(super) const NO_PLACEMENT: &str = "no-placement";
/// Placements that others overtook before one is given up.
const ATTEMPTS: u32 = 8;

pub(super) fn check_replicas(replicas: u8) -> Result<u8, Failure> {
    if replicas == 0 || usize::from(replicas) > MAX_REPLICAS {
        return Err(Failure::invalid(format!(
            "{replicas} replicas are not possible; allowed are 1 to {MAX_REPLICAS}"
        )));
    }
    Ok(replicas)
}

/// Volumes, by name; with `node`, those with a replica or an attachment there.
#[utoipa::path(get, path = "/api/v1/volumes", operation_id = "volumes_list", tag = "volumes", params(List),
    responses((status = 200, body = Page<Volume>), (status = "default", body = Problem)))]
pub(super) async fn list(State(cluster): State<Arc<Cluster>>, Params(list): Params<List>) -> Answer {
    let mut look = cluster.look().await?;
    let name = |volume: &Volume| volume.name.clone();
    if let Some(node) = &list.node {
        let rows = load::volumes_which(look.rows(), Which::On(node)).await?;
        return Ok(cut(
            rows.iter().map(|row| show::volume(row, &look.seen)).collect(),
            &list,
            name,
        ));
    }
    let which = Which::Page {
        after: &list.after,
        limit: list.limit() + 1,
    };
    let rows = load::volumes_which(look.rows(), which).await?;
    Ok(page(
        rows.iter().map(|row| show::volume(row, &look.seen)).collect(),
        &list,
        name,
    ))
}

/// One volume with its replicas and attachments.
#[utoipa::path(get, path = "/api/v1/volumes/{volume}", operation_id = "volumes_get", tag = "volumes", params(("volume" = String, Path)),
    responses((status = 200, body = Volume), (status = "default", body = Problem)))]
pub(super) async fn get(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    _: Params<Nothing>,
) -> Answer {
    show_volume(&cluster, &name, StatusCode::OK).await
}

pub(super) async fn need(look: &mut Look, name: &str) -> Result<row::Volume, Failure> {
    let found = load::volume_named(look.rows(), name).await?;
    found.ok_or_else(|| Failure::not_found(format!("volume {name}")))
}

pub(super) async fn show_volume(cluster: &Cluster, name: &str, status: StatusCode) -> Answer {
    let mut look = cluster.look().await?;
    let row = need(&mut look, name).await?;
    Ok(object(status, row.row.revision, &show::volume(&row, &look.seen)))
}

/// Replicas of one volume.
#[utoipa::path(get, path = "/api/v1/volumes/{volume}/replicas", operation_id = "volumes_replicas_of", tag = "volumes",
    params(("volume" = String, Path), List),
    responses((status = 200, body = Page<Replica>), (status = "default", body = Problem)))]
pub(super) async fn replicas_of(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    Params(list): Params<List>,
) -> Answer {
    let mut look = cluster.look().await?;
    let row = need(&mut look, &name).await?;
    Ok(cut(show::replicas(&row, &look.seen), &list, replica_key))
}

/// Numbers have at most ten digits; padded, they sort as text.
fn replica_key(replica: &Replica) -> String {
    format!("{} {:010}", replica.volume, replica.id)
}

/// Replicas, by volume and number.
#[utoipa::path(get, path = "/api/v1/replicas", operation_id = "volumes_replicas", tag = "volumes", params(List),
    responses((status = 200, body = Page<Replica>), (status = "default", body = Problem)))]
pub(super) async fn replicas(State(cluster): State<Arc<Cluster>>, Params(list): Params<List>) -> Answer {
    let mut look = cluster.look().await?;
    let rows = match (&list.volume, &list.node) {
        (Some(volume), _) => vec![need(&mut look, volume).await?],
        (None, Some(node)) => load::volumes_which(look.rows(), Which::On(node)).await?,
        (None, None) => load::volumes_which(look.rows(), Which::All).await?,
    };
    let mut replicas: Vec<Replica> = rows
        .iter()
        .flat_map(|row| show::replicas(row, &look.seen))
        .collect();
    replicas.retain(|replica| list.node.as_ref().is_none_or(|node| *node == replica.node));
    replicas.sort_by_key(replica_key);
    Ok(cut(replicas, &list, replica_key))
}

/// Make a volume.
#[utoipa::path(post, path = "/api/v1/volumes", operation_id = "volumes_create", tag = "volumes", params(Manner), request_body = VolumeSpec,
    responses((status = 201, body = Volume), (status = 200, body = Volume, description = "It was there already"),
        (status = "default", body = Problem)))]
pub(super) async fn create(
    State(cluster): State<Arc<Cluster>>,
    Params(manner): Params<Manner>,
    Body(spec): Body<VolumeSpec>,
) -> Answer {
    let (name, wish) = check_spec(spec)?;
    let mut reports = cluster.observed.changes();
    let mut attempts = 0;
    while attempts < ATTEMPTS {
        let mut look = cluster.look().await?;
        let (new, verdicts) = match draft(&mut look, &name, &wish).await {
            Ok(draft) => draft,
            Err(failure) => {
                // A read transaction must not stay open meanwhile.
                let seen = look.end();
                if failure.code() == NO_PLACEMENT && cluster.may_still_come(&seen, &mut reports).await {
                    continue;
                }
                return Err(failure);
            }
        };
        let steps = describe(&new);
        let action = Action::CreateVolume(new);
        if manner.dry_run {
            let steps = match catalogue::check(look.rows(), &action).await?? {
                Outcome::Unchanged => Vec::new(),
                Outcome::Created | Outcome::Changed | Outcome::Row(_) => steps,
            };
            return Ok(plan(steps, verdicts));
        }
        drop(look);
        match cluster.propose(action).await? {
            Ok(outcome) => return show_volume(&cluster, &name, created(&outcome)).await,
            // Placed with what was true a moment ago.
            Err(Refused::PlacementStale { .. }) => attempts += 1,
            Err(refused) => return Err(refused.into()),
        }
    }
    Err(Refused::PlacementStale {
        why: "other volumes were placed at the same time, again and again".into(),
    }
    .into())
}

fn check_spec(spec: VolumeSpec) -> Result<(String, VolumeWish), Failure> {
    name::check(name::Kind::Volume, &spec.name).map_err(Failure::invalid)?;
    name::check_tags(&spec.tags).map_err(Failure::invalid)?;
    for key in [&spec.spread, &spec.together].into_iter().flatten() {
        name::check_property_key(key).map_err(Failure::invalid)?;
    }
    spec.replicas.map(check_replicas).transpose()?;
    let mut tags = spec.tags;
    tags.sort();
    let wish = VolumeWish {
        size: size::check_volume(spec.size_bytes).map_err(Failure::invalid)?,
        class: spec.class,
        replicas: spec.replicas,
        pool: spec.pool,
        tags,
        spread: spec.spread,
        together: spec.together,
        min_in_sync: spec.min_in_sync,
    };
    Ok((spec.name, wish))
}

/// The volume as it would be made now, and what the planner said of every node. For one that exists, without
/// placements: applying compares the wish first.
async fn draft(
    look: &mut Look,
    name: &str,
    wish: &VolumeWish,
) -> Result<(NewVolume, Vec<PlacementVerdict>), Failure> {
    let class = match &wish.class {
        None => None,
        Some(class) => {
            let found = load::class(look.rows(), class).await?;
            Some(
                found
                    .ok_or_else(|| Failure::not_found(format!("class {class}")))?
                    .wish,
            )
        }
    };
    let ask = planner::wish(wish, class.as_ref());
    let min_in_sync = min_in_sync(wish.min_in_sync, ask.replicas)?;
    let mut new = NewVolume {
        id: VolumeId(Uuid::now_v7()),
        name: name.to_owned(),
        lineage: Lineage(Uuid::new_v4()),
        wish: wish.clone(),
        min_in_sync,
        placements: Vec::new(),
    };
    if load::volume_named(look.rows(), name).await?.is_some() {
        return Ok((new, Vec::new()));
    }
    let nodes = planner_nodes(look).await?;
    let placement = planner::place(&ask, &nodes).map_err(|refusal| {
        Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            NO_PLACEMENT,
            format!(
                "volume {name} can't be placed: {} of {} replicas possible",
                refusal.possible, refusal.wanted
            ),
        )
        .because(reasons(&refusal.verdicts))
        .remedy("add or bring back a node or pool that satisfies the rules, or ask for less")
        .placement(verdicts(refusal.verdicts))
    })?;
    new.placements = placement
        .places
        .into_iter()
        .map(|place| Placement {
            node: place.node,
            pool: place.pool,
            pool_revision: place.pool_revision,
            promise_limit: place.promise_limit,
        })
        .collect();
    Ok((new, verdicts(placement.verdicts)))
}

/// 1 of up to 2, 2 of 3 and more.
pub(super) fn min_in_sync(wanted: Option<u8>, replicas: usize) -> Result<u8, Failure> {
    match wanted {
        None => Ok(if replicas < 3 { 1 } else { 2 }),
        Some(least) if least >= 1 && usize::from(least) <= replicas => Ok(least),
        Some(least) => Err(Failure::invalid(format!(
            "at least {least} in-sync replicas of {replicas} are not possible; allowed are 1 to {replicas}"
        ))),
    }
}

pub(super) async fn planner_nodes(look: &mut Look) -> Result<Vec<planner::Node>, Failure> {
    let nodes = load::nodes(look.rows()).await?;
    let pools = load::pools(look.rows()).await?;
    Ok(planner::nodes(&nodes, &pools, &look.seen))
}

pub(super) fn verdicts(verdicts: Vec<planner::Verdict>) -> Vec<PlacementVerdict> {
    verdicts
        .into_iter()
        .map(|verdict| PlacementVerdict {
            node: verdict.node,
            pool: verdict.pool,
            chosen: verdict.chosen,
            reason: verdict.reason,
        })
        .collect()
}

/// Every node and its rule in one sentence, for those who see no table.
pub(super) fn reasons(verdicts: &[planner::Verdict]) -> String {
    if verdicts.is_empty() {
        return "No node is registered.".into();
    }
    let each: Vec<String> = verdicts
        .iter()
        .map(|verdict| format!("{}: {}", verdict.node, verdict.reason))
        .collect();
    format!("{}.", each.join("; "))
}

fn describe(new: &NewVolume) -> Vec<String> {
    let size = size::format(new.wish.size);
    let mut steps = vec![format!(
        "make volume {} of {size}, at least {} in sync",
        new.name, new.min_in_sync
    )];
    let place = |placement: &Placement| {
        format!(
            "make a replica in pool {} on node {}",
            placement.pool, placement.node
        )
    };
    steps.extend(new.placements.iter().map(place));
    steps
}
