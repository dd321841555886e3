//! A replica on a bench, and an engine with hand-made replicas: events in, commands out, nothing between.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::time::Duration;

use stor_replication::body::Body;
use stor_replication::catalogue::{Change, EjectReason, Member, MemberState, Refusal, VolumeRow, decide};
use stor_replication::digest::{self, Digests, Unit};
use stor_replication::disk::{PAGE, PageId, Superblock, encode_page};
use stor_replication::engine::{self, Engine, IoError, LinkId, Request, SnapshotAsk, Start};
use stor_replication::extents::{self, Extent};
use stor_replication::ids::{
    CacheId, ConfigSeq, ConnId, Epoch, IoId, Lineage, Loss, OpId, ReplicaId, ScrubRun, SnapshotId, View,
    VolumeId,
};
use stor_replication::info::{Info, Roster};
use stor_replication::range::ByteRange;
use stor_replication::replica::{self, DiskAction, DiskError, Replica};
use stor_replication::right::Authorised;
use stor_replication::scrub::{Finding, ScrubAsk, ScrubEnd};
use stor_replication::time::Time;
use stor_replication::wire::{DIRTY_MAP, Header, Kind, Status, flags};
use uuid::Uuid;

pub(crate) const VOLUME: VolumeId = VolumeId(Uuid::from_u128(1));
pub(crate) const LINEAGE: Lineage = Lineage(Uuid::from_u128(2));
pub(crate) const SIZE: u64 = 8 << 20;
pub(crate) const A: ReplicaId = ReplicaId(1);
pub(crate) const B: ReplicaId = ReplicaId(2);
pub(crate) const C: ReplicaId = ReplicaId(3);

/// What stands for data.
pub(crate) type Data = u64;

pub(crate) fn cache(number: u128) -> CacheId {
    CacheId(Uuid::from_u128(number))
}

/// Found by the engine of epoch 2 with its `op`th message.
pub(crate) fn lost(op: u64) -> Loss {
    Loss {
        epoch: Epoch(2),
        op: OpId(op),
    }
}

pub(crate) fn snapshot(number: u128) -> SnapshotId {
    SnapshotId(Uuid::from_u128(number))
}

pub(crate) fn at(millis: u64) -> Time {
    Time(Duration::from_millis(millis))
}

pub(crate) fn view(epoch: u64, config: u64) -> View {
    View {
        epoch: Epoch(epoch),
        config: ConfigSeq(config),
    }
}

pub(crate) fn block(index: u64) -> ByteRange {
    ByteRange::new(index * 4096, 4096)
}

/// One replica and its metadata.
pub(crate) struct Bench {
    pub(crate) replica: Replica<Data>,
    pub(crate) meta: BTreeMap<u64, Vec<u8>>,
    pub(crate) now: Time,
    pub(crate) pending: VecDeque<Vec<replica::StoredPage>>,
    next_op: u64,
}

pub(crate) type ReplicaCommands = Vec<replica::Command<Data>>;

impl Bench {
    pub(crate) fn new() -> Self {
        let mut meta = BTreeMap::new();
        let superblock = Superblock::fresh(SIZE, LINEAGE, cache(1), Some(A));
        let page = encode_page(PageId::Superblock, VOLUME, A, 0, &superblock.encode());
        meta.insert(PageId::Superblock.offset(false), page.to_vec());
        Self::load(meta, cache(1), at(0))
    }

    pub(crate) fn load(meta: BTreeMap<u64, Vec<u8>>, cache: CacheId, now: Time) -> Self {
        let mut read = |offset: u64, len: usize| -> Result<Vec<u8>, Infallible> {
            let page = |at: u64| meta.get(&at).cloned().unwrap_or_else(|| vec![0; PAGE]);
            Ok((0..(len / PAGE) as u64)
                .flat_map(|n| page(offset + n * PAGE as u64))
                .collect())
        };
        let replica = Replica::load(VOLUME, A, cache, now, &mut read).expect("opens");
        Self {
            replica,
            meta,
            now,
            pending: VecDeque::new(),
            next_op: 1,
        }
    }

    /// The process or the machine ends; the metadata is as stored.
    pub(crate) fn restart(self, cache: CacheId) -> Self {
        Self::load(self.meta, cache, self.now)
    }

    pub(crate) fn step(&mut self, event: replica::Event<Data>) -> ReplicaCommands {
        let mut out = Vec::new();
        self.replica.step(self.now, event, &mut out);
        for command in &out {
            if let replica::Command::StorePages(pages) = command {
                self.pending.push_back(pages.clone());
            }
        }
        out
    }

    pub(crate) fn tick(&mut self, millis: u64) -> ReplicaCommands {
        self.now = self.now + Duration::from_millis(millis);
        self.step(replica::Event::Tick)
    }

    /// The batch under way is durable, and whatever follows from it.
    pub(crate) fn stored(&mut self) -> ReplicaCommands {
        let mut all = Vec::new();
        while let Some(pages) = self.pending.pop_front() {
            for page in pages {
                self.meta.insert(page.offset, page.page.to_vec());
            }
            all.extend(self.step(replica::Event::PagesStored { result: Ok(()) }));
        }
        all
    }

    pub(crate) fn header(&mut self, kind: Kind, view: View) -> Header {
        self.next_op += 1;
        Header {
            kind,
            flags: 0,
            volume: VOLUME,
            replica: A,
            view,
            op: OpId(self.next_op),
            offset: 0,
            length: 0,
            status: Status::Ok,
        }
    }

    /// As the shell hands it on: an Open after its right was checked.
    pub(crate) fn ask(&mut self, conn: u64, header: Header, body: Body<Data>) -> ReplicaCommands {
        if header.kind == Kind::Open {
            return self.open_with(conn, header, authorised(header.volume, header.view.epoch));
        }
        self.step(replica::Event::Request {
            conn: ConnId(conn),
            header,
            body,
        })
    }

    pub(crate) fn open_with(&mut self, conn: u64, header: Header, authorised: Authorised) -> ReplicaCommands {
        self.step(replica::Event::Open {
            conn: ConnId(conn),
            header,
            authorised,
        })
    }

    /// An engine opens as member and stores its view; `absent` are gone since their configs.
    pub(crate) fn open(&mut self, conn: u64, view: View, absent: &[(ReplicaId, ConfigSeq)]) {
        let mut header = self.header(Kind::Open, view);
        header.flags = flags::MEMBER;
        let mut out = self.ask(conn, header, Body::None);
        out.extend(self.stored());
        out.extend(self.tick(1000));
        assert_eq!(status(&out, header.op), Some(Status::Ok), "not opened: {out:?}");
        self.store_view(conn, view, absent);
    }

    pub(crate) fn store_view(&mut self, conn: u64, view: View, absent: &[(ReplicaId, ConfigSeq)]) {
        let mut in_sync = vec![A, B, C];
        in_sync.retain(|id| absent.iter().all(|(gone, _)| gone != id));
        let roster = Roster {
            in_sync,
            absent: absent.to_vec(),
        };
        let mut header = self.header(Kind::StoreView, view);
        header.flags = flags::MEMBER | flags::WHOLE;
        let mut out = self.ask(conn, header, Body::Bytes(roster.encode()));
        out.extend(self.stored());
        assert_eq!(
            status(&out, header.op),
            Some(Status::Ok),
            "view not stored: {out:?}"
        );
    }

    pub(crate) fn write(
        &mut self,
        conn: u64,
        view: View,
        range: ByteRange,
        data: Data,
    ) -> (OpId, ReplicaCommands) {
        let mut header = self.header(Kind::Write, view);
        header.offset = range.offset;
        header.length = u32::try_from(range.len).unwrap();
        (header.op, self.ask(conn, header, Body::Data(data)))
    }

    pub(crate) fn disk_done(&mut self, op: u64, result: Result<Option<Data>, DiskError>) -> ReplicaCommands {
        self.step(replica::Event::DiskDone { op, result })
    }

    /// The words of a map, or how it was refused.
    pub(crate) fn map(
        &mut self,
        conn: u64,
        view: View,
        of: Option<(ReplicaId, ConfigSeq)>,
    ) -> Result<Vec<u8>, Status> {
        let mut header = self.header(Kind::GetMap, view);
        header.length = of.map_or(DIRTY_MAP, |(replica, _)| replica.0);
        let body = of.map_or(Body::None, |(_, since)| {
            Body::Bytes(since.0.to_le_bytes().to_vec())
        });
        let out = self.ask(conn, header, body);
        for command in out {
            if let replica::Command::Reply { header, body, .. } = command {
                return if header.status == Status::Ok {
                    Ok(body.bytes().to_vec())
                } else {
                    Err(header.status)
                };
            }
        }
        panic!("no answer to a request for a map");
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the tests stand for the shell that checked"
)]
pub(crate) fn authorised(volume: VolumeId, epoch: Epoch) -> Authorised {
    Authorised::checked(volume, epoch)
}

/// How a request was answered, if it was.
pub(crate) fn status(out: &ReplicaCommands, op: OpId) -> Option<Status> {
    out.iter().find_map(|command| match command {
        replica::Command::Reply { header, .. } if header.op == op => Some(header.status),
        _ => None,
    })
}

/// Disk operations asked for.
pub(crate) fn disk(out: &ReplicaCommands) -> Vec<(u64, DiskAction<Data>)> {
    out.iter()
        .filter_map(|command| match command {
            replica::Command::Disk { op, action } => Some((*op, action.clone())),
            _ => None,
        })
        .collect()
}

/// Pages asked to be stored.
pub(crate) fn pages(out: &ReplicaCommands) -> Vec<PageId> {
    out.iter()
        .filter_map(|command| match command {
            replica::Command::StorePages(pages) => Some(pages.iter().map(|page| page.id).collect::<Vec<_>>()),
            _ => None,
        })
        .flatten()
        .collect()
}

pub(crate) fn row(members: &[ReplicaId], stale: &[ReplicaId], min_in_sync: u8) -> VolumeRow {
    let member = |id: &ReplicaId, state| {
        let joined = (state == MemberState::InSync).then_some(ConfigSeq(0));
        (
            *id,
            Member {
                node: format!("n{id}"),
                joined: joined.or(Some(ConfigSeq(0))),
                state,
                leaving: false,
            },
        )
    };
    let gone = MemberState::Stale {
        since: Some(ConfigSeq(1)),
        reason: EjectReason::Unreachable,
    };
    let replicas = members
        .iter()
        .map(|id| member(id, MemberState::InSync))
        .chain(stale.iter().map(|id| member(id, gone)))
        .collect();
    VolumeRow {
        volume: VOLUME,
        size: SIZE,
        revision: 5,
        view: view(3, 1),
        owner: Some("n1".into()),
        clean: false,
        clean_before: true,
        lineage: LINEAGE,
        min_in_sync,
        replicas,
    }
}

/// What a message was and where it went.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Sent {
    pub(crate) replica: ReplicaId,
    pub(crate) link: LinkId,
    pub(crate) header: Header,
    pub(crate) body: Body<Data>,
}

/// An engine whose replicas are answered for by the test.
pub(crate) struct Rig {
    pub(crate) engine: Engine<Data>,
    pub(crate) now: Time,
    pub(crate) sent: VecDeque<Sent>,
    pub(crate) done: BTreeMap<u64, Result<Option<Data>, IoError>>,
    pub(crate) extents: BTreeMap<u64, Vec<Extent>>,
    pub(crate) proposed: Vec<(u64, Change)>,
    pub(crate) row: VolumeRow,
    pub(crate) links: BTreeMap<ReplicaId, LinkId>,
    pub(crate) closed: Vec<ReplicaId>,
    /// Replicas that answer nothing and can't be connected to.
    pub(crate) away: Vec<ReplicaId>,
    pub(crate) info: BTreeMap<ReplicaId, Info>,
    /// First word of the dirty map of each.
    pub(crate) dirty: BTreeMap<ReplicaId, u64>,
    /// What sectors of each are; zeroes where it is not said.
    units: BTreeMap<(ReplicaId, u64), Unit>,
    /// Bytes a scrub may read a second.
    pub(crate) rate: u64,
    /// Reports of it that the catalogue says it has heard.
    pub(crate) reports: u32,
    /// Digests answered; reads and writes of copies.
    pub(crate) digested: u64,
    pub(crate) copied_from: Vec<ReplicaId>,
    pub(crate) copied_to: Vec<ReplicaId>,
    /// Copies change nothing.
    pub(crate) stubborn: bool,
    /// What was told of scrubs and heard: places, how many were mended and left, how it ended.
    pub(crate) found: Vec<Finding>,
    pub(crate) outcome: (u32, u32),
    pub(crate) ended: Option<ScrubEnd>,
}

impl Rig {
    pub(crate) fn new(row: VolumeRow, guest_alive: bool, local: Option<ReplicaId>) -> Self {
        let now = at(1000);
        let info = row
            .replicas
            .keys()
            .map(|id| {
                let info = Info {
                    cache: cache(1),
                    loss: Loss::NONE,
                    stored: view(2, 0),
                    in_sync: true,
                    lineage: LINEAGE,
                    size: SIZE,
                    dirty: 0,
                    maps: Vec::new(),
                };
                (*id, info)
            })
            .collect();
        Self {
            engine: Engine::new(
                now,
                Start {
                    row: row.clone(),
                    guest_alive,
                    local,
                },
            ),
            now,
            sent: VecDeque::new(),
            done: BTreeMap::new(),
            extents: BTreeMap::new(),
            proposed: Vec::new(),
            row,
            links: BTreeMap::new(),
            closed: Vec::new(),
            away: Vec::new(),
            info,
            dirty: BTreeMap::new(),
            units: BTreeMap::new(),
            rate: 1 << 40,
            reports: 0,
            digested: 0,
            copied_from: Vec::new(),
            copied_to: Vec::new(),
            stubborn: false,
            found: Vec::new(),
            outcome: (0, 0),
            ended: None,
        }
    }

    /// An engine that serves.
    pub(crate) fn serving(row: VolumeRow) -> Self {
        let mut rig = Self::new(row, true, None);
        rig.run(200);
        assert_eq!(rig.engine.state(rig.now), engine::State::Serving);
        rig
    }

    pub(crate) fn step(&mut self, event: engine::Event<Data>) {
        let mut out = Vec::new();
        self.engine.step(self.now, event, &mut out);
        for command in out {
            match command {
                engine::Command::Connect { replica, link } => {
                    self.links.insert(replica, link);
                    if !self.away.contains(&replica) {
                        self.step(engine::Event::Connected { replica, link });
                    }
                }
                engine::Command::Disconnect { replica, link } => {
                    self.closed.push(replica);
                    self.sent.retain(|sent| sent.link != link);
                }
                engine::Command::Send {
                    replica,
                    link,
                    header,
                    body,
                } => {
                    self.sent.push_back(Sent {
                        replica,
                        link,
                        header,
                        body,
                    });
                }
                engine::Command::Propose { proposal, change } => self.proposed.push((proposal, change)),
                engine::Command::Complete { io, result } => {
                    self.done.insert(io.0, result);
                }
                engine::Command::CompleteExtents { io, extents } => {
                    self.extents.insert(io.0, extents);
                }
                engine::Command::StateChanged => {}
            }
        }
    }

    pub(crate) fn submit(&mut self, io: u64, request: Request<Data>) {
        self.step(engine::Event::Submit {
            io: IoId(io),
            request,
        });
    }

    pub(crate) fn write(&mut self, io: u64, range: ByteRange) {
        self.submit(
            io,
            Request::Write {
                range,
                data: io,
                fua: false,
            },
        );
    }

    /// Answers one message as a healthy replica would.
    pub(crate) fn answer(&mut self, sent: &Sent) {
        let body = match sent.header.kind {
            Kind::Open => {
                let mut info = self.info[&sent.replica].clone();
                info.dirty = self
                    .dirty
                    .get(&sent.replica)
                    .map_or(0, |word| u64::from(word.count_ones()));
                Body::Bytes(info.encode())
            }
            Kind::GetMap => {
                let word = self.dirty.get(&sent.replica).copied().unwrap_or(0);
                let word = if sent.header.length == DIRTY_MAP { word } else { 0 };
                let mut bytes = word.to_le_bytes().to_vec();
                if sent.header.length != DIRTY_MAP {
                    bytes.extend([0; 8]);
                }
                Body::Bytes(bytes)
            }
            Kind::Extents => Body::Bytes(extents::encode(&[Extent {
                length: sent.header.length,
                hole: true,
            }])),
            Kind::Digest => Body::Bytes(digest::encode(&self.digests(sent))),
            Kind::Read => Body::Data(100 + u64::from(sent.replica.0)),
            _ => Body::None,
        };
        self.note_copy(sent);
        self.answer_with(sent, Status::Ok, body);
    }

    /// A sector of a replica is this.
    pub(crate) fn units(&mut self, replica: ReplicaId, sector: u64, unit: Unit) {
        self.units.insert((replica, sector), unit);
    }

    fn digests(&mut self, sent: &Sent) -> Digests {
        self.digested += 1;
        let range = sent.header.range();
        let unit = digest::unit(range);
        let mut digests = Digests::default();
        for at in (range.offset..range.end()).step_by(usize::try_from(unit).unwrap()) {
            if u64::from(digests.read) >= digest::MAX_READ {
                break;
            }
            let of = ByteRange::new(at, unit.min(range.end() - at));
            let sectors: Vec<Unit> = of
                .units(4096)
                .map(|sector| {
                    self.units
                        .get(&(sent.replica, sector))
                        .copied()
                        .unwrap_or(Unit::Zeroes)
                })
                .collect();
            let told = match sectors[..] {
                [one] => one,
                _ if sectors.contains(&Unit::Unreadable) => Unit::Unreadable,
                _ if sectors.iter().all(|one| *one == Unit::Zeroes) => Unit::Zeroes,
                _ => Unit::of(format!("{sectors:?}").as_bytes()),
            };
            if told != Unit::Zeroes {
                digests.read += u32::try_from(of.len).unwrap();
            }
            digests.units.push(told);
        }
        digests
    }

    /// What the copies of a scrub do: the only ones here with such data, durable when they are answered.
    fn note_copy(&mut self, sent: &Sent) {
        match (sent.header.kind, &sent.body) {
            (Kind::Read, _) if sent.header.op.0 > 0 => self.copied_from.push(sent.replica),
            (Kind::Write, Body::Data(100..110)) => {
                self.copied_to.push(sent.replica);
                let Body::Data(data) = sent.body else { return };
                let from = ReplicaId(u32::try_from(data - 100).unwrap());
                for sector in sent.header.range().units(4096).filter(|_| !self.stubborn) {
                    let is = self.units.get(&(from, sector)).copied().unwrap_or(Unit::Zeroes);
                    self.units.insert((sent.replica, sector), is);
                }
            }
            _ => {}
        }
    }

    /// The catalogue wants this scrub made, from here on.
    pub(crate) fn ask_scrub(&mut self, run: Option<u64>, from: u64) {
        let ask = run.map(|run| ScrubAsk {
            run: ScrubRun(run),
            from,
            reports: self.reports,
            found: 0,
            rate: self.rate,
            mend: true,
        });
        self.step(engine::Event::Scrub(ask));
        self.step(engine::Event::Tick);
    }

    /// Lets time pass, answering all; the catalogue hears every report.
    pub(crate) fn scrub(&mut self, millis: u64) {
        for _ in 0..millis / 10 {
            while let Some((_, Change::Scrubbed { report, .. })) = self.proposed.first().cloned() {
                self.outcome.0 += report.mended;
                self.outcome.1 += report.left;
                self.found.extend(report.findings);
                self.ended = report.end;
                self.decide();
            }
            self.run(10);
        }
    }

    /// The catalogue refuses the oldest proposal.
    pub(crate) fn refuse_change(&mut self) {
        let (proposal, _) = self.proposed.remove(0);
        let (row, run) = (self.row.clone(), ScrubRun(1));
        let refusal = Some(Refusal::NoSuchScrub { run, report: 0 });
        self.step(engine::Event::Outcome {
            proposal,
            row,
            refusal,
        });
    }

    /// Takes a message that waits for its answer.
    pub(crate) fn take(&mut self, kind: Kind, replica: ReplicaId) -> Sent {
        let of = |sent: &Sent| sent.header.kind == kind && sent.replica == replica;
        let at = self.sent.iter().position(of).expect("no such message");
        self.sent.remove(at).unwrap()
    }

    pub(crate) fn read(&mut self, io: u64, range: ByteRange) {
        self.submit(io, Request::Read(range));
    }

    /// Takes a message out and refuses it.
    pub(crate) fn refuse(&mut self, sent: &Sent, status: Status) {
        self.sent.retain(|other| other != sent);
        self.answer_with(sent, status, Body::None);
    }

    /// The catalogue wants this snapshot made.
    pub(crate) fn ask_snapshot(&mut self, number: Option<u128>, hold: bool) {
        let ask = number.map(|number| SnapshotAsk {
            snapshot: snapshot(number),
            hold,
        });
        self.step(engine::Event::Snapshot(ask));
        self.step(engine::Event::Tick);
    }

    pub(crate) fn answer_with(&mut self, sent: &Sent, status: Status, body: Body<Data>) {
        self.step(engine::Event::Answer {
            replica: sent.replica,
            link: sent.link,
            header: sent.header.reply(status),
            body,
        });
    }

    /// Answers everything `which` allows, until nothing of that kind is left.
    pub(crate) fn answer_if(&mut self, which: impl Fn(&Sent) -> bool) {
        while let Some(index) = self
            .sent
            .iter()
            .position(|s| which(s) && !self.away.contains(&s.replica))
        {
            let sent = self.sent.remove(index).unwrap();
            self.answer(&sent);
        }
    }

    /// Lets time pass, answering all; proposals are left to the test.
    pub(crate) fn run(&mut self, millis: u64) {
        self.run_if(millis, |_| true);
    }

    pub(crate) fn run_if(&mut self, millis: u64, which: impl Fn(&Sent) -> bool) {
        self.step(engine::Event::Tick);
        for _ in 0..millis.div_ceil(10) {
            self.answer_if(&which);
            self.now = self.now + Duration::from_millis(10);
            if self.engine.deadline() <= self.now {
                self.step(engine::Event::Tick);
            }
        }
        self.answer_if(&which);
    }

    /// The catalogue has a replica more, all of which is dirty.
    pub(crate) fn add(&mut self, replica: ReplicaId, row: VolumeRow) {
        let info = Info {
            in_sync: false,
            ..self.info[&A].clone()
        };
        self.info.insert(replica, info);
        self.dirty.insert(replica, 0xff);
        self.step(engine::Event::Row(row));
    }

    /// A replica's connection breaks and no new one is made.
    pub(crate) fn lose(&mut self, replica: ReplicaId) {
        self.away.push(replica);
        self.sent.retain(|sent| sent.replica != replica);
        let link = self.links[&replica];
        self.step(engine::Event::Lost { replica, link });
    }

    /// It can be reached again.
    pub(crate) fn back(&mut self, replica: ReplicaId) {
        self.away.retain(|id| *id != replica);
        let link = self.links[&replica];
        self.step(engine::Event::Lost { replica, link });
    }

    /// The catalogue decides the oldest proposal.
    pub(crate) fn decide(&mut self) {
        let (proposal, change) = self.proposed.remove(0);
        let refusal = match decide(&self.row, &change) {
            Ok(row) => {
                self.row = row;
                None
            }
            Err(refusal) => Some(refusal),
        };
        let row = self.row.clone();
        self.step(engine::Event::Outcome {
            proposal,
            row,
            refusal,
        });
    }

    /// Messages of a kind not answered yet, and to whom.
    pub(crate) fn waiting(&self, kind: Kind) -> Vec<ReplicaId> {
        self.sent
            .iter()
            .filter(|sent| sent.header.kind == kind)
            .map(|sent| sent.replica)
            .collect()
    }

    pub(crate) fn is_done(&self, io: u64) -> bool {
        self.done.contains_key(&io)
    }
}
