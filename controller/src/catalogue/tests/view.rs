//! Who has a volume and which replicas are in sync.

use super::*;

#[tokio::test]
async fn a_volume_is_available_once_all_replicas_are_there() {
    let mut c = cluster().await;
    c.run(Action::CreateVolume(volume(1))).await.unwrap();
    assert!(matches!(
        c.run(Action::Attach(attach(1, "k1", 0))).await,
        Err(Refused::State { .. })
    ));
    assert_eq!(
        c.run(observed("s2", 1, 0)).await,
        Ok(Outcome::Unchanged),
        "not its replica"
    );
    assert_eq!(c.run(observed("s1", 1, 0)).await, Ok(Outcome::Changed));
    let volume = c.volume("v1").await;
    assert_eq!(volume.phase, VolumePhase::Creating);
    assert_eq!(volume.places[&ReplicaId(0)].phase, ReplicaPhase::Ready);
    assert_eq!(c.run(observed("s2", 1, 1)).await, Ok(Outcome::Changed));
    let volume = c.volume("v1").await;
    assert_eq!(volume.phase, VolumePhase::Available);
    assert!(volume.row.clean && volume.row.owner.is_none());
    assert_eq!(volume.row.in_sync().count(), 2);
}

#[tokio::test]
async fn one_node_at_a_time_has_a_volume() {
    let mut c = with_volume().await;
    let first = row(c.run(Action::Attach(attach(1, "k1", 0))).await);
    assert_eq!(
        (first.view.epoch, first.owner.as_deref(), first.clean_before),
        (Epoch(1), Some("k1"), true)
    );
    assert_eq!(
        c.run(Action::Attach(attach(1, "k1", 1))).await,
        Ok(Outcome::Unchanged)
    );
    let as_file = Attach {
        transport: "fuse".into(),
        ..attach(1, "k1", 1)
    };
    assert!(matches!(
        c.run(Action::Attach(as_file)).await,
        Err(Refused::Exists { .. })
    ));
    let refused = c.run(Action::Attach(attach(1, "s1", 1))).await.unwrap_err();
    assert_eq!(refused.to_string(), "the volume is attached on node k1");
    let forced = Attach {
        force: true,
        ..attach(1, "s1", 1)
    };
    let second = row(c.run(Action::Attach(forced)).await);
    assert_eq!(
        (second.view.epoch, second.owner.as_deref(), second.clean_before),
        (Epoch(2), Some("s1"), false)
    );
    // The fenced engine of k1 asks in vain.
    let refused = c
        .run(change(
            1,
            Change::Restart {
                owner: "k1".into(),
                expect: Epoch(1),
            },
            "k1",
        ))
        .await;
    assert!(matches!(
        refused,
        Err(Refused::View {
            refusal: Refusal::NotOwner { .. },
            ..
        })
    ));
    let events = load::events(&mut c.conn, 0, 100).await.unwrap();
    assert!(
        events
            .iter()
            .any(|e| e.kind == "volume-fenced" && e.severity == "warning")
    );
}

#[tokio::test]
async fn a_detach_asks_the_engine_first_and_force_does_not() {
    let mut c = with_volume().await;
    row(c.run(Action::Attach(attach(1, "k1", 0))).await);
    let detach = |force| Action::Detach {
        volume: id(1),
        expect: Epoch(1),
        force,
    };
    let asked = row(c.run(detach(false)).await);
    assert_eq!(asked.owner.as_deref(), Some("k1"));
    assert!(c.volume("v1").await.attachment.unwrap().detaching);
    assert_eq!(c.run(detach(false)).await, Ok(Outcome::Unchanged));
    assert!(matches!(
        c.run(Action::Attach(attach(1, "k1", 1))).await,
        Err(Refused::View { .. })
    ));
    let ended = row(c.run(detach(true)).await);
    assert_eq!((ended.owner, ended.clean), (None, false));
    assert!(c.volume("v1").await.attachment.is_none());
    assert_eq!(c.run(detach(true)).await, Ok(Outcome::Unchanged));
}

#[tokio::test]
async fn members_leave_and_join_under_the_view_only() {
    let mut c = with_volume().await;
    row(c.run(Action::Attach(attach(1, "k1", 0))).await);
    let view = |config| View {
        epoch: Epoch(1),
        config: ConfigSeq(config),
    };
    let members = vec![(ReplicaId(1), EjectReason::Unreachable)];
    let remove = |expect| Change::Remove {
        expect,
        members: members.clone(),
    };
    let by_other = c.run(change(1, remove(view(0)), "s1")).await.unwrap_err();
    assert!(matches!(
        by_other,
        Refused::View {
            refusal: Refusal::NotOwner { .. },
            ..
        }
    ));
    row(c.run(change(1, remove(view(0)), "k1")).await);
    let stored = c.volume("v1").await.row;
    assert_eq!(
        stored.replicas[&ReplicaId(1)].state,
        MemberState::Stale {
            since: Some(view(1).config),
            reason: EjectReason::Unreachable
        }
    );
    // Proposed again because its answer was lost: refused, with the row that shows it was done.
    match c.run(change(1, remove(view(0)), "k1")).await {
        Err(Refused::View {
            refusal: Refusal::ViewChanged { .. },
            row,
        }) => assert_eq!(*row, stored),
        other => panic!("{other:?}"),
    }
    let joined = row(c
        .run(change(
            1,
            Change::Add {
                expect: view(1),
                member: ReplicaId(1),
            },
            "k1",
        ))
        .await);
    assert_eq!(joined.replicas[&ReplicaId(1)].joined, Some(view(2).config));
    assert_eq!(c.volume("v1").await.row, joined);
}

#[tokio::test]
async fn healing_gives_way_to_users() {
    let mut c = with_volume().await;
    let healing = |node: &str, epoch| Attach {
        transport: "none".into(),
        purpose: Purpose::Healing,
        ..attach(1, node, epoch)
    };
    row(c.run(Action::Attach(healing("s1", 0))).await);
    let second = c
        .run(Action::Attach(Attach {
            force: true,
            ..healing("s2", 1)
        }))
        .await;
    assert!(matches!(
        second,
        Err(Refused::View {
            refusal: Refusal::Attached { .. },
            ..
        })
    ));
    let user = row(c.run(Action::Attach(attach(1, "k1", 1))).await);
    assert_eq!((user.owner.as_deref(), user.view.epoch), (Some("k1"), Epoch(2)));
    let over_user = c
        .run(Action::Attach(Attach {
            force: true,
            ..healing("s1", 2)
        }))
        .await;
    assert!(matches!(
        over_user,
        Err(Refused::View {
            refusal: Refusal::Attached { .. },
            ..
        })
    ));
    row(c
        .run(change(
            1,
            Change::Detach {
                expect: Epoch(2),
                clean: false,
            },
            "k1",
        ))
        .await);
    row(c.run(Action::Attach(healing("s1", 2))).await);
    assert_eq!(
        c.run(Action::DeleteVolume {
            name: "v1".into(),
            expect: None,
            gone: false,
            force: None,
        })
        .await,
        Ok(Outcome::Changed)
    );
    assert!(c.volume("v1").await.row.owner.is_none());
}

#[tokio::test]
async fn a_node_never_attaches_by_itself() {
    let mut c = with_volume().await;
    row(c.run(Action::Attach(attach(1, "k1", 0))).await);
    let grab = Change::Attach {
        owner: "k1".into(),
        expect: Epoch(1),
        force: true,
    };
    assert!(matches!(
        c.run(change(1, grab, "k1")).await,
        Err(Refused::State { .. })
    ));
}
