use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stor_proto::satellite::{
    EngineCounters, EngineState, EngineStatus, ReplicaState, ReplicaStatus, Status, SyncProgress,
};
use stor_replication::catalogue::{EjectReason, Member, MemberState, VolumeRow};
use stor_replication::ids::{ConfigSeq, Epoch, Lineage, ReplicaId, View, VolumeId};
use uuid::Uuid;

use super::decide;
use super::healing::Healing;
use crate::catalogue::Action;
use crate::catalogue::command::{NodeKind, Purpose, VolumeWish};
use crate::catalogue::load::Moving;
use crate::catalogue::row::{Attachment, Node, Place, ReplicaPhase, Volume, VolumePhase};
use crate::observed::{Heard, LOST_AFTER, OFFLINE_AFTER, Observations};

pub(super) const SECOND: Duration = Duration::from_secs(1);
/// How long a leader led that has heard everybody who is there.
const LONG: Duration = Duration::from_mins(10);

fn id() -> VolumeId {
    VolumeId(Uuid::from_u128(1))
}

/// Replicas on s1 (in sync) and s2 (stale), detached, not clean.
pub(super) fn volume() -> Volume {
    let member = |node: &str, state| Member {
        node: node.into(),
        joined: Some(ConfigSeq(0)),
        state,
        leaving: false,
    };
    let stale = MemberState::Stale {
        since: Some(ConfigSeq(1)),
        reason: EjectReason::Unreachable,
    };
    let place = Place {
        pool: "sp01".into(),
        phase: ReplicaPhase::Ready,
        replaces: None,
    };
    Volume {
        row: VolumeRow {
            volume: id(),
            size: 4096,
            revision: 9,
            view: View {
                epoch: Epoch(3),
                config: ConfigSeq(1),
            },
            owner: None,
            clean: true,
            clean_before: true,
            lineage: Lineage(Uuid::from_u128(2)),
            min_in_sync: 1,
            replicas: BTreeMap::from([
                (ReplicaId(0), member("s1", MemberState::InSync)),
                (ReplicaId(1), member("s2", stale)),
            ]),
        },
        name: "db1".into(),
        phase: VolumePhase::Available,
        wish: VolumeWish {
            size: 4096,
            class: None,
            replicas: None,
            pool: None,
            tags: Vec::new(),
            spread: None,
            together: None,
            min_in_sync: None,
        },
        created: String::new(),
        places: BTreeMap::from([(ReplicaId(0), place.clone()), (ReplicaId(1), place)]),
        attachment: None,
        doubt: false,
        grow_to: None,
        scrub: None,
    }
}

/// The same while s1 heals it.
fn healing_on_s1() -> Volume {
    let mut volume = volume();
    volume.row.owner = Some("s1".into());
    volume.attachment = Some(Attachment {
        transport: "none".into(),
        read_only: false,
        purpose: Purpose::Healing,
        detaching: false,
    });
    volume
}

/// Both nodes are there with their replica; s1 reports `engines`.
pub(super) fn seen(now: Instant, engines: Vec<EngineStatus>) -> Observations {
    let report = |replica, engines| {
        let replicas = vec![ReplicaStatus {
            volume_id: id().to_string(),
            replica,
            state: ReplicaState::Ready.into(),
            ..ReplicaStatus::default()
        }];
        Arc::new(Heard::new(
            Status {
                replicas,
                engines,
                ..Status::default()
            },
            now,
            String::new(),
        ))
    };
    let nodes = [
        ("s1".to_owned(), report(0, engines)),
        ("s2".to_owned(), report(1, Vec::new())),
    ];
    Observations::new(BTreeMap::from(nodes), now)
}

pub(super) fn without(seen_at: Instant, node: &str) -> Observations {
    let all = seen(seen_at, Vec::new());
    let rest: HashMap<_, _> = all
        .nodes()
        .filter(|(name, _)| *name != node)
        .map(|(n, h)| (n.to_owned(), h.clone()))
        .collect();
    Observations::new(rest.into_iter().map(|(n, h)| (n, Arc::new(h))).collect(), seen_at)
}

fn engine(state: EngineState) -> EngineStatus {
    EngineStatus {
        volume_id: id().to_string(),
        epoch: 3,
        state: state.into(),
        ..EngineStatus::default()
    }
}

fn is_start(actions: &[Action]) -> bool {
    matches!(actions, [Action::Attach(a)] if a.node == "s1" && a.purpose == Purpose::Healing && !a.force)
}

fn is_stop(actions: &[Action], forced: bool) -> bool {
    matches!(actions, [Action::Detach { force, expect: Epoch(3), .. }] if *force == forced)
}

#[test]
fn healing_starts_after_a_while_and_pauses_longer_after_each_failure() {
    let (mut healing, start) = (Healing::default(), Instant::now());
    let at = |healing: &mut Healing, seconds: u32| {
        let now = start + SECOND * seconds;
        healing.decide(&[volume()], &[], &seen(now, Vec::new()), LONG, now)
    };
    assert!(at(&mut healing, 0).is_empty());
    assert!(at(&mut healing, 1).is_empty());
    assert!(is_start(&at(&mut healing, 2)));
    // Healed by an engine that ended, and left stale again.
    let now = start + SECOND * 3;
    healing.decide(
        &[],
        &[healing_on_s1()],
        &seen(now, vec![engine(EngineState::Starting)]),
        LONG,
        now,
    );
    assert!(at(&mut healing, 4).is_empty());
    assert!(at(&mut healing, 13).is_empty());
    assert!(is_start(&at(&mut healing, 14)));
    let now = start + SECOND * 15;
    healing.decide(
        &[],
        &[healing_on_s1()],
        &seen(now, vec![engine(EngineState::Starting)]),
        LONG,
        now,
    );
    assert!(at(&mut healing, 16).is_empty());
    assert!(at(&mut healing, 35).is_empty());
    assert!(is_start(&at(&mut healing, 36)));
}

#[test]
fn healing_needs_every_in_sync_replica_and_somebody_to_heal() {
    let later = |volume: Volume, seen: &dyn Fn(Instant) -> Observations| {
        let (mut healing, start) = (Healing::default(), Instant::now());
        healing.decide(std::slice::from_ref(&volume), &[], &seen(start), LONG, start);
        let now = start + SECOND * 10;
        healing.decide(&[volume], &[], &seen(now), LONG, now)
    };
    assert!(is_start(&later(volume(), &|now| seen(now, Vec::new()))));
    assert!(
        later(volume(), &|now| without(now, "s2")).is_empty(),
        "the stale one is away"
    );
    assert!(
        later(volume(), &|now| without(now, "s1")).is_empty(),
        "the good one is away"
    );
    let mut unequal = volume();
    unequal.row.clean = false;
    unequal.row.replicas.get_mut(&ReplicaId(1)).unwrap().state = MemberState::InSync;
    assert!(is_start(&later(unequal.clone(), &|now| seen(now, Vec::new()))));
    assert!(
        later(unequal.clone(), &|now| without(now, "s2")).is_empty(),
        "it would be taken out of the set"
    );
    unequal.row.clean = true;
    assert!(
        later(unequal, &|now| seen(now, Vec::new())).is_empty(),
        "nothing to heal"
    );
    let mut old = volume();
    old.row.view = View::default();
    assert!(
        later(old, &|now| {
            let report = ReplicaStatus {
                volume_id: id().to_string(),
                state: ReplicaState::Ready.into(),
                stored_epoch: 3,
                ..ReplicaStatus::default()
            };
            let status = Status {
                replicas: vec![report],
                ..Status::default()
            };
            let all = seen(now, Vec::new());
            let mut nodes: BTreeMap<_, _> = all
                .nodes()
                .map(|(n, h)| (n.to_owned(), Arc::new(h.clone())))
                .collect();
            nodes.insert("s1".into(), Arc::new(Heard::new(status, now, String::new())));
            Observations::new(nodes, now)
        })
        .is_empty(),
        "the catalogue is older than the data"
    );
    let deleting = Volume {
        phase: VolumePhase::Deleting,
        ..volume()
    };
    assert!(later(deleting, &|now| seen(now, Vec::new())).is_empty());
}

#[test]
fn healing_ends_when_nothing_was_copied_for_a_while() {
    let (mut healing, start) = (Healing::default(), Instant::now());
    let mut healed = healing_on_s1();
    healed.row.replicas.get_mut(&ReplicaId(1)).unwrap().state = MemberState::InSync;
    let mut at = |volume: &Volume, seconds: u32, engine: EngineStatus| {
        let now = start + SECOND * seconds;
        healing.decide(
            &[],
            std::slice::from_ref(volume),
            &seen(now, vec![engine]),
            LONG,
            now,
        )
    };
    let copied = |repaired_bytes| EngineStatus {
        counters: Some(EngineCounters {
            repaired_bytes,
            ..EngineCounters::default()
        }),
        ..engine(EngineState::Serving)
    };
    let syncing = EngineStatus {
        syncing: vec![SyncProgress::default()],
        ..copied(1)
    };
    assert!(at(&healing_on_s1(), 0, syncing).is_empty());
    assert!(
        at(&healing_on_s1(), 5, copied(1)).is_empty(),
        "s2 is there and still stale"
    );
    assert!(at(&healed, 6, copied(1)).is_empty());
    assert!(at(&healed, 8, copied(2)).is_empty());
    assert!(at(&healed, 10, copied(2)).is_empty());
    assert!(is_stop(&at(&healed, 11, copied(2)), false));
    let mut stopping = healed.clone();
    stopping.attachment.as_mut().unwrap().detaching = true;
    assert!(at(&stopping, 12, copied(2)).is_empty(), "asked once");
    assert!(is_stop(&at(&healed, 13, engine(EngineState::Failed)), false));
    let other_epoch = EngineStatus {
        epoch: 2,
        ..engine(EngineState::Failed)
    };
    assert!(at(&healed, 14, other_epoch).is_empty(), "that is an older engine");
}

#[test]
fn a_snapshot_of_a_detached_volume_gets_an_engine_at_once_and_keeps_it() {
    let (mut healing, now) = (Healing::default(), Instant::now());
    let mut whole = volume();
    whole.row.replicas.retain(|id, _| *id == ReplicaId(0));
    let decide = |healing: &mut Healing| {
        healing.decide(
            std::slice::from_ref(&whole),
            &[],
            &seen(now, Vec::new()),
            LONG,
            now,
        )
    };
    assert!(decide(&mut healing).is_empty(), "one replica has nothing to heal");
    healing.wait_for([id()].into());
    assert!(is_start(&decide(&mut healing)));
    let mut engine_at = |seconds: u32, snapping: bool| {
        healing.wait_for(snapping.then(id).into_iter().collect());
        let now = now + SECOND * seconds;
        let mut running = healing_on_s1();
        running.row.replicas.retain(|id, _| *id == ReplicaId(0));
        let seen = seen(now, vec![engine(EngineState::Serving)]);
        healing.decide(&[], &[running], &seen, LONG, now)
    };
    assert!(engine_at(1, true).is_empty());
    assert!(engine_at(10, true).is_empty(), "it is not made yet");
    assert!(engine_at(11, false).is_empty());
    assert!(is_stop(&engine_at(14, false), false));
}

#[test]
fn healing_on_a_lost_node_is_given_up_once_nodes_had_time_to_come() {
    let now = Instant::now();
    let seen = without(now, "s1");
    assert!(
        Healing::default()
            .decide(&[], &[healing_on_s1()], &seen, SECOND * 29, now)
            .is_empty()
    );
    assert!(is_stop(
        &Healing::default().decide(&[], &[healing_on_s1()], &seen, LONG, now),
        true
    ));
}

#[test]
fn a_detach_is_forced_once_its_node_was_silent_for_long() {
    let heard = Instant::now();
    let mut volume = healing_on_s1();
    let all = seen(heard, Vec::new());
    let after = |silence: Duration| {
        let reports = all.nodes().map(|(n, h)| (n.to_owned(), Arc::new(h.clone())));
        Observations::new(reports.collect(), heard + silence)
    };
    let lost = |volume: &Volume, seen: &Observations, led| {
        decide::lost_owners(std::slice::from_ref(volume), seen, led)
    };
    assert!(lost(&volume, &after(Duration::ZERO), LONG).is_empty());
    assert!(
        lost(&volume, &after(OFFLINE_AFTER), LONG).is_empty(),
        "offline is not lost yet"
    );
    assert!(is_stop(&lost(&volume, &after(LOST_AFTER), LONG), true));
    // Never heard by this leader: the time it has listened counts.
    volume.row.owner = Some("k1".into());
    assert!(lost(&volume, &all, SECOND * 29).is_empty());
    assert!(is_stop(&lost(&volume, &all, LOST_AFTER), true));
}

#[test]
fn reports_move_only_what_is_moving() {
    let now = Instant::now();
    let moving = |node: &str, replica, phase| Moving {
        volume: id(),
        replica: ReplicaId(replica),
        node: node.into(),
        phase,
    };
    let all = [
        moving("s1", 0, ReplicaPhase::Creating),
        moving("s2", 1, ReplicaPhase::Deleting),
        moving("s3", 2, ReplicaPhase::Creating),
    ];
    let actions = decide::replicas(&all, &seen(now, Vec::new()));
    let expected = Action::ReplicasObserved {
        node: "s1".into(),
        ready: vec![(id(), ReplicaId(0))],
        gone: Vec::new(),
    };
    assert_eq!(actions, [expected]);
}

#[test]
fn nodes_are_lost_by_silence_and_never_before_they_came() {
    let node = |name: &str, online| Node {
        online,
        ..node_row(name)
    };
    let heard = Instant::now();
    let nodes = [node("s1", None), node("s2", Some(true)), node("s9", None)];
    let all = seen(heard, Vec::new());
    let came = Action::NodeConnection {
        name: "s1".into(),
        online: true,
    };
    assert_eq!(decide::connections(&nodes, &all, false), [came]);
    let reports = all
        .nodes()
        .map(|(n, h)| (n.to_owned(), Arc::new(h.clone())))
        .collect();
    let silent = Observations::new(reports, heard + OFFLINE_AFTER);
    assert!(decide::connections(&nodes, &silent, false).is_empty());
    let went = Action::NodeConnection {
        name: "s2".into(),
        online: false,
    };
    assert_eq!(decide::connections(&nodes, &silent, true), [went]);
}

/// A storage node of which nothing more is known.
pub(super) fn node_row(name: &str) -> Node {
    Node {
        name: name.into(),
        address: String::new(),
        kind: NodeKind::Storage,
        properties: BTreeMap::new(),
        data_address: None,
        version: None,
        boot_id: None,
        transports: Vec::new(),
        online: None,
        leaving: None,
        offline_since: None,
        desired: 0,
        revision: 0,
    }
}
