//! Applies a command: load the rows it touches, decide, write. Every refusal comes before the first write,
//! which is also what makes [`check`] (a dry run) possible: it stops where writing would begin.

mod clones;
mod copies;
mod history;
mod node;
mod pool;
mod replica;
mod restore;
mod scrub;
mod signer;
mod snapshot;
mod tombstone;
mod view;
mod volume;

pub use history::is_above;

use sqlx::SqliteConnection;
use stor_replication::ids::VolumeId;

use super::command::{Action, Command};
use super::load::{self, integer};
use super::outcome::{Kind, Object, Outcome, Refused, Reply};
use super::row::Volume;
use super::{EVENTS_KEPT, sql};

/// Applies the command of log entry `index` inside the caller's transaction. An error is one of the
/// database, and the caller must not commit.
pub async fn apply(conn: &mut SqliteConnection, index: u64, command: &Command) -> Result<Reply, sqlx::Error> {
    let mut apply = Apply {
        conn,
        index,
        at: &command.at,
        dry: false,
    };
    reply(apply.action(&command.action).await)
}

/// What [`apply`] would answer now, without writing anything.
pub async fn check(conn: &mut SqliteConnection, action: &Action) -> Result<Reply, sqlx::Error> {
    let mut apply = Apply {
        conn,
        index: 0,
        at: "",
        dry: true,
    };
    reply(apply.action(action).await)
}

fn reply(done: Done) -> Result<Reply, sqlx::Error> {
    match done {
        Ok(outcome) => Ok(Ok(outcome)),
        Err(Stop::Refused(refused)) => Ok(Err(*refused)),
        Err(Stop::Database(error)) => Err(error),
    }
}

/// Why applying ended early.
enum Stop {
    Refused(Box<Refused>),
    Database(sqlx::Error),
}

impl From<Refused> for Stop {
    fn from(refused: Refused) -> Self {
        Self::Refused(Box::new(refused))
    }
}

impl From<sqlx::Error> for Stop {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

type Done<T = Outcome> = Result<T, Stop>;

/// Weight of an event.
#[derive(Clone, Copy)]
enum Weight {
    Info,
    Warning,
}

/// One command being applied.
struct Apply<'a> {
    conn: &'a mut SqliteConnection,
    index: u64,
    at: &'a str,
    dry: bool,
}

impl Apply<'_> {
    async fn action(&mut self, action: &Action) -> Done {
        match action {
            Action::InitCluster { id } => self.init_cluster(*id).await,
            Action::AddSigner {
                controller,
                name,
                key,
            } => self.add_signer(*controller, name, *key).await,
            Action::RetireSigners { controller } => self.retire_signers(*controller).await,
            Action::RegisterNode(wish) => self.register_node(wish).await,
            Action::ChangeNode {
                name,
                expect,
                properties,
            } => self.change_node(name, *expect, properties).await,
            Action::DeleteNode { name, expect, force } => self.delete_node(name, *expect, *force).await,
            Action::NodeSeen { name, seen } => self.node_seen(name, seen).await,
            Action::NodeConnection { name, online } => self.node_connection(name, *online).await,
            Action::CreatePool(wish) => self.create_pool(wish).await,
            Action::ChangePool {
                name,
                node,
                expect,
                tags,
                overprovision_milli,
            } => {
                self.change_pool(name, node, *expect, tags.as_deref(), *overprovision_milli)
                    .await
            }
            Action::PoolsObserved { node, ready } => self.pools_observed(node, ready).await,
            Action::DeletePool {
                name,
                node,
                expect,
                force,
                refused,
            } => {
                self.delete_pool(name, node, *expect, *force, refused.as_deref())
                    .await
            }
            Action::CreateClass(wish) => self.create_class(wish).await,
            Action::DeleteClass { name, expect } => self.delete_class(name, *expect).await,
            Action::CreateVolume(new) => self.create_volume(new).await,
            Action::DeleteVolume {
                name,
                expect,
                gone,
                force: None,
            } => self.delete_volume(name, *expect, *gone).await,
            Action::DeleteVolume {
                name,
                expect,
                gone: _,
                force: Some(force),
            } => self.delete_volume_now(name, *expect, force).await,
            Action::CreateSnapshots { batch, snapshots } => self.create_snapshots(*batch, snapshots).await,
            Action::GoSnapshots { batch } => self.go_snapshots(*batch).await,
            Action::FailSnapshots { batch, why } => self.fail_snapshots(*batch, why).await,
            Action::DeleteSnapshot { snapshot, expect } => self.delete_snapshot(*snapshot, *expect).await,
            Action::CopiesObserved { node, gone, made } => self.copies_observed(node, gone, made).await,
            Action::RecopySnapshot { snapshot, replica } => self.recopy_snapshot(*snapshot, *replica).await,
            Action::DropCopy { snapshot, replica } => self.drop_copy(*snapshot, *replica).await,
            Action::CloneVolume {
                batch,
                snapshot,
                into,
            } => self.clone_volume(*batch, snapshot, into).await,
            Action::FailClone { snapshot, why } => self.fail_clone(*snapshot, why).await,
            Action::RestoreSnapshot(restore) => self.restore_snapshot(restore).await,
            Action::RollBack(back) => self.roll_back(back).await,
            Action::ReplicasObserved { node, ready, gone } => self.replicas_observed(node, ready, gone).await,
            Action::ReplicaMended {
                node,
                volume,
                replica,
                what,
                found,
            } => self.replica_mended(node, *volume, *replica, what, found).await,
            Action::ChangeView {
                volume,
                change,
                caller,
            } => self.change_view(*volume, change, caller).await,
            Action::Attach(attach) => self.attach(attach).await,
            Action::Detach {
                volume,
                expect,
                force,
            } => self.detach(*volume, *expect, *force).await,
            Action::BeginHistory(new) => self.begin_history(new).await,
            Action::DoubtVolumes { seen } => self.doubt_volumes(seen).await,
            Action::TrustVolumes { volumes } => self.trust_volumes(volumes).await,
            Action::SettleHistory { history } => self.settle_history(*history).await,
            Action::AdoptVolume(adoption) => self.adopt_volume(adoption).await,
            Action::PlaceReplica {
                volume,
                placement,
                replaces,
            } => self.place_replica(*volume, placement, *replaces).await,
            Action::LeaveReplica { volume, replica } => self.leave_replica(*volume, *replica).await,
            Action::EmptyNode { name, leaving } => self.empty_node(name, *leaving).await,
            Action::ResizeVolume {
                name,
                expect,
                size,
                pools,
            } => self.resize_volume(name, *expect, *size, pools).await,
            Action::SetLeastInSync { name, expect, least } => {
                self.set_least_in_sync(name, *expect, *least).await
            }
            Action::StartScrub {
                volume,
                scheduled,
                mend,
                rate,
            } => self.start_scrub(volume, *scheduled, *mend, *rate).await,
            Action::EndScrub { volume, run, overdue } => self.end_scrub(volume, *run, *overdue).await,
            Action::AcknowledgeScrub { volume } => self.acknowledge_scrub(volume).await,
            Action::GrowVolume { volume, size } => self.grow_volume(*volume, *size).await,
        }
    }

    async fn init_cluster(&mut self, id: uuid::Uuid) -> Done {
        if load::cluster_id(self.conn).await?.is_some() {
            return Ok(Outcome::Unchanged);
        }
        if self.dry {
            return Ok(Outcome::Created);
        }
        sqlx::query(sql::INSERT_CLUSTER)
            .bind(id.to_string())
            .bind(self.at)
            .execute(&mut *self.conn)
            .await?;
        let object = Object::new(Kind::Cluster, id.to_string());
        self.event(
            Weight::Info,
            "cluster-created",
            &object,
            "The cluster was created.",
        )
        .await?;
        Ok(Outcome::Created)
    }

    async fn event(&mut self, weight: Weight, kind: &str, object: &Object, message: &str) -> Done<()> {
        let severity = match weight {
            Weight::Info => "info",
            Weight::Warning => "warning",
        };
        sqlx::query(sql::INSERT_EVENT)
            .bind(self.at)
            .bind(severity)
            .bind(kind)
            .bind(format!("{}/{}", object.kind.word(), object.name))
            .bind(message)
            .execute(&mut *self.conn)
            .await?;
        sqlx::query(sql::TRIM_EVENTS)
            .bind(integer(EVENTS_KEPT))
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    /// Notes that a node may have to hold something else now.
    async fn touch(&mut self, node: &str) -> Done<()> {
        sqlx::query(sql::TOUCH_NODE)
            .bind(integer(self.index))
            .bind(node)
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    async fn touch_replica_nodes(&mut self, volume: &Volume) -> Done<()> {
        for member in volume.row.replicas.values() {
            self.touch(&member.node).await?;
        }
        Ok(())
    }

    async fn need_volume(&mut self, id: VolumeId) -> Done<Volume> {
        let found = load::volume(self.conn, id).await?;
        Ok(found.ok_or_else(|| Refused::NoSuch {
            object: Object::new(Kind::Volume, id.to_string()),
        })?)
    }
}

/// Optimistic concurrency: refuses when the object moved on.
fn expect_revision(object: &Object, expect: Option<u64>, current: u64) -> Done<()> {
    match expect {
        Some(expected) if expected != current => Err(Refused::Revision {
            object: object.clone(),
            expected,
            current,
        }
        .into()),
        _ => Ok(()),
    }
}

/// JSON of a list or map without floats or odd keys: its serialisation can't fail.
fn json<T: serde::Serialize>(value: &T) -> Done<String> {
    serde_json::to_string(value).map_err(|error| Stop::Database(sqlx::Error::Encode(Box::new(error))))
}
