//! Opening a SQLite file of ours: what it must be, and what is said when it is not.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqliteConnection};

/// `STRL`, in the header of `log.db`.
pub(crate) const LOG: Kind = Kind {
    application_id: 0x5354_524c,
    format: 1,
    synchronous: SqliteSynchronous::Full,
};
/// `STRC`, in the header of `catalogue.db` and of snapshots. It may sync lazily: what a power cut takes from
/// it is applied again from the log or restored from the snapshot, both of which are synced.
pub(crate) const CATALOGUE: Kind = Kind {
    application_id: 0x5354_5243,
    format: 1,
    synchronous: SqliteSynchronous::Normal,
};

/// The first bytes of every SQLite file.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const HEADER: usize = 100;

/// One kind of file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    application_id: i32,
    /// Version of this crate's own tables in it.
    format: i32,
    synchronous: SqliteSynchronous,
}

/// A database file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DatabaseError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is corrupted: {what}", path.display())]
    Corrupt { path: PathBuf, what: String },
    #[error("{} is not one of our databases (application id {found:#x})", path.display())]
    Foreign { path: PathBuf, found: i32 },
    #[error("{} was written by a newer version (format {found}, this version knows {known})", path.display())]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("SQLite failed on {}: {source}", path.display())]
    Sqlite { path: PathBuf, source: sqlx::Error },
}

/// Turns what SQLite says into an error that names the file, and tells damage from the rest.
pub(crate) fn sqlite(path: &Path) -> impl FnOnce(sqlx::Error) -> DatabaseError {
    let path = path.to_owned();
    move |source| match &source {
        // SQLITE_CORRUPT and SQLITE_NOTADB, also in their extended forms.
        sqlx::Error::Database(error) if is_damage(error.code().as_deref()) => DatabaseError::Corrupt {
            path,
            what: error.message().to_owned(),
        },
        _ => DatabaseError::Sqlite { path, source },
    }
}

fn is_damage(code: Option<&str>) -> bool {
    code.and_then(|code| code.parse::<u32>().ok())
        .is_some_and(|code| matches!(code & 0xff, 11 | 26))
}

/// Connection options common to all of our files. The caches are small because a controller must stay small;
/// the working set of a catalogue page is a few hundred KiB.
pub(crate) fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(Duration::from_secs(10))
        .pragma("cache_size", "-1000")
        .statement_cache_capacity(64)
        .command_buffer_size(16)
        .disable_statement_logging()
}

/// Opens or creates the file for writing, after checking that it is whole and ours.
pub(crate) async fn open(path: &Path, kind: Kind) -> Result<SqliteConnection, DatabaseError> {
    check_header(path)?;
    let options = options(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(kind.synchronous)
        // Bounds the write-ahead log's file after a burst.
        .pragma("journal_size_limit", "16777216");
    let mut conn = SqliteConnection::connect_with(&options)
        .await
        .map_err(sqlite(path))?;
    check(&mut conn, path, kind).await?;
    Ok(conn)
}

/// Opens a file read-only that nobody writes, such as a snapshot.
pub(crate) async fn open_sealed(path: &Path, kind: Kind) -> Result<SqliteConnection, DatabaseError> {
    check_header(path)?;
    let options = options(path).read_only(true).immutable(true);
    let mut conn = SqliteConnection::connect_with(&options)
        .await
        .map_err(sqlite(path))?;
    check(&mut conn, path, kind).await?;
    Ok(conn)
}

/// A damaged header is told apart from a foreign file before SQLite sees it.
fn check_header(path: &Path) -> Result<(), DatabaseError> {
    let read = |source| DatabaseError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(read(error)),
    };
    let mut header = Vec::with_capacity(HEADER);
    file.by_ref()
        .take(HEADER as u64)
        .read_to_end(&mut header)
        .map_err(read)?;
    if header.is_empty() {
        // Created and not yet written.
        return Ok(());
    }
    if header.len() < HEADER || !header.starts_with(MAGIC) {
        let what = "it does not begin with a SQLite header".to_owned();
        return Err(DatabaseError::Corrupt {
            path: path.to_owned(),
            what,
        });
    }
    Ok(())
}

async fn check(conn: &mut SqliteConnection, path: &Path, kind: Kind) -> Result<(), DatabaseError> {
    let findings: String = sqlx::query_scalar("PRAGMA quick_check(1)")
        .fetch_one(&mut *conn)
        .await
        .map_err(sqlite(path))?;
    if findings != "ok" {
        return Err(DatabaseError::Corrupt {
            path: path.to_owned(),
            what: findings,
        });
    }
    let application_id: i32 = sqlx::query_scalar("PRAGMA application_id")
        .fetch_one(&mut *conn)
        .await
        .map_err(sqlite(path))?;
    let format: i32 = sqlx::query_scalar("PRAGMA user_version")
        .fetch_one(&mut *conn)
        .await
        .map_err(sqlite(path))?;
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema")
        .fetch_one(&mut *conn)
        .await
        .map_err(sqlite(path))?;
    if application_id == 0 && tables == 0 {
        return seal(conn, path, kind).await;
    }
    if application_id != kind.application_id {
        return Err(DatabaseError::Foreign {
            path: path.to_owned(),
            found: application_id,
        });
    }
    if format > kind.format {
        let (found, known) = (i64::from(format), i64::from(kind.format));
        return Err(DatabaseError::Newer {
            path: path.to_owned(),
            found,
            known,
        });
    }
    Ok(())
}

/// Marks a new file as ours.
async fn seal(conn: &mut SqliteConnection, path: &Path, kind: Kind) -> Result<(), DatabaseError> {
    let statement = format!(
        "PRAGMA application_id = {}; PRAGMA user_version = {};",
        kind.application_id, kind.format
    );
    sqlx::raw_sql(AssertSqlSafe(statement))
        .execute(conn)
        .await
        .map_err(sqlite(path))?;
    Ok(())
}

/// Refuses a catalogue whose application tables are newer than `migrator` knows.
pub(crate) async fn check_version(
    conn: &mut SqliteConnection,
    path: &Path,
    migrator: &sqlx::migrate::Migrator,
) -> Result<(), DatabaseError> {
    let known = migrator
        .iter()
        .map(|migration| migration.version)
        .max()
        .unwrap_or(0);
    let migrated: bool =
        sqlx::query_scalar("SELECT count(*) > 0 FROM sqlite_schema WHERE name = '_sqlx_migrations'")
            .fetch_one(&mut *conn)
            .await
            .map_err(sqlite(path))?;
    if migrated {
        let found: Option<i64> = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations")
            .fetch_one(&mut *conn)
            .await
            .map_err(sqlite(path))?;
        if let Some(found) = found.filter(|found| *found > known) {
            return Err(DatabaseError::Newer {
                path: path.to_owned(),
                found,
                known,
            });
        }
    }
    Ok(())
}

/// As [`check_version`], and brings an older catalogue up.
pub(crate) async fn migrate(
    conn: &mut SqliteConnection,
    path: &Path,
    migrator: &sqlx::migrate::Migrator,
) -> Result<(), DatabaseError> {
    check_version(conn, path, migrator).await?;
    migrator
        .run_direct(None, conn, false)
        .await
        .map_err(|error| match error {
            sqlx::migrate::MigrateError::Execute(source)
            | sqlx::migrate::MigrateError::ExecuteMigration(source, _) => sqlite(path)(source),
            other => DatabaseError::Corrupt {
                path: path.to_owned(),
                what: other.to_string(),
            },
        })
}
