//! What is said about a catalogue that was restored, or is older than the data.

use std::collections::BTreeSet;

use stor_api::objects::{Check, Severity};

use super::health::{Facts, check};
use crate::behind::{self, Findings, Standing};
use crate::catalogue::row::VolumePhase;

/// Volumes named one by one; the rest of a long list is counted.
const NAMED: usize = 100;

/// Locked volumes, replicas that nobody knows, and what is still to be heard.
pub(super) fn checks(facts: &Facts<'_>) -> Vec<Check> {
    let restored = facts.history.as_ref().filter(|history| history.unsettled);
    let doubts = facts.rows.iter().any(|row| row.doubt);
    let id = facts
        .history
        .as_ref()
        .map(|history| history.id.to_string())
        .unwrap_or_default();
    let findings = if restored.is_some() || doubts {
        Findings::of(facts.node_rows, facts.seen, &id)
    } else {
        Findings::default()
    };
    let mut checks = Vec::new();
    for row in facts.rows.iter().filter(|row| row.phase != VolumePhase::Deleting) {
        let found = if row.doubt {
            match behind::standing(row, &findings) {
                // About to be unlocked.
                Standing::Right => continue,
                Standing::Gone => Some((
                    "VOLUME_GONE",
                    "every node was heard, and nothing is left of its replicas: it was deleted after the backup"
                        .to_owned(),
                    format!("forget it: storctl volume delete {}", row.name),
                )),
                Standing::Behind(why) => Some(("CATALOGUE_BEHIND", why, adopt(&row.name))),
                Standing::Waits(what) => Some((
                    "CATALOGUE_BEHIND",
                    format!("not all that may know more of it was heard: {}", what.join("; ")),
                    format!(
                        "bring these back; or decide without them: storctl volume adopt {} --force",
                        row.name
                    ),
                )),
            }
        } else {
            behind::in_short(row, facts.seen).map(|why| ("CATALOGUE_BEHIND", why, adopt(&row.name)))
        };
        if let Some((code, why, remedy)) = found {
            let message = format!("volume {} is locked: {why}", row.name);
            checks.push(check(
                code,
                Severity::Error,
                message,
                format!("volume/{}", row.name),
                &remedy,
            ));
        }
    }
    let known: BTreeSet<_> = facts.rows.iter().map(|row| row.row.volume).collect();
    for (volume, found) in findings.unknown(&known).into_iter().take(NAMED) {
        let nodes: Vec<&str> = found.iter().map(|found| found.node).collect();
        checks.push(check(
            "REPLICA_UNKNOWN",
            Severity::Warning,
            format!(
                "replicas of a volume that the catalogue does not know are on {}; they are kept",
                nodes.join(", ")
            ),
            format!("volume/{volume}"),
            &format!("give it a name: storctl volume adopt NAME --id {volume}"),
        ));
    }
    if let Some(history) = restored {
        let waits = if findings.unheard.is_empty() {
            String::new()
        } else {
            format!("; {}", findings.unheard.join("; "))
        };
        checks.push(check(
            "CATALOGUE_RESTORED",
            Severity::Warning,
            format!(
                "the catalogue was restored from a backup at {} and does not know yet what happened after it{waits}",
                history.restored.as_deref().unwrap_or("?")
            ),
            "cluster".to_owned(),
            "bring every node back and settle the volumes named here; then this goes away by itself",
        ));
    }
    checks
}

fn adopt(name: &str) -> String {
    format!(
        "see what its replicas say: storctl volume adopt {name} --dry-run; without --dry-run the catalogue takes it over"
    )
}
