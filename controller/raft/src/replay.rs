//! Commands on a bare database, without Raft: for tests of an application and for tools.

use sqlx::{Connection, SqliteConnection};

use crate::{Application, state};

/// A replay stopped.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The tables could not be made.
    #[error("cannot prepare the database: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A command failed; the database is as it was before the call.
    #[error("cannot apply the command at index {index}: {source}")]
    Apply {
        /// Its index.
        index: u64,
        /// Why.
        source: sqlx::Error,
    },
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
}

/// Makes the tables of the application and of this crate in an empty database.
///
/// Not cancel-safe: await it to the end.
pub async fn prepare<A: Application>(conn: &mut SqliteConnection) -> Result<(), ReplayError> {
    A::migrator().run_direct(None, conn, false).await?;
    state::create(conn).await?;
    Ok(())
}

/// Applies commands in one transaction, the first one with index `first`, as the state machine does.
///
/// Not cancel-safe: await it to the end.
pub async fn replay<A: Application>(
    conn: &mut SqliteConnection,
    first: u64,
    commands: &[A::Command],
) -> Result<Vec<A::Reply>, ReplayError> {
    let mut transaction = conn.begin_with("BEGIN IMMEDIATE").await?;
    let mut replies = Vec::with_capacity(commands.len());
    for (index, command) in (first..).zip(commands) {
        let reply = A::apply(&mut transaction, index, command).await;
        replies.push(reply.map_err(|source| ReplayError::Apply { index, source })?);
    }
    transaction.commit().await?;
    Ok(replies)
}

/// Replaces everything in a prepared database by what is in the copy at `path`, as a member does with a snapshot.
///
/// Not cancel-safe: await it to the end.
pub async fn install_copy(conn: &mut SqliteConnection, path: &std::path::Path) -> Result<(), ReplayError> {
    Ok(crate::install::install(conn, path).await?)
}
