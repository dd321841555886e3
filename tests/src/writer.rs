//! A client that never stops writing and reading back. Every block says which write it is of, and what was
//! acknowledged is kept outside of the volume, so that a lost, torn, misplaced or stale block is seen.
//!
//! Requests wait without a deadline. The longest wait is told, never judged.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::block::{self, BLOCK};
use crate::history::History;
use crate::medium::{Medium, Open};
use crate::nbd::{Cutter, Failure};
use crate::wait;

/// Requests at the same time, each by a thread with a connection of its own.
const THREADS: usize = 4;
/// Slots of a writer that was not told otherwise: 8 MiB.
pub const SLOTS: usize = 2048;
/// One request in so many is a read of something written before.
const READ_EVERY: u64 = 4;
/// One request in so many is a flush.
const FLUSH_EVERY: u64 = 64;
/// Between requests of a thread: a steady load that leaves the machine room for the cluster.
const PAUSE: Duration = Duration::from_millis(2);
/// Between attempts to reach a server that is not there.
const AGAIN: Duration = Duration::from_millis(20);

/// What a lost connection means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLoss {
    /// A failure of the test.
    Fail,
    /// Connect again to the same place, and go on.
    Reconnect,
    /// The end, as for a client whose server was fenced. So is an error.
    End,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    reads: AtomicU64,
    reconnects: AtomicU64,
    ended: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: Vec<String>,
    longest: Duration,
    since: [Option<Instant>; THREADS],
    cutters: [Option<Cutter>; THREADS],
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A writer that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<History>>,
}

impl Writer {
    /// Begins on a volume never written.
    pub fn start(medium: &Medium, on_loss: OnLoss) -> anyhow::Result<Self> {
        Self::go_on(medium, on_loss, History::new(0, SLOTS))
    }

    /// Begins on a volume that holds this.
    pub fn go_on(medium: &Medium, on_loss: OnLoss, history: History) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for (number, history) in history.split(THREADS).into_iter().enumerate() {
            let one = One {
                shared: Arc::clone(&shared),
                number,
                medium: medium.clone(),
                on_loss,
                open: None,
                history,
                random: number as u64 * 7919 + 1,
            };
            threads.push(
                thread::Builder::new()
                    .name(format!("writer-{number}"))
                    .spawn(move || one.run())?,
            );
        }
        Ok(Self { shared, threads })
    }

    /// Writes acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// Times a connection was made again.
    pub fn reconnects(&self) -> u64 {
        self.shared.reconnects.load(Ordering::SeqCst)
    }

    /// An error as soon as anything went wrong.
    pub fn healthy(&self) -> anyhow::Result<()> {
        let state = self.shared.state();
        if let Some(first) = state.failures.first() {
            bail!("the writer failed: {first}");
        }
        Ok(())
    }

    /// Waits for `more` acknowledged writes from now on.
    pub fn wait_for(&self, more: u64) -> anyhow::Result<()> {
        let goal = self.acknowledged() + more;
        wait::that(
            wait::LONG,
            &format!("{more} more writes are acknowledged"),
            || {
                self.healthy()?;
                let now = self.acknowledged();
                Ok(if now >= goal {
                    Ok(())
                } else {
                    Err(format!("{} are missing", goal - now))
                })
            },
        )
    }

    /// Watches it for a while: I/O has to wait, without an answer of any kind.
    pub fn has_to_wait(&self, while_: Duration) -> anyhow::Result<()> {
        let before = self.acknowledged();
        thread::sleep(while_);
        self.healthy()?;
        let after = self.acknowledged();
        ensure!(
            before == after,
            "{} writes were acknowledged by nobody",
            after - before
        );
        ensure!(
            self.shared.state().since.iter().all(Option::is_some),
            "not every thread waits for an answer"
        );
        Ok(())
    }

    /// The longest a request took since the last call, those under way included.
    pub fn longest(&self) -> Duration {
        let mut state = self.shared.state();
        let waiting = state.since.iter().flatten().map(Instant::elapsed).max();
        let longest = std::mem::take(&mut state.longest);
        longest.max(waiting.unwrap_or_default())
    }

    /// Ends it after the requests under way, and tells what the volume must hold.
    pub fn stop(mut self) -> anyhow::Result<History> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let ended = wait::until(wait::LONG, "the writer's last requests are answered", || {
            self.healthy()?;
            Ok(self.threads.iter().all(JoinHandle::is_finished))
        });
        if ended.is_err() {
            self.cut();
        }
        ended.and_then(|()| self.join())
    }

    /// Waits until every thread has lost its server or had an error ([`OnLoss::End`]). What was under way stays
    /// unknown.
    pub fn ended(mut self) -> anyhow::Result<History> {
        let goal = self.threads.len() as u64;
        let ended = wait::until(wait::LONG, "the writer's server is gone", || {
            self.healthy()?;
            Ok(self.shared.ended.load(Ordering::SeqCst) == goal)
        });
        if ended.is_err() {
            self.cut();
        }
        ended.and_then(|()| self.join())
    }

    fn join(&mut self) -> anyhow::Result<History> {
        let mut parts = Vec::new();
        for thread in self.threads.drain(..) {
            parts.push(thread.join().ok().context("a thread of the writer panicked")?);
        }
        self.healthy()?;
        println!(
            "writer: {} writes acknowledged, {} reads checked, {} reconnects",
            self.acknowledged(),
            self.shared.reads.load(Ordering::SeqCst),
            self.reconnects()
        );
        Ok(History::join(parts))
    }

    fn cut(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for cutter in self.shared.state().cutters.iter().flatten() {
            cutter.cut();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.cut();
    }
}

/// One thread: one request at a time, on slots of its own.
struct One {
    shared: Arc<Shared>,
    number: usize,
    medium: Medium,
    on_loss: OnLoss,
    open: Option<Open>,
    history: History,
    random: u64,
}

enum Step {
    GoOn,
    End,
}

impl One {
    fn run(mut self) -> History {
        let mut count = 0;
        while !self.shared.stop.load(Ordering::SeqCst) {
            count += 1;
            match self.step(count) {
                Ok(Step::GoOn) => thread::sleep(PAUSE),
                Ok(Step::End) => break,
                Err(error) => {
                    self.shared.state().failures.push(format!("{error:#}"));
                    break;
                }
            }
        }
        self.shared.ended.fetch_add(1, Ordering::SeqCst);
        self.history
    }

    fn step(&mut self, count: u64) -> anyhow::Result<Step> {
        if self.open.is_none() && !self.connect()? {
            return Ok(Step::GoOn);
        }
        let Some(mut open) = self.open.take() else {
            bail!("there is no connection");
        };
        let done = self.request(count, &mut open);
        match done {
            Ok(()) => {
                self.open = Some(open);
                Ok(Step::GoOn)
            }
            Err(Trouble::Wrong(error)) => Err(error),
            Err(Trouble::Medium(failure)) => match (self.on_loss, failure) {
                (OnLoss::End, _) => Ok(Step::End),
                (OnLoss::Reconnect, Failure::Lost(_)) => {
                    self.shared.reconnects.fetch_add(1, Ordering::SeqCst);
                    Ok(Step::GoOn)
                }
                // Cut by us at the end.
                (_, Failure::Lost(_)) if self.shared.stop.load(Ordering::SeqCst) => Ok(Step::End),
                (_, failure) => bail!("a request failed: {failure}"),
            },
        }
    }

    /// `false`: not yet.
    fn connect(&mut self) -> anyhow::Result<bool> {
        match self.medium.open() {
            Ok(open) => {
                let mut state = self.shared.state();
                if let Some(place) = state.cutters.get_mut(self.number) {
                    *place = open.cutter();
                }
                drop(state);
                self.open = Some(open);
                Ok(true)
            }
            Err(_) if self.on_loss == OnLoss::Reconnect => {
                thread::sleep(AGAIN);
                Ok(false)
            }
            Err(error) => Err(error).with_context(|| format!("opening {:?}", self.medium)),
        }
    }

    fn request(&mut self, count: u64, open: &mut Open) -> Result<(), Trouble> {
        self.begin();
        let done = if count.is_multiple_of(FLUSH_EVERY) {
            open.flush().map_err(Trouble::Medium)
        } else if count.is_multiple_of(READ_EVERY) {
            self.read(open)
        } else {
            self.write(open)
        };
        self.end();
        done
    }

    fn write(&mut self, open: &mut Open) -> Result<(), Trouble> {
        let slot = self.slot();
        let number = self.history.send(slot)?;
        open.write(slot * BLOCK as u64, &block::fill(slot, number))
            .map_err(Trouble::Medium)?;
        self.history.acknowledged(slot, number)?;
        self.shared.acknowledged.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn read(&mut self, open: &mut Open) -> Result<(), Trouble> {
        let slot = self.slot();
        let mut bytes = [0; BLOCK];
        open.read(slot * BLOCK as u64, &mut bytes)
            .map_err(Trouble::Medium)?;
        self.history.seen(slot, &bytes)?;
        self.shared.reads.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn slot(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let range = self.history.slots();
        range.start + self.random % (range.end - range.start).max(1)
    }

    fn begin(&self) {
        if let Some(since) = self.shared.state().since.get_mut(self.number) {
            *since = Some(Instant::now());
        }
    }

    fn end(&self) {
        let mut state = self.shared.state();
        let took = state
            .since
            .get_mut(self.number)
            .and_then(Option::take)
            .map(|since| since.elapsed());
        state.longest = state.longest.max(took.unwrap_or_default());
    }
}

enum Trouble {
    /// The request was not done.
    Medium(Failure),
    /// It was done, and the volume is wrong.
    Wrong(anyhow::Error),
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Self::Wrong(error)
    }
}
