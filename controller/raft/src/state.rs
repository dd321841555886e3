//! What the state machine keeps of Raft inside the catalogue: the last applied entry, the membership, and the
//! ids of former members. Written in the transaction of the entries it describes, copied with every snapshot.

use std::collections::BTreeSet;

use sqlx::{Row, SqliteConnection};

use crate::entry::{LogId, Membership, SnapshotMeta, StoredMembership, log_id};

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS stor_raft_state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    applied_term INTEGER,
    applied_index INTEGER,
    membership_term INTEGER,
    membership_index INTEGER,
    membership TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS stor_raft_former_member (id TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
";

/// The last applied entry and the last applied membership.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) last: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

impl Applied {
    /// The index of the last applied entry; 0 before the first one, which is never an application's command.
    pub(crate) fn index(&self) -> u64 {
        self.last.map_or(0, |id| id.index)
    }

    /// As openraft names it in a snapshot.
    pub(crate) fn meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: self.last,
            last_membership: self.membership.clone(),
        }
    }
}

/// Creates the tables where they are missing.
pub(crate) async fn create(conn: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(TABLES).execute(&mut *conn).await?;
    let empty = encode(&Membership::default())?;
    sqlx::query("INSERT OR IGNORE INTO stor_raft_state (one, membership) VALUES (1, ?)")
        .bind(empty)
        .execute(conn)
        .await?;
    Ok(())
}

/// Reads the row.
pub(crate) async fn load(conn: &mut SqliteConnection) -> Result<Applied, sqlx::Error> {
    let row = sqlx::query(
        "SELECT applied_term, applied_index, membership_term, membership_index, membership \
         FROM stor_raft_state WHERE one = 1",
    )
    .fetch_one(conn)
    .await?;
    let membership: String = row.try_get("membership")?;
    let membership: Membership =
        serde_json::from_str(&membership).map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(Applied {
        last: take_id(row.try_get("applied_term")?, row.try_get("applied_index")?)?,
        membership: StoredMembership::new(
            take_id(row.try_get("membership_term")?, row.try_get("membership_index")?)?,
            membership,
        ),
    })
}

/// Writes the position after a batch that changed no membership.
pub(crate) async fn save_last(conn: &mut SqliteConnection, last: &LogId) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE stor_raft_state SET applied_term = ?, applied_index = ? WHERE one = 1")
        .bind(to_sql(last.leader_id.term)?)
        .bind(to_sql(last.index)?)
        .execute(conn)
        .await?;
    Ok(())
}

/// Writes a membership, and notes which ids it no longer has.
pub(crate) async fn save_membership(
    conn: &mut SqliteConnection,
    before: &StoredMembership,
    after: &StoredMembership,
) -> Result<(), sqlx::Error> {
    let (term, index) = match after.log_id() {
        Some(id) => (Some(to_sql(id.leader_id.term)?), Some(to_sql(id.index)?)),
        None => (None, None),
    };
    sqlx::query(
        "UPDATE stor_raft_state SET membership_term = ?, membership_index = ?, membership = ? WHERE one = 1",
    )
    .bind(term)
    .bind(index)
    .bind(encode(after.membership())?)
    .execute(&mut *conn)
    .await?;
    let kept: BTreeSet<u64> = after.membership().nodes().map(|(id, _)| *id).collect();
    for (id, _) in before.membership().nodes() {
        if !kept.contains(id) {
            sqlx::query("INSERT OR IGNORE INTO stor_raft_former_member (id) VALUES (?)")
                .bind(id.to_string())
                .execute(&mut *conn)
                .await?;
        }
    }
    Ok(())
}

/// Whether `id` belonged to a member that was removed. Its log is gone, so the id must not come back: a member
/// that has forgotten its votes can elect a second leader.
pub(crate) async fn is_former_member(pool: &sqlx::SqlitePool, id: u64) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT count(*) > 0 FROM stor_raft_former_member WHERE id = ?")
        .bind(id.to_string())
        .fetch_one(pool)
        .await
}

fn encode(membership: &Membership) -> Result<String, sqlx::Error> {
    serde_json::to_string(membership).map_err(|error| sqlx::Error::Encode(error.into()))
}

/// SQLite's integers are signed.
pub(crate) fn to_sql(value: u64) -> Result<i64, sqlx::Error> {
    i64::try_from(value).map_err(|error| sqlx::Error::Encode(error.into()))
}

/// Back from SQLite; a negative term or index was not written by us.
pub(crate) fn from_sql(value: i64) -> Result<u64, sqlx::Error> {
    u64::try_from(value).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// A log id of two nullable columns.
pub(crate) fn take_id(term: Option<i64>, index: Option<i64>) -> Result<Option<LogId>, sqlx::Error> {
    match (term, index) {
        (Some(term), Some(index)) => Ok(Some(log_id(from_sql(term)?, from_sql(index)?))),
        (None, None) => Ok(None),
        _ => Err(sqlx::Error::Decode("half of a log id is missing".into())),
    }
}
