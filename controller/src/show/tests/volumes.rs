//! Volumes, their replicas and attachments.

use super::*;

#[test]
fn a_volume_is_as_its_replicas_and_engine_are() {
    use ReplicaState::{Creating, Deleting, Failed, InSync, Offline, Stale, Syncing};
    let cluster = Cluster::new();
    assert_eq!(
        states(&volume(), &cluster.seen()),
        (VolumeState::Healthy, String::new(), vec![InSync, InSync])
    );
    let reason = "replica on s2 is offline (node s2 is not connected)".to_owned();
    assert_eq!(
        states(&volume(), &cluster.without("s2")),
        (VolumeState::Degraded, reason, vec![InSync, Offline])
    );

    let mut ejected = volume();
    stale(&mut ejected);
    let reason = "replica on s2 is stale (left the set: timed-out)".to_owned();
    assert_eq!(
        states(&ejected, &cluster.seen()),
        (VolumeState::Degraded, reason, vec![InSync, Stale])
    );
    // Its engine says that it serves: that its nodes are not heard here is no word about the volume.
    let (state, reason, _) = states(&ejected, &cluster.without("s1"));
    assert_eq!(state, VolumeState::Degraded);
    assert!(reason.contains("s1 is not connected"), "{reason}");
    let mut engineless = Cluster::new();
    engineless.k1.engines.clear();
    let (state, reason, _) = states(&ejected, &engineless.without("s1"));
    assert_eq!(state, VolumeState::Failed);
    assert!(
        reason.contains("s1 is not connected") && reason.contains("stale"),
        "{reason}"
    );

    let mut syncing = Cluster::new();
    syncing.k1.engines[0].syncing = vec![SyncProgress {
        replica: 1,
        total_bytes: 3000,
        done_bytes: 1000,
    }];
    let shown = show::volume(&ejected, &syncing.seen());
    assert_eq!(shown.replicas[1].state, Syncing);
    assert_eq!(shown.replicas[1].resync_percent, Some(33.3));
    assert_eq!(shown.replicas[1].resync_left_bytes, Some(2000));
    assert_eq!(shown.replicas[0].resync_percent, Some(100.0));
    assert_eq!(shown.replicas[0].resync_left_bytes, None);

    let mut broken = Cluster::new();
    broken.s2.replicas[0].state = Reported::Missing.into();
    let reason = "replica on s2 is failed (its files are missing)".to_owned();
    assert_eq!(
        states(&volume(), &broken.seen()),
        (VolumeState::Degraded, reason, vec![InSync, Failed])
    );

    let mut suspended = Cluster::new();
    suspended.k1.engines[0] = EngineStatus {
        reason: "waits for s1".into(),
        ..engine(EngineState::Suspended)
    };
    let (state, reason, _) = states(&volume(), &suspended.seen());
    assert_eq!((state, reason.as_str()), (VolumeState::Suspended, "waits for s1"));
    suspended.k1.engines[0].epoch = 2;
    assert_eq!(
        states(&volume(), &suspended.seen()).0,
        VolumeState::Healthy,
        "an older engine's word"
    );

    let mut new = volume();
    new.phase = row::VolumePhase::Creating;
    new.places.get_mut(&ReplicaId(0)).unwrap().phase = row::ReplicaPhase::Creating;
    let (state, reason, replicas) = states(&new, &cluster.seen());
    assert_eq!(
        (state, reason.as_str(), replicas[0]),
        (VolumeState::Creating, "", Creating)
    );
    let (_, reason, _) = states(&new, &cluster.without("s1"));
    assert_eq!(reason, "waits: node s1 is not connected");
    new.phase = row::VolumePhase::Deleting;
    new.places.get_mut(&ReplicaId(0)).unwrap().phase = row::ReplicaPhase::Deleting;
    let (state, reason, replicas) = states(&new, &cluster.without("s1"));
    assert_eq!((state, replicas[0]), (VolumeState::Deleting, Deleting));
    assert_eq!(reason, "waits: node s1 is not connected");
}

#[test]
fn an_attachment_is_as_its_engine_is() {
    let state = |row: &row::Volume, seen: &Observations| show::user_attachment(row, seen).unwrap().state;
    for (engine_state, expected) in [
        (EngineState::Starting, AttachmentState::Attaching),
        (EngineState::Serving, AttachmentState::Attached),
        (EngineState::Suspended, AttachmentState::Suspended),
        (EngineState::Fenced, AttachmentState::Failed),
        (EngineState::Failed, AttachmentState::Failed),
        (EngineState::Stopping, AttachmentState::Detaching),
    ] {
        let mut cluster = Cluster::new();
        cluster.k1.engines = vec![engine(engine_state)];
        assert_eq!(state(&volume(), &cluster.seen()), expected);
    }
    let mut cluster = Cluster::new();
    let shown = show::user_attachment(&volume(), &cluster.seen()).unwrap();
    assert_eq!(
        (shown.device.as_str(), shown.node.as_str(), shown.epoch),
        ("/dev/stor/db1", "k1", 3)
    );
    assert_eq!(state(&volume(), &cluster.without("k1")), AttachmentState::Unknown);
    cluster.k1.engines[0].epoch = 2;
    assert_eq!(state(&volume(), &cluster.seen()), AttachmentState::Attaching);
    let mut detaching = volume();
    detaching.attachment.as_mut().unwrap().detaching = true;
    assert_eq!(state(&detaching, &cluster.seen()), AttachmentState::Detaching);
    let mut healing = volume();
    healing.attachment.as_mut().unwrap().purpose = Purpose::Healing;
    assert!(show::user_attachment(&healing, &cluster.seen()).is_none());
    assert!(show::volume(&healing, &cluster.seen()).attachments.is_empty());
}

#[test]
fn a_new_leader_does_not_call_nodes_lost_that_were_there() {
    let nobody = Observations::new(BTreeMap::new(), Instant::now());
    assert_eq!(states(&volume(), &nobody).0, VolumeState::Failed);
    // Nobody dialled while they were presumed to come; that takes longer when their way to the leader is long.
    let young = nobody.clone().listened(Duration::from_secs(10));
    let (state, reason, _) = states(&volume(), &young);
    assert_eq!(state, VolumeState::Unknown);
    assert!(reason.contains("nothing was heard yet of node s1"), "{reason}");
    let status = status(&volume(), &young, Vec::new());
    assert!(
        codes(&status).contains(&("VOLUME_UNKNOWN", Severity::Warning)),
        "{:?}",
        status.checks
    );
    let old = nobody.clone().listened(LOST_AFTER);
    assert_eq!(states(&volume(), &old).0, VolumeState::Failed);
    let presumed = nobody.presuming(vec!["s1".into(), "s2".into(), "k1".into()]);
    assert_eq!(states(&volume(), &presumed).0, VolumeState::Healthy);
    assert!(presumed.awaits());
    let attachment = show::user_attachment(&volume(), &presumed).unwrap();
    assert_eq!(
        attachment.state,
        AttachmentState::Unknown,
        "nobody told of the engine"
    );
    let heard = Cluster::new().without("s2").presuming(vec!["s2".into()]);
    assert_eq!(
        states(&volume(), &heard).0,
        VolumeState::Degraded,
        "it was heard, and fell silent"
    );
}

#[test]
fn a_deletion_says_for_whom_it_waits() {
    let mut deleting = volume();
    deleting.phase = row::VolumePhase::Deleting;
    for place in deleting.places.values_mut() {
        place.phase = row::ReplicaPhase::Deleting;
    }
    let mut cluster = Cluster::new();
    assert_eq!(states(&deleting, &cluster.seen()).0, VolumeState::Deleting);
    assert_eq!(show::volume(&deleting, &cluster.seen()).reason, "");
    cluster.s1.replicas[0].state = Reported::Failed.into();
    cluster.s1.replicas[0].error = "the disk hangs".into();
    let seen = cluster.without("s2");
    assert_eq!(
        show::volume(&deleting, &seen).reason,
        "waits: node s1: the disk hangs; node s2 is not connected"
    );
    let status = status(&deleting, &seen, Vec::new());
    assert!(codes(&status).contains(&("VOLUME_DELETING", Severity::Info)));
    assert!(
        status
            .work
            .iter()
            .any(|line| line.contains("being deleted, waits: node s1")),
        "{:?}",
        status.work
    );
}

#[test]
fn a_volume_in_doubt_says_so_and_nothing_beside() {
    let mut cluster = Cluster::new();
    cluster.k1.engines[0] = EngineStatus {
        reason: "the catalogue refused".into(),
        ..engine(EngineState::Starting)
    };
    let mut row = volume();
    row.doubt = true;
    let (state, reason, _) = states(&row, &cluster.seen());
    assert_eq!(state, VolumeState::CatalogueBehind);
    assert!(
        !reason.is_empty() && !reason.contains("being attached"),
        "{reason}"
    );
}
