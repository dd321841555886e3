//! Changes that wait for what nodes report: detached volumes let replicas go, volumes grow when their replicas have.

use stor_proto::satellite::ReplicaState;
use stor_replication::catalogue::MemberState;

use crate::catalogue::Action;
use crate::catalogue::row::{ReplicaPhase, Volume};
use crate::observed::Observations;

/// Replicas that were to go when their engine ended before it could let them. Of a volume that ended in order they go
/// when those that stay are there; of any other, healing starts an engine.
pub(super) fn leaving(volumes: &[Volume], seen: &Observations) -> Vec<Action> {
    let ready = |volume: &Volume| volume.row.owner.is_none() && volume.row.clean && !volume.doubt;
    let stay = |volume: &Volume| {
        let mut stay = volume
            .row
            .replicas
            .iter()
            .filter(|(_, member)| member.state == MemberState::InSync && !member.leaving);
        stay.all(|(id, member)| {
            let report = seen.replica(&member.node, volume.row.volume, *id);
            report.is_some_and(|report| report.state() == ReplicaState::Ready)
        })
    };
    let one = |volume: &Volume| {
        let replica = volume.row.replicas.iter().find(|(_, member)| member.leaving)?;
        Some(Action::LeaveReplica {
            volume: volume.row.volume,
            replica: *replica.0,
        })
    };
    let due = volumes.iter().filter(|volume| ready(volume) && stay(volume));
    due.filter_map(one).collect()
}

/// Volumes whose replicas are all as large as they are to be. One that is behind and away need not be: it grows when
/// it is back, before it is brought up to date.
//= docs/replication.md#G3
pub(super) fn growing(volumes: &[Volume], seen: &Observations) -> Vec<Action> {
    let grown = |volume: &Volume, size: u64| {
        volume.row.replicas.iter().all(|(id, member)| {
            let report = seen.replica(&member.node, volume.row.volume, *id);
            let place = volume.places.get(id);
            let made = place.is_some_and(|place| place.phase == ReplicaPhase::Ready);
            match report.filter(|report| report.state() == ReplicaState::Ready && made) {
                Some(report) => report.size_bytes >= size,
                None => member.state != MemberState::InSync,
            }
        })
    };
    let one = |volume: &Volume| {
        let size = volume
            .grow_to
            .filter(|size| !volume.doubt && grown(volume, *size))?;
        let volume = volume.row.volume;
        Some(Action::GrowVolume { volume, size })
    };
    volumes.iter().filter_map(one).collect()
}
