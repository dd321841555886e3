//! `storctl volume resize` and `volume set`.

use stor_api::client::{Client, Wish};
use stor_api::objects::{Volume, VolumeChange};
use stor_api::size;

use crate::args::VolumeSize;
use crate::context::Context;
use crate::failure::Failure;
use crate::wait::{self, Look};

pub(super) async fn resize(context: &Context, name: &str, wanted: VolumeSize) -> Result<(), Failure> {
    let change = VolumeChange {
        size_bytes: Some(wanted.bytes),
        ..VolumeChange::default()
    };
    if let Some(asked) = wanted.rounded_from {
        context.out.remark(&format!(
            "{asked} bytes are rounded up to {}, a multiple of {}",
            wanted.bytes,
            size::BLOCK
        ));
    }
    let wish = Wish::ChangeVolume {
        name,
        change: &change,
    };
    if context.planned(&wish).await? {
        return Ok(());
    }
    let volume = context.client.change_volume(name, &change).await?;
    let volume = if context.no_wait {
        volume
    } else {
        let what = format!("volume {name}");
        wait::until(context, &what, || look(&context.client, name, wanted.bytes)).await?
    };
    context.out.object(&volume, |volume| {
        let now = size::format(volume.size_bytes);
        match volume.growing_to_bytes {
            Some(to) => format!("volume {name} has {now} and grows to {}\n", size::format(to)),
            None => format!("volume {name} has {now}\n"),
        }
    })
}

pub(super) async fn set(context: &Context, name: &str, least: u8) -> Result<(), Failure> {
    let change = VolumeChange {
        min_in_sync: Some(least),
        ..VolumeChange::default()
    };
    let wish = Wish::ChangeVolume {
        name,
        change: &change,
    };
    if context.planned(&wish).await? {
        return Ok(());
    }
    let volume = context.client.change_volume(name, &change).await?;
    context.out.object(&volume, |volume| {
        format!(
            "volume {name} is written with at least {} in sync\n",
            volume.min_in_sync
        )
    })
}

async fn look(client: &Client, name: &str, bytes: u64) -> Result<Look<Volume>, Failure> {
    let volume = client.volume(name).await?;
    if volume.size_bytes >= bytes {
        return Ok(Look::Done(volume));
    }
    let waits: Vec<&str> = volume
        .replicas
        .iter()
        .filter(|one| one.in_sync && !one.reason.is_empty())
        .map(|one| one.reason.as_str())
        .collect();
    let doing = if waits.is_empty() {
        "its replicas grow".to_owned()
    } else {
        format!("its replicas grow; {}", waits.join("; "))
    };
    Ok(Look::Pending(doing, None))
}
