//= docs/replication.md#C2
//! What most copies hold is right; of two, the one that reads are served from.

use stor_replication::digest::Unit;
use stor_replication::ids::ReplicaId;

use super::bench::{A, B, C, Rig, row};

fn other() -> Unit {
    Unit::of(b"other")
}

fn mended(rig: &mut Rig) -> (Vec<ReplicaId>, Vec<ReplicaId>) {
    rig.ask_scrub(Some(1), 0);
    rig.scrub(3000);
    (rig.copied_from.clone(), rig.copied_to.clone())
}

#[test]
fn of_three_the_two_that_agree() {
    let mut rig = Rig::serving(row(&[A, B, C], &[], 1));
    rig.units(A, 20, other());
    assert_eq!(mended(&mut rig), (vec![B], vec![A]));
    assert!(rig.found[0].is_certain());
}

#[test]
fn of_two_the_one_that_reads_are_served_from() {
    let mut rig = Rig::new(row(&[A, B], &[], 1), true, Some(B));
    rig.run(200);
    rig.units(B, 20, other());
    assert_eq!(mended(&mut rig), (vec![B], vec![A]));
    assert!(!rig.found[0].is_certain());
}

#[test]
fn of_two_and_none_is_local_the_one_with_the_lowest_number() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.units(A, 20, other());
    assert_eq!(mended(&mut rig), (vec![A], vec![B]));
}

#[test]
fn what_one_can_not_read_another_has() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.units(A, 20, Unit::Unreadable);
    assert_eq!(mended(&mut rig), (vec![B], vec![A]));
    assert_eq!(rig.found[0].unreadable, [A]);
    assert!(rig.found[0].is_certain() && rig.found[0].wrong.is_empty());
}

#[test]
fn what_nobody_can_read_is_told_and_left() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.units(A, 20, Unit::Unreadable);
    rig.units(B, 20, Unit::Unreadable);
    assert_eq!(mended(&mut rig), (vec![], vec![]));
    assert_eq!(rig.found[0].right, None);
    assert_eq!(rig.outcome, (0, 1));
}
