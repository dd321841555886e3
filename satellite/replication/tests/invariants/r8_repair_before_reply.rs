//= docs/replication.md#R8
//! After an unclean end members are made equal before a read shows either; who lost its cache is no source.

use stor_replication::body::Body;
use stor_replication::engine::{FailReason, Request, State};
use stor_replication::extents::{self, Extent};
use stor_replication::ids::{Epoch, Loss, OpId};
use stor_replication::wire::{Kind, Status, flags};

use super::bench::{A, B, Bench, C, Rig, Sent, block, cache, lost, row, view};

fn dirty(guest_alive: bool, kept: [bool; 2]) -> Rig {
    let mut rig = Rig::new(row(&[A, B], &[], 1), guest_alive, None);
    rig.dirty.insert(A, 1);
    for (replica, kept) in [A, B].into_iter().zip(kept) {
        rig.info.get_mut(&replica).unwrap().loss = if kept { Loss::NONE } else { lost(3) };
    }
    rig
}

#[test]
fn a_read_of_a_dirty_region_equalises_it_first() {
    let mut rig = dirty(true, [true, true]);
    rig.submit(1, Request::Read(block(200)));
    rig.run_if(200, |sent| !matches!(sent.header.kind, Kind::Read | Kind::Write));
    assert_eq!(rig.engine.state(rig.now), State::Serving);
    let of_client = |sent: &Sent| sent.header.kind == Kind::Read && sent.header.length == 4096;
    assert!(
        !rig.sent.iter().any(of_client),
        "read before the members are equal"
    );
    rig.answer_if(|sent| sent.header.kind == Kind::Read);
    assert!(!rig.sent.iter().any(of_client));
    assert!(!rig.waiting(Kind::Write).is_empty(), "no copy is written");
    assert!(!rig.is_done(1));
    rig.run(100);
    assert!(rig.is_done(1));
    // Another region is not asked about.
    let mut rig = dirty(true, [true, true]);
    rig.submit(1, Request::Read(block(700)));
    rig.run_if(200, |sent| {
        sent.header.kind != Kind::Write && (sent.header.kind != Kind::Read || of_client(sent))
    });
    assert!(rig.is_done(1));
}

#[test]
fn who_kept_its_cache_is_the_source() {
    for (kept, source) in [([true, false], A), ([false, true], B)] {
        let mut rig = dirty(true, kept);
        rig.run_if(100, |sent| sent.header.kind != Kind::Read);
        let reads = rig.waiting(Kind::Read);
        assert!(
            !reads.is_empty() && reads.iter().all(|from| *from == source),
            "{reads:?}"
        );
    }
}

#[test]
fn without_one_the_device_of_a_living_client_fails() {
    let mut rig = dirty(true, [false, false]);
    rig.run(200);
    assert_eq!(rig.engine.state(rig.now), State::Failed(FailReason::CacheLost));
    let mut rig = dirty(false, [false, false]);
    rig.run(200);
    assert_eq!(rig.engine.state(rig.now), State::Serving);
}

#[test]
fn a_flush_waits_while_a_member_is_in_doubt() {
    let mut rig = dirty(true, [true, false]);
    rig.submit(1, Request::Flush);
    rig.run_if(100, |sent| sent.header.kind != Kind::Read);
    assert_eq!(
        rig.waiting(Kind::Flush),
        [],
        "it would vouch for what a member lost"
    );
    assert!(!rig.is_done(1));
    rig.run(500);
    assert!(rig.is_done(1));
}

#[test]
fn a_loss_is_remembered_until_an_engine_has_made_it_good() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let mut bench = bench.restart(cache(2));
    // The next engine stores its view and dies before it has repaired anything.
    let roster = stor_replication::info::Roster {
        in_sync: vec![A, B],
        absent: Vec::new(),
    };
    let mut open = bench.header(Kind::Open, view(2, 0));
    open.flags = flags::MEMBER;
    bench.ask(1, open, Body::None);
    bench.stored();
    bench.tick(2000);
    let mut store = bench.header(Kind::StoreView, view(2, 0));
    store.flags = flags::MEMBER;
    let mut out = bench.ask(1, store, Body::Bytes(roster.encode()));
    out.extend(bench.stored());
    assert_eq!(super::bench::status(&out, store.op), Some(Status::Ok));
    assert_eq!(
        bench.replica.superblock().loss,
        Loss {
            epoch: Epoch(2),
            op: open.op
        }
    );
    bench.store_view(1, view(2, 0), &[]);
    assert_eq!(
        bench.replica.superblock().loss,
        Loss::NONE,
        "an engine said it is right"
    );
}

#[test]
fn who_lost_something_longer_ago_is_the_source() {
    for (losses, source) in [([lost(3), lost(4)], A), ([lost(4), lost(3)], B)] {
        let mut rig = dirty(false, [false, false]);
        for (replica, loss) in [A, B].into_iter().zip(losses) {
            rig.info.get_mut(&replica).unwrap().loss = loss;
        }
        rig.run_if(100, |sent| sent.header.kind != Kind::Read);
        let reads = rig.waiting(Kind::Read);
        assert!(
            !reads.is_empty() && reads.iter().all(|from| *from == source),
            "{reads:?}"
        );
    }
}

#[test]
fn two_losses_that_one_engine_finds_are_told_apart() {
    // Each is opened with the cache it had and then with another; nobody tells it that it is right.
    let lost_at = |op: u64| {
        let mut bench = Bench::new();
        bench.open(1, view(1, 0), &[]);
        let mut bench = bench.restart(cache(2));
        let mut open = bench.header(Kind::Open, view(2, 0));
        (open.flags, open.op) = (flags::MEMBER, OpId(op));
        bench.ask(1, open, Body::None);
        bench.stored();
        bench.restart(cache(2)).replica.superblock().loss
    };
    assert!(Loss::NONE < lost_at(1));
    assert!(lost_at(1) < lost_at(2));
    assert_eq!(lost_at(2).epoch, Epoch(2));
}

#[test]
fn a_loss_is_durable_before_the_promise() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let mut bench = bench.restart(cache(2));
    let mut open = bench.header(Kind::Open, view(1, 0));
    open.flags = flags::MEMBER;
    bench.now = bench.now + std::time::Duration::from_secs(5);
    let out = bench.ask(1, open, Body::None);
    assert_eq!(
        super::bench::status(&out, open.op),
        None,
        "the epoch is the same, the cache is not"
    );
    let out = bench.stored();
    assert_eq!(super::bench::status(&out, open.op), Some(Status::Ok));
}

#[test]
fn the_last_member_that_is_right_is_waited_for() {
    let mut unclean = row(&[A, B, C], &[], 1);
    unclean.clean_before = false;
    let mut rig = Rig::new(unclean, true, None);
    for replica in [A, B, C] {
        rig.dirty.insert(replica, 1);
        rig.info.get_mut(&replica).unwrap().loss = if replica == A { Loss::NONE } else { lost(3) };
    }
    rig.run_if(300, |sent| sent.header.kind != Kind::Read);
    assert_eq!(
        rig.waiting(Kind::Read),
        [A, A, A, A],
        "the source is the one that is right"
    );
    rig.lose(A);
    rig.run(20_000);
    assert_eq!(rig.proposed, []);
    rig.run(15_000);
    assert_eq!(rig.proposed.len(), 1);
}

#[test]
fn the_word_that_a_member_is_right_may_be_lost_with_its_connection() {
    let mut rig = Rig::new(row(&[A, B], &[], 2), true, None);
    rig.dirty.insert(A, 1);
    rig.info.get_mut(&B).unwrap().loss = lost(3);
    rig.run(500);
    assert_eq!(rig.engine.unequal_bytes(), 0);
    // B was made equal and told so; nothing of that was stored. It comes back as it was, while A loses its cache.
    rig.lose(B);
    rig.write(1, block(0));
    rig.lose(A);
    let info = rig.info.get_mut(&A).unwrap();
    (info.cache, info.loss) = (cache(9), lost(7));
    rig.back(A);
    rig.back(B);
    rig.run(3000);
    assert_eq!(rig.engine.state(rig.now), State::Serving, "B has it all");
    assert!(rig.is_done(1));
}

#[test]
fn a_copy_to_a_returning_replica_does_not_hold_up_the_repair() {
    let mut rig = Rig::serving(row(&[A, B], &[], 2));
    rig.write(1, block(0));
    rig.run(20);
    assert!(rig.is_done(1));
    let mut row = row(&[A, B], &[C], 2);
    row.revision = rig.row.revision + 1;
    rig.row = row.clone();
    rig.add(C, row);
    let asks = |sent: &Sent| sent.header.kind == Kind::Extents;
    let reads = |sent: &Sent| sent.header.kind == Kind::Read;
    rig.run_if(3000, |sent| !asks(sent) && !reads(sent));
    let ask = rig
        .sent
        .iter()
        .find(|sent| asks(sent))
        .expect("nothing is copied")
        .clone();
    rig.sent.retain(|sent| *sent != ask);
    let data = Extent {
        length: ask.header.length,
        hole: false,
    };
    rig.answer_with(&ask, Status::Ok, Body::Bytes(extents::encode(&[data])));
    let copies: Vec<Sent> = rig.sent.iter().filter(|sent| reads(sent)).cloned().collect();
    assert!(!copies.is_empty());
    // One member loses its cache, the other can't read what is being copied.
    rig.lose(B);
    let info = rig.info.get_mut(&B).unwrap();
    (info.cache, info.loss) = (cache(9), lost(7));
    rig.back(B);
    rig.run_if(1000, |sent| !reads(sent));
    assert!(rig.engine.unequal_bytes() > 0);
    while let Some(sent) = rig
        .sent
        .iter()
        .find(|sent| reads(sent) && sent.header.offset == 0)
        .cloned()
    {
        rig.refuse(&sent, Status::MediaError);
        if sent.header.length == 4096 {
            break;
        }
    }
    rig.run(5000);
    assert_eq!(rig.engine.unequal_bytes(), 0, "the repair waits for ever");
}
