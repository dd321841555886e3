//! `storctl volume delete`.

use stor_api::client::{Error, Filter, Wish};
use stor_api::objects::{Plan, Tombstone, TombstoneState, Volume};
use stor_api::size;

use super::attach::cut_off;
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::output::{Done, confirm, width};
use crate::snapshot;
use crate::table::{Column, Table};
use crate::wait::{self, Look};

pub(super) async fn delete(
    context: &Context,
    name: &str,
    force: bool,
    snapshots: bool,
) -> Result<(), Failure> {
    let kept = if snapshots {
        kept(context, name).await?
    } else {
        Vec::new()
    };
    if kept.is_empty() && context.planned(&Wish::DeleteVolume { name, force }).await? {
        return Ok(());
    }
    // Its id tells what is left of it from what is left of others that had the name.
    let volume = if force || !(context.yes || context.dry_run) {
        Some(context.client.volume(name).await?)
    } else {
        None
    };
    if let Some(volume) = volume.as_ref().filter(|_| !context.yes && !context.dry_run) {
        confirm_loss(volume, force, kept.len())?;
    }
    if context.dry_run {
        let mut steps: Vec<String> = kept.iter().map(|one| format!("delete snapshot {one}")).collect();
        steps.push(format!("delete volume {name}"));
        let placement = Vec::new();
        return context.out.plan(&Plan { steps, placement });
    }
    for one in &kept {
        snapshot::remove(context, one).await?;
    }
    context.client.delete_volume(name, force).await?;
    if let Some(volume) = volume.filter(|_| force) {
        return deleted_now(context, &volume).await;
    }
    if context.no_wait {
        return context.out.done(
            &Done::new("volume", name, "deleting"),
            &format!("volume {name} is being deleted"),
        );
    }
    gone(context, name).await?;
    context.out.done(
        &Done::new("volume", name, "deleted"),
        &format!("volume {name} deleted"),
    )
}

async fn kept(context: &Context, name: &str) -> Result<Vec<snapshot::Name>, Failure> {
    let filter = Filter {
        node: None,
        volume: Some(name.to_owned()),
    };
    let found = context.client.snapshots(&filter).await?;
    let named = found.into_iter().map(|one| snapshot::Name {
        volume: one.volume,
        name: one.name,
    });
    Ok(named.collect())
}

fn confirm_loss(volume: &Volume, force: bool, snapshots: usize) -> Result<(), Failure> {
    let name = &volume.name;
    let size = size::format(volume.size_bytes);
    let mut question = format!(
        "Volume {name} ({size}) and its {} replicas are deleted.",
        volume.replicas.len()
    );
    if snapshots > 0 {
        question = format!("{question} Its {snapshots} snapshots are deleted, too.");
    }
    if force {
        for attachment in &volume.attachments {
            question = format!("{question} {}", cut_off(attachment));
        }
    }
    let force = if force { " --force" } else { "" };
    confirm(&question, &format!("storctl volume delete {name}{force}"))
}

/// Waits until a volume that is being deleted is no more.
pub(crate) async fn gone(context: &Context, name: &str) -> Result<(), Failure> {
    let done = wait::until(context, &format!("deletion of volume {name}"), || async {
        match context.client.volume(name).await {
            Err(Error::NotFound { .. }) => Ok(Look::Done(())),
            Err(error) => Err(error.into()),
            Ok(volume) => Ok(Look::Pending(removing(&volume), None)),
        }
    })
    .await;
    done.map_err(|failure: Failure| match failure.exit {
        Exit::TimedOut => failure.help(format!(
            "it goes on when the nodes can; `storctl volume delete {name} --force` does without them and says what \
             they have left"
        )),
        _ => failure,
    })
}

fn removing(volume: &Volume) -> String {
    if !volume.reason.is_empty() {
        return volume.reason.clone();
    }
    let nodes: Vec<&str> = volume.replicas.iter().map(|r| r.node.as_str()).collect();
    format!("removing replicas on {}", nodes.join(", "))
}

/// The volume is gone already. Gives the nodes that are there the time to remove what they have, and names the rest.
async fn deleted_now(context: &Context, volume: &Volume) -> Result<(), Failure> {
    let name = &volume.name;
    let left = if context.no_wait {
        left_behind(context, volume).await?
    } else {
        removed(context, volume).await?
    };
    let done = Done {
        left_behind: Some(&left),
        ..Done::new("volume", name, "deleted")
    };
    let mut text = format!("volume {name} deleted");
    if !left.is_empty() {
        let table = table(&left).render(width());
        text = format!(
            "{text}; left behind, to be removed by the nodes when they can:\n\n{}",
            table.trim_end()
        );
    }
    context.out.done(&done, &text)
}

/// What is left once every node that can has removed its replica, or the time is over: the volume is gone all the
/// same.
async fn removed(context: &Context, volume: &Volume) -> Result<Vec<Tombstone>, Failure> {
    let what = format!("deletion of volume {}", volume.name);
    let waited = wait::until(context, &what, || async {
        let left = left_behind(context, volume).await?;
        let busy: Vec<&str> = left
            .iter()
            .filter(|one| one.state == TombstoneState::Removing)
            .map(|one| one.node.as_str())
            .collect();
        Ok(if busy.is_empty() {
            Look::Done(left)
        } else {
            Look::Pending(format!("removing replicas on {}", busy.join(", ")), None)
        })
    })
    .await;
    match waited {
        Err(failure) if failure.exit == Exit::TimedOut => left_behind(context, volume).await,
        waited => waited,
    }
}

async fn left_behind(context: &Context, volume: &Volume) -> Result<Vec<Tombstone>, Failure> {
    let filter = Filter {
        node: None,
        volume: Some(volume.name.clone()),
    };
    let mut left = context.client.tombstones(&filter).await?;
    left.retain(|one| one.volume_id == volume.id);
    Ok(left)
}

/// What nodes have of deleted volumes.
pub(crate) fn table(left: &[Tombstone]) -> Table {
    let mut table = Table::new(&[
        Column::left("VOLUME"),
        Column::left("NODE"),
        Column::left("POOL"),
        Column::right("ALLOCATED"),
        Column::left("STATE"),
        Column::optional("REASON"),
    ]);
    for one in left {
        let allocated = match one.allocated_bytes {
            Some(bytes) => size::format(bytes),
            None => format!("up to {}", size::format(one.size_bytes)),
        };
        let state = match one.state {
            TombstoneState::Removing => "being removed",
            TombstoneState::Offline => "offline",
            TombstoneState::Failed => "failed",
        };
        table.row([
            one.volume.clone().into(),
            one.node.clone().into(),
            one.pool.clone().into(),
            allocated.into(),
            state.into(),
            one.reason.clone().into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left() {
        let left = |node: &str, allocated_bytes, state, reason: &str| Tombstone {
            volume: "db1".into(),
            volume_id: "0191d5b4-0000-7000-8000-000000000001".into(),
            replica: 0,
            node: node.into(),
            pool: "sp01".into(),
            size_bytes: 10 << 30,
            allocated_bytes,
            state,
            reason: reason.into(),
            deleted: "2026-01-01T00:00:00Z".into(),
        };
        let all = [
            left(
                "s1",
                Some(3 << 30),
                TombstoneState::Offline,
                "node s1 is not connected",
            ),
            left("s2", None, TombstoneState::Failed, "/srv/stor is gone"),
            left("s3", Some(4096), TombstoneState::Removing, ""),
        ];
        insta::assert_snapshot!(anstream::adapter::strip_str(&table(&all).render(None)).to_string());
    }
}
