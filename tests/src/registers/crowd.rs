//! Many clients that read and write the same blocks of one volume at the same time, each over a connection of its
//! own, and note what they did and when.
//!
//! They work on a window that moves over the volume, so that blocks are both fought for and, again and again,
//! written for the first time. When the volume is taken over by another node, new clients begin there; those of
//! the old attachment go on until it fails them: what it still answers is judged like everything else.
//!
//! Requests wait without a deadline. The longest waits are told, never judged.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::client::{CLIENTS, Client, Shared, Waiting, value};
use super::record::{Kind, Operation, Record};
use crate::block::BLOCK;
use crate::medium::Medium;
use crate::nbd::Cutter;
use crate::wait;

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
