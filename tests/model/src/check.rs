//! Searches every history within a scope, the shorter ones first.

use std::num::NonZeroUsize;

use stateright::{Checker, HasDiscoveries, Model};

use crate::history;
use crate::properties;
use crate::protocol::Protocol;
use crate::rules::Rule;
use crate::scope::Scope;

/// What a search found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Different states, up to the names of replicas.
    pub states: usize,
    /// The shortest history that breaks a property.
    pub bad: Option<BadHistory>,
}

/// A history that breaks a property.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadHistory {
    /// Its steps, in words.
    pub lines: Vec<String>,
    /// What it breaks.
    pub broken: &'static str,
}

/// Searches all histories of a scope, without some of the rules. One thread: more would not find the
/// shortest history first, nor count the same states each time.
pub fn search(scope: &Scope, out: &[Rule]) -> Outcome {
    let checker = Protocol::without(*scope, out)
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .threads(NonZeroUsize::MIN.get())
        .spawn_bfs()
        .join();
    let model = Protocol::without(*scope, out);
    let bad = checker.discoveries().into_values().next().and_then(|path| {
        let broken = properties::broken(path.last_state())?;
        let start = model.init_states().into_iter().next()?;
        Some(BadHistory {
            lines: history::lines(&model, &start, &path.into_actions()),
            broken,
        })
    });
    Outcome {
        states: checker.unique_state_count(),
        bad,
    }
}
