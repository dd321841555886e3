//! The application of the tests, and a cluster of it.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::{Row, SqliteConnection, SqlitePool};
use stor_raft::{
    Application, HttpRequest, HttpResponse, Node, Options, PeerHandler, PeerInfo, ProposeError, Timing, join,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// Long enough for any disk; tests end as soon as what they wait for is there.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(crate) struct Pairs;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Refused if the key is there.
    Create { key: String, value: String },
    /// Sets or replaces.
    Set { key: String, value: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    Exists,
}

impl Application for Pairs {
    type Command = Command;
    type Reply = Reply;

    fn migrator() -> &'static sqlx::migrate::Migrator {
        static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("tests/migrations");
        &MIGRATOR
    }

    async fn apply(conn: &mut SqliteConnection, index: u64, command: &Command) -> Result<Reply, sqlx::Error> {
        let (statement, key, value) = match command {
            Command::Create { key, value } => (
                "INSERT INTO pair (key, value, written_by) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                key,
                value,
            ),
            Command::Set { key, value } => (
                "INSERT INTO pair (key, value, written_by) VALUES (?, ?, ?) \
                 ON CONFLICT DO UPDATE SET value = excluded.value, written_by = excluded.written_by",
                key,
                value,
            ),
        };
        let done = sqlx::query(statement)
            .bind(key)
            .bind(value)
            .bind(i64::try_from(index).unwrap())
            .execute(conn)
            .await?;
        Ok(if done.rows_affected() == 1 {
            Reply::Done
        } else {
            Reply::Exists
        })
    }
}

pub(crate) fn set(key: impl Into<String>, value: impl Into<String>) -> Command {
    Command::Set {
        key: key.into(),
        value: value.into(),
    }
}

pub(crate) async fn value(pool: &SqlitePool, key: &str) -> Option<String> {
    sqlx::query_scalar("SELECT value FROM pair WHERE key = ?")
        .bind(key)
        .fetch_optional(pool)
        .await
        .unwrap()
}

/// Everything that the application and SQLite know, as text.
pub(crate) async fn dump(pool: &SqlitePool) -> Vec<String> {
    let mut lines = Vec::new();
    for statement in [
        "SELECT type || name || sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type, name",
        "SELECT key || '=' || value || '@' || written_by || twice FROM pair ORDER BY key",
        "SELECT id || ':' || key FROM history ORDER BY id",
        "SELECT name || seq FROM sqlite_sequence ORDER BY name",
    ] {
        let rows = sqlx::query(statement).fetch_all(pool).await.unwrap();
        lines.extend(rows.iter().map(|row| row.get::<String, _>(0)));
    }
    lines
}

/// Answers a forwarded request by proposing: body `key=value`.
struct Front {
    node: Node<Pairs>,
}

impl PeerHandler for Front {
    fn forward(&self, request: HttpRequest) -> Pin<Box<dyn Future<Output = HttpResponse> + Send + '_>> {
        Box::pin(async move {
            let body = String::from_utf8(request.body).unwrap();
            let (key, value) = body.split_once('=').unwrap();
            let status = match self.node.propose(set(key, value)).await {
                Ok(_) => 200,
                Err(_) => 503,
            };
            HttpResponse {
                status,
                headers: request.headers,
                body: self.node.me().name.clone().into_bytes(),
            }
        })
    }
}

pub(crate) struct Member {
    pub(crate) node: Node<Pairs>,
    pub(crate) options: Options,
    server: JoinHandle<()>,
}

impl Member {
    async fn start(options: Options) -> Self {
        let node: Node<Pairs> = Node::open(options.clone()).await.unwrap();
        let listener = node.bind().await.unwrap();
        let front = Arc::new(Front { node: node.clone() });
        let serving = node.clone().serve_on(listener, front);
        let server = tokio::spawn(async move { serving.await.unwrap() });
        Self {
            node,
            options,
            server,
        }
    }

    pub(crate) async fn stop(self) -> Options {
        self.node.shutdown().await;
        self.server.await.unwrap();
        self.options
    }

    pub(crate) async fn wait_applied(&self, index: u64) {
        let mut applied = self.node.applied();
        tokio::time::timeout(PATIENCE, applied.wait_for(|at| *at >= index))
            .await
            .unwrap()
            .unwrap();
    }
}

pub(crate) struct Cluster {
    pub(crate) members: BTreeMap<u64, Member>,
    dir: TempDir,
    snapshots: Option<(u64, u64)>,
}

impl Cluster {
    /// `count` voters with the ids from 1 on.
    pub(crate) async fn of(count: u64) -> Self {
        Self::with_snapshots(count, None).await
    }

    /// `snapshots`: every so many entries, keeping so many.
    pub(crate) async fn with_snapshots(count: u64, snapshots: Option<(u64, u64)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Self {
            members: BTreeMap::new(),
            dir,
            snapshots,
        };
        cluster.start(cluster.options(1)).await;
        cluster.members[&1].node.initialize().await.unwrap();
        for id in 2..=count {
            cluster.start(cluster.options(id)).await;
            cluster.join(id).await.unwrap();
        }
        cluster
    }

    pub(crate) fn options(&self, id: u64) -> Options {
        let listen = free_address();
        let peer = PeerInfo {
            id,
            name: format!("c{id}"),
            peer_address: listen.to_string(),
            api_address: format!("api-{id}"),
        };
        let mut options = Options::new(self.path(id), listen, peer);
        options.timing = Timing::fast();
        if let Some((every, keep)) = self.snapshots {
            options.snapshot_every = every;
            options.keep_entries = keep;
        }
        options
    }

    pub(crate) fn path(&self, id: u64) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    pub(crate) async fn start(&mut self, options: Options) {
        let id = options.peer.id;
        let member = Member::start(options).await;
        self.members.insert(id, member);
    }

    pub(crate) async fn join(&self, id: u64) -> Result<(), stor_raft::JoinError> {
        let others = self.members.iter().filter(|(other, _)| **other != id);
        let seeds: Vec<String> = others
            .map(|(_, member)| member.options.peer.peer_address.clone())
            .collect();
        join(&seeds, &self.members[&id].options.peer).await
    }

    pub(crate) async fn stop(&mut self, id: u64) -> Options {
        self.members.remove(&id).unwrap().stop().await
    }

    /// The id of a leader that has a majority.
    pub(crate) async fn leader(&self) -> u64 {
        let found = async {
            loop {
                for (id, member) in &self.members {
                    if member.node.leadership().borrow().is_self
                        && member.node.linearize_within(Duration::from_secs(2)).await.is_ok()
                    {
                        return *id;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, found)
            .await
            .expect("a leader is elected")
    }

    /// Proposes on whoever leads until it is acknowledged; for commands that may be applied twice.
    pub(crate) async fn write(&self, command: Command) -> Reply {
        let writing = async {
            loop {
                let leader = self.leader().await;
                match self.members[&leader].node.propose(command.clone()).await {
                    Ok(reply) => return reply,
                    Err(ProposeError::Encoding { .. } | ProposeError::TooLarge { .. }) => {
                        panic!("{command:?}")
                    }
                    Err(_) => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, writing)
            .await
            .expect("a majority takes the command")
    }

    /// Waits until all have applied what the leader has, and compares them.
    pub(crate) async fn assert_equal(&self) {
        let leader = &self.members[&self.leader().await];
        let index = *leader.node.applied().borrow();
        let expected = dump(leader.node.reader()).await;
        for member in self.members.values() {
            member.wait_applied(index).await;
            assert_eq!(
                dump(member.node.reader()).await,
                expected,
                "{}",
                member.options.peer
            );
        }
    }

    pub(crate) async fn stop_all(&mut self) {
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            self.stop(id).await;
        }
    }
}

/// An address nobody listens on.
pub(crate) fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}
