//! The catalogue's row of a volume: as it travels ([`proto::Volume`]) and as the protocol core knows it
//! ([`VolumeRow`]). What comes from outside is checked here and nowhere else.

use std::collections::BTreeMap;

use serde_json::Value;
use stor_proto::satellite as proto;
use stor_replication::catalogue::{
    Change, EjectReason, MAX_REPLICAS, Member, MemberState, Refusal, VolumeRow, decide,
};
use stor_replication::ids::{ConfigSeq, Epoch, Lineage, ReplicaId, SnapshotId, View, VolumeId};
use stor_replication::range::{MAX_VOLUME, SECTOR};
use stor_replication::scrub::{Finding, ScrubReport};
use stor_right::SignedRight;
use thiserror::Error;
use uuid::Uuid;

/// A volume: its row and where its replicas are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// The row.
    pub row: VolumeRow,
    /// `host:port` of the servers of its replicas, where known.
    pub addresses: Vec<(ReplicaId, String)>,
    /// The right to run the engine of the row's epoch; empty unless this node owns the volume.
    pub right: SignedRight,
}

/// What a controller sent is not what it should be.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RowError {
    /// Not a UUID.
    #[error("{what} {text:?} is not a UUID")]
    NotAUuid {
        /// Which field.
        what: &'static str,
        /// Its text.
        text: String,
    },
    /// A part is missing.
    #[error("{what} is missing")]
    Absent {
        /// Which.
        what: &'static str,
    },
    /// More replicas than a volume can have, or the same one twice.
    #[error("volume {volume} has {count} replicas; at most {MAX_REPLICAS} different ones are possible")]
    Replicas {
        /// The volume.
        volume: VolumeId,
        /// How many were sent.
        count: usize,
    },
    /// Not a public key.
    #[error("a controller's signing key has {bytes} bytes; an Ed25519 key has 32")]
    Key {
        /// Its length.
        bytes: usize,
    },
    /// A number that does not fit.
    #[error("{what} is {number}")]
    OutOfRange {
        /// Which field.
        what: &'static str,
        /// Its value.
        number: u64,
    },
    /// A word of a later release.
    #[error("{what} {text:?} is unknown to this satellite")]
    Unknown {
        /// Which field.
        what: &'static str,
        /// Its text.
        text: String,
    },
}

/// Reads a volume's id.
pub fn volume_id(text: &str) -> Result<VolumeId, RowError> {
    uuid("volume id", text).map(VolumeId)
}

/// Reads a snapshot's id.
pub fn snapshot_id(text: &str) -> Result<SnapshotId, RowError> {
    uuid("snapshot id", text).map(SnapshotId)
}

/// Reads a lineage.
pub fn lineage(text: &str) -> Result<Lineage, RowError> {
    uuid("lineage", text).map(Lineage)
}

fn uuid(what: &'static str, text: &str) -> Result<Uuid, RowError> {
    Uuid::parse_str(text).map_err(|_| RowError::NotAUuid {
        what,
        text: text.to_owned(),
    })
}

/// Checks a volume's size.
pub fn size(bytes: u64) -> Result<u64, RowError> {
    if bytes == 0 || bytes > MAX_VOLUME || !bytes.is_multiple_of(SECTOR) {
        return Err(RowError::OutOfRange {
            what: "the size of a volume",
            number: bytes,
        });
    }
    Ok(bytes)
}

impl TryFrom<proto::Volume> for Volume {
    type Error = RowError;

    fn try_from(from: proto::Volume) -> Result<Self, RowError> {
        let volume = volume_id(&from.volume_id)?;
        let count = from.members.len();
        let mut replicas = BTreeMap::new();
        let mut addresses = Vec::new();
        for member in from.members {
            let replica = ReplicaId(member.replica);
            if !member.address.is_empty() {
                addresses.push((replica, member.address.clone()));
            }
            replicas.insert(replica, self::member(member)?);
        }
        if replicas.len() != count || count > MAX_REPLICAS {
            return Err(RowError::Replicas { volume, count });
        }
        let row = VolumeRow {
            volume,
            size: size(from.size_bytes)?,
            revision: from.revision,
            view: View {
                epoch: Epoch(from.epoch),
                config: ConfigSeq(from.config),
            },
            owner: (!from.owner.is_empty()).then_some(from.owner),
            clean: from.clean,
            clean_before: from.clean_before,
            lineage: lineage(&from.lineage)?,
            min_in_sync: u8::try_from(from.min_in_sync).map_err(|_| RowError::OutOfRange {
                what: "min_in_sync",
                number: from.min_in_sync.into(),
            })?,
            replicas,
        };
        Ok(Self {
            name: from.name,
            row,
            addresses,
            right: SignedRight::new(from.right),
        })
    }
}

fn member(from: proto::Member) -> Result<Member, RowError> {
    let state = if from.in_sync {
        MemberState::InSync
    } else {
        MemberState::Stale {
            since: from.ever_in_sync.then_some(ConfigSeq(from.since_config)),
            reason: eject_reason(&from.reason)?,
        }
    };
    Ok(Member {
        node: from.node,
        joined: from.ever_in_sync.then_some(ConfigSeq(from.joined_config)),
        state,
        leaving: from.leaving,
    })
}

fn eject_reason(text: &str) -> Result<EjectReason, RowError> {
    serde_json::from_value(Value::String(text.to_owned())).map_err(|_| RowError::Unknown {
        what: "the reason a replica is out of sync",
        text: text.to_owned(),
    })
}

/// The message that asks for a change.
pub fn change_message(volume: VolumeId, change: &Change) -> Result<proto::ChangeView, RowError> {
    use proto::change_view::Change as Message;
    let change = match change {
        Change::Restart { expect, .. } => Message::Restart(proto::Restart {
            expect_epoch: expect.0,
        }),
        Change::Detach { expect, clean } => Message::Detach(proto::Detach {
            expect_epoch: expect.0,
            clean: *clean,
        }),
        Change::Remove { expect, members } => Message::Remove(proto::Remove {
            expect_epoch: expect.epoch.0,
            expect_config: expect.config.0,
            members: members
                .iter()
                .map(|(replica, reason)| proto::Ejected {
                    replica: replica.0,
                    reason: reason.to_string(),
                })
                .collect(),
        }),
        Change::Add { expect, member } => Message::Add(proto::Add {
            expect_epoch: expect.epoch.0,
            expect_config: expect.config.0,
            replica: member.0,
        }),
        Change::SnapshotReady {
            expect,
            snapshot,
            members,
        } => Message::SnapshotReady(proto::SnapshotReady {
            expect_epoch: expect.epoch.0,
            expect_config: expect.config.0,
            snapshot_id: snapshot.to_string(),
            replicas: members.iter().map(|replica| replica.0).collect(),
        }),
        Change::SnapshotFailed {
            expect,
            snapshot,
            why,
            replica,
        } => Message::SnapshotFailed(proto::SnapshotFailed {
            expect_epoch: expect.0,
            snapshot_id: snapshot.to_string(),
            why: why.to_string(),
            replica: replica.map(|replica| replica.0),
        }),
        Change::Scrubbed { expect, report } => Message::Scrubbed(scrubbed(expect.0, report)),
        Change::Attach { .. } | Change::Place { .. } | Change::Leave { .. } | Change::Grow { .. } => {
            return Err(RowError::Unknown {
                what: "the change",
                text: "one that only controllers make".to_owned(),
            });
        }
    };
    Ok(proto::ChangeView {
        volume_id: volume.to_string(),
        change: Some(change),
    })
}

fn scrubbed(expect_epoch: u64, report: &ScrubReport) -> proto::Scrubbed {
    let numbers = |replicas: &[ReplicaId]| replicas.iter().map(|replica| replica.0).collect();
    let finding = |one: &Finding| proto::ScrubFinding {
        offset: one.offset,
        length: one.length,
        wrong: numbers(&one.wrong),
        unreadable: numbers(&one.unreadable),
        right: one.right.map(|replica| replica.0),
        agree: u32::from(one.agree),
        of: u32::from(one.of),
    };
    proto::Scrubbed {
        expect_epoch,
        run: report.run.0,
        reports: report.reports,
        cursor: report.cursor,
        findings: report.findings.iter().map(finding).collect(),
        mended: report.mended,
        left: report.left,
        end: match report.end {
            None => "",
            Some(end) => end.word(),
        }
        .to_owned(),
    }
}

/// Why a change was refused, given the row it was refused on. The message carries the code only; the rule
/// itself is the same code here as in the controller, so that asking it again gives the same answer with
/// all its fields.
pub fn refusal(row: &VolumeRow, change: &Change) -> Refusal {
    match decide(row, change) {
        Err(refusal) => refusal,
        // The row in the answer is later than the one that was judged.
        Ok(_) => Refusal::ViewChanged {
            expected: expected_view(row, change),
            current: row.view,
        },
    }
}

fn expected_view(row: &VolumeRow, change: &Change) -> View {
    match change {
        Change::Remove { expect, .. } | Change::Add { expect, .. } | Change::SnapshotReady { expect, .. } => {
            *expect
        }
        Change::Attach { expect, .. }
        | Change::Restart { expect, .. }
        | Change::Detach { expect, .. }
        | Change::SnapshotFailed { expect, .. }
        | Change::Scrubbed { expect, .. } => View {
            epoch: *expect,
            config: row.view.config,
        },
        Change::Place { .. } | Change::Leave { .. } | Change::Grow { .. } => row.view,
    }
}
