//! Saying a thing once.
//!
//! What goes wrong a thousand times a second fills a log and hides the rest. Each reason is said when it comes up first,
//! and again after a pause, with how often it came up meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use stor_replication::time::Time;

/// Between two lines about the same.
const PAUSE: Duration = Duration::from_mins(1);

/// Reasons remembered; with more, the oldest is forgotten, and said again if it comes up.
const MOST: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub struct Quiet {
    said: BTreeMap<String, Said>,
}

#[derive(Debug)]
struct Said {
    at: Time,
    since: u64,
}

impl Quiet {
    /// `Some`: it is to be said now, with how often it came up since it was said last, this time included.
    pub fn say(&mut self, now: Time, reason: &str) -> Option<u64> {
        if let Some(said) = self.said.get_mut(reason) {
            said.since += 1;
            if now.since(said.at) < PAUSE {
                return None;
            }
            said.at = now;
            return Some(std::mem::take(&mut said.since));
        }
        if self.said.len() >= MOST {
            let oldest = self.said.iter().min_by_key(|(_, said)| said.at);
            if let Some(oldest) = oldest.map(|(reason, _)| reason.clone()) {
                self.said.remove(&oldest);
            }
        }
        self.said.insert(reason.to_owned(), Said { at: now, since: 0 });
        Some(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time(Duration::from_secs(seconds))
    }

    #[test]
    fn a_reason_is_said_once_and_then_with_its_count() {
        let mut quiet = Quiet::default();
        assert_eq!(quiet.say(at(0), "full"), Some(1));
        for _ in 0..999 {
            assert_eq!(quiet.say(at(1), "full"), None);
        }
        assert_eq!(quiet.say(at(1), "broken"), Some(1), "another reason is news");
        assert_eq!(quiet.say(at(60), "full"), Some(1000));
        assert_eq!(quiet.say(at(61), "full"), None);
    }

    #[test]
    fn it_remembers_only_so_many() {
        let mut quiet = Quiet::default();
        for reason in 0..100 {
            assert_eq!(quiet.say(at(reason), &reason.to_string()), Some(1));
        }
        assert!(quiet.said.len() <= MOST);
        assert_eq!(quiet.say(at(100), "99"), None);
    }
}
