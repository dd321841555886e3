//! Members that have lost their log, or a part of it, and do not know. What they once acknowledged must not be
//! counted any more, and they must not vote.

use std::path::Path;
use std::time::Duration;

use stor_raft::{JoinError, MembershipError};

use crate::pairs::{Cluster, PATIENCE, set};

async fn wait_unheard(cluster: &Cluster, leader: u64, id: u64) {
    let node = &cluster.members[&leader].node;
    let unheard = async {
        while node
            .members()
            .iter()
            .any(|member| member.peer.id == id && member.heard == Some(true))
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, unheard)
        .await
        .expect("the leader does not count on it any more");
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_an_emptied_directory_is_not_spoken_to() {
    let mut cluster = Cluster::of(3).await;
    cluster.write(set("a", "1")).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = cluster
        .members
        .keys()
        .copied()
        .filter(|id| *id != leader)
        .collect();
    let options = cluster.stop(others[0]).await;
    std::fs::remove_dir_all(&options.dir).unwrap();
    cluster.start(options).await;
    wait_unheard(&cluster, leader, others[0]).await;

    // With it there are two of three; without a third one there is no majority.
    let third = cluster.stop(others[1]).await;
    let node = cluster.members[&leader].node.clone();
    node.propose_within(set("b", "2"), Duration::from_secs(2))
        .await
        .unwrap_err();
    assert!(
        !cluster.members[&others[0]].node.is_initialized().await,
        "it was fed nothing"
    );
    cluster.start(third).await;

    let error = cluster.join(others[0]).await.unwrap_err();
    let JoinError::Refused { reason, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(reason.contains("lost the log"), "{reason}");
    cluster.write(set("c", "3")).await;
    let leader = cluster.leader().await;
    cluster.members[&leader]
        .node
        .remove_member(others[0])
        .await
        .unwrap();
    cluster.stop(others[0]).await;
    cluster.assert_equal().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_directory_was_put_back_is_kept_out() {
    let mut cluster = Cluster::of(3).await;
    cluster.write(set("a", "1")).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = cluster
        .members
        .keys()
        .copied()
        .filter(|id| *id != leader)
        .collect();
    let options = cluster.stop(others[0]).await;
    let copy = tempfile::tempdir().unwrap();
    copy_dir(&options.dir, copy.path());
    cluster.start(options).await;
    cluster.write(set("b", "2")).await;
    cluster.assert_equal().await;

    let options = cluster.stop(others[0]).await;
    std::fs::remove_dir_all(&options.dir).unwrap();
    copy_dir(copy.path(), &options.dir);
    let third = cluster.stop(others[1]).await;
    cluster.start(options).await;
    wait_unheard(&cluster, leader, others[0]).await;
    let node = cluster.members[&leader].node.clone();
    node.propose_within(set("c", "3"), Duration::from_secs(2))
        .await
        .unwrap_err();

    cluster.start(third).await;
    cluster.write(set("d", "4")).await;
    match node.remove_member(others[0]).await {
        Ok(()) => {}
        // The leadership may have moved while there was no majority.
        Err(MembershipError::NotLeader { .. }) => {
            let leader = cluster.leader().await;
            cluster.members[&leader]
                .node
                .remove_member(others[0])
                .await
                .unwrap();
        }
        Err(error) => panic!("{error:?}"),
    }
    cluster.stop(others[0]).await;
    cluster.assert_equal().await;
    cluster.stop_all().await;
}
