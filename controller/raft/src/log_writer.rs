//! The one task that writes `log.db`.
//!
//! Operations are done in the order they were queued. Appends that wait together share one transaction, hence
//! one fsync. After the first failure nothing is written any more: what is in memory would no longer be what is
//! on disk.

use std::io;
use std::sync::Arc;

use openraft::storage::IOFlushed;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use crate::entry::{LogId, TypeConfig, Vote};
use crate::failure::OrFatal;
use crate::log::Shared;
use crate::log_file::{self, EntryRow};

/// Waiting operations; openraft waits when it is full.
pub(crate) const QUEUE: usize = 64;
/// Entries that share a transaction at most.
const BATCH: usize = 2_000;

/// One write.
pub(crate) enum Operation {
    /// Entries; the callback is told once they are durable.
    Append {
        rows: Vec<EntryRow>,
        last: u64,
        flushed: IOFlushed<TypeConfig>,
    },
    /// Any other change; the sender waits for it.
    Change {
        change: Change,
        done: oneshot::Sender<Result<(), io::Error>>,
    },
}

/// A change that its sender waits for.
#[derive(Debug)]
pub(crate) enum Change {
    Vote(Vote),
    Truncate { from: u64 },
    Purge(LogId),
}

/// Runs until every sender is gone. `hold` is released at the very end.
pub(crate) async fn run<H: Send>(
    mut conn: SqliteConnection,
    shared: Arc<Shared>,
    mut queue: mpsc::Receiver<Operation>,
    hold: H,
) {
    let mut failed: Option<String> = None;
    let mut next: Option<Operation> = None;
    loop {
        let operation = match next.take() {
            Some(operation) => operation,
            None => match queue.recv().await {
                Some(operation) => operation,
                None => break,
            },
        };
        match operation {
            Operation::Append { rows, last, flushed } => {
                let mut batch = Batch {
                    rows,
                    last,
                    flushed: vec![flushed],
                };
                next = batch.gather(&mut queue);
                batch.write(&mut conn, &shared, &mut failed).await;
            }
            Operation::Change { change, done } => {
                let result = match refuse(failed.as_ref()) {
                    Ok(()) => apply(&mut conn, &change).await,
                    Err(error) => Err(error),
                };
                note(&result, &mut failed);
                if done.send(result).is_err() {
                    // The node is being stopped; the change is as durable as it would be otherwise.
                    tracing::debug!(?change, "nobody waited for a change of the log");
                }
            }
        }
    }
    close(conn).await;
    drop(hold);
}

async fn close(mut conn: SqliteConnection) {
    if let Err(error) = log_file::checkpoint(&mut conn).await {
        tracing::debug!(%error, "the log's write-ahead file stays; it is read at the next start");
    }
    if let Err(error) = conn.close().await {
        tracing::debug!(%error, "the log was not closed properly; SQLite recovers it at the next start");
    }
}

async fn apply(conn: &mut SqliteConnection, change: &Change) -> Result<(), io::Error> {
    match change {
        Change::Vote(vote) => log_file::save_vote(conn, vote).await.or_fatal("storing the vote"),
        Change::Truncate { from } => log_file::truncate(conn, *from)
            .await
            .or_fatal("truncating the log"),
        Change::Purge(upto) => log_file::purge(conn, upto).await.or_fatal("purging the log"),
    }
}

fn refuse(failed: Option<&String>) -> Result<(), io::Error> {
    failed.map_or(Ok(()), |reason| {
        Err(io::Error::other(format!("the log failed before: {reason}")))
    })
}

fn note(result: &Result<(), io::Error>, failed: &mut Option<String>) {
    if let (Err(error), None) = (result, &failed) {
        *failed = Some(error.to_string());
    }
}

struct Batch {
    rows: Vec<EntryRow>,
    last: u64,
    flushed: Vec<IOFlushed<TypeConfig>>,
}

impl Batch {
    /// Takes the appends that wait already; returns the first operation that is none.
    fn gather(&mut self, queue: &mut mpsc::Receiver<Operation>) -> Option<Operation> {
        while self.rows.len() < BATCH {
            match queue.try_recv() {
                Ok(Operation::Append { rows, last, flushed }) => {
                    self.rows.extend(rows);
                    self.last = last;
                    self.flushed.push(flushed);
                }
                Ok(other) => return Some(other),
                // Empty, or closed: the next `recv` says which.
                Err(_) => return None,
            }
        }
        None
    }

    async fn write(self, conn: &mut SqliteConnection, shared: &Shared, failed: &mut Option<String>) {
        let result = match refuse(failed.as_ref()) {
            Ok(()) => log_file::append(conn, &self.rows)
                .await
                .or_fatal("appending to the log"),
            Err(error) => Err(error),
        };
        if result.is_ok() {
            shared.flushed(self.last);
        }
        for flushed in self.flushed {
            flushed.io_completed(match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            });
        }
        note(&result, failed);
    }
}
