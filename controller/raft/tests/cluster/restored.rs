//! A cluster made from a copy of another one's catalogue.

use std::path::{Path, PathBuf};

use stor_raft::{MembershipError, Node, RestoreError, discard, examine, restore};

use crate::pairs::{Cluster, Pairs, set, value};

async fn backup(cluster: &Cluster, to: &Path) -> u64 {
    let leader = &cluster.members[&cluster.leader().await].node;
    leader.linearize().await.unwrap();
    let index = *leader.applied().borrow();
    leader.backup(to).await.unwrap();
    index
}

fn copy(cluster: &Cluster) -> PathBuf {
    cluster.path(0).with_file_name("copy.db")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_becomes_a_new_cluster_which_the_old_members_are_not_in() {
    let mut cluster = Cluster::of(3).await;
    // Not in the first term any more: the new cluster has to elect itself in a later one.
    let first = cluster.leader().await;
    let options = cluster.stop(first).await;
    cluster.start(options).await;
    cluster.write(set("a", "before")).await;
    let path = copy(&cluster);
    let index = backup(&cluster, &path).await;
    cluster.write(set("a", "after")).await;
    let origin = examine::<Pairs>(&path).await.unwrap();
    assert_eq!(origin.index, index);
    assert_eq!(origin.members.len(), 3);

    let options = cluster.options(11);
    restore::<Pairs>(&options.dir, &options.peer, &path)
        .await
        .unwrap();
    // A second time is refused and leaves it alone.
    let again = restore::<Pairs>(&options.dir, &options.peer, &path).await;
    assert!(matches!(again, Err(RestoreError::Occupied { .. })), "{again:?}");
    for id in [2, 3] {
        cluster.stop(id).await;
    }
    let old = cluster.stop(1).await;
    cluster.start(options).await;
    let node = cluster.members[&11].node.clone();
    node.lead_alone().await.unwrap();
    assert_eq!(value(node.reader(), "a").await.as_deref(), Some("before"));
    cluster.write(set("b", "1")).await;
    assert!(
        *node.applied().borrow() > index + (1 << 31),
        "no revision means two things"
    );

    // The ids of old members stay away; new members are filled.
    let mut stranger = old.clone();
    stranger.dir = cluster.path(99);
    cluster.start(stranger).await;
    let refused = node.add_member(old.peer).await;
    assert!(
        matches!(refused, Err(MembershipError::Refused { .. })),
        "{refused:?}"
    );
    cluster.stop(1).await;
    for id in [12, 13] {
        cluster.start(cluster.options(id)).await;
        cluster.join(id).await.unwrap();
    }
    cluster.write(set("c", "1")).await;
    cluster.assert_equal().await;
    // And all of it survives restarts.
    for id in [11, 12, 13] {
        let options = cluster.stop(id).await;
        cluster.start(options).await;
    }
    assert_eq!(cluster.write(set("d", "1")).await, crate::pairs::Reply::Done);
    cluster.assert_equal().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_copy_is_refused_and_a_cut_off_restore_is_emptied() {
    let mut cluster = Cluster::of(1).await;
    cluster.write(set("a", "before")).await;
    let path = copy(&cluster);
    backup(&cluster, &path).await;
    cluster.stop_all().await;
    let bytes = std::fs::read(&path).unwrap();

    let options = cluster.options(11);
    for broken in [
        bytes[..bytes.len() / 2].to_vec(),
        b"no database".to_vec(),
        Vec::new(),
    ] {
        std::fs::write(&path, broken).unwrap();
        let refused = restore::<Pairs>(&options.dir, &options.peer, &path).await;
        assert!(refused.is_err(), "{refused:?}");
        discard(&options.dir).unwrap();
    }
    // As a crash leaves it: any of the files, in any state.
    for left in [
        "log.db",
        "catalogue.db",
        "catalogue.restored",
        "snapshots/restored.tmp",
    ] {
        std::fs::write(options.dir.join(left), b"half").unwrap();
    }
    discard(&options.dir).unwrap();
    std::fs::write(&path, bytes).unwrap();
    restore::<Pairs>(&options.dir, &options.peer, &path)
        .await
        .unwrap();
    let node: Node<Pairs> = Node::open(options).await.unwrap();
    node.lead_alone().await.unwrap();
    assert_eq!(value(node.reader(), "a").await.as_deref(), Some("before"));
    node.shutdown().await;
}
