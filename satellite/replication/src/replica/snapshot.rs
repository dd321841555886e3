//! A copy of all data at one moment, for a snapshot.
//!
//! Made when no write is under way in the disk, answered when it is durable. It says nothing of the replica: that it
//! could not be made is no failure of the disk. Copies are not known here; the node's agent keeps and removes them.

use super::{Command, DiskAction, Parked, Replica, SnapshotError, reply};
use crate::body::Body;
use crate::ids::{ConnId, SnapshotId};
use crate::info::Reader;
use crate::time::Time;
use crate::wire::{Header, Kind, Status};

impl<P: Clone> Replica<P> {
    pub(super) fn ask_snapshot(
        &mut self,
        now: Time,
        conn: ConnId,
        header: Header,
        body: Body<P>,
        out: &mut Vec<Command<P>>,
    ) {
        let Some(snapshot) = id(&body) else {
            return reply(out, conn, &header, Status::Invalid);
        };
        if header.kind == Kind::MaySnapshot {
            return self.disk_action(now, conn, header, DiskAction::MaySnapshot(snapshot), out);
        }
        self.snapshots.push_back(Parked {
            conn,
            header,
            body,
            arrived: now,
        });
    }

    /// Begins what waited for the disk.
    //= docs/replication.md#S2
    pub(super) fn begin_snapshots(&mut self, out: &mut Vec<Command<P>>) {
        if self.snapshots.is_empty() {
            return;
        }
        let writes = |header: &Header| matches!(header.kind, Kind::Write | Kind::Zero);
        let busy = self.disk.values().any(|running| writes(&running.header)) || !self.parked.is_empty();
        if busy && !defect!(SnapshotWhileWriting) {
            return;
        }
        for Parked {
            conn,
            header,
            body,
            arrived,
        } in std::mem::take(&mut self.snapshots)
        {
            // Looked at when it came.
            if let Some(snapshot) = id(&body) {
                self.disk_action(arrived, conn, header, DiskAction::Snapshot(snapshot), out);
            }
        }
    }

    pub(super) fn snapshot_done(
        &mut self,
        op: u64,
        result: Result<(), SnapshotError>,
        out: &mut Vec<Command<P>>,
    ) {
        let Some(asked) = self.awaited(op) else { return };
        let status = match result {
            Ok(()) => return self.answer(asked.arrived, asked.conn, &asked.header, Body::None, out),
            Err(SnapshotError::Unknown) => Status::SnapshotUnknown,
            Err(SnapshotError::Unsupported) => Status::SnapshotUnsupported,
            Err(SnapshotError::NoSpace) => Status::NoSpace,
            Err(SnapshotError::Failed) => Status::SnapshotFailed,
        };
        reply(out, asked.conn, &asked.header, status);
    }
}

fn id<P>(body: &Body<P>) -> Option<SnapshotId> {
    let mut from = Reader(body.bytes());
    let id = from.uuid()?;
    from.0.is_empty().then_some(SnapshotId(id))
}
