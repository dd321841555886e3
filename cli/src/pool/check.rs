//! `storctl pool check`: what is in pools and belongs to nothing.

use std::collections::BTreeMap;

use stor_api::client::Filter;
use stor_api::objects::{Orphan, OrphanRemoval};
use stor_api::size;

use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::output::{confirm, note};
use crate::table::{Column, Table};
use crate::wait::{self, Look};

/// Lists it; removes it when asked to.
pub(super) async fn run(context: &Context, node: Option<String>, remove: bool) -> Result<(), Failure> {
    let filter = Filter {
        node: node.clone(),
        volume: None,
    };
    let pools = context.client.pools().await?;
    let unchecked: Vec<String> = pools
        .iter()
        .filter(|pool| node.as_ref().is_none_or(|node| *node == pool.node) && !pool.checked)
        .map(|pool| format!("{} on {}", pool.name, pool.node))
        .collect();
    let orphans = context.client.orphans(&filter).await?;
    if !remove || orphans.is_empty() {
        context
            .out
            .list(orphans, "nothing is in the pools that belongs to nothing", table)?;
        return all_checked(&unchecked);
    }
    if !context.yes {
        let question = format!(
            "{}\nAll of this is removed for good.",
            table(&orphans).render(None)
        );
        confirm(&question, "storctl pool check --remove")?;
    }
    let mut places = BTreeMap::<(String, String), Vec<String>>::new();
    for orphan in &orphans {
        let place = (orphan.pool.clone(), orphan.node.clone());
        places.entry(place).or_default().push(orphan.name.clone());
    }
    for ((pool, node), names) in places {
        let removal = OrphanRemoval { names };
        context.client.remove_orphans(&pool, &node, &removal).await?;
    }
    if !context.no_wait {
        wait::until(context, "removing what belongs to nothing", || async {
            let left = context.client.orphans(&filter).await?;
            let left: Vec<_> = left.iter().filter(|orphan| orphans.contains(orphan)).collect();
            Ok(match left.first() {
                None => Look::Done(()),
                Some(first) => {
                    Look::Pending(format!("{} are left, such as {}", left.len(), first.name), None)
                }
            })
        })
        .await?;
    }
    note(&format!("removed: {}", orphans.len()));
    all_checked(&unchecked)
}

/// What was not looked at is not clean.
fn all_checked(unchecked: &[String]) -> Result<(), Failure> {
    if unchecked.is_empty() {
        return Ok(());
    }
    Err(
        Failure::new(Exit::Failed, format!("not checked: {}", unchecked.join(", "))).help(
            "bring these nodes and pools back; while a restored catalogue is not settled, no pool is checked",
        ),
    )
}

fn table(orphans: &[Orphan]) -> Table {
    let mut table = Table::new(&[
        Column::left("NODE"),
        Column::left("POOL"),
        Column::left("NAME"),
        Column::right("SIZE"),
        Column::left("WHAT"),
    ]);
    for orphan in orphans {
        table.row([
            orphan.node.clone().into(),
            orphan.pool.clone().into(),
            orphan.name.clone().into(),
            size::format(orphan.bytes).into(),
            orphan.what.clone().into(),
        ]);
    }
    table
}
