//! The story's accident: a storage node is killed while something writes, and comes back later. Measures the
//! stall, and what is copied against what was missed.

use std::cell::Cell;
use std::time::{Duration, Instant};

use stor_api::objects::{Replica, Volume, VolumeState};
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
/// Counters come and stand still within this time.
const COUNTED: Duration = Duration::from_secs(20);
/// Counters that stood still this long are final.
const STEADY: Duration = Duration::from_millis(2500);
/// Load before the kill, and after the cluster has noticed it.
const LOAD_BEFORE: Duration = Duration::from_secs(2);
const LOAD_AFTER: Duration = Duration::from_secs(3);

/// A node that is away, and the load that goes on.
pub(super) struct Outage {
    load: Load,
    node: String,
    /// Writes of the load that were answered when it went.
    writes: u64,
    /// Bytes resynced until then.
    resynced: u64,
}

async fn resynced(cluster: &Cluster) -> Result<u64, Failure> {
    let volume = cluster.client().volume(VOLUME).await?;
    let found = volume.attachments.first().map(|a| a.counters.resynced_bytes);
    found.ok_or_else(|| Failure::failed(format!("volume {VOLUME} is no longer attached")))
}

/// What was resynced since `before`, once it does not grow any more: counters come with the reports of the
/// node, about every second.
async fn resynced_since(cluster: &Cluster, before: u64) -> Result<u64, Failure> {
    let last = Cell::new((0, Instant::now()));
    until(&cluster.context(COUNTED), "count of resynced bytes", || async {
        let now = resynced(cluster).await?.saturating_sub(before);
        let (seen, since) = last.get();
        if now != seen {
            last.set((now, Instant::now()));
        } else if now > 0 && since.elapsed() > STEADY {
            return Ok(Look::Done(now));
        }
        Ok(Look::Pending(format!("{now} so far"), None))
    })
    .await
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
    let resynced = resynced(cluster).await?;
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
    let outage = Outage {
        load,
        node,
        writes: calm.writes,
        resynced,
    };
    Ok((outage, told))
}

/// Starts the node again and waits until its replica has caught up.
pub(super) async fn come_back(cluster: &Cluster, outage: Outage) -> Told<Written> {
    let Outage {
        mut load,
        node,
        writes,
        resynced,
    } = outage;
    let missed = load.progress()?.bytes_since(writes);
    let begin = Instant::now();
    cluster.satellite(&node)?.start(&[]).await?;
    in_sync(cluster).await?;
    let took = begin.elapsed();
    let written = load.finish().await?;
    let resynced = resynced_since(cluster, resynced).await?;
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
