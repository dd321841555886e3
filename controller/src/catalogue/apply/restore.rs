//! Volumes that begin as a snapshot, and volumes that go back to one. Both make new replicas, of numbers never used
//! before, out of the copies in their pools: nothing that knew the old ones can be mistaken about the new.

use std::collections::BTreeMap;

use stor_replication::catalogue::VolumeRow;
use stor_replication::ids::{ReplicaId, VolumeId};

use super::history::known;
use super::snapshot::object;
use super::{Apply, Done, Weight};
use crate::catalogue::command::{ForcedDelete, Purpose, Restore, RollBack};
use crate::catalogue::load;
use crate::catalogue::outcome::{Kind, Object, Outcome, Refused};
use crate::catalogue::row::{Volume, VolumePhase};
use crate::catalogue::snapshot::{self, Copy, CopyPhase, Snapshot, SnapshotPhase};
use crate::catalogue::sql;

/// A replica to be made.
struct Planned<'a> {
    replica: ReplicaId,
    node: &'a str,
    pool: &'a str,
    /// Whose copy it begins as; without one it is no member yet.
    of: Option<ReplicaId>,
}

impl Apply<'_> {
    async fn need_snapshot(&mut self, id: stor_replication::ids::SnapshotId) -> Done<Snapshot> {
        let found = snapshot::snapshot(self.conn, id).await?;
        let one = found.ok_or_else(|| Refused::NoSuch {
            object: Object::new(Kind::Snapshot, id.to_string()),
        })?;
        if one.phase != SnapshotPhase::Ready {
            let state = format!("is {}", one.phase.word());
            let object = object(&one.volume_name, &one.name);
            return Err(Refused::State { object, state }.into());
        }
        Ok(one)
    }

    pub(super) async fn restore_snapshot(&mut self, restore: &Restore) -> Done {
        let new = &restore.new;
        let one = self.need_snapshot(restore.snapshot).await?;
        if let Some(volume) = load::volume_named(self.conn, &new.name).await? {
            let source = snapshot::source_of(self.conn, volume.row.volume).await?;
            if source == Some(one.id.to_string())
                && volume.wish == new.wish
                && volume.phase != VolumePhase::Deleting
            {
                return Ok(Outcome::Unchanged);
            }
            let difference = format!("it was not made of snapshot {}, or in another way", one.title());
            let object = Object::new(Kind::Volume, &new.name);
            return Err(Refused::Exists { object, difference }.into());
        }
        let stale = |why: String| Refused::PlacementStale { why };
        if new.wish.size != one.size || restore.copies.iter().all(Option::is_none) {
            return Err(stale("it has another size than the snapshot, or begins as nothing".into()).into());
        }
        let mut planned = Vec::new();
        for ((number, placement), of) in (0_u32..).zip(&new.placements).zip(&restore.copies) {
            self.check_placement(new.wish.size, placement).await?;
            if let Some(of) = of {
                let there = |copy: &Copy| is_at(copy, &placement.node, &placement.pool);
                if !one.copies.get(of).is_some_and(there) {
                    let why = format!("node {} has no copy of {} any more", placement.node, one.title());
                    return Err(stale(why).into());
                }
            }
            planned.push(Planned {
                replica: ReplicaId(number),
                node: &placement.node,
                pool: &placement.pool,
                of: *of,
            });
        }
        if self.dry {
            return Ok(Outcome::Created);
        }
        let id = new.id.to_string();
        self.insert_volume(new).await?;
        sqlx::query(sql::SET_VOLUME_SOURCE)
            .bind(one.id.to_string())
            .bind(&id)
            .execute(&mut *self.conn)
            .await?;
        self.insert_planned(new.id, &one, &planned).await?;
        self.note_clone(&one, new.id).await?;
        let message = format!("Volume {} is being made of snapshot {}.", new.name, one.title());
        let object = Object::new(Kind::Volume, &new.name);
        self.event(Weight::Info, "volume-created", &object, &message)
            .await?;
        Ok(Outcome::Created)
    }

    async fn insert_planned(
        &mut self,
        volume: VolumeId,
        one: &Snapshot,
        planned: &[Planned<'_>],
    ) -> Done<()> {
        let id = volume.to_string();
        for plan in planned {
            // Without a copy it begins empty and gets everything from the others.
            let insert = match plan.of {
                Some(_) => sqlx::query(sql::INSERT_REPLICA),
                None => sqlx::query(sql::INSERT_FURTHER_REPLICA),
            };
            let insert = insert
                .bind(&id)
                .bind(plan.replica.0)
                .bind(plan.node)
                .bind(plan.pool);
            let insert = match plan.of {
                Some(_) => insert,
                None => insert.bind(None::<i64>),
            };
            insert.execute(&mut *self.conn).await?;
            if let Some(of) = plan.of {
                sqlx::query(sql::SET_SOURCE)
                    .bind(one.id.to_string())
                    .bind(one.volume.to_string())
                    .bind(of.0)
                    .bind(&id)
                    .bind(plan.replica.0)
                    .execute(&mut *self.conn)
                    .await?;
            }
            self.touch(plan.node).await?;
        }
        Ok(())
    }

    pub(super) async fn roll_back(&mut self, back: &RollBack) -> Done {
        let volume = self.need_volume(back.volume).await?;
        known(&volume)?;
        let name = volume.name.clone();
        let of_volume = Object::new(Kind::Volume, &name);
        let one = self.need_snapshot(back.snapshot).await?;
        if volume.row.lineage == back.lineage {
            return Ok(Outcome::Unchanged);
        }
        may_roll_back(&volume, back, &one)?;
        let copies: BTreeMap<ReplicaId, &Copy> = one
            .copies
            .iter()
            .filter(|(replica, copy)| back.copies.contains(replica) && copy.phase == CopyPhase::Ready)
            .map(|(replica, copy)| (*replica, copy))
            .collect();
        let next: u32 = sqlx::query_scalar(sql::NEXT_REPLICA)
            .bind(volume.row.volume.to_string())
            .fetch_one(&mut *self.conn)
            .await?;
        let of_copies = one.copies.keys().map(|replica| replica.0.saturating_add(1));
        let first = of_copies.max().unwrap_or(0).max(next);
        let mut planned = Vec::new();
        for (number, (replica, member)) in (first..).zip(&volume.row.replicas) {
            let pool = volume.places.get(replica).map_or("", |place| place.pool.as_str());
            let of = copies.iter().find(|(_, copy)| is_at(copy, &member.node, pool));
            planned.push(Planned {
                replica: ReplicaId(number),
                node: &member.node,
                pool,
                of: of.map(|(replica, _)| *replica),
            });
        }
        if planned.iter().all(|plan| plan.of.is_none()) {
            let state = "has no copy where the volume has a replica and its node is connected".into();
            let object = object(&one.volume_name, &one.name);
            return Err(Refused::State { object, state }.into());
        }
        if self.dry {
            return Ok(Outcome::Changed);
        }
        self.replace_all(&volume, back, &one, &planned).await?;
        let message = format!("Volume {name} goes back to snapshot {}.", one.title());
        self.event(Weight::Warning, "volume-rolled-back", &of_volume, &message)
            .await?;
        Ok(Outcome::Changed)
    }

    /// New replicas of a new history under a new epoch; the old ones become tombstones.
    async fn replace_all(
        &mut self,
        volume: &Volume,
        back: &RollBack,
        one: &Snapshot,
        planned: &[Planned<'_>],
    ) -> Done<()> {
        let none = ForcedDelete {
            expect: back.expect,
            allocated: Vec::new(),
        };
        self.bury_replicas(volume, &none).await?;
        let id = volume.row.volume;
        sqlx::query(sql::DELETE_REPLICAS)
            .bind(id.to_string())
            .execute(&mut *self.conn)
            .await?;
        self.insert_planned(id, one, planned).await?;
        let row = VolumeRow {
            view: stor_replication::ids::View {
                epoch: volume.row.view.epoch.next(),
                config: volume.row.view.config.next(),
            },
            lineage: back.lineage,
            owner: None,
            clean: true,
            clean_before: true,
            replicas: BTreeMap::new(),
            ..volume.row.clone()
        };
        let mut emptied = volume.clone();
        emptied.row.replicas.clear();
        self.store_row(&emptied, row).await?;
        self.set_phase(id, VolumePhase::Creating).await?;
        self.touch_replica_nodes(volume).await
    }
}

fn is_at(copy: &Copy, node: &str, pool: &str) -> bool {
    copy.node == node && copy.pool == pool && copy.phase == CopyPhase::Ready
}

fn may_roll_back(volume: &Volume, back: &RollBack, one: &Snapshot) -> Done<()> {
    let object = Object::new(Kind::Volume, &volume.name);
    // Healing gives way.
    let used = volume
        .attachment
        .as_ref()
        .is_some_and(|is| is.purpose == Purpose::User);
    if let Some(node) = volume.row.owner.as_ref().filter(|_| used) {
        let by = format!("it is attached on node {node}");
        return Err(Refused::InUse { object, by }.into());
    }
    let state = match volume.phase {
        VolumePhase::Creating => Some("is still being created".to_owned()),
        VolumePhase::Deleting => Some("is being deleted".to_owned()),
        VolumePhase::Available if one.volume != volume.row.volume => {
            Some(format!("is not the volume of snapshot {}", one.title()))
        }
        VolumePhase::Available if one.size != volume.row.size => {
            Some("has another size than the snapshot; make a new volume of that".to_owned())
        }
        VolumePhase::Available if back.expect != volume.row.view.epoch => {
            Some("was attached meanwhile".to_owned())
        }
        VolumePhase::Available => None,
    };
    match state {
        Some(state) => Err(Refused::State { object, state }.into()),
        None => Ok(()),
    }
}
