//! Whether the power is on, and what a disk does with requests when it is not.

use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

use super::tree::Tree;

/// A request held this long means that the test has forgotten it.
const FORGOTTEN: Duration = Duration::from_mins(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    On,
    /// The moment of the cut: nothing is done, nothing answered.
    Held,
    /// Everything is answered with an error, to nobody.
    Off,
}

/// What a disk was asked to make durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flushes {
    /// Files synced.
    pub files: u64,
    /// Writes with O_DSYNC.
    pub writes: u64,
    /// Directories synced.
    pub directories: u64,
}

#[derive(Debug)]
struct Inner {
    state: State,
    tree: Tree,
    flushes: Flushes,
    /// Ends of the names of files that are said to be durable and are not.
    lies: Vec<String>,
    /// Requests that change something, so far.
    changes: u64,
    /// The power goes before this one.
    last: Option<u64>,
}

/// One disk.
#[derive(Debug)]
pub(super) struct Power {
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// A disk while its power is on.
pub(super) struct Powered<'a>(MutexGuard<'a, Inner>);

impl Power {
    pub(super) fn on(tree: Tree, lies: Vec<String>) -> Self {
        let inner = Inner {
            state: State::On,
            tree,
            flushes: Flushes::default(),
            lies,
            changes: 0,
            last: None,
        };
        Self {
            inner: Mutex::new(inner),
            changed: Condvar::new(),
        }
    }

    /// Every change of the tree is whole when the lock is given back.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits out the moment of a cut.
    pub(super) fn wait(&self) -> Result<Powered<'_>, Errno> {
        let (inner, _) = self
            .changed
            .wait_timeout_while(self.lock(), FORGOTTEN, |inner| inner.state == State::Held)
            .unwrap_or_else(PoisonError::into_inner);
        match inner.state {
            State::On => Ok(Powered(inner)),
            State::Held | State::Off => Err(Errno::IO),
        }
    }

    /// The same for a request that changes something; before the one that was set, the power goes.
    pub(super) fn wait_to_change(&self) -> Result<Powered<'_>, Errno> {
        let mut inner = self.lock();
        if inner.state == State::On {
            if inner.last == Some(inner.changes) {
                inner.state = State::Held;
            } else {
                inner.changes += 1;
            }
        }
        drop(inner);
        self.wait()
    }

    pub(super) fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// The power goes before another change than the next so many.
    pub(super) fn hold_after(&self, changes: u64) {
        let mut inner = self.lock();
        inner.last = Some(inner.changes + changes);
    }

    pub(super) fn is_held(&self) -> bool {
        self.lock().state == State::Held
    }

    /// Nothing was lost: it goes on as it was.
    pub(super) fn resume(&self) {
        let mut inner = self.lock();
        (inner.state, inner.last) = (State::On, None);
    }

    /// From now on nothing is done and nothing answered.
    pub(super) fn hold(&self) {
        self.lock().state = State::Held;
    }

    /// Whoever still waits gets an error. Only when all that could act on it are being killed.
    pub(super) fn off(&self) {
        self.lock().state = State::Off;
        self.changed.notify_all();
    }

    /// What the disk held when the power went.
    pub(super) fn take(&self) -> Tree {
        std::mem::take(&mut self.lock().tree)
    }

    pub(super) fn flushes(&self) -> Flushes {
        self.lock().flushes
    }

    pub(super) fn lie(&self, lies: Vec<String>) {
        self.lock().lies = lies;
    }

    pub(super) fn lies(&self) -> Vec<String> {
        self.lock().lies.clone()
    }
}

impl Powered<'_> {
    pub(super) fn tree(&mut self) -> &mut Tree {
        &mut self.0.tree
    }

    pub(super) fn sync_file(&mut self, node: u64) -> Result<(), Errno> {
        self.0.flushes.files += 1;
        if !self.lies_about(node)? {
            self.0.tree.file_mut(node)?.sync();
        }
        Ok(())
    }

    pub(super) fn sync_range(&mut self, node: u64, range: Range<u64>) -> Result<(), Errno> {
        self.0.flushes.writes += 1;
        if !self.lies_about(node)? {
            self.0.tree.file_mut(node)?.sync_range(range);
        }
        Ok(())
    }

    pub(super) fn sync_directory(&mut self, node: u64) -> Result<(), Errno> {
        self.0.flushes.directories += 1;
        self.0.tree.sync_directory(node)
    }

    fn lies_about(&self, node: u64) -> Result<bool, Errno> {
        let name = self.0.tree.node(node)?.name.as_bytes();
        Ok(self.0.lies.iter().any(|end| name.ends_with(end.as_bytes())))
    }
}
