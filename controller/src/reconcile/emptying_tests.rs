//! Which nodes are emptied, and what becomes of each of their replicas.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use stor_replication::catalogue::MemberState;
use stor_replication::ids::ReplicaId;

use super::emptying::{Empty, Fate, actions, nodes, steps};
use super::tests::{SECOND, node_row, seen, volume};
use crate::catalogue::Action;
use crate::catalogue::command::Leaving;
use crate::catalogue::row::{Node, Volume};
use crate::observed::{OFFLINE_AFTER, Observations};
use crate::plan;
use crate::policy::Policy;

fn rows(count: usize) -> Vec<Node> {
    (1..=count).map(|n| node_row(&format!("s{n}"))).collect()
}

fn now() -> jiff::Timestamp {
    "2026-01-01T02:00:00Z".parse().unwrap()
}

/// s1 and s2 are there, whoever else is not.
fn there() -> Observations {
    seen(Instant::now(), Vec::new())
}

fn empty(node: &str, lost: bool) -> Empty {
    Empty {
        node: node.into(),
        lost,
    }
}

#[test]
fn nodes_are_emptied_when_told() {
    let mut all = rows(2);
    assert_eq!(nodes(&all, &there(), Policy::default(), true, now()), []);
    all[0].leaving = Some(Leaving::Drain);
    all[1].leaving = Some(Leaving::Lost);
    assert_eq!(
        nodes(&all, &there(), Policy::default(), false, now()),
        [empty("s1", false), empty("s2", true)]
    );
}

#[test]
fn one_that_is_away_for_an_hour_is_lost_and_not_sooner() {
    let away = |since: &str, policy: Policy, settled| {
        let mut all = rows(3);
        all[2].offline_since = Some(since.into());
        nodes(&all, &there(), policy, settled, now())
    };
    let policy = Policy::default();
    assert_eq!(away("2026-01-01T01:00:01Z", policy, true), []);
    assert_eq!(away("2026-01-01T01:00:00Z", policy, true), [empty("s3", true)]);
    assert_eq!(
        away("2026-01-01T01:00:00Z", policy, false),
        [],
        "a new leader has heard nobody"
    );
    let never = Policy {
        replace_after: None,
        ..policy
    };
    assert_eq!(away("2025-01-01T00:00:00Z", never, true), []);
}

#[test]
fn when_too_many_are_away_it_is_the_network() {
    let lost = |away: usize, all: usize| {
        let mut all = rows(all);
        for node in all.iter_mut().rev().take(away) {
            node.offline_since = Some("2026-01-01T00:00:00Z".into());
        }
        nodes(&all, &there(), Policy::default(), true, now()).len()
    };
    assert_eq!(lost(1, 3), 1);
    assert_eq!(lost(2, 4), 0, "half of them");
    assert!(!Policy::default().may_replace(3, 6));
    assert!(Policy::default().may_replace(3, 9));
}

/// The volume of [`volume`] (s1 in sync, s2 stale), and s3 with room.
fn planned(of: &[Empty], volume: &Volume) -> Vec<Fate> {
    planned_all(of, std::slice::from_ref(volume))
}

fn planned_all(of: &[Empty], volumes: &[Volume]) -> Vec<Fate> {
    let node = |name: &str| plan::Node {
        name: name.into(),
        diskless: false,
        online: true,
        barred: None,
        properties: BTreeMap::new(),
        pools: vec![plan::Pool {
            name: "sp01".into(),
            revision: 1,
            tags: Vec::new(),
            promised: 0,
            replicas: 0,
            overprovision_milli: 1000,
            report: plan::Report::Space {
                capacity: 8192,
                free: 8192,
            },
        }],
    };
    let nodes = ["s1", "s2", "s3"].map(node).to_vec();
    let steps = steps(of, volumes, &BTreeMap::new(), nodes);
    steps.into_iter().map(|step| step.fate).collect()
}

#[test]
fn each_replica_gets_another_in_its_place() {
    let [Fate::Replace(action, to, _)] = &planned(&[empty("s1", false)], &volume())[..] else {
        panic!("not replaced");
    };
    assert_eq!(to, "s3");
    assert!(matches!(
        **action,
        Action::PlaceReplica {
            replaces: Some(ReplicaId(0)),
            ..
        }
    ));
}

#[test]
fn once_is_enough() {
    let mut moving = volume();
    let mut place = moving.places[&ReplicaId(1)].clone();
    place.replaces = Some(ReplicaId(0));
    moving.places.insert(ReplicaId(1), place);
    let fates = planned(&[empty("s1", false)], &moving);
    assert!(matches!(fates[..], [Fate::UnderWay(_)]), "{fates:?}");
    let mut leaving = volume();
    leaving.row.replicas.get_mut(&ReplicaId(0)).unwrap().leaving = true;
    let fates = planned(&[empty("s1", false)], &leaving);
    assert!(matches!(fates[..], [Fate::UnderWay(_)]), "{fates:?}");
}

#[test]
fn without_a_source_there_is_nothing_to_copy() {
    let fates = planned(&[empty("s1", true)], &volume());
    assert!(
        matches!(&fates[..], [Fate::Stuck(why)] if why.contains("no other replica")),
        "{fates:?}"
    );
    let mut both = volume();
    both.row.replicas.get_mut(&ReplicaId(1)).unwrap().state = MemberState::InSync;
    assert!(matches!(
        planned(&[empty("s1", true)], &both)[..],
        [Fate::Replace(..)]
    ));
}

#[test]
fn without_a_place_every_node_says_why() {
    let fates = planned(&[empty("s1", false), empty("s3", false)], &volume());
    assert!(
        matches!(&fates[..], [Fate::Stuck(why)] if why.contains("s2: it holds a replica") && why.contains("s3:")),
        "{fates:?}"
    );
}

#[test]
fn what_one_takes_is_not_there_for_the_next() {
    let mut large = volume();
    large.row.size = 5000;
    let mut other = large.clone();
    other.name = "db2".into();
    let fates = planned_all(&[empty("s1", false)], &[large, other]);
    assert!(
        matches!(fates[..], [Fate::Replace(..), Fate::Stuck(_)]),
        "{fates:?}"
    );
}

#[test]
fn not_all_at_once() {
    let step = |n: u32| super::emptying::Step {
        volume: format!("v{n}"),
        replica: ReplicaId(0),
        node: "s1".into(),
        fate: if n < 10 {
            Fate::UnderWay(String::new())
        } else {
            let [fate] = &planned(&[empty("s1", false)], &volume())[..] else {
                panic!("not replaced");
            };
            fate.clone()
        },
    };
    assert_eq!(actions((0..100).map(step).collect()).len(), 6);
}

#[test]
fn healing_does_not_wait_for_a_lost_node() {
    let mut both = volume();
    both.row.replicas.get_mut(&ReplicaId(1)).unwrap().state = MemberState::InSync;
    both.row.clean = false;
    let start = Instant::now();
    let begins = |gone: bool| {
        let mut healing = super::healing::Healing::default();
        healing.gone.extend(gone.then(|| "s2".to_owned()));
        let mut all = Vec::new();
        for second in 0..10 {
            let now = start + SECOND * second;
            let here = super::tests::without(now, "s2");
            all = healing.decide(&[both.clone()], &[], &here, Duration::from_mins(10), now);
        }
        !all.is_empty()
    };
    assert!(!begins(false), "s2 may come back");
    assert!(begins(true));
    assert!(OFFLINE_AFTER > SECOND);
}
