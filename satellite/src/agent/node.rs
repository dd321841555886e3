//! The agent's main task: hands what is desired to those who make it so, collects what they see.

use std::sync::Arc;
use std::time::Duration;

use stor_proto::satellite as proto;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::desired::{Accepted, Store, StoreError};
use super::state_dir::Paths;
use super::storage::{Done, Storage};
use super::{AgentError, Ending};
use crate::attach::{Volumes, process};
use crate::pool::disk::{self, Disk, Looks};
use crate::pool::mounts::{self, Mount};

/// Between looks at the replica server while a replica is being opened, and otherwise: a volume is made
/// and attached in a few hundred milliseconds, of which this must be a small part.
const SERVER_LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// Between looks at the node's disks.
const DISKS_LOOK: Duration = Duration::from_secs(10);

/// Between statuses that differ only in progress and counters.
const COUNTERS: Duration = Duration::from_secs(1);

/// Between attempts to write what could not be written.
const RETRY: Duration = Duration::from_secs(1);

/// How long a node that stops goes on serving replicas to engines elsewhere, which may be about to drain: nodes that
/// are stopped together end their own engines first. Engines that go on get by without it.
const LINGER: Duration = Duration::from_secs(5);

/// How long the replica server may take to close the replicas at the end.
const CLOSE_DEADLINE: Duration = Duration::from_secs(3);

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Node {
    paths: Paths,
    store: Store,
    storage: Storage,
    volumes: Volumes,
    status: watch::Sender<Option<Arc<proto::Status>>>,
    changed: Arc<Notify>,
    disks: Vec<Disk>,
    mounts: Vec<Mount>,
    looks: Looks,
    told: Instant,
    /// What a controller wants and could not be written.
    unwritten: Option<proto::Desired>,
    retried: Instant,
    /// The last trouble that was logged.
    said: String,
}

enum Event {
    Desired(Box<proto::Desired>),
    Storage(Box<Done>),
    Volumes,
    Disks(Vec<Disk>, Vec<Mount>),
    Remove(Box<proto::RemoveOrphans>),
    Tick,
    End(Ending),
}

impl Node {
    pub(super) fn new(
        paths: Paths,
        store: Store,
        storage: Storage,
        volumes: Volumes,
        status: watch::Sender<Option<Arc<proto::Status>>>,
        changed: Arc<Notify>,
        looks: Looks,
    ) -> Self {
        Self {
            paths,
            store,
            storage,
            volumes,
            status,
            changed,
            disks: Vec::new(),
            mounts: Vec::new(),
            looks,
            told: Instant::now(),
            unwritten: None,
            retried: Instant::now(),
            said: String::new(),
        }
    }

    /// Runs until `ending` says how to end. Nothing else ends it: a state directory that cannot be written
    /// for a while must not take the node's replicas away.
    pub(super) async fn run(
        mut self,
        mut desired: mpsc::Receiver<proto::Desired>,
        mut storage: mpsc::Receiver<Done>,
        mut removals: mpsc::Receiver<proto::RemoveOrphans>,
        mut ending: watch::Receiver<Option<Ending>>,
    ) {
        let (disks, mut seen) = mpsc::channel(1);
        let disks = tokio::spawn(watch_disks(self.looks, disks));
        let changed = Arc::clone(&self.changed);
        let mut next_look = Instant::now();
        self.make_it_so();
        loop {
            let event = tokio::select! {
                // Biased: the end must not wait behind a storm of news.
                biased;
                ending = ended(&mut ending) => Event::End(ending),
                Some(desired) = desired.recv() => Event::Desired(Box::new(desired)),
                Some(done) = storage.recv() => Event::Storage(Box::new(done)),
                Some((disks, mounts)) = seen.recv() => Event::Disks(disks, mounts),
                Some(remove) = removals.recv() => Event::Remove(Box::new(remove)),
                () = changed.notified() => Event::Volumes,
                () = tokio::time::sleep_until(next_look) => Event::Tick,
            };
            let news = match event {
                Event::End(ending) => {
                    self.end(ending).await;
                    break;
                }
                event => self.apply(event),
            };
            let pending = self.storage.is_pending();
            next_look = Instant::now() + if pending { SERVER_LOOK.0 } else { SERVER_LOOK.1 };
            if news || self.told.elapsed() >= COUNTERS {
                self.tell();
            }
        }
        disks.abort();
    }

    /// Returns whether there may be something to tell.
    fn apply(&mut self, event: Event) -> bool {
        let mut news = true;
        match event {
            Event::Desired(desired) => {
                self.unwritten = None;
                self.accept(*desired);
            }
            Event::Storage(done) => {
                let written = self.storage.take(*done);
                self.trouble(written.map_err(AgentError::from));
            }
            Event::Disks(disks, mounts) => (self.disks, self.mounts) = (disks, mounts),
            Event::Remove(remove) => self.storage.remove_orphans(*remove),
            Event::Volumes | Event::End(_) => {}
            Event::Tick => {
                news = false;
                self.storage.tick();
                if self.retried.elapsed() >= RETRY
                    && let Some(desired) = self.unwritten.take()
                {
                    self.accept(desired);
                }
            }
        }
        match self.storage.look_at_server() {
            Ok(changed) => news |= changed,
            Err(error) => self.trouble(Err(error.into())),
        }
        if self.volumes.any_ended()
            && let Some(desired) = self.store.desired()
        {
            self.volumes.set(desired);
        }
        news
    }

    /// Says once what cannot be written. What it is about is tried again.
    fn trouble(&mut self, done: Result<(), AgentError>) {
        let Err(error) = done else {
            return;
        };
        let text = error.to_string();
        if text != self.said {
            tracing::error!(%error, "the state directory cannot be written; trying again");
            self.said = text;
        }
    }

    fn accept(&mut self, desired: proto::Desired) {
        let revision = desired.revision;
        let paths = &self.paths;
        let accepted: Result<Accepted, AgentError> = self.store.accept(desired.clone(), |accepted| {
            for (volume, epoch) in &accepted.doubtful {
                paths.make_engine(*volume)?;
                if process::used_epoch(paths, *volume) < *epoch {
                    process::record_epoch(paths, *volume, *epoch)?;
                }
            }
            Ok(())
        });
        match accepted {
            Ok(Accepted { behind: true, .. }) => tracing::warn!(
                revision,
                "the controllers' catalogue is older than what this node has seen (restored from a backup?); \
                 nothing is stopped or deleted on its word"
            ),
            Ok(_) => tracing::debug!(revision, "desired state"),
            // Said by a controller, not by us: the session goes on, and so does what was desired before.
            Err(AgentError::Desired(StoreError::Message(error))) => {
                tracing::error!(revision, %error, "what the controller wants cannot be read; nothing was changed");
                return;
            }
            // What is not on disk is not acted on: after a crash, nobody would remember it.
            Err(error) => {
                self.unwritten = Some(desired);
                self.retried = Instant::now();
                return self.trouble(Err(error));
            }
        }
        self.said.clear();
        self.make_it_so();
    }

    fn make_it_so(&mut self) {
        if let Some(desired) = self.store.desired() {
            self.storage.set(desired);
            self.volumes.set(desired);
        }
    }

    /// Tells the session what is seen: at once when something changed, at times when only numbers did.
    fn tell(&mut self) {
        let status = proto::Status {
            desired_revision: self.store.desired().map_or(0, |desired| desired.revision),
            pools: self.storage.pools(),
            replicas: self.storage.replicas(),
            engines: self.volumes.status(),
            disks: self.disks.iter().map(disk_message).collect(),
            mounts: self.mounts.iter().map(mount_message).collect(),
            history: self
                .store
                .desired()
                .map(|desired| desired.history.clone())
                .unwrap_or_default(),
            searched: self.storage.is_searched(),
            snapshots: self.storage.snapshot_copies(),
        };
        let known = self.status.borrow().clone();
        let news = known
            .as_deref()
            .is_none_or(|known| without_numbers(known) != without_numbers(&status));
        let due = self.told.elapsed() >= COUNTERS;
        if due {
            self.told = Instant::now();
        }
        if news || (due && known.as_deref() != Some(&status)) {
            self.status.send_replace(Some(Arc::new(status)));
        }
    }

    async fn end(&mut self, ending: Ending) {
        tracing::info!(?ending, "satellite ends");
        if ending == Ending::Halt {
            self.volumes.halt().await;
            self.linger().await;
        }
        self.storage.close();
        let deadline = Instant::now() + CLOSE_DEADLINE;
        while !self.storage.is_closed() {
            if Instant::now() >= deadline {
                tracing::warn!("some replicas are not closed in time; they are left as by a kill");
                break;
            }
            tokio::time::sleep(SERVER_LOOK.0).await;
        }
    }
}

impl Node {
    /// Goes on serving until no engine has a session with a replica any more, for a while.
    async fn linger(&self) {
        let deadline = Instant::now() + LINGER;
        if self.storage.sessions() > 0 {
            tracing::info!(
                engines = self.storage.sessions(),
                seconds = LINGER.as_secs(),
                "engines elsewhere use replicas of this node: waiting a while for them to end"
            );
        }
        while self.storage.sessions() > 0 && Instant::now() < deadline {
            tokio::time::sleep(SERVER_LOOK.0).await;
        }
    }
}

async fn ended(ending: &mut watch::Receiver<Option<Ending>>) -> Ending {
    match ending.wait_for(Option::is_some).await {
        Ok(ending) => ending.unwrap_or(Ending::Leave),
        // Whoever could say is gone: what runs must not be touched.
        Err(_) => Ending::Leave,
    }
}

async fn watch_disks(looks: Looks, disks: mpsc::Sender<(Vec<Disk>, Vec<Mount>)>) {
    let mut said = String::new();
    let mut interval = tokio::time::interval(DISKS_LOOK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        match disk::list(looks).await {
            Ok(found) => {
                said.clear();
                if disks.send((found, mounts().await)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let text = error.to_string();
                if text != said {
                    tracing::warn!(%error, "the node's disks cannot be listed");
                    said = text;
                }
            }
        }
    }
}

/// The file systems that could hold pools; none while one of them hangs.
async fn mounts() -> Vec<Mount> {
    let listed = tokio::task::spawn_blocking(mounts::list);
    match tokio::time::timeout(DISKS_LOOK, listed).await {
        Ok(Ok(Ok(mounts))) => mounts,
        other => {
            tracing::debug!(?other, "the mounted file systems cannot be listed");
            Vec::new()
        }
    }
}

fn mount_message(mount: &Mount) -> proto::Mount {
    proto::Mount {
        path: mount.path.clone(),
        filesystem: mount.filesystem.clone(),
        capacity_bytes: mount.capacity,
        free_bytes: mount.free,
    }
}

fn disk_message(disk: &Disk) -> proto::Disk {
    proto::Disk {
        path: disk.path.clone(),
        size_bytes: disk.size,
        model: disk.model.clone(),
        serial: disk.serial.clone(),
        rotational: disk.rotational,
        in_use: disk.in_use.clone().unwrap_or_default(),
        wipeable: disk.wipeable,
    }
}

/// The status less what changes all the time.
fn without_numbers(status: &proto::Status) -> proto::Status {
    let mut status = status.clone();
    for mount in &mut status.mounts {
        mount.free_bytes = 0;
    }
    for pool in &mut status.pools {
        pool.free_bytes = 0;
        pool.metadata_used_bytes = 0;
    }
    for replica in &mut status.replicas {
        replica.allocated_bytes = 0;
    }
    for copy in &mut status.snapshots {
        (copy.allocated_bytes, copy.own_bytes) = (0, 0);
    }
    for engine in &mut status.engines {
        engine.counters = None;
        for progress in &mut engine.syncing {
            (progress.total_bytes, progress.done_bytes) = (0, 0);
        }
    }
    status
}
