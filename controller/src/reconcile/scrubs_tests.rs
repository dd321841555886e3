use std::collections::BTreeMap;
use std::time::Instant;

use stor_replication::catalogue::MemberState;
use stor_replication::ids::{ReplicaId, VolumeId};
use uuid::Uuid;

use super::super::tests::{seen, volume};
use super::decide;
use crate::catalogue::Action;
use crate::catalogue::command::ClassWish;
use crate::catalogue::row::{Class, Volume};
use crate::catalogue::scrub::{Scrub, ScrubPhase};
use crate::policy::Policy;

/// Made on the first of January, on s1 and s2.
fn made(name: &str, number: u128) -> Volume {
    let mut volume = volume();
    volume.name = name.into();
    volume.created = "2026-01-01T00:00:00Z".into();
    volume.row.volume = VolumeId(Uuid::from_u128(number));
    for member in volume.row.replicas.values_mut() {
        member.state = MemberState::InSync;
    }
    volume
}

fn scrub(phase: ScrubPhase, begun: &str) -> Scrub {
    Scrub {
        run: 3,
        phase,
        scheduled: true,
        mend: true,
        rate: 1 << 20,
        cursor: 0,
        reports: 0,
        found: 0,
        chosen: 0,
        mended: 0,
        remaining: 0,
        begun: begun.into(),
        ended: None,
        completed: None,
        open: 0,
        open_bad: 0,
    }
}

/// What is begun on that day with these volumes, and what is given up.
fn on(day: &str, volumes: &[Volume], classes: &[Class]) -> (Vec<String>, Vec<String>) {
    let classes: BTreeMap<String, Class> = classes
        .iter()
        .map(|class| (class.wish.name.clone(), class.clone()))
        .collect();
    let now = format!("{day}T00:00:00Z").parse().unwrap();
    let seen = seen(Instant::now(), Vec::new());
    let (mut begun, mut ended) = (Vec::new(), Vec::new());
    for action in decide(volumes, &classes, &seen, Policy::default(), now) {
        match action {
            Action::StartScrub {
                volume, scheduled, ..
            } => {
                assert!(scheduled);
                begun.push(volume);
            }
            Action::EndScrub { volume, run, overdue } => {
                assert_eq!((run, overdue), (Some(3), true));
                ended.push(volume);
            }
            other => panic!("{other:?}"),
        }
    }
    (begun, ended)
}

fn begun(day: &str, volumes: &[Volume], classes: &[Class]) -> Vec<String> {
    on(day, volumes, classes).0
}

#[test]
fn a_month_after_it_was_made_or_its_last_scrub_began() {
    let mut one = made("db1", 1);
    assert_eq!(begun("2026-01-30", &[one.clone()], &[]), [""; 0]);
    assert_eq!(begun("2026-01-31", &[one.clone()], &[]), ["db1"]);
    for phase in [ScrubPhase::Complete, ScrubPhase::Cancelled, ScrubPhase::TooMuch] {
        one.scrub = Some(scrub(phase, "2026-01-31T00:00:00Z"));
        assert_eq!(begun("2026-03-01", &[one.clone()], &[]), [""; 0]);
        assert_eq!(begun("2026-03-02", &[one.clone()], &[]), ["db1"]);
    }
}

#[test]
fn its_class_may_say_otherwise() {
    let class = |days| Class {
        wish: ClassWish {
            name: "often".into(),
            replicas: 2,
            pool: None,
            tags: Vec::new(),
            transport: None,
            spread: None,
            together: None,
            scrub_days: days,
        },
        volumes: 1,
        revision: 1,
    };
    let mut one = made("db1", 1);
    one.wish.class = Some("often".into());
    assert_eq!(begun("2026-01-08", &[one.clone()], &[class(Some(7))]), ["db1"]);
    assert_eq!(begun("2026-01-07", &[one.clone()], &[class(Some(7))]), [""; 0]);
    assert_eq!(begun("2027-01-01", &[one.clone()], &[class(Some(0))]), [""; 0]);
    assert_eq!(begun("2026-01-31", &[one], &[class(None)]), ["db1"]);
}

#[test]
fn one_at_a_time_on_each_node_and_the_longest_wait_first() {
    let (mut first, second) = (made("a", 1), made("b", 2));
    first.scrub = Some(scrub(ScrubPhase::Complete, "2026-01-02T00:00:00Z"));
    assert_eq!(begun("2026-03-01", &[first.clone(), second.clone()], &[]), ["b"]);
    first.scrub = Some(scrub(ScrubPhase::Running, "2026-03-01T00:00:00Z"));
    assert_eq!(begun("2026-03-01", &[first, second], &[]), [""; 0]);
}

#[test]
fn not_while_a_replica_is_not_in_sync_nor_where_there_is_only_one() {
    let mut one = volume();
    one.created = "2026-01-01T00:00:00Z".into();
    assert_eq!(begun("2026-03-01", &[one], &[]), [""; 0]);
    let mut alone = made("db1", 1);
    alone.row.replicas.remove(&ReplicaId(1));
    assert_eq!(begun("2026-03-01", &[alone], &[]), [""; 0]);
}

#[test]
fn one_that_does_not_come_to_its_end_is_given_up() {
    let mut one = made("db1", 1);
    one.scrub = Some(scrub(ScrubPhase::Running, "2026-03-01T00:00:00Z"));
    assert_eq!(on("2026-03-14", &[one.clone()], &[]).1, [""; 0]);
    assert_eq!(on("2026-03-15", &[one], &[]).1, ["db1"]);
}
