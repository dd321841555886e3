//! Volumes: made, found ready, removed.

use stor_replication::catalogue::{Change, MemberState, decide};
use stor_replication::ids::{ReplicaId, VolumeId};

use super::history::known;
use super::{Apply, Done, Weight, expect_revision, json};
use crate::catalogue::command::{NewVolume, Placement, Purpose};
use crate::catalogue::load::{self, integer};
use crate::catalogue::outcome::{Kind, Object, Outcome, Refused};
use crate::catalogue::row::{ReplicaPhase, Volume, VolumePhase};
use crate::catalogue::sql;

impl Apply<'_> {
    pub(super) async fn create_volume(&mut self, new: &NewVolume) -> Done {
        let object = Object::new(Kind::Volume, &new.name);
        if let Some(volume) = load::volume_named(self.conn, &new.name).await? {
            if volume.phase == VolumePhase::Deleting {
                let state =
                    "is being deleted; its name is free once its replicas are gone, with a forced delete \
                             at once"
                        .into();
                return Err(Refused::State { object, state }.into());
            }
            if volume.wish == new.wish {
                return Ok(Outcome::Unchanged);
            }
            return Err(Refused::Exists {
                object,
                difference: difference(&volume, new),
            }
            .into());
        }
        if let Some(class) = &new.wish.class
            && load::class(self.conn, class).await?.is_none()
        {
            return Err(Refused::NoSuch {
                object: Object::new(Kind::Class, class),
            }
            .into());
        }
        for placement in &new.placements {
            self.check_placement(new.wish.size, placement).await?;
        }
        if self.dry {
            return Ok(Outcome::Created);
        }
        let id = new.id.to_string();
        self.insert_volume(new).await?;
        for (replica, placement) in (0_u32..).zip(&new.placements) {
            sqlx::query(sql::INSERT_REPLICA)
                .bind(&id)
                .bind(replica)
                .bind(&placement.node)
                .bind(&placement.pool)
                .execute(&mut *self.conn)
                .await?;
            self.touch(&placement.node).await?;
        }
        let nodes: Vec<&str> = new.placements.iter().map(|p| p.node.as_str()).collect();
        let message = format!(
            "Volume {} was created with replicas on {}.",
            new.name,
            nodes.join(", ")
        );
        self.event(Weight::Info, "volume-created", &object, &message)
            .await?;
        Ok(Outcome::Created)
    }

    pub(super) async fn insert_volume(&mut self, new: &NewVolume) -> Done<()> {
        sqlx::query(sql::INSERT_VOLUME)
            .bind(new.id.to_string())
            .bind(&new.name)
            .bind(integer(new.wish.size))
            .bind(new.lineage.to_string())
            .bind(new.min_in_sync)
            .bind(&new.wish.class)
            .bind(json(&new.wish)?)
            .bind(self.at)
            .bind(integer(self.index))
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    /// What the planner presumed of a pool must still be so.
    pub(super) async fn check_placement(&mut self, size: u64, placement: &Placement) -> Done<()> {
        let (name, node) = (&placement.pool, &placement.node);
        let Some(pool) = load::pool(self.conn, name, node).await? else {
            return Err(Refused::PlacementStale {
                why: format!("pool {name} on {node} is gone"),
            }
            .into());
        };
        if pool.revision != placement.pool_revision {
            return Err(Refused::PlacementStale {
                why: format!("pool {name} on {node} was changed"),
            }
            .into());
        }
        if pool.promised.saturating_add(size) > placement.promise_limit {
            return Err(Refused::PlacementStale {
                why: format!("pool {name} on {node} was promised to others"),
            }
            .into());
        }
        Ok(())
    }

    pub(super) async fn delete_volume(&mut self, name: &str, expect: Option<u64>, gone: bool) -> Done {
        let object = Object::new(Kind::Volume, name);
        let Some(volume) = load::volume_named(self.conn, name).await? else {
            return Err(Refused::NoSuch { object }.into());
        };
        if volume.phase == VolumePhase::Deleting {
            return Ok(Outcome::Unchanged);
        }
        expect_revision(&object, expect, volume.row.revision)?;
        if !gone {
            known(&volume)?;
        }
        // Where nothing is left, nobody uses it either.
        let healing = gone
            || volume
                .attachment
                .as_ref()
                .is_some_and(|a| a.purpose == Purpose::Healing);
        if let Some(node) = &volume.row.owner
            && !healing
        {
            return Err(Refused::InUse {
                object,
                by: format!("it is attached on node {node}"),
            }
            .into());
        }
        let rest = self.without_snapshots(&volume).await?;
        if self.dry {
            return Ok(Outcome::Changed);
        }
        self.remove_rest(&rest).await?;
        if healing && volume.row.owner.is_some() {
            let change = Change::Detach {
                expect: volume.row.view.epoch,
                clean: false,
            };
            let row = decide(&volume.row, &change).map_err(|refusal| Refused::View {
                refusal,
                row: Box::new(volume.row.clone()),
            })?;
            self.store_row(&volume, row).await?;
        }
        let id = volume.row.volume.to_string();
        self.set_phase(volume.row.volume, VolumePhase::Deleting).await?;
        sqlx::query(sql::UPDATE_REPLICA_PHASES)
            .bind(ReplicaPhase::Deleting.word())
            .bind(&id)
            .execute(&mut *self.conn)
            .await?;
        self.touch_replica_nodes(&volume).await?;
        self.event(
            Weight::Info,
            "volume-deleting",
            &object,
            &format!("Volume {name} is being deleted."),
        )
        .await?;
        Ok(Outcome::Changed)
    }

    pub(super) async fn set_phase(&mut self, volume: VolumeId, phase: VolumePhase) -> Done<()> {
        sqlx::query(sql::UPDATE_VOLUME_PHASE)
            .bind(phase.word())
            .bind(integer(self.index))
            .bind(volume.to_string())
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    pub(super) async fn replicas_observed(
        &mut self,
        node: &str,
        ready: &[(VolumeId, ReplicaId)],
        gone: &[(VolumeId, ReplicaId)],
    ) -> Done {
        if self.dry {
            return Ok(Outcome::Unchanged);
        }
        let mut changed = false;
        for (volume, replica) in ready {
            changed |= self.replica_ready(node, *volume, *replica).await?;
        }
        for (volume, replica) in gone {
            changed |= self.replica_gone(node, *volume, *replica).await?;
        }
        Ok(if changed {
            Outcome::Changed
        } else {
            Outcome::Unchanged
        })
    }

    /// The volume, when the replica is on `node` and in `phase`; late and foreign reports change nothing.
    async fn observed(
        &mut self,
        node: &str,
        volume: VolumeId,
        replica: ReplicaId,
        phase: ReplicaPhase,
    ) -> Done<Option<Volume>> {
        Ok(load::volume(self.conn, volume).await?.filter(|volume| {
            volume
                .row
                .replicas
                .get(&replica)
                .is_some_and(|member| member.node == node)
                && volume
                    .places
                    .get(&replica)
                    .is_some_and(|place| place.phase == phase)
        }))
    }

    async fn replica_ready(&mut self, node: &str, id: VolumeId, replica: ReplicaId) -> Done<bool> {
        let Some(volume) = self.observed(node, id, replica, ReplicaPhase::Creating).await? else {
            return Ok(false);
        };
        sqlx::query(sql::UPDATE_REPLICA_PHASE)
            .bind(ReplicaPhase::Ready.word())
            .bind(id.to_string())
            .bind(replica.0)
            .execute(&mut *self.conn)
            .await?;
        self.touch(node).await?;
        // One that gets everything from the others is not waited for.
        let begins = |id: &ReplicaId| {
            let member = volume.row.replicas.get(id);
            member.is_some_and(|member| member.state == MemberState::InSync)
        };
        let waits = volume.places.iter().any(|(other, place)| {
            *other != replica && place.phase == ReplicaPhase::Creating && begins(other)
        });
        if volume.phase == VolumePhase::Creating && !waits {
            self.set_phase(id, VolumePhase::Available).await?;
            let object = Object::new(Kind::Volume, &volume.name);
            let message = format!("All replicas of volume {} are there.", volume.name);
            self.event(Weight::Info, "volume-ready", &object, &message)
                .await?;
        }
        Ok(true)
    }

    /// A page of a replica's metadata was damaged. The same finding comes again with every leader.
    pub(super) async fn replica_mended(
        &mut self,
        node: &str,
        id: VolumeId,
        replica: ReplicaId,
        what: &str,
        found: &str,
    ) -> Done {
        const KIND: &str = "replica-mended";
        let volume = self.need_volume(id).await?;
        let member = volume.row.replicas.get(&replica);
        if member.is_none_or(|member| member.node != node) {
            return Ok(Outcome::Unchanged);
        }
        let object = Object::new(Kind::Volume, &volume.name);
        let message = format!(
            "Metadata of the replica of volume {} on node {node}: {what} (found {found}).",
            volume.name
        );
        let said: Option<i64> = sqlx::query_scalar(sql::EVENT_SAID)
            .bind(KIND)
            .bind(format!("{}/{}", object.kind.word(), object.name))
            .bind(&message)
            .fetch_optional(&mut *self.conn)
            .await?;
        if said.is_some() {
            return Ok(Outcome::Unchanged);
        }
        if !self.dry {
            self.event(Weight::Warning, KIND, &object, &message).await?;
        }
        Ok(Outcome::Changed)
    }

    async fn replica_gone(&mut self, node: &str, id: VolumeId, replica: ReplicaId) -> Done<bool> {
        let Some(volume) = self.observed(node, id, replica, ReplicaPhase::Deleting).await? else {
            return self.tombstone_gone(node, id, replica).await;
        };
        sqlx::query(sql::DELETE_REPLICA)
            .bind(id.to_string())
            .bind(replica.0)
            .execute(&mut *self.conn)
            .await?;
        self.touch(node).await?;
        if volume.places.len() == 1 {
            sqlx::query(sql::DELETE_VOLUME)
                .bind(id.to_string())
                .execute(&mut *self.conn)
                .await?;
            self.forget_scrub(id).await?;
            let object = Object::new(Kind::Volume, &volume.name);
            let message = format!("Volume {} is gone with all its replicas.", volume.name);
            self.event(Weight::Info, "volume-deleted", &object, &message)
                .await?;
        }
        Ok(true)
    }
}

fn difference(volume: &Volume, new: &NewVolume) -> String {
    let (is, wish) = (&volume.wish, &new.wish);
    if is.size != wish.size {
        let shown = stor_api::size::format(is.size);
        return format!("its size is {shown} ({} bytes)", is.size);
    }
    if is.class != wish.class {
        return match &is.class {
            Some(class) => format!("it was made from class {class}"),
            None => "it was made without a class".into(),
        };
    }
    if is.replicas != wish.replicas {
        return "it was asked for with another number of replicas".into();
    }
    "it was asked for with other placement rules".into()
}
