//! Members that are too far behind for the log.

use std::path::Path;

use futures_util::StreamExt;
use futures_util::stream;
use sqlx::{Connection, SqliteConnection};

use crate::pairs::{Cluster, PATIENCE, Reply, set};

async fn first_index_in_log(dir: &Path) -> i64 {
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(dir.join("log.db"))
        .read_only(true);
    let mut conn = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query_scalar("SELECT coalesce(min(idx), 0) FROM entry")
        .fetch_one(&mut conn)
        .await
        .unwrap()
}

async fn write_many(cluster: &Cluster, prefix: &str, count: usize) {
    let node = cluster.members[&cluster.leader().await].node.clone();
    let replies: Vec<Reply> = stream::iter(0..count)
        .map(|number| {
            let node = node.clone();
            // Of some size, so that a snapshot has several chunks.
            async move {
                node.propose(set(format!("{prefix}-{number}"), "v".repeat(4_000)))
                    .await
                    .unwrap()
            }
        })
        .buffer_unordered(32)
        .collect()
        .await;
    assert!(replies.iter().all(|reply| *reply == Reply::Done));
}

async fn wait_purged(cluster: &Cluster, id: u64, beyond: i64) {
    let purged = async {
        while first_index_in_log(&cluster.path(id)).await <= beyond {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, purged)
        .await
        .expect("the log is purged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_member_is_filled_by_a_snapshot() {
    let mut cluster = Cluster::with_snapshots(1, Some((100, 10))).await;
    write_many(&cluster, "a", 350).await;
    wait_purged(&cluster, 1, 100).await;
    let kept = std::fs::read_dir(cluster.path(1).join("snapshots")).unwrap();
    let kept = kept.filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .path()
            .extension()
            .is_some_and(|e| e == "db")
    });
    assert_eq!(kept.count(), 1, "one snapshot is kept");

    cluster.start(cluster.options(2)).await;
    cluster.join(2).await.unwrap();
    assert!(
        first_index_in_log(&cluster.path(2)).await > 100,
        "it did not come through the log"
    );
    cluster.assert_equal().await;

    // It can carry on alone from here, and restarts from what it received.
    write_many(&cluster, "b", 20).await;
    let options = cluster.stop(2).await;
    cluster.start(options).await;
    cluster.assert_equal().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_away_for_long_is_brought_back_by_a_snapshot() {
    let mut cluster = Cluster::with_snapshots(3, Some((100, 10))).await;
    let leader = cluster.leader().await;
    let away = *cluster.members.keys().find(|id| **id != leader).unwrap();
    write_many(&cluster, "before", 30).await;
    let options = cluster.stop(away).await;
    write_many(&cluster, "meanwhile", 400).await;
    for id in cluster.members.keys() {
        wait_purged(&cluster, *id, 100).await;
    }
    cluster.start(options).await;
    cluster.assert_equal().await;
    write_many(&cluster, "after", 20).await;
    cluster.assert_equal().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_that_lost_its_end_is_restored_from_snapshot_and_log() {
    let mut cluster = Cluster::with_snapshots(1, Some((100, 10))).await;
    write_many(&cluster, "a", 250).await;
    wait_purged(&cluster, 1, 100).await;
    write_many(&cluster, "b", 20).await;
    let before = crate::pairs::dump(cluster.members[&1].node.reader()).await;
    let options = cluster.stop(1).await;
    // A power cut may take anything from it that was not synced; here: everything.
    for name in ["catalogue.db", "catalogue.db-wal", "catalogue.db-shm"] {
        let path = options.dir.join(name);
        if path.exists() {
            std::fs::remove_file(path).unwrap();
        }
    }
    cluster.start(options).await;
    cluster.leader().await;
    assert_eq!(
        crate::pairs::dump(cluster.members[&1].node.reader()).await,
        before
    );
    cluster.stop_all().await;
}
