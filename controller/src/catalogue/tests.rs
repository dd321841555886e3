//! Commands against a bare database: what each does, what it refuses, and that replaying them gives the same
//! database again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, Connection, Executor, SqlSafeStr, SqliteConnection};
use stor_replication::catalogue::{Change, EjectReason, MemberState, Refusal};
use stor_replication::ids::{ConfigSeq, Epoch, Lineage, ReplicaId, View, VolumeId};
use uuid::Uuid;

use super::command::*;
use super::row::{ReplicaPhase, VolumePhase};
use super::*;

mod clones;
mod copies;
mod dump;
mod forced;
mod objects;
mod replicas;
mod snapshots;
mod view;

use dump::{dump, nothing};

const GIB: u64 = 1 << 30;

struct Catalogue {
    conn: SqliteConnection,
    index: u64,
    log: Vec<Command>,
}

impl Catalogue {
    async fn new() -> Self {
        let mut conn = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        MIGRATOR.run(&mut conn).await.unwrap();
        Self {
            conn,
            index: 0,
            log: Vec::new(),
        }
    }

    async fn run(&mut self, action: Action) -> Reply {
        // A dry run tells the same, as far as done and refused go, and leaves no trace.
        let before = dump(&mut self.conn, nothing).await;
        let dry = check(&mut self.conn, &action).await.unwrap();
        assert_eq!(before, dump(&mut self.conn, nothing).await, "a dry run wrote");
        self.index += 1;
        let command = Command {
            at: format!("2026-01-01T00:00:{:02}Z", self.index % 60),
            action,
        };
        let reply = apply(&mut self.conn, self.index, &command).await.unwrap();
        match (&dry, &reply) {
            (Ok(_), Ok(_)) => {}
            (Err(dry), Err(reply)) => assert_eq!(dry, reply),
            (dry, reply) => panic!("the dry run said {dry:?}, applying {reply:?}"),
        }
        if reply.is_err() {
            assert_eq!(
                before,
                dump(&mut self.conn, nothing).await,
                "a refused command wrote"
            );
        }
        self.log.push(command);
        reply
    }

    async fn volume(&mut self, name: &str) -> row::Volume {
        load::volume_named(&mut self.conn, name).await.unwrap().unwrap()
    }

    async fn desired(&mut self, node: &str) -> u64 {
        load::node(&mut self.conn, node).await.unwrap().unwrap().desired
    }
}

fn node(name: &str, kind: NodeKind) -> Action {
    Action::RegisterNode(NodeWish {
        name: name.into(),
        address: "10.0.0.1".into(),
        kind,
        properties: BTreeMap::from([("zone".into(), "a".into())]),
    })
}

fn pool_wish(node: &str) -> PoolWish {
    PoolWish {
        name: "sp01".into(),
        node: node.into(),
        kind: PoolKind::File,
        dir: format!("/pools/{node}"),
        devices: Vec::new(),
        adopt: false,
        wipe: false,
        tags: vec!["nvme".into()],
        overprovision_milli: 20_000,
    }
}

fn wish(size: u64) -> VolumeWish {
    VolumeWish {
        size,
        class: None,
        replicas: Some(2),
        pool: None,
        tags: Vec::new(),
        spread: None,
        together: None,
        min_in_sync: None,
    }
}

fn id(n: u128) -> VolumeId {
    VolumeId(Uuid::from_u128(n))
}

/// Volume n, `v<n>`, on s1 and s2, whose pools were created by entries 4 and 5.
fn volume(n: u128) -> NewVolume {
    let placement = |node: &str, pool_revision| Placement {
        node: node.into(),
        pool: "sp01".into(),
        pool_revision,
        promise_limit: 100 * GIB,
    };
    NewVolume {
        id: id(n),
        name: format!("v{n}"),
        lineage: Lineage(Uuid::from_u128(1000 + n)),
        wish: wish(10 * GIB),
        min_in_sync: 1,
        placements: vec![placement("s1", 4), placement("s2", 5)],
    }
}

fn attach(n: u128, node: &str, epoch: u64) -> Attach {
    Attach {
        volume: id(n),
        node: node.into(),
        expect: Epoch(epoch),
        force: false,
        transport: "socket".into(),
        read_only: false,
        purpose: Purpose::User,
    }
}

fn observed(node: &str, n: u128, replica: u32) -> Action {
    Action::ReplicasObserved {
        node: node.into(),
        ready: vec![(id(n), ReplicaId(replica))],
        gone: Vec::new(),
    }
}

fn gone(node: &str, n: u128, replica: u32) -> Action {
    Action::ReplicasObserved {
        node: node.into(),
        ready: Vec::new(),
        gone: vec![(id(n), ReplicaId(replica))],
    }
}

fn change(n: u128, change: Change, caller: &str) -> Action {
    Action::ChangeView {
        volume: id(n),
        change,
        caller: caller.into(),
    }
}

fn row(reply: Reply) -> stor_replication::catalogue::VolumeRow {
    match reply {
        Ok(Outcome::Row(row)) => *row,
        other => panic!("expected a row, got {other:?}"),
    }
}

/// Two storage nodes with pools and a diskless one.
async fn cluster() -> Catalogue {
    let mut c = Catalogue::new().await;
    for (name, kind) in [
        ("s1", NodeKind::Storage),
        ("s2", NodeKind::Storage),
        ("k1", NodeKind::Diskless),
    ] {
        assert_eq!(c.run(node(name, kind)).await, Ok(Outcome::Created));
    }
    for name in ["s1", "s2"] {
        assert_eq!(
            c.run(Action::CreatePool(pool_wish(name))).await,
            Ok(Outcome::Created)
        );
    }
    c
}

/// The same with volume v1, available.
async fn with_volume() -> Catalogue {
    let mut c = cluster().await;
    assert_eq!(c.run(Action::CreateVolume(volume(1))).await, Ok(Outcome::Created));
    c.run(observed("s1", 1, 0)).await.unwrap();
    c.run(observed("s2", 1, 1)).await.unwrap();
    assert_eq!(c.volume("v1").await.phase, VolumePhase::Available);
    c
}

#[tokio::test]
async fn every_statement_fits_the_schema() {
    let mut c = Catalogue::new().await;
    assert!(sql::ALL.len() > 40);
    for (name, statement) in sql::ALL {
        let prepared = (&mut c.conn)
            .prepare(AssertSqlSafe((*statement).to_owned()).into_sql_str())
            .await;
        assert!(prepared.is_ok(), "{name}: {:?}", prepared.err());
    }
}

#[tokio::test]
async fn only_the_newest_events_are_kept() {
    let mut c = cluster().await;
    let first = load::last_event(&mut c.conn).await.unwrap();
    sqlx::query("UPDATE events SET seq = seq + ?")
        .bind(10_000_i64)
        .execute(&mut c.conn)
        .await
        .unwrap();
    c.run(Action::NodeConnection {
        name: "s1".into(),
        online: true,
    })
    .await
    .unwrap();
    let kept = load::events(&mut c.conn, 0, 100_000).await.unwrap();
    assert_eq!(kept.last().unwrap().seq, first + 10_001);
    assert!(kept.iter().all(|e| e.seq > first + 1), "older ones were dropped");
}

fn add_signer(controller: u64, key: u8) -> Action {
    Action::AddSigner {
        controller,
        name: format!("c{controller}"),
        key: stor_right::PublicKey([key; 32]),
    }
}

/// Whose, key and whether it is retired, in order.
async fn signers(c: &mut Catalogue) -> Vec<(u64, u8, bool)> {
    let signers = load::signers(&mut c.conn).await.unwrap();
    signers
        .iter()
        .map(|one| (one.controller, one.key.0[0], one.retired))
        .collect()
}

#[tokio::test]
async fn signing_keys_come_go_and_concern_every_node() {
    let mut c = cluster().await;
    let before = c.desired("k1").await;
    assert_eq!(c.run(add_signer(1, 11)).await, Ok(Outcome::Created));
    assert!(c.desired("k1").await > before && c.desired("s1").await > before);
    assert_eq!(c.run(add_signer(1, 11)).await, Ok(Outcome::Unchanged));
    c.run(add_signer(2, 9)).await.unwrap();
    // It lost its key and made another.
    c.run(add_signer(1, 12)).await.unwrap();
    assert_eq!(
        signers(&mut c).await,
        [(1, 11, true), (2, 9, false), (1, 12, false)]
    );
    let before = c.desired("s2").await;
    let retire = Action::RetireSigners { controller: 2 };
    assert_eq!(c.run(retire.clone()).await, Ok(Outcome::Changed));
    assert!(c.desired("s2").await > before);
    assert_eq!(c.run(retire).await, Ok(Outcome::Unchanged));
    assert_eq!(
        signers(&mut c).await,
        [(1, 11, true), (2, 9, true), (1, 12, false)]
    );
    // Back with the key it had.
    c.run(add_signer(1, 11)).await.unwrap();
    assert_eq!(
        signers(&mut c).await,
        [(2, 9, true), (1, 12, true), (1, 11, false)]
    );
    for key in 100..200 {
        c.run(add_signer(3, key)).await.unwrap();
    }
    let kept = signers(&mut c).await;
    let retired = kept.iter().filter(|(_, _, retired)| *retired).count();
    assert_eq!((kept.len(), retired), (34, 32));
    assert_eq!(kept[0], (1, 11, false), "one that is used is kept, however old");
    assert_eq!(kept.last(), Some(&(3, 199, false)));
}

#[tokio::test]
async fn replaying_the_log_gives_the_same_database() {
    let mut c = with_volume().await;
    c.run(Action::InitCluster {
        id: Uuid::from_u128(5),
    })
    .await
    .unwrap();
    c.run(add_signer(1, 7)).await.unwrap();
    c.run(add_signer(1, 8)).await.unwrap();
    c.run(Action::RetireSigners { controller: 1 }).await.unwrap();
    c.run(Action::CreateClass(ClassWish {
        name: "fast".into(),
        replicas: 3,
        pool: None,
        tags: vec!["nvme".into()],
        transport: Some("fuse".into()),
        spread: Some("zone".into()),
        together: None,
        scrub_days: None,
    }))
    .await
    .unwrap();
    for n in 2..6 {
        let new = NewVolume {
            wish: VolumeWish {
                class: Some("fast".into()),
                ..wish(GIB)
            },
            ..volume(n)
        };
        c.run(Action::CreateVolume(new)).await.unwrap();
        c.run(observed("s1", n, 0)).await.unwrap();
        c.run(observed("s2", n, 1)).await.unwrap();
        row(c.run(Action::Attach(attach(n, "k1", 0))).await);
    }
    let remove = Change::Remove {
        expect: View {
            epoch: Epoch(1),
            config: ConfigSeq::default(),
        },
        members: vec![(ReplicaId(0), EjectReason::CacheLost)],
    };
    row(c.run(change(3, remove, "k1")).await);
    row(c
        .run(Action::Detach {
            volume: id(4),
            expect: Epoch(1),
            force: true,
        })
        .await);
    c.run(Action::DeleteVolume {
        name: "v4".into(),
        expect: None,
        gone: false,
        force: None,
    })
    .await
    .unwrap();
    c.run(gone("s1", 4, 0)).await.unwrap();
    assert!(
        c.run(Action::DeleteVolume {
            name: "v3".into(),
            expect: None,
            gone: false,
            force: None,
        })
        .await
        .is_err()
    );

    c.run(Action::PoolsObserved {
        node: "s1".into(),
        ready: vec!["sp01".into()],
    })
    .await
    .unwrap();
    c.run(Action::DeleteVolume {
        name: "v5".into(),
        expect: None,
        gone: false,
        force: Some(ForcedDelete {
            expect: Epoch(1),
            allocated: vec![(ReplicaId(0), 4096)],
        }),
    })
    .await
    .unwrap();
    c.run(gone("s1", 5, 0)).await.unwrap();

    let written = dump(&mut c.conn, nothing).await;
    assert!(written.contains("cache-lost") && written.contains("v5"));
    for _ in 0..2 {
        let mut fresh = Catalogue::new().await;
        for (index, command) in (1_u64..).zip(&c.log) {
            // As a follower sees it: through the log's JSON.
            let text = serde_json::to_string(command).unwrap();
            let command: Command = serde_json::from_str(&text).unwrap();
            let reply = apply(&mut fresh.conn, index, &command).await.unwrap();
            let text = serde_json::to_string(&reply).unwrap();
            assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), reply);
        }
        assert_eq!(dump(&mut fresh.conn, nothing).await, written);
    }
}
