//! Copies of snapshots that are ready: made anew where a replica has none, removed where there is no replica, lost with
//! a node that is given up.

use stor_replication::ids::{ReplicaId, SnapshotId};

use super::node::count;
use super::snapshot::object;
use super::{Apply, Done, Weight};
use crate::catalogue::outcome::{Kind, Object, Outcome, Refused};
use crate::catalogue::row::Volume;
use crate::catalogue::snapshot::{self, Copy, CopyPhase, Snapshot, SnapshotPhase, Which};
use crate::catalogue::sql;

impl Apply<'_> {
    pub(super) async fn recopy_snapshot(&mut self, id: SnapshotId, replica: ReplicaId) -> Done {
        let (one, volume) = self.with_its_volume(id).await?;
        if one.copies.contains_key(&replica) {
            return Ok(Outcome::Unchanged);
        }
        let place = (volume.row.replicas.get(&replica)).zip(volume.places.get(&replica));
        let Some((member, place)) = place.filter(|_| one.lacks(&volume, replica)) else {
            let state = format!("is not to have a copy at replica {replica} now");
            let object = object(&one.volume_name, &one.name);
            return Err(Refused::State { object, state }.into());
        };
        if self.dry {
            return Ok(Outcome::Changed);
        }
        sqlx::query(sql::INSERT_SNAPSHOT_COPY)
            .bind(id.to_string())
            .bind(replica.0)
            .bind(&member.node)
            .bind(&place.pool)
            .execute(&mut *self.conn)
            .await?;
        self.touch(&member.node).await?;
        Ok(Outcome::Changed)
    }

    /// The row is looked at again: what its replicas hold may be another now.
    pub(super) async fn drop_copy(&mut self, id: SnapshotId, replica: ReplicaId) -> Done {
        let (one, volume) = self.with_its_volume(id).await?;
        let object = || object(&one.volume_name, &one.name);
        let Some(copy) = one
            .copies
            .get(&replica)
            .filter(|copy| copy.phase != CopyPhase::Deleting)
        else {
            return Ok(Outcome::Unchanged);
        };
        if !one.is_left_over(&volume, copy) {
            let state = format!("needs its copy on {}", copy.node);
            return Err(Refused::State {
                object: object(),
                state,
            }
            .into());
        }
        let users = snapshot::users_of(self.conn, id).await?;
        if users > 0 {
            let by = format!(
                "{} of another volume are being made of it",
                count(users, "replica")
            );
            return Err(Refused::InUse { object: object(), by }.into());
        }
        if self.dry {
            return Ok(Outcome::Changed);
        }
        self.set_copy(id, replica, CopyPhase::Deleting).await?;
        self.touch(&copy.node).await?;
        Ok(Outcome::Changed)
    }

    async fn with_its_volume(&mut self, id: SnapshotId) -> Done<(Snapshot, Volume)> {
        let found = snapshot::snapshot(self.conn, id).await?;
        let one = found.ok_or_else(|| Refused::NoSuch {
            object: Object::new(Kind::Snapshot, id.to_string()),
        })?;
        let volume = self.need_volume(one.volume).await?;
        Ok((one, volume))
    }

    pub(super) async fn copies_observed(
        &mut self,
        node: &str,
        gone: &[(SnapshotId, ReplicaId)],
        made: &[(SnapshotId, ReplicaId)],
    ) -> Done {
        let mut changed = false;
        for (id, replica) in gone {
            if self
                .copy_in(node, *id, *replica, CopyPhase::Deleting)
                .await?
                .is_none()
            {
                continue;
            }
            changed = true;
            if self.dry {
                continue;
            }
            sqlx::query(sql::DELETE_SNAPSHOT_COPY)
                .bind(id.to_string())
                .bind(replica.0)
                .execute(&mut *self.conn)
                .await?;
            self.touch(node).await?;
            self.end_removal(*id).await?;
        }
        for (id, replica) in made {
            let found = self.copy_in(node, *id, *replica, CopyPhase::Creating).await?;
            let Some(one) = found.filter(|one| one.phase == SnapshotPhase::Ready) else {
                continue;
            };
            changed = true;
            if self.dry {
                continue;
            }
            self.set_copy(*id, *replica, CopyPhase::Ready).await?;
            self.touch(node).await?;
            let message = format!("Snapshot {} has a copy on node {node} again.", one.title());
            let object = object(&one.volume_name, &one.name);
            self.event(Weight::Info, "snapshot-copied", &object, &message)
                .await?;
        }
        Ok(if changed {
            Outcome::Changed
        } else {
            Outcome::Unchanged
        })
    }

    /// The snapshot, if its copy of that name is on the node and in that phase.
    async fn copy_in(
        &mut self,
        node: &str,
        id: SnapshotId,
        replica: ReplicaId,
        phase: CopyPhase,
    ) -> Done<Option<Snapshot>> {
        let found = snapshot::snapshot(self.conn, id).await?;
        let is = |copy: &Copy| copy.node == node && copy.phase == phase;
        Ok(found.filter(|one| one.copies.get(&replica).is_some_and(is)))
    }

    /// Copies on a node or in a pool that is given up. By force they are forgotten, and a snapshot that had no other
    /// is lost: it stays, and says so.
    //= docs/replication.md#S7
    pub(super) async fn copies_left(
        &mut self,
        of: &Object,
        (node, pool): (&str, Option<&str>),
        force: bool,
    ) -> Done<()> {
        let copies = snapshot::copies_at(self.conn, node, pool).await?;
        if copies > 0 && !force {
            let by = format!("it holds {} of snapshots", count(copies, "file"));
            return Err(Refused::InUse {
                object: of.clone(),
                by,
            }
            .into());
        }
        if copies == 0 || self.dry {
            return Ok(());
        }
        let held = snapshot::snapshots(self.conn, Which::At(node, pool)).await?;
        sqlx::query(sql::DELETE_COPIES_AT)
            .bind(node)
            .bind(pool)
            .execute(&mut *self.conn)
            .await?;
        for one in held {
            match one.phase {
                SnapshotPhase::Ready => self.note_loss(one.id, node).await?,
                SnapshotPhase::Deleting => self.end_removal(one.id).await?,
                SnapshotPhase::Creating | SnapshotPhase::Taken | SnapshotPhase::Failed => {}
            }
        }
        Ok(())
    }

    async fn note_loss(&mut self, id: SnapshotId, node: &str) -> Done<()> {
        let Some(one) = snapshot::snapshot(self.conn, id).await? else {
            return Ok(());
        };
        if one.copies.values().any(|copy| copy.phase == CopyPhase::Ready) {
            return Ok(());
        }
        let why = format!("its last copy was on node {node}, which was given up");
        self.set_snapshot(&one, SnapshotPhase::Failed, &why).await?;
        self.remove_copies(&one).await?;
        let message = format!("Snapshot {} is lost: {why}.", one.title());
        let object = object(&one.volume_name, &one.name);
        self.event(Weight::Warning, "snapshot-lost", &object, &message)
            .await
    }
}
