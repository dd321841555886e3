//! Between the catalogue's rows and the messages of `satellite.proto`.

use std::collections::BTreeMap;
use std::str::FromStr;

use stor_proto::satellite as proto;
use stor_replication::catalogue::{Change, MAX_REPLICAS, MemberState, Refusal, SnapshotTrouble, VolumeRow};
use stor_replication::ids::{ConfigSeq, Epoch, ReplicaId, ScrubRun, SnapshotId, View, VolumeId};
use stor_replication::scrub::{Finding, ScrubEnd, ScrubReport};
use thiserror::Error;
use uuid::Uuid;

use crate::catalogue::command::{Probe, Seen};
use crate::catalogue::load::eject_reason;

/// `host:port` of the replica servers by node.
pub type Addresses = BTreeMap<String, String>;

/// What a satellite sent that is not of the protocol.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    /// Not an id.
    #[error("{0:?} is not the id of a volume")]
    VolumeId(String),
    /// Not an id.
    #[error("{0:?} is not the id of a snapshot")]
    SnapshotId(String),
    /// Not a reason.
    #[error("{0:?} is not a reason to eject a replica")]
    Reason(String),
    /// More than anybody has to say.
    #[error("a report of a scrub with too many places")]
    TooMuch,
    /// A message without its content.
    #[error("the request asks for nothing this version knows")]
    Empty,
}

/// The volume as engines get it.
pub fn volume(row: &VolumeRow, name: &str, addresses: &Addresses) -> proto::Volume {
    let members = row
        .replicas
        .iter()
        .map(|(replica, member)| {
            let (in_sync, since, reason) = match member.state {
                MemberState::InSync => (true, None, String::new()),
                MemberState::Stale { since, reason } => (false, since, reason.to_string()),
            };
            proto::Member {
                replica: replica.0,
                node: member.node.clone(),
                address: addresses.get(&member.node).cloned().unwrap_or_default(),
                in_sync,
                ever_in_sync: member.joined.is_some(),
                since_config: since.map_or(0, |config| config.0),
                reason,
                joined_config: member.joined.map_or(0, |config| config.0),
                leaving: member.leaving,
            }
        })
        .collect();
    proto::Volume {
        volume_id: row.volume.to_string(),
        name: name.to_owned(),
        size_bytes: row.size,
        revision: row.revision,
        epoch: row.view.epoch.0,
        config: row.view.config.0,
        owner: row.owner.clone().unwrap_or_default(),
        clean: row.clean,
        clean_before: row.clean_before,
        lineage: row.lineage.to_string(),
        min_in_sync: u32::from(row.min_in_sync),
        members,
        // By whoever may give it.
        right: Vec::new(),
    }
}

/// A volume's id.
pub(crate) fn volume_id(text: &str) -> Result<VolumeId, Malformed> {
    Uuid::from_str(text)
        .map(VolumeId)
        .map_err(|_| Malformed::VolumeId(text.chars().take(80).collect()))
}

/// A snapshot's id.
pub(crate) fn snapshot_id(text: &str) -> Result<SnapshotId, Malformed> {
    Uuid::from_str(text)
        .map(SnapshotId)
        .map_err(|_| Malformed::SnapshotId(cut(text)))
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

fn snapshot_trouble(word: &str) -> Option<SnapshotTrouble> {
    use SnapshotTrouble::{DiskFailed, Disturbed, NoSpace, NotSupported, Stopped, TimedOut};
    [TimedOut, Disturbed, NotSupported, NoSpace, DiskFailed, Stopped]
        .into_iter()
        .find(|trouble| trouble.to_string() == word)
}

/// The change a node asks for. `caller` is the node of the session: no node speaks for another.
pub fn change(ask: &proto::ChangeView, caller: &str) -> Result<(VolumeId, Change), Malformed> {
    use proto::change_view::Change as Ask;
    let view = |epoch, config| View {
        epoch: Epoch(epoch),
        config: ConfigSeq(config),
    };
    let change = match ask.change.as_ref().ok_or(Malformed::Empty)? {
        Ask::Restart(restart) => Change::Restart {
            owner: caller.to_owned(),
            expect: Epoch(restart.expect_epoch),
        },
        Ask::Detach(detach) => Change::Detach {
            expect: Epoch(detach.expect_epoch),
            clean: detach.clean,
        },
        Ask::Remove(remove) => Change::Remove {
            expect: view(remove.expect_epoch, remove.expect_config),
            members: remove
                .members
                .iter()
                .map(|member| {
                    let reason = eject_reason(&member.reason)
                        .ok_or_else(|| Malformed::Reason(member.reason.chars().take(80).collect()))?;
                    Ok((ReplicaId(member.replica), reason))
                })
                .collect::<Result<_, Malformed>>()?,
        },
        Ask::Add(add) => Change::Add {
            expect: view(add.expect_epoch, add.expect_config),
            member: ReplicaId(add.replica),
        },
        Ask::SnapshotReady(ready) => Change::SnapshotReady {
            expect: view(ready.expect_epoch, ready.expect_config),
            snapshot: snapshot_id(&ready.snapshot_id)?,
            members: ready.replicas.iter().copied().map(ReplicaId).collect(),
        },
        Ask::SnapshotFailed(failed) => Change::SnapshotFailed {
            expect: Epoch(failed.expect_epoch),
            snapshot: snapshot_id(&failed.snapshot_id)?,
            why: snapshot_trouble(&failed.why).ok_or_else(|| Malformed::Reason(cut(&failed.why)))?,
            replica: failed.replica.map(ReplicaId),
        },
        Ask::Scrubbed(told) => Change::Scrubbed {
            expect: Epoch(told.expect_epoch),
            report: scrub_report(told)?,
        },
    };
    Ok((volume_id(&ask.volume_id)?, change))
}

/// Most places in one report: the sectors of a block.
const MOST_FINDINGS: usize = 16;

fn scrub_report(told: &proto::Scrubbed) -> Result<ScrubReport, Malformed> {
    let small = |number: u32| u8::try_from(number).unwrap_or(u8::MAX);
    let numbers = |replicas: &[u32]| replicas.iter().copied().map(ReplicaId).collect();
    let finding = |one: &proto::ScrubFinding| Finding {
        offset: one.offset,
        length: one.length,
        wrong: numbers(&one.wrong),
        unreadable: numbers(&one.unreadable),
        right: one.right.map(ReplicaId),
        agree: small(one.agree),
        of: small(one.of),
    };
    let few = |one: &proto::ScrubFinding| one.wrong.len().max(one.unreadable.len()) <= MAX_REPLICAS;
    if told.findings.len() > MOST_FINDINGS || !told.findings.iter().all(few) {
        return Err(Malformed::TooMuch);
    }
    Ok(ScrubReport {
        run: ScrubRun(told.run),
        reports: told.reports,
        cursor: told.cursor,
        findings: told.findings.iter().map(finding).collect(),
        mended: told.mended,
        left: told.left,
        end: match told.end.as_str() {
            "" => None,
            end => Some(ScrubEnd::from_word(end).ok_or_else(|| Malformed::Reason(cut(end)))?),
        },
    })
}

/// A refusal's code.
pub fn refusal_code(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Attached { .. } => "attached",
        Refusal::NotAttached => "not-attached",
        Refusal::NotOwner { .. } => "not-owner",
        Refusal::ViewChanged { .. } => "view-changed",
        Refusal::TooFewInSync { .. } => "too-few-in-sync",
        Refusal::NoSuchReplica { .. } => "no-such-replica",
        Refusal::SnapshotIncomplete { .. } => "snapshot-incomplete",
        Refusal::NoSuchSnapshot { .. } => "no-such-snapshot",
        Refusal::NoSuchScrub { .. } => "no-such-scrub",
        Refusal::NothingToDo { .. } => "nothing-to-do",
        Refusal::TooManyReplicas { .. } => "too-many-replicas",
        Refusal::Smaller { .. } => "smaller",
    }
}

/// What a node's first message says of it.
pub fn seen(hello: &proto::Hello) -> Seen {
    Seen {
        data_address: (!hello.data_address.is_empty()).then(|| hello.data_address.clone()),
        version: hello.version.clone(),
        boot_id: hello.boot_id.clone(),
        transports: hello
            .transports
            .iter()
            .map(|probe| Probe {
                name: probe.name.clone(),
                available: probe.available,
                remedy: probe.remedy.clone(),
            })
            .collect(),
    }
}
