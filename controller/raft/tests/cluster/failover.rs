//! The leader goes; nothing that was acknowledged is lost.

use std::time::Duration;

use stor_raft::{ForwardError, Header, HttpRequest, ProposeError};

use crate::pairs::{Cluster, Command, PATIENCE, Reply, set, value};

fn request(body: &str) -> HttpRequest {
    HttpRequest {
        method: "PUT".to_owned(),
        path_and_query: "/pairs".to_owned(),
        headers: vec![Header {
            name: "x-from".to_owned(),
            value: b"client".to_vec(),
        }],
        body: body.as_bytes().to_vec(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_applied_on_all_members_and_its_reply_comes_from_apply() {
    let mut cluster = Cluster::of(3).await;
    let leader = &cluster.members[&cluster.leader().await].node;
    let create = Command::Create {
        key: "a".to_owned(),
        value: "1".to_owned(),
    };
    assert_eq!(leader.propose(create.clone()).await.unwrap(), Reply::Done);
    assert_eq!(leader.propose(create).await.unwrap(), Reply::Exists);
    assert_eq!(
        value(leader.reader(), "a").await.as_deref(),
        Some("1"),
        "seen as soon as acknowledged"
    );
    cluster.assert_equal().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_names_the_leader_and_does_nothing() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let follower = cluster
        .members
        .values()
        .find(|member| member.options.peer.id != leader)
        .unwrap();
    follower.wait_applied(1).await;
    for error in [
        follower.node.propose(set("a", "1")).await.unwrap_err(),
        follower.node.linearize().await.unwrap_err(),
    ] {
        let ProposeError::NotLeader { leader: Some(named) } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(named.id, leader);
        assert!(error.surely_not_applied());
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_hands_requests_to_the_leader() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    for (id, member) in &cluster.members {
        let answer = member.node.forward(request(&format!("from-{id}=x"))).await;
        if *id == leader {
            let error = answer.unwrap_err();
            assert!(matches!(error, ForwardError::LeadsItself), "{error:?}");
            assert!(error.surely_not_done());
        } else {
            let answer = answer.unwrap();
            assert_eq!(answer.status, 200);
            assert_eq!(answer.body, format!("c{leader}").into_bytes());
            assert_eq!(answer.headers[0].value, b"client");
            let there = value(cluster.members[&leader].node.reader(), &format!("from-{id}")).await;
            assert_eq!(there.as_deref(), Some("x"));
        }
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_the_leader_stops_under_load() {
    let mut cluster = Cluster::of(3).await;
    let first = cluster.leader().await;
    let node = cluster.members[&first].node.clone();
    let writer = tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        for number in 0.. {
            let key = format!("key-{number}");
            match node.propose(set(&key, "v")).await {
                Ok(_) => acknowledged.push(key),
                Err(_) => break,
            }
        }
        acknowledged
    });
    cluster.members[&first].wait_applied(50).await;
    let options = cluster.stop(first).await;
    let acknowledged = writer.await.unwrap();
    assert!(acknowledged.len() >= 20, "{}", acknowledged.len());

    let second = cluster.leader().await;
    assert_ne!(second, first);
    cluster.write(set("after", "failover")).await;
    for key in &acknowledged {
        let there = value(cluster.members[&second].node.reader(), key).await;
        assert_eq!(there.as_deref(), Some("v"), "{key} was acknowledged");
    }
    cluster.start(options).await;
    cluster.assert_equal().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_goes_on_forwarding_after_the_leader_has_changed() {
    let mut cluster = Cluster::of(3).await;
    let first = cluster.leader().await;
    let follower = *cluster.members.keys().find(|id| **id != first).unwrap();
    let node = cluster.members[&follower].node.clone();
    assert_eq!(node.forward(request("before=1")).await.unwrap().status, 200);
    cluster.stop(first).await;
    // Either it finds the new leader or it is the new leader; never an error that leaves the outcome open,
    // because nothing was under way.
    match node.forward(request("after=1")).await {
        Ok(answer) => assert_eq!(answer.status, 200),
        Err(error) => assert!(matches!(error, ForwardError::LeadsItself), "{error:?}"),
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_acknowledged() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = cluster
        .members
        .keys()
        .copied()
        .filter(|id| *id != leader)
        .collect();
    let mut stopped = Vec::new();
    for id in others {
        stopped.push(cluster.stop(id).await);
    }
    let node = cluster.members[&leader].node.clone();
    let limit = Duration::from_secs(3);
    let error = node.propose_within(set("a", "1"), limit).await.unwrap_err();
    assert!(
        matches!(
            error,
            ProposeError::OutcomeUnknown { .. } | ProposeError::NoLeader { .. }
        ),
        "{error:?}"
    );
    assert!(
        node.linearize_within(limit).await.is_err(),
        "a read could be out of date"
    );
    for options in stopped {
        cluster.start(options).await;
    }
    assert_eq!(cluster.write(set("b", "2")).await, Reply::Done);
    cluster.assert_equal().await;
    cluster.stop_all().await;
}

/// An application's `Err` means that its storage failed: going on would make the members differ.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_to_apply_stops_the_node_and_says_why() {
    let mut cluster = Cluster::of(1).await;
    let node = cluster.members[&1].node.clone();
    node.propose(set("a", "1")).await.unwrap();
    // Violates a CHECK, which this application does not expect.
    let error = node.propose(set("b", "v".repeat(1_000_000))).await.unwrap_err();
    assert!(matches!(error, ProposeError::Stopped { .. }), "{error:?}");
    assert!(!error.surely_not_applied());
    let reason = tokio::time::timeout(PATIENCE, node.failed()).await.unwrap();
    assert!(reason.contains("applying a command"), "{reason}");
    assert_eq!(value(node.reader(), "b").await, None, "the batch was rolled back");
    assert_eq!(value(node.reader(), "a").await.as_deref(), Some("1"));
    let mut views = node.leadership();
    tokio::time::timeout(PATIENCE, views.wait_for(|view| !view.is_self))
        .await
        .unwrap()
        .unwrap();
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_too_large_for_a_message_is_refused() {
    let mut cluster = Cluster::of(1).await;
    let error = cluster.members[&1]
        .node
        .propose(set("a", "v".repeat(2 << 20)))
        .await
        .unwrap_err();
    assert!(matches!(error, ProposeError::TooLarge { .. }), "{error:?}");
    assert!(error.surely_not_applied());
    cluster.stop_all().await;
}
