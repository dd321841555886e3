//! Nodes: registered, changed, seen, forgotten.

use std::collections::BTreeMap;

use super::tombstone::left_behind;
use super::{Apply, Done, Weight, expect_revision, json};
use crate::catalogue::command::{NodeWish, Seen};
use crate::catalogue::load::{self, integer};
use crate::catalogue::outcome::{Kind, Object, Outcome, Refused};
use crate::catalogue::row::Node;
use crate::catalogue::sql;

impl Apply<'_> {
    pub(super) async fn need_node(&mut self, name: &str) -> Done<Node> {
        let found = load::node(self.conn, name).await?;
        Ok(found.ok_or_else(|| Refused::NoSuch {
            object: Object::new(Kind::Node, name),
        })?)
    }

    pub(super) async fn register_node(&mut self, wish: &NodeWish) -> Done {
        let object = Object::new(Kind::Node, &wish.name);
        if let Some(node) = load::node(self.conn, &wish.name).await? {
            return match difference(&node, wish) {
                None => Ok(Outcome::Unchanged),
                Some(difference) => Err(Refused::Exists { object, difference }.into()),
            };
        }
        if self.dry {
            return Ok(Outcome::Created);
        }
        sqlx::query(sql::INSERT_NODE)
            .bind(&wish.name)
            .bind(&wish.address)
            .bind(wish.kind.word())
            .bind(json(&wish.properties)?)
            .bind(integer(self.index))
            .bind(integer(self.index))
            .execute(&mut *self.conn)
            .await?;
        let message = format!("Node {} was registered at {}.", wish.name, wish.address);
        self.event(Weight::Info, "node-registered", &object, &message)
            .await?;
        Ok(Outcome::Created)
    }

    pub(super) async fn change_node(
        &mut self,
        name: &str,
        expect: Option<u64>,
        changes: &BTreeMap<String, String>,
    ) -> Done {
        let node = self.need_node(name).await?;
        let object = Object::new(Kind::Node, name);
        expect_revision(&object, expect, node.revision)?;
        let mut properties = node.properties.clone();
        for (key, value) in changes {
            if value.is_empty() {
                properties.remove(key);
            } else {
                properties.insert(key.clone(), value.clone());
            }
        }
        if properties == node.properties {
            return Ok(Outcome::Unchanged);
        }
        if self.dry {
            return Ok(Outcome::Changed);
        }
        sqlx::query(sql::UPDATE_NODE_PROPERTIES)
            .bind(json(&properties)?)
            .bind(integer(self.index))
            .bind(name)
            .execute(&mut *self.conn)
            .await?;
        self.event(
            Weight::Info,
            "node-changed",
            &object,
            &format!("Properties of node {name} were changed."),
        )
        .await?;
        Ok(Outcome::Changed)
    }

    pub(super) async fn delete_node(&mut self, name: &str, expect: Option<u64>, force: bool) -> Done {
        let node = self.need_node(name).await?;
        let object = Object::new(Kind::Node, name);
        expect_revision(&object, expect, node.revision)?;
        let replicas: u64 = sqlx::query_scalar(sql::NODE_REPLICAS)
            .bind(name)
            .fetch_one(&mut *self.conn)
            .await?;
        if replicas > 0 {
            return Err(Refused::InUse {
                object,
                by: format!("it holds {}", count(replicas, "replica")),
            }
            .into());
        }
        let pools: u64 = sqlx::query_scalar(sql::NODE_POOLS)
            .bind(name)
            .fetch_one(&mut *self.conn)
            .await?;
        if pools > 0 && !force {
            return Err(Refused::InUse {
                object,
                by: format!("it has {}", count(pools, "pool")),
            }
            .into());
        }
        let owned: Option<String> = sqlx::query_scalar(sql::NODE_OWNED)
            .bind(name)
            .fetch_optional(&mut *self.conn)
            .await?;
        if let Some(volume) = owned {
            return Err(Refused::InUse {
                object,
                by: format!("volume {volume} is attached there"),
            }
            .into());
        }
        self.copies_left(&object, (name, None), force).await?;
        let left = self.left_on(name, None).await?;
        if !left.is_empty() && !force {
            return Err(left_behind(object, &left));
        }
        if self.dry {
            return Ok(Outcome::Changed);
        }
        self.give_up(&left).await?;
        for statement in [sql::DELETE_NODE_POOLS, sql::DELETE_NODE] {
            sqlx::query(statement).bind(name).execute(&mut *self.conn).await?;
        }
        self.event(
            Weight::Info,
            "node-deleted",
            &object,
            &match pools {
                0 => format!("Node {name} was deleted."),
                pools => format!("Node {name} was deleted with its {}.", count(pools, "pool")),
            },
        )
        .await?;
        Ok(Outcome::Changed)
    }

    pub(super) async fn node_seen(&mut self, name: &str, seen: &Seen) -> Done {
        let node = self.need_node(name).await?;
        let same = node.data_address == seen.data_address
            && node.version.as_ref() == Some(&seen.version)
            && node.boot_id.as_ref() == Some(&seen.boot_id)
            && node.transports == seen.transports;
        if same {
            return Ok(Outcome::Unchanged);
        }
        if self.dry {
            return Ok(Outcome::Changed);
        }
        sqlx::query(sql::UPDATE_NODE_SEEN)
            .bind(&seen.data_address)
            .bind(&seen.version)
            .bind(&seen.boot_id)
            .bind(json(&seen.transports)?)
            .bind(integer(self.index))
            .bind(name)
            .execute(&mut *self.conn)
            .await?;
        if node.data_address != seen.data_address {
            sqlx::query(sql::TOUCH_OWNERS)
                .bind(integer(self.index))
                .bind(name)
                .execute(&mut *self.conn)
                .await?;
        }
        Ok(Outcome::Changed)
    }

    pub(super) async fn node_connection(&mut self, name: &str, online: bool) -> Done {
        let node = self.need_node(name).await?;
        if node.online == Some(online) {
            return Ok(Outcome::Unchanged);
        }
        if self.dry {
            return Ok(Outcome::Changed);
        }
        sqlx::query(sql::UPDATE_NODE_ONLINE)
            .bind(online)
            .bind((!online).then_some(self.at))
            .bind(name)
            .execute(&mut *self.conn)
            .await?;
        let object = Object::new(Kind::Node, name);
        if online {
            self.event(
                Weight::Info,
                "node-online",
                &object,
                &format!("Node {name} is connected."),
            )
            .await?;
        } else {
            let message = format!("Node {name} is not connected any more.");
            self.event(Weight::Warning, "node-offline", &object, &message)
                .await?;
        }
        Ok(Outcome::Changed)
    }
}

/// "1 pool", "3 pools".
pub(super) fn count(number: u64, thing: &str) -> String {
    if number == 1 {
        format!("1 {thing}")
    } else {
        format!("{number} {thing}s")
    }
}

/// Properties may have been changed since, so that a repeated create does not compare them... except when
/// it asks for values the node does not have.
fn difference(node: &Node, wish: &NodeWish) -> Option<String> {
    if node.address != wish.address {
        return Some(format!("its address is {}", node.address));
    }
    if node.kind != wish.kind {
        return Some(format!("it is a {} node", node.kind.word()));
    }
    wish.properties
        .iter()
        .find(|(key, value)| node.properties.get(*key) != Some(value))
        .map(|(key, _)| format!("its property {key} has another value"))
}
