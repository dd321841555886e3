//! What a peer must not be able to do by sending something wrong.

use std::path::{Path, PathBuf};

use sqlx::{Connection, SqliteConnection};
use stor_proto::peer as proto;
use stor_proto::peer::peer_client::PeerClient;
use tonic::Code;
use tonic::transport::Channel;

use crate::pairs::{Cluster, set};

async fn client(cluster: &Cluster, id: u64) -> PeerClient<Channel> {
    let address = &cluster.members[&id].options.peer.peer_address;
    PeerClient::connect(format!("http://{address}")).await.unwrap()
}

async fn addressee(client: &mut PeerClient<Channel>) -> proto::Addressee {
    let proto::Identity { id, incarnation, .. } =
        client.identify(proto::Empty {}).await.unwrap().into_inner();
    proto::Addressee { id, incarnation }
}

fn log_id(term: u64, index: u64) -> proto::LogId {
    proto::LogId { term, index }
}

fn entry(term: u64, index: u64) -> proto::Entry {
    let blank = proto::entry::Payload::Blank(proto::Empty {});
    proto::Entry {
        id: Some(log_id(term, index)),
        payload: Some(blank),
    }
}

fn vote(term: u64) -> proto::Vote {
    proto::Vote {
        term,
        node: 9,
        committed: true,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_make_no_sense_are_refused_and_change_nothing() {
    let mut cluster = Cluster::of(1).await;
    let mut client = client(&cluster, 1).await;
    let me = addressee(&mut client).await;
    let append = proto::AppendRequest {
        to: Some(me.clone()),
        vote: Some(vote(1)),
        ..Default::default()
    };
    let bad = [
        (
            proto::AppendRequest {
                to: Some(proto::Addressee {
                    incarnation: "another".to_owned(),
                    ..me.clone()
                }),
                ..append.clone()
            },
            Code::NotFound,
        ),
        (
            proto::AppendRequest {
                to: None,
                ..append.clone()
            },
            Code::NotFound,
        ),
        (
            proto::AppendRequest {
                to: Some(proto::Addressee { id: 2, ..me.clone() }),
                ..append.clone()
            },
            Code::NotFound,
        ),
        (
            proto::AppendRequest {
                vote: None,
                ..append.clone()
            },
            Code::InvalidArgument,
        ),
        (
            proto::AppendRequest {
                entries: vec![entry(1, 5)],
                ..append.clone()
            },
            Code::InvalidArgument,
        ),
        (
            proto::AppendRequest {
                previous: Some(log_id(2, 4)),
                entries: vec![entry(1, 5)],
                ..append.clone()
            },
            Code::InvalidArgument,
        ),
        (
            proto::AppendRequest {
                previous: Some(log_id(1, 4)),
                entries: vec![entry(1, 5), entry(1, 7)],
                ..append.clone()
            },
            Code::InvalidArgument,
        ),
        (
            proto::AppendRequest {
                entries: vec![proto::Entry {
                    id: None,
                    ..entry(1, 0)
                }],
                ..append.clone()
            },
            Code::InvalidArgument,
        ),
        (
            proto::AppendRequest {
                entries: vec![proto::Entry {
                    payload: None,
                    ..entry(1, 0)
                }],
                ..append.clone()
            },
            Code::InvalidArgument,
        ),
    ];
    for (request, code) in bad {
        let status = client.append(request.clone()).await.unwrap_err();
        assert_eq!(status.code(), code, "{request:?}: {status}");
    }
    for (method, body, code) in [
        ("vote", "nonsense", Code::InvalidArgument),
        ("elect", "{}", Code::Unimplemented),
    ] {
        let call = proto::RaftCall {
            method: method.to_owned(),
            body: body.as_bytes().to_vec(),
            to: Some(me.clone()),
        };
        assert_eq!(client.raft(call).await.unwrap_err().code(), code);
    }
    cluster.write(set("a", "1")).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_lead_does_not_carry_out_a_forwarded_request() {
    let mut cluster = Cluster::of(2).await;
    let follower = 3 - cluster.leader().await;
    let request = proto::HttpRequest {
        body: b"a=1".to_vec(),
        ..Default::default()
    };
    let status = client(&cluster, follower)
        .await
        .forward(request)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    cluster.stop_all().await;
}

/// A snapshot as the leader would send it, to be spoiled.
struct Transfer {
    header: proto::SnapshotHeader,
    file: Vec<u8>,
}

impl Transfer {
    async fn of(cluster: &Cluster, to: &proto::Addressee, alter: Option<&'static str>) -> Self {
        let path: PathBuf = cluster.path(1).join("copy.db");
        cluster.members[&1].node.backup(&path).await.unwrap();
        if let Some(statement) = alter {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
            let mut conn = SqliteConnection::connect_with(&options).await.unwrap();
            sqlx::raw_sql(statement).execute(&mut conn).await.unwrap();
            conn.close().await.unwrap();
        }
        let meta = Self::meta(&path).await;
        let file = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let length = file.len() as u64;
        Self {
            header: proto::SnapshotHeader {
                to: Some(to.clone()),
                vote: Some(vote(7)),
                meta,
                length,
            },
            file,
        }
    }

    async fn meta(path: &Path) -> Vec<u8> {
        let options = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(path)
            .read_only(true)
            .immutable(true);
        let mut conn = SqliteConnection::connect_with(&options).await.unwrap();
        let (term, index, members_term, members_index, members): (i64, i64, i64, i64, String) =
            sqlx::query_as(
                "SELECT applied_term, applied_index, membership_term, membership_index, membership \
             FROM stor_raft_state",
            )
            .fetch_one(&mut conn)
            .await
            .unwrap();
        let members: serde_json::Value = serde_json::from_str(&members).unwrap();
        serde_json::to_vec(&serde_json::json!({
            "last_log_id": { "leader_id": term, "index": index },
            "last_membership": {
                "log_id": { "leader_id": members_term, "index": members_index },
                "membership": members,
            },
        }))
        .unwrap()
    }

    fn chunks(&self) -> Vec<proto::SnapshotChunk> {
        let mut header = Some(self.header.clone());
        self.file
            .chunks(4096)
            .map(|data| {
                let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, data);
                let crc32c = u32::try_from(sum).unwrap();
                proto::SnapshotChunk {
                    header: header.take(),
                    data: data.to_vec(),
                    crc32c,
                }
            })
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoiled_snapshot_is_refused_and_changes_nothing() {
    let mut cluster = Cluster::of(1).await;
    cluster.write(set("a", "1")).await;
    let mut client = client(&cluster, 1).await;
    let me = addressee(&mut client).await;
    let good = Transfer::of(&cluster, &me, None).await;
    let newer = Transfer::of(
        &cluster,
        &me,
        Some(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (9999, 'from the future', 1, x'00', 0)",
        ),
    )
    .await;
    let mut spoiled: Vec<(&str, Vec<proto::SnapshotChunk>)> = vec![
        ("is empty", Vec::new()),
        ("has no header", good.chunks().split_off(1)),
        (
            "shorter than announced",
            good.chunks()[..good.chunks().len() - 1].to_vec(),
        ),
        ("newer version", newer.chunks()),
    ];
    let mut change = |expected, spoil: &dyn Fn(&mut Vec<proto::SnapshotChunk>)| {
        let mut chunks = good.chunks();
        spoil(&mut chunks);
        spoiled.push((expected, chunks));
    };
    change("checksum", &|chunks| chunks[2].data[17] ^= 1);
    change("longer than announced", &|chunks| chunks.push(chunks[1].clone()));
    change("meant for another", &|chunks| {
        chunks[0].header.as_mut().unwrap().to = None;
    });
    change("has no vote", &|chunks| {
        chunks[0].header.as_mut().unwrap().vote = None;
    });
    change("sender's term", &|chunks| {
        chunks[0].header.as_mut().unwrap().vote = Some(vote(0));
    });
    change("description cannot be read", &|chunks| {
        chunks[0].header.as_mut().unwrap().meta = b"{".to_vec();
    });
    change("larger than any", &|chunks| {
        chunks[0].header.as_mut().unwrap().length = u64::MAX;
    });
    change("not the one described", &|chunks| {
        let header = chunks[0].header.as_mut().unwrap();
        let text = String::from_utf8(header.meta.clone()).unwrap();
        let mut meta: serde_json::Value = serde_json::from_str(&text).unwrap();
        meta["last_log_id"]["index"] = 1_000.into();
        header.meta = serde_json::to_vec(&meta).unwrap();
    });
    change("corrupted", &|chunks| {
        for chunk in &mut *chunks {
            chunk.data.fill(7);
            let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &chunk.data);
            chunk.crc32c = u32::try_from(sum).unwrap();
        }
    });
    for (expected, chunks) in spoiled {
        let status = client.snapshot(tokio_stream::iter(chunks)).await.unwrap_err();
        assert_eq!(status.code(), Code::Aborted, "{expected}: {status}");
        assert!(status.message().contains(expected), "{expected}: {status}");
    }
    // It still leads: none of them has told Raft about the vote of term 7.
    assert!(cluster.members[&1].node.leadership().borrow().is_self);
    cluster.write(set("b", "2")).await;
    cluster.stop_all().await;
}
