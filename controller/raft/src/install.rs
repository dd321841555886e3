//! Replaces the contents of the catalogue by those of a snapshot, in one transaction.
//!
//! The file itself is not replaced: other connections have it open, and a write-ahead log that belongs to
//! another file corrupts it. Readers see the old contents until the commit and the new ones after it.

use std::path::Path;

use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};

/// Copies everything. On an error the catalogue is as before.
pub(crate) async fn install(conn: &mut SqliteConnection, snapshot: &Path) -> Result<(), sqlx::Error> {
    let path = snapshot
        .to_str()
        .ok_or_else(|| sqlx::Error::Configuration("the path is not UTF-8".into()))?;
    // Has no effect inside a transaction. Tables are replaced one by one, so references dangle in between;
    // the snapshot was a consistent database.
    execute(conn, "PRAGMA foreign_keys = OFF".to_owned()).await?;
    sqlx::query("ATTACH DATABASE ? AS incoming")
        .bind(path)
        .execute(&mut *conn)
        .await?;
    let copied = copy(conn).await;
    let detached = execute(conn, "DETACH DATABASE incoming".to_owned()).await;
    let restored = execute(conn, "PRAGMA foreign_keys = ON".to_owned()).await;
    copied.and(detached).and(restored)
}

async fn copy(conn: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let mut transaction = conn.begin_with("BEGIN IMMEDIATE").await?;
    drop_all(&mut transaction).await?;
    // Tables first, then their rows; indexes are faster to build afterwards, and triggers must not fire.
    for (_, sql) in objects(&mut transaction, "incoming", "type = 'table'").await? {
        execute(&mut transaction, sql).await?;
    }
    for (table, _) in objects(&mut transaction, "incoming", "type = 'table'").await? {
        copy_rows(&mut transaction, &table).await?;
    }
    for (_, sql) in objects(&mut transaction, "incoming", "type != 'table'").await? {
        execute(&mut transaction, sql).await?;
    }
    copy_sequences(&mut transaction).await?;
    transaction.commit().await
}

/// Name and definition of the objects that have one; SQLite's own and automatic indexes have none.
async fn objects(
    conn: &mut SqliteConnection,
    schema: &str,
    which: &str,
) -> Result<Vec<(String, String)>, sqlx::Error> {
    let statement = format!(
        "SELECT name, sql FROM {schema}.sqlite_schema \
         WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND {which} ORDER BY rowid"
    );
    sqlx::query_as(AssertSqlSafe(statement))
        .persistent(false)
        .fetch_all(conn)
        .await
}

async fn drop_all(conn: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    for kind in ["trigger", "view", "table"] {
        for (name, _) in objects(conn, "main", &format!("type = '{kind}'")).await? {
            execute(conn, format!("DROP {kind} main.{}", quote(&name))).await?;
        }
    }
    Ok(())
}

async fn copy_rows(conn: &mut SqliteConnection, table: &str) -> Result<(), sqlx::Error> {
    // Generated columns are computed, not copied.
    let columns: Vec<String> =
        sqlx::query("SELECT name FROM pragma_table_xinfo(?, 'incoming') WHERE hidden = 0 ORDER BY cid")
            .bind(table)
            .fetch_all(&mut *conn)
            .await?
            .iter()
            .map(|row| row.try_get::<String, _>("name").map(|name| quote(&name)))
            .collect::<Result<_, _>>()?;
    let (table, columns) = (quote(table), columns.join(", "));
    execute(
        conn,
        format!("INSERT INTO main.{table} ({columns}) SELECT {columns} FROM incoming.{table}"),
    )
    .await
}

/// The counters of AUTOINCREMENT columns, where a table has one.
async fn copy_sequences(conn: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let any: bool =
        sqlx::query_scalar("SELECT count(*) > 0 FROM incoming.sqlite_schema WHERE name = 'sqlite_sequence'")
            .persistent(false)
            .fetch_one(&mut *conn)
            .await?;
    if any {
        execute(conn, "DELETE FROM main.sqlite_sequence".to_owned()).await?;
        execute(
            conn,
            "INSERT INTO main.sqlite_sequence (name, seq) SELECT name, seq FROM incoming.sqlite_sequence"
                .to_owned(),
        )
        .await?;
    }
    Ok(())
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Statements of a schema are as trustworthy as the snapshot, which was written by this crate.
async fn execute(conn: &mut SqliteConnection, statement: String) -> Result<(), sqlx::Error> {
    sqlx::query(AssertSqlSafe(statement))
        .persistent(false)
        .execute(conn)
        .await?;
    Ok(())
}
