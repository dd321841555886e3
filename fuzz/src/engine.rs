//! An engine whose replicas may answer anything.

use std::collections::BTreeMap;
use std::time::Duration;

use stor_replication::body::Body;
use stor_replication::catalogue::{Member, MemberState, VolumeRow};
use stor_replication::engine::{Command, Engine, Event, LinkId, Request, Start};
use stor_replication::ids::{CacheId, ConfigSeq, Epoch, IoId, Loss, OpId, ReplicaId, ScrubRun, View};
use stor_replication::info::Info;
use stor_replication::range::ByteRange;
use stor_replication::scrub::ScrubAsk;
use stor_replication::time::Time;
use stor_replication::wire::{Header, Kind, Status};
use uuid::Uuid;

use crate::bytes::Bytes;
use crate::replica::{LINEAGE, SIZE};
use crate::wire::VOLUME;

/// Requests of clients that are not answered yet; as a shell would, no more are taken.
const MOST_IO: usize = 64;
/// Messages remembered that replicas may answer.
const MOST_SENT: usize = 256;

fn row() -> VolumeRow {
    let member = |node: &str| Member {
        node: node.to_owned(),
        joined: Some(ConfigSeq(0)),
        state: MemberState::InSync,
        leaving: false,
    };
    VolumeRow {
        volume: VOLUME,
        size: SIZE,
        revision: 3,
        view: View {
            epoch: Epoch(1),
            config: ConfigSeq(1),
        },
        owner: Some("k1".to_owned()),
        clean: false,
        clean_before: false,
        lineage: LINEAGE,
        min_in_sync: 1,
        replicas: BTreeMap::from([(ReplicaId(1), member("s1")), (ReplicaId(2), member("s2"))]),
    }
}

fn info() -> Info {
    Info {
        cache: CacheId(Uuid::from_u128(5)),
        loss: Loss::NONE,
        stored: View {
            epoch: Epoch(0),
            config: ConfigSeq(0),
        },
        in_sync: true,
        lineage: LINEAGE,
        size: SIZE,
        dirty: 0,
        maps: Vec::new(),
    }
}

struct World {
    now: Time,
    links: BTreeMap<ReplicaId, LinkId>,
    sent: Vec<(ReplicaId, LinkId, Header)>,
    proposals: Vec<u64>,
    ios: u64,
    open: usize,
}

pub(crate) fn answers(input: &[u8]) {
    let mut world = World {
        now: Time::default() + Duration::from_secs(100),
        links: BTreeMap::new(),
        sent: Vec::new(),
        proposals: Vec::new(),
        ios: 0,
        open: 0,
    };
    let start = Start {
        row: row(),
        guest_alive: false,
        local: None,
    };
    let mut engine = Engine::<u8>::new(world.now, start);
    let mut out = Vec::new();
    engine.step(world.now, Event::Tick, &mut out);
    world.carry_out(&mut out);
    let mut from = Bytes(input);
    while !from.is_empty() {
        if let Some(event) = world.event(&mut from) {
            engine.step(world.now, event, &mut out);
            world.carry_out(&mut out);
        }
    }
}

impl World {
    fn event(&mut self, from: &mut Bytes<'_>) -> Option<Event<u8>> {
        let replica = ReplicaId(1 + u32::from(from.byte() % 2));
        Some(match from.byte() % 10 {
            0 => {
                self.now = self.now + Duration::from_millis(from.u16().into());
                Event::Tick
            }
            1 => Event::Connected {
                replica,
                link: *self.links.get(&replica)?,
            },
            2 if from.byte() < 32 => Event::Lost {
                replica,
                link: self.links.remove(&replica)?,
            },
            3 => {
                let proposal = self.proposals.pop()?;
                Event::Outcome {
                    proposal,
                    row: row(),
                    refusal: None,
                }
            }
            4 | 5 if self.open < MOST_IO => {
                self.ios += 1;
                self.open += 1;
                Event::Submit {
                    io: IoId(self.ios),
                    request: client(from),
                }
            }
            6 if from.byte() < 16 => Event::Scrub((from.byte() < 200).then(|| ScrubAsk {
                run: ScrubRun(u64::from(from.byte() % 4)),
                from: from.number(SIZE),
                reports: u32::from(from.byte() % 4),
                found: 0,
                rate: 1 << 30,
                mend: from.byte().is_multiple_of(2),
            })),
            _ => self.answer(from)?,
        })
    }

    /// An answer to something that was sent: a good one, or one with anything in it.
    fn answer(&mut self, from: &mut Bytes<'_>) -> Option<Event<u8>> {
        let at = usize::from(from.byte()).checked_rem(self.sent.len())?;
        let (replica, link, request) = self.sent.remove(at);
        let mut header = request.reply(Status::Ok);
        let odd = from.byte();
        if odd < 64 {
            header.status = Status::try_from(u16::from(odd % 11)).ok()?;
        }
        if odd % 16 == 1 {
            header.view.epoch = Epoch(from.u64());
        }
        if odd % 16 == 2 {
            header.length = u32::try_from(from.number(SIZE) % (1 << 32)).ok()?;
        }
        if odd % 16 == 3 {
            header.kind = Kind::try_from(from.byte() % 17).ok()?;
        }
        let body = match header.kind {
            Kind::Read => Body::Data(odd),
            Kind::Open if !odd.is_multiple_of(4) => Body::Bytes(info().encode()),
            Kind::Open => Body::Bytes(odd_info(from).encode()),
            Kind::GetMap | Kind::Extents | Kind::Digest => Body::Bytes(from.some(96).to_vec()),
            _ => Body::None,
        };
        Some(Event::Answer {
            replica,
            link,
            header,
            body,
        })
    }

    fn carry_out(&mut self, out: &mut Vec<Command<u8>>) {
        for command in out.drain(..) {
            match command {
                Command::Connect { replica, link } => {
                    self.links.insert(replica, link);
                }
                Command::Disconnect { replica, .. } => {
                    self.links.remove(&replica);
                    self.sent.retain(|(of, ..)| *of != replica);
                }
                Command::Send {
                    replica,
                    link,
                    header,
                    ..
                } => {
                    if matches!(header.kind, Kind::Write | Kind::Read | Kind::Zero | Kind::Extents) {
                        assert!(header.range().valid_for(SIZE), "{header:?} leaves the volume");
                    }
                    self.sent.push((replica, link, header));
                    if self.sent.len() > MOST_SENT {
                        self.sent.remove(0);
                    }
                }
                Command::Propose { proposal, .. } => self.proposals.push(proposal),
                Command::Complete { .. } | Command::CompleteExtents { .. } => {
                    assert!(self.open > 0, "a request was answered twice");
                    self.open -= 1;
                }
                Command::StateChanged => {}
            }
        }
    }
}

fn client(from: &mut Bytes<'_>) -> Request<u8> {
    let place = u64::from(from.byte()) * (SIZE / 256);
    let len = u64::from(from.byte() % 16 + 1) * 4096;
    let range = ByteRange::new(place, len.min(SIZE - place));
    match from.byte() % 7 {
        0 => Request::Flush,
        6 => Request::Extents(range),
        1 => Request::Read(range),
        2 => Request::Zero {
            range,
            discard: true,
            fua: false,
        },
        odd => Request::Write {
            range,
            data: odd,
            fua: odd == 3,
        },
    }
}

fn odd_info(from: &mut Bytes<'_>) -> Info {
    Info {
        cache: CacheId(Uuid::from_u128(from.byte().into())),
        loss: Loss {
            epoch: Epoch(from.byte().into()),
            op: OpId(from.byte().into()),
        },
        stored: View {
            epoch: Epoch(from.number(SIZE)),
            config: ConfigSeq(from.number(SIZE)),
        },
        in_sync: from.byte().is_multiple_of(2),
        size: from.number(SIZE),
        dirty: from.number(SIZE),
        maps: vec![(ReplicaId(from.byte().into()), ConfigSeq(from.u64()))],
        ..info()
    }
}
