//! Volumes made of what another one holds: when the snapshot made for one is ready, the volume is made of it; when that
//! needs it no more, it goes. What can't be made is undone, and the reason stays to be seen for a while.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use stor_replication::ids::SnapshotId;

use crate::catalogue::command::CloneWish;
use crate::catalogue::snapshot::{self, Snapshot, SnapshotPhase, Which};
use crate::catalogue::{Action, Refused};
use crate::cluster::{Cluster, Trouble};
use crate::rest;

/// How long one that failed is shown.
const SHOWN: Duration = Duration::from_mins(1);

/// What the leader remembers between passes: since when it knows of those that failed. A new leader waits anew.
#[derive(Debug, Default)]
pub(super) struct Clones {
    failed: BTreeMap<SnapshotId, Instant>,
}

impl Clones {
    /// Goes on with each as far as it can.
    pub(super) async fn tend(&mut self, cluster: &Cluster) -> Result<(), Trouble> {
        let mut look = cluster.look_local().await?;
        let all = snapshot::snapshots(look.rows(), Which::Clones).await?;
        drop(look);
        self.failed.retain(|id, _| all.iter().any(|one| one.id == *id));
        for one in all {
            match (&one.clone, one.phase) {
                (Some(wish), SnapshotPhase::Ready) if !one.clone_made => make(cluster, &one, wish).await?,
                // Refused while a replica is still being made of it.
                (_, SnapshotPhase::Ready) => remove(cluster, &one).await?,
                _ => {
                    let since = *self.failed.entry(one.id).or_insert_with(Instant::now);
                    if since.elapsed() >= SHOWN {
                        remove(cluster, &one).await?;
                    }
                }
            }
        }
        Ok(())
    }
}

async fn make(cluster: &Cluster, one: &Snapshot, wish: &CloneWish) -> Result<(), Trouble> {
    let mut look = cluster.look_local().await?;
    let drafted = rest::draft_clone(&mut look, one, wish).await;
    drop(look);
    let why = match drafted {
        Err(rest::NotDrafted::Trouble(trouble)) => return Err(trouble),
        Err(rest::NotDrafted::Refused(why)) => why,
        Ok(restore) => match cluster.propose(Action::RestoreSnapshot(restore)).await? {
            // Placed with what was true a moment ago: the next pass does it again.
            Ok(_) | Err(Refused::PlacementStale { .. }) => return Ok(()),
            Err(refused) => refused.to_string(),
        },
    };
    let snapshot = one.id;
    told(one, cluster.propose(Action::FailClone { snapshot, why }).await?);
    Ok(())
}

async fn remove(cluster: &Cluster, one: &Snapshot) -> Result<(), Trouble> {
    let action = Action::DeleteSnapshot {
        snapshot: one.id,
        expect: None,
    };
    told(one, cluster.propose(action).await?);
    Ok(())
}

fn told(one: &Snapshot, reply: Result<crate::catalogue::Outcome, Refused>) {
    if let Err(refused) = reply {
        tracing::debug!(snapshot = %one.id, %refused, "a clone is gone on with later");
    }
}
