//! Which controller to dial next.
//!
//! The controllers given on the command line and those the last session named are taken in turn; a hint
//! where the leader is goes first. The list of the last session is kept on disk: the cluster may have
//! moved away from every address on the command line.

use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

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
        if let Some(address) = self.hint.take()
            && self.hints_in_a_row < HINTS_IN_A_ROW
        {
            self.hints_in_a_row += 1;
            return Next {
                address,
                pause: Duration::ZERO,
            };
        }
        self.hints_in_a_row = 0;
        let pause = self.pause();
        self.turn.rotate_left(usize::from(!self.turn.is_empty()));
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

    /// The last one said who leads.
    pub fn leads(&mut self, address: String) {
        self.failed();
        self.hint = Some(address);
    }

    /// A session began; the controller named all controllers.
    pub fn welcomed(&mut self, mut controllers: Vec<String>) {
        self.failures = 0;
        self.hints_in_a_row = 0;
        controllers.truncate(MOST);
        controllers.retain(|address| !address.is_empty());
        if controllers.is_empty() || controllers == self.learnt {
            return;
        }
        self.learnt = controllers;
        self.deal();
        let saved = serde_json::to_vec(&self.learnt)
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
