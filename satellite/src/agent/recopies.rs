//! Copies of snapshots made anew, of other nodes' copies (S6): which are wanted, one at a time in each pool, the
//! oldest snapshot first, each on a thread of its own.
//!
//! ```text
//! wanted ---> running ---> done         its file has its name; the pool's look finds it
//!    ^           |
//!    +-- later --+ failed, with the reason told
//! ```
//!
//! Nothing is remembered on disk: what an attempt has left under the unfinished name is what the next begins with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stor_replication::ids::ReplicaId;
use stor_replication::recopy::Recopy;
use tokio::time::Instant;

use super::copies::{CopyKey, Recopied};
use super::copy_client::CopyClient;
use super::desired::Desired;
use super::new_copy::{Base, NewCopy};
use crate::pool::backing::Room;
use crate::replicas::readers::MOST_BYTES;

/// Pause before one that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// What is told of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Waits its turn, or was cut short: why.
    Waiting(String),
    /// Under way: bytes known to be equal.
    Running(u64),
    /// Its file has its name.
    Done,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    compared: AtomicU64,
    outcome: Mutex<Option<Result<u64, String>>>,
}

#[derive(Debug)]
enum State {
    Running { pool: String, shared: Arc<Shared> },
    Failed { reason: String, again: Instant },
    Done,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Recopies {
    all: BTreeMap<CopyKey, State>,
}

impl Recopies {
    /// Takes in what ended, stops what is not wanted any more, starts what is. `rooms`: the pools that are open. Returns
    /// whether there is something new to tell.
    pub fn tend(&mut self, desired: &Desired, rooms: &BTreeMap<String, Room>) -> bool {
        let mut news = self.take_ended();
        let wanted = |key: &CopyKey| desired.copies.get(key).is_some_and(|copy| copy.recopy.is_some());
        self.all.retain(|key, state| match state {
            State::Running { shared, .. } => {
                if !wanted(key) {
                    shared.stop.store(true, Ordering::Relaxed);
                }
                true
            }
            State::Failed { .. } | State::Done => wanted(key),
        });
        for (pool, room) in rooms {
            let busy = |state: &State| matches!(state, State::Running { pool: of, .. } if of == pool);
            if self.all.values().any(busy) {
                continue;
            }
            let now = Instant::now();
            let due = |key: &CopyKey| match self.all.get(key) {
                None => true,
                Some(State::Failed { again, .. }) => *again <= now,
                Some(State::Running { .. } | State::Done) => false,
            };
            let next = desired
                .copies
                .iter()
                .filter(|(key, copy)| copy.pool == *pool && due(key))
                .filter_map(|(key, copy)| Some((*key, copy.recopy.as_ref()?)))
                // Their ids have the time in them.
                .min_by_key(|(key, _)| (key.1, key.0));
            if let Some((key, recopied)) = next {
                self.start(
                    key,
                    pool,
                    NewCopy::new(room, key, recopied.size, bases(desired, pool, key)),
                    recopied,
                );
                news = true;
            }
        }
        news
    }

    fn start(&mut self, key: CopyKey, pool: &str, new: NewCopy, of: &Recopied) {
        let shared = Arc::new(Shared::default());
        let (theirs, of) = (Arc::clone(&shared), of.clone());
        let spawned = std::thread::Builder::new()
            .name("recopy".to_owned())
            .spawn(move || {
                let outcome = run(key, new, &of, &theirs);
                *theirs.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
            });
        let state = match spawned {
            Ok(_) => State::Running {
                pool: pool.to_owned(),
                shared,
            },
            Err(error) => State::Failed {
                reason: format!("no thread to copy it on: {error}"),
                again: Instant::now() + AGAIN,
            },
        };
        self.all.insert(key, state);
    }

    fn take_ended(&mut self) -> bool {
        let mut news = false;
        for ((volume, snapshot, replica), state) in &mut self.all {
            let State::Running { shared, .. } = state else {
                continue;
            };
            let ended = shared
                .outcome
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            let Some(outcome) = ended else { continue };
            news = true;
            *state = match outcome {
                Ok(bytes) => {
                    tracing::info!(%volume, %snapshot, %replica, bytes, "a copy of a snapshot was made anew");
                    State::Done
                }
                Err(reason) => {
                    tracing::warn!(%volume, %snapshot, %replica, reason, "no copy of a snapshot; trying again");
                    let again = Instant::now() + AGAIN;
                    State::Failed { reason, again }
                }
            };
        }
        news
    }

    /// Whether its files are being written to: nobody else may touch them.
    pub fn is_running(&self, key: &CopyKey) -> bool {
        matches!(self.all.get(key), Some(State::Running { .. }))
    }

    /// Whether any is.
    pub fn any_running(&self) -> bool {
        self.all
            .values()
            .any(|state| matches!(state, State::Running { .. }))
    }

    /// How far one is.
    pub fn stage(&self, key: &CopyKey) -> Stage {
        match self.all.get(key) {
            None => Stage::Waiting(String::new()),
            Some(State::Running { shared, .. }) => Stage::Running(shared.compared.load(Ordering::Relaxed)),
            Some(State::Failed { reason, .. }) => Stage::Waiting(reason.clone()),
            Some(State::Done) => Stage::Done,
        }
    }
}

/// What a new copy has most of its content in common with: the snapshot before it, else the one after it, else what
/// the volume holds now. Nothing of it is believed; it saves space and the way over the network.
fn bases(desired: &Desired, pool: &str, (volume, snapshot, _): CopyKey) -> Vec<Base> {
    let mut copies: Vec<CopyKey> = desired
        .copies
        .iter()
        .filter(|(key, copy)| key.0 == volume && copy.pool == pool && key.1 != snapshot)
        .filter(|(_, copy)| copy.wish == super::copies::CopyWish::Keep)
        .map(|(key, _)| *key)
        .collect();
    // Those before it, the last first; then those after it, the first first.
    copies.sort_by_key(|key| key.1);
    let at = copies.partition_point(|key| key.1 < snapshot);
    let (before, after) = copies.split_at(at);
    let replicas = desired.replicas.iter();
    let heads = replicas
        .filter(|(key, replica)| key.0 == volume && replica.pool == pool)
        .map(|(key, _)| Base::Replica(key.0, key.1));
    let nearest = before.iter().rev().chain(after).take(1);
    nearest.map(|key| Base::Copy(*key)).chain(heads).collect()
}

/// The thread's whole work; the bytes that were not equal before.
fn run(key: CopyKey, mut new: NewCopy, of: &Recopied, shared: &Shared) -> Result<u64, String> {
    if new.is_whole()? {
        return Ok(0);
    }
    new.begin()?;
    let mut failed = Vec::new();
    for (replica, address) in &of.sources {
        match from(key, &mut new, (*replica, address), of, shared) {
            Ok(bytes) => return Ok(bytes),
            Err(error) => failed.push(format!("from {address}: {error}")),
        }
        if shared.stop.load(Ordering::Relaxed) {
            return Err("it is not wanted any more".to_owned());
        }
    }
    if failed.is_empty() {
        return Err("no node that holds it can be reached".to_owned());
    }
    Err(failed.join("; "))
}

fn from(
    key: CopyKey,
    new: &mut NewCopy,
    (replica, address): (ReplicaId, &str),
    of: &Recopied,
    shared: &Shared,
) -> Result<u64, String> {
    let mut source = CopyClient::open(address, (key.0, key.1, replica), of.right.bytes())?;
    if source.size() < of.size {
        return Err(format!(
            "the copy there has {} bytes, the snapshot {}",
            source.size(),
            of.size
        ));
    }
    let mut recopy = Recopy::new(of.size, MOST_BYTES);
    while !recopy.is_done() {
        if shared.stop.load(Ordering::Relaxed) {
            return Err("it is not wanted any more".to_owned());
        }
        recopy.step(&mut source, new).map_err(|error| error.to_string())?;
        shared.compared.store(recopy.compared(), Ordering::Relaxed);
    }
    Ok(recopy.copied())
}

/// Where the copies are that others may read: what is to be kept.
pub fn shown(desired: &Desired, rooms: &BTreeMap<String, Room>) -> BTreeMap<CopyKey, PathBuf> {
    let kept = desired
        .copies
        .iter()
        .filter(|(_, copy)| copy.wish == super::copies::CopyWish::Keep);
    kept.filter_map(|(key, copy)| Some((*key, rooms.get(&copy.pool)?.copy(*key))))
        .collect()
}

#[cfg(test)]
#[path = "recopies_tests.rs"]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests;
