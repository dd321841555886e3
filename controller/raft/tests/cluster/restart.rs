//! Stopped and killed nodes come back with everything.

use sqlx::{Connection, SqliteConnection};
use stor_raft::{Node, Options, prepare, replay};

use crate::pairs::{Cluster, Command, Pairs, Reply, dump, set, value};

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_cluster_restarts_from_disk() {
    let mut cluster = Cluster::of(3).await;
    for number in 0..20 {
        cluster.write(set(format!("key-{number}"), "v")).await;
    }
    let before = dump(cluster.members[&cluster.leader().await].node.reader()).await;
    let mut options: Vec<Options> = Vec::new();
    for id in [1, 2, 3] {
        options.push(cluster.stop(id).await);
    }
    for options in options {
        cluster.start(options).await;
    }
    cluster.assert_equal().await;
    assert_eq!(
        dump(cluster.members[&cluster.leader().await].node.reader()).await,
        before
    );
    assert!(cluster.members[&1].node.is_initialized().await);
    cluster.members[&1].node.initialize().await.unwrap_err();
    cluster.write(set("after", "restart")).await;
    cluster.stop_all().await;
}

/// What is on disk at one moment is what a killed process leaves: the files are copied while the node writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_cut_off_at_any_moment_opens_again_with_everything_acknowledged() {
    let mut cluster = Cluster::with_snapshots(1, Some((40, 5))).await;
    let node = cluster.members[&1].node.clone();
    for round in 0..6 {
        let writer = {
            let node = node.clone();
            tokio::spawn(async move {
                for number in 0..60 {
                    node.propose(set(format!("{round}-{number}"), "v")).await.unwrap();
                }
            })
        };
        node.applied()
            .wait_for(|at| *at >= round * 60 + 30)
            .await
            .unwrap();
        let acknowledged = value_count(&node).await;
        let cut = tempfile::tempdir().unwrap();
        copy_in_order(&cluster.path(1), cut.path());
        let mut options = cluster.options(1);
        options.dir = cut.path().to_owned();
        let copy: Node<Pairs> = Node::open(options).await.unwrap();
        copy.leadership().wait_for(|view| view.is_self).await.unwrap();
        copy.linearize().await.unwrap();
        assert!(value_count(&copy).await >= acknowledged);
        copy.propose(set("after", "the cut")).await.unwrap();
        copy.shutdown().await;
        writer.await.unwrap();
    }
    cluster.stop_all().await;
}

async fn value_count(node: &Node<Pairs>) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM pair")
        .fetch_one(node.reader())
        .await
        .unwrap()
}

/// A crash leaves all files as of one moment. A copy takes time, so the order matters: what is written first
/// (the log) is copied last, and of each database the write-ahead log after the file would tear, so the copy is
/// SQLite's own.
fn copy_in_order(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to.join("snapshots")).unwrap();
    for name in ["catalogue.db", "log.db"] {
        let (from, to) = (from.join(name), to.join(name));
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let options = sqlx::sqlite::SqliteConnectOptions::new()
                    .filename(&from)
                    .read_only(true);
                let mut conn = SqliteConnection::connect_with(&options).await.unwrap();
                let statement = sqlx::query("VACUUM INTO ?").bind(to.to_str().unwrap().to_owned());
                statement.execute(&mut conn).await.unwrap();
            });
        });
    }
    let current = std::fs::read_dir(from.join("snapshots")).unwrap();
    for entry in current {
        let entry = entry.unwrap();
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "db")
        {
            // It may be replaced meanwhile.
            drop(std::fs::copy(
                entry.path(),
                to.join("snapshots").join(entry.file_name()),
            ));
        }
    }
}

#[tokio::test]
async fn commands_can_be_applied_to_a_bare_database() {
    let commands = [
        Command::Create {
            key: "a".to_owned(),
            value: "1".to_owned(),
        },
        Command::Create {
            key: "a".to_owned(),
            value: "2".to_owned(),
        },
        set("b", "3"),
    ];
    let mut conn = SqliteConnection::connect("sqlite::memory:").await.unwrap();
    prepare::<Pairs>(&mut conn).await.unwrap();
    let replies = replay::<Pairs>(&mut conn, 5, &commands).await.unwrap();
    assert_eq!(replies, [Reply::Done, Reply::Exists, Reply::Done]);
    let written_by: i64 = sqlx::query_scalar("SELECT written_by FROM pair WHERE key = 'b'")
        .fetch_one(&mut conn)
        .await
        .unwrap();
    assert_eq!(written_by, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_a_whole_catalogue() {
    let mut cluster = Cluster::of(1).await;
    cluster.write(set("a", "1")).await;
    let target = cluster.path(1).join("backup.db");
    cluster.members[&1].node.backup(&target).await.unwrap();
    let pool = sqlx::SqlitePool::connect(&format!("sqlite://{}", target.display()))
        .await
        .unwrap();
    assert_eq!(value(&pool, "a").await.as_deref(), Some("1"));
    cluster.stop_all().await;
}

/// A leader may apply what its followers have on disk before its own disk has it; killed there, its log ends
/// before its catalogue.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_ends_before_the_catalogue_is_continued() {
    let mut cluster = Cluster::of(3).await;
    for number in 0..10 {
        cluster.write(set(format!("key-{number}"), "v")).await;
    }
    cluster.assert_equal().await;
    let leader = cluster.leader().await;
    let options = cluster.stop(leader).await;
    let log = sqlx::sqlite::SqliteConnectOptions::new().filename(options.dir.join("log.db"));
    let mut conn = SqliteConnection::connect_with(&log).await.unwrap();
    let cut = sqlx::raw_sql("DELETE FROM entry WHERE idx > (SELECT max(idx) - 2 FROM entry)");
    assert_eq!(cut.execute(&mut conn).await.unwrap().rows_affected(), 2);
    conn.close().await.unwrap();
    cluster.start(options).await;
    cluster.write(set("after", "the cut")).await;
    cluster.assert_equal().await;
    let options = cluster.stop(leader).await;
    cluster.start(options).await;
    cluster.assert_equal().await;
    cluster.stop_all().await;
}

/// Followers may have an entry on disk, and so have committed it, while the leader's own disk has not. A leader that
/// comes back without it must not go on in its term: it would give the entry's number to another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_lost_what_it_had_not_flushed_does_not_lead_on() {
    let mut cluster = Cluster::of(3).await;
    cluster.write(set("a", "flushed everywhere")).await;
    cluster.assert_equal().await;
    let leader = cluster.leader().await;
    let before = tempfile::tempdir().unwrap();
    copy_in_order(&cluster.path(leader), before.path());
    cluster.write(set("b", "not on the leader's disk")).await;
    cluster.assert_equal().await;
    let mut all = Vec::new();
    for id in [1, 2, 3] {
        all.push(cluster.stop(id).await);
    }
    for options in &all {
        if options.dir == cluster.path(leader) {
            std::fs::remove_dir_all(&options.dir).unwrap();
            std::fs::create_dir(&options.dir).unwrap();
            copy_in_order(before.path(), &options.dir);
        }
    }
    for options in all {
        cluster.start(options).await;
    }
    cluster.write(set("c", "after the cut")).await;
    cluster.assert_equal().await;
    for id in [1, 2, 3] {
        let known = value(cluster.members[&id].node.reader(), "b").await;
        assert_eq!(known.as_deref(), Some("not on the leader's disk"), "node {id}");
    }
    cluster.stop_all().await;
}
