//! A storage with a real server on a directory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::path::Path;

use stor_replication::ids::Lineage;
use tempfile::TempDir;

use super::*;

/// Far above what anything here takes: reached only by a defect.
const PATIENCE: Duration = Duration::from_secs(30);

fn desired(pool: &Path, key: Key, wish: Wish) -> Desired {
    let spec = PoolSpec {
        name: "sp01".to_owned(),
        path: pool.to_owned(),
        kind: Kind::File,
    };
    let replica = WantedReplica {
        volume_name: "db".to_owned(),
        pool: "sp01".to_owned(),
        size: 1 << 20,
        lineage: Lineage::default(),
        wish,
        source: None,
    };
    Desired {
        pools: BTreeMap::from([("sp01".to_owned(), spec)]),
        replicas: BTreeMap::from([(key, replica)]),
        ..Desired::default()
    }
}

#[tokio::test]
async fn a_replica_that_may_be_in_the_making_is_not_deleted_yet() {
    let directory = TempDir::new().unwrap();
    let pool = directory.path().join("pool");
    std::fs::create_dir(&pool).unwrap();
    let key = (VolumeId(uuid::Uuid::new_v4()), ReplicaId(1));
    let known = Known::load(&directory.path().join("known.json")).unwrap();
    let server = Server::start("127.0.0.1:0".parse().unwrap()).unwrap();
    let (done, mut jobs) = mpsc::channel(4);
    let mut storage = Storage::new("s1", "boot", known, Some(server), done);

    storage.set(&desired(&pool, key, Wish::Make { in_sync: true }));
    let prepared = jobs.recv().await.unwrap();
    storage.take(prepared).unwrap();
    assert!(storage.specs.contains_key(&key), "the server was told");
    // Whatever the server has done since, nobody has looked.
    storage.set(&desired(&pool, key, Wish::Delete));
    assert_eq!(storage.work("sp01"), BTreeMap::new());

    let deleted = async {
        while !storage.deleted.contains(&key) {
            storage.look_at_server().unwrap();
            storage.tick();
            if let Ok(Some(done)) = tokio::time::timeout(Duration::from_millis(5), jobs.recv()).await {
                storage.take(done).unwrap();
            }
        }
    };
    tokio::time::timeout(PATIENCE, deleted).await.unwrap();
    assert!(storage.server.as_ref().unwrap().report().is_empty());
    let left = crate::pool::replica::has_volumes(&pool).unwrap();
    assert!(!left, "files are left of a deleted replica");
}
