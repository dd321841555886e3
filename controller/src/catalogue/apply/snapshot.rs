//! Snapshots: asked for, made, failed, removed. Who may say that one is ready is decided by
//! `stor_replication::catalogue::decide` on the volume's row; here is what becomes of the snapshot's own.

use stor_replication::catalogue::{Change, Refusal, SnapshotTrouble};
use stor_replication::ids::{ReplicaId, SnapshotId};
use uuid::Uuid;

use super::history::known;
use super::node::count;
use super::{Apply, Done, Weight, expect_revision};
use crate::catalogue::command::NewSnapshot;
use crate::catalogue::load::{self, integer};
use crate::catalogue::outcome::{Kind, Object, Outcome, Refused};
use crate::catalogue::row::{ReplicaPhase, Volume, VolumePhase};
use crate::catalogue::snapshot::{self, CopyPhase, Snapshot, SnapshotPhase, Which};
use crate::catalogue::sql;

/// Snapshots of one volume; each is a file per replica and a line of what nodes are told.
pub(super) const MOST: usize = 1024;

pub(super) fn object(volume: &str, name: &str) -> Object {
    Object::new(Kind::Snapshot, format!("{volume}@{name}"))
}

impl Apply<'_> {
    pub(super) async fn create_snapshots(&mut self, batch: Uuid, wanted: &[NewSnapshot]) -> Done {
        let mut volumes = Vec::new();
        let mut there = 0;
        for new in wanted {
            let volume = self.snapshot_of(new).await?;
            let known = snapshot::snapshots(self.conn, Which::Of(volume.row.volume)).await?;
            there += usize::from(known.iter().any(|one| one.name == new.name && one.is_live()));
            if known.len() >= MOST {
                let state = format!(
                    "has {}, and no more are possible",
                    count(known.len() as u64, "snapshot")
                );
                let object = Object::new(Kind::Volume, &new.volume);
                return Err(Refused::State { object, state }.into());
            }
            volumes.push(volume);
        }
        if there == wanted.len() {
            return Ok(Outcome::Unchanged);
        }
        if there > 0 {
            let first = wanted.first().map_or("?", |new| new.name.as_str());
            let state = "is of another moment: some of these snapshots are there, some are not".into();
            let object = Object::new(Kind::Snapshot, first);
            return Err(Refused::State { object, state }.into());
        }
        if self.dry {
            return Ok(Outcome::Created);
        }
        for (new, volume) in wanted.iter().zip(&volumes) {
            self.insert_snapshot(batch, new, volume).await?;
        }
        Ok(Outcome::Created)
    }

    pub(super) async fn snapshot_of(&mut self, new: &NewSnapshot) -> Done<Volume> {
        let object = Object::new(Kind::Volume, &new.volume);
        let found = load::volume_named(self.conn, &new.volume).await?;
        let volume = found.ok_or_else(|| Refused::NoSuch {
            object: object.clone(),
        })?;
        known(&volume)?;
        let state = match volume.phase {
            VolumePhase::Available => return Ok(volume),
            VolumePhase::Creating => "is still being created",
            VolumePhase::Deleting => "is being deleted",
        };
        let state = state.to_owned();
        Err(Refused::State { object, state }.into())
    }

    pub(super) async fn insert_snapshot(
        &mut self,
        batch: Uuid,
        new: &NewSnapshot,
        volume: &Volume,
    ) -> Done<()> {
        // What became of an earlier one of that name was seen by whoever asks for it again.
        for old in snapshot::snapshots(self.conn, Which::Of(volume.row.volume)).await? {
            if old.name == new.name && old.phase == SnapshotPhase::Failed {
                self.begin_removal(&old).await?;
            }
        }
        let id = new.id.to_string();
        sqlx::query(sql::INSERT_SNAPSHOT)
            .bind(&id)
            .bind(volume.row.volume.to_string())
            .bind(&volume.name)
            .bind(&new.name)
            .bind(integer(volume.row.size))
            .bind(batch.to_string())
            .bind(integer(self.index))
            .bind(self.at)
            .bind(integer(self.index))
            .execute(&mut *self.conn)
            .await?;
        for (replica, member) in &volume.row.replicas {
            let Some(place) = volume.places.get(replica) else {
                continue;
            };
            if place.phase != ReplicaPhase::Ready {
                continue;
            }
            sqlx::query(sql::INSERT_SNAPSHOT_COPY)
                .bind(&id)
                .bind(replica.0)
                .bind(&member.node)
                .bind(&place.pool)
                .execute(&mut *self.conn)
                .await?;
            self.touch(&member.node).await?;
        }
        if let Some(owner) = &volume.row.owner {
            self.touch(owner).await?;
        }
        Ok(())
    }

    pub(super) async fn go_snapshots(&mut self, batch: Uuid) -> Done {
        let all = snapshot::snapshots(self.conn, Which::Batch(batch)).await?;
        let waits = !all.is_empty()
            && all
                .iter()
                .all(|one| one.phase == SnapshotPhase::Creating && one.holds());
        if !waits {
            return Ok(Outcome::Unchanged);
        }
        if self.dry {
            return Ok(Outcome::Changed);
        }
        sqlx::query(sql::SNAPSHOTS_GO)
            .bind(integer(self.index))
            .bind(batch.to_string())
            .execute(&mut *self.conn)
            .await?;
        for one in &all {
            self.touch_snapshot(one).await?;
        }
        Ok(Outcome::Changed)
    }

    pub(super) async fn fail_snapshots(&mut self, batch: Uuid, why: &str) -> Done {
        let all = snapshot::snapshots(self.conn, Which::Batch(batch)).await?;
        if !all.iter().any(|one| one.phase == SnapshotPhase::Creating) {
            return Ok(Outcome::Unchanged);
        }
        if !self.dry {
            self.fail_batch(&all, why).await?;
        }
        Ok(Outcome::Changed)
    }

    /// All that were asked for together are void: what there is of them goes.
    async fn fail_batch(&mut self, all: &[Snapshot], why: &str) -> Done<()> {
        for one in all.iter().filter(|one| one.is_live()) {
            self.set_snapshot(one, SnapshotPhase::Failed, why).await?;
            self.remove_copies(one).await?;
            let message = format!("Snapshot {} was not made: {why}.", one.title());
            let object = object(&one.volume_name, &one.name);
            self.event(Weight::Warning, "snapshot-failed", &object, &message)
                .await?;
        }
        Ok(())
    }

    /// What an engine says of a snapshot, judged on the volume's row before. `Err`: nothing may be changed by it.
    pub(super) async fn check_snapshot(
        &mut self,
        volume: &Volume,
        change: &Change,
    ) -> Done<Option<Snapshot>> {
        let (Change::SnapshotReady { snapshot: id, .. } | Change::SnapshotFailed { snapshot: id, .. }) =
            change
        else {
            return Ok(None);
        };
        let found = snapshot::snapshot(self.conn, *id).await?;
        let found = found.filter(|one| one.volume == volume.row.volume && one.is_live());
        let is_ready = matches!(change, Change::SnapshotReady { .. });
        match found {
            // One of a group was told to go before it may be made.
            Some(one) if one.phase == SnapshotPhase::Creating && !(is_ready && one.holds()) => Ok(Some(one)),
            // Asked again: its answer was lost.
            Some(one) if one.phase != SnapshotPhase::Creating && is_ready => Ok(Some(one)),
            _ => Err(Refused::View {
                refusal: Refusal::NoSuchSnapshot { snapshot: *id },
                row: Box::new(volume.row.clone()),
            }
            .into()),
        }
    }

    /// Does what the change says.
    pub(super) async fn snapshot_told(
        &mut self,
        volume: &Volume,
        one: &Snapshot,
        change: &Change,
    ) -> Done<()> {
        if one.phase != SnapshotPhase::Creating {
            return Ok(());
        }
        let batch = snapshot::snapshots(self.conn, Which::Batch(one.batch)).await?;
        match change {
            Change::SnapshotReady { members, .. } => self.snapshot_taken(one, &batch, members).await,
            Change::SnapshotFailed { why, replica, .. } => {
                let node = replica.and_then(|replica| volume.row.replicas.get(&replica));
                let why = in_words(*why, node.map(|member| member.node.as_str()));
                self.fail_batch(&batch, &why).await
            }
            _ => Ok(()),
        }
    }

    async fn snapshot_taken(
        &mut self,
        one: &Snapshot,
        batch: &[Snapshot],
        members: &[ReplicaId],
    ) -> Done<()> {
        for replica in one.copies.keys() {
            let phase = if members.contains(replica) {
                CopyPhase::Ready
            } else {
                CopyPhase::Deleting
            };
            self.set_copy(one.id, *replica, phase).await?;
        }
        self.set_snapshot(one, SnapshotPhase::Taken, "").await?;
        self.touch_snapshot(one).await?;
        let others = batch.iter().filter(|other| other.id != one.id);
        if !others.clone().all(|other| other.phase == SnapshotPhase::Taken) {
            return Ok(());
        }
        for one in batch {
            self.set_snapshot(one, SnapshotPhase::Ready, "").await?;
            let message = format!("Snapshot {} is ready.", one.title());
            let object = object(&one.volume_name, &one.name);
            self.event(Weight::Info, "snapshot-ready", &object, &message)
                .await?;
        }
        Ok(())
    }

    pub(super) async fn delete_snapshot(&mut self, id: SnapshotId, expect: Option<u64>) -> Done {
        let Some(one) = snapshot::snapshot(self.conn, id).await? else {
            let object = Object::new(Kind::Snapshot, id.to_string());
            return Err(Refused::NoSuch { object }.into());
        };
        if one.phase == SnapshotPhase::Deleting {
            return Ok(Outcome::Unchanged);
        }
        let object = object(&one.volume_name, &one.name);
        expect_revision(&object, expect, one.revision)?;
        let users = snapshot::users_of(self.conn, id).await?;
        if users > 0 {
            let by = format!(
                "{} of another volume are being made of it",
                count(users, "replica")
            );
            return Err(Refused::InUse { object, by }.into());
        }
        if self.dry {
            return Ok(Outcome::Changed);
        }
        if one.phase == SnapshotPhase::Creating || one.phase == SnapshotPhase::Taken {
            let batch = snapshot::snapshots(self.conn, Which::Batch(one.batch)).await?;
            self.fail_batch(&batch, "it was deleted while it was being made")
                .await?;
        }
        self.begin_removal(&one).await?;
        let message = format!("Snapshot {} is being deleted.", one.title());
        self.event(Weight::Info, "snapshot-deleting", &object, &message)
            .await?;
        Ok(Outcome::Changed)
    }

    /// Every copy goes, and the snapshot with the last of them.
    pub(super) async fn begin_removal(&mut self, one: &Snapshot) -> Done<()> {
        self.set_snapshot(one, SnapshotPhase::Deleting, "").await?;
        self.remove_copies(one).await?;
        self.end_removal(one.id).await?;
        Ok(())
    }

    pub(super) async fn end_removal(&mut self, id: SnapshotId) -> Done<()> {
        let found = snapshot::snapshot(self.conn, id).await?;
        if let Some(one) = found.filter(|one| one.phase == SnapshotPhase::Deleting && one.copies.is_empty()) {
            sqlx::query(sql::DELETE_SNAPSHOT)
                .bind(one.id.to_string())
                .execute(&mut *self.conn)
                .await?;
            let message = format!("Snapshot {} is gone with all its copies.", one.title());
            let object = object(&one.volume_name, &one.name);
            self.event(Weight::Info, "snapshot-deleted", &object, &message)
                .await?;
        }
        Ok(())
    }

    /// Refuses while a volume has snapshots that somebody may want.
    pub(super) async fn without_snapshots(&mut self, volume: &Volume) -> Done<Vec<Snapshot>> {
        let all = snapshot::snapshots(self.conn, Which::Of(volume.row.volume)).await?;
        let live = all.iter().filter(|one| one.is_live()).count();
        if live > 0 {
            let by = format!(
                "it has {}; delete these first, or say --snapshots",
                count(live as u64, "snapshot")
            );
            let object = Object::new(Kind::Volume, &volume.name);
            return Err(Refused::InUse { object, by }.into());
        }
        Ok(all)
    }

    /// What is left of snapshots of a volume that goes.
    pub(super) async fn remove_rest(&mut self, rest: &[Snapshot]) -> Done<()> {
        for one in rest.iter().filter(|one| one.phase == SnapshotPhase::Failed) {
            self.begin_removal(one).await?;
        }
        Ok(())
    }

    /// The catalogue is older than what there is: a snapshot it knows as being made may have been ready for long. It is
    /// neither made again in its place nor removed before somebody says so.
    pub(super) async fn keep_snapshots(&mut self) -> Done<()> {
        sqlx::query(sql::KEEP_SNAPSHOT_COPIES)
            .execute(&mut *self.conn)
            .await?;
        sqlx::query(sql::FAIL_SNAPSHOTS)
            .bind("the catalogue was restored from a backup of the time it was being made; its copies may be whole")
            .bind(integer(self.index))
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    pub(super) async fn remove_copies(&mut self, one: &Snapshot) -> Done<()> {
        for (replica, copy) in &one.copies {
            self.set_copy(one.id, *replica, CopyPhase::Deleting).await?;
            self.touch(&copy.node).await?;
        }
        self.touch_snapshot(one).await
    }

    pub(super) async fn set_snapshot(
        &mut self,
        one: &Snapshot,
        phase: SnapshotPhase,
        reason: &str,
    ) -> Done<()> {
        sqlx::query(sql::UPDATE_SNAPSHOT)
            .bind(phase.word())
            .bind(reason)
            .bind(integer(self.index))
            .bind(one.id.to_string())
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    pub(super) async fn set_copy(
        &mut self,
        id: SnapshotId,
        replica: ReplicaId,
        phase: CopyPhase,
    ) -> Done<()> {
        sqlx::query(sql::UPDATE_SNAPSHOT_COPY)
            .bind(phase.word())
            .bind(id.to_string())
            .bind(replica.0)
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    /// Whoever keeps or makes it may have something else to do now.
    async fn touch_snapshot(&mut self, one: &Snapshot) -> Done<()> {
        for copy in one.copies.values() {
            self.touch(&copy.node).await?;
        }
        let volume = load::volume(self.conn, one.volume).await?;
        if let Some(owner) = volume.and_then(|volume| volume.row.owner) {
            self.touch(&owner).await?;
        }
        Ok(())
    }
}

fn in_words(why: SnapshotTrouble, node: Option<&str>) -> String {
    let at = node.map_or(String::new(), |node| format!(" on node {node}"));
    match why {
        SnapshotTrouble::TimedOut => {
            "its replicas had not all finished after 5 s, for which writes may be held".to_owned()
        }
        SnapshotTrouble::Disturbed => {
            format!("a replica{at} left, came back or refused in the middle of it; ask again")
        }
        SnapshotTrouble::NotSupported => format!(
            "the pool of the replica{at} can't share blocks between files: use XFS made with reflink=1, btrfs, or an LVM thin pool"
        ),
        SnapshotTrouble::NoSpace => format!("the pool of the replica{at} has not enough room"),
        SnapshotTrouble::DiskFailed => {
            format!("the copy{at} could not be made; its satellite's log says why")
        }
        SnapshotTrouble::Stopped => "the volume's engine ended in the middle of it; ask again".to_owned(),
    }
}
