//! Volumes made of what another volume holds. The wish is kept with the snapshot that is made for it, so that whoever
//! leads can go on with it: a snapshot, a volume of it, the snapshot goes; or nothing is left.

use stor_replication::ids::{SnapshotId, VolumeId};
use uuid::Uuid;

use super::node::count;
use super::snapshot::{MOST, object};
use super::{Apply, Done, Weight, json};
use crate::catalogue::command::{CloneWish, NewSnapshot};
use crate::catalogue::load;
use crate::catalogue::outcome::{Kind, Object, Outcome, Refused};
use crate::catalogue::snapshot::{self, Snapshot, SnapshotPhase, Which};
use crate::catalogue::sql;

impl Apply<'_> {
    pub(super) async fn clone_volume(&mut self, batch: Uuid, new: &NewSnapshot, into: &CloneWish) -> Done {
        let volume = self.snapshot_of(new).await?;
        let of = volume.row.volume;
        if let Some(there) = load::volume_named(self.conn, &into.name).await? {
            if snapshot::clone_of(self.conn, there.row.volume).await? == Some(of.to_string()) {
                return Ok(Outcome::Unchanged);
            }
            let difference = format!("it was not made of volume {}", volume.name);
            let object = Object::new(Kind::Volume, &into.name);
            return Err(Refused::Exists { object, difference }.into());
        }
        let known = snapshot::snapshots(self.conn, Which::Of(of)).await?;
        if let Some(one) = known.iter().find(|one| one.name == new.name && one.is_live()) {
            if one.clone.as_ref().is_some_and(|wish| wish.is_like(into)) {
                return Ok(Outcome::Unchanged);
            }
            let difference = format!("it was not made for volume {}, or in another way", into.name);
            let object = object(&volume.name, &new.name);
            return Err(Refused::Exists { object, difference }.into());
        }
        if known.len() >= MOST {
            let state = format!(
                "has {}, and no more are possible",
                count(known.len() as u64, "snapshot")
            );
            let object = Object::new(Kind::Volume, &volume.name);
            return Err(Refused::State { object, state }.into());
        }
        if self.dry {
            return Ok(Outcome::Created);
        }
        self.insert_snapshot(batch, new, &volume).await?;
        sqlx::query(sql::SET_CLONE)
            .bind(json(into)?)
            .bind(new.id.to_string())
            .execute(&mut *self.conn)
            .await?;
        let message = format!(
            "Volume {} is to be made of what volume {} holds.",
            into.name, volume.name
        );
        let object = Object::new(Kind::Volume, &into.name);
        self.event(Weight::Info, "volume-cloning", &object, &message)
            .await?;
        Ok(Outcome::Created)
    }

    /// The volume that a snapshot was made for is there, or is on its way by itself.
    pub(super) async fn note_clone(&mut self, one: &Snapshot, made: VolumeId) -> Done<()> {
        if one.clone.as_ref().is_none_or(|wish| wish.id != made) {
            return Ok(());
        }
        sqlx::query(sql::SET_CLONE_MADE)
            .bind(one.id.to_string())
            .execute(&mut *self.conn)
            .await?;
        sqlx::query(sql::SET_CLONE_OF)
            .bind(one.volume.to_string())
            .bind(made.to_string())
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    pub(super) async fn fail_clone(&mut self, id: SnapshotId, why: &str) -> Done {
        let found = snapshot::snapshot(self.conn, id).await?;
        let waits = |one: &Snapshot| one.phase == SnapshotPhase::Ready && !one.clone_made;
        let Some(one) = found.filter(|one| one.clone.is_some() && waits(one)) else {
            return Ok(Outcome::Unchanged);
        };
        if self.dry {
            return Ok(Outcome::Changed);
        }
        self.set_snapshot(&one, SnapshotPhase::Failed, why).await?;
        self.remove_copies(&one).await?;
        let name = one.clone.as_ref().map_or("", |wish| wish.name.as_str());
        let message = format!("Volume {name} was not made of volume {}: {why}.", one.volume_name);
        let object = object(&one.volume_name, &one.name);
        self.event(Weight::Warning, "volume-not-cloned", &object, &message)
            .await?;
        Ok(Outcome::Changed)
    }
}
