//! Members of two versions in one cluster, as in the middle of an upgrade.

use std::sync::Arc;

use sqlx::SqliteConnection;
use stor_raft::{Application, HttpRequest, HttpResponse, Node, PeerHandler, join};

use crate::pairs::{Cluster, Command, PATIENCE, Pairs, Reply, set};

/// The next version of [`Pairs`]: one more migration.
#[derive(Debug)]
struct Later;

impl Application for Later {
    type Command = Command;
    type Reply = Reply;

    fn migrator() -> &'static sqlx::migrate::Migrator {
        static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("tests/migrations_later");
        &MIGRATOR
    }

    async fn apply(conn: &mut SqliteConnection, index: u64, command: &Command) -> Result<Reply, sqlx::Error> {
        Pairs::apply(conn, index, command).await
    }
}

struct Silent;

impl PeerHandler for Silent {
    fn forward(&self, _: HttpRequest) -> std::pin::Pin<Box<dyn Future<Output = HttpResponse> + Send + '_>> {
        Box::pin(async { HttpResponse::default() })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_member_brings_the_snapshot_of_an_older_leader_up_to_its_schema() {
    let mut cluster = Cluster::with_snapshots(1, Some((50, 5))).await;
    for number in 0..130 {
        cluster.write(set(format!("key-{number}"), "v")).await;
    }
    let node: Node<Later> = Node::open(cluster.options(2)).await.unwrap();
    let listener = node.bind().await.unwrap();
    let server = tokio::spawn(node.clone().serve_on(listener, Arc::new(Silent)));
    let seed = cluster.members[&1].options.peer.peer_address.clone();
    join(&[seed], node.me()).await.unwrap();
    cluster.write(set("last", "v")).await;
    let index = *cluster.members[&1].node.applied().borrow();
    let mut applied = node.applied();
    tokio::time::timeout(PATIENCE, applied.wait_for(|at| *at >= index))
        .await
        .unwrap()
        .unwrap();
    let notes: i64 = sqlx::query_scalar("SELECT count(*) FROM pair WHERE note = 'none'")
        .fetch_one(node.reader())
        .await
        .unwrap();
    assert_eq!(notes, 131);
    node.shutdown().await;
    server.await.unwrap().unwrap();
    cluster.stop_all().await;
}
