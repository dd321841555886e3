//! Which controller to dial next.
//!
//! The controllers given on the command line and those the last session named are taken in turn; a hint
//! where the leader is goes first. One that went silent comes last for a while, and no hint leads there: the
//! others name a leader that hangs until they have elected another. The list of the last session is kept on disk: the cluster may have
//! moved away from every address on the command line.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::durable;

/// Pause after the first round without success. A controller that has just started answers within it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause: how late a node may be back after the controllers are, and with it a write that waits
/// for a member's removal while a new leader is elected. Two seconds added over three to such a stall; a
/// thousand nodes at this pace are two thousand refused connections a second, spread over the controllers.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Hints followed one after the other without a pause: enough for a leader that changes meanwhile, too
/// few for two controllers that name each other to keep the node busy.
const HINTS_IN_A_ROW: u32 = 3;

/// How long a controller that went silent is dialled only if all others are silent, too. Twice the longest wait of a
/// candidate: by then the others have elected a leader, if they can.
const SILENT: Duration = Duration::from_secs(3);

/// The most addresses remembered.
const MOST: usize = 16;

/// The next address and the pause before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Next {
    /// To dial.
    pub address: String,
    /// To wait before.
    pub pause: Duration,
}

/// The choice.
#[derive(Debug)]
pub struct Dialer {
    given: Vec<String>,
    file: PathBuf,
    learnt: Vec<String>,
    turn: VecDeque<String>,
    hint: Option<String>,
    hints_in_a_row: u32,
    failures: u32,
    /// Since when addresses give no answer.
    silent: BTreeMap<String, Instant>,
}

impl Dialer {
    /// `given`: from the command line. `file`: where the list of the last session is kept.
    pub fn new(given: Vec<String>, file: PathBuf) -> Self {
        let learnt = load(&file);
        let mut dialer = Self {
            given,
            file,
            learnt,
            turn: VecDeque::new(),
            hint: None,
            hints_in_a_row: 0,
            failures: 0,
            silent: BTreeMap::new(),
        };
        dialer.deal();
        dialer
    }

    fn deal(&mut self) {
        self.turn.clear();
        for address in self.learnt.iter().chain(&self.given) {
            if !self.turn.contains(address) {
                self.turn.push_back(address.clone());
            }
        }
    }

    /// What to dial next.
    pub fn choose(&mut self) -> Next {
        self.silent.retain(|_, since| since.elapsed() < SILENT);
        if let Some(address) = self.hint.take()
            && self.hints_in_a_row < HINTS_IN_A_ROW
            && !self.silent.contains_key(&address)
        {
            self.hints_in_a_row += 1;
            return Next {
                address,
                pause: Duration::ZERO,
            };
        }
        self.hints_in_a_row = 0;
        let pause = self.pause();
        // On to the next that is not silent; with all silent, to the next.
        let next = self
            .turn
            .iter()
            .position(|address| !self.silent.contains_key(address));
        let ahead = next.unwrap_or(0) + 1;
        self.turn.rotate_left(ahead.min(self.turn.len()));
        let address = self.turn.back().cloned().unwrap_or_default();
        Next { address, pause }
    }

    fn pause(&self) -> Duration {
        let rounds = self.failures / u32::try_from(self.turn.len().max(1)).unwrap_or(u32::MAX);
        if self.failures == 0 {
            return Duration::ZERO;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << rounds.min(5)).min(LONGEST_PAUSE);
        // Between half and the whole: nodes that lost their controller together do not come back together.
        let share = u32::try_from(Uuid::new_v4().as_u128() % 512).unwrap_or(0) + 512;
        pause * share / 1024
    }

    /// The last one did not answer, or was no leader and knew none.
    pub fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// The last one gave no answer, or has stopped to: another one first.
    pub fn silent(&mut self, address: &str) {
        self.failed();
        if self.silent.len() < MOST || self.silent.contains_key(address) {
            self.silent.insert(address.to_owned(), Instant::now());
        }
    }

    /// The last one said who leads.
    pub fn leads(&mut self, address: String) {
        self.failed();
        self.hint = Some(address);
    }

    /// A session began; the controller named all controllers. What is to be kept of it, and where: for a thread that may wait
    /// for the disk.
    pub fn welcomed(&mut self, mut controllers: Vec<String>) -> Option<Keep> {
        self.failures = 0;
        self.hints_in_a_row = 0;
        controllers.truncate(MOST);
        controllers.retain(|address| !address.is_empty());
        if controllers.is_empty() || controllers == self.learnt {
            return None;
        }
        self.learnt = controllers;
        self.deal();
        Some(Keep {
            file: self.file.clone(),
            controllers: self.learnt.clone(),
        })
    }
}

/// A list of controllers to be kept.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub struct Keep {
    file: PathBuf,
    controllers: Vec<String>,
}

impl Keep {
    /// Writes it. Waits for the disk.
    pub fn write(self) {
        let saved = serde_json::to_vec(&self.controllers)
            .map_err(anyhow::Error::from)
            .and_then(|text| Ok(durable::replace(&self.file, &text)?));
        if let Err(error) = saved {
            tracing::warn!(%error, "the addresses of the controllers could not be kept");
        }
    }
}

/// The list is a convenience: without it the addresses of the command line are there.
fn load(file: &std::path::Path) -> Vec<String> {
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!(path = %file.display(), %error, "the addresses of the controllers could not be read");
            return Vec::new();
        }
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!(path = %file.display(), %error, "the kept addresses of the controllers are damaged");
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialer(addresses: &[&str]) -> Dialer {
        let given = addresses.iter().map(|&address| address.to_owned()).collect();
        Dialer::new(given, PathBuf::from("/nonexistent/controllers.json"))
    }

    /// Long after.
    fn forget_when(dialer: &mut Dialer) {
        for since in dialer.silent.values_mut() {
            *since = since.checked_sub(SILENT * 2).unwrap();
        }
    }

    #[test]
    fn one_that_went_silent_is_passed_over_though_the_others_name_it() {
        let mut dialer = dialer(&["a", "b", "c"]);
        assert_eq!(dialer.choose().address, "a");
        dialer.silent("a");
        for expected in ["b", "c", "b", "c"] {
            assert_eq!(dialer.choose().address, expected);
            dialer.leads("a".to_owned());
        }
        // The others have elected one of theirs.
        dialer.leads("c".to_owned());
        assert_eq!(dialer.choose().address, "c");
        dialer.failed();
        // It may be back by then.
        forget_when(&mut dialer);
        dialer.leads("a".to_owned());
        assert_eq!(dialer.choose().address, "a");
    }

    #[test]
    fn with_all_silent_all_are_dialled_in_turn() {
        let mut dialer = dialer(&["a", "b"]);
        let mut dialled = Vec::new();
        for _ in 0..4 {
            let next = dialer.choose().address;
            dialer.silent(&next);
            dialled.push(next);
        }
        assert_eq!(dialled, ["a", "b", "a", "b"]);
        let mut alone = self::dialer(&["a"]);
        alone.silent("a");
        assert_eq!(alone.choose().address, "a");
    }
}
