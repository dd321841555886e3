//! Questions to the catalogue: those of the volume's task, and those it relays for the engine.

use std::time::Duration;

use stor_replication::catalogue::Change;
use stor_replication::ids::Epoch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::engine::STRANGER;
use super::{Purpose, VolumeTask, rank};
use crate::agent::ask::Reply;
use crate::agent::row::{self, Volume};
use crate::control::ToEngine;

/// Proposals of one engine that are open at once. It has one.
const OPEN_PROPOSALS: usize = 32;

/// Between questions that were refused for good: the desired state should change before.
const ASK_AGAIN: Duration = Duration::from_secs(2);

impl VolumeTask {
    /// Takes a row from an answer, unless a later one is known.
    pub(super) fn learn(&mut self, volume: &Volume) {
        if self
            .latest
            .as_ref()
            .is_none_or(|latest| rank(volume) > rank(latest))
        {
            self.take_row(volume.clone());
        }
    }

    pub(super) fn relay(&mut self, id: u64, change: Change) {
        if self.relayed.contains_key(&id) {
            return;
        }
        if self.relayed.len() >= OPEN_PROPOSALS {
            tracing::error!(volume = %self.volume, "the engine has too many open proposals");
            self.lose_link(STRANGER);
            return;
        }
        // The rights are the agent's and the controllers' business.
        if let Change::Attach { .. } | Change::Restart { .. } | Change::Detach { .. } = change {
            tracing::error!(volume = %self.volume, ?change, "the engine asks for what is not its business");
            return;
        }
        let purpose = Purpose::Engine {
            id,
            change: change.clone(),
        };
        let handle = self.ask(purpose, change);
        self.relayed.insert(id, handle);
    }

    pub(super) fn ask_ours(&mut self, change: Change) {
        self.asking = true;
        self.ask(Purpose::Ours(change.clone()), change);
    }

    pub(super) fn ask(&mut self, purpose: Purpose, change: Change) -> AbortHandle {
        let (asker, volume) = (self.context.asker.clone(), self.volume);
        self.questions.spawn(async move {
            loop {
                // No answer any more: the agent ends.
                let reply = asker.ask(volume, change.clone()).await.ok()?;
                match (&purpose, &reply) {
                    // No outcome is ever made up, and this is none: the engine waits for one.
                    (Purpose::Engine { .. }, Reply::Refused { volume: None, .. }) => {
                        tokio::time::sleep(ASK_AGAIN).await;
                    }
                    _ => return Some((purpose, reply)),
                }
            }
        })
    }

    pub(super) fn answered(&mut self, purpose: Purpose, reply: Reply) {
        let volume = match &reply {
            Reply::Row(volume) => Some(volume.clone()),
            Reply::Refused { volume, .. } => volume.clone(),
        };
        if let Some(volume) = &volume {
            self.learn(volume);
        }
        match purpose {
            Purpose::Engine { id, change } => {
                self.relayed.remove(&id);
                let Some(volume) = volume else {
                    return;
                };
                let refusal = match &reply {
                    Reply::Refused { .. } => Some(row::refusal(&volume.row, &change)),
                    Reply::Row(_) => None,
                };
                let row = volume.row;
                self.send(&ToEngine::Outcome { id, row, refusal });
            }
            Purpose::Ours(change) => {
                self.asking = false;
                let Reply::Refused { code, message, .. } = reply else {
                    self.refused.clear();
                    if let Change::Restart { expect, .. } = change
                        && self.used == Epoch(u64::MAX)
                    {
                        // The note of the last epoch could not be read. The one made just now is unused.
                        self.used = expect;
                    }
                    return;
                };
                self.ask_not_before = Instant::now() + ASK_AGAIN;
                // One about a row that has moved on says nothing about what happens now.
                if !volume.is_some_and(|volume| has_moved_on(&volume, &change)) {
                    self.refused = format!("the catalogue refused ({code}): {message}");
                }
                if let Change::Detach { expect, .. } = change
                    && matches!(code.as_str(), "not-found" | "not-attached" | "not-owner")
                {
                    self.given_up = Some(expect);
                }
            }
        }
    }
}

fn has_moved_on(volume: &Volume, change: &Change) -> bool {
    match change {
        Change::Restart { expect, .. } | Change::Detach { expect, .. } => volume.row.view.epoch > *expect,
        _ => false,
    }
}
