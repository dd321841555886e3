//! One served replica: its state machine, its files, the operations under way on them.

use std::collections::{BTreeSet, VecDeque};
use std::io;

use stor_device::{BufPool, Completion, Fd, Outcome, Reactor, Shared, Sync};
use stor_replication::disk::PAGE;
use stor_replication::ids::{ConnId, SnapshotId};
use stor_replication::range::ByteRange;
use stor_replication::replica::{Command, DiskAction, DiskError, Event, Replica, StoredPage};
use stor_replication::right::Authorised;
use stor_replication::time::Time;
use stor_replication::wire::Header;
use stor_right::Seconds;

use super::ReplicaSpec;
use super::pre_sync::{Keeper, Next};
use crate::data::Data;
use crate::quiet::Quiet;

/// What a reactor operation of a replica was for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Work {
    /// A read of the state machine's operation.
    Read { op: u64, len: usize },
    /// A write of it that need not be durable yet.
    Write { op: u64 },
    /// A durable write or a flush of it.
    Sync { op: u64 },
    /// A zeroing; `flush`: it has to be durable, a flush follows; `keep`: it was to keep its space.
    Zero {
        op: u64,
        flush: bool,
        keep: Option<ByteRange>,
    },
    /// A page of the batch.
    Page,
}

/// An answer to be sent.
pub(super) type Answer = (ConnId, Header, stor_replication::body::Body<Data>);

/// See the module.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) spec: ReplicaSpec,
    core: Replica<Data>,
    data: Fd,
    meta: Fd,
    /// Of a block device: the chunks in which space is given back.
    chunk: Option<u64>,
    /// Connections whose engine has named this replica.
    pub(super) conns: BTreeSet<ConnId>,
    /// Reactor operations under way.
    pending: usize,
    /// Pages of the present batch not yet stored, and the first failure.
    pages: usize,
    page_error: Option<DiskError>,
    /// When its deadline was last entered in the server's list.
    pub(super) due: Option<Time>,
    /// No more connections; closed when idle.
    pub(super) closing: bool,
    commands: Vec<Command<Data>>,
    /// Questions for extents and digests: the first is being looked into if `looking`.
    looks: VecDeque<(u64, ByteRange, Question)>,
    looking: bool,
    /// Copies for snapshots to be made, or asked about: the first is being done if `copying`.
    snapshots: VecDeque<(u64, SnapshotId, Copying)>,
    copying: bool,
    /// What it held before it is brought up to date.
    keeper: Keeper,
    /// Its files are being made larger.
    pub(super) growing: bool,
    /// What of its metadata was damaged when it was opened, in words.
    pub(super) mended: String,
    /// When it was opened, seconds since 1970.
    pub(super) opened_at: u64,
    /// Failures of its disk operations, said with a pause in between.
    failures: Quiet,
    /// Engines that wait for that to be kept.
    pub(super) held: Vec<(ConnId, Header, Authorised)>,
}

/// What is asked about a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Question {
    /// Which parts are holes.
    Extents,
    /// What it holds, in short.
    Digests,
}

/// What is asked about a copy for a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Copying {
    /// Whether it could be made.
    May,
    /// To make it.
    Make,
}

/// What a step asks of the server.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) answers: Vec<Answer>,
    pub(super) drop: Vec<ConnId>,
}

/// Hands an operation to the reactor under a token of the server's.
pub(super) trait Tokens {
    /// A token for this work.
    fn token(&mut self, work: Work) -> u64;
}

impl Served {
    /// `pre_sync`: what it held before a resync is there.
    pub(super) fn new(
        spec: ReplicaSpec,
        core: Replica<Data>,
        (data, meta): (Fd, Fd),
        chunk: Option<u64>,
        pre_sync: bool,
    ) -> Self {
        Self {
            spec,
            core,
            data,
            meta,
            chunk,
            conns: BTreeSet::new(),
            pending: 0,
            pages: 0,
            page_error: None,
            due: None,
            closing: false,
            commands: Vec::new(),
            looks: VecDeque::new(),
            looking: false,
            snapshots: VecDeque::new(),
            copying: false,
            keeper: Keeper::new(pre_sync),
            growing: false,
            mended: String::new(),
            opened_at: Seconds::now().0,
            failures: Quiet::default(),
            held: Vec::new(),
        }
    }

    pub(super) fn core(&self) -> &Replica<Data> {
        &self.core
    }

    /// Nothing is under way on its files.
    pub(super) fn is_idle(&self) -> bool {
        self.pending == 0
    }

    /// The next question about a range, one at a time, and the file to look into.
    pub(super) fn next_look(&mut self) -> Option<(u64, ByteRange, Question, Fd)> {
        if self.looking {
            return None;
        }
        let (op, range, question) = self.looks.front()?;
        self.looking = true;
        Some((*op, *range, *question, self.data))
    }

    /// The question was looked into.
    pub(super) fn looked(&mut self) {
        self.looking = false;
        self.looks.pop_front();
        self.pending -= 1;
    }

    /// The next copy to be made or asked about, one at a time.
    pub(super) fn next_snapshot(&mut self) -> Option<(u64, SnapshotId, Copying)> {
        if self.copying {
            return None;
        }
        let next = *self.snapshots.front()?;
        self.copying = true;
        Some(next)
    }

    /// That is over.
    pub(super) fn snapshot_over(&mut self) {
        self.copying = false;
        self.snapshots.pop_front();
        self.pending -= 1;
    }

    /// Snapshots whose files may be written to: those that may be made, and those under way.
    pub(super) fn snapshots(&self) -> BTreeSet<SnapshotId> {
        let under_way = self.snapshots.iter().map(|(_, snapshot, _)| *snapshot);
        self.spec.snapshots.iter().copied().chain(under_way).collect()
    }

    /// What to do about what it held before, and that it is being done.
    pub(super) fn next_for_pre_sync(&mut self) -> Next {
        let in_sync = self.core.superblock().in_sync.contains(&self.spec.replica);
        let next = self.keeper.next(in_sync, !self.held.is_empty());
        // It is not closed meanwhile.
        self.pending += usize::from(matches!(next, Next::Take | Next::Drop));
        next
    }

    /// Its state was kept; `there`: something of it may be there.
    pub(super) fn pre_sync_taken(&mut self, there: bool) {
        self.pending -= 1;
        self.keeper.taken(there);
    }

    /// What was kept is gone.
    pub(super) fn pre_sync_dropped(&mut self) {
        self.pending -= 1;
        self.keeper.dropped();
    }

    /// Its pool is full.
    pub(super) fn make_room(&mut self) {
        self.keeper.make_room();
    }

    /// Gives its files back.
    pub(super) fn close(&self, reactor: &mut Reactor) {
        reactor.close(self.data);
        reactor.close(self.meta);
    }

    /// Runs an event through the state machine and starts what it wants done.
    pub(super) fn step(
        &mut self,
        now: Time,
        event: Event<Data>,
        reactor: &mut Reactor,
        pool: &BufPool,
        tokens: &mut impl Tokens,
        asked: &mut Asked,
    ) {
        let mut commands = std::mem::take(&mut self.commands);
        self.core.step(now, event, &mut commands);
        for command in commands.drain(..) {
            match command {
                Command::Reply { conn, header, body } => asked.answers.push((conn, header, body)),
                Command::Drop { conn } => asked.drop.push(conn),
                Command::Disk { op, action } => self.start(op, action, reactor, pool, tokens),
                Command::StorePages(pages) => self.store(&pages, reactor, pool, tokens),
            }
        }
        self.commands = commands;
    }

    fn start(
        &mut self,
        op: u64,
        action: DiskAction<Data>,
        reactor: &mut Reactor,
        pool: &BufPool,
        tokens: &mut impl Tokens,
    ) {
        self.pending += 1;
        match action {
            DiskAction::Write { range, data, fua } => {
                let (sync, work) = if fua {
                    (Sync::Dsync, Work::Sync { op })
                } else {
                    (Sync::No, Work::Write { op })
                };
                let token = tokens.token(work);
                reactor.write_at(self.data, data.buffer, data.range, range.offset, sync, token);
            }
            DiskAction::Zero { range, discard, fua } => {
                let keep = (!discard).then_some(range);
                let token = tokens.token(Work::Zero { op, flush: fua, keep });
                if discard {
                    self.free(range, reactor, token);
                } else {
                    reactor.zero_range(self.data, range.offset, range.len, token);
                }
            }
            DiskAction::Read { range } => {
                // At most 32 MiB: checked by the state machine.
                let len = usize::try_from(range.len).unwrap_or(usize::MAX);
                let token = tokens.token(Work::Read { op, len });
                reactor.read_at(self.data, pool.take(len), range.offset, len, token);
            }
            DiskAction::Extents { range } => self.looks.push_back((op, range, Question::Extents)),
            DiskAction::Digest { range } => self.looks.push_back((op, range, Question::Digests)),
            DiskAction::MaySnapshot(snapshot) => self.snapshots.push_back((op, snapshot, Copying::May)),
            DiskAction::Snapshot(snapshot) => self.snapshots.push_back((op, snapshot, Copying::Make)),
            DiskAction::Flush => {
                let token = tokens.token(Work::Sync { op });
                reactor.datasync(self.data, token);
            }
        }
    }

    /// Gives a range back to the pool; it reads as zeroes.
    fn free(&self, range: ByteRange, reactor: &mut Reactor, token: u64) {
        match self.chunk {
            Some(chunk) => reactor.discard(self.data, range.offset, range.len, chunk, token),
            None => reactor.punch_hole(self.data, range.offset, range.len, token),
        }
    }

    fn store(
        &mut self,
        pages: &[StoredPage],
        reactor: &mut Reactor,
        pool: &BufPool,
        tokens: &mut impl Tokens,
    ) {
        self.pages = pages.len();
        self.page_error = None;
        for stored in pages {
            self.pending += 1;
            let mut buf = pool.take(PAGE);
            buf.iter_mut()
                .zip(stored.page.iter())
                .for_each(|(to, from)| *to = *from);
            let token = tokens.token(Work::Page);
            reactor.write_at(
                self.meta,
                Shared::from(buf),
                0..PAGE,
                stored.offset,
                Sync::Dsync,
                token,
            );
        }
    }

    /// An operation completed. The event for the state machine, if that ends something for it.
    pub(super) fn completed(
        &mut self,
        now: Time,
        work: Work,
        completion: Completion,
        reactor: &mut Reactor,
        tokens: &mut impl Tokens,
    ) -> Option<Event<Data>> {
        self.pending -= 1;
        if let (
            Work::Zero {
                op,
                flush,
                keep: Some(range),
            },
            true,
        ) = (work, is_unsupported(&completion))
        {
            // tmpfs, for one, can't zero and keep the space. A hole reads the same.
            self.pending += 1;
            let token = tokens.token(Work::Zero {
                op,
                flush,
                keep: None,
            });
            self.free(range, reactor, token);
            return None;
        }
        let result = self.checked(now, work, &completion);
        match (work, result) {
            (Work::Read { op, len }, Ok(())) => {
                let mut buf = completion.buf?;
                buf.set_len(len);
                Some(Event::DiskDone {
                    op,
                    result: Ok(Some(Data::whole(Shared::from(buf)))),
                })
            }
            (Work::Zero { op, flush: true, .. }, Ok(())) => {
                self.pending += 1;
                let token = tokens.token(Work::Sync { op });
                reactor.datasync(self.data, token);
                None
            }
            (Work::Write { op } | Work::Sync { op } | Work::Zero { op, .. }, Ok(())) => {
                Some(Event::DiskDone { op, result: Ok(None) })
            }
            (
                Work::Read { op, .. } | Work::Write { op } | Work::Sync { op } | Work::Zero { op, .. },
                Err(error),
            ) => Some(Event::DiskDone {
                op,
                result: Err(error),
            }),
            (Work::Page, result) => {
                self.pages -= 1;
                self.page_error = self.page_error.or(result.err());
                (self.pages == 0).then(|| Event::PagesStored {
                    result: self.page_error.map_or(Ok(()), Err),
                })
            }
        }
    }

    /// How an operation went, in the state machine's terms. A failure is logged here, once.
    fn checked(&mut self, now: Time, work: Work, completion: &Completion) -> Result<(), DiskError> {
        let error = match (&completion.result, work) {
            (Ok(Outcome::Count(count)), Work::Read { len, .. }) if *count < len => {
                io::Error::from(io::ErrorKind::UnexpectedEof)
            }
            (Ok(_), _) => return Ok(()),
            (Err(error), _) => error
                .raw_os_error()
                .map_or_else(|| error.kind().into(), io::Error::from_raw_os_error),
        };
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::NoSpace,
            // The reactor refused to begin it.
            _ if error.raw_os_error() == Some(ENOBUFS) => DiskError::Transient,
            // Nothing is said of the disk; but what was to be durable and failed is final (R15).
            io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                if !matches!(work, Work::Sync { .. } | Work::Page) =>
            {
                DiskError::Transient
            }
            _ => DiskError::Failed,
        };
        // A full pool fails each of a thousand writes; what fails is in the first line, how often in the next.
        if let Some(times) = self.failures.say(now, &error.to_string()) {
            tracing::warn!(
                volume = %self.spec.volume, replica = %self.spec.replica, data = %self.spec.data.display(), ?work, %error, times,
                "disk operation failed"
            );
        }
        Err(kind)
    }
}

/// The reactor's own word for too many operations at once.
const ENOBUFS: i32 = 105;

fn is_unsupported(completion: &Completion) -> bool {
    completion
        .result
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::Unsupported)
}
