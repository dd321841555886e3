//! Pools and classes.

use std::path::Path;

use super::node::count;
use super::tombstone::left_behind;
use super::{Apply, Done, Weight, expect_revision, json};
use crate::catalogue::command::{ClassWish, Device, NodeKind, PoolKind, PoolWish};
use crate::catalogue::load::{self, integer};
use crate::catalogue::outcome::{Kind, Object, Outcome, Refused};
use crate::catalogue::row::Pool;
use crate::catalogue::sql;

pub(super) fn pool_object(name: &str, node: &str) -> Object {
    Object::new(Kind::Pool, format!("{name} on {node}"))
}

impl Apply<'_> {
    async fn need_pool(&mut self, name: &str, node: &str) -> Done<Pool> {
        let found = load::pool(self.conn, name, node).await?;
        Ok(found.ok_or_else(|| Refused::NoSuch {
            object: pool_object(name, node),
        })?)
    }

    pub(super) async fn create_pool(&mut self, wish: &PoolWish) -> Done {
        let object = pool_object(&wish.name, &wish.node);
        let node = self.need_node(&wish.node).await?;
        if node.kind == NodeKind::Diskless {
            let object = Object::new(Kind::Node, &wish.node);
            return Err(Refused::State {
                object,
                state: "is diskless and can't have pools".into(),
            }
            .into());
        }
        if let Some(pool) = load::pool(self.conn, &wish.name, &wish.node).await? {
            return match difference(&pool.wish, wish) {
                None => Ok(Outcome::Unchanged),
                Some(difference) => Err(Refused::Exists { object, difference }.into()),
            };
        }
        let other: Option<String> = sqlx::query_scalar(sql::POOL_AT)
            .bind(&wish.node)
            .bind(&wish.dir)
            .fetch_optional(&mut *self.conn)
            .await?;
        if let Some(other) = other {
            let object = Object::new(Kind::Pool, format!("{other} on {}", wish.node));
            return Err(Refused::Exists {
                object,
                difference: match wish.kind {
                    PoolKind::File => format!("it has the directory {}", wish.dir),
                    PoolKind::LvmThin => format!("it has the thin pool {}", wish.dir),
                },
            }
            .into());
        }
        self.devices_are_free(wish).await?;
        self.not_nested(wish).await?;
        if self.dry {
            return Ok(Outcome::Created);
        }
        sqlx::query(sql::INSERT_POOL)
            .bind(&wish.name)
            .bind(&wish.node)
            .bind(wish.kind.word())
            .bind(&wish.dir)
            .bind(json(&wish.devices)?)
            .bind(wish.adopt)
            .bind(wish.wipe)
            .bind(json(&wish.tags)?)
            .bind(integer(wish.overprovision_milli))
            .bind(integer(self.index))
            .execute(&mut *self.conn)
            .await?;
        // It is told of when its node has taken it, or when it is taken away before.
        self.touch(&wish.node).await?;
        Ok(Outcome::Created)
    }

    /// No pool's directory is in another's: each would take the other's replicas for its own.
    async fn not_nested(&mut self, wish: &PoolWish) -> Done<()> {
        if wish.kind != PoolKind::File {
            return Ok(());
        }
        let dir = Path::new(&wish.dir);
        for pool in load::pools_on(self.conn, &wish.node).await? {
            let (name, other) = (&pool.name, Path::new(&pool.dir));
            if pool.kind != PoolKind::File {
                continue;
            }
            if dir.starts_with(other) || other.starts_with(dir) {
                return Err(Refused::State {
                    object: Object::new(Kind::Node, &wish.node),
                    state: format!(
                        "has pool {name} in {}, and one pool can't be inside another; give a directory beside it",
                        other.display()
                    ),
                }
                .into());
            }
        }
        Ok(())
    }

    /// No disk is asked for twice: the second asker would find it used, or wipe it.
    async fn devices_are_free(&mut self, wish: &PoolWish) -> Done<()> {
        for other in load::pools_on(self.conn, &wish.node).await? {
            let shared = |device: &&Device| other.devices.iter().any(|taken| taken.path == device.path);
            if let Some(device) = wish.devices.iter().find(shared) {
                return Err(Refused::Exists {
                    object: pool_object(&other.name, &wish.node),
                    difference: format!("it has the disk {}", device.path),
                }
                .into());
            }
        }
        Ok(())
    }

    pub(super) async fn pools_observed(&mut self, node: &str, ready: &[String]) -> Done {
        if self.dry {
            return Ok(Outcome::Unchanged);
        }
        let mut outcome = Outcome::Unchanged;
        for name in ready {
            let found = load::pool(self.conn, name, node).await?;
            let Some(pool) = found.filter(|pool| !pool.ready) else {
                continue;
            };
            sqlx::query(sql::POOL_READY)
                .bind(name)
                .bind(node)
                .execute(&mut *self.conn)
                .await?;
            let message = format!("Pool {name} was created on node {node} in {}.", pool.wish.dir);
            self.event(Weight::Info, "pool-created", &pool_object(name, node), &message)
                .await?;
            // From now on it is not to be made again.
            self.touch(node).await?;
            outcome = Outcome::Changed;
        }
        Ok(outcome)
    }

    pub(super) async fn change_pool(
        &mut self,
        name: &str,
        node: &str,
        expect: Option<u64>,
        tags: Option<&[String]>,
        overprovision_milli: Option<u64>,
    ) -> Done {
        let pool = self.need_pool(name, node).await?;
        let object = pool_object(name, node);
        expect_revision(&object, expect, pool.revision)?;
        let tags = tags.unwrap_or(&pool.wish.tags);
        let overprovision = overprovision_milli.unwrap_or(pool.wish.overprovision_milli);
        if tags == pool.wish.tags && overprovision == pool.wish.overprovision_milli {
            return Ok(Outcome::Unchanged);
        }
        if self.dry {
            return Ok(Outcome::Changed);
        }
        sqlx::query(sql::UPDATE_POOL)
            .bind(json(&tags)?)
            .bind(integer(overprovision))
            .bind(integer(self.index))
            .bind(name)
            .bind(node)
            .execute(&mut *self.conn)
            .await?;
        let message = format!("Pool {name} on node {node} was changed.");
        self.event(Weight::Info, "pool-changed", &object, &message)
            .await?;
        Ok(Outcome::Changed)
    }

    pub(super) async fn delete_pool(
        &mut self,
        name: &str,
        node: &str,
        expect: Option<u64>,
        force: bool,
        refused: Option<&str>,
    ) -> Done {
        let pool = self.need_pool(name, node).await?;
        let object = pool_object(name, node);
        expect_revision(&object, expect, pool.revision)?;
        if pool.replicas > 0 {
            let by = format!("it holds {}", count(pool.replicas, "replica"));
            return Err(Refused::InUse { object, by }.into());
        }
        self.copies_left(&object, (node, Some(name)), force).await?;
        let left = self.left_on(node, Some(name)).await?;
        if !left.is_empty() && !force {
            return Err(left_behind(object, &left));
        }
        if self.dry {
            return Ok(Outcome::Changed);
        }
        self.give_up(&left).await?;
        sqlx::query(sql::DELETE_POOL)
            .bind(name)
            .bind(node)
            .execute(&mut *self.conn)
            .await?;
        self.touch(node).await?;
        if let (false, Some(why)) = (pool.ready, refused) {
            let message = format!(
                "Pool {name} was not made: node {node} can't use {}: {why}.",
                pool.wish.dir
            );
            self.event(Weight::Warning, "pool-refused", &object, &message)
                .await?;
            return Ok(Outcome::Changed);
        }
        let left = match pool.wish.kind {
            PoolKind::File => "its directory was left as it is",
            PoolKind::LvmThin => "the node gives its thin pool back",
        };
        let message = format!("Pool {name} on node {node} was deleted; {left}.");
        self.event(Weight::Info, "pool-deleted", &object, &message)
            .await?;
        Ok(Outcome::Changed)
    }

    pub(super) async fn create_class(&mut self, wish: &ClassWish) -> Done {
        let object = Object::new(Kind::Class, &wish.name);
        if let Some(class) = load::class(self.conn, &wish.name).await? {
            if class.wish == *wish {
                return Ok(Outcome::Unchanged);
            }
            return Err(Refused::Exists {
                object,
                difference: class_difference(&class.wish, wish),
            }
            .into());
        }
        if self.dry {
            return Ok(Outcome::Created);
        }
        sqlx::query(sql::INSERT_CLASS)
            .bind(&wish.name)
            .bind(wish.replicas)
            .bind(&wish.pool)
            .bind(json(&wish.tags)?)
            .bind(&wish.transport)
            .bind(&wish.spread)
            .bind(&wish.together)
            .bind(wish.scrub_days)
            .bind(integer(self.index))
            .execute(&mut *self.conn)
            .await?;
        self.event(
            Weight::Info,
            "class-created",
            &object,
            &format!("Class {} was created.", wish.name),
        )
        .await?;
        Ok(Outcome::Created)
    }

    pub(super) async fn delete_class(&mut self, name: &str, expect: Option<u64>) -> Done {
        let object = Object::new(Kind::Class, name);
        let Some(class) = load::class(self.conn, name).await? else {
            return Err(Refused::NoSuch { object }.into());
        };
        expect_revision(&object, expect, class.revision)?;
        if self.dry {
            return Ok(Outcome::Changed);
        }
        sqlx::query(sql::DELETE_CLASS)
            .bind(name)
            .execute(&mut *self.conn)
            .await?;
        self.event(
            Weight::Info,
            "class-deleted",
            &object,
            &format!("Class {name} was deleted."),
        )
        .await?;
        Ok(Outcome::Changed)
    }
}

fn difference(is: &PoolWish, wish: &PoolWish) -> Option<String> {
    if is.kind != wish.kind {
        return Some(format!("it is of kind {}", is.kind.word()));
    }
    if is.dir != wish.dir {
        return Some(match is.kind {
            PoolKind::File => format!("its directory is {}", is.dir),
            PoolKind::LvmThin => format!("its thin pool is {}", is.dir),
        });
    }
    let paths =
        |wish: &PoolWish| -> Vec<String> { wish.devices.iter().map(|device| device.path.clone()).collect() };
    if paths(is) != paths(wish) {
        return Some(format!("its disks are {}", paths(is).join(", ")));
    }
    if is.tags != wish.tags {
        return Some(format!("its tags are {}", is.tags.join(", ")));
    }
    (is.overprovision_milli != wish.overprovision_milli)
        .then(|| "its over-provisioning limit is another".to_owned())
}

/// The first value of a class that is not the one asked for.
fn class_difference(is: &ClassWish, wish: &ClassWish) -> String {
    if is.replicas != wish.replicas {
        return format!("its number of replicas is {}", is.replicas);
    }
    if is.tags != wish.tags {
        return if is.tags.is_empty() {
            "it has no tags".to_owned()
        } else {
            format!("its tags are {}", is.tags.join(", "))
        };
    }
    let values = [
        ("pool", &is.pool, &wish.pool),
        ("transport", &is.transport, &wish.transport),
        ("spread", &is.spread, &wish.spread),
        ("together", &is.together, &wish.together),
    ];
    if is.scrub_days != wish.scrub_days {
        return match is.scrub_days {
            Some(days) => format!("its volumes are scrubbed every {days} days"),
            None => "its volumes are scrubbed as the cluster does".to_owned(),
        };
    }
    let differing = values.into_iter().find(|(_, is, wished)| is != wished);
    match differing {
        Some((what, Some(value), _)) => format!("its {what} is {value}"),
        Some((what, None, _)) => format!("it has no {what}"),
        None => "its values are others".to_owned(),
    }
}
