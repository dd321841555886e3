//! `quickstart --once`: the whole story by itself. Each step says what it measured; the first that fails ends
//! the story. Whatever happens, [`clean`] leaves no mount and no attachment behind.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use stor_api::client::{Error, Filter};
use stor_api::objects::{Attachment, AttachmentSpec, Node, NodeKind, Volume, VolumeSpec};
use stor_api::size;

use super::cluster::Cluster;
use super::fleet::{CLIENT, POOL};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::volume::{attached, created, detached, gone};

mod command;
mod image;
mod load;
mod medium;
mod nbd;
mod outage;
mod replicas;
mod teller;
mod tree;

use load::Written;
use medium::Medium;
use teller::Teller;

/// The volume of the story; one of that name from an earlier, broken story is deleted.
const VOLUME: &str = "once";
const SIZE: u64 = 1 << 30;
/// A step that takes longer has failed.
const STEP: Duration = Duration::from_mins(4);
const CREATE: Duration = Duration::from_mins(1);

/// Goes through the story.
pub(crate) async fn tell(cluster: &Cluster, out: Output) -> Result<(), Failure> {
    let mut teller = Teller::new(out, cluster.place().dir())?;
    let told = Box::pin(steps(cluster, &mut teller)).await;
    teller.end(told.is_ok())?;
    told
}

async fn steps(cluster: &Cluster, teller: &mut Teller) -> Result<(), Failure> {
    remove_leftovers(cluster).await?;
    let client = cluster.client().node(CLIENT).await?;
    let mounts = medium::can_mount(&client);
    let (volume, attachment) = teller
        .step(
            "create a volume and attach it",
            STEP,
            create(cluster, &client, mounts.is_none()),
        )
        .await?;
    let medium = Medium::of(cluster.place(), &attachment, mounts)?;
    let content = teller.step(medium.fill_title(), STEP, medium.fill()).await?;
    let outage = teller
        .step(
            "kill -9 a storage node under load",
            STEP,
            outage::kill(cluster, &volume, &medium),
        )
        .await?;
    let written = teller
        .step(
            "start it again, resync what it missed",
            STEP,
            outage::come_back(cluster, outage),
        )
        .await?;
    teller
        .step(
            "detach, compare the copies byte for byte",
            STEP,
            compare(cluster, &medium),
        )
        .await?;
    let other = teller
        .step(
            "attach on another node, check every byte",
            STEP,
            elsewhere(cluster, &medium, &content, &written),
        )
        .await?;
    teller
        .step("detach and delete", STEP, delete(cluster, &volume, &other))
        .await
}

/// Takes away what an earlier story left.
async fn remove_leftovers(cluster: &Cluster) -> Result<(), Failure> {
    clean(cluster).await;
    match cluster.client().delete_volume(VOLUME, false).await {
        Ok(()) => gone(&cluster.context(CREATE), VOLUME).await,
        Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(Failure::from(error).during("the volume of an earlier story can't be deleted")),
    }
}

/// Unmounts and detaches what the story has mounted and attached; says what it could not.
pub(crate) async fn clean(cluster: &Cluster) {
    if let Err(failure) = medium::unmount(cluster.place()).await {
        crate::output::note(&failure.render());
    }
    let Ok(volume) = cluster
        .client()
        .with_timeout(Duration::from_secs(5))
        .volume(VOLUME)
        .await
    else {
        return;
    };
    for attachment in volume.attachments {
        let ended = match cluster.client().detach(VOLUME, &attachment.node, false).await {
            Ok(()) => {
                detached(
                    &cluster.context(Duration::from_secs(30)),
                    VOLUME,
                    &attachment.node,
                )
                .await
            }
            Err(error) => Err(error.into()),
        };
        if let Err(failure) = ended {
            crate::output::note(&failure.render());
        }
    }
}

/// What a step answers, and what it says.
type Told<T> = Result<(T, String), Failure>;

async fn create(cluster: &Cluster, client: &Node, over_nbd: bool) -> Told<(Volume, Attachment)> {
    let storage = cluster
        .client()
        .nodes()
        .await?
        .into_iter()
        .filter(|n| n.kind == NodeKind::Storage)
        .count();
    let replicas = if storage > 1 { 2 } else { 1 };
    let spec = VolumeSpec {
        name: VOLUME.to_owned(),
        size_bytes: SIZE,
        class: None,
        replicas: Some(replicas),
        pool: Some(POOL.to_owned()),
        tags: Vec::new(),
        spread: None,
        together: None,
        min_in_sync: None,
    };
    let context = cluster.context(CREATE);
    let begin = Instant::now();
    cluster.client().create_volume(&spec).await?;
    created(&context, VOLUME).await?;
    let made = begin.elapsed();
    let transport = over_nbd.then(|| "socket".to_owned());
    let ask = AttachmentSpec {
        node: client.name.clone(),
        transport,
        read_only: false,
        force: false,
    };
    cluster.client().attach(VOLUME, &ask).await?;
    let attachment = attached(&context, VOLUME, &client.name).await?;
    let all = begin.elapsed();
    let volume = cluster.client().volume(VOLUME).await?;
    let on: Vec<&str> = volume.replicas.iter().map(|r| r.node.as_str()).collect();
    let told = format!(
        "{} on {}; create to attached {} ms (created after {} ms), {}",
        size::format(volume.size_bytes),
        on.join(" and "),
        all.as_millis(),
        made.as_millis(),
        if attachment.device.is_empty() {
            &attachment.nbd_uri
        } else {
            &attachment.device
        },
    );
    Ok(((volume, attachment), told))
}

async fn compare(cluster: &Cluster, medium: &Medium) -> Told<()> {
    medium.leave(cluster.place()).await?;
    cluster.client().detach(VOLUME, CLIENT, false).await?;
    detached(&cluster.context(CREATE), VOLUME, CLIENT).await?;
    let volume = cluster.client().volume(VOLUME).await?;
    let files: Vec<(String, PathBuf)> = volume
        .replicas
        .iter()
        .map(|r| {
            (
                r.node.clone(),
                replicas::data_file(&cluster.place().pool(&r.node), &volume.id, r.id),
            )
        })
        .collect();
    let size = volume.size_bytes;
    let same = command::blocking(STEP, "compare the replicas", move || {
        replicas::compare(&files, size)
    })
    .await?;
    Ok((
        (),
        format!(
            "{} compared in {} copies, equal; {} of data",
            size::format(size),
            same.copies,
            size::format(same.data)
        ),
    ))
}

async fn elsewhere(
    cluster: &Cluster,
    medium: &Medium,
    content: &medium::Content,
    written: &Written,
) -> Told<String> {
    let volume = cluster.client().volume(VOLUME).await?;
    let nodes = cluster.client().nodes().await?;
    let storage = || nodes.iter().filter(|n| n.kind == NodeKind::Storage);
    let holds = |node: &Node| volume.replicas.iter().any(|r| r.node == node.name);
    let node = storage().find(|n| !holds(n)).or_else(|| storage().next());
    let node = node.ok_or_else(|| Failure::new(Exit::NotFound, "there is no storage node"))?;
    let ask = AttachmentSpec {
        node: node.name.clone(),
        transport: medium.transport(),
        read_only: true,
        force: false,
    };
    cluster.client().attach(VOLUME, &ask).await?;
    let attachment = attached(&cluster.context(CREATE), VOLUME, &node.name).await?;
    let there = medium.moved(&attachment)?;
    let told = there.check(content, written).await?;
    there.leave(cluster.place()).await?;
    let copy = if holds(node) {
        "with a copy"
    } else {
        "without a copy"
    };
    Ok((node.name.clone(), format!("{}, {copy}: {told}", node.name)))
}

async fn delete(cluster: &Cluster, volume: &Volume, node: &str) -> Told<()> {
    cluster.client().detach(VOLUME, node, false).await?;
    detached(&cluster.context(CREATE), VOLUME, node).await?;
    cluster.client().delete_volume(VOLUME, false).await?;
    gone(&cluster.context(CREATE), VOLUME).await?;
    let left = volume
        .replicas
        .iter()
        .map(|r| replicas::data_file(&cluster.place().pool(&r.node), &volume.id, r.id));
    let left: Vec<String> = left
        .filter(|p| p.exists())
        .map(|p| p.display().to_string())
        .collect();
    if !left.is_empty() {
        return Err(Failure::failed("the volume is gone and its files are not").why(left.join("\n")));
    }
    let filter = Filter {
        node: None,
        volume: Some(VOLUME.to_owned()),
    };
    match cluster.client().replicas(&filter).await {
        Ok(replicas) if !replicas.is_empty() => Err(Failure::failed(
            "the volume is gone and replicas of it are listed",
        )),
        Ok(_) | Err(Error::NotFound { .. }) => Ok(((), "nothing is left of it".to_owned())),
        Err(error) => Err(error.into()),
    }
}
