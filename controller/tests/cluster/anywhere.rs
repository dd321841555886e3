//! A snapshot taken at any point of a log, installed on a member that had something else, and followed by the rest of
//! the log, gives the catalogue that the whole log gives.

use std::collections::BTreeMap;
use std::path::Path;

use sqlx::{Connection, SqliteConnection};
use stor_controller::catalogue::command::*;
use stor_controller::catalogue::{Action, Catalogue, Command};
use stor_raft::{install_copy, prepare, replay};
use stor_replication::catalogue::{Change, EjectReason};
use stor_replication::ids::{ConfigSeq, Epoch, Lineage, ReplicaId, View, VolumeId};
use uuid::Uuid;

use crate::dump::{dump, nothing};
use crate::random::Random;

const COMMANDS: usize = 80;
/// Logs, unless `STOR_SNAPSHOT_SEEDS` says otherwise.
const USUAL: u64 = 24;

fn node(random: &mut Random) -> String {
    format!("s{}", random.below(3))
}

fn volume(random: &mut Random) -> VolumeId {
    VolumeId(Uuid::from_u128(u128::from(random.below(4)) + 1))
}

fn view(random: &mut Random) -> View {
    View {
        epoch: Epoch(random.below(6)),
        config: ConfigSeq(random.below(5)),
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

/// Most of these are refused by what came before, as in life; enough are not.
fn action(random: &mut Random, index: u64) -> Action {
    let volume = volume(random);
    let name = format!("v{}", volume.0.as_u128());
    match random.below(16) {
        0 => Action::CreateVolume(NewVolume {
            id: volume,
            name,
            lineage: Lineage(Uuid::from_u128(u128::from(index))),
            wish: wish(4096 * (1 + random.below(2))),
            min_in_sync: 1,
            placements: ["s0", "s1"]
                .iter()
                .zip([5, 6])
                .map(|(node, pool_revision)| Placement {
                    node: (*node).into(),
                    pool: "sp01".into(),
                    pool_revision,
                    promise_limit: u64::MAX >> 1,
                })
                .collect(),
        }),
        1 | 2 => Action::ReplicasObserved {
            node: node(random),
            ready: (0..2).map(|replica| (volume, ReplicaId(replica))).collect(),
            gone: (0..2).map(|replica| (volume, ReplicaId(replica))).collect(),
        },
        3..=5 => Action::Attach(Attach {
            volume,
            node: node(random),
            expect: Epoch(random.below(5)),
            force: random.below(2) == 0,
            transport: "socket".into(),
            read_only: false,
            purpose: Purpose::User,
        }),
        6 | 7 => Action::ChangeView {
            volume,
            change: Change::Remove {
                expect: view(random),
                members: vec![(ReplicaId(random.below(2) as u32), EjectReason::Unreachable)],
            },
            caller: node(random),
        },
        8 => Action::ChangeView {
            volume,
            change: Change::Add {
                expect: view(random),
                member: ReplicaId(random.below(2) as u32),
            },
            caller: node(random),
        },
        9 => Action::Detach {
            volume,
            expect: Epoch(random.below(5)),
            force: true,
        },
        10 => Action::DeleteVolume {
            name,
            expect: None,
            gone: random.below(2) == 0,
            force: None,
        },
        11 => Action::ChangeNode {
            name: node(random),
            expect: None,
            properties: BTreeMap::from([("zone".into(), random.below(9).to_string())]),
        },
        12 => Action::DoubtVolumes {
            seen: vec![(volume, view(random))],
        },
        13 => Action::TrustVolumes {
            volumes: vec![(volume, view(random))],
        },
        // Seldom: it locks all there is.
        14 if random.below(4) == 0 => Action::BeginHistory(NewHistory {
            id: Uuid::from_u128(u128::from(index)),
            backup_index: index,
            backup_at: "t".into(),
        }),
        _ => Action::AdoptVolume(Adoption {
            volume,
            name,
            expect: None,
            size: 8192,
            lineage: Lineage(Uuid::from_u128(9)),
            view: View {
                epoch: Epoch(3),
                config: ConfigSeq(2),
            },
            min_in_sync: 1,
            replicas: vec![AdoptedReplica {
                replica: ReplicaId(0),
                node: "s2".into(),
                pool: "sp01".into(),
                joined: Some(ConfigSeq(1)),
            }],
            owner: None,
        }),
    }
}

fn log(seed: u64) -> Vec<Command> {
    let mut random = Random::of(seed);
    let mut actions = vec![Action::InitCluster {
        id: Uuid::from_u128(1),
    }];
    for number in 0..3 {
        actions.push(Action::RegisterNode(NodeWish {
            name: format!("s{number}"),
            address: "a".into(),
            kind: NodeKind::Storage,
            properties: BTreeMap::new(),
        }));
    }
    for number in 0..3 {
        actions.push(Action::CreatePool(PoolWish {
            name: "sp01".into(),
            node: format!("s{number}"),
            kind: PoolKind::File,
            dir: "/p".into(),
            devices: Vec::new(),
            adopt: false,
            wipe: false,
            tags: Vec::new(),
            overprovision_milli: 20_000,
        }));
    }
    while actions.len() < COMMANDS {
        let index = actions.len() as u64 + 1;
        actions.push(action(&mut random, index));
    }
    let at = |(index, action)| Command {
        at: format!("2026-01-01T00:{:02}:00Z", index % 60),
        action,
    };
    actions.into_iter().enumerate().map(at).collect()
}

async fn open(path: &Path) -> SqliteConnection {
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true);
    let mut conn = SqliteConnection::connect_with(&options).await.unwrap();
    prepare::<Catalogue>(&mut conn).await.unwrap();
    conn
}

#[tokio::test]
async fn a_snapshot_at_any_point_and_the_rest_of_the_log_make_the_same_catalogue() {
    let seeds = std::env::var("STOR_SNAPSHOT_SEEDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let dir = tempfile::tempdir().unwrap();
    let mut done = 0;
    for seed in 1..=seeds.unwrap_or(USUAL) {
        let log = log(seed);
        let mut random = Random::of(seed + (1 << 32));
        let (cut, other) = (
            random.below(COMMANDS as u64) as usize,
            random.below(COMMANDS as u64) as usize,
        );
        let path = |name: &str| dir.path().join(format!("{name}-{seed}"));
        let mut leader = open(&path("leader")).await;
        let first = replay::<Catalogue>(&mut leader, 1, &log[..cut]).await.unwrap();
        let copy = path("copy");
        sqlx::query("VACUUM INTO ?")
            .bind(copy.to_str().unwrap())
            .execute(&mut leader)
            .await
            .unwrap();
        let rest = replay::<Catalogue>(&mut leader, cut as u64 + 1, &log[cut..])
            .await
            .unwrap();
        done += first.iter().chain(&rest).filter(|reply| reply.is_ok()).count();

        // What it had before is of no matter, be it another log.
        let mut member = open(&path("member")).await;
        let before = self::log(seed + 1000);
        replay::<Catalogue>(&mut member, 1, &before[..other])
            .await
            .unwrap();
        install_copy(&mut member, &copy).await.unwrap();
        let replies = replay::<Catalogue>(&mut member, cut as u64 + 1, &log[cut..])
            .await
            .unwrap();
        assert_eq!(replies, rest, "seed {seed}, snapshot after {cut}");
        assert_eq!(
            dump(&mut member, nothing).await,
            dump(&mut leader, nothing).await,
            "seed {seed}, snapshot after {cut}"
        );
    }
    println!("{done} commands were carried out");
    assert!(
        done > 20 * usize::try_from(seeds.unwrap_or(USUAL)).unwrap(),
        "mostly refused: {done}"
    );
}
