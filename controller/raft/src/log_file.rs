//! The log on disk: `log.db`.
//!
//! Layout, format 1:
//! * `entry(idx, term, kind, payload, crc)`: one row per log entry; `kind` 0 blank, 1 command, 2 membership;
//!   `crc` is the CRC-32C over the other four, checked whenever a row is read.
//! * `state`: one row with the id of the node, a random incarnation made with the file, the vote, and the last
//!   purged log id.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use openraft::impls::leader_id_std::LeaderId;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Connection, QueryBuilder, Row, Sqlite, SqliteConnection};

use crate::database::{self, DatabaseError, sqlite};
use crate::entry::{Body, Entry, LogId, Payload, Vote, log_id};
use crate::state::{from_sql, take_id, to_sql};

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS entry (
    idx INTEGER PRIMARY KEY,
    term INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    payload BLOB NOT NULL,
    crc INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    node TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    vote_term INTEGER,
    vote_node TEXT,
    vote_committed INTEGER,
    purged_term INTEGER,
    purged_index INTEGER
) STRICT;
";

/// Rows per INSERT; five variables each, SQLite allows 32,766.
const ROWS: usize = 500;
/// Entries per read of [`check`].
const CHECKED: u64 = 256;

/// A log entry as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct EntryRow {
    index: i64,
    term: i64,
    kind: u8,
    payload: Bytes,
}

/// A log entry that is not what was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RowError {
    #[error("log entry {0} does not match its checksum")]
    Checksum(i64),
    #[error("log entry {index} has the unknown kind {kind}; it was written by a newer version")]
    Kind { index: i64, kind: u8 },
    #[error("the membership in the log cannot be read or written: {0}")]
    Membership(#[from] serde_json::Error),
    #[error("a log index does not fit: {0}")]
    Number(#[source] sqlx::Error),
}

impl EntryRow {
    pub(crate) fn from_entry(entry: &Entry) -> Result<Self, RowError> {
        let (kind, payload) = match &entry.payload {
            Payload::Blank => (0, Bytes::new()),
            Payload::Normal(body) => (1, body.0.clone()),
            Payload::Membership(membership) => (2, serde_json::to_vec(membership)?.into()),
        };
        Ok(Self {
            index: to_sql(entry.log_id.index).map_err(RowError::Number)?,
            term: to_sql(entry.log_id.leader_id.term).map_err(RowError::Number)?,
            kind,
            payload,
        })
    }

    fn crc(&self) -> i64 {
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        digest.update(&self.index.to_le_bytes());
        digest.update(&self.term.to_le_bytes());
        digest.update(&[self.kind]);
        digest.update(&self.payload);
        // A CRC-32 has 32 bits.
        i64::try_from(digest.finalize()).unwrap_or(i64::MAX)
    }

    fn into_entry(self) -> Result<Entry, RowError> {
        let id = log_id(
            from_sql(self.term).map_err(RowError::Number)?,
            from_sql(self.index).map_err(RowError::Number)?,
        );
        let payload = match self.kind {
            0 => Payload::Blank,
            1 => Payload::Normal(Body(self.payload)),
            2 => Payload::Membership(serde_json::from_slice(&self.payload)?),
            kind => {
                return Err(RowError::Kind {
                    index: self.index,
                    kind,
                });
            }
        };
        Ok(Entry { log_id: id, payload })
    }
}

fn read_row(row: &SqliteRow) -> Result<Entry, sqlx::Error> {
    let payload: Vec<u8> = row.try_get("payload")?;
    let crc: i64 = row.try_get("crc")?;
    let row = EntryRow {
        index: row.try_get("idx")?,
        term: row.try_get("term")?,
        kind: row.try_get("kind")?,
        payload: payload.into(),
    };
    let entry = if row.crc() == crc {
        row.into_entry()
    } else {
        Err(RowError::Checksum(row.index))
    };
    entry.map_err(|error| sqlx::Error::Decode(error.into()))
}

/// What the log said when it was opened.
#[derive(Debug, Default)]
pub(crate) struct LogState {
    /// Made with the log; see [`crate::peer::Seat`].
    pub(crate) incarnation: String,
    pub(crate) vote: Option<Vote>,
    pub(crate) purged: Option<LogId>,
    pub(crate) last: Option<LogId>,
}

/// Why `log.db` cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogFileError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("{} belongs to the node with id {found}, not {asked}", path.display())]
    OtherNode {
        path: PathBuf,
        found: String,
        asked: u64,
    },
}

/// Opens or creates the log of node `id`.
pub(crate) async fn open(path: &Path, id: u64) -> Result<(SqliteConnection, LogState), LogFileError> {
    let mut conn = database::open(path, database::LOG).await?;
    let (node, state) = load(&mut conn, id).await.map_err(sqlite(path))?;
    if node != id.to_string() {
        return Err(LogFileError::OtherNode {
            path: path.to_owned(),
            found: node,
            asked: id,
        });
    }
    check(&mut conn, path, &state).await?;
    Ok((conn, state))
}

/// Reads every entry once: damage is found now, when a person is looking, and not when the entry is needed. The
/// log is short, because snapshots cut it.
async fn check(conn: &mut SqliteConnection, path: &Path, state: &LogState) -> Result<(), DatabaseError> {
    let mut next = 0;
    let mut previous: Option<LogId> = None;
    loop {
        let entries = read(conn, next, u64::MAX, CHECKED)
            .await
            .map_err(|error| match error {
                sqlx::Error::Decode(what) => damaged(path, what.to_string()),
                other => sqlite(path)(other),
            })?;
        for entry in &entries {
            let id = entry.log_id;
            if previous.is_some_and(|previous| previous.index.checked_add(1) != Some(id.index)) {
                return Err(damaged(path, format!("the entry before {} is missing", id.index)));
            }
            previous = Some(id);
        }
        match entries.last() {
            Some(last) => next = last.log_id.index.saturating_add(1),
            None => break,
        }
    }
    if previous.is_some() && previous != state.last {
        return Err(damaged(
            path,
            "its last entry is not the one found first".to_owned(),
        ));
    }
    Ok(())
}

fn damaged(path: &Path, what: String) -> DatabaseError {
    DatabaseError::Corrupt {
        path: path.to_owned(),
        what,
    }
}

async fn load(conn: &mut SqliteConnection, id: u64) -> Result<(String, LogState), sqlx::Error> {
    sqlx::raw_sql(TABLES).execute(&mut *conn).await?;
    sqlx::query(
        "INSERT OR IGNORE INTO state (one, node, incarnation) VALUES (1, ?, lower(hex(randomblob(8))))",
    )
    .bind(id.to_string())
    .execute(&mut *conn)
    .await?;
    let row = sqlx::query("SELECT * FROM state WHERE one = 1")
        .fetch_one(&mut *conn)
        .await?;
    let vote = match row.try_get::<Option<i64>, _>("vote_term")? {
        Some(term) => Some(Vote {
            leader_id: LeaderId {
                term: from_sql(term)?,
                voted_for: row
                    .try_get::<String, _>("vote_node")?
                    .parse()
                    .map_err(|error: std::num::ParseIntError| sqlx::Error::Decode(error.into()))?,
            },
            committed: row.try_get("vote_committed")?,
        }),
        None => None,
    };
    let purged = take_id(row.try_get("purged_term")?, row.try_get("purged_index")?)?;
    let last: Option<(i64, i64)> = sqlx::query_as("SELECT term, idx FROM entry ORDER BY idx DESC LIMIT 1")
        .fetch_optional(conn)
        .await?;
    let last = match last {
        Some((term, index)) => Some(log_id(from_sql(term)?, from_sql(index)?)),
        None => purged,
    };
    let incarnation = row.try_get("incarnation")?;
    Ok((
        row.try_get("node")?,
        LogState {
            incarnation,
            vote,
            purged,
            last,
        },
    ))
}

/// Entries `[from, until)`, as many as are there, at most `limit`.
pub(crate) async fn read(
    conn: &mut SqliteConnection,
    from: u64,
    until: u64,
    limit: u64,
) -> Result<Vec<Entry>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT idx, term, kind, payload, crc FROM entry WHERE idx >= ? AND idx < ? ORDER BY idx LIMIT ?",
    )
    .bind(to_sql(from)?)
    .bind(i64::try_from(until).unwrap_or(i64::MAX))
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .fetch_all(conn)
    .await?;
    rows.iter().map(read_row).collect()
}

/// Appends, durably. An entry that is there already is replaced: openraft truncates first, so that only happens
/// after a crash in between.
pub(crate) async fn append(conn: &mut SqliteConnection, rows: &[EntryRow]) -> Result<(), sqlx::Error> {
    if let [row] = rows {
        // The common case: one statement, prepared once, its own transaction.
        sqlx::query("INSERT OR REPLACE INTO entry (idx, term, kind, payload, crc) VALUES (?, ?, ?, ?, ?)")
            .bind(row.index)
            .bind(row.term)
            .bind(row.kind)
            .bind(row.payload.as_ref())
            .bind(row.crc())
            .execute(conn)
            .await?;
        return Ok(());
    }
    let mut transaction = conn.begin_with("BEGIN IMMEDIATE").await?;
    for rows in rows.chunks(ROWS) {
        let mut insert: QueryBuilder<Sqlite> =
            QueryBuilder::new("INSERT OR REPLACE INTO entry (idx, term, kind, payload, crc) ");
        insert.push_values(rows, |mut values, row| {
            values
                .push_bind(row.index)
                .push_bind(row.term)
                .push_bind(row.kind)
                .push_bind(row.payload.to_vec())
                .push_bind(row.crc());
        });
        insert
            .build()
            .persistent(false)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await
}

/// Stores the vote, durably.
pub(crate) async fn save_vote(conn: &mut SqliteConnection, vote: &Vote) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE state SET vote_term = ?, vote_node = ?, vote_committed = ? WHERE one = 1")
        .bind(to_sql(vote.leader_id.term)?)
        .bind(vote.leader_id.voted_for.to_string())
        .bind(vote.committed)
        .execute(conn)
        .await?;
    Ok(())
}

/// Removes the entries from `from` on.
pub(crate) async fn truncate(conn: &mut SqliteConnection, from: u64) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM entry WHERE idx >= ?")
        .bind(to_sql(from)?)
        .execute(conn)
        .await?;
    Ok(())
}

/// Removes the entries up to and including `upto`, and remembers it.
pub(crate) async fn purge(conn: &mut SqliteConnection, upto: &LogId) -> Result<(), sqlx::Error> {
    let (term, index) = (to_sql(upto.leader_id.term)?, to_sql(upto.index)?);
    let mut transaction = conn.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("DELETE FROM entry WHERE idx <= ?")
        .bind(index)
        .execute(&mut *transaction)
        .await?;
    sqlx::query("UPDATE state SET purged_term = ?, purged_index = ? WHERE one = 1")
        .bind(term)
        .bind(index)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await
}

/// Asks SQLite to write everything back into the file, so that a stopped node leaves one file.
pub(crate) async fn checkpoint(conn: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe("PRAGMA wal_checkpoint(TRUNCATE)"))
        .execute(conn)
        .await?;
    Ok(())
}
