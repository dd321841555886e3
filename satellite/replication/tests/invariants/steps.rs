//! Step by step: a state, an event, and exactly the commands that follow.

use stor_replication::body::Body;
use stor_replication::disk::PageId;
use stor_replication::engine::{Command, Event, IoError, LinkId, Request, Start, State};
use stor_replication::ids::{ConnId, Epoch, IoId, OpId};
use stor_replication::info::Roster;
use stor_replication::range::ByteRange;
use stor_replication::replica::{self, DiskAction};
use stor_replication::wire::{DIRTY_MAP, Header, Kind, MAX_CONTROL, Status, flags};

use super::bench::{A, B, Bench, Rig, SIZE, VOLUME, at, block, disk, pages, row, status, view};

type Engine = stor_replication::engine::Engine<u64>;

fn engine_step(engine: &mut Engine, millis: u64, event: Event<u64>) -> Vec<Command<u64>> {
    let mut out = Vec::new();
    engine.step(at(millis), event, &mut out);
    out
}

fn header(kind: Kind, replica: stor_replication::ids::ReplicaId, op: u64) -> Header {
    Header {
        kind,
        flags: 0,
        volume: VOLUME,
        replica,
        view: view(3, 1),
        op: OpId(op),
        offset: 0,
        length: 0,
        status: Status::Ok,
    }
}

fn new_engine() -> Engine {
    Engine::new(
        at(1000),
        Start {
            row: row(&[A, B], &[], 1),
            guest_alive: true,
            local: None,
        },
    )
}

#[test]
fn an_engine_begins_by_connecting_to_all() {
    let mut engine = new_engine();
    assert_eq!(
        engine_step(&mut engine, 1000, Event::Tick),
        [
            Command::Connect {
                replica: A,
                link: LinkId(1)
            },
            Command::Connect {
                replica: B,
                link: LinkId(2)
            },
            Command::StateChanged,
        ]
    );
    assert_eq!(engine.state(at(1000)), State::Starting);
}

fn connected(link: u64) -> Event<u64> {
    Event::Connected {
        replica: A,
        link: LinkId(link),
    }
}

#[test]
fn a_connection_is_opened_then_told_the_view() {
    let mut engine = new_engine();
    engine_step(&mut engine, 1000, Event::Tick);
    let open = Header {
        flags: flags::MEMBER,
        ..header(Kind::Open, A, 1)
    };
    assert_eq!(
        engine_step(&mut engine, 1001, connected(1)),
        [Command::Send {
            replica: A,
            link: LinkId(1),
            header: open,
            body: Body::None
        }]
    );
    let info = Rig::new(row(&[A, B], &[], 1), true, None).info[&A].clone();
    let answer = Event::Answer {
        replica: A,
        link: LinkId(1),
        header: open.reply(Status::Ok),
        body: Body::Bytes(info.encode()),
    };
    let roster = Roster {
        in_sync: vec![A, B],
        absent: Vec::new(),
    };
    let store = Header {
        flags: flags::MEMBER,
        ..header(Kind::StoreView, A, 2)
    };
    assert_eq!(
        engine_step(&mut engine, 1002, answer),
        [Command::Send {
            replica: A,
            link: LinkId(1),
            header: store,
            body: Body::Bytes(roster.encode())
        }]
    );
}

#[test]
fn an_attempt_that_came_too_late_is_nobodys() {
    let mut engine = new_engine();
    engine_step(&mut engine, 1000, Event::Tick);
    assert_eq!(engine_step(&mut engine, 1001, connected(77)), []);
    let late = Event::Answer {
        replica: A,
        link: LinkId(77),
        header: header(Kind::Ping, A, 1).reply(Status::Ok),
        body: Body::None,
    };
    assert_eq!(engine_step(&mut engine, 1001, late), []);
}

#[test]
fn a_write_goes_to_all_under_the_view() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.sent.clear();
    let mut out = Vec::new();
    let request = Request::Write {
        range: block(5),
        data: 42,
        fua: true,
    };
    rig.engine
        .step(rig.now, Event::Submit { io: IoId(1), request }, &mut out);
    let [Command::Send { header: first, .. }, _] = &out[..] else {
        panic!("{out:?}")
    };
    let op = first.op.0;
    let write = |replica, op| Header {
        flags: flags::FUA,
        offset: 5 * 4096,
        length: 4096,
        ..header(Kind::Write, replica, op)
    };
    let send = |replica, op| Command::Send {
        replica,
        link: rig.links[&replica],
        header: write(replica, op),
        body: Body::Data(42),
    };
    assert_eq!(out, [send(A, op), send(B, op + 1)]);
}

#[test]
fn a_fenced_engine_ends_everything() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(0));
    let sent = rig
        .sent
        .iter()
        .find(|sent| sent.header.kind == Kind::Write)
        .unwrap()
        .clone();
    let mut fenced = sent.header.reply(Status::Fenced);
    fenced.view.epoch = Epoch(4);
    let mut out = Vec::new();
    let answer = Event::Answer {
        replica: sent.replica,
        link: sent.link,
        header: fenced,
        body: Body::None,
    };
    rig.engine.step(rig.now, answer, &mut out);
    assert_eq!(
        out,
        [
            Command::Disconnect {
                replica: A,
                link: rig.links[&A]
            },
            Command::Disconnect {
                replica: B,
                link: rig.links[&B]
            },
            Command::Complete {
                io: IoId(1),
                result: Err(IoError::Fenced)
            },
            Command::StateChanged,
        ]
    );
    let mut out = Vec::new();
    rig.engine.step(
        rig.now,
        Event::Submit {
            io: IoId(2),
            request: Request::Flush,
        },
        &mut out,
    );
    assert_eq!(
        out,
        [Command::Complete {
            io: IoId(2),
            result: Err(IoError::Fenced)
        }]
    );
}

#[test]
fn a_stop_flushes_declares_all_clean_and_gives_the_leases_back() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.write(1, block(0));
    rig.answer_if(|_| true);
    rig.step(Event::Stop);
    assert_eq!(rig.waiting(Kind::Flush), [A, B]);
    assert_eq!(rig.engine.state(rig.now), State::Stopping);
    rig.answer_if(|sent| sent.header.kind == Kind::Flush);
    let last: Vec<_> = rig
        .sent
        .iter()
        .map(|sent| (sent.header.kind, sent.replica))
        .collect();
    assert_eq!(
        last,
        [
            (Kind::Clean, A),
            (Kind::Close, A),
            (Kind::Clean, B),
            (Kind::Close, B)
        ]
    );
    assert_eq!(rig.engine.state(rig.now), State::Stopped { clean: true });
}

#[test]
fn a_stop_waits_for_clients_then_for_nobody() {
    let mut rig = Rig::serving(row(&[A, B], &[], 2));
    rig.write(1, block(0));
    rig.lose(B);
    rig.step(Event::Stop);
    rig.run(19_000);
    assert_eq!(rig.engine.state(rig.now), State::Stopping);
    rig.run(2000);
    assert_eq!(rig.engine.state(rig.now), State::Stopped { clean: false });
    assert_eq!(rig.done[&1], Err(IoError::Fenced));
}

#[test]
fn a_stop_before_the_start_leaves_things_as_they_were() {
    for clean in [true, false] {
        let mut row = row(&[A, B], &[], 1);
        row.clean_before = clean;
        let mut rig = Rig::new(row, true, None);
        rig.step(Event::Tick);
        rig.step(Event::Stop);
        assert_eq!(rig.engine.state(rig.now), State::Stopped { clean });
    }
}

#[test]
fn the_last_member_without_room_is_asked_until_there_is() {
    let mut rig = Rig::serving(row(&[A], &[], 1));
    rig.write(1, block(0));
    for _ in 0..5 {
        let full = rig
            .sent
            .iter()
            .find(|sent| sent.header.kind == Kind::Write)
            .unwrap()
            .clone();
        rig.sent.clear();
        rig.answer_with(&full, Status::NoSpace, Body::None);
        let State::Suspended(why) = rig.engine.state(rig.now) else {
            panic!("not suspended")
        };
        assert!(why.contains("no-space"), "{why}");
        rig.run_if(1500, |sent| sent.header.kind != Kind::Write);
        assert!(!rig.is_done(1));
        assert_eq!(rig.waiting(Kind::Write), [A], "it has to be asked again");
    }
    rig.run(100);
    assert_eq!(rig.done[&1], Ok(None));
    assert_eq!(rig.engine.state(rig.now), State::Serving);
}

#[test]
fn a_block_one_member_can_not_read_comes_from_another_and_is_written_again() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.submit(1, Request::Read(block(7)));
    let bad = rig
        .sent
        .iter()
        .find(|sent| sent.header.kind == Kind::Read)
        .unwrap()
        .clone();
    let other = if bad.replica == A { B } else { A };
    rig.sent.clear();
    rig.answer_with(&bad, Status::MediaError, Body::None);
    assert_eq!(rig.waiting(Kind::Read), [other]);
    rig.run_if(20, |sent| sent.header.kind != Kind::Write);
    assert_eq!(rig.done[&1], Ok(Some(100 + u64::from(other.0))));
    let mended = rig
        .sent
        .iter()
        .find(|sent| sent.header.kind == Kind::Write)
        .unwrap();
    assert_eq!((mended.replica, mended.header.range()), (bad.replica, block(7)));
}

#[test]
fn a_block_nobody_can_read_is_an_error_once() {
    let mut rig = Rig::serving(row(&[A, B], &[], 1));
    rig.submit(1, Request::Read(block(7)));
    while let Some(index) = rig.sent.iter().position(|sent| sent.header.kind == Kind::Read) {
        let read = rig.sent.remove(index).unwrap();
        rig.answer_with(&read, Status::MediaError, Body::None);
    }
    assert_eq!(rig.done[&1], Err(IoError::Media));
    rig.write(2, block(7));
    rig.run(50);
    assert_eq!(rig.done[&2], Ok(None), "a lock was left behind");
}

#[test]
fn a_large_dirty_map_is_read_page_by_page() {
    let mut big = row(&[A], &[], 1);
    big.size = 16 << 40;
    let mut rig = Rig::new(big, true, None);
    rig.info.get_mut(&A).unwrap().size = 16 << 40;
    rig.dirty.insert(A, 1);
    rig.step(Event::Tick);
    rig.answer_if(|sent| sent.header.kind != Kind::GetMap);
    let words = u64::from(MAX_CONTROL) / 8;
    for from in [0, words] {
        let ask = rig.sent.pop_back().unwrap();
        assert_eq!(
            (ask.header.kind, ask.header.offset, ask.header.length),
            (Kind::GetMap, from, DIRTY_MAP)
        );
        assert_eq!(rig.engine.state(rig.now), State::Starting);
        rig.answer_with(&ask, Status::Ok, Body::Bytes(vec![0; MAX_CONTROL as usize]));
    }
    assert_eq!(rig.engine.state(rig.now), State::Serving);
}

#[test]
fn a_promise_is_one_page_then_one_answer_then_the_page_again() {
    let mut bench = Bench::new();
    bench.now = at(5000);
    let mut open = bench.header(Kind::Open, view(1, 0));
    open.flags = flags::MEMBER;
    let out = bench.ask(1, open, Body::None);
    assert_eq!(pages(&out), [PageId::Superblock]);
    assert_eq!(out.len(), 1);
    let out = bench.stored();
    // And, after the answer, the same page in its other place.
    let [
        replica::Command::Reply { conn, header, .. },
        replica::Command::StorePages(_),
    ] = &out[..]
    else {
        panic!("{} commands", out.len())
    };
    assert_eq!((*conn, *header), (ConnId(1), open.reply(Status::Ok)));
    assert_eq!(pages(&out), [PageId::Superblock]);
}

#[test]
fn a_newer_engine_ends_the_older_ones_connection() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let open = Header {
        flags: flags::MEMBER,
        ..bench.header(Kind::Open, view(2, 0))
    };
    let out = bench.ask(2, open, Body::None);
    assert_eq!(out[0], replica::Command::Drop { conn: ConnId(1) });
}

#[test]
fn a_read_is_one_disk_operation_and_one_answer() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let read = Header {
        offset: 8192,
        length: 4096,
        ..bench.header(Kind::Read, view(1, 0))
    };
    let out = bench.ask(1, read, Body::None);
    let [(op, DiskAction::Read { range })] = disk(&out)[..] else {
        panic!("{out:?}")
    };
    assert_eq!(range, block(2));
    let body = Body::Data(9);
    let answer = replica::Command::Reply {
        conn: ConnId(1),
        header: read.reply(Status::Ok),
        body,
    };
    assert_eq!(bench.disk_done(op, Ok(Some(9))), [answer]);
}

#[test]
fn a_request_outside_the_replica_is_invalid() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    for (offset, length) in [
        (SIZE, 4096),
        (SIZE - 4096, 8192),
        (1, 4096),
        (0, 1),
        (0, 0),
        (u64::MAX - 4095, 4096),
    ] {
        let read = Header {
            offset,
            length,
            ..bench.header(Kind::Read, view(1, 0))
        };
        let out = bench.ask(1, read, Body::None);
        assert_eq!(status(&out, read.op), Some(Status::Invalid), "{offset}+{length}");
        assert_eq!(disk(&out), []);
    }
}

#[test]
fn dirty_bits_are_committed_in_groups() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    let (_, out) = bench.write(1, view(1, 0), ByteRange::new(0, 4096), 1);
    assert_eq!(pages(&out), [PageId::Dirty(0)]);
    for region in 1..4 {
        let (_, out) = bench.write(1, view(1, 0), ByteRange::new(region << 20, 4096), 1);
        assert_eq!(out, [], "a second batch while one is under way");
    }
    let batch = bench.pending.pop_front().unwrap();
    assert_eq!(batch.len(), 1);
    let out = bench.step(replica::Event::PagesStored { result: Ok(()) });
    assert_eq!(disk(&out).len(), 1, "the first write");
    assert_eq!(pages(&out), [PageId::Dirty(0)], "one batch for the other three");
    let out = bench.stored();
    assert_eq!(disk(&out).len(), 3);
}

#[test]
fn what_a_lost_connection_had_not_brought_to_the_disk_is_dropped() {
    let mut bench = Bench::new();
    bench.open(1, view(1, 0), &[]);
    bench.write(1, view(1, 0), block(0), 7);
    bench.step(replica::Event::Gone { conn: ConnId(1) });
    let out = bench.stored();
    assert_eq!(disk(&out), []);
    assert_eq!(
        bench.replica.dirty_regions(),
        1,
        "the bit stays: to copy too much is safe"
    );
}
