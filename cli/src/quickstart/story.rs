//! `quickstart --once`: the whole story by itself. Each step says what it measured; the first that fails ends
//! the story. Whatever happens, [`clean`] leaves no mount and no attachment behind.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use stor_api::client::{Error, Filter};
use stor_api::objects::{
    Attachment, AttachmentSpec, Counters, Node, NodeKind, Replica, Volume, VolumeSpec, VolumeState,
};
use stor_api::size;

use super::cluster::Cluster;
use super::fleet::{CLIENT, POOL};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::volume::{attached, created, detached, gone};
use crate::wait::{Look, seconds, until};

mod command;
mod image;
mod load;
mod medium;
mod nbd;
mod replicas;
mod teller;
mod tree;

use load::{Load, Written};
use medium::Medium;
use teller::Teller;

/// The volume of the story; one of that name from an earlier, broken story is deleted.
const VOLUME: &str = "once";
const SIZE: u64 = 1 << 30;
/// A step that takes longer has failed.
const STEP: Duration = Duration::from_mins(4);
const CREATE: Duration = Duration::from_mins(1);
/// An ejected replica shows within this time.
const NOTICED: Duration = Duration::from_mins(1);
const RESYNC: Duration = Duration::from_mins(3);
/// What was written less than 5 s ago may differ between copies and is copied to one that was away. The story
/// wants to show what is copied because it was missed, so that the fill is left behind first.
const SETTLE: Duration = Duration::from_secs(7);
/// Load before the kill, and after the cluster has noticed it.
const LOAD_BEFORE: Duration = Duration::from_secs(2);
const LOAD_AFTER: Duration = Duration::from_secs(3);

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
            kill(cluster, &volume, &medium),
        )
        .await?;
    let written = teller
        .step(
            "start it again, resync what it missed",
            STEP,
            come_back(cluster, outage),
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

/// A node that is away, and the load that goes on.
struct Outage {
    load: Load,
    node: String,
    /// Counters when it went.
    before: Counters,
}

async fn counters(cluster: &Cluster) -> Result<Counters, Failure> {
    let volume = cluster.client().volume(VOLUME).await?;
    let found = volume.attachments.first().map(|a| a.counters);
    found.ok_or_else(|| Failure::failed(format!("volume {VOLUME} is no longer attached")))
}

async fn kill(cluster: &Cluster, volume: &Volume, medium: &Medium) -> Told<Outage> {
    if volume.replicas.len() < 2 {
        return Err(
            Failure::failed("a volume with one copy has none to spare").help("run with --nodes 2 or more")
        );
    }
    let victim = volume.replicas.iter().find(|r| r.in_sync && r.node != CLIENT);
    let node = victim
        .map(|r| r.node.clone())
        .ok_or_else(|| Failure::failed("no replica is in sync"))?;
    let satellite = cluster.satellite(&node)?;
    tokio::time::sleep(SETTLE).await;
    let mut load = medium.load().await?;
    tokio::time::sleep(LOAD_BEFORE).await;
    let before = counters(cluster).await?;
    let calm = load.progress()?;
    let pid = satellite.pid().ok_or_else(|| satellite.ended())?;
    satellite.signal(rustix::process::Signal::KILL);
    until(
        &cluster.context(NOTICED),
        &format!("removal of the replica on {node}"),
        || async {
            let volume = cluster.client().volume(VOLUME).await?;
            let in_set = volume.replicas.iter().any(|r| r.node == node && r.in_sync);
            Ok(if in_set {
                Look::Pending("it is still in the in-sync set".to_owned(), None)
            } else {
                Look::Done(())
            })
        },
    )
    .await?;
    let noticed = load.progress()?.writes;
    tokio::time::sleep(LOAD_AFTER).await;
    let after = load.progress()?;
    if after.writes <= noticed {
        return Err(Failure::failed("no write was answered after the node was gone").why(format!(
            "{noticed} writes were answered until its replica was out of the in-sync set, none in the {} after",
            seconds(LOAD_AFTER)
        )));
    }
    let told = format!(
        "{node} (process {pid}); {} writes went on, longest stall {} ms (before the kill {} ms)",
        after.writes,
        after.longest.as_millis(),
        calm.longest.as_millis(),
    );
    Ok((Outage { load, node, before }, told))
}

async fn come_back(cluster: &Cluster, outage: Outage) -> Told<Written> {
    let Outage { load, node, before } = outage;
    let back = counters(cluster).await?;
    let begin = Instant::now();
    cluster.satellite(&node)?.start(&[]).await?;
    in_sync(cluster).await?;
    let took = begin.elapsed();
    let written = load.finish().await?;
    // Counters come with the node's next report.
    let resynced = until(
        &cluster.context(Duration::from_secs(15)),
        "count of resynced bytes",
        || async {
            let now = counters(cluster)
                .await?
                .resynced_bytes
                .saturating_sub(before.resynced_bytes);
            Ok(if now > 0 {
                Look::Done(now)
            } else {
                Look::Pending("none are reported".to_owned(), None)
            })
        },
    )
    .await?;
    let missed = back.written_bytes.saturating_sub(before.written_bytes);
    let told = format!(
        "in sync after {}; {} were written meanwhile, {} resynced of {}",
        seconds(took),
        size::format(missed),
        size::format(resynced),
        size::format(SIZE),
    );
    if resynced >= SIZE {
        return Err(Failure::failed("the whole volume was copied, not only what changed").why(told));
    }
    Ok((written, told))
}

/// Waits until every replica is in sync.
async fn in_sync(cluster: &Cluster) -> Result<Volume, Failure> {
    until(&cluster.context(RESYNC), "resync", || async {
        let volume = cluster.client().volume(VOLUME).await?;
        if volume.state == VolumeState::Healthy && volume.replicas.iter().all(|r| r.in_sync) {
            return Ok(Look::Done(volume));
        }
        let of = |r: &Replica| format!("{}: {:?} {}", r.node, r.state, r.reason);
        Ok(Look::Pending(
            volume.replicas.iter().map(of).collect::<Vec<_>>().join(", "),
            None,
        ))
    })
    .await
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
        transport: Some(medium.transport().to_owned()),
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
