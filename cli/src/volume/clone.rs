//! `storctl volume create … --from-volume`: the cluster does it, whether anybody waits or not.

use stor_api::client::{Error, Wish};
use stor_api::name;
use stor_api::objects::{RestoreSpec, SnapshotState, Volume, VolumeState};

use super::made_of;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::Done;
use crate::wait::{self, Look};

pub(super) async fn clone(context: &Context, of: &str, spec: &RestoreSpec) -> Result<(), Failure> {
    if context.planned(&Wish::Clone { volume: of, spec }).await? {
        return Ok(());
    }
    context.client.clone_volume(of, spec).await?;
    if context.no_wait {
        let said = format!("volume {} is being created of {of}", spec.name);
        return context
            .out
            .done(&Done::new("volume", &spec.name, "creating"), &said);
    }
    let what = format!("volume {}", spec.name);
    let volume = wait::until(context, &what, || look(context, of, &spec.name)).await?;
    context.out.object(&volume, |volume| made_of(volume, of, true))
}

async fn look(context: &Context, of: &str, new: &str) -> Result<Look<Volume>, Failure> {
    if let Some(there) = volume(context, new).await? {
        return Ok(there);
    }
    match context.client.snapshot(of, &name::of_clone(new)).await {
        Ok(one) if one.state == SnapshotState::Failed => {
            Err(Failure::failed(format!("volume {new} was not made of {of}")).why(one.reason))
        }
        Ok(one) if one.state == SnapshotState::Creating => {
            Ok(Look::Pending(format!("a snapshot of {of} is being made"), None))
        }
        Ok(_) => Ok(Look::Pending("its replicas are being placed".to_owned(), None)),
        // It goes when the volume is there.
        Err(Error::NotFound { .. }) => match volume(context, new).await? {
            Some(there) => Ok(there),
            None => Err(Failure::failed(format!("volume {new} was not made of {of}"))
                .why("It was undone, or deleted; `storctl event list` says why.")),
        },
        Err(error) => Err(error.into()),
    }
}

async fn volume(context: &Context, name: &str) -> Result<Option<Look<Volume>>, Failure> {
    match context.client.volume(name).await {
        Ok(volume) if volume.state == VolumeState::Creating => {
            let what = "its replicas are being made".to_owned();
            Ok(Some(Look::Pending(what, None)))
        }
        Ok(volume) => Ok(Some(Look::Done(volume))),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
