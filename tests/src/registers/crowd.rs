//! Many clients that read and write the same blocks of one volume at the same time, each over a connection of its
//! own, and note what they did and when.
//!
//! They work on a window that moves over the volume, so that blocks are both fought for and, again and again,
//! written for the first time. When the volume is taken over by another node, new clients begin there; those of
//! the old attachment go on until it fails them: what it still answers is judged like everything else.
//!
//! Requests wait without a deadline. The longest waits are told, never judged.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::check::ZEROED;
use super::record::{Kind, Operation, Record, Stamp};
use crate::block::{self, BLOCK};
use crate::medium::{Medium, Open};
use crate::nbd::{Cutter, Failure};
use crate::wait;

/// Clients of each attachment.
const CLIENTS: usize = 6;
/// Those of them that only read, and nothing that another is just writing: their reads would wait for it. When an
/// engine can't write any more, they go on to ask what it takes for true.
const READERS: usize = 2;
/// Times a reader looks for something nobody is writing.
const LOOKS: usize = 20;
/// Blocks that are fought for at a time.
const WINDOW: u64 = 24;
/// Until the window moves on by half its size.
const MOVES: Duration = Duration::from_millis(700);
/// The most blocks of one request.
const MOST: u64 = 6;
/// Between requests of a client: the load leaves two cores room for the cluster.
const PAUSE: Duration = Duration::from_millis(3);
/// Between attempts to reach a server that is not there.
const AGAIN: Duration = Duration::from_millis(30);

/// What it all came to.
#[derive(Debug, Default)]
pub struct Done {
    /// All that was done.
    pub record: Record,
    /// Requests answered.
    pub answered: u64,
    /// Connections made again.
    pub reconnects: u64,
    /// The longest wait for an answer, of clients that were not taken over from.
    pub longest: Duration,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    volume: u16,
    blocks: u64,
    stop: AtomicBool,
    answered: AtomicU64,
    reconnects: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Blocks that were zeroed, or are about to be: once each, for the judge's sake.
    zeroed: BTreeSet<u64>,
    failures: Vec<String>,
    longest: Duration,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos())
            .unwrap_or(u64::MAX)
            .max(1)
    }
}

/// For each client of an attachment, since when it waits for an answer, and the blocks that is about.
type Waiting = Arc<Mutex<Vec<Option<(Instant, Range<u64>)>>>>;

/// The clients of one attachment.
#[derive(Debug)]
struct Group {
    /// Another attachment takes its place, or is about to: whatever fails it now is right.
    superseded: Arc<AtomicBool>,
    waiting: Waiting,
    cutters: Arc<Mutex<Vec<Option<Cutter>>>>,
    threads: Vec<JoinHandle<Record>>,
}

/// See the module. Dropping it ends it.
#[derive(Debug)]
pub struct Crowd {
    shared: Arc<Shared>,
    clients: AtomicU32,
    groups: Mutex<Vec<Group>>,
}

impl Crowd {
    /// Of a volume that was never written. `volume` tells its blocks from those of other volumes.
    pub fn new(volume: u16, bytes: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                started: Instant::now(),
                volume,
                blocks: bytes / BLOCK as u64,
                stop: AtomicBool::new(false),
                answered: AtomicU64::new(0),
                reconnects: AtomicU64::new(0),
                state: Mutex::default(),
            }),
            clients: AtomicU32::new(1),
            groups: Mutex::default(),
        }
    }

    fn groups(&self) -> MutexGuard<'_, Vec<Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another node is about to take the volume: from now on the clients there are may be failed.
    pub fn supersede(&self) {
        for group in self.groups().iter() {
            group.superseded.store(true, Ordering::SeqCst);
        }
    }

    /// Clients begin on an attachment.
    pub fn serve(&self, medium: &Medium) -> anyhow::Result<()> {
        let mut group = Group {
            superseded: Arc::default(),
            waiting: Arc::new(Mutex::new(vec![None; CLIENTS])),
            cutters: Arc::new(Mutex::new((0..CLIENTS).map(|_| None).collect())),
            threads: Vec::new(),
        };
        for place in 0..CLIENTS {
            let number = self.clients.fetch_add(1, Ordering::SeqCst);
            let client = Client {
                shared: Arc::clone(&self.shared),
                superseded: Arc::clone(&group.superseded),
                waiting: Arc::clone(&group.waiting),
                cutters: Arc::clone(&group.cutters),
                place,
                number: u16::try_from(number)?,
                medium: medium.clone(),
                open: None,
                sequence: 0,
                random: u64::from(number) * 0x9E37_79B9 + u64::from(self.shared.volume),
                record: Record::default(),
            };
            let thread = thread::Builder::new().name(format!("client-{number}"));
            group.threads.push(thread.spawn(move || client.run())?);
        }
        self.groups().push(group);
        Ok(())
    }

    /// Requests answered so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::SeqCst)
    }

    /// An error as soon as anything went wrong.
    pub fn healthy(&self) -> anyhow::Result<()> {
        let state = self.shared.state();
        if let Some(first) = state.failures.first() {
            bail!("a client failed: {first}");
        }
        Ok(())
    }

    /// Waits until every client of the present attachment has had answers, `more` in all.
    pub fn wait_for(&self, more: u64) -> anyhow::Result<()> {
        let (start, goal) = (Instant::now(), self.answered() + more);
        wait::that(wait::LONG, &format!("{more} more requests are answered"), || {
            self.healthy()?;
            if let Some(since) = self.oldest()
                && since < start
            {
                return Ok(Err(format!("a request waits for {:?}", since.elapsed())));
            }
            let now = self.answered();
            Ok(if now >= goal {
                Ok(())
            } else {
                Err(format!("{} are missing", goal - now))
            })
        })
    }

    /// Since when the request that waits longest does, of those not superseded.
    fn oldest(&self) -> Option<Instant> {
        let groups = self.groups();
        let present = groups.iter().filter(|g| !g.superseded.load(Ordering::SeqCst));
        let waiting = present.flat_map(|g| g.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone());
        waiting.flatten().map(|(since, _)| since).min()
    }

    /// Ends it after the requests under way. None of those of the present attachment may stay without an answer;
    /// the clients of older ones have to have been failed or answered.
    pub fn stop(&self) -> anyhow::Result<Done> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let ended = wait::that(wait::LONG, "the last requests are answered", || {
            self.healthy()?;
            let groups = self.groups();
            let alive = groups.iter().enumerate().filter_map(|(number, group)| {
                let alive = group
                    .threads
                    .iter()
                    .filter(|thread| !thread.is_finished())
                    .count();
                (alive > 0).then(|| format!("{alive} of attachment {number} of {}", groups.len()))
            });
            let alive: Vec<String> = alive.collect();
            Ok(if alive.is_empty() {
                Ok(())
            } else {
                Err(format!("{alive:?}"))
            })
        });
        if ended.is_err() {
            self.cut();
        }
        ended?;
        let mut record = Record::default();
        for thread in self.groups().iter_mut().flat_map(|group| group.threads.drain(..)) {
            record.join(thread.join().ok().context("a client panicked")?);
        }
        self.healthy()?;
        Ok(Done {
            record,
            answered: self.answered(),
            reconnects: self.shared.reconnects.load(Ordering::SeqCst),
            longest: self.shared.state().longest,
        })
    }

    /// Reads every block of the record again and notes what it holds.
    pub fn read_all(
        &self,
        record: &mut Record,
        client: u16,
        mut read: impl FnMut(u64, &mut [u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        const AT_ONCE: usize = 64;
        let blocks: Vec<u64> = record.blocks().collect();
        for run in blocks.chunk_by(|one, next| next - one == 1) {
            for blocks in run.chunks(AT_ONCE) {
                let first = *blocks.first().context("an empty run")?;
                let begun = self.shared.now();
                let mut bytes = vec![0; blocks.len() * BLOCK];
                read(first * BLOCK as u64, &mut bytes).with_context(|| format!("reading block {first}"))?;
                let ended = Some(self.shared.now());
                for (block, bytes) in blocks.iter().zip(bytes.chunks(BLOCK)) {
                    let operation = Operation {
                        kind: Kind::Read,
                        value: value(self.shared.volume, *block, bytes)?,
                        begun,
                        ended,
                        client,
                    };
                    record.add(*block, operation);
                }
            }
        }
        Ok(())
    }

    fn cut(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for group in self.groups().iter() {
            let cutters = group.cutters.lock().unwrap_or_else(PoisonError::into_inner);
            cutters.iter().flatten().for_each(Cutter::cut);
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.cut();
    }
}

/// The value a block shows; an error when no write of this volume's crowd can have put it there.
fn value(volume: u16, block: u64, bytes: &[u8]) -> anyhow::Result<u64> {
    let value = block::number(block, bytes)?;
    ensure!(
        value == 0 || Stamp(value).volume() == u64::from(volume),
        "block {block} of volume {volume} holds {}",
        Stamp(value)
    );
    Ok(value)
}

/// One client: one request at a time.
struct Client {
    shared: Arc<Shared>,
    superseded: Arc<AtomicBool>,
    waiting: Waiting,
    cutters: Arc<Mutex<Vec<Option<Cutter>>>>,
    place: usize,
    number: u16,
    medium: Medium,
    open: Option<Open>,
    sequence: u32,
    random: u64,
    record: Record,
}

impl Client {
    fn run(mut self) -> Record {
        while !self.shared.stop.load(Ordering::SeqCst) {
            match self.step() {
                Ok(true) => thread::sleep(PAUSE),
                Ok(false) => break,
                Err(error) => {
                    let text = format!("client {}: {error:#}", self.number);
                    self.shared.state().failures.push(text);
                    break;
                }
            }
        }
        self.record
    }

    /// `false`: its attachment is no more.
    fn step(&mut self) -> anyhow::Result<bool> {
        let Some(mut open) = self.connection() else {
            return Ok(!self.superseded.load(Ordering::SeqCst));
        };
        match self.request(&mut open)? {
            Ok(()) => {
                self.shared.answered.fetch_add(1, Ordering::SeqCst);
                self.open = Some(open);
                Ok(true)
            }
            Err(_) if self.superseded.load(Ordering::SeqCst) || self.shared.stop.load(Ordering::SeqCst) => {
                Ok(false)
            }
            Err(Failure::Lost(_)) => {
                self.shared.reconnects.fetch_add(1, Ordering::SeqCst);
                Ok(true)
            }
            Err(failure) => bail!("a request failed: {failure}"),
        }
    }

    fn connection(&mut self) -> Option<Open> {
        if let Some(open) = self.open.take() {
            return Some(open);
        }
        let Ok(open) = self.medium.open() else {
            // Its engine is on its way.
            thread::sleep(AGAIN);
            return None;
        };
        let mut cutters = self.cutters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = cutters.get_mut(self.place) {
            *place = open.cutter();
        }
        Some(open)
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 9) % below.max(1)
    }

    fn only_reads(&self) -> bool {
        self.place >= CLIENTS - READERS
    }

    /// What a reader asks for: anything that was ever written and that nobody writes just now.
    fn quiet_block(&mut self) -> Range<u64> {
        let mut block = 0;
        for _ in 0..LOOKS {
            let end = self.window() + WINDOW;
            block = self.random(end);
            let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if !waiting
                .iter()
                .flatten()
                .any(|(_, blocks)| blocks.contains(&block))
            {
                break;
            }
        }
        block..block + 1
    }

    /// The first block of the window.
    fn window(&self) -> u64 {
        let moves = u64::try_from(self.shared.started.elapsed().as_millis() / MOVES.as_millis()).unwrap_or(0);
        let all = self.shared.blocks.saturating_sub(WINDOW + MOST).max(1);
        moves * (WINDOW / 2) % all
    }

    /// Blocks of the next request: in the window mostly, sometimes anywhere behind it.
    fn blocks(&mut self) -> Range<u64> {
        let window = self.window();
        let first = match self.random(5) {
            0 => self.random(window + 1),
            _ => window + self.random(WINDOW),
        };
        let count = match self.random(4) {
            0 => 1 + self.random(MOST),
            _ => 1,
        };
        first..first + count
    }

    /// The inner error: it was not done, or nobody knows. The outer one: it was, and the volume is wrong.
    fn request(&mut self, open: &mut Open) -> anyhow::Result<Result<(), Failure>> {
        let (blocks, what) = if self.only_reads() {
            (self.quiet_block(), 2)
        } else {
            (self.blocks(), self.random(20))
        };
        let since = Instant::now();
        self.wait(Some((since, blocks.clone())));
        let done = match what {
            0 => Ok(open.flush()),
            1 => Ok(self.zero(open, blocks)),
            2..10 => self.read(open, blocks),
            _ => Ok(self.write(open, blocks)),
        };
        self.wait(None);
        if !self.superseded.load(Ordering::SeqCst) {
            let mut state = self.shared.state();
            state.longest = state.longest.max(since.elapsed());
        }
        done
    }

    fn wait(&self, since: Option<(Instant, Range<u64>)>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = waiting.get_mut(self.place) {
            *place = since;
        }
    }

    fn read(&mut self, open: &mut Open, blocks: Range<u64>) -> anyhow::Result<Result<(), Failure>> {
        let mut bytes = vec![0; usize::try_from(blocks.end - blocks.start)? * BLOCK];
        let begun = self.shared.now();
        if let Err(failure) = open.read(blocks.start * BLOCK as u64, &mut bytes) {
            return Ok(Err(failure));
        }
        let ended = Some(self.shared.now());
        for (block, bytes) in blocks.zip(bytes.chunks(BLOCK)) {
            let value = value(self.shared.volume, block, bytes)?;
            let client = self.number;
            self.record.add(
                block,
                Operation {
                    kind: Kind::Read,
                    value,
                    begun,
                    ended,
                    client,
                },
            );
        }
        Ok(Ok(()))
    }

    /// Zeroes those of the blocks, from the first on, that never were.
    fn zero(&mut self, open: &mut Open, blocks: Range<u64>) -> Result<(), Failure> {
        let mut state = self.shared.state();
        let fresh = blocks
            .clone()
            .take_while(|block| state.zeroed.insert(*block))
            .count();
        drop(state);
        if fresh == 0 {
            return open.flush();
        }
        let trim = self.random(2) == 0;
        let begun = self.shared.now();
        let done = open.zero(blocks.start * BLOCK as u64, fresh * BLOCK, trim);
        let ended = done.is_ok().then(|| self.shared.now());
        for block in blocks.take(fresh) {
            let (kind, value, client) = (Kind::Write, ZEROED, self.number);
            self.record.add(
                block,
                Operation {
                    kind,
                    value,
                    begun,
                    ended,
                    client,
                },
            );
        }
        done
    }

    fn write(&mut self, open: &mut Open, blocks: Range<u64>) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        let mut values = Vec::new();
        for block in blocks.clone() {
            self.sequence += 1;
            let value = Stamp::new(self.shared.volume, self.number, self.sequence).0;
            bytes.extend(block::fill(block, value));
            values.push(value);
        }
        let begun = self.shared.now();
        let done = open.write(blocks.start * BLOCK as u64, &bytes);
        // Refused or lost: it may have been done in part, or still be.
        let ended = done.is_ok().then(|| self.shared.now());
        for (block, value) in blocks.zip(values) {
            self.record.add(
                block,
                Operation {
                    kind: Kind::Write,
                    value,
                    begun,
                    ended,
                    client: self.number,
                },
            );
        }
        done
    }
}
