//! The Raft log as openraft sees it: the end of the log in memory, all of it in `log.db`.
//!
//! `append` returns once the entries are in memory, so that they are sent to the followers while the local
//! fsync runs; the callback comes after the fsync. Nothing leaves memory before it is durable. Replication and
//! apply nearly always find their entries in memory; a member that is far behind reads the file.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking::Guarded;
use sqlx::SqlitePool;
use tokio::sync::{mpsc, oneshot};

use crate::entry::{Entry, LogId, Payload, TypeConfig, Vote};
use crate::failure::{OrFatal, corrupt};
use crate::log_file::{self, EntryRow};
use crate::log_writer::{Change, Operation};

/// Entries kept in memory once durable.
const KEEP: usize = 1_024;
/// Their size; bounds the memory of an idle node together with [`KEEP`].
const KEEP_BYTES: usize = 2 << 20;
/// One read for a follower or for the state machine: below the limit of a gRPC message, and little enough
/// that a follower answers within its deadline.
const READ_BYTES: usize = 1 << 20;
/// Rows per read of the file.
const READ_ROWS: u64 = 512;

mod parking {
    //! A mutex that is never held across an await and whose poisoning is ignored: every critical section
    //! below leaves the data consistent before it can panic.

    use std::sync::{Mutex, MutexGuard, PoisonError};

    #[derive(Debug, Default)]
    pub(super) struct Guarded<T>(Mutex<T>);

    impl<T> Guarded<T> {
        pub(super) fn new(value: T) -> Self {
            Self(Mutex::new(value))
        }

        pub(super) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

/// The end of the log.
#[derive(Debug, Default)]
struct Tail {
    /// Consecutive; its last one is the last of the log.
    entries: VecDeque<Entry>,
    bytes: usize,
    last: Option<LogId>,
    purged: Option<LogId>,
    vote: Option<Vote>,
    /// Everything up to here is on disk.
    flushed: Option<u64>,
}

impl Tail {
    fn first_index(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.log_id.index)
    }

    fn push(&mut self, entry: Entry) {
        if self
            .last
            .is_some_and(|last| last.index.checked_add(1) != Some(entry.log_id.index))
        {
            // After a snapshot the log starts anew behind a gap.
            self.entries.clear();
            self.bytes = 0;
        }
        self.last = Some(entry.log_id);
        self.bytes += size(&entry);
        self.entries.push_back(entry);
    }

    /// Forgets the oldest entries that are durable, down to the limits.
    fn trim(&mut self) {
        while self.entries.len() > KEEP || self.bytes > KEEP_BYTES {
            match self.entries.front() {
                Some(entry) if Some(entry.log_id.index) <= self.flushed => self.pop_front(),
                _ => break,
            }
        }
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes = self.bytes.saturating_sub(size(&entry));
        }
    }

    fn truncate(&mut self, last: Option<LogId>) {
        while self.entries.back().is_some_and(|entry| Some(entry.log_id) > last) {
            if let Some(entry) = self.entries.pop_back() {
                self.bytes = self.bytes.saturating_sub(size(&entry));
            }
        }
        self.last = self.last.min(last);
        self.flushed = self.flushed.min(self.last.map(|id| id.index));
    }

    fn purge(&mut self, upto: LogId) {
        while self
            .entries
            .front()
            .is_some_and(|entry| entry.log_id.index <= upto.index)
        {
            self.pop_front();
        }
        self.purged = Some(upto);
        self.last = self.last.max(Some(upto));
    }
}

fn size(entry: &Entry) -> usize {
    let body = match &entry.payload {
        Payload::Normal(body) => body.0.len(),
        Payload::Blank | Payload::Membership(_) => 0,
    };
    body + size_of::<Entry>()
}

/// What the store, its readers and its writer have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    tail: Guarded<Tail>,
    /// One connection; only members that are behind need it.
    file: SqlitePool,
}

impl Shared {
    pub(crate) fn new(state: &log_file::LogState, file: SqlitePool) -> Self {
        let log_file::LogState {
            vote, purged, last, ..
        } = *state;
        let flushed = last.map(|id| id.index);
        Self {
            tail: Guarded::new(Tail {
                last,
                purged,
                vote,
                flushed,
                ..Tail::default()
            }),
            file,
        }
    }

    /// The writer has everything up to `index` on disk.
    pub(crate) fn flushed(&self, index: u64) {
        let mut tail = self.tail.lock();
        // A truncation may have been asked for meanwhile.
        tail.flushed = tail
            .flushed
            .max(Some(index))
            .min(tail.last.map(|last| last.index));
        tail.trim();
    }

    /// Entries `[from, until)` that the log has: all of them, or the first ones up to the read limits.
    async fn read(&self, from: u64, until: u64, all: bool) -> Result<Vec<Entry>, io::Error> {
        let (mut found, memory) = {
            let tail = self.tail.lock();
            let last = tail.last.map_or(0, |last| last.index.saturating_add(1));
            let until = until.min(last);
            let first = tail.first_index().unwrap_or(until).min(until);
            let memory: Vec<Entry> = tail
                .entries
                .iter()
                .skip(usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX))
                .take_while(|entry| entry.log_id.index < until)
                .cloned()
                .collect();
            (from..first, memory)
        };
        let mut entries = Vec::new();
        while !found.is_empty() {
            let limit = if all { u64::MAX } else { READ_ROWS };
            let mut conn = self.file.acquire().await.or_fatal("reading the log")?;
            let read = log_file::read(&mut conn, found.start, found.end, limit)
                .await
                .or_fatal("reading the log")?;
            let Some(last) = read.last() else { break };
            found.start = last.log_id.index.saturating_add(1);
            entries.extend(read);
            if !all {
                break;
            }
        }
        if all || found.is_empty() {
            entries.extend(memory);
        }
        check_consecutive(&entries)?;
        if !all {
            let mut bytes = 0;
            let keep = entries.iter().take_while(|entry| {
                bytes += size(entry);
                bytes <= READ_BYTES
            });
            let keep = keep.count().max(1);
            entries.truncate(keep);
        }
        Ok(entries)
    }
}

fn check_consecutive(entries: &[Entry]) -> Result<(), io::Error> {
    for pair in entries.windows(2) {
        if let [one, two] = pair
            && one.log_id.index.checked_add(1) != Some(two.log_id.index)
        {
            return Err(corrupt(format!(
                "log.db has no entry between {} and {}; it is corrupted",
                one.log_id.index, two.log_id.index
            )));
        }
    }
    Ok(())
}

/// Reads the log; any number of them.
#[derive(Debug, Clone)]
pub(crate) struct LogReader {
    shared: Arc<Shared>,
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (from, until) = bounds(&range);
        self.shared.read(from, until, true).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.tail.lock().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.shared.read(start, end, false).await
    }

    /// In pieces: after a long absence the state machine has the whole log to apply.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + Send
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let shared = Arc::clone(&self.shared);
        let (from, until) = bounds(&range);
        stream::unfold(Some(from), move |from| {
            let shared = Arc::clone(&shared);
            async move {
                let from = from.filter(|from| *from < until)?;
                match shared.read(from, until, false).await {
                    Ok(entries) => {
                        let next = entries.last().map(|last| last.log_id.index.saturating_add(1))?;
                        Some((entries.into_iter().map(Ok).collect::<Vec<_>>(), Some(next)))
                    }
                    Err(error) => Some((vec![Err(error)], None)),
                }
            }
        })
        .map(stream::iter)
        .flatten()
    }
}

fn bounds<RB: RangeBounds<u64>>(range: &RB) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let until = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    (from, until)
}

/// The log's only owner.
#[derive(Debug)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
    writer: mpsc::Sender<Operation>,
}

impl LogStore {
    pub(crate) fn new(shared: Arc<Shared>, writer: mpsc::Sender<Operation>) -> Self {
        Self { shared, writer }
    }

    async fn change(&self, change: Change) -> Result<(), io::Error> {
        let (done, result) = oneshot::channel();
        self.writer
            .send(Operation::Change { change, done })
            .await
            .map_err(|_| io::Error::other("the log's writer has ended"))?;
        result
            .await
            .map_err(|_| io::Error::other("the log's writer has ended"))?
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let tail = self.shared.tail.lock();
        Ok(LogState {
            last_purged_log_id: tail.purged,
            last_log_id: tail.last,
        })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader {
            shared: Arc::clone(&self.shared),
        }
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.change(Change::Vote(*vote)).await?;
        self.shared.tail.lock().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let Some(last) = entries.last().map(|entry| entry.log_id.index) else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let rows = match entries
            .iter()
            .map(EntryRow::from_entry)
            .collect::<Result<Vec<_>, _>>()
        {
            Ok(rows) => rows,
            Err(error) => {
                let error = error.to_string();
                callback.io_completed(Err(io::Error::other(error.clone())));
                return Err(io::Error::other(error));
            }
        };
        {
            let mut tail = self.shared.tail.lock();
            for entry in entries {
                tail.push(entry);
            }
        }
        let operation = Operation::Append {
            rows,
            last,
            flushed: callback,
        };
        if let Err(refused) = self.writer.send(operation).await {
            let error = "the log's writer has ended";
            if let Operation::Append { flushed, .. } = refused.0 {
                flushed.io_completed(Err(io::Error::other(error)));
            }
            return Err(io::Error::other(error));
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let from = last_log_id.map_or(0, |id| id.index.saturating_add(1));
        self.shared.tail.lock().truncate(last_log_id);
        self.change(Change::Truncate { from }).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.change(Change::Purge(log_id)).await?;
        self.shared.tail.lock().purge(log_id);
        Ok(())
    }
}
