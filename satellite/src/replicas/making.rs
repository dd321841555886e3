//! From what the agent wants served to replicas that are served: files are made, opened and first read on threads of
//! their own, a few at once for each pool, and tried again when that failed. And back: what is not wanted any more is
//! closed once nothing is under way in it.

use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use super::ReplicaState;
use super::open::{self, OpenError};
use super::server::{Key, Loop, Slot, now, pool_of};

/// Replicas of one pool being made or opened at once; more wait their turn. A pool whose disk hangs holds up
/// its own.
const MAKING: usize = 2;
/// Pause before files that could not be opened are tried again.
const RETRY: Duration = Duration::from_secs(5);
/// The same while the last I/O of a process that was killed is still under way.
const RETRY_IN_USE: Duration = Duration::from_millis(50);

impl Loop<'_> {
    /// Takes over what the agent wants served.
    pub(super) fn take_wanted(&mut self) {
        let (keys, wanted, copies) = {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            (shared.keys.take(), shared.wanted.take(), shared.copies.take())
        };
        if let Some(copies) = copies {
            self.take_copies(copies);
        }
        if let Some(keys) = keys {
            self.gate.trust(keys);
        }
        let Some(wanted) = wanted else { return };
        let wanted = wanted.into_iter().map(|spec| ((spec.volume, spec.replica), spec));
        let before = std::mem::replace(&mut self.wanted, wanted.collect());
        self.troubles.retain(|key, _| self.wanted.contains_key(key));
        let gone: Vec<Key> = self
            .slots
            .keys()
            .filter(|key| !self.wanted.contains_key(key))
            .copied()
            .collect();
        for key in gone {
            match self.slots.get_mut(&key) {
                Some(Slot::Served(served)) => {
                    served.closing = true;
                    for conn in served.conns.clone() {
                        self.drop_conn(conn, "the replica is closed");
                    }
                    self.close_when_idle(key);
                }
                Some(Slot::Failed { .. }) => {
                    self.slots.remove(&key);
                }
                Some(Slot::Making) | None => {}
            }
        }
        for (key, slot) in &mut self.slots {
            if let (Slot::Served(served), Some(spec)) = (slot, self.wanted.get(key)) {
                served.spec.snapshots.clone_from(&spec.snapshots);
            }
        }
        for key in self.wanted.keys().copied().collect::<Vec<_>>() {
            self.grow_if_wanted(key);
        }
        // One whose spec changed (an unmade replica that is to be made now) is tried again at once. Not the others: the
        // list comes again whenever anything was looked at, and trying is something to look at.
        let same = |key: &Key| before.get(key) == self.wanted.get(key);
        self.slots
            .retain(|key, slot| !matches!(slot, Slot::Failed { .. }) || same(key));
        self.changed = true;
    }

    pub(super) fn close_when_idle(&mut self, key: Key) {
        let idle =
            matches!(self.slots.get(&key), Some(Slot::Served(served)) if served.closing && served.is_idle());
        if idle && let Some(Slot::Served(served)) = self.slots.remove(&key) {
            served.close(&mut self.reactor);
            self.changed = true;
        }
    }

    /// Starts making or opening what is wanted and not there.
    pub(super) fn begin_making(&mut self) {
        let mut missing = Vec::new();
        for (key, spec) in &self.wanted {
            let busy = self.making.entry(pool_of(spec)).or_default();
            if *busy < MAKING && !self.slots.contains_key(key) {
                *busy += 1;
                missing.push(spec.clone());
            }
        }
        for spec in missing {
            let (key, pool) = ((spec.volume, spec.replica), pool_of(&spec));
            let place = pool.clone();
            let (tell, waker) = (self.made.0.clone(), self.reactor.waker());
            let thread = std::thread::Builder::new()
                .name("make-replica".to_owned())
                .spawn(move || {
                    let made = open::make_if_asked(&spec).and_then(|()| open::open(&spec));
                    // The server never goes away before its process.
                    drop(tell.send((key, place, made)));
                    waker.wake();
                });
            match thread {
                Ok(_) => {
                    self.slots.insert(key, Slot::Making);
                }
                Err(error) => {
                    self.made_one(&pool);
                    self.try_later(
                        key,
                        ReplicaState::Failed(format!("no thread to open it on: {error}")),
                        RETRY,
                    );
                }
            }
            self.changed = true;
        }
    }

    fn made_one(&mut self, pool: &Path) {
        if let Some(busy) = self.making.get_mut(pool) {
            *busy = busy.saturating_sub(1);
        }
    }

    pub(super) fn take_made(&mut self) {
        while let Ok((key, pool, made)) = self.made.1.try_recv() {
            self.made_one(&pool);
            self.changed = true;
            self.slots.remove(&key);
            let Some(spec) = self.wanted.get(&key).cloned() else {
                continue;
            };
            match made.and_then(|files| self.serve_files(key, spec, files)) {
                Ok(()) => {}
                Err(error @ OpenError::InUse { .. }) => {
                    tracing::debug!(volume = %key.0, replica = %key.1, %error, "replica is not free yet");
                    self.try_later(key, ReplicaState::Opening, RETRY_IN_USE);
                }
                Err(error) => {
                    let state = match &error {
                        OpenError::Missing => ReplicaState::Missing,
                        damaged if damaged.is_damage() => ReplicaState::Damaged(error.to_string()),
                        _ => ReplicaState::Failed(error.to_string()),
                    };
                    if self.note_trouble(key, &state) {
                        tracing::warn!(volume = %key.0, replica = %key.1, %error, "replica can't be served");
                    }
                    self.try_later(key, state, RETRY);
                }
            }
        }
    }

    fn try_later(&mut self, key: Key, state: ReplicaState, pause: Duration) {
        let again = now() + pause;
        self.due.insert((again, key));
        self.slots.insert(key, Slot::Failed { state, again });
        self.changed = true;
    }
}
