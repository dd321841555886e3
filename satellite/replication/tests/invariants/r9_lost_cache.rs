//= docs/replication.md#R9
//! A member that comes back with another cache identity has lost what it had not flushed.

use stor_replication::catalogue::{Change, EjectReason};
use stor_replication::engine::Request;
use stor_replication::wire::Kind;

use crate::bench::{A, B, Rig, block, cache, row, view};

fn rebooted(rig: &mut Rig, replica: stor_replication::ids::ReplicaId) {
    rig.lose(replica);
    let info = rig.info.get_mut(&replica).unwrap();
    info.cache = cache(9);
    info.cache_kept = false;
    rig.back(replica);
    rig.run(200);
}

#[test]
fn it_is_removed_when_it_had_unflushed_writes() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(0));
    rig.run(20);
    assert!(rig.is_done(1));
    rebooted(&mut rig, B);
    let remove = Change::Remove {
        expect: view(3, 1),
        members: vec![(B, EjectReason::CacheLost)],
    };
    assert_eq!(
        rig.proposed
            .iter()
            .map(|(_, change)| change.clone())
            .collect::<Vec<_>>(),
        [remove]
    );
}

#[test]
fn it_stays_when_all_was_flushed() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(0));
    rig.run(20);
    rig.submit(2, Request::Flush);
    rig.run(20);
    rebooted(&mut rig, B);
    assert_eq!(rig.proposed, []);
}

#[test]
fn with_the_same_cache_it_gets_what_it_has_not_answered() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(0));
    rig.answer_if(|sent| sent.replica == A);
    rig.lose(B);
    rig.back(B);
    rig.run(200);
    assert_eq!(rig.done[&1], Ok(None));
}

#[test]
fn when_the_set_may_not_shrink_it_is_made_good_from_another() {
    let mut rig = Rig::serving(row(&[A, B], &[], 2));
    rig.write(1, block(0));
    rig.run(20);
    rebooted(&mut rig, B);
    assert_eq!(rig.proposed, []);
    rig.submit(2, Request::Read(block(0)));
    rig.run_if(50, |sent| sent.header.kind != Kind::Write);
    assert!(!rig.is_done(2) || rig.engine.unequal_bytes() == 0);
    rig.run(1000);
    assert!(rig.is_done(2));
    assert!(
        rig.engine.counters().repaired_bytes >= 1 << 20,
        "the region was not copied to it"
    );
    assert_eq!(rig.engine.unequal_bytes(), 0);
}
