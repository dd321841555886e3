//! One client of a crowd: one request at a time, over a connection of its own, each noted with its times.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use super::check::ZEROED;
use super::record::{Kind, Operation, Record, Stamp};
use crate::block::{self, BLOCK};
use crate::medium::{Medium, Open};
use crate::nbd::{Cutter, Failure};

/// Clients of each attachment.
pub(super) const CLIENTS: usize = 6;
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

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) started: Instant,
    pub(super) volume: u16,
    pub(super) blocks: u64,
    pub(super) stop: AtomicBool,
    pub(super) answered: AtomicU64,
    pub(super) reconnects: AtomicU64,
    pub(super) state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Blocks that were zeroed, or are about to be: once each, for the judge's sake.
    pub(super) zeroed: BTreeSet<u64>,
    pub(super) failures: Vec<String>,
    pub(super) longest: Duration,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos())
            .unwrap_or(u64::MAX)
            .max(1)
    }
}

/// For each client of an attachment, since when it waits for an answer, and the blocks that is about.
pub(super) type Waiting = Arc<Mutex<Vec<Option<(Instant, Range<u64>)>>>>;

/// The value a block shows; an error when no write of this volume's crowd can have put it there.
pub(super) fn value(volume: u16, block: u64, bytes: &[u8]) -> anyhow::Result<u64> {
    let value = block::number(block, bytes)?;
    ensure!(
        value == 0 || Stamp(value).volume() == u64::from(volume),
        "block {block} of volume {volume} holds {}",
        Stamp(value)
    );
    Ok(value)
}

/// One client: one request at a time.
pub(super) struct Client {
    pub(super) shared: Arc<Shared>,
    pub(super) superseded: Arc<AtomicBool>,
    pub(super) waiting: Waiting,
    pub(super) cutters: Arc<Mutex<Vec<Option<Cutter>>>>,
    pub(super) place: usize,
    pub(super) number: u16,
    pub(super) medium: Medium,
    pub(super) open: Option<Open>,
    pub(super) sequence: u32,
    pub(super) random: u64,
    pub(super) record: Record,
}

impl Client {
    pub(super) fn run(mut self) -> Record {
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
