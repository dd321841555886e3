//! Who has a volume and which replicas are in sync. The decisions are `stor_replication::catalogue::decide`, the
//! very function the simulation runs; here they are loaded, stored and told.

use stor_replication::catalogue::{Change, Member, MemberState, Refusal, VolumeRow, decide};
use stor_replication::ids::{Epoch, ReplicaId, VolumeId};

use super::{Apply, Done, Weight};
use crate::catalogue::command::{Attach, Purpose};
use crate::catalogue::load::integer;
use crate::catalogue::outcome::{Kind, Object, Outcome, Refused};
use crate::catalogue::row::{Volume, VolumePhase};
use crate::catalogue::sql;

pub(super) fn refused(volume: &Volume, refusal: Refusal) -> Refused {
    Refused::View {
        refusal,
        row: Box::new(volume.row.clone()),
    }
}

impl Apply<'_> {
    pub(super) async fn change_view(&mut self, id: VolumeId, change: &Change, caller: &str) -> Done {
        let volume = self.need_known(id).await?;
        let not_its_own = matches!(
            change,
            Change::Attach { .. } | Change::Place { .. } | Change::Leave { .. } | Change::Grow { .. }
        );
        if not_its_own {
            let object = Object::new(Kind::Volume, &volume.name);
            return Err(Refused::State {
                object,
                state: "can't be changed so by a node itself".into(),
            }
            .into());
        }
        match volume.row.owner.as_deref() {
            None => return Err(refused(&volume, Refusal::NotAttached).into()),
            Some(owner) if owner != caller => {
                return Err(refused(&volume, Refusal::NotOwner { owner: caller.into() }).into());
            }
            Some(_) => {}
        }
        let mut row = decide(&volume.row, change).map_err(|refusal| refused(&volume, refusal))?;
        let snapshot = self.check_snapshot(&volume, change).await?;
        Self::check_scrub(&volume, change)?;
        if let Change::Add { member, .. } = change {
            row = Self::succeed(&volume, row, *member);
        }
        if self.dry {
            return Ok(Outcome::Changed);
        }
        if let Some(snapshot) = snapshot {
            self.snapshot_told(&volume, &snapshot, change).await?;
        }
        if let Change::Scrubbed { report, .. } = change {
            self.scrub_told(&volume, report).await?;
        }
        let row = self.store_row(&volume, row).await?;
        self.tell(&volume, &row, change).await?;
        Ok(Outcome::Row(Box::new(row)))
    }

    pub(super) async fn attach(&mut self, attach: &Attach) -> Done {
        let volume = self.need_known(attach.volume).await?;
        let object = Object::new(Kind::Volume, &volume.name);
        match volume.phase {
            VolumePhase::Available => {}
            VolumePhase::Creating => {
                return Err(Refused::State {
                    object,
                    state: "is still being created".into(),
                }
                .into());
            }
            VolumePhase::Deleting => {
                return Err(Refused::State {
                    object,
                    state: "is being deleted".into(),
                }
                .into());
            }
        }
        self.need_node(&attach.node).await?;
        let mut force = attach.force && attach.purpose == Purpose::User;
        if let (Some(owner), Some(is)) = (&volume.row.owner, &volume.attachment) {
            if is.purpose == Purpose::Healing {
                force |= attach.purpose == Purpose::User;
            } else if *owner == attach.node && !is.detaching && attach.purpose == Purpose::User {
                // Asked again, with or without force: the node has it. A new epoch would only make its
                // engine start over.
                if is.transport == attach.transport && is.read_only == attach.read_only {
                    return Ok(Outcome::Unchanged);
                }
                if !force {
                    let object =
                        Object::new(Kind::Attachment, format!("of volume {} on {owner}", volume.name));
                    return Err(Refused::Exists {
                        object,
                        difference: if is.read_only == attach.read_only {
                            format!("its transport is {}", is.transport)
                        } else {
                            let how = if is.read_only { "read-only" } else { "writable" };
                            format!("it is {how}")
                        },
                    }
                    .into());
                }
            }
        }
        let change = Change::Attach {
            owner: attach.node.clone(),
            expect: attach.expect,
            force,
        };
        let row = decide(&volume.row, &change).map_err(|refusal| refused(&volume, refusal))?;
        if self.dry {
            return Ok(Outcome::Created);
        }
        let row = self.store_row(&volume, row).await?;
        sqlx::query(sql::SET_ATTACHMENT)
            .bind(attach.volume.to_string())
            .bind(&attach.transport)
            .bind(attach.read_only)
            .bind(attach.purpose.word())
            .execute(&mut *self.conn)
            .await?;
        self.tell_attached(&volume, attach, &object).await?;
        Ok(Outcome::Row(Box::new(row)))
    }

    pub(super) async fn detach(&mut self, id: VolumeId, expect: Epoch, force: bool) -> Done {
        let volume = self.need_known(id).await?;
        if volume.row.owner.is_none() {
            return Ok(Outcome::Unchanged);
        }
        let change = Change::Detach { expect, clean: false };
        let row = decide(&volume.row, &change).map_err(|refusal| refused(&volume, refusal))?;
        let detaching = volume.attachment.as_ref().is_some_and(|a| a.detaching);
        if !force && detaching {
            return Ok(Outcome::Unchanged);
        }
        if self.dry {
            return Ok(Outcome::Changed);
        }
        if force {
            let row = self.store_row(&volume, row).await?;
            self.tell(&volume, &row, &change).await?;
            return Ok(Outcome::Row(Box::new(row)));
        }
        sqlx::query(sql::MARK_DETACHING)
            .bind(id.to_string())
            .execute(&mut *self.conn)
            .await?;
        let row = VolumeRow {
            revision: self.index,
            ..volume.row.clone()
        };
        let row = self.store_row(&volume, row).await?;
        Ok(Outcome::Row(Box::new(row)))
    }

    /// Writes the row that was decided and drops the attachment with its owner. The revision becomes this
    /// entry's index, which is above any the row had.
    pub(super) async fn store_row(&mut self, before: &Volume, mut row: VolumeRow) -> Done<VolumeRow> {
        row.revision = self.index;
        let id = row.volume.to_string();
        sqlx::query(sql::UPDATE_VOLUME_ROW)
            .bind(integer(row.size))
            .bind(integer(row.view.epoch.0))
            .bind(integer(row.view.config.0))
            .bind(&row.owner)
            .bind(row.clean)
            .bind(row.clean_before)
            .bind(row.lineage.to_string())
            .bind(row.min_in_sync)
            .bind(integer(row.revision))
            .bind(&id)
            .execute(&mut *self.conn)
            .await?;
        for (replica, member) in &row.replicas {
            if before.row.replicas.get(replica) != Some(member) {
                self.store_member(&id, *replica, member).await?;
            }
        }
        self.bury_left(before, &row).await?;
        if row.owner.is_none() {
            sqlx::query(sql::DELETE_ATTACHMENT)
                .bind(&id)
                .execute(&mut *self.conn)
                .await?;
        }
        for owner in [&before.row.owner, &row.owner].into_iter().flatten() {
            self.touch(owner).await?;
        }
        Ok(row)
    }

    async fn store_member(&mut self, volume: &str, replica: ReplicaId, member: &Member) -> Done<()> {
        let (in_sync, since, reason) = match member.state {
            MemberState::InSync => (true, None, None),
            MemberState::Stale { since, reason } => (
                false,
                since.map(|config| integer(config.0)),
                Some(reason.to_string()),
            ),
        };
        sqlx::query(sql::UPDATE_REPLICA)
            .bind(in_sync)
            .bind(member.joined.map(|config| integer(config.0)))
            .bind(since)
            .bind(reason)
            .bind(member.leaving)
            .bind(volume)
            .bind(replica.0)
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    async fn tell_attached(&mut self, before: &Volume, attach: &Attach, object: &Object) -> Done<()> {
        let (name, node) = (&before.name, &attach.node);
        let healing = |volume: &Volume| {
            volume
                .attachment
                .as_ref()
                .is_some_and(|a| a.purpose == Purpose::Healing)
        };
        if let Some(old) = &before.row.owner
            && !healing(before)
        {
            let message = format!("Volume {name} was taken from node {old}; its engine there is fenced.");
            self.event(Weight::Warning, "volume-fenced", object, &message)
                .await?;
        }
        match attach.purpose {
            Purpose::User => {
                let how = mode(&attach.transport, attach.read_only);
                let message = format!("Volume {name} was attached on node {node} ({how}).");
                self.event(Weight::Info, "volume-attached", object, &message)
                    .await
            }
            Purpose::Healing => {
                let message = format!("Node {node} brings the replicas of volume {name} up to date.");
                self.event(Weight::Info, "healing-started", object, &message)
                    .await
            }
        }
    }

    async fn tell(&mut self, before: &Volume, row: &VolumeRow, change: &Change) -> Done<()> {
        let object = Object::new(Kind::Volume, &before.name);
        let name = &before.name;
        let members = &before.row.replicas;
        let node_of = |replica: &ReplicaId| members.get(replica).map_or("?", |m| m.node.as_str());
        match change {
            // Told where they are made.
            Change::Attach { .. }
            | Change::Place { .. }
            | Change::Leave { .. }
            | Change::Grow { .. }
            | Change::SnapshotReady { .. }
            | Change::SnapshotFailed { .. }
            | Change::Scrubbed { .. } => {}
            Change::Restart { owner, .. } => {
                let message = format!("The engine of volume {name} on node {owner} was restarted.");
                self.event(Weight::Warning, "engine-restarted", &object, &message)
                    .await?;
            }
            Change::Detach { clean, .. } => {
                let owner = before.row.owner.as_deref().unwrap_or_default();
                let healed = before
                    .attachment
                    .as_ref()
                    .is_some_and(|a| a.purpose == Purpose::Healing);
                let kind = if healed {
                    "healing-ended"
                } else {
                    "volume-detached"
                };
                let how = if *clean { "" } else { " without its engine's word" };
                let message = format!("Volume {name} was detached from node {owner}{how}.");
                let weight = if *clean { Weight::Info } else { Weight::Warning };
                self.event(weight, kind, &object, &message).await?;
            }
            Change::Remove { members, .. } => {
                // One that was to go is told of by its end.
                let stays = |replica: &ReplicaId| row.replicas.contains_key(replica);
                for (replica, reason) in members.iter().filter(|(replica, _)| stays(replica)) {
                    let node = node_of(replica);
                    let message = format!(
                        "The replica of volume {name} on node {node} left the in-sync set: {reason}."
                    );
                    self.event(Weight::Warning, "replica-removed", &object, &message)
                        .await?;
                }
            }
            Change::Add { member, .. } => {
                let node = node_of(member);
                let message = format!("The replica of volume {name} on node {node} is in sync again.");
                self.event(Weight::Info, "replica-added", &object, &message)
                    .await?;
            }
        }
        Ok(())
    }
}

fn mode(transport: &str, read_only: bool) -> String {
    if read_only {
        format!("transport {transport}, read-only")
    } else {
        format!("transport {transport}")
    }
}
