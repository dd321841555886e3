//! Volumes, their replicas and attachments.

use stor_api::objects::{
    Attachment, AttachmentState, Counters, Replica, ReplicaState, Scrub, ScrubState, Volume, VolumeState,
};
use stor_proto::satellite::{EngineState, EngineStatus, ReplicaState as Reported, ReplicaStatus};
use stor_replication::catalogue::MemberState;
use stor_replication::ids::ReplicaId;

use crate::behind;
use crate::catalogue::command::Purpose;
use crate::catalogue::{row, scrub as row_scrub};
use crate::observed::{LOST_AFTER, Observations};

/// A volume with all that belongs to it.
pub fn volume(row: &row::Volume, seen: &Observations) -> Volume {
    let replicas = replicas(row, seen);
    let (state, mut reason) = volume_health(row, &replicas, seen);
    let attachment = user_attachment(row, seen);
    // Seen from outside all may be well, and yet nobody gets at it. One that failed or is in doubt has a reason of its
    // own, which the attachment would only repeat.
    if let Some(attachment) = &attachment
        && attachment.state == AttachmentState::Attaching
        && !attachment.reason.is_empty()
        && !matches!(state, VolumeState::Failed | VolumeState::CatalogueBehind)
    {
        let waits = format!("being attached on {}: {}", attachment.node, attachment.reason);
        reason = if reason.is_empty() {
            waits
        } else {
            format!("{waits}; {reason}")
        };
    }
    Volume {
        name: row.name.clone(),
        id: row.row.volume.to_string(),
        size_bytes: row.row.size,
        growing_to_bytes: row.grow_to,
        class: row.wish.class.clone(),
        state,
        reason,
        epoch: row.row.view.epoch.0,
        config: row.row.view.config.0,
        min_in_sync: row.row.min_in_sync,
        replicas,
        attachments: attachment.into_iter().collect(),
        scrub: row.scrub.as_ref().map(|is| scrub(row, is, seen)),
        created: row.created.clone(),
        revision: row.row.revision,
    }
}

/// The scrub of a volume: what is kept of it, and how far its engine says it is.
fn scrub(row: &row::Volume, is: &row_scrub::Scrub, seen: &Observations) -> Scrub {
    use row_scrub::ScrubPhase;
    let state = match is.phase {
        ScrubPhase::Running => ScrubState::Running,
        ScrubPhase::Complete => ScrubState::Complete,
        ScrubPhase::TooMuch => ScrubState::TooMuch,
        ScrubPhase::Cancelled => ScrubState::Cancelled,
        ScrubPhase::Overdue => ScrubState::Overdue,
    };
    let told = engine(row, seen).and_then(|engine| engine.scrub.as_ref());
    let told = told.filter(|told| told.run == is.run && is.is_running());
    let compared = told
        .map_or(is.cursor, |told| told.cursor.max(is.cursor))
        .min(row.row.size);
    let reason = match told {
        _ if !is.is_running() => String::new(),
        Some(told) => told.waits.clone(),
        None if row.row.owner.is_none() => {
            "an engine is started for it as soon as all replicas in sync are there".to_owned()
        }
        None => "its engine has not taken it up yet".to_owned(),
    };
    Scrub {
        run: is.run,
        state,
        reason,
        scheduled: is.scheduled,
        check_only: !is.mend,
        percent: percent(compared, row.row.size),
        compared_bytes: compared,
        bytes_per_second: is.rate,
        found: is.found,
        chosen: is.chosen,
        mended: is.mended,
        remaining: is.remaining,
        begun: is.begun.clone(),
        ended: is.ended.clone(),
        last_complete: is.completed.clone(),
        unacknowledged: is.open,
    }
}

/// The engine of the present epoch, as its node reports it.
fn engine<'a>(row: &row::Volume, seen: &'a Observations) -> Option<&'a EngineStatus> {
    seen.engine(row.row.owner.as_deref()?, row.row.volume, row.row.view.epoch.0)
}

/// The replicas of a volume.
pub fn replicas(row: &row::Volume, seen: &Observations) -> Vec<Replica> {
    row.row
        .replicas
        .keys()
        .filter_map(|id| replica(row, *id, seen))
        .collect()
}

fn replica(row: &row::Volume, id: ReplicaId, seen: &Observations) -> Option<Replica> {
    let (member, place) = (row.row.replicas.get(&id)?, row.places.get(&id)?);
    let in_sync = member.state == MemberState::InSync;
    let report = seen.replica(&member.node, row.row.volume, id);
    let progress = engine(row, seen).and_then(|engine| engine.syncing.iter().find(|p| p.replica == id.0));
    let (state, reason) = if place.phase == row::ReplicaPhase::Deleting {
        let reason = if seen.online(&member.node) {
            report.and_then(failure).unwrap_or_default()
        } else {
            format!("node {} is not connected", member.node)
        };
        (ReplicaState::Deleting, reason)
    } else if !seen.online(&member.node) {
        (
            ReplicaState::Offline,
            if seen.unheard(&member.node) {
                format!("nothing was heard yet of node {}", member.node)
            } else {
                format!("node {} is not connected", member.node)
            },
        )
    } else if let Some(error) = report.and_then(failure) {
        let beyond_help = report.is_some_and(|report| report.beyond_help);
        let reason = if beyond_help {
            format!("{error}; {}", replace(row, id))
        } else {
            error
        };
        (ReplicaState::Failed, reason)
    } else if place.phase == row::ReplicaPhase::Creating {
        (ReplicaState::Creating, String::new())
    } else {
        match member.state {
            MemberState::InSync => (ReplicaState::InSync, String::new()),
            MemberState::Stale { reason, .. } if progress.is_some() => {
                (ReplicaState::Syncing, reason.to_string())
            }
            MemberState::Stale { reason, .. } => (ReplicaState::Stale, reason.to_string()),
        }
    };
    let syncing = progress.filter(|_| state == ReplicaState::Syncing);
    Some(Replica {
        volume: row.name.clone(),
        id: id.0,
        node: member.node.clone(),
        pool: place.pool.clone(),
        state,
        in_sync,
        reason,
        allocated_bytes: seen
            .last(&member.node)
            .and_then(|heard| heard.replicas.get(&(row.row.volume, id)))
            .map_or(0, |report| report.allocated_bytes),
        resync_percent: match member.state {
            MemberState::InSync => Some(100.0),
            MemberState::Stale { .. } => syncing.map(|p| percent(p.done_bytes, p.total_bytes)),
        },
        resync_left_bytes: syncing.map(|p| p.total_bytes.saturating_sub(p.done_bytes)),
        leaving: member.leaving,
        replaces: place.replaces.map(|old| old.0),
    })
}

/// One decimal, as people read it.
#[expect(clippy::cast_precision_loss, reason = "at most 1000 tenths")]
fn percent(done: u64, total: u64) -> f64 {
    if total == 0 {
        return 100.0;
    }
    let tenths = u128::from(done.min(total)) * 1000 / u128::from(total);
    tenths as f64 / 10.0
}

/// Why a replica can't be used, when its node says so.
pub(super) fn failure(report: &ReplicaStatus) -> Option<String> {
    match report.state() {
        Reported::Failed if report.error.is_empty() => Some("its node reports a failure".into()),
        Reported::Failed => Some(report.error.clone()),
        Reported::Missing => Some("its files are missing".into()),
        Reported::Unspecified | Reported::Ready | Reported::Deleted | Reported::Found => None,
    }
}

/// In the reason of a replica whose files are of no use any more, before the command that replaces it.
pub(super) const REPLACE: &str = "replace it: ";
/// The same where there is nothing to copy from.
pub(super) const LAST: &str = "no other replica has every write";

/// What to do about a replica whose files are of no use any more.
fn replace(row: &row::Volume, id: ReplicaId) -> String {
    let others = row.row.in_sync().filter(|other| *other != id).count();
    if others == 0 {
        return LAST.to_owned();
    }
    let name = &row.name;
    format!(
        "{REPLACE}storctl replica remove {name} --id {}, then storctl replica add {name}",
        id.0
    )
}

/// State of a volume and why it is not healthy.
pub fn volume_health(row: &row::Volume, replicas: &[Replica], seen: &Observations) -> (VolumeState, String) {
    let waiting = |state: ReplicaState| -> String {
        let nodes: Vec<String> = replicas
            .iter()
            .filter(|replica| replica.state != state)
            .map(|replica| match replica.reason.as_str() {
                reason if replica.state == ReplicaState::Stale => {
                    format!("replica on {} is stale (left the set: {reason})", replica.node)
                }
                "" => format!("replica on {} is {}", replica.node, word(replica.state)),
                reason => format!(
                    "replica on {} is {} ({reason})",
                    replica.node,
                    word(replica.state)
                ),
            })
            .collect();
        nodes.join("; ")
    };
    match row.phase {
        row::VolumePhase::Creating if row.doubt => {}
        row::VolumePhase::Creating => {
            return (VolumeState::Creating, held_up(replicas));
        }
        row::VolumePhase::Deleting => {
            return (VolumeState::Deleting, held_up(replicas));
        }
        row::VolumePhase::Available => {}
    }
    let behind = behind::in_short(row, seen);
    if let Some(reason) = behind.clone().filter(|_| row.doubt) {
        return (VolumeState::CatalogueBehind, reason);
    }
    if let Some(engine) = engine(row, seen) {
        match engine.state() {
            EngineState::Failed => return (VolumeState::Failed, engine.reason.clone()),
            EngineState::Suspended => return (VolumeState::Suspended, engine.reason.clone()),
            EngineState::Unspecified
            | EngineState::Starting
            | EngineState::Serving
            | EngineState::Fenced
            | EngineState::Stopping => {}
        }
    }
    let served = engine(row, seen).is_some_and(|engine| engine.state() == EngineState::Serving);
    if let Some(reason) = behind {
        return (VolumeState::CatalogueBehind, reason);
    }
    if !replicas
        .iter()
        .any(|replica| replica.state == ReplicaState::InSync)
    {
        let why = waiting(ReplicaState::InSync);
        // It goes on; that no controller hears the nodes of its replicas is another matter.
        if served {
            return (VolumeState::Degraded, why);
        }
        let unheard = |replica: &Replica| replica.in_sync && seen.unheard(&replica.node);
        if replicas.iter().any(unheard) {
            return (VolumeState::Unknown, why);
        }
        let reason = format!("no replica with all writes can be reached: {why}");
        return (VolumeState::Failed, reason);
    }
    if replicas
        .iter()
        .all(|replica| replica.state == ReplicaState::InSync)
    {
        return (VolumeState::Healthy, String::new());
    }
    (VolumeState::Degraded, waiting(ReplicaState::InSync))
}

/// For whom a volume that is being made or deleted waits, and why.
fn held_up(replicas: &[Replica]) -> String {
    let each: Vec<String> = replicas
        .iter()
        .filter(|replica| !replica.reason.is_empty())
        .map(|replica| {
            let prefix = format!("node {}", replica.node);
            if replica.reason.starts_with(&prefix) {
                replica.reason.clone()
            } else {
                format!("{prefix}: {}", replica.reason)
            }
        })
        .collect();
    if each.is_empty() {
        return String::new();
    }
    format!("waits: {}", each.join("; "))
}

fn word(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::Creating => "being created",
        ReplicaState::InSync => "in sync",
        ReplicaState::Stale => "stale",
        ReplicaState::Syncing => "syncing",
        ReplicaState::Offline => "offline",
        ReplicaState::Failed => "failed",
        ReplicaState::Deleting => "being deleted",
    }
}

/// The attachment as a user sees it: one that only heals is the cluster's own affair.
pub fn user_attachment(row: &row::Volume, seen: &Observations) -> Option<Attachment> {
    let is = row.attachment.as_ref().filter(|is| is.purpose == Purpose::User)?;
    attachment(row, is, seen)
}

/// An attachment.
pub fn attachment(row: &row::Volume, is: &row::Attachment, seen: &Observations) -> Option<Attachment> {
    let node = row.row.owner.clone()?;
    let engine = engine(row, seen);
    let (state, reason) = if !seen.online(&node) {
        let wait = if is.detaching {
            format!(
                "; its engine is taken for lost after {} s, with force at once",
                LOST_AFTER.as_secs()
            )
        } else {
            String::new()
        };
        (
            AttachmentState::Unknown,
            format!("node {node} is not connected{wait}"),
        )
    } else if seen.node(&node).is_none() {
        // A new leader that has not heard it yet.
        (
            AttachmentState::Unknown,
            format!("node {node} has not reported yet"),
        )
    } else if is.detaching {
        (
            AttachmentState::Detaching,
            engine.map_or_else(String::new, |e| e.reason.clone()),
        )
    } else {
        engine.map_or((AttachmentState::Attaching, String::new()), |engine| {
            let state = match engine.state() {
                EngineState::Unspecified | EngineState::Starting => AttachmentState::Attaching,
                EngineState::Serving => AttachmentState::Attached,
                EngineState::Suspended => AttachmentState::Suspended,
                EngineState::Fenced | EngineState::Failed => AttachmentState::Failed,
                EngineState::Stopping => AttachmentState::Detaching,
            };
            (state, engine.reason.clone())
        })
    };
    Some(Attachment {
        volume: row.name.clone(),
        node,
        transport: is.transport.clone(),
        read_only: is.read_only,
        device: engine.map_or_else(String::new, |e| e.device.clone()),
        nbd_uri: engine.map_or_else(String::new, |e| e.nbd_uri.clone()),
        epoch: row.row.view.epoch.0,
        state,
        reason,
        counters: engine
            .and_then(|e| e.counters)
            .map_or_else(Counters::default, |c| Counters {
                reads: c.reads,
                read_bytes: c.read_bytes,
                writes: c.writes,
                written_bytes: c.written_bytes,
                flushes: c.flushes,
                resynced_bytes: c.resynced_bytes,
                repaired_bytes: c.repaired_bytes,
                snapshots: c.snapshots,
                held_last_us: c.held_last_us,
                held_longest_us: c.held_longest_us,
            }),
    })
}
