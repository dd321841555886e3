//! Replicas that are added to a volume, taken away, or moved; the size of a volume.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use stor_api::objects::{ReplicaSpec, Volume, VolumeChange};
use stor_api::problem::Problem;
use stor_api::size;
use stor_replication::catalogue::MemberState;
use stor_replication::ids::ReplicaId;

use super::answer::{Answer, plan};
use super::extract::{At, Body, IfMatch, Manner, Params};
use super::problem::Failure;
use super::volumes::{NO_PLACEMENT, min_in_sync, need, planner_nodes, reasons, show_volume, verdicts};
use crate::catalogue::command::Placement;
use crate::catalogue::row;
use crate::catalogue::{self, Action, Outcome, Refused, load};
use crate::cluster::{Cluster, Look};
use crate::plan as planner;
use crate::show;

/// Placements that others overtook before one is given up.
const ATTEMPTS: u32 = 8;

/// Give a volume one more replica; with `replaces` it takes the place of that one, which leaves when the new one is in
/// sync: the number of copies in sync never falls. The volume may be in use.
#[utoipa::path(post, path = "/api/v1/volumes/{volume}/replicas", operation_id = "replicas_create", tag = "volumes",
    params(("volume" = String, Path), Manner), request_body = ReplicaSpec,
    responses((status = 201, body = Volume, description = "Look at its replicas until it is in sync"),
        (status = 200, body = Volume, description = "It is being replaced already"),
        (status = "default", body = Problem)))]
pub(super) async fn create(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    Params(manner): Params<Manner>,
    Body(spec): Body<ReplicaSpec>,
) -> Answer {
    for _ in 0..ATTEMPTS {
        let mut look = cluster.look().await?;
        let volume = need(&mut look, &name).await?;
        let (placement, placed) = place(&mut look, &volume, &spec).await?;
        let steps = steps(&volume, &spec, &placement);
        let action = Action::PlaceReplica {
            volume: volume.row.volume,
            placement,
            replaces: spec.replaces.map(ReplicaId),
        };
        if manner.dry_run {
            let steps = match catalogue::check(look.rows(), &action).await?? {
                Outcome::Unchanged => Vec::new(),
                Outcome::Created | Outcome::Changed | Outcome::Row(_) => steps,
            };
            return Ok(plan(steps, placed));
        }
        drop(look);
        match cluster.propose(action).await? {
            Ok(Outcome::Unchanged) => return show_volume(&cluster, &name, StatusCode::OK).await,
            Ok(_) => return show_volume(&cluster, &name, StatusCode::CREATED).await,
            Err(Refused::PlacementStale { .. }) => {}
            Err(refused) => return Err(refused.into()),
        }
    }
    Err(Refused::PlacementStale {
        why: "other volumes were placed at the same time, again and again".into(),
    }
    .into())
}

type Verdicts = Vec<stor_api::objects::PlacementVerdict>;

async fn place(
    look: &mut Look,
    volume: &row::Volume,
    spec: &ReplicaSpec,
) -> Result<(Placement, Verdicts), Failure> {
    let replaces = spec.replaces.map(ReplicaId);
    if let Some(old) = replaces.filter(|old| !volume.row.replicas.contains_key(old)) {
        return Err(Failure::not_found(format!(
            "replica {old} of volume {}",
            volume.name
        )));
    }
    if let Some(node) = &spec.node
        && load::node(look.rows(), node).await?.is_none()
    {
        return Err(Failure::not_found(format!("node {node}")));
    }
    let class = match &volume.wish.class {
        Some(class) => load::class(look.rows(), class).await?.map(|class| class.wish),
        None => None,
    };
    let asked = planner::Asked {
        node: spec.node.clone(),
        pool: spec.pool.clone(),
        replaces,
    };
    let nodes = planner_nodes(look).await?;
    let refused = |said: Vec<planner::Verdict>| {
        Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            NO_PLACEMENT,
            format!("no node can take a further replica of volume {}", volume.name),
        )
        .because(reasons(&said))
        .remedy("add or bring back a node or pool that satisfies the rules")
        .placement(verdicts(said))
    };
    let found = planner::further(volume, class.as_ref(), &asked, &nodes);
    let found = found.map_err(|refusal| refused(refusal.verdicts))?;
    let said = found.verdicts.clone();
    let placement = planner::placed(found).ok_or_else(|| refused(said.clone()))?;
    Ok((placement, verdicts(said)))
}

fn steps(volume: &row::Volume, spec: &ReplicaSpec, placement: &Placement) -> Vec<String> {
    let (node, pool) = (&placement.node, &placement.pool);
    let mut steps = vec![
        format!(
            "make a replica of volume {} in pool {pool} on node {node}",
            volume.name
        ),
        "copy to it what is used, while the volume goes on".to_owned(),
    ];
    let old = spec
        .replaces
        .and_then(|old| volume.row.replicas.get(&ReplicaId(old)));
    if let Some(old) = old {
        steps.push(format!(
            "let the replica on node {} go when the new one is in sync",
            old.node
        ));
    }
    steps
}

/// Take a replica away from a volume, which may be in use: its engine lets it go when nothing is lost by it.
#[utoipa::path(delete, path = "/api/v1/volumes/{volume}/replicas/{replica}", operation_id = "replicas_delete", tag = "volumes",
    params(("volume" = String, Path), ("replica" = u32, Path), Manner),
    responses((status = 202, body = Volume, description = "Gone once the volume does not list it any more"),
        (status = "default", body = Problem)))]
pub(super) async fn delete(
    State(cluster): State<Arc<Cluster>>,
    At((name, replica)): At<(String, u32)>,
    Params(manner): Params<Manner>,
) -> Answer {
    let mut look = cluster.look().await?;
    let volume = need(&mut look, &name).await?;
    let replica = ReplicaId(replica);
    let Some(member) = volume.row.replicas.get(&replica) else {
        return Err(Failure::not_found(format!("replica {replica} of volume {name}")));
    };
    if !manner.force {
        refuse_loss(&volume, replica, &look)?;
    }
    let action = Action::LeaveReplica {
        volume: volume.row.volume,
        replica,
    };
    if manner.dry_run {
        let step = format!("take the replica on node {} away from volume {name}", member.node);
        let steps = match catalogue::check(look.rows(), &action).await?? {
            Outcome::Unchanged => Vec::new(),
            Outcome::Created | Outcome::Changed | Outcome::Row(_) => vec![step],
        };
        return Ok(plan(steps, Vec::new()));
    }
    drop(look);
    cluster.propose(action).await??;
    show_volume(&cluster, &name, StatusCode::ACCEPTED).await
}

/// The last replica that can be reached is not given away without being told so twice.
fn refuse_loss(volume: &row::Volume, replica: ReplicaId, look: &Look) -> Result<(), Failure> {
    let others = show::replicas(volume, &look.seen);
    let good = |one: &stor_api::objects::Replica| {
        one.id != replica.0 && one.state == stor_api::objects::ReplicaState::InSync && !one.leaving
    };
    let stale = volume
        .row
        .replicas
        .get(&replica)
        .is_some_and(|m| m.state != MemberState::InSync);
    if stale || others.iter().any(good) {
        return Ok(());
    }
    let title = format!(
        "no other replica of volume {} is in sync and can be reached",
        volume.name
    );
    Err(Failure::conflict("not-ready", title)
        .because("What only this one has would be lost.")
        .remedy("bring the other nodes back, or add a replica and wait until it is in sync"))
}

/// Change a volume: a larger size, or how many replicas must be in sync. It may be in use; its replicas grow first, then
/// the volume, then its device.
#[utoipa::path(patch, path = "/api/v1/volumes/{volume}", operation_id = "volumes_change", tag = "volumes",
    params(("volume" = String, Path), Manner), request_body = VolumeChange,
    responses((status = 202, body = Volume, description = "Done once `size_bytes` or `min_in_sync` is what was asked for"),
        (status = "default", body = Problem)))]
pub(super) async fn change(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    Params(manner): Params<Manner>,
    IfMatch(expect): IfMatch,
    Body(wanted): Body<VolumeChange>,
) -> Answer {
    let bytes = match (wanted.size_bytes, wanted.min_in_sync) {
        (Some(bytes), None) => Some(size::check_volume(bytes).map_err(Failure::invalid)?),
        (None, Some(_)) => None,
        (None, None) | (Some(_), Some(_)) => {
            return Err(Failure::invalid(
                "a change names either size_bytes or min_in_sync".to_owned(),
            ));
        }
    };
    for _ in 0..ATTEMPTS {
        let mut look = cluster.look().await?;
        let volume = need(&mut look, &name).await?;
        let (action, steps) = match bytes {
            Some(bytes) => grow_to(&mut look, &volume, expect, bytes).await?,
            None => least_in_sync(&volume, expect, wanted.min_in_sync)?,
        };
        if manner.dry_run {
            let steps = match catalogue::check(look.rows(), &action).await?? {
                Outcome::Unchanged => Vec::new(),
                Outcome::Created | Outcome::Changed | Outcome::Row(_) => steps,
            };
            return Ok(plan(steps, Vec::new()));
        }
        drop(look);
        match cluster.propose(action).await? {
            Ok(_) => return show_volume(&cluster, &name, StatusCode::ACCEPTED).await,
            Err(Refused::PlacementStale { .. }) => {}
            Err(refused) => return Err(refused.into()),
        }
    }
    Err(Refused::PlacementStale {
        why: "other volumes were placed at the same time, again and again".into(),
    }
    .into())
}

async fn grow_to(
    look: &mut Look,
    volume: &row::Volume,
    expect: Option<u64>,
    bytes: u64,
) -> Result<(Action, Vec<String>), Failure> {
    let action = Action::ResizeVolume {
        name: volume.name.clone(),
        expect,
        size: bytes,
        pools: room(look, volume, bytes).await?,
    };
    Ok((action, growth(volume, bytes)))
}

fn least_in_sync(
    volume: &row::Volume,
    expect: Option<u64>,
    wanted: Option<u8>,
) -> Result<(Action, Vec<String>), Failure> {
    let least = min_in_sync(wanted, volume.row.replicas.len())?;
    let action = Action::SetLeastInSync {
        name: volume.name.clone(),
        expect,
        least,
    };
    let step = format!(
        "write volume {} with at least {least} replicas in sync, instead of {}",
        volume.name, volume.row.min_in_sync
    );
    Ok((action, vec![step]))
}

/// What the pools of its replicas may promise; refused by the first that may not promise so much.
async fn room(look: &mut Look, volume: &row::Volume, bytes: u64) -> Result<Vec<Placement>, Failure> {
    let more = bytes.saturating_sub(volume.row.size.max(volume.grow_to.unwrap_or(0)));
    let nodes = planner_nodes(look).await?;
    let mut pools = Vec::new();
    for (id, member) in &volume.row.replicas {
        let Some(place) = volume.places.get(id) else {
            continue;
        };
        let node = nodes.iter().find(|node| node.name == member.node);
        let pool = node.and_then(|node| node.pools.iter().find(|pool| pool.name == place.pool));
        // Of a pool that is away nothing is known but what it was promised.
        let Some((pool, planner::Report::Space { capacity, .. })) = pool.map(|pool| (pool, &pool.report))
        else {
            continue;
        };
        let limit = u128::from(*capacity) * u128::from(pool.overprovision_milli) / 1000;
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        if pool.promised.saturating_add(more) > limit {
            let title = format!("volume {} can't grow to {}", volume.name, size::format(bytes));
            return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, NO_PLACEMENT, title)
                .because(format!(
                    "In pool {} on node {} {} are promised already, and {} more would pass its limit of {}.",
                    place.pool,
                    member.node,
                    size::format(pool.promised),
                    size::format(more),
                    size::format(limit)
                ))
                .remedy("move that replica elsewhere, or raise the pool's over-provisioning limit"));
        }
        pools.push(Placement {
            node: member.node.clone(),
            pool: place.pool.clone(),
            pool_revision: pool.revision,
            promise_limit: limit,
        });
    }
    Ok(pools)
}

fn growth(volume: &row::Volume, bytes: u64) -> Vec<String> {
    let size = size::format(bytes);
    let nodes = volume.row.replicas.values().map(|member| member.node.as_str());
    let mut steps: Vec<String> = nodes
        .map(|node| format!("grow the replica on node {node} to {size}"))
        .collect();
    steps.push(format!("grow volume {} to {size}", volume.name));
    if let Some(node) = &volume.row.owner {
        steps.push(format!(
            "grow its device on node {node}; NBD clients see the new size when they connect again"
        ));
    }
    steps
}
