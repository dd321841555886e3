//! The keys rights are signed with: added when a controller comes, retired when it goes.

use stor_right::PublicKey;

use super::{Apply, Done, Weight};
use crate::catalogue::load::{self, integer};
use crate::catalogue::outcome::{Kind, Object, Outcome};
use crate::catalogue::sql;

/// Retired keys kept. What one of them signed opens its epoch again after a connection broke, until the
/// volume's right was renewed: minutes, unless its node is cut off from all controllers for longer than it takes
/// to replace so many of them.
pub(super) const RETIRED_KEPT: u64 = 32;

impl Apply<'_> {
    pub(super) async fn add_signer(&mut self, controller: u64, name: &str, key: PublicKey) -> Done {
        let known = load::signers(self.conn).await?;
        let mut present = known
            .iter()
            .filter(|one| one.controller == controller && !one.retired);
        if present.any(|one| one.key == key) {
            return Ok(Outcome::Unchanged);
        }
        if self.dry {
            return Ok(Outcome::Created);
        }
        sqlx::query(sql::RETIRE_SIGNERS)
            .bind(integer(controller))
            .execute(&mut *self.conn)
            .await?;
        sqlx::query(sql::ADD_SIGNER)
            .bind(key.to_string())
            .bind(integer(controller))
            .bind(integer(self.index))
            .execute(&mut *self.conn)
            .await?;
        self.signers_changed().await?;
        let object = Object::new(Kind::Controller, name);
        let message = format!("Controller {name} signs rights to attach with key {}.", key.id());
        self.event(Weight::Info, "signing-key-added", &object, &message)
            .await?;
        Ok(Outcome::Created)
    }

    pub(super) async fn retire_signers(&mut self, controller: u64) -> Done {
        let known = load::signers(self.conn).await?;
        if !known
            .iter()
            .any(|one| one.controller == controller && !one.retired)
        {
            return Ok(Outcome::Unchanged);
        }
        if self.dry {
            return Ok(Outcome::Changed);
        }
        sqlx::query(sql::RETIRE_SIGNERS)
            .bind(integer(controller))
            .execute(&mut *self.conn)
            .await?;
        self.signers_changed().await?;
        Ok(Outcome::Changed)
    }

    /// Every node that serves replicas has to know the keys.
    async fn signers_changed(&mut self) -> Done<()> {
        sqlx::query(sql::TRIM_SIGNERS)
            .bind(integer(RETIRED_KEPT))
            .execute(&mut *self.conn)
            .await?;
        sqlx::query(sql::TOUCH_NODES)
            .bind(integer(self.index))
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }
}
