//! Saying once why sessions end: a node that nobody registered, or that is refused for another reason, dials again twice a
//! second for as long as it runs.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines about the same.
const PAUSE: Duration = Duration::from_mins(1);
/// Reasons remembered; with more, the oldest is forgotten, and said again if it comes up.
const MOST: usize = 256;

/// What was said, and when.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    said: Mutex<BTreeMap<String, Said>>,
}

#[derive(Debug)]
struct Said {
    at: Instant,
    since: u64,
}

impl Quiet {
    /// `Some`: it is to be said now, with how often it came up since it was said last, this time included.
    pub(super) fn say(&self, now: Instant, reason: &str) -> Option<u64> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = said.get_mut(reason) {
            before.since += 1;
            if now.saturating_duration_since(before.at) < PAUSE {
                return None;
            }
            before.at = now;
            return Some(std::mem::take(&mut before.since));
        }
        if said.len() >= MOST {
            let oldest = said.iter().min_by_key(|(_, said)| said.at);
            if let Some(oldest) = oldest.map(|(reason, _)| reason.clone()) {
                said.remove(&oldest);
            }
        }
        said.insert(reason.to_owned(), Said { at: now, since: 0 });
        Some(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_said_once_and_then_with_its_count() {
        let (quiet, begin) = (Quiet::default(), Instant::now());
        assert_eq!(quiet.say(begin, "there is no node s9"), Some(1));
        for _ in 0..99 {
            assert_eq!(quiet.say(begin + PAUSE / 2, "there is no node s9"), None);
        }
        assert_eq!(quiet.say(begin, "there is no node s8"), Some(1));
        assert_eq!(quiet.say(begin + PAUSE, "there is no node s9"), Some(100));
        for other in 0..1000 {
            quiet.say(begin + PAUSE * 2, &other.to_string());
        }
        assert!(quiet.said.lock().unwrap().len() <= MOST);
    }
}
