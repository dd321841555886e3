//! The story's accident: a storage node is killed while something writes, and comes back later. Measures the
//! stall, and what is copied against what was missed.

use std::time::{Duration, Instant};

use stor_api::objects::{Counters, Replica, Volume, VolumeState};
use stor_api::size;

use super::super::cluster::Cluster;
use super::super::fleet::CLIENT;
use super::load::{Load, Written};
use super::medium::Medium;
use super::{SIZE, Told, VOLUME};
use crate::failure::Failure;
use crate::wait::{Look, seconds, until};

/// An ejected replica shows within this time.
const NOTICED: Duration = Duration::from_mins(1);
const RESYNC: Duration = Duration::from_mins(3);
/// What was written less than 5 s ago may differ between copies and is copied to one that was away. The story
/// wants to show what is copied because it was missed, so that the fill is left behind first.
const SETTLE: Duration = Duration::from_secs(7);
/// Load before the kill, and after the cluster has noticed it.
const LOAD_BEFORE: Duration = Duration::from_secs(2);
const LOAD_AFTER: Duration = Duration::from_secs(3);

/// A node that is away, and the load that goes on.
pub(super) struct Outage {
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

/// Kills a node that holds a replica, while something writes.
pub(super) async fn kill(cluster: &Cluster, volume: &Volume, medium: &Medium) -> Told<Outage> {
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
        "{node} (process {pid}); writes go on, {} answered and none failed, longest stall {} ms (before it {} ms)",
        after.writes,
        after.longest.as_millis(),
        calm.longest.as_millis(),
    );
    Ok((Outage { load, node, before }, told))
}

/// Starts the node again and waits until its replica has caught up.
pub(super) async fn come_back(cluster: &Cluster, outage: Outage) -> Told<Written> {
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
