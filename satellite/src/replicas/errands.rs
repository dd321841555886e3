//! What the data thread has done by others, because a disk may have to be waited for: looking for holes, keeping
//! what a replica held before it is brought up to date. A thread for each errand, one errand of a kind for each
//! replica: a sick disk holds up its own.

use std::io;

use stor_replication::digest::Digests;
use stor_replication::extents::Extent;
use stor_replication::ids::ConnId;
use stor_replication::replica::{DiskError, Event, SnapshotError};
use stor_replication::right::Authorised;
use stor_replication::wire::Header;

use super::digests;
use super::extents;
use super::grow;
use super::pre_sync::{self, Next, Taken};
use super::serve::{Copying, Question};
use super::server::{Key, Loop, Slot, pool_of};
use super::snapshot;
use super::thin;
use crate::data::Data;
use crate::pool::backing::Room;

/// Stack of a thread on an errand: it does little.
const STACK: usize = 128 << 10;
/// Engines that wait to open one replica. There is one; others are on their way out.
const MAX_HELD: usize = 16;

/// How an errand went.
#[derive(Debug)]
pub(super) enum Done {
    /// Extents of an operation's range.
    Found(u64, Vec<Extent>),
    /// What an operation's range holds, in short, or that it could not be told.
    Digested(u64, Option<Digests>),
    /// A copy for a snapshot could be made, or was made, or not.
    Snapshot(u64, Result<(), SnapshotError>),
    /// The present state was kept, or not.
    Taken(io::Result<Taken>),
    /// What was kept is gone.
    Dropped(io::Result<()>),
    /// The files have room for so many bytes, or why not.
    Grown(u64, io::Result<()>),
}

/// An errand of a replica that is over.
pub(super) type Errand = (Key, Done);

impl Loop<'_> {
    /// Has something done. Without a thread for it, it ends as `failed` says, at the next turn.
    fn send_out(
        &mut self,
        key: Key,
        work: impl FnOnce() -> Done + Send + 'static,
        failed: impl FnOnce(io::Error) -> Done,
    ) {
        let (tell, waker) = (self.errands.0.clone(), self.reactor.waker());
        let thread = std::thread::Builder::new()
            .name("errand".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                // The server never goes away before its process.
                drop(tell.send((key, work())));
                waker.wake();
            });
        if let Err(error) = thread {
            tracing::warn!(%error, "no thread for an errand");
            self.errands_failed.push((key, failed(error)));
            self.reactor.waker().wake();
        }
    }

    /// Takes in what is done.
    pub(super) fn take_errands(&mut self) {
        for (key, done) in std::mem::take(&mut self.errands_failed) {
            self.errand_done(key, done);
        }
        while let Ok((key, done)) = self.errands.1.try_recv() {
            self.errand_done(key, done);
        }
    }

    fn errand_done(&mut self, key: Key, done: Done) {
        // Not closed, let alone replaced, while something is under way for it.
        let Some(Slot::Served(served)) = self.slots.get_mut(&key) else {
            return;
        };
        let (volume, replica) = key;
        match done {
            Done::Found(op, extents) => {
                served.looked();
                self.step(key, Event::ExtentsFound { op, extents });
            }
            Done::Digested(op, digests) => {
                served.looked();
                self.step(key, Event::Digested { op, digests });
            }
            Done::Snapshot(op, result) => {
                served.snapshot_over();
                self.stir();
                self.step(key, Event::SnapshotDone { op, result });
            }
            Done::Taken(outcome) => {
                // Of an attempt that failed something may be left.
                let there = matches!(outcome, Ok(Taken::Yes) | Err(_));
                match outcome {
                    Ok(how) => {
                        tracing::info!(%volume, %replica, ?how, "its state before the resync, to be kept");
                    }
                    Err(error) => {
                        tracing::warn!(%volume, %replica, %error, "its state before the resync can't be kept");
                    }
                }
                served.pre_sync_taken(there);
            }
            Done::Dropped(outcome) => {
                if let Err(error) = outcome {
                    tracing::warn!(%volume, %replica, %error, "its state before the resync can't be removed");
                }
                served.pre_sync_dropped();
            }
            Done::Grown(size, outcome) => {
                served.growing = false;
                match outcome {
                    Ok(()) => self.step(key, Event::Grown { size }),
                    // Tried again with the next list of what is wanted, or when the pool is looked at.
                    Err(error) => tracing::warn!(%volume, %replica, size, %error, "the replica can't grow"),
                }
            }
        }
        self.tend_pre_sync(key);
        self.close_when_idle(key);
    }

    /// Has a replica's next question about a range looked into.
    pub(super) fn look(&mut self, key: Key) {
        let Some(Slot::Served(served)) = self.slots.get_mut(&key) else {
            return;
        };
        let Some((op, range, question, fd)) = served.next_look() else {
            return;
        };
        // A descriptor of its own: the reactor's may be closed only when this is done, and then it is.
        let file = self.reactor.descriptor(fd).map(|file| file.try_clone_to_owned());
        let nothing = move || match question {
            Question::Extents => Done::Found(op, Vec::new()),
            Question::Digests => Done::Digested(op, None),
        };
        self.send_out(
            key,
            move || match file {
                Some(Ok(file)) => match question {
                    Question::Extents => Done::Found(op, extents::find(&file, range)),
                    Question::Digests => Done::Digested(op, digests::find(&file, range)),
                },
                Some(Err(_)) | None => nothing(),
            },
            move |_| nothing(),
        );
    }

    /// Has a replica's next copy for a snapshot made. Only of one that the agent has told of: it may be about to
    /// remove the files of any other.
    pub(super) fn copy(&mut self, key: Key) {
        let Some(Slot::Served(served)) = self.slots.get_mut(&key) else {
            return;
        };
        let Some((op, snapshot, what)) = served.next_snapshot() else {
            return;
        };
        let known = served.spec.snapshots.contains(&snapshot);
        let data = served.spec.data.clone();
        let copy = snapshot::path_of(&data, snapshot, key.1);
        let room = served.spec.room.clone();
        self.stir();
        self.send_out(
            key,
            move || {
                let result = match (room, what) {
                    _ if !known => Err(SnapshotError::Unknown),
                    (Room::Directory(_), Copying::May) => snapshot::may(&data, &copy),
                    (Room::Directory(_), Copying::Make) => snapshot::take(&data, &copy),
                    (Room::Thin(room), Copying::May) => thin::may_copy(&room),
                    (Room::Thin(room), Copying::Make) => thin::copy(&room, key.0, snapshot, key.1),
                };
                Done::Snapshot(op, result)
            },
            move |_| Done::Snapshot(op, Err(SnapshotError::Failed)),
        );
    }

    /// An engine opens a replica as one that has to catch up: what it held is kept first, if it was in sync.
    //= docs/replication.md#R13
    pub(super) fn open_to_catch_up(&mut self, conn: ConnId, header: Header, authorised: Authorised) {
        let key = (header.volume, header.replica);
        let Some(Slot::Served(served)) = self.slots.get_mut(&key) else {
            return;
        };
        if served.held.len() >= MAX_HELD {
            return self.drop_conn(conn, "too many engines open the replica");
        }
        served.held.push((conn, header, authorised));
        self.tend_pre_sync(key);
    }

    /// Does what is due about what a replica held before.
    pub(super) fn tend_pre_sync(&mut self, key: Key) {
        let Some(Slot::Served(served)) = self.slots.get_mut(&key) else {
            return;
        };
        let next = served.next_for_pre_sync();
        let data = served.spec.data.clone();
        match next {
            Next::Wait => {}
            Next::Take => self.send_out(
                key,
                move || Done::Taken(pre_sync::take(&data)),
                |error| Done::Taken(Err(error)),
            ),
            Next::Drop => self.send_out(
                key,
                move || Done::Dropped(pre_sync::drop_all(&data)),
                |error| Done::Dropped(Err(error)),
            ),
            Next::GoOn => {
                for (conn, header, authorised) in std::mem::take(&mut served.held) {
                    let open = Event::Open {
                        conn,
                        header,
                        authorised,
                    };
                    self.step(key, open);
                }
            }
        }
    }

    /// Has the files of a replica grow that is to be larger.
    //= docs/replication.md#G3
    pub(super) fn grow_if_wanted(&mut self, key: Key) {
        let (Some(spec), Some(Slot::Served(served))) = (self.wanted.get(&key), self.slots.get_mut(&key))
        else {
            return;
        };
        let from = served.core().superblock().size;
        if served.growing || served.closing || from >= spec.size {
            return;
        }
        served.growing = true;
        let (spec, size) = (spec.clone(), spec.size);
        self.send_out(
            key,
            move || Done::Grown(size, grow::grow(&spec, from)),
            move |error| Done::Grown(size, Err(error)),
        );
    }

    /// A pool is full: what its replicas held before is given up, so that what they hold now finds room.
    pub(super) fn make_room(&mut self, of: Key) {
        let Some(Slot::Served(served)) = self.slots.get(&of) else {
            return;
        };
        let pool = pool_of(&served.spec);
        let mut keys = Vec::new();
        for (key, slot) in &mut self.slots {
            if let Slot::Served(served) = slot
                && pool_of(&served.spec) == pool
            {
                served.make_room();
                keys.push(*key);
            }
        }
        for key in keys {
            self.tend_pre_sync(key);
        }
    }
}

/// The event says that a pool is full.
pub(super) fn says_full(event: &Event<Data>) -> bool {
    let error = match event {
        Event::DiskDone { result, .. } => result.as_ref().err(),
        Event::PagesStored { result } => result.as_ref().err(),
        Event::Request { .. }
        | Event::Open { .. }
        | Event::Gone { .. }
        | Event::ExtentsFound { .. }
        | Event::Digested { .. }
        | Event::SnapshotDone { .. }
        | Event::Grown { .. }
        | Event::Tick => None,
    };
    error == Some(&DiskError::NoSpace)
}
