//! Detached volumes heal too: an engine without a device is started on a storage node that holds an in-sync
//! replica, brings the others up to date, makes the members equal after an unclean end, and is stopped.
//!
//! It is an attachment of its own purpose that gives way to a user's at once. It starts only when every in-sync
//! replica is there, so that healing never takes a member out of the set that was merely away.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use stor_proto::satellite::{EngineState, ReplicaState};
use stor_replication::catalogue::MemberState;
use stor_replication::ids::VolumeId;

use crate::catalogue::Action;
use crate::catalogue::command::{Attach, Purpose};
use crate::catalogue::row::{Volume, VolumePhase};
use crate::observed::Observations;

/// A need must last this long: a user who detaches here and attaches there comes first.
const DELAY: Duration = Duration::from_secs(2);
/// Pause after a healing that left something unhealed; doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);
/// An engine that has served this long and copies nothing has nothing to copy.
const QUIET: Duration = Duration::from_secs(3);
/// Engines that heal at the same time on one node.
const PER_NODE: usize = 4;

/// What the leader remembers between passes. Losing it costs some seconds.
#[derive(Debug, Default)]
pub(super) struct Healing {
    needs: BTreeMap<VolumeId, Need>,
    quiet: BTreeMap<VolumeId, Quiet>,
    /// Nodes taken for lost: their replicas are not waited for.
    pub(super) gone: BTreeSet<String>,
    /// Of these a snapshot is to be made, which needs an engine.
    snapping: BTreeSet<VolumeId>,
}

#[derive(Debug)]
struct Need {
    /// Not before then.
    start: Instant,
    /// After the next attempt.
    pause: Duration,
    attempted: bool,
}

/// An engine that reports no progress.
#[derive(Debug, PartialEq, Eq)]
struct Quiet {
    since: Instant,
    /// What it had copied by then.
    copied: (u64, u64, u64),
}

impl Healing {
    /// Volumes of which a snapshot is to be made: a detached one gets an engine for it at once, which stays until it
    /// is made.
    pub(super) fn wait_for(&mut self, snapping: BTreeSet<VolumeId>) {
        self.snapping = snapping;
    }

    /// Which engines to start and which to stop.
    pub(super) fn decide(
        &mut self,
        unhealed: &[Volume],
        being_healed: &[Volume],
        seen: &Observations,
        led: Duration,
        now: Instant,
    ) -> Vec<Action> {
        let mut actions = self.stops(being_healed, seen, led, now);
        actions.extend(self.starts(unhealed, being_healed, seen, now));
        actions
    }

    fn starts(
        &mut self,
        unhealed: &[Volume],
        being_healed: &[Volume],
        seen: &Observations,
        now: Instant,
    ) -> Vec<Action> {
        self.needs.retain(|id, _| {
            unhealed
                .iter()
                .chain(being_healed)
                .any(|volume| volume.row.volume == *id)
        });
        let mut busy: BTreeMap<String, usize> = BTreeMap::new();
        for owner in being_healed.iter().filter_map(|volume| volume.row.owner.clone()) {
            *busy.entry(owner).or_default() += 1;
        }
        let mut actions = Vec::new();
        for volume in unhealed {
            let snapping = self.snapping.contains(&volume.row.volume);
            let Some(node) = healer(volume, seen, &self.gone, snapping) else {
                continue;
            };
            let need = self.needs.entry(volume.row.volume).or_insert(Need {
                start: now + DELAY,
                pause: FIRST_PAUSE,
                attempted: false,
            });
            if need.attempted {
                // An attempt ended and left it unhealed.
                need.attempted = false;
                need.start = now + need.pause;
                need.pause = (need.pause * 2).min(LONGEST_PAUSE);
            }
            let load = busy.entry(node.clone()).or_default();
            if (now < need.start && !snapping) || *load >= PER_NODE {
                continue;
            }
            *load += 1;
            actions.push(Action::Attach(Attach {
                volume: volume.row.volume,
                node,
                expect: volume.row.view.epoch,
                force: false,
                transport: "none".into(),
                read_only: false,
                purpose: Purpose::Healing,
            }));
        }
        actions
    }

    fn stops(
        &mut self,
        being_healed: &[Volume],
        seen: &Observations,
        led: Duration,
        now: Instant,
    ) -> Vec<Action> {
        self.quiet
            .retain(|id, _| being_healed.iter().any(|volume| volume.row.volume == *id));
        let mut actions = Vec::new();
        for volume in being_healed {
            let id = volume.row.volume;
            if let Some(need) = self.needs.get_mut(&id) {
                need.attempted = true;
            }
            let Some(owner) = &volume.row.owner else { continue };
            let detach = |force| Action::Detach {
                volume: id,
                expect: volume.row.view.epoch,
                force,
            };
            if !seen.online(owner) {
                if seen.lost(owner, led) {
                    actions.push(detach(true));
                }
                continue;
            }
            let detaching = volume.attachment.as_ref().is_some_and(|a| a.detaching);
            if !detaching && self.is_done(volume, owner, seen, now) {
                actions.push(detach(false));
            }
        }
        actions
    }

    /// The engine has failed, or serves and has had nothing to copy for a while.
    fn is_done(&mut self, volume: &Volume, owner: &str, seen: &Observations, now: Instant) -> bool {
        let id = volume.row.volume;
        let Some(engine) = seen.engine(owner, id, volume.row.view.epoch.0) else {
            return false;
        };
        match engine.state() {
            EngineState::Failed | EngineState::Fenced => return true,
            EngineState::Serving => {}
            EngineState::Unspecified
            | EngineState::Starting
            | EngineState::Suspended
            | EngineState::Stopping => {
                self.quiet.remove(&id);
                return false;
            }
        }
        let copies = !engine.syncing.is_empty() || waiting(volume, seen) || lets_go(volume, seen);
        if copies || self.snapping.contains(&id) {
            self.quiet.remove(&id);
            return false;
        }
        let counters = engine.counters.unwrap_or_default();
        let copied = (
            counters.resynced_bytes,
            counters.repaired_bytes,
            volume.row.view.config.0,
        );
        let quiet = self.quiet.entry(id).or_insert(Quiet { since: now, copied });
        if quiet.copied != copied {
            *quiet = Quiet { since: now, copied };
        }
        now.saturating_duration_since(quiet.since) >= QUIET
    }
}

/// A replica that is there and not in sync.
fn waiting(volume: &Volume, seen: &Observations) -> bool {
    volume.row.replicas.iter().any(|(id, member)| {
        member.state != MemberState::InSync
            && seen
                .replica(&member.node, volume.row.volume, *id)
                .is_some_and(|report| report.state() == ReplicaState::Ready)
    })
}

/// A replica is to go, and those that stay are there.
fn lets_go(volume: &Volume, seen: &Observations) -> bool {
    let members = || {
        volume
            .row
            .in_sync()
            .filter_map(|id| Some((id, volume.row.replicas.get(&id)?)))
    };
    let mut stay = members().filter(|(_, member)| !member.leaving);
    members().any(|(_, member)| member.leaving)
        && stay.all(|(id, member)| {
            let report = seen.replica(&member.node, volume.row.volume, id);
            report.is_some_and(|report| report.state() == ReplicaState::Ready)
        })
}

/// The node that should heal a volume, when there is something to heal and it can be done.
fn healer(volume: &Volume, seen: &Observations, gone: &BTreeSet<String>, snapping: bool) -> Option<String> {
    let alone = volume.row.replicas.len() < 2 && !snapping;
    if volume.phase != VolumePhase::Available || volume.row.owner.is_some() || alone {
        return None;
    }
    if volume.doubt || seen.ahead_of(&volume.row).is_some() {
        return None;
    }
    let unequal = !volume.row.clean && volume.row.in_sync().count() > 1;
    if !unequal && !snapping && !waiting(volume, seen) {
        return None;
    }
    let mut first = None;
    for id in volume.row.in_sync() {
        let member = volume.row.replicas.get(&id)?;
        if gone.contains(&member.node) {
            continue;
        }
        let report = seen.replica(&member.node, volume.row.volume, id)?;
        if report.state() != ReplicaState::Ready {
            return None;
        }
        first.get_or_insert_with(|| member.node.clone());
    }
    first
}
