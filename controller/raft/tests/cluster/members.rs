//! Joining, removing, handing over.

use stor_raft::{JoinError, MembershipError, join};

use crate::pairs::{Cluster, PATIENCE, free_address, set};

#[tokio::test(flavor = "multi_thread")]
async fn members_are_listed_with_their_roles() {
    let mut cluster = Cluster::of(3).await;
    cluster.write(set("a", "1")).await;
    let leader = cluster.leader().await;
    let members = cluster.members[&leader].node.members();
    assert_eq!(
        members.iter().map(|member| member.peer.id).collect::<Vec<_>>(),
        [1, 2, 3]
    );
    for member in &members {
        assert!(member.voter);
        assert_eq!(member.leader, member.peer.id == leader);
        assert_eq!(member.peer, cluster.members[&member.peer.id].options.peer);
        assert!(member.matched.is_some(), "{member:?}");
        assert_eq!(member.heard, Some(true), "{member:?}");
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over() {
    let mut cluster = Cluster::of(3).await;
    let first = cluster.leader().await;
    let second = *cluster.members.keys().find(|id| **id != first).unwrap();
    cluster.members[&first]
        .node
        .transfer_leader(second)
        .await
        .unwrap();
    assert_eq!(cluster.leader().await, second);
    cluster.write(set("a", "1")).await;

    let error = cluster.members[&second]
        .node
        .transfer_leader(99)
        .await
        .unwrap_err();
    assert!(matches!(error, MembershipError::Refused { .. }), "{error:?}");
    let error = cluster.members[&first]
        .node
        .transfer_leader(second)
        .await
        .unwrap_err();
    assert!(matches!(error, MembershipError::NotLeader { .. }), "{error:?}");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_id_does_not_come_back() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let gone = *cluster.members.keys().find(|id| **id != leader).unwrap();
    cluster.members[&leader].node.remove_member(gone).await.unwrap();
    assert!(
        cluster.members[&leader]
            .node
            .members()
            .iter()
            .all(|member| member.peer.id != gone)
    );
    let options = cluster.stop(gone).await;
    cluster.write(set("a", "1")).await;

    std::fs::remove_dir_all(&options.dir).unwrap();
    cluster.start(options).await;
    let error = cluster.join(gone).await.unwrap_err();
    let JoinError::Refused { reason, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(reason.contains("new id"), "{reason}");
    cluster.stop(gone).await;

    // With a new one it may, under the old name.
    let mut options = cluster.options(7);
    options.peer.name = format!("c{gone}");
    cluster.start(options).await;
    cluster.join(7).await.unwrap();
    cluster.assert_equal().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_removes_itself_hands_over() {
    let mut cluster = Cluster::of(3).await;
    let first = cluster.leader().await;
    cluster.members[&first].node.remove_member(first).await.unwrap();
    let mut views = cluster.members[&first].node.leadership();
    tokio::time::timeout(PATIENCE, views.wait_for(|view| !view.is_self))
        .await
        .unwrap()
        .unwrap();
    cluster.stop(first).await;
    assert_ne!(cluster.leader().await, first);
    cluster.write(set("a", "1")).await;
    cluster.assert_equal().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_twice_is_joining_once_and_others_identity_is_refused() {
    let mut cluster = Cluster::of(2).await;
    cluster.join(2).await.unwrap();
    let leader = cluster.leader().await;
    let node = &cluster.members[&leader].node;
    let mut stranger = cluster.options(9).peer;
    let mut twin = cluster.options(2).peer;
    let error = node.add_member(twin.clone()).await.unwrap_err();
    assert!(
        matches!(&error, MembershipError::Refused { reason } if reason.contains("the id 2")),
        "{error:?}"
    );
    twin.id = 3;
    let error = node.add_member(twin).await.unwrap_err();
    assert!(
        matches!(&error, MembershipError::Refused { reason } if reason.contains("name or address")),
        "{error:?}"
    );
    // An address at which somebody else answers.
    let mut elsewhere = Cluster::of(1).await;
    stranger.peer_address = elsewhere.members[&1].options.peer.peer_address.clone();
    let error = node.add_member(stranger.clone()).await.unwrap_err();
    assert!(
        matches!(&error, MembershipError::Refused { reason } if reason.contains("is the controller 1")),
        "{error:?}"
    );
    // A node that is in another cluster.
    elsewhere.start(elsewhere.options(9)).await;
    elsewhere.join(9).await.unwrap();
    stranger.peer_address = elsewhere.members[&9].options.peer.peer_address.clone();
    let error = node.add_member(stranger).await.unwrap_err();
    assert!(
        matches!(&error, MembershipError::Refused { reason } if reason.contains("another cluster")),
        "{error:?}"
    );
    elsewhere.stop_all().await;
    assert_eq!(node.members().len(), 2);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_costs_the_majority_is_refused() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = cluster
        .members
        .keys()
        .copied()
        .filter(|id| *id != leader)
        .collect();
    cluster.stop(others[0]).await;
    let node = cluster.members[&leader].node.clone();
    let unheard = async {
        while node
            .members()
            .iter()
            .any(|member| member.peer.id == others[0] && member.heard == Some(true))
        {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, unheard).await.unwrap();
    let error = node.remove_member(others[1]).await.unwrap_err();
    assert!(
        matches!(&error, MembershipError::Refused { reason } if reason.contains("no majority")),
        "{error:?}"
    );
    node.remove_member(others[0]).await.unwrap();
    cluster.write(set("a", "1")).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_join_at_once_through_any_member_or_none() {
    let mut cluster = Cluster::of(2).await;
    let leader = cluster.leader().await;
    let follower = cluster.members[&(3 - leader)].options.peer.peer_address.clone();
    for id in [3, 4, 5] {
        cluster.start(cluster.options(id)).await;
    }
    let seeds = [free_address().to_string(), follower];
    let joining = [3, 4, 5].map(|id| join(&seeds, &cluster.members[&id].options.peer));
    for joined in futures_util::future::join_all(joining).await {
        joined.unwrap();
    }
    let members = cluster.members[&cluster.leader().await].node.members();
    assert_eq!(members.len(), 5);
    assert!(members.iter().all(|member| member.voter));
    cluster.write(set("a", "1")).await;
    cluster.assert_equal().await;
    cluster.stop_all().await;
}
