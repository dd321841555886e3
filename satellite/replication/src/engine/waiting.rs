//! What a starting engine waits for, in words for whoever waits with it. Says nothing that decides anything.

use std::time::Duration;

use super::peer::{Link, Peer};
use super::{Engine, Phase, START_GRACE};
use crate::ids::ReplicaId;
use crate::time::Time;

impl<P: Clone> Engine<P> {
    /// For whom the engine waits before it can serve, and how long at most; `None` once it serves, and while it
    /// has only begun to ask.
    pub fn waits_for(&self, now: Time) -> Option<String> {
        let Phase::Starting { .. } = self.phase else {
            return None;
        };
        let away: Vec<(ReplicaId, &Peer<P>)> = self
            .members()
            .filter(|(_, peer)| matches!(peer.link, Link::Down { .. } | Link::Connecting { .. }))
            .collect();
        let reasons = [
            (!away.is_empty()).then(|| self.waits_for_absent(now, &away)),
            self.waits_with(
                |peer| matches!(peer.link, Link::Opening { .. }),
                "which still has to put an end to an earlier engine",
            ),
            self.waits_with(
                |peer| peer.is_open() && !peer.is_ready(),
                "which tells what was being written at the unclean end",
            ),
        ];
        let reasons: Vec<String> = reasons.into_iter().flatten().collect();
        (!reasons.is_empty()).then(|| format!("waiting {}", reasons.join("; ")))
    }

    fn waits_with(&self, which: impl Fn(&Peer<P>) -> bool, why: &str) -> Option<String> {
        let nodes = self.nodes(self.members().filter(|(_, peer)| which(peer)).map(|(id, _)| id));
        (!nodes.is_empty()).then(|| format!("for {nodes}, {why}"))
    }

    fn waits_for_absent(&self, now: Time, away: &[(ReplicaId, &Peer<P>)]) -> String {
        let nodes = self.nodes(away.iter().map(|(replica, _)| *replica));
        let (members, least) = (self.members().count(), self.row.least_in_sync());
        let left = members - away.len();
        if members == 1 {
            return format!("for {nodes}: the only replica in sync, not reached");
        }
        if left < least {
            return format!(
                "for {nodes}: in sync, not reached; {left} of {members} in sync can be reached, {least} must be"
            );
        }
        if self.row.clean_before || self.proposal.is_some() {
            return format!("for {nodes}: in sync, not reached; about to go on without");
        }
        let down = |peer: &Peer<P>| peer.down_since().map_or(Duration::ZERO, |since| now.since(since));
        let since_down = away.iter().map(|(_, peer)| down(peer)).min().unwrap_or_default();
        // The last one that is right about what may be unequal is spared a second time.
        let over = self.spared_since.map_or(since_down, |since| now.since(since));
        // Rounded up: 0 s would not be waiting.
        let seconds = START_GRACE.saturating_sub(over).as_millis().div_ceil(1000);
        format!("up to {seconds} s for {nodes}: in sync, not reached since an unclean end")
    }

    fn nodes(&self, replicas: impl Iterator<Item = ReplicaId>) -> String {
        let node = |replica| {
            let member = self.row.replicas.get(&replica);
            member.map_or("?", |member| member.node.as_str())
        };
        replicas.map(node).collect::<Vec<_>>().join(" and ")
    }
}
