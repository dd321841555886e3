//! What nodes found damaged in the metadata of replicas and did without: told once, as an event.

use std::collections::BTreeSet;

use stor_replication::ids::{ReplicaId, VolumeId};

use crate::catalogue::Action;
use crate::observed::Observations;

/// Findings remembered as told. With more, the catalogue is asked again, which knows what was said.
const MOST: usize = 4096;
/// Findings told in one pass.
const BATCH: usize = 32;

/// What this leader has told.
#[derive(Debug, Default)]
pub(super) struct Mended {
    told: BTreeSet<(VolumeId, ReplicaId, u64)>,
}

impl Mended {
    /// What is to be told now. Told again by the next leader, and refused there for being known.
    pub(super) fn decide(&mut self, seen: &Observations) -> Vec<Action> {
        let mut actions = Vec::new();
        for (node, heard) in seen.nodes() {
            for key @ (volume, replica) in &heard.mended {
                let Some(report) = heard.replicas.get(key) else {
                    continue;
                };
                if actions.len() >= BATCH {
                    return actions;
                }
                if self.told.len() >= MOST {
                    self.told.clear();
                }
                if !self.told.insert((*volume, *replica, report.mended_at)) {
                    continue;
                }
                actions.push(Action::ReplicaMended {
                    node: node.to_owned(),
                    volume: *volume,
                    replica: *replica,
                    what: report.mended.clone(),
                    found: time(report.mended_at),
                });
            }
        }
        actions
    }
}

/// A node's clock may say anything.
fn time(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| "at an unknown time".to_owned(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Instant;

    use stor_proto::satellite::{ReplicaStatus, Status};
    use uuid::Uuid;

    use super::*;
    use crate::observed::Heard;

    fn seen(mended: &str, mended_at: u64) -> Observations {
        let report = Status {
            replicas: vec![ReplicaStatus {
                volume_id: Uuid::from_u128(1).to_string(),
                replica: 3,
                mended: mended.into(),
                mended_at,
                ..ReplicaStatus::default()
            }],
            ..Status::default()
        };
        let heard = Arc::new(Heard::new(report, Instant::now(), "then".into()));
        Observations::new(BTreeMap::from([("s1".to_owned(), heard)]), Instant::now())
    }

    #[test]
    fn each_finding_is_told_once() {
        let mut mended = Mended::default();
        assert_eq!(mended.decide(&seen("", 0)), []);
        let told = mended.decide(&seen("copy A was damaged", 60));
        let expected = Action::ReplicaMended {
            node: "s1".into(),
            volume: VolumeId(Uuid::from_u128(1)),
            replica: ReplicaId(3),
            what: "copy A was damaged".into(),
            found: "1970-01-01T00:01:00Z".into(),
        };
        assert_eq!(told, [expected]);
        assert_eq!(mended.decide(&seen("copy A was damaged", 60)), []);
        // Found when it was opened again.
        assert_eq!(mended.decide(&seen("copy A was damaged", 61)).len(), 1);
        assert_eq!(
            mended.decide(&seen("x", u64::MAX)).len(),
            1,
            "whatever its clock says"
        );
    }
}
