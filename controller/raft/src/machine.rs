//! The state machine: applies committed entries to `catalogue.db`.
//!
//! The last applied entry is written in the transaction of the entries themselves, so a catalogue always knows
//! exactly what is in it. Replies are given after the commit. An error stops the node.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use sqlx::{Connection, SqliteConnection};
use tokio::sync::watch;

use crate::Application;
use crate::entry::{Body, LogId, Payload, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use crate::failure::{OrFatal, corrupt};
use crate::install::install;
use crate::snapshot::{Builder, Shelf, SnapshotFile};
use crate::state::{self, Applied};

/// Entries per transaction: amortizes the commit, and bounds the replies held back.
const BATCH: usize = 512;

/// The writer of the catalogue.
#[derive(Debug)]
pub(crate) struct Machine<A> {
    conn: SqliteConnection,
    catalogue: PathBuf,
    shelf: Arc<Shelf>,
    applied: Applied,
    announce: watch::Sender<u64>,
    /// Released when openraft has let go of the machine.
    _hold: Hold,
    _application: std::marker::PhantomData<fn() -> A>,
}

/// Keeps the node's shutdown waiting.
pub(crate) type Hold = tokio::sync::mpsc::Sender<()>;

type Answer = (ApplyResponder<TypeConfig>, Body);

impl<A: Application> Machine<A> {
    /// Takes over an opened and migrated catalogue.
    pub(crate) fn new(
        conn: SqliteConnection,
        catalogue: PathBuf,
        shelf: Arc<Shelf>,
        applied: Applied,
        hold: Hold,
    ) -> Self {
        let announce = watch::Sender::new(applied.index());
        Self {
            conn,
            catalogue,
            shelf,
            applied,
            announce,
            _hold: hold,
            _application: std::marker::PhantomData,
        }
    }

    /// Shows the index of the last applied entry after every commit.
    pub(crate) fn announcements(&self) -> watch::Receiver<u64> {
        self.announce.subscribe()
    }

    async fn apply_batch(&mut self, batch: Vec<EntryResponder<TypeConfig>>) -> Result<(), io::Error> {
        let mut answers: Vec<Answer> = Vec::with_capacity(batch.len());
        let mut after = self.applied.clone();
        let mut transaction = self
            .conn
            .begin_with("BEGIN IMMEDIATE")
            .await
            .or_fatal("beginning to apply entries")?;
        for (entry, responder) in batch {
            check_order(after.last, entry.log_id)?;
            after.last = Some(entry.log_id);
            let body = match entry.payload {
                Payload::Blank => Body::default(),
                Payload::Normal(command) => {
                    apply_command::<A>(&mut transaction, entry.log_id.index, &command).await?
                }
                Payload::Membership(membership) => {
                    let membership = StoredMembership::new(Some(entry.log_id), membership);
                    state::save_membership(&mut transaction, &after.membership, &membership)
                        .await
                        .or_fatal("storing the membership")?;
                    after.membership = membership;
                    Body::default()
                }
            };
            if let Some(responder) = responder {
                answers.push((responder, body));
            }
        }
        if let Some(last) = &after.last {
            state::save_last(&mut transaction, last)
                .await
                .or_fatal("storing the last applied entry")?;
        }
        transaction
            .commit()
            .await
            .or_fatal("committing applied entries")?;
        self.applied = after;
        self.announce.send_replace(self.applied.index());
        for (responder, body) in answers {
            responder.send(body);
        }
        Ok(())
    }

    async fn install(&mut self, meta: &SnapshotMeta, snapshot: &SnapshotFile) -> Result<(), io::Error> {
        install(&mut self.conn, &snapshot.path)
            .await
            .or_fatal("installing a snapshot")?;
        self.applied = state::load(&mut self.conn)
            .await
            .or_fatal("reading the state from the snapshot just installed")?;
        if self.applied.last != meta.last_log_id {
            return Err(corrupt(
                "the snapshot does not contain what it was announced to contain",
            ));
        }
        // Durable before this returns: openraft then purges the log that the snapshot replaces.
        self.shelf.publish(&snapshot.path, meta).await?;
        self.announce.send_replace(self.applied.index());
        tracing::info!(last = self.applied.index(), "snapshot installed");
        Ok(())
    }
}

fn check_order(last: Option<LogId>, next: LogId) -> Result<(), io::Error> {
    if last.is_some_and(|last| next.index <= last.index) {
        return Err(corrupt(format!(
            "entry {} is to be applied a second time",
            next.index
        )));
    }
    Ok(())
}

async fn apply_command<A: Application>(
    conn: &mut SqliteConnection,
    index: u64,
    command: &Body,
) -> Result<Body, io::Error> {
    let command: A::Command = serde_json::from_slice(&command.0)
        .or_fatal("reading a command from the log; if a newer version wrote it, upgrade this node")?;
    let reply = A::apply(conn, index, &command)
        .await
        .or_fatal("applying a command")?;
    Ok(Body(
        serde_json::to_vec(&reply).or_fatal("encoding a reply")?.into(),
    ))
}

impl<A: Application> RaftStateMachine<TypeConfig> for Machine<A> {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied.last, self.applied.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        let mut batch = Vec::new();
        while let Some(entry) = entries.next().await {
            batch.push(entry?);
            if batch.len() == BATCH {
                self.apply_batch(std::mem::take(&mut batch)).await?;
            }
        }
        if batch.is_empty() {
            Ok(())
        } else {
            self.apply_batch(batch).await
        }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            catalogue: self.catalogue.clone(),
            shelf: Arc::clone(&self.shelf),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        self.install(meta, &snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.shelf.current().await)
    }
}
