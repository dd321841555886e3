//! The node's pools and the replicas in them, brought to what is desired.
//!
//! Each pool is looked after by one job at a time on a thread made for blocking: a disk that hangs holds
//! up its own pool and nothing else. A job checks the pool, makes the directories of replicas and removes
//! replicas; the replica server, told here what to serve, makes and opens the files.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stor_proto::satellite as proto;
use stor_replication::disk::Superblock;
use stor_replication::ids::{ReplicaId, SnapshotId, VolumeId};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::copies::{CopyKey, CopyWish, Found, WantedCopy};
use super::desired::{Desired, WantedReplica, Wish};
use super::keeper::{Keeper, PoolReport, Search, Task, Work};
use super::known::{Known, KnownChange, KnownError, KnownPool};
use super::recopies::{self, Recopies, Stage};
use crate::pool::backing::Room;
use crate::pool::orphans::{Orphan, Wanted};
use crate::pool::{Kind, Opener, PoolSpec};
use crate::replicas::{About, ReplicaReport, ReplicaSpec, ReplicaState, Server};

/// Between looks at the fill of a pool.
const LOOK: Duration = Duration::from_secs(5);

/// A job that takes longer is told as the pool's error.
const SLOW: Duration = Duration::from_secs(15);

/// The same of a thin pool: making one takes several LVM commands, each with a limit of its own.
const SLOW_THIN: Duration = Duration::from_mins(3);

fn slow(kind: &Kind) -> Duration {
    match kind {
        Kind::File => SLOW,
        Kind::Thin(_) => SLOW_THIN,
    }
}

type Key = (VolumeId, ReplicaId);

/// What a job found and did.
#[derive(Debug)]
pub struct Done {
    pool: String,
    keeper: Keeper,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    Looked(Result<Box<PoolReport>, String>, Option<Search>),
    /// The pool was given back, or why not yet.
    Retired(Result<(), String>),
}

#[derive(Debug)]
struct Slot {
    spec: PoolSpec,
    /// Absent while a job has it.
    keeper: Option<Keeper>,
    since: Instant,
    /// Something changed while the job ran.
    again: bool,
    leaving: bool,
    last: Option<Result<Box<PoolReport>, String>>,
    /// What is to be removed of what belongs to nothing.
    remove: Vec<String>,
    /// What is in it that nobody asked for; while that is wanted to be known, and once it was looked for.
    search: Option<Search>,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Storage {
    node: String,
    known: Known,
    server: Option<Server>,
    desired: Desired,
    pools: BTreeMap<String, Slot>,
    /// Replicas that were prepared, with what the server is told.
    specs: BTreeMap<Key, ReplicaSpec>,
    reports: Vec<ReplicaReport>,
    deleted: BTreeSet<Key>,
    /// Copies of snapshots that are made anew.
    recopies: Recopies,
    done: mpsc::Sender<Done>,
    boot: String,
}

impl Storage {
    /// `done` carries what jobs found, to be given to [`Storage::take`].
    pub fn new(
        node: &str,
        boot: &str,
        known: Known,
        server: Option<Server>,
        done: mpsc::Sender<Done>,
    ) -> Self {
        Self {
            node: node.to_owned(),
            known,
            server,
            desired: Desired::default(),
            pools: BTreeMap::new(),
            specs: BTreeMap::new(),
            reports: Vec::new(),
            deleted: BTreeSet::new(),
            recopies: Recopies::default(),
            done,
            boot: boot.to_owned(),
        }
    }

    /// Begins to make it so.
    pub fn set(&mut self, desired: &Desired) {
        if !desired.keep || desired.history != self.desired.history {
            self.pools.values_mut().for_each(|slot| slot.search = None);
        }
        self.desired = desired.clone();
        if let Some(server) = &self.server {
            server.trust(desired.keys.clone());
        }
        self.deleted.retain(|key| desired.replicas.contains_key(key));
        // What is served is told below.
        self.allow_copies();
        self.let_go();
        for (name, spec) in &desired.pools {
            let slot = self
                .pools
                .entry(name.clone())
                .or_insert_with(|| Slot::new(spec.clone()));
            // What was found of the pool that went says nothing of the one that has its name now.
            if slot.leaving {
                slot.last = None;
            }
            slot.leaving = false;
            slot.spec = spec.clone();
        }
        self.resume_leaving();
        for (name, slot) in &mut self.pools {
            slot.leaving = !desired.pools.contains_key(name);
        }
        self.serve();
        self.tend_recopies();
        self.start_all();
    }

    /// Pools that were to be given up when this process, or the one before it, ended; or that went while this node was
    /// away. A catalogue that does not know all says nothing of that.
    fn resume_leaving(&mut self) {
        if self.desired.keep {
            return;
        }
        for (name, known) in self.known.pools() {
            if !self.desired.pools.contains_key(name)
                && !self.pools.contains_key(name)
                && let Some(spec) = known.leaving(name)
            {
                self.pools.insert(name.clone(), Slot::new(spec));
            }
        }
    }

    /// The pools that are open.
    fn rooms(&self) -> BTreeMap<String, Room> {
        let open = |(name, slot): (&String, &Slot)| {
            let report = slot.last.as_ref()?.as_ref().ok()?;
            (!slot.leaving).then(|| (name.clone(), report.room.clone()))
        };
        self.pools.iter().filter_map(open).collect()
    }

    /// Goes on with copies of snapshots that are made anew, and has others' read. Whether there is something to tell.
    fn tend_recopies(&mut self) -> bool {
        let rooms = self.rooms();
        let news = self.recopies.tend(&self.desired, &rooms);
        if news {
            // What is there now is found by a look.
            self.start_all();
        }
        news
    }

    /// Takes from the server's list what is no more to be served, once the server has shown that it has it:
    /// only then does its absence from a later report mean that its files are let go of, and not that they
    /// are about to be made. Returns whether anything was taken.
    fn let_go(&mut self) -> bool {
        let before = self.specs.len();
        let open = self.open();
        let (replicas, has_server) = (&self.desired.replicas, self.server.is_some());
        self.specs.retain(|key, _| {
            let wanted = matches!(replicas.get(key), Some(one) if one.wish != Wish::Delete);
            wanted || (has_server && !open.contains(key))
        });
        self.specs.len() < before
    }

    /// What the server has in its hands, as far as it was looked at.
    fn open(&self) -> BTreeSet<Key> {
        let key = |report: &ReplicaReport| (report.volume, report.replica);
        self.reports.iter().map(key).collect()
    }

    fn start_all(&mut self) {
        let names: Vec<_> = self.pools.keys().cloned().collect();
        for name in names {
            self.start(&name);
        }
    }

    /// Starts the job of a pool, or notes that it has to run again.
    fn start(&mut self, name: &str) {
        let task = Task {
            work: self.work(name),
            copies: self.copies(name),
            wanted: self.wanted(),
            remove: Vec::new(),
        };
        let opener = Opener {
            node: self.node.clone(),
            cluster: self.desired.cluster.clone(),
            known: None,
            pools: self.desired.pools.keys().cloned().collect(),
        };
        let Some(slot) = self.pools.get_mut(name) else {
            return;
        };
        let Some(mut keeper) = slot.keeper.take() else {
            slot.again = true;
            return;
        };
        let task = Task {
            remove: std::mem::take(&mut slot.remove),
            ..task
        };
        slot.since = Instant::now();
        slot.again = false;
        let opener = Opener {
            known: self.known.pool(name, &slot.spec.path),
            ..opener
        };
        let (spec, pool, leaving) = (slot.spec.clone(), name.to_owned(), slot.leaving);
        let (boot, done) = (self.boot.clone(), self.done.clone());
        let known: Option<BTreeSet<Key>> = self
            .desired
            .keep
            .then(|| self.desired.replicas.keys().copied().collect());
        tokio::task::spawn_blocking(move || {
            let outcome = if leaving {
                Outcome::Retired(keeper.retire(&spec, &opener))
            } else {
                let looked = keeper.look(&spec, &boot, &opener, &task).map(Box::new);
                let search = known.and_then(|known| keeper.search(&known));
                Outcome::Looked(looked, search)
            };
            // The agent ends when nobody listens.
            drop(done.blocking_send(Done {
                pool,
                keeper,
                outcome,
            }));
        });
    }

    /// All that belongs to something, while that is known: a catalogue that was restored does not know all.
    fn wanted(&self) -> Option<Wanted> {
        (!self.desired.keep).then(|| Wanted {
            replicas: self.desired.replicas.keys().copied().collect(),
            copies: self.desired.copies.keys().copied().collect(),
        })
    }

    /// Has removed what belongs to nothing. Not before the desired state is known that whoever asks knows.
    pub fn remove_orphans(&mut self, asked: proto::RemoveOrphans) {
        let known = asked.history == self.desired.history && asked.revision <= self.desired.revision;
        let Some(slot) = self.pools.get_mut(&asked.pool).filter(|_| known) else {
            tracing::warn!(
                pool = asked.pool,
                "what is to be removed there is not looked at: the desired state is another"
            );
            return;
        };
        slot.remove = asked.names;
        self.start(&asked.pool);
    }

    fn work(&self, pool: &str) -> BTreeMap<Key, Work> {
        let open = self.open();
        self.desired
            .replicas
            .iter()
            .filter(|(_, replica)| replica.pool == pool)
            .filter_map(|(key, replica)| match replica.wish {
                Wish::Make { .. } if !self.known.was_made(key.0, key.1) => Some((*key, Work::Make)),
                Wish::Serve | Wish::Make { .. } => Some((*key, Work::Prepare)),
                // Not before the server has let go of the files.
                Wish::Delete
                    if open.contains(key) || self.specs.contains_key(key) || self.deleted.contains(key) =>
                {
                    None
                }
                Wish::Delete => Some((*key, Work::Delete)),
            })
            .collect()
    }

    /// What is to be done about copies for snapshots in a pool. One that the server may still make is not removed.
    fn copies(&self, pool: &str) -> BTreeMap<CopyKey, CopyWish> {
        let makes = |key: &CopyKey| {
            self.reports.iter().any(|report| {
                (report.volume, report.replica) == (key.0, key.2) && report.snapshots.contains(&key.1)
            })
        };
        self.desired
            .copies
            .iter()
            .filter(|(_, copy)| copy.pool == pool)
            .filter(|(key, copy)| {
                copy.wish != CopyWish::Delete || !(makes(key) || self.recopies.is_running(key))
            })
            .map(|(key, copy)| (*key, copy.wish))
            .collect()
    }

    /// Tells the server of which snapshots it may make copies.
    fn allow_copies(&mut self) {
        for (key, spec) in &mut self.specs {
            spec.snapshots = allowed(&self.desired, *key);
        }
    }

    /// Takes what a job found.
    pub fn take(&mut self, done: Done) -> Result<(), KnownError> {
        let Some(slot) = self.pools.get_mut(&done.pool) else {
            return Ok(());
        };
        slot.keeper = Some(done.keeper);
        let again = std::mem::take(&mut slot.again);
        let report = match done.outcome {
            // A command that failed, or hung: the next look goes on with it.
            Outcome::Retired(Err(error)) => {
                let told = Err(error.clone());
                if slot.last.replace(told.clone()) != Some(told) {
                    tracing::warn!(pool = %done.pool, reason = %error, "the pool is not given up yet");
                }
                if again {
                    self.start(&done.pool);
                }
                return Ok(());
            }
            Outcome::Retired(Ok(())) if slot.leaving => {
                self.pools.remove(&done.pool);
                return self.known.change([KnownChange::NoPool(done.pool)]);
            }
            // Wanted again meanwhile.
            Outcome::Retired(Ok(())) => {
                self.start(&done.pool);
                return Ok(());
            }
            Outcome::Looked(report, search) => {
                slot.search = search.filter(|_| self.desired.keep);
                report
            }
        };
        if let Err(error) = &report
            && slot.last.as_ref().and_then(|last| last.as_ref().err()) != Some(error)
        {
            tracing::warn!(pool = %done.pool, reason = %error, "the pool cannot be used");
        }
        let spec = slot.spec.clone();
        slot.last = Some(report.clone());
        let mut written = Ok(());
        if let Ok(report) = report {
            written = self.took(&done.pool, &spec, &report);
        }
        if again {
            self.start(&done.pool);
        }
        written
    }

    fn took(&mut self, pool: &str, spec: &PoolSpec, report: &PoolReport) -> Result<(), KnownError> {
        let (thin, disks) = match &spec.kind {
            Kind::File => (false, Vec::new()),
            Kind::Thin(thin) => (
                true,
                thin.devices.iter().map(|device| device.path.clone()).collect(),
            ),
        };
        let mut changes = vec![KnownChange::Pool(
            pool.to_owned(),
            KnownPool {
                path: spec.path.clone(),
                id: report.id,
                thin,
                disks,
            },
        )];
        for (key, result) in &report.replicas {
            let Some(wanted) = self.desired.replicas.get(key) else {
                continue;
            };
            match (wanted.wish, result) {
                (Wish::Delete, Ok(work)) if work.deleted => {
                    tracing::info!(volume = %key.0, replica = %key.1, pool, "replica deleted");
                    self.deleted.insert(*key);
                    changes.push(KnownChange::Deleted(key.0, key.1));
                }
                (Wish::Serve | Wish::Make { .. }, Ok(work)) if !work.deleted => {
                    let spec = self.spec(*key, wanted, report);
                    self.specs.insert(*key, spec);
                }
                _ => {}
            }
        }
        // Before the server is told: what is made in a pool is made in one on record.
        let written = self.known.change(changes);
        if written.is_ok() {
            self.serve();
        }
        written
    }

    fn spec(&self, key: Key, wanted: &WantedReplica, report: &PoolReport) -> ReplicaSpec {
        let (data, meta) = report.room.replica(key);
        let create = match wanted.wish {
            Wish::Make { in_sync } if !self.known.was_made(key.0, key.1) => Some(in_sync),
            _ => None,
        };
        ReplicaSpec {
            volume: key.0,
            replica: key.1,
            room: report.room.clone(),
            data,
            meta,
            size: wanted.size,
            lineage: wanted.lineage,
            create,
            source: wanted
                .source
                .filter(|_| create.is_some())
                .map(|source| report.room.copy((source.volume, source.snapshot, source.replica))),
            snapshots: allowed(&self.desired, key),
            cache: report.cache,
        }
    }

    fn serve(&self) {
        if let Some(server) = &self.server {
            server.show(recopies::shown(&self.desired, &self.rooms()));
            server.set(self.specs.values().cloned().collect());
        }
    }

    /// Asks the server how it stands. Returns whether anything changed.
    pub fn look_at_server(&mut self) -> Result<bool, KnownError> {
        let recopied = self.tend_recopies();
        let Some(server) = &self.server else {
            return Ok(recopied);
        };
        let reports = server.report();
        if reports == self.reports {
            return Ok(recopied);
        }
        for report in &reports {
            if let ReplicaState::Failed(reason) | ReplicaState::Damaged(reason) = &report.state
                && !self.reports.iter().any(|before| before.is_same_trouble(report))
            {
                tracing::error!(volume = %report.volume, replica = %report.replica, reason, "a replica failed");
            }
        }
        let ready = reports
            .iter()
            .filter(|report| report.state == ReplicaState::Ready);
        let made: Vec<_> = ready
            .map(|report| KnownChange::Made(report.volume, report.replica))
            .collect();
        // Before the controllers hear of it and stop asking for the replica to be made.
        self.known.change(made)?;
        self.reports = reports;
        if self.let_go() {
            self.serve();
        }
        // Files may have been let go of, others grown.
        self.start_all();
        Ok(true)
    }

    /// Starts the regular looks at pools.
    pub fn tick(&mut self) {
        let now = Instant::now();
        let due: Vec<_> = self
            .pools
            .iter()
            .filter(|(_, slot)| slot.keeper.is_some() && now.duration_since(slot.since) >= LOOK)
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            self.start(&name);
        }
    }

    /// Whether something is under way that the server will report soon.
    pub fn is_pending(&self) -> bool {
        let reported = |key: &Key| {
            self.reports.iter().any(|report| {
                (report.volume, report.replica) == *key && report.state != ReplicaState::Opening
            })
        };
        self.specs.keys().any(|key| !reported(key))
            || self
                .reports
                .iter()
                .any(|report| !self.specs.contains_key(&(report.volume, report.replica)))
    }

    /// Closes every replica.
    pub fn close(&mut self) {
        self.specs.clear();
        self.serve();
    }

    /// Connections of engines that use a replica here.
    pub fn sessions(&self) -> usize {
        self.server.as_ref().map_or(0, Server::sessions)
    }

    /// Whether every replica is closed.
    pub fn is_closed(&self) -> bool {
        self.server
            .as_ref()
            .is_none_or(|server| server.report().is_empty())
    }

    /// What is told of the pools.
    pub fn pools(&self) -> Vec<proto::PoolStatus> {
        self.pools
            .iter()
            .filter(|(_, slot)| !slot.leaving)
            .filter_map(|(name, slot)| {
                let mut status = proto::PoolStatus {
                    name: name.clone(),
                    ..Default::default()
                };
                match &slot.last {
                    Some(Ok(report)) => {
                        status.error = report.obstacle.clone().unwrap_or_default();
                        status.capacity_bytes = report.usage.capacity;
                        status.free_bytes = report.usage.free;
                        status.metadata_capacity_bytes = report.usage.metadata_capacity;
                        status.metadata_used_bytes = report.usage.metadata_used;
                        status.checked = report.orphans.is_some();
                        status.orphans = report.orphans.iter().flatten().map(orphan).collect();
                        // Satellites of one machine see the same boot id.
                        status.filesystem = format!("{}/{:x}", self.boot, report.usage.device);
                        report.snapshots.name().clone_into(&mut status.snapshots);
                    }
                    Some(Err(error)) => status.error.clone_from(error),
                    None => {}
                }
                if slot.keeper.is_none() && slot.since.elapsed() >= slow(&slot.spec.kind) {
                    let seconds = slot.since.elapsed().as_secs();
                    status.error = format!(
                        "{} gives no answer for {seconds} s: look for a hanging disk",
                        slot.spec.path.display()
                    );
                }
                // Not looked at yet: saying nothing is better than saying it has no space.
                (slot.last.is_some() || !status.error.is_empty()).then_some(status)
            })
            .collect()
    }

    /// What is told of copies for snapshots.
    pub fn snapshot_copies(&self) -> Vec<proto::SnapshotCopyStatus> {
        let found = |key: &CopyKey, copy: &WantedCopy| {
            let report = self.pools.get(&copy.pool)?.last.as_ref()?.as_ref().ok()?;
            report.copies.get(key)
        };
        self.desired
            .copies
            .iter()
            .filter_map(|(key, copy)| {
                let stage = copy.recopy.as_ref().map(|of| (of.size, self.recopies.stage(key)));
                Some(copy_status(*key, copy.wish, found(key, copy)?, stage))
            })
            .collect()
    }

    /// What is told of the replicas.
    pub fn replicas(&self) -> Vec<proto::ReplicaStatus> {
        let reports: BTreeMap<_, _> = self
            .reports
            .iter()
            .map(|report| ((report.volume, report.replica), report))
            .collect();
        let asked = self
            .desired
            .replicas
            .iter()
            .filter_map(|(key, wanted)| self.replica(*key, wanted, reports.get(key).copied()));
        asked.chain(self.found()).collect()
    }

    /// Replicas in the pools that nobody asked for.
    fn found(&self) -> impl Iterator<Item = proto::ReplicaStatus> + '_ {
        let searched = self
            .pools
            .iter()
            .filter_map(|(name, slot)| Some((name, slot.search.as_ref()?)));
        searched.flat_map(|(name, search)| {
            search
                .iter()
                .filter(|(key, _)| !self.desired.replicas.contains_key(key))
                .map(|(key, superblock)| found(*key, name, superblock))
        })
    }

    /// Whether every pool was looked through for replicas that nobody asked for.
    pub fn is_searched(&self) -> bool {
        let whole = |slot: &Slot| slot.search.is_some() && matches!(slot.last, Some(Ok(_)));
        self.desired.keep && self.pools.values().all(|slot| slot.leaving || whole(slot))
    }

    fn replica(
        &self,
        key: Key,
        wanted: &WantedReplica,
        report: Option<&ReplicaReport>,
    ) -> Option<proto::ReplicaStatus> {
        use proto::ReplicaState as Told;
        let mut status = proto::ReplicaStatus {
            volume_id: key.0.to_string(),
            replica: key.1.0,
            ..Default::default()
        };
        if let Some(report) = report {
            status.stored_epoch = report.stored.epoch.0;
            status.stored_config = report.stored.config.0;
            status.size_bytes = report.about.as_ref().map_or(0, |about| about.size);
            let about = report.about.as_ref().filter(|_| self.desired.keep);
            status.stored = about.map(|about| told(about, &wanted.pool));
            if !report.mended.is_empty() {
                status.mended.clone_from(&report.mended);
                status.mended_at = report.mended_at;
            }
            status.beyond_help = matches!(report.state, ReplicaState::Damaged(_) | ReplicaState::Missing);
        }
        let looked = self.pools.get(&wanted.pool).and_then(|slot| slot.last.as_ref());
        let work = looked.and_then(|looked| looked.as_ref().ok()?.replicas.get(&key)?.as_ref().ok());
        status.allocated_bytes = work.map_or(0, |work| work.allocated);
        let served = report.map(|report| &report.state);
        let (state, error) = match (wanted.wish, served) {
            (Wish::Delete, _) if self.deleted.contains(&key) => (Told::Deleted, String::new()),
            (Wish::Serve | Wish::Make { .. }, Some(ReplicaState::Ready)) => (Told::Ready, String::new()),
            (Wish::Serve | Wish::Make { .. }, Some(ReplicaState::Missing)) => (Told::Missing, String::new()),
            (
                Wish::Serve | Wish::Make { .. },
                Some(ReplicaState::Failed(reason) | ReplicaState::Damaged(reason)),
            ) => (Told::Failed, reason.clone()),
            // Under way, unless something is in the way.
            (Wish::Delete, _) | (_, Some(ReplicaState::Opening) | None) => {
                (Told::Failed, self.obstacle(key, wanted)?)
            }
        };
        status.state = state.into();
        status.error = error;
        Some(status)
    }

    /// Why a replica is neither served nor deleted.
    fn obstacle(&self, key: Key, wanted: &WantedReplica) -> Option<String> {
        if self.server.is_none() {
            return Some("this satellite serves no replicas: start it with --data-listen".to_owned());
        }
        let Some(slot) = self.pools.get(&wanted.pool).filter(|slot| !slot.leaving) else {
            return Some(format!("this node has no pool {}", wanted.pool));
        };
        match slot.last.as_ref()? {
            Err(error) => Some(error.clone()),
            Ok(report) => report.replicas.get(&key)?.clone().err(),
        }
    }
}

/// Snapshots of which a copy of this replica may be made.
fn allowed(desired: &Desired, (volume, replica): Key) -> BTreeSet<SnapshotId> {
    desired
        .copies
        .iter()
        .filter(|(key, copy)| (key.0, key.2) == (volume, replica) && copy.wish == CopyWish::Make)
        .map(|(key, _)| key.1)
        .collect()
}

fn copy_status(
    (volume, snapshot, replica): CopyKey,
    wish: CopyWish,
    found: &Result<Found, String>,
    recopy: Option<(u64, Stage)>,
) -> proto::SnapshotCopyStatus {
    use proto::SnapshotCopyState as Told;
    let mut status = proto::SnapshotCopyStatus {
        volume_id: volume.to_string(),
        snapshot_id: snapshot.to_string(),
        replica: replica.0,
        ..Default::default()
    };
    let state = match (found, wish) {
        (Ok(Found::Missing | Found::Deleted), CopyWish::Recopy) => {
            let (total, stage) = recopy.unwrap_or((0, Stage::Done));
            status.total_bytes = total;
            match stage {
                Stage::Waiting(why) if !why.is_empty() => {
                    status.error = why;
                    Told::Failed
                }
                Stage::Running(done) => {
                    status.done_bytes = done;
                    Told::Copying
                }
                Stage::Waiting(_) | Stage::Done => Told::Copying,
            }
        }
        (Ok(Found::There(space)), _) => {
            (status.allocated_bytes, status.own_bytes) = (space.allocated, space.own);
            Told::There
        }
        (Ok(Found::Missing), CopyWish::Keep) => Told::Missing,
        // Of one that was removed, and is to be kept or made again for all that the last look knew: nothing yet.
        (Ok(Found::Deleted), CopyWish::Delete) => Told::Deleted,
        (Ok(Found::Missing | Found::Deleted), _) => Told::Unspecified,
        (Err(error), _) => {
            status.error.clone_from(error);
            Told::Failed
        }
    };
    status.state = state.into();
    status
}

fn orphan(from: &Orphan) -> proto::Orphan {
    proto::Orphan {
        name: from.name.clone(),
        what: from.what.to_owned(),
        bytes: from.bytes,
    }
}

fn told(about: &About, pool: &str) -> proto::Stored {
    proto::Stored {
        fence_epoch: about.fence.0,
        size_bytes: about.size,
        lineage: about.lineage.to_string(),
        in_sync: about.in_sync.iter().map(|replica| replica.0).collect(),
        pool: pool.to_owned(),
    }
}

fn found(key: Key, pool: &str, superblock: &Result<Superblock, String>) -> proto::ReplicaStatus {
    let mut status = proto::ReplicaStatus {
        volume_id: key.0.to_string(),
        replica: key.1.0,
        ..Default::default()
    };
    match superblock {
        Ok(superblock) => {
            status.state = proto::ReplicaState::Found.into();
            status.stored_epoch = superblock.view.epoch.0;
            status.stored_config = superblock.view.config.0;
            status.stored = Some(told(&superblock.into(), pool));
        }
        Err(error) => {
            status.state = proto::ReplicaState::Failed.into();
            status.error.clone_from(error);
        }
    }
    status
}

impl Slot {
    fn new(spec: PoolSpec) -> Self {
        Self {
            spec,
            keeper: Some(Keeper::default()),
            since: Instant::now(),
            again: false,
            leaving: false,
            last: None,
            remove: Vec::new(),
            search: None,
        }
    }
}

#[cfg(test)]
mod tests;
