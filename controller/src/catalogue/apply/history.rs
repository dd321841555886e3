//! Histories of the catalogue, and rows that are older than the data.
//!
//! A restore from a backup begins a history in which no row is trusted. A row in doubt decides nothing: no attach, no
//! change of its view, no removal. It is trusted again when the leader has heard everything that could hold a
//! later view, or made what the replicas say by an adoption.

use stor_replication::catalogue::EjectReason;
use stor_replication::ids::{ConfigSeq, Epoch, View, VolumeId};

use super::{Apply, Done, Weight, json};
use crate::catalogue::command::{Adoption, NewHistory, VolumeWish};
use crate::catalogue::load::{self, Which, integer};
use crate::catalogue::outcome::{Kind, Object, Outcome, Refused};
use crate::catalogue::row::{Volume, VolumePhase};
use crate::catalogue::sql;

/// Refuses what must not be decided by a row in doubt.
pub(super) fn known(volume: &Volume) -> Result<(), Refused> {
    if volume.doubt {
        return Err(Refused::Behind {
            object: Object::new(Kind::Volume, &volume.name),
        });
    }
    Ok(())
}

/// Whether `seen` is above `row` in either part. Both only ever rise, so that either alone proves a later change.
pub fn is_above(seen: View, row: View) -> bool {
    seen.epoch > row.epoch || seen.config > row.config
}

impl Apply<'_> {
    /// A volume whose row can be decided by.
    pub(super) async fn need_known(&mut self, id: VolumeId) -> Done<Volume> {
        let volume = self.need_volume(id).await?;
        known(&volume)?;
        Ok(volume)
    }

    pub(super) async fn begin_history(&mut self, new: &NewHistory) -> Done {
        let current = load::history(self.conn).await?;
        if current.is_some_and(|history| history.id == new.id) {
            return Ok(Outcome::Unchanged);
        }
        if self.dry {
            return Ok(Outcome::Changed);
        }
        sqlx::query(sql::BEGIN_HISTORY)
            .bind(new.id.to_string())
            .bind(self.at)
            .execute(&mut *self.conn)
            .await?;
        sqlx::query(sql::DOUBT_ALL)
            .bind(integer(self.index))
            .execute(&mut *self.conn)
            .await?;
        self.keep_snapshots().await?;
        self.touch_all().await?;
        let object = Object::new(Kind::Cluster, new.id.to_string());
        let message = format!(
            "The catalogue was restored from a backup of {} (entry {}).",
            new.backup_at, new.backup_index
        );
        self.event(Weight::Warning, "catalogue-restored", &object, &message)
            .await?;
        Ok(Outcome::Changed)
    }

    pub(super) async fn doubt_volumes(&mut self, seen: &[(VolumeId, View)]) -> Done {
        let mut changed = false;
        for (id, view) in seen {
            let Some(volume) = load::volume(self.conn, *id).await? else {
                continue;
            };
            // The proposer may have looked at rows older than these.
            if volume.doubt || volume.phase == VolumePhase::Deleting || !is_above(*view, volume.row.view) {
                continue;
            }
            changed = true;
            if self.dry {
                continue;
            }
            self.set_doubt(*id, true).await?;
            let object = Object::new(Kind::Volume, &volume.name);
            let message = format!(
                "Volume {} is locked: view {view} was seen, the catalogue has {}.",
                volume.name, volume.row.view
            );
            self.event(Weight::Warning, "volume-locked", &object, &message)
                .await?;
        }
        self.doubts_changed(changed).await
    }

    pub(super) async fn trust_volumes(&mut self, volumes: &[(VolumeId, View)]) -> Done {
        let mut changed = false;
        for (id, view) in volumes {
            let Some(volume) = load::volume(self.conn, *id).await? else {
                continue;
            };
            if !volume.doubt || volume.row.view != *view {
                continue;
            }
            changed = true;
            if self.dry {
                continue;
            }
            self.set_doubt(*id, false).await?;
            let object = Object::new(Kind::Volume, &volume.name);
            let message = format!(
                "All that could know more of volume {} was heard; the catalogue is right about it.",
                volume.name
            );
            self.event(Weight::Info, "volume-unlocked", &object, &message)
                .await?;
        }
        self.doubts_changed(changed).await
    }

    async fn set_doubt(&mut self, id: VolumeId, doubt: bool) -> Done<()> {
        sqlx::query(sql::SET_DOUBT)
            .bind(doubt)
            .bind(integer(self.index))
            .bind(id.to_string())
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    /// What nodes are told depends on whether any row is in doubt.
    async fn doubts_changed(&mut self, changed: bool) -> Done {
        if !changed {
            return Ok(Outcome::Unchanged);
        }
        if !self.dry {
            self.touch_all().await?;
        }
        Ok(Outcome::Changed)
    }

    async fn touch_all(&mut self) -> Done<()> {
        sqlx::query(sql::TOUCH_ALL)
            .bind(integer(self.index))
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    pub(super) async fn settle_history(&mut self, id: uuid::Uuid) -> Done {
        let current = load::history(self.conn).await?;
        let due = current.is_some_and(|history| history.id == id && history.unsettled);
        if !due || !load::volumes_which(self.conn, Which::Doubted).await?.is_empty() {
            return Ok(Outcome::Unchanged);
        }
        if self.dry {
            return Ok(Outcome::Changed);
        }
        sqlx::query(sql::SETTLE_HISTORY).execute(&mut *self.conn).await?;
        self.touch_all().await?;
        let object = Object::new(Kind::Cluster, id.to_string());
        let message = "Every node was heard since the catalogue was restored, and nothing is left that it does not know.";
        self.event(Weight::Info, "catalogue-settled", &object, message)
            .await?;
        Ok(Outcome::Changed)
    }

    pub(super) async fn adopt_volume(&mut self, adoption: &Adoption) -> Done {
        let object = Object::new(Kind::Volume, &adoption.name);
        let before = load::volume(self.conn, adoption.volume).await?;
        self.check_adoption(adoption, before.as_ref(), &object).await?;
        if self.dry {
            return Ok(Outcome::Changed);
        }
        let id = adoption.volume.to_string();
        if before.is_none() {
            self.insert_adopted(adoption).await?;
        }
        sqlx::query(sql::DELETE_REPLICAS)
            .bind(&id)
            .execute(&mut *self.conn)
            .await?;
        for replica in &adoption.replicas {
            sqlx::query(sql::INSERT_ADOPTED_REPLICA)
                .bind(&id)
                .bind(replica.replica.0)
                .bind(&replica.node)
                .bind(&replica.pool)
                .bind(replica.joined.is_some())
                .bind(replica.joined.map(|config| integer(config.0)))
                .bind(
                    replica
                        .joined
                        .is_none()
                        .then(|| EjectReason::Operator.to_string()),
                )
                .execute(&mut *self.conn)
                .await?;
        }
        self.store_adopted(adoption).await?;
        self.set_doubt(adoption.volume, false).await?;
        self.touch_all().await?;
        let message = format!(
            "Volume {} was adopted from its replicas at view {}.",
            adoption.name, adoption.view
        );
        self.event(Weight::Warning, "volume-adopted", &object, &message)
            .await?;
        let row = self.need_volume(adoption.volume).await?.row;
        Ok(Outcome::Row(Box::new(row)))
    }

    async fn check_adoption(
        &mut self,
        adoption: &Adoption,
        before: Option<&Volume>,
        object: &Object,
    ) -> Done<()> {
        match (before, adoption.expect) {
            (Some(volume), _) if volume.phase == VolumePhase::Deleting => {
                return Err(Refused::State {
                    object: object.clone(),
                    state: "is being deleted".into(),
                }
                .into());
            }
            (Some(volume), Some(expected)) if volume.row.revision == expected && volume.doubt => {
                let (new, old) = (adoption.view, volume.row.view);
                if new.epoch <= old.epoch || new.config <= old.config || volume.name != adoption.name {
                    return Err(Refused::Behind {
                        object: object.clone(),
                    }
                    .into());
                }
            }
            (Some(volume), Some(_)) if !volume.doubt => {
                let state = "is not locked; there is nothing to adopt".into();
                return Err(Refused::State {
                    object: object.clone(),
                    state,
                }
                .into());
            }
            (Some(volume), expected) => {
                return Err(Refused::Revision {
                    object: object.clone(),
                    expected: expected.unwrap_or(0),
                    current: volume.row.revision,
                }
                .into());
            }
            (None, Some(_)) => {
                return Err(Refused::NoSuch {
                    object: object.clone(),
                }
                .into());
            }
            (None, None) => {
                if load::volume_named(self.conn, &adoption.name).await?.is_some() {
                    let difference = "another volume has the name".into();
                    return Err(Refused::Exists {
                        object: object.clone(),
                        difference,
                    }
                    .into());
                }
            }
        }
        if !adoption.replicas.iter().any(|replica| replica.joined.is_some()) {
            let state = "would have no replica in sync".into();
            return Err(Refused::State {
                object: object.clone(),
                state,
            }
            .into());
        }
        for replica in &adoption.replicas {
            if load::pool(self.conn, &replica.pool, &replica.node)
                .await?
                .is_none()
            {
                let name = format!("{} on {}", replica.pool, replica.node);
                return Err(Refused::NoSuch {
                    object: Object::new(Kind::Pool, name),
                }
                .into());
            }
        }
        if let Some(owner) = &adoption.owner {
            self.need_node(&owner.node).await?;
        }
        Ok(())
    }

    async fn insert_adopted(&mut self, adoption: &Adoption) -> Done<()> {
        let wish = VolumeWish {
            size: adoption.size,
            class: None,
            replicas: u8::try_from(adoption.replicas.len()).ok(),
            pool: None,
            tags: Vec::new(),
            spread: None,
            together: None,
            min_in_sync: Some(adoption.min_in_sync),
        };
        sqlx::query(sql::INSERT_ADOPTED)
            .bind(adoption.volume.to_string())
            .bind(&adoption.name)
            .bind(integer(adoption.size))
            .bind(adoption.lineage.to_string())
            .bind(adoption.min_in_sync)
            .bind(json(&wish)?)
            .bind(self.at)
            .bind(integer(self.index))
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    /// The row and the attachment.
    async fn store_adopted(&mut self, adoption: &Adoption) -> Done<()> {
        let id = adoption.volume.to_string();
        let Epoch(epoch) = adoption.view.epoch;
        let ConfigSeq(config) = adoption.view.config;
        sqlx::query(sql::UPDATE_VOLUME_ROW)
            .bind(integer(adoption.size))
            .bind(integer(epoch))
            .bind(integer(config))
            .bind(adoption.owner.as_ref().map(|owner| &owner.node))
            .bind(false)
            .bind(false)
            .bind(adoption.lineage.to_string())
            .bind(adoption.min_in_sync)
            .bind(integer(self.index))
            .bind(&id)
            .execute(&mut *self.conn)
            .await?;
        self.set_phase(adoption.volume, VolumePhase::Available).await?;
        match &adoption.owner {
            None => sqlx::query(sql::DELETE_ATTACHMENT).bind(&id),
            Some(owner) => sqlx::query(sql::SET_ATTACHMENT)
                .bind(&id)
                .bind(&owner.transport)
                .bind(owner.read_only)
                .bind(owner.purpose.word()),
        }
        .execute(&mut *self.conn)
        .await?;
        Ok(())
    }
}
