//! The leader's loop that turns what satellites report into commands: replicas that are there or gone, nodes that
//! came or went, engines whose node is lost, detached volumes that have something to heal.
//!
//! Decisions are pure functions over rows and observations ([`decide`], [`healing`]); each becomes a command
//! with its own preconditions, so that a leader that does not know it was replaced does no harm. Nothing
//! here is remembered that a new leader could not find out again.

mod changes;
mod clones;
mod decide;
mod doubts;
pub mod emptying;
#[cfg(test)]
mod emptying_tests;
mod healing;
mod mended;
mod scrubs;
mod snapshots;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use stor_raft::Leadership;
use tokio::sync::watch;

use crate::catalogue::Action;
use crate::catalogue::load::{self, Which};
use crate::catalogue::row::{Node, Volume};
use crate::catalogue::scrub::Scrub;
use crate::catalogue::snapshot;
use crate::cluster::{Cluster, Look, Trouble};
use crate::observed::Observations;
use crate::plan;
use crate::policy::Policy;
use clones::Clones;
use healing::Healing;
use mended::Mended;
use snapshots::Batches;

/// Even when nothing moves, time does: nodes go offline by silence.
const TICK: Duration = Duration::from_secs(1);
/// Reports that arrive together are one pass. Short, because creating a volume waits for it.
const GATHER: Duration = Duration::from_millis(2);
/// Proposals of one pass; the rest comes with the next.
const BATCH: usize = 256;
/// Between looks at which snapshots lack copies: that goes through all there are.
const EVEN_OUT: Duration = Duration::from_secs(1);

/// Runs as long as the Raft node does; works while it leads.
pub async fn run(cluster: Arc<Cluster>) {
    let mut leadership = cluster.raft.leadership();
    loop {
        if leadership.wait_for(|view| view.is_self).await.is_err() {
            return;
        }
        cluster.begin_leading();
        lead(&cluster, &mut leadership).await;
    }
}

async fn lead(cluster: &Cluster, leadership: &mut watch::Receiver<Leadership>) {
    let (mut applied, mut reports) = (cluster.raft.applied(), cluster.observed.changes());
    let (mut healing, mut batches, mut look_at) =
        (Healing::default(), Batches::default(), scrubs::Pace::default());
    let mut mended = Mended::default();
    let mut evened: Option<Instant> = None;
    let mut clones = Clones::default();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        applied.borrow_and_update();
        reports.borrow_and_update();
        let settled = cluster.settled();
        match actions(cluster, settled, &mut healing, &mut batches, &mut look_at).await {
            Ok(mut actions) => {
                actions.extend(mended.decide(&cluster.observed.look()));
                propose(cluster, actions).await;
            }
            Err(error) => tracing::error!(error = %error, "looking for work failed"),
        }
        match clones.tend(cluster).await {
            Ok(()) | Err(Trouble::NotLeader) => {}
            Err(error) => tracing::error!(error = %error, "looking for clones failed"),
        }
        if evened.is_none_or(|at| at.elapsed() >= EVEN_OUT) {
            evened = Some(Instant::now());
            match even_out(cluster).await {
                Ok(actions) => propose(cluster, actions).await,
                Err(error) => tracing::error!(error = %error, "looking for copies of snapshots failed"),
            }
        }
        let ended = tokio::select! {
            lost = leadership.wait_for(|view| !view.is_self) => { drop(lost); true }
            changed = applied.changed() => changed.is_err(),
            changed = reports.changed() => changed.is_err(),
            _ = tick.tick() => false,
        };
        if ended {
            return;
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// All there is to do now.
async fn actions(
    cluster: &Cluster,
    settled: bool,
    healing: &mut Healing,
    batches: &mut Batches,
    look_at: &mut scrubs::Pace,
) -> Result<Vec<Action>, Trouble> {
    let mut look = cluster.look_local().await?;
    let moving = load::moving(look.rows()).await?;
    let unready = load::pools_unready(look.rows()).await?;
    let nodes = load::nodes(look.rows()).await?;
    let mut detaching = load::volumes_which(look.rows(), Which::Detaching).await?;
    let leaving = load::volumes_which(look.rows(), Which::Leaving).await?;
    let growing = load::volumes_which(look.rows(), Which::Growing).await?;
    let mut unhealed = load::volumes_which(look.rows(), Which::Unhealed).await?;
    let moved = snapshot::snapshots(look.rows(), snapshot::Which::Moving).await?;
    for volume in load::volumes_which(look.rows(), Which::Snapping).await? {
        if !unhealed.iter().any(|known| known.row.volume == volume.row.volume) {
            unhealed.push(volume);
        }
    }
    for volume in load::volumes_which(look.rows(), Which::Scrubbing).await? {
        if !unhealed.iter().any(|known| known.row.volume == volume.row.volume) {
            unhealed.push(volume);
        }
    }
    let attached = load::volumes_which(look.rows(), Which::Attached).await?;
    let mut being_healed = load::volumes_which(look.rows(), Which::Healing).await?;
    // By a row in doubt nothing is decided.
    detaching.retain(|volume| !volume.doubt);
    being_healed.retain(|volume| !volume.doubt);
    let seen = look.seen.clone();
    let mut actions = decide::replicas(&moving, &seen);
    actions.extend(decide::pools(&unready, &seen));
    actions.extend(decide::connections(&nodes, &seen, settled));
    let led = cluster.led_for();
    actions.extend(decide::lost_owners(&detaching, &seen, led));
    let empty = emptying::nodes(&nodes, &seen, cluster.policy, settled, jiff::Timestamp::now());
    let gone = empty
        .iter()
        .filter(|empty| empty.lost)
        .map(|empty| empty.node.clone());
    healing.gone = gone.collect();
    actions.extend(batches.decide(&moved, &attached, &seen, Instant::now()));
    let mut needed = snapshots::wanted(&moved);
    let scrubbed = unhealed.iter().chain(&being_healed);
    let scrubbed = scrubbed.filter(|volume| volume.scrub.as_ref().is_some_and(Scrub::is_running));
    needed.extend(scrubbed.map(|volume| volume.row.volume));
    healing.wait_for(needed);
    actions.extend(healing.decide(&unhealed, &being_healed, &seen, led, Instant::now()));
    actions.extend(changes::leaving(&leaving, &seen));
    actions.extend(changes::growing(&growing, &seen));
    if !empty.is_empty() {
        actions.extend(emptying::actions(plan_emptying(&mut look, &empty).await?));
    }
    if settled && look_at.is_time(Instant::now()) {
        actions.extend(due_scrubs(&mut look, cluster.policy).await?);
    }
    actions.truncate(BATCH);
    actions.extend(doubts(&mut look, &nodes, &seen).await?);
    Ok(actions)
}

/// Copies of snapshots that are to be made anew, or to go.
async fn even_out(cluster: &Cluster) -> Result<Vec<Action>, Trouble> {
    let mut look = cluster.look_local().await?;
    let uneven = snapshot::snapshots(look.rows(), snapshot::Which::Uneven).await?;
    let ids: BTreeSet<String> = uneven.iter().map(|one| one.volume.to_string()).collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let volumes = load::volumes(look.rows(), &ids.into_iter().collect::<Vec<_>>()).await?;
    let mut actions = snapshots::even_out(&uneven, &volumes, &look.seen);
    actions.truncate(BATCH);
    Ok(actions)
}

/// Scrubs to begin and to give up.
async fn due_scrubs(look: &mut Look, policy: Policy) -> Result<Vec<Action>, Trouble> {
    let volumes = load::volumes_which(look.rows(), Which::All).await?;
    let mut classes = BTreeMap::new();
    for class in load::classes_page(look.rows(), "", u64::from(u32::MAX)).await? {
        classes.insert(class.wish.name.clone(), class);
    }
    let now = jiff::Timestamp::now();
    Ok(scrubs::decide(&volumes, &classes, &look.seen, policy, now))
}

/// What becomes of every replica on these nodes, in the order of volumes.
pub async fn plan_emptying(
    look: &mut Look,
    empty: &[emptying::Empty],
) -> Result<Vec<emptying::Step>, Trouble> {
    let mut volumes: BTreeMap<String, Volume> = BTreeMap::new();
    for empty in empty {
        let on = load::volumes_which(look.rows(), Which::On(&empty.node)).await?;
        volumes.extend(on.into_iter().map(|volume| (volume.name.clone(), volume)));
    }
    let mut classes = BTreeMap::new();
    for class in volumes.values().filter_map(|volume| volume.wish.class.clone()) {
        if let Some(found) = load::class(look.rows(), &class).await? {
            classes.insert(class, found.wish);
        }
    }
    let nodes = load::nodes(look.rows()).await?;
    let pools = load::pools(look.rows()).await?;
    let nodes = plan::nodes(&nodes, &pools, &look.seen);
    let volumes: Vec<Volume> = volumes.into_values().collect();
    Ok(emptying::steps(empty, &volumes, &classes, nodes))
}

/// Looked at only while something is in doubt: that goes through all that every node reports.
async fn doubts(look: &mut Look, nodes: &[Node], seen: &Observations) -> Result<Vec<Action>, Trouble> {
    if !load::keeps(look.rows()).await? {
        return Ok(Vec::new());
    }
    let Some(history) = load::history(look.rows()).await? else {
        return Ok(Vec::new());
    };
    let doubted = load::volumes_which(look.rows(), Which::Doubted).await?;
    let known = load::volume_ids(look.rows()).await?;
    Ok(doubts::decide(&doubted, &known, nodes, &history, seen))
}

/// Proposes all at once, so that they share a round of Raft.
async fn propose(cluster: &Cluster, actions: Vec<Action>) {
    let proposals = actions.into_iter().map(|action| async move {
        let told = format!("{action:?}");
        match cluster.propose(action).await {
            // The row moved on since it was read; the next pass sees it as it is.
            Ok(Err(refused)) => tracing::debug!(action = told, %refused, "work is out of date"),
            Ok(Ok(_)) | Err(Trouble::NotLeader) => {}
            Err(trouble) => tracing::warn!(action = told, error = %trouble, "work has no outcome yet"),
        }
    });
    join_all(proposals).await;
}
