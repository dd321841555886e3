//! Replicas that come and go while a volume is used, nodes that are emptied, volumes that grow. Which member may go, and
//! when, is decided by `stor_replication::catalogue::decide`; here it is stored and told.

use stor_replication::catalogue::{Change, Refusal, VolumeRow, decide};
use stor_replication::ids::{ReplicaId, VolumeId};

use super::view::refused;
use super::{Apply, Done, Weight, expect_revision};
use crate::catalogue::command::{Leaving, Placement};
use crate::catalogue::load::{self, integer};
use crate::catalogue::outcome::{Kind, Object, Outcome, Refused};
use crate::catalogue::row::{Volume, VolumePhase};
use crate::catalogue::sql;

impl Apply<'_> {
    pub(super) async fn place_replica(
        &mut self,
        id: VolumeId,
        placement: &Placement,
        replaces: Option<ReplicaId>,
    ) -> Done {
        let volume = self.need_known(id).await?;
        available(&volume)?;
        if let Some(old) = replaces {
            if !volume.row.replicas.contains_key(&old) {
                return Err(refused(&volume, Refusal::NoSuchReplica { replica: old }).into());
            }
            if volume.places.values().any(|place| place.replaces == replaces) {
                return Ok(Outcome::Unchanged);
            }
        }
        let size = volume.row.size.max(volume.grow_to.unwrap_or(0));
        self.check_placement(size, placement).await?;
        let next: u32 = sqlx::query_scalar(sql::NEXT_REPLICA)
            .bind(id.to_string())
            .fetch_one(&mut *self.conn)
            .await?;
        let (replica, node) = (ReplicaId(next), placement.node.clone());
        let row = decide(&volume.row, &Change::Place { replica, node })
            .map_err(|refusal| refused(&volume, refusal))?;
        if self.dry {
            return Ok(Outcome::Created);
        }
        sqlx::query(sql::INSERT_FURTHER_REPLICA)
            .bind(id.to_string())
            .bind(next)
            .bind(&placement.node)
            .bind(&placement.pool)
            .bind(replaces.map(|old| old.0))
            .execute(&mut *self.conn)
            .await?;
        self.note_number(id, replica).await?;
        let row = self.store_row(&volume, row).await?;
        self.touch(&placement.node).await?;
        let old = replaces.and_then(|old| volume.row.replicas.get(&old));
        let place = old.map_or_else(String::new, |old| {
            format!(", in place of the one on {}", old.node)
        });
        let (name, pool, node) = (&volume.name, &placement.pool, &placement.node);
        let message = format!("Volume {name} gets a further replica on node {node} (pool {pool}){place}.");
        let object = Object::new(Kind::Volume, name);
        self.event(Weight::Info, "replica-placed", &object, &message)
            .await?;
        Ok(Outcome::Row(Box::new(row)))
    }

    pub(super) async fn leave_replica(&mut self, id: VolumeId, replica: ReplicaId) -> Done {
        let volume = self.need_known(id).await?;
        available(&volume)?;
        let row = match decide(&volume.row, &Change::Leave { replica }) {
            Ok(row) => row,
            // Asked again.
            Err(Refusal::NothingToDo { .. }) => return Ok(Outcome::Unchanged),
            Err(refusal) => return Err(refused(&volume, refusal).into()),
        };
        if self.dry {
            return Ok(Outcome::Changed);
        }
        let waits = row.replicas.contains_key(&replica);
        let row = self.store_row(&volume, row).await?;
        if waits {
            let node = volume
                .row
                .replicas
                .get(&replica)
                .map_or("?", |member| &member.node);
            let message = format!(
                "The replica of volume {} on node {node} is to go, as soon as its engine can do without it.",
                volume.name
            );
            let object = Object::new(Kind::Volume, &volume.name);
            self.event(Weight::Info, "replica-leaving", &object, &message)
                .await?;
        }
        Ok(Outcome::Row(Box::new(row)))
    }

    /// A replica that has caught up takes the place of the one it was made for.
    pub(super) fn succeed(volume: &Volume, row: VolumeRow, member: ReplicaId) -> VolumeRow {
        let old = volume.places.get(&member).and_then(|place| place.replaces);
        let Some(replica) = old else { return row };
        // Refused where the minimum forbids it or it is gone: then there is one more.
        decide(&row, &Change::Leave { replica }).unwrap_or(row)
    }

    /// Replicas that are no more in the row: their files are to be removed.
    pub(super) async fn bury_left(&mut self, before: &Volume, row: &VolumeRow) -> Done<()> {
        for (replica, member) in &before.row.replicas {
            if row.replicas.contains_key(replica) {
                continue;
            }
            self.note_number(row.volume, *replica).await?;
            self.bury_replica(before, *replica, None).await?;
            for statement in [sql::DELETE_REPLICA, sql::FORGET_REPLACES] {
                sqlx::query(statement)
                    .bind(row.volume.to_string())
                    .bind(replica.0)
                    .execute(&mut *self.conn)
                    .await?;
            }
            self.touch(&member.node).await?;
            let object = Object::new(Kind::Volume, &before.name);
            let message = format!(
                "Volume {} has no replica on node {} any more.",
                before.name, member.node
            );
            self.event(Weight::Info, "replica-left", &object, &message)
                .await?;
        }
        Ok(())
    }

    /// A number that was given once is never given again.
    async fn note_number(&mut self, volume: VolumeId, replica: ReplicaId) -> Done<()> {
        sqlx::query(sql::SET_NUMBERS)
            .bind(replica.0 + 1)
            .bind(volume.to_string())
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    pub(super) async fn empty_node(&mut self, name: &str, leaving: Option<Leaving>) -> Done {
        let node = self.need_node(name).await?;
        if node.leaving == leaving {
            return Ok(Outcome::Unchanged);
        }
        if self.dry {
            return Ok(Outcome::Changed);
        }
        sqlx::query(sql::SET_NODE_LEAVING)
            .bind(leaving.map(Leaving::word))
            .bind(integer(self.index))
            .bind(name)
            .execute(&mut *self.conn)
            .await?;
        let object = Object::new(Kind::Node, name);
        let (weight, kind, message) = match leaving {
            Some(Leaving::Drain) => (
                Weight::Info,
                "node-draining",
                format!("Node {name} is being drained: its replicas move to other nodes."),
            ),
            Some(Leaving::Lost) => (
                Weight::Warning,
                "node-lost",
                format!("Node {name} was declared lost: its replicas are replaced on other nodes."),
            ),
            None => (
                Weight::Info,
                "node-undrained",
                format!("Node {name} may hold replicas again."),
            ),
        };
        self.event(weight, kind, &object, &message).await?;
        Ok(Outcome::Changed)
    }

    pub(super) async fn resize_volume(
        &mut self,
        name: &str,
        expect: Option<u64>,
        size: u64,
        pools: &[Placement],
    ) -> Done {
        let object = Object::new(Kind::Volume, name);
        let Some(volume) = load::volume_named(self.conn, name).await? else {
            return Err(Refused::NoSuch { object }.into());
        };
        let volume = self.need_known(volume.row.volume).await?;
        available(&volume)?;
        let wanted = volume.row.size.max(volume.grow_to.unwrap_or(0));
        if size == wanted {
            return Ok(Outcome::Unchanged);
        }
        expect_revision(&object, expect, volume.row.revision)?;
        if size < wanted {
            return Err(refused(&volume, Refusal::Smaller { size: wanted }).into());
        }
        for pool in pools {
            self.check_placement(size - wanted, pool).await?;
        }
        if self.dry {
            return Ok(Outcome::Changed);
        }
        self.set_grow_to(volume.row.volume, Some(size)).await?;
        self.touch_replica_nodes(&volume).await?;
        let message = format!(
            "Volume {name} grows from {} to {}.",
            stor_api::size::format(volume.row.size),
            stor_api::size::format(size)
        );
        self.event(Weight::Info, "volume-growing", &object, &message)
            .await?;
        Ok(Outcome::Changed)
    }

    /// Lowering it lets an engine remove members that are away, and go on (R16). It is not raised above what is in sync
    /// now: I/O would stop at once.
    //= docs/replication.md#R16
    pub(super) async fn set_least_in_sync(&mut self, name: &str, expect: Option<u64>, least: u8) -> Done {
        let object = Object::new(Kind::Volume, name);
        let Some(volume) = load::volume_named(self.conn, name).await? else {
            return Err(Refused::NoSuch { object }.into());
        };
        let volume = self.need_known(volume.row.volume).await?;
        available(&volume)?;
        if volume.row.min_in_sync == least {
            return Ok(Outcome::Unchanged);
        }
        expect_revision(&object, expect, volume.row.revision)?;
        let (left, min) = (volume.row.in_sync().count(), usize::from(least));
        if min > left {
            return Err(refused(&volume, Refusal::TooFewInSync { left, min }).into());
        }
        if self.dry {
            return Ok(Outcome::Changed);
        }
        let row = VolumeRow {
            min_in_sync: least,
            ..volume.row.clone()
        };
        self.store_row(&volume, row).await?;
        let before = volume.row.min_in_sync;
        let message = format!(
            "Volume {name} is written with at least {least} replicas in sync; before, it was {before}."
        );
        self.event(Weight::Info, "volume-changed", &object, &message)
            .await?;
        Ok(Outcome::Changed)
    }

    //= docs/replication.md#G3
    pub(super) async fn grow_volume(&mut self, id: VolumeId, size: u64) -> Done {
        let volume = self.need_known(id).await?;
        if volume.row.size >= size {
            return Ok(Outcome::Unchanged);
        }
        let row = decide(&volume.row, &Change::Grow { size }).map_err(|refusal| refused(&volume, refusal))?;
        if self.dry {
            return Ok(Outcome::Changed);
        }
        let left = volume.grow_to.filter(|wanted| *wanted > size);
        self.set_grow_to(id, left).await?;
        let row = self.store_row(&volume, row).await?;
        self.touch_replica_nodes(&volume).await?;
        let object = Object::new(Kind::Volume, &volume.name);
        let message = format!("Volume {} has {} now.", volume.name, stor_api::size::format(size));
        self.event(Weight::Info, "volume-grown", &object, &message)
            .await?;
        Ok(Outcome::Row(Box::new(row)))
    }

    async fn set_grow_to(&mut self, volume: VolumeId, size: Option<u64>) -> Done<()> {
        sqlx::query(sql::SET_GROW_TO)
            .bind(size.map(integer))
            .bind(integer(self.index))
            .bind(volume.to_string())
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }
}

fn available(volume: &Volume) -> Done<()> {
    let state = match volume.phase {
        VolumePhase::Available => return Ok(()),
        VolumePhase::Creating => "is still being created",
        VolumePhase::Deleting => "is being deleted",
    };
    let object = Object::new(Kind::Volume, &volume.name);
    Err(Refused::State {
        object,
        state: state.into(),
    }
    .into())
}
