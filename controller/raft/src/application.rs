//! What a user of this crate brings: commands, replies, tables, and how a command changes the tables.

use std::fmt::Debug;
use std::future::Future;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::SqliteConnection;

/// A state machine kept in SQLite.
///
/// Commands are stored and sent as JSON: a field added later needs `#[serde(default)]`, and a variant, once
/// released, keeps its name. Tables whose names start with `stor_raft_` or `_sqlx_` are not the application's.
pub trait Application: Send + Sync + 'static {
    /// What is agreed on. Carries everything its effect depends on: times, ids, expected revisions.
    type Command: Serialize + DeserializeOwned + Clone + Debug + Send + Sync + 'static;
    /// What the proposer is told. A refusal of the command is a reply.
    type Reply: Serialize + DeserializeOwned + Clone + Debug + Send + Sync + 'static;

    /// Migrations of the application's tables.
    fn migrator() -> &'static sqlx::migrate::Migrator;

    /// Applies one committed command inside the open transaction.
    ///
    /// Deterministic: reads nothing but the command and the database. An error means that the storage failed
    /// and stops the node; to refuse a command, answer a reply and leave the database as it was. The
    /// transaction is shared with other commands: it must be neither committed nor rolled back here.
    fn apply(
        conn: &mut SqliteConnection,
        index: u64,
        command: &Self::Command,
    ) -> impl Future<Output = Result<Self::Reply, sqlx::Error>> + Send;
}
