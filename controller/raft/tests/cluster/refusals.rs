//! Directories a node must not run on.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use sqlx::{Connection, SqliteConnection};
use stor_raft::{DirectoryError, Node, OpenError, Options, ServeError};

use crate::pairs::{Cluster, Pairs, set};

/// The options of a stopped node that has written something.
async fn used() -> (Cluster, Options) {
    let mut cluster = Cluster::of(1).await;
    for number in 0..200 {
        cluster.write(set(format!("key-{number}"), "v".repeat(500))).await;
    }
    let options = cluster.stop(1).await;
    (cluster, options)
}

async fn refused(options: &Options) -> OpenError {
    let error = Node::<Pairs>::open(options.clone()).await.unwrap_err();
    // Refusing must not keep the directory locked.
    let again = Node::<Pairs>::open(options.clone()).await.unwrap_err();
    assert_eq!(error.to_string(), again.to_string());
    error
}

async fn execute(path: &Path, statement: &'static str) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut conn = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql(statement).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
}

fn scribble(path: &Path, offset: u64, length: usize) {
    let mut file = std::fs::File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(&vec![0xa5; length]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_use() {
    let mut cluster = Cluster::of(1).await;
    let error = refused(&cluster.members[&1].options).await;
    assert!(
        matches!(error, OpenError::Directory(DirectoryError::InUse { .. })),
        "{error:?}"
    );
    assert!(error.to_string().contains("in use by another process"), "{error}");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use() {
    let mut cluster = Cluster::of(1).await;
    let mut options = cluster.options(2);
    options.peer_listen = cluster.members[&1].options.peer_listen;
    let node: Node<Pairs> = Node::open(options).await.unwrap();
    let error = node.bind().await.unwrap_err();
    assert!(matches!(error, ServeError::Bind { .. }), "{error:?}");
    node.shutdown().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_of_a_newer_schema() {
    let (_cluster, options) = used().await;
    execute(
        &options.dir.join("catalogue.db"),
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'from the future', 1, x'00', 0)",
    )
    .await;
    let error = refused(&options).await;
    assert!(
        matches!(
            error,
            OpenError::Newer {
                found: 9999,
                known: 1,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains("Start the newer version"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_a_newer_format() {
    let (_cluster, options) = used().await;
    execute(&options.dir.join("log.db"), "PRAGMA user_version = 2").await;
    let error = refused(&options).await;
    assert!(
        matches!(
            error,
            OpenError::Newer {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_header() {
    for name in ["log.db", "catalogue.db"] {
        let (_cluster, options) = used().await;
        scribble(&options.dir.join(name), 0, 16);
        let error = refused(&options).await;
        assert!(matches!(error, OpenError::Corrupt { .. }), "{error:?}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_pages() {
    for name in ["log.db", "catalogue.db"] {
        let (_cluster, options) = used().await;
        let path = options.dir.join(name);
        let pages = std::fs::metadata(&path).unwrap().len() / 4096;
        for page in 1..pages {
            scribble(&path, page * 4096, 200);
        }
        let error = refused(&options).await;
        assert!(matches!(error, OpenError::Corrupt { .. }), "{name}: {error:?}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_file() {
    let (_cluster, options) = used().await;
    let path = options.dir.join("catalogue.db");
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(length / 2)
        .unwrap();
    let error = refused(&options).await;
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_log_entry_is_noticed() {
    let (_cluster, options) = used().await;
    execute(
        &options.dir.join("log.db"),
        "UPDATE entry SET payload = x'7b7d' WHERE idx = 20",
    )
    .await;
    let error = refused(&options).await;
    assert!(
        matches!(&error, OpenError::Corrupt { what, .. } if what.contains("entry 20")),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_with_a_hole() {
    let (_cluster, options) = used().await;
    execute(&options.dir.join("log.db"), "DELETE FROM entry WHERE idx = 20").await;
    let error = refused(&options).await;
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_log() {
    let (_cluster, options) = used().await;
    std::fs::remove_file(options.dir.join("log.db")).unwrap();
    let error = refused(&options).await;
    assert!(matches!(error, OpenError::LogLost { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_catalogue_without_a_snapshot() {
    let (_cluster, options) = used().await;
    execute(
        &options.dir.join("log.db"),
        "DELETE FROM entry WHERE idx <= 50; UPDATE state SET purged_term = 1, purged_index = 50",
    )
    .await;
    std::fs::remove_file(options.dir.join("catalogue.db")).unwrap();
    let error = refused(&options).await;
    assert!(
        matches!(error, OpenError::CatalogueBehind { purged: 50, .. }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_nodes_directory() {
    let (_cluster, mut options) = used().await;
    options.peer.id = 2;
    let error = refused(&options).await;
    assert!(
        matches!(error, OpenError::OtherNode { asked: 2, .. }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_another_program() {
    let (_cluster, options) = used().await;
    let path = options.dir.join("catalogue.db");
    std::fs::remove_file(&path).unwrap();
    let foreign = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true);
    let mut conn = SqliteConnection::connect_with(&foreign).await.unwrap();
    sqlx::raw_sql("CREATE TABLE theirs (x)")
        .execute(&mut conn)
        .await
        .unwrap();
    conn.close().await.unwrap();
    let error = refused(&options).await;
    assert!(matches!(error, OpenError::Foreign { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_cannot_be_made() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let cluster = Cluster::of(1).await;
    let mut options = cluster.options(2);
    options.dir = file.join("below");
    let error = refused(&options).await;
    assert!(
        matches!(error, OpenError::Directory(DirectoryError::Create { .. })),
        "{error:?}"
    );
}
