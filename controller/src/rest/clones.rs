//! Volumes made of what another volume holds.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use stor_api::name;
use stor_api::objects::{RestoreSpec, Snapshot};
use stor_api::problem::Problem;
use stor_replication::ids::{Lineage, SnapshotId, VolumeId};
use uuid::Uuid;

use super::answer::{Answer, change, done};
use super::extract::{At, Body, Manner, Params};
use super::problem::Failure;
use super::snapshots::{draft, show_one};
use super::volumes::{check_replicas, need};
use crate::behind;
use crate::catalogue::Action;
use crate::catalogue::command::{CloneWish, NewSnapshot, Restore};
use crate::catalogue::snapshot;
use crate::cluster::{Cluster, Look, Trouble};

/// Make a volume of what another one holds at this moment. A snapshot is made for it, which goes when the volume is
/// there; until then it says how far it is, and for a minute what went wrong.
#[utoipa::path(post, path = "/api/v1/volumes/{volume}/clone", operation_id = "volumes_clone", tag = "volumes",
    params(("volume" = String, Path), Manner), request_body = RestoreSpec,
    responses((status = 202, body = Snapshot, description = "Done when the new volume is not in state creating any more"),
        (status = 204, description = "It was there already"), (status = "default", body = Problem)))]
pub(super) async fn create(
    State(cluster): State<Arc<Cluster>>,
    At(volume): At<String>,
    Params(manner): Params<Manner>,
    Body(spec): Body<RestoreSpec>,
) -> Answer {
    name::check(name::Kind::Volume, &spec.name).map_err(Failure::invalid)?;
    spec.replicas.map(check_replicas).transpose()?;
    let mut look = cluster.look().await?;
    let row = need(&mut look, &volume).await?;
    if let Some(why) = behind::in_short(&row, &look.seen) {
        return Err(Failure::behind(&row.name, &format!("It is known of it: {why}.")));
    }
    drop(look);
    let of_it = name::of_clone(&spec.name);
    let step = format!("make volume {} of what volume {volume} holds then", spec.name);
    let action = Action::CloneVolume {
        batch: Uuid::now_v7(),
        snapshot: NewSnapshot {
            id: SnapshotId(Uuid::now_v7()),
            volume: volume.clone(),
            name: of_it.clone(),
        },
        into: CloneWish {
            id: VolumeId(Uuid::now_v7()),
            name: spec.name,
            lineage: Lineage(Uuid::new_v4()),
            replicas: spec.replicas,
            min_in_sync: spec.min_in_sync,
        },
    };
    change(&cluster, manner, action, step, async |_| {
        // It may be done with by now.
        let shown = show_one(&cluster, &volume, &of_it, StatusCode::ACCEPTED).await;
        Ok(shown.unwrap_or_else(|_| done()))
    })
    .await
}

/// Why a clone can't be drafted.
#[derive(Debug)]
pub(crate) enum NotDrafted {
    /// Not now, here.
    Trouble(Trouble),
    /// It can't be made.
    Refused(String),
}

impl From<Failure> for NotDrafted {
    fn from(failure: Failure) -> Self {
        if failure.is_ours() {
            return Self::Trouble(Trouble::Undecided(failure.words()));
        }
        Self::Refused(failure.words())
    }
}

/// The volume a snapshot was made for, as it would be made now. The same volume every time, wherever it is placed.
pub(crate) async fn draft_clone(
    look: &mut Look,
    one: &snapshot::Snapshot,
    wish: &CloneWish,
) -> Result<Restore, NotDrafted> {
    let spec = RestoreSpec {
        name: wish.name.clone(),
        replicas: wish.replicas,
        min_in_sync: wish.min_in_sync,
    };
    let mut restore = draft(look, one, &spec).await?;
    (restore.new.id, restore.new.lineage) = (wish.id, wish.lineage);
    Ok(restore)
}
