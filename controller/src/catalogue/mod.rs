//! The catalogue: what users asked for and what the data path depends on, in SQLite, the same on every
//! controller.
//!
//! [`Command`] is the only way to change it. [`apply`] is deterministic: rows and command in, rows and
//! [`Reply`] out, no clock and no random numbers, so that replaying a log gives the same database again.
//! Reading is in [`load`]. What satellites observe (heartbeats, free space, progress) is not here.

mod apply;
pub mod command;
pub mod load;
pub mod outcome;
pub mod row;
pub mod scrub;
pub mod snapshot;
mod sql;
#[cfg(test)]
mod tests;

use sqlx::SqliteConnection;
use sqlx::migrate::Migrator;
use stor_raft::Application;

pub use apply::{apply, check, is_above};
pub use command::{Action, Command};
pub use outcome::{Kind, Object, Outcome, Refused, Reply};

/// The schema, as numbered steps.
pub static MIGRATOR: Migrator = sqlx::migrate!("../migrations");

/// Events kept; older ones are dropped.
pub const EVENTS_KEPT: u64 = 10_000;

/// The catalogue as a state machine of Raft.
#[derive(Debug)]
pub struct Catalogue;

impl Application for Catalogue {
    type Command = Command;
    type Reply = Reply;

    fn migrator() -> &'static Migrator {
        &MIGRATOR
    }

    async fn apply(
        conn: &mut SqliteConnection,
        index: u64,
        command: &Self::Command,
    ) -> Result<Self::Reply, sqlx::Error> {
        apply(conn, index, command).await
    }
}
