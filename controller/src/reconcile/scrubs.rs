//! Scrubs that are due, and those that don't come to their end.
//!
//! One at a time on each node: a volume's turn comes when none of its replicas' nodes is at another. Who waits longest
//! comes first. A scrub somebody asked for begins at once and is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use stor_replication::catalogue::MemberState;

use crate::catalogue::Action;
use crate::catalogue::row::{Class, Volume, VolumePhase};
use crate::catalogue::scrub::Scrub;
use crate::observed::Observations;
use crate::policy::Policy;

/// One that has not ended by then is given up; the next begins when it is due.
const OVERDUE: Duration = Duration::from_hours(14 * 24);
/// Begun in one pass.
const AT_ONCE: usize = 16;

/// Between looks: each goes through all volumes, and nothing of it is urgent.
const EVERY: Duration = Duration::from_mins(1);

/// When the leader looks next.
#[derive(Debug, Default)]
pub(super) struct Pace {
    next: Option<Instant>,
}

impl Pace {
    pub(super) fn is_time(&mut self, now: Instant) -> bool {
        if self.next.is_some_and(|next| now < next) {
            return false;
        }
        self.next = Some(now + EVERY);
        true
    }
}

/// Which to begin and which to give up.
pub(super) fn decide(
    volumes: &[Volume],
    classes: &BTreeMap<String, Class>,
    seen: &Observations,
    policy: Policy,
    now: Timestamp,
) -> Vec<Action> {
    let mut actions: Vec<Action> = volumes.iter().filter_map(|volume| overdue(volume, now)).collect();
    let running = volumes.iter().filter(|volume| is_running(volume));
    let mut busy: BTreeSet<&str> = running.flat_map(nodes).collect();
    let mut due: Vec<(Timestamp, &Volume)> = volumes
        .iter()
        .filter(|volume| !is_running(volume) && may_begin(volume, seen))
        .filter_map(|volume| Some((is_due(volume, classes, policy, now)?, volume)))
        .collect();
    due.sort_by_key(|(since, volume)| (*since, volume.name.as_str()));
    for (_, volume) in due {
        if actions.len() >= AT_ONCE {
            break;
        }
        if nodes(volume).any(|node| busy.contains(node)) {
            continue;
        }
        busy.extend(nodes(volume));
        actions.push(Action::StartScrub {
            volume: volume.name.clone(),
            scheduled: true,
            mend: true,
            rate: policy.scrub_rate,
        });
    }
    actions
}

fn is_running(volume: &Volume) -> bool {
    volume.scrub.as_ref().is_some_and(Scrub::is_running)
}

fn nodes(volume: &Volume) -> impl Iterator<Item = &str> {
    volume.row.replicas.values().map(|member| member.node.as_str())
}

fn overdue(volume: &Volume, now: Timestamp) -> Option<Action> {
    let scrub = volume.scrub.as_ref().filter(|scrub| scrub.is_running())?;
    (since(&scrub.begun, now)? >= OVERDUE).then(|| Action::EndScrub {
        volume: volume.name.clone(),
        run: Some(scrub.run),
        overdue: true,
    })
}

fn since(time: &str, now: Timestamp) -> Option<Duration> {
    let time: Timestamp = time.parse().ok()?;
    Duration::try_from(now.duration_since(time)).ok()
}

/// It has copies to compare, and all of them are there.
fn may_begin(volume: &Volume, seen: &Observations) -> bool {
    let there = |node: &str| seen.node(node).is_some();
    let in_sync = volume
        .row
        .replicas
        .values()
        .all(|member| member.state == MemberState::InSync && there(&member.node));
    volume.phase == VolumePhase::Available && !volume.doubt && volume.row.replicas.len() > 1 && in_sync
}

/// When it was last compared, or made, if that is too long ago.
fn is_due(
    volume: &Volume,
    classes: &BTreeMap<String, Class>,
    policy: Policy,
    now: Timestamp,
) -> Option<Timestamp> {
    let class = volume.wish.class.as_ref().and_then(|class| classes.get(class));
    let days = class.and_then(|class| class.wish.scrub_days);
    let days = days.unwrap_or(policy.scrub_days);
    let scrub = volume.scrub.as_ref();
    // One that was ended or given up had its turn.
    let last = [Some(&volume.created), scrub.map(|scrub| &scrub.begun)];
    let last: Timestamp = last
        .into_iter()
        .flatten()
        .filter_map(|at| at.parse().ok())
        .max()?;
    let age = Duration::try_from(now.duration_since(last)).ok()?;
    (days > 0 && age >= Duration::from_hours(24 * u64::from(days))).then_some(last)
}

#[cfg(test)]
#[path = "scrubs_tests.rs"]
#[allow(clippy::indexing_slicing, reason = "tests")]
mod tests;
