//! A volume that is deleted by force is gone at once. What its nodes have of it stays on record as tombstones: each
//! node removes its files when it hears of it, and the tombstone goes with them, or with the node or pool when that
//! is given up.

use stor_replication::catalogue::{Change, decide};
use stor_replication::ids::{ReplicaId, VolumeId};

use super::history::known;
use super::node::count;
use super::pool::pool_object;
use super::{Apply, Done, Stop, Weight, expect_revision};
use crate::catalogue::command::ForcedDelete;
use crate::catalogue::load::{self, integer};
use crate::catalogue::outcome::{Kind, Object, Outcome, Refused};
use crate::catalogue::row::{Tombstone, Volume, VolumePhase};
use crate::catalogue::sql;

/// Refuses to give up what a node or pool still has to remove.
pub(super) fn left_behind(object: Object, left: &[Tombstone]) -> Stop {
    let by = format!(
        "it still has {} of deleted volumes to remove",
        count(left.len() as u64, "replica")
    );
    Refused::InUse { object, by }.into()
}

impl Apply<'_> {
    pub(super) async fn delete_volume_now(
        &mut self,
        name: &str,
        expect: Option<u64>,
        force: &ForcedDelete,
    ) -> Done {
        let object = Object::new(Kind::Volume, name);
        let Some(volume) = load::volume_named(self.conn, name).await? else {
            return Err(Refused::NoSuch { object }.into());
        };
        if volume.phase != VolumePhase::Deleting {
            expect_revision(&object, expect, volume.row.revision)?;
        }
        known(&volume)?;
        // Whoever has it is cut off, as by a forced detach; whoever got it since the proposer looked is not.
        let change = Change::Detach {
            expect: force.expect,
            clean: false,
        };
        if volume.row.owner.is_some() {
            decide(&volume.row, &change).map_err(|refusal| Refused::View {
                refusal,
                row: Box::new(volume.row.clone()),
            })?;
        }
        let rest = self.without_snapshots(&volume).await?;
        if self.dry {
            return Ok(Outcome::Changed);
        }
        self.remove_rest(&rest).await?;
        self.bury(&volume, force).await?;
        let mut nodes: Vec<&str> = volume.row.replicas.values().map(|m| m.node.as_str()).collect();
        nodes.sort_unstable();
        let message = format!(
            "Volume {name} was deleted by force; its replicas on {} are removed as soon as the nodes can.",
            nodes.join(", ")
        );
        self.event(Weight::Warning, "volume-deleted", &object, &message)
            .await?;
        Ok(Outcome::Changed)
    }

    /// Puts tombstones in the place of the volume.
    async fn bury(&mut self, volume: &Volume, force: &ForcedDelete) -> Done<()> {
        let id = volume.row.volume.to_string();
        self.bury_replicas(volume, force).await?;
        for statement in [
            sql::DELETE_REPLICAS,
            sql::DELETE_ATTACHMENT,
            sql::DELETE_SCRUB,
            sql::DELETE_VOLUME,
        ] {
            sqlx::query(statement).bind(&id).execute(&mut *self.conn).await?;
        }
        self.touch_replica_nodes(volume).await?;
        if let Some(owner) = &volume.row.owner {
            self.touch(owner).await?;
        }
        Ok(())
    }

    /// Puts tombstones in the place of its replicas.
    pub(super) async fn bury_replicas(&mut self, volume: &Volume, force: &ForcedDelete) -> Done<()> {
        for replica in volume.row.replicas.keys() {
            let allocated = force.allocated.iter().find(|(of, _)| of == replica);
            self.bury_replica(volume, *replica, allocated.map(|(_, bytes)| *bytes))
                .await?;
        }
        Ok(())
    }

    /// Puts a tombstone in the place of one replica.
    pub(super) async fn bury_replica(
        &mut self,
        volume: &Volume,
        replica: ReplicaId,
        allocated: Option<u64>,
    ) -> Done<()> {
        let Some(member) = volume.row.replicas.get(&replica) else {
            return Ok(());
        };
        let pool = volume
            .places
            .get(&replica)
            .map_or("", |place| place.pool.as_str());
        sqlx::query(sql::INSERT_TOMBSTONE)
            .bind(volume.row.volume.to_string())
            .bind(replica.0)
            .bind(&volume.name)
            .bind(&member.node)
            .bind(pool)
            .bind(integer(volume.row.size))
            .bind(volume.row.lineage.to_string())
            .bind(allocated.map(integer))
            .bind(self.at)
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    /// The node has removed what a tombstone stood for. Whether there was one.
    pub(super) async fn tombstone_gone(
        &mut self,
        node: &str,
        volume: VolumeId,
        replica: ReplicaId,
    ) -> Done<bool> {
        let found = load::tombstone(self.conn, volume, replica).await?;
        let Some(tombstone) = found.filter(|tombstone| tombstone.node == node) else {
            return Ok(false);
        };
        self.remove_tombstone(&tombstone).await?;
        self.touch(node).await?;
        let message = format!(
            "Node {node} removed its replica of volume {}, taken away before.",
            tombstone.name
        );
        let object = Object::new(Kind::Volume, &tombstone.name);
        self.event(Weight::Info, "replica-removed-late", &object, &message)
            .await?;
        Ok(true)
    }

    /// What a node, or one of its pools, still has to remove.
    pub(super) async fn left_on(&mut self, node: &str, pool: Option<&str>) -> Done<Vec<Tombstone>> {
        let mut left = load::tombstones(self.conn, Some(node)).await?;
        left.retain(|tombstone| pool.is_none_or(|pool| tombstone.pool == pool));
        Ok(left)
    }

    /// Nobody removes these any more.
    pub(super) async fn give_up(&mut self, left: &[Tombstone]) -> Done<()> {
        for tombstone in left {
            self.remove_tombstone(tombstone).await?;
            let Tombstone { name, node, pool, .. } = tombstone;
            let message =
                format!("Files of the deleted volume {name} are left in pool {pool} on node {node}.");
            self.event(
                Weight::Warning,
                "replica-left-behind",
                &pool_object(pool, node),
                &message,
            )
            .await?;
        }
        Ok(())
    }

    async fn remove_tombstone(&mut self, tombstone: &Tombstone) -> Done<()> {
        sqlx::query(sql::DELETE_TOMBSTONE)
            .bind(tombstone.volume.to_string())
            .bind(tombstone.replica.0)
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }
}
