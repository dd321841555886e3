//! Clients of a volume that write, zero, read and flush, each on blocks of its own, until the power goes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, bail};
use stor_tests::block::BLOCK;
use stor_tests::lossy::chance::{Chance, Keeps};
use stor_tests::medium::Medium;
use stor_tests::nbd::{FUA, Failure, NO_HOLE, Nbd};
use stor_tests::wait;

use super::ledger::Ledger;

/// How a client goes about durability: one request in so many is a flush, one write in so many durable by itself;
/// 0 is never.
#[derive(Clone, Copy, Debug)]
struct Habit {
    flush: u64,
    fua: u64,
}

/// One client each.
const HABITS: [Habit; 4] = [
    Habit { flush: 6, fua: 0 },
    Habit { flush: 0, fua: 0 },
    Habit { flush: 40, fua: 3 },
    Habit { flush: 15, fua: 8 },
];

/// Blocks of a client: few, so that they are written again and again.
const BLOCKS: usize = 192;
/// Between the blocks of one client and the next: they share no region of 1 MiB, but each lies in several.
const APART: u64 = 1024;
const LONGEST: u64 = 4;
const PAUSE: Duration = Duration::from_millis(1);
/// While a server is not there yet.
const AGAIN: Duration = Duration::from_millis(50);

/// What the clients know of their blocks.
pub(crate) fn nothing_written() -> Vec<Ledger> {
    (0..)
        .zip(HABITS)
        .map(|(client, _)| Ledger::new(client * APART, BLOCKS))
        .collect()
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
}

/// Clients at work.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<anyhow::Result<Ledger>>>,
}

impl Load {
    /// Begins.
    pub(crate) fn start(medium: &Medium, ledgers: Vec<Ledger>, seed: u64) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut clients = Vec::new();
        for (number, (ledger, habit)) in (0..).zip(ledgers.into_iter().zip(HABITS)) {
            let mut client = Client {
                shared: Arc::clone(&shared),
                nbd: connect(medium)?,
                ledger,
                habit,
                chance: Chance::keeping(seed * 16 + number, Keeps::Nothing),
            };
            clients.push(thread::Builder::new().spawn(move || {
                client.run()?;
                Ok(client.ledger)
            })?);
        }
        Ok(Self { shared, clients })
    }

    /// Waits until so many requests were answered in all.
    pub(crate) fn wait_for(&self, answered: u64) -> anyhow::Result<()> {
        wait::until(wait::LONG, &format!("{answered} requests are answered"), || {
            if self.clients.iter().any(JoinHandle::is_finished) {
                bail!("a client ended");
            }
            Ok(self.shared.answered.load(Ordering::SeqCst) >= answered)
        })
    }

    /// Requests answered.
    pub(crate) fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::SeqCst)
    }

    /// Ends it after the requests under way.
    pub(crate) fn stop(self) -> anyhow::Result<Vec<Ledger>> {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.ended()
    }

    /// Waits until all clients have lost their server.
    pub(crate) fn ended(self) -> anyhow::Result<Vec<Ledger>> {
        wait::until(wait::LONG, "the clients end", || {
            Ok(self.clients.iter().all(JoinHandle::is_finished))
        })?;
        let join =
            |client: JoinHandle<anyhow::Result<Ledger>>| client.join().ok().context("a client panicked")?;
        self.clients.into_iter().map(join).collect()
    }
}

/// Reads everything, as a client that comes anew.
pub(crate) fn check(medium: &Medium, ledgers: &mut [Ledger], cut: bool) -> anyhow::Result<()> {
    let mut nbd = connect(medium)?;
    for ledger in ledgers {
        ledger.check(cut, |offset, into| Ok(nbd.read(offset, into)?))?;
    }
    Ok(())
}

fn connect(medium: &Medium) -> anyhow::Result<Nbd> {
    let Medium::Socket { path, export } = medium else {
        bail!("clients are made for sockets");
    };
    let mut last = None;
    let connected = wait::until(wait::LONG, "the volume's socket answers", || {
        last = Some(try_connect(path, export));
        if matches!(last, Some(Err(_))) {
            thread::sleep(AGAIN);
        }
        Ok(matches!(last, Some(Ok(_))))
    });
    match last {
        Some(Ok(nbd)) => Ok(nbd),
        Some(Err(error)) => Err(error).context("connecting"),
        None => connected.and_then(|()| bail!("never tried")),
    }
}

fn try_connect(path: &Path, export: &str) -> std::io::Result<Nbd> {
    Nbd::connect(path, export)
}

struct Client {
    shared: Arc<Shared>,
    nbd: Nbd,
    ledger: Ledger,
    habit: Habit,
    chance: Chance,
}

impl Client {
    fn run(&mut self) -> anyhow::Result<()> {
        while !self.shared.stop.load(Ordering::SeqCst) {
            match self.step() {
                Ok(()) => self.shared.answered.fetch_add(1, Ordering::SeqCst),
                Err(error) => {
                    return match error.downcast_ref::<Failure>() {
                        Some(Failure::Lost(_)) => Ok(()),
                        _ => Err(error),
                    };
                }
            };
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn every(&mut self, so_many: u64) -> bool {
        so_many > 0 && self.chance.below(so_many) == 0
    }

    fn step(&mut self) -> anyhow::Result<()> {
        if self.every(self.habit.flush) {
            self.nbd.flush()?;
            self.ledger.flushed();
            return Ok(());
        }
        let slots = self.ledger.slots();
        let count = 1 + self.chance.below(LONGEST);
        let first = slots.start + self.chance.below(slots.end - slots.start - count);
        let (offset, blocks) = (first * BLOCK as u64, usize::try_from(count)?);
        match self.chance.below(10) {
            0 | 1 => {
                let mut bytes = vec![0; blocks * BLOCK];
                self.nbd.read(offset, &mut bytes)?;
                self.ledger.seen(first, &bytes, false)
            }
            2 => {
                let durable = self.every(self.habit.fua);
                let mut flags = if durable { FUA } else { 0 };
                if self.chance.coin() {
                    flags |= NO_HOLE;
                }
                self.ledger.send_zeroes(first, blocks)?;
                self.nbd.zero_with(flags, offset, blocks * BLOCK)?;
                self.ledger.answered(first, blocks, durable)
            }
            _ => {
                let durable = self.every(self.habit.fua);
                let bytes = self.ledger.send(first, blocks)?;
                self.nbd
                    .write_with(if durable { FUA } else { 0 }, offset, &bytes)?;
                self.ledger.answered(first, blocks, durable)
            }
        }
    }
}
