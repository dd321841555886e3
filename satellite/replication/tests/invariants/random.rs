//! Any event at any time: nothing a peer, a disk, a catalogue or a client may say makes a state machine panic,
//! go round in circles, or keep more than it was given.

use proptest::prelude::*;
use stor_replication::body::Body;
use stor_replication::catalogue::{EjectReason, MemberState, Refusal};
use stor_replication::engine::{self, Engine, LinkId, Request, Start};
use stor_replication::ids::{ConnId, IoId, OpId, ReplicaId};
use stor_replication::range::ByteRange;
use stor_replication::replica::{self, DiskError, MAX_IN_FLIGHT};
use stor_replication::wire::{DIRTY_MAP, Header, Kind, Status, flags};

use super::bench::{A, B, Bench, C, SIZE, VOLUME, at, row, view};

/// What an event is made of; which numbers count depends on it.
type Raw = (u8, u8, u8, u8, u64, Vec<u8>);

fn raw() -> impl Strategy<Value = Raw> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..80);
    let far = prop_oneof![0_u64..20, Just(u64::MAX), any::<u64>()];
    (any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>(), far, bytes)
}

fn kind(byte: u8) -> Kind {
    Kind::try_from(1 + byte % 12).unwrap()
}

fn header(raw: &Raw, replica: ReplicaId) -> Header {
    let (_, first, second, third, far, _) = raw;
    let lengths = [0, 1, 4096, 1 << 20, 32 << 20, DIRTY_MAP];
    Header {
        kind: kind(*first),
        flags: u16::from(*second) & flags::ALL & !flags::REPLY,
        volume: VOLUME,
        replica,
        view: view(u64::from(third % 6), u64::from(second % 3)),
        op: OpId(u64::from(*third)),
        offset: if second % 2 == 0 {
            far.saturating_mul(4096)
        } else {
            *far
        },
        length: lengths[usize::from(*third) % lengths.len()],
        status: Status::try_from(u16::from(second % 11)).unwrap(),
    }
}

fn body(raw: &Raw) -> Body<u64> {
    match raw.1 % 3 {
        0 => Body::None,
        1 => Body::Data(raw.4),
        _ => Body::Bytes(raw.5.clone()),
    }
}

fn of_replica(raw: &Raw) -> replica::Event<u64> {
    let error = [DiskError::NoSpace, DiskError::Transient, DiskError::Failed][usize::from(raw.1 % 3)];
    let failed = raw.2.is_multiple_of(4);
    let conn = ConnId(u64::from(raw.3 % 3));
    match raw.0 % 12 {
        0..=6 => {
            let header = Header {
                status: Status::Ok,
                ..header(raw, if raw.0 % 7 == 6 { B } else { A })
            };
            replica::Event::Request {
                conn,
                header,
                body: body(raw),
            }
        }
        7 => replica::Event::Gone { conn },
        8 | 9 => {
            let result = if failed {
                Err(error)
            } else {
                Ok((raw.1.is_multiple_of(2)).then_some(raw.4))
            };
            replica::Event::DiskDone {
                op: u64::from(raw.3 % 16),
                result,
            }
        }
        10 => replica::Event::PagesStored {
            result: if failed { Err(error) } else { Ok(()) },
        },
        _ => replica::Event::Tick,
    }
}

fn of_engine(raw: &Raw) -> engine::Event<u64> {
    let replica = [A, B, C, ReplicaId(9)][usize::from(raw.3 % 4)];
    let link = LinkId(u64::from(raw.1 % 12));
    let range = ByteRange::new(
        u64::from(raw.2) % (SIZE >> 12) * 4096,
        u64::from(raw.3 % 8 + 1) * 4096,
    );
    let mut other = row(&[A, B], &[C], 1 + raw.1 % 3);
    other.revision = raw.4;
    other.view = view(3 + u64::from(raw.2 % 3) / 2, u64::from(raw.3 % 4));
    if raw.1.is_multiple_of(5) {
        other.replicas.remove(&C);
    }
    if raw.1 % 5 == 1 {
        let since = Some(other.view.config);
        other.replicas.get_mut(&B).unwrap().state = MemberState::Stale {
            since,
            reason: EjectReason::Unreachable,
        };
    }
    match raw.0 % 14 {
        0 => engine::Event::Submit {
            io: IoId(raw.4 % 64),
            request: Request::Read(range),
        },
        1 => engine::Event::Submit {
            io: IoId(raw.4 % 64),
            request: Request::Write {
                range,
                data: 7,
                fua: raw.1.is_multiple_of(2),
            },
        },
        2 => engine::Event::Submit {
            io: IoId(raw.4 % 64),
            request: Request::Zero {
                range,
                discard: true,
                fua: false,
            },
        },
        3 => engine::Event::Submit {
            io: IoId(raw.4 % 64),
            request: Request::Flush,
        },
        4 | 5 => engine::Event::Connected { replica, link },
        6 => engine::Event::Lost { replica, link },
        7..=9 => {
            let header = header(raw, replica);
            engine::Event::Answer {
                replica,
                link,
                header: header.reply(header.status),
                body: body(raw),
            }
        }
        10 => engine::Event::Row(other),
        11 => {
            let refusal = (raw.1.is_multiple_of(2)).then_some(Refusal::NoSuchReplica { replica });
            engine::Event::Outcome {
                proposal: raw.4 % 4,
                row: other,
                refusal,
            }
        }
        12 if raw.1.is_multiple_of(16) => engine::Event::Stop,
        _ => engine::Event::Tick,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_replica_takes_any_event(events in proptest::collection::vec((0_u64..400, raw()), 0..150)) {
        let mut bench = Bench::new();
        bench.open(1, view(1, 0), &[]);
        let mut now = 10_000;
        for (index, (millis, raw)) in events.iter().enumerate() {
            now += millis;
            let mut out = Vec::new();
            bench.replica.step(at(now), of_replica(raw), &mut out);
            // Whatever was due is done: a thread that waits for the next time does wait.
            prop_assert!(bench.replica.deadline().is_none_or(|due| due > at(now)));
            // An event answers at most what waited, and no more can wait than came before.
            prop_assert!(out.len() <= index + 8 && out.len() <= MAX_IN_FLIGHT + 8);
        }
    }

    #[test]
    fn an_engine_takes_any_event(events in proptest::collection::vec((0_u64..400, raw()), 0..250)) {
        let start = Start { row: row(&[A, B], &[C], 1), guest_alive: true, local: Some(A) };
        let mut engine = Engine::<u64>::new(at(1000), start);
        let mut now = 1000;
        let mut submitted = std::collections::BTreeSet::new();
        for (millis, raw) in &events {
            now += millis;
            let event = of_engine(raw);
            if let engine::Event::Submit { io, .. } = &event {
                // A shell gives no number twice while the first is under way.
                if !submitted.insert(*io) {
                    continue;
                }
            }
            let mut out = Vec::new();
            engine.step(at(now), event, &mut out);
            for command in &out {
                if let engine::Command::Complete { io, .. } = command {
                    prop_assert!(submitted.remove(io), "{io} was answered twice, or never asked");
                }
            }
            prop_assert_eq!(engine.in_flight(), submitted.len());
            prop_assert!(out.len() < 20_000, "{} commands from one event", out.len());
            prop_assert!(engine.deadline() >= at(1000));
        }
    }
}
