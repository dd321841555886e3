//! The catalogue's own state, and volumes whose data is later than it.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use stor_api::name;
use stor_api::objects::{CatalogueInfo, Volume, VolumeAdoption};
use stor_api::problem::Problem;
use stor_replication::ids::VolumeId;
use uuid::Uuid;

use super::answer::{Answer, object, plan};
use super::extract::{At, Body, Manner, Nothing, Params};
use super::problem::Failure;
use super::volumes::need;
use crate::behind::{self, Adopting, Cannot, Findings, Standing};
use crate::catalogue::{Action, load, row};
use crate::cluster::{Cluster, Look};
use crate::show;

/// A volume that was just locked: its nodes are given this long to say what its replicas hold.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// Between looks meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// The catalogue as the leader has it.
#[utoipa::path(get, path = "/api/v1/catalogue", operation_id = "catalogue_get", tag = "cluster",
    responses((status = 200, body = CatalogueInfo), (status = "default", body = Problem)))]
pub(super) async fn catalogue(State(cluster): State<Arc<Cluster>>, _: Params<Nothing>) -> Answer {
    let mut look = cluster.look().await?;
    let (Some(id), Some(history)) = (
        load::cluster_id(look.rows()).await?,
        load::history(look.rows()).await?,
    ) else {
        return Err(Failure::no_leader());
    };
    let info = CatalogueInfo {
        cluster_id: id.to_string(),
        history: history.id.to_string(),
        generation: history.generation,
        restored: history.restored,
        // Not behind the rows: announced once they can be read.
        applied: *cluster.raft.applied().borrow(),
    };
    Ok(Json(info).into_response())
}

/// What nodes say, for the history that the catalogue is in.
async fn findings<'a>(
    look: &mut Look,
    nodes: &'a mut Vec<row::Node>,
    seen: &'a crate::observed::Observations,
) -> Result<Findings<'a>, Failure> {
    *nodes = load::nodes(look.rows()).await?;
    let history = load::history(look.rows()).await?;
    let id = history.map(|history| history.id.to_string()).unwrap_or_default();
    Ok(Findings::of(nodes, seen, &id))
}

/// Whether a volume in doubt has nothing left that could be lost.
pub(super) async fn is_gone(look: &mut Look, row: &row::Volume) -> Result<bool, Failure> {
    if !row.doubt {
        return Ok(false);
    }
    let (seen, mut nodes) = (look.seen.clone(), Vec::new());
    let findings = findings(look, &mut nodes, &seen).await?;
    Ok(behind::standing(row, &findings) == Standing::Gone)
}

/// Make the catalogue say of a volume what its replicas say.
#[utoipa::path(post, path = "/api/v1/volumes/{volume}/adopt", operation_id = "volumes_adopt", tag = "volumes",
    params(("volume" = String, Path), Manner), request_body = VolumeAdoption,
    responses((status = 200, body = Volume), (status = "default", body = Problem)))]
pub(super) async fn adopt(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    Params(manner): Params<Manner>,
    Body(spec): Body<VolumeAdoption>,
) -> Answer {
    let force = spec.force || manner.force;
    let deadline = tokio::time::Instant::now() + TOLD_WITHIN;
    loop {
        let mut look = cluster.look().await?;
        let (id, row) = chosen(&mut look, &name, spec.id.as_deref()).await?;
        if let Some(row) = row.as_ref().filter(|row| !row.doubt) {
            lock(&cluster, row, look.end()).await?;
            continue;
        }
        let (seen, mut nodes) = (look.seen.clone(), Vec::new());
        let findings = findings(&mut look, &mut nodes, &seen).await?;
        let planned = behind::adoption(id, &name, row.as_ref(), &findings);
        let waits = match &planned {
            Ok(adopting) => !adopting.risks.is_empty() && !cluster.settled(),
            Err(_) => !findings
                .replicas(id)
                .iter()
                .any(|found| found.report.stored.is_some()),
        };
        drop(look);
        if waits && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(LOOK_AGAIN).await;
            continue;
        }
        let adopting = planned.map_err(|cannot| impossible(&name, row.as_ref(), &cannot))?;
        return carry_out(&cluster, &name, adopting, force, manner.dry_run).await;
    }
}

/// The volume meant, and its row where there is one.
async fn chosen(
    look: &mut Look,
    name: &str,
    id: Option<&str>,
) -> Result<(VolumeId, Option<row::Volume>), Failure> {
    let Some(id) = id else {
        let row = need(look, name).await?;
        return Ok((row.row.volume, Some(row)));
    };
    name::check(name::Kind::Volume, name).map_err(Failure::invalid)?;
    let id = Uuid::from_str(id).map_err(|_| Failure::invalid("the id is not that of a volume"))?;
    let row = load::volume(look.rows(), VolumeId(id)).await?;
    if let Some(known) = row.as_ref().filter(|row| row.name != name) {
        let title = format!("volume {id} is in the catalogue, as {}", known.name);
        return Err(Failure::conflict("exists", title).remedy(format!("storctl volume adopt {}", known.name)));
    }
    Ok((VolumeId(id), row))
}

/// Locks a volume whose replicas were seen to be later, so that its nodes say more of them.
async fn lock(
    cluster: &Cluster,
    row: &row::Volume,
    seen: crate::observed::Observations,
) -> Result<(), Failure> {
    let Some((_, view)) = seen.ahead_of(&row.row) else {
        let title = format!("volume {} is not locked; there is nothing to adopt", row.name);
        return Err(Failure::conflict("state", title));
    };
    let action = Action::DoubtVolumes {
        seen: vec![(row.row.volume, view)],
    };
    cluster.propose(action).await??;
    Ok(())
}

fn impossible(name: &str, row: Option<&row::Volume>, cannot: &Cannot) -> Failure {
    let remedy = match (cannot, row) {
        (Cannot::NoMember, Some(_)) => format!(
            "bring the nodes and pools with its replicas back; if it was deleted after the backup: storctl volume delete {name}"
        ),
        (Cannot::NoMember, None) => "bring the nodes and pools with its replicas back".to_owned(),
        (Cannot::Twice { .. }, _) => {
            "one of them was copied behind the cluster's back: take that one's directory out of its pool"
                .to_owned()
        }
        (Cannot::TooMany(_), _) => "take the directories of those not needed out of their pools".to_owned(),
    };
    Failure::conflict("catalogue-behind", format!("volume {name} can't be adopted"))
        .because(format!("{cannot}."))
        .remedy(remedy)
}

async fn carry_out(cluster: &Cluster, name: &str, adopting: Adopting, force: bool, dry_run: bool) -> Answer {
    let Adopting {
        adoption,
        mut steps,
        risks,
    } = adopting;
    if dry_run {
        steps.extend(risks.iter().map(|risk| {
            let refused = if force {
                ""
            } else {
                "be refused without --force, or "
            };
            format!("{refused}risk what only others have: {risk}")
        }));
        return Ok(plan(steps, Vec::new()));
    }
    if !risks.is_empty() && !force {
        let why = format!(
            "Later data than what was found may be where nobody has looked: {}.",
            risks.join("; ")
        );
        return Err(Failure::conflict(
            "catalogue-behind",
            format!("not everything was heard that may know more of volume {name}"),
        )
        .because(why)
        .remedy("bring it back first; with --force, what only it has is lost"));
    }
    cluster.propose(Action::AdoptVolume(adoption)).await??;
    let mut look = cluster.look().await?;
    let row = need(&mut look, name).await?;
    Ok(object(
        StatusCode::OK,
        row.row.revision,
        &show::volume(&row, &look.seen),
    ))
}
