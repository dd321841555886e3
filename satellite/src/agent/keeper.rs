//! One pool and the work in it. Blocks on the disk: it runs on threads made for that, one job at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use stor_replication::disk::Superblock;
use stor_replication::ids::{CacheId, ReplicaId, VolumeId};
use uuid::Uuid;

use super::copies::{Copies, CopyKey, CopyWish, Found};
use super::thin_copies;
use crate::pool::backing::{self, Backing, Room};
use crate::pool::lvm::ThinError;
use crate::pool::lvm::run::Lvm;
use crate::pool::orphans::{self, Orphan, Wanted};
use crate::pool::probe::Snapshots;
use crate::pool::{Opener, PoolError, PoolSpec, Usage};

type Key = (VolumeId, ReplicaId);

/// What to do with a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Make its directory, look at its size.
    Prepare,
    /// The same for a replica whose files are still to be made: not where nothing new should come.
    Make,
    /// Remove it.
    Delete,
}

/// What was done with a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Worked {
    /// Bytes the file system gave to it.
    pub allocated: u64,
    /// It is gone.
    pub deleted: bool,
}

/// A pool that could be opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolReport {
    /// Of its marker.
    pub id: Uuid,
    /// Where its replicas are.
    pub room: Room,
    /// Of its volatile state.
    pub cache: CacheId,
    /// Space.
    pub usage: Usage,
    /// How snapshots are made.
    pub snapshots: Snapshots,
    /// Why nothing new should come into it; what is in it is served.
    pub obstacle: Option<String>,
    /// What was done, or why not.
    pub replicas: BTreeMap<Key, Result<Worked, String>>,
    /// What there is of copies for snapshots.
    pub copies: BTreeMap<CopyKey, Result<Found, String>>,
    /// What belongs to nothing, once it was looked for.
    pub orphans: Option<Vec<Orphan>>,
}

/// What was found in a pool beside what is known: what each replica says of itself, or why it can't be read.
pub type Search = BTreeMap<Key, Result<Superblock, String>>;

/// Holds a pool open between jobs.
#[derive(Debug, Default)]
pub struct Keeper {
    pool: Option<Box<dyn Backing>>,
    lvm: Lvm,
    copies: Copies,
    checked: Option<(Instant, Wanted, Vec<Orphan>)>,
}

/// Between looks for what belongs to nothing: they go through every directory of the pool.
const CHECK: Duration = Duration::from_secs(10);
/// The same when something else belongs to something now.
const CHECK_CHANGED: Duration = Duration::from_secs(1);

/// What a look is about.
#[derive(Debug, Default)]
pub struct Task {
    /// What to do with replicas.
    pub work: BTreeMap<Key, Work>,
    /// And with copies for snapshots.
    pub copies: BTreeMap<CopyKey, CopyWish>,
    /// All that belongs to something; absent while that is not known.
    pub wanted: Option<Wanted>,
    /// What belongs to nothing and is to be removed.
    pub remove: Vec<String>,
}

impl Keeper {
    /// Opens the pool where that is still to do, looks at it and does the work. The error is for people.
    pub fn look(
        &mut self,
        spec: &PoolSpec,
        boot: &str,
        opener: &Opener,
        task: &Task,
    ) -> Result<PoolReport, String> {
        self.try_look(spec, boot, opener, task)
            .map_err(|error| error.to_string())
    }

    fn try_look(
        &mut self,
        spec: &PoolSpec,
        boot: &str,
        opener: &Opener,
        task: &Task,
    ) -> Result<PoolReport, PoolError> {
        let Task { work, copies, .. } = task;
        let moved = |pool: &dyn Backing| pool.path() != spec.path || !pool.is_in_place();
        if self.pool.as_deref().is_some_and(moved) {
            self.pool = None;
        }
        let mut pool = if let Some(pool) = self.pool.take() {
            pool
        } else {
            let mut pool = backing::open(spec, &self.lvm, opener)?;
            let finished = pool.finish_deletions()?;
            tracing::info!(pool = %spec.name, path = %spec.path.display(), finished, "pool opened");
            pool
        };
        let usage = pool.usage()?;
        let obstacle = pool.obstacle(usage);
        // A directory that is another one now must not get anything.
        let elsewhere = matches!(
            obstacle,
            Some(
                PoolError::MarkerGone { .. }
                    | PoolError::Exchanged { .. }
                    | PoolError::Thin(ThinError::Exchanged { .. })
            )
        );
        let obstacle = obstacle.map(|error| error.to_string());
        if !elsewhere {
            let wanted = work.iter().filter(|(_, work)| **work != Work::Delete);
            pool.activate(&wanted.map(|(key, _)| *key).collect())?;
        }
        let replicas = work
            .iter()
            .map(|(key, work)| {
                let done = match &obstacle {
                    Some(reason) if elsewhere => Err(reason.clone()),
                    Some(reason) if *work == Work::Make && !pool.is_made(*key) => Err(reason.clone()),
                    _ => do_work(pool.as_mut(), *key, *work),
                };
                (*key, done)
            })
            .collect();
        let copies = match pool.room() {
            _ if elsewhere => BTreeMap::new(),
            Room::Directory(path) => self.copies.look(&path, copies),
            Room::Thin(room) => thin_copies::look(&room, copies),
        };
        let orphans = if elsewhere {
            None
        } else {
            self.check(&pool.room(), task)
        };
        let report = PoolReport {
            copies,
            orphans,
            id: pool.id(),
            room: pool.room(),
            cache: pool.cache(boot),
            usage,
            snapshots: pool.snapshots(),
            obstacle,
            replicas,
        };
        self.pool = Some(pool);
        Ok(report)
    }

    /// Looks for what belongs to nothing, and removes of it what is asked for.
    fn check(&mut self, room: &Room, task: &Task) -> Option<Vec<Orphan>> {
        let Some(wanted) = &task.wanted else {
            self.checked = None;
            return None;
        };
        if task.remove.is_empty()
            && let Some((at, of, found)) = &self.checked
            && at.elapsed() < if of == wanted { CHECK } else { CHECK_CHANGED }
        {
            return Some(found.clone());
        }
        let removed = orphans::remove(room, wanted, &task.remove);
        let found = removed.and_then(|()| orphans::find(room, wanted));
        match found {
            Ok(found) => {
                self.checked = Some((Instant::now(), wanted.clone(), found.clone()));
                Some(found)
            }
            Err(error) => {
                tracing::warn!(error, "the pool could not be checked for what belongs to nothing");
                self.checked = None;
                None
            }
        }
    }

    /// Looks for replicas that are not in `known`. `None`: the pool is not open, or could not be read.
    pub fn search(&self, known: &BTreeSet<Key>) -> Option<Search> {
        let pool = self.pool.as_ref()?;
        let all = match pool.list() {
            Ok(all) => all,
            Err(error) => {
                tracing::warn!(path = %pool.path().display(), %error, "the pool could not be searched");
                return None;
            }
        };
        let unknown = all.into_iter().filter(|key| !known.contains(key));
        Some(unknown.map(|key| (key, pool.superblock(key))).collect())
    }

    /// Gives the pool back, or goes on with that where it was cut short.
    pub fn retire(&mut self, spec: &PoolSpec, opener: &Opener) -> Result<(), String> {
        let pool = match self.pool.take() {
            Some(pool) => pool,
            None => match backing::open(spec, &self.lvm, opener) {
                Ok(pool) => pool,
                Err(error) => {
                    tracing::debug!(path = %spec.path.display(), %error, "a pool that goes can't be opened");
                    return backing::give_up_rest(spec, &self.lvm, opener, error)
                        .map_err(|error| error.to_string());
                }
            },
        };
        let path = pool.path().to_owned();
        match pool.retire() {
            Ok(true) => tracing::info!(path = %path.display(), "pool given up"),
            Ok(false) => tracing::warn!(
                path = %path.display(),
                "the pool is no more desired but volumes are left in it; nothing was removed"
            ),
            Err(error) => return Err(error.to_string()),
        }
        Ok(())
    }
}

fn do_work(pool: &mut dyn Backing, key: Key, work: Work) -> Result<Worked, String> {
    let worked = match work {
        Work::Prepare | Work::Make => pool.prepare(key).map(|allocated| Worked {
            allocated,
            deleted: false,
        }),
        Work::Delete => pool.delete(key).map(|()| Worked {
            allocated: 0,
            deleted: true,
        }),
    };
    worked.map_err(|error| error.to_string())
}
