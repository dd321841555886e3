//! How an engine ends: in order, superseded, or because it can't go on.

use super::locks::Locks;
use super::message::{Message, Purpose};
use super::{Command, Engine, FailReason, IoError, Phase, STOP_DEADLINE};
use crate::ids::{IoId, ReplicaId};
use crate::time::Time;
use crate::wire::Kind;

impl<P: Clone> Engine<P> {
    /// Ends in order: no new requests, everything flushed, clean regions declared, leases given back.
    pub(super) fn begin_stop(&mut self, now: Time) {
        match self.phase {
            Phase::Starting { .. } | Phase::Active => {
                self.phase = match self.phase {
                    // Nothing was written under this epoch: it ends as the last one did.
                    Phase::Starting { .. } => Phase::Stopped {
                        clean: self.row.clean_before,
                    },
                    _ => Phase::Stopping {
                        since: now,
                        flush: None,
                    },
                };
                self.stirred = true;
            }
            Phase::Failed(_) => {
                self.phase = Phase::Stopped { clean: false };
                self.stirred = true;
            }
            Phase::Stopping { .. } | Phase::Stopped { .. } | Phase::Fenced => {}
        }
    }

    pub(super) fn tend_stop(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        let Phase::Stopping { since, flush } = self.phase else {
            return;
        };
        if now.since(since) > STOP_DEADLINE {
            self.end(Phase::Stopped { clean: false }, IoError::Fenced, out);
            return;
        }
        match flush {
            // A replica that may just have joined has to be flushed and told with the others.
            None if self.has_client_io() || self.copies_to_members() || self.proposal.is_some() => {}
            None => {
                let io = self.own_flush(now, out);
                self.phase = Phase::Stopping {
                    since,
                    flush: Some(io),
                };
            }
            Some(io) if self.is_pending(io) && !defect!(StopUnflushed) => {}
            Some(_) => {
                let clean = self.unequal.is_clear();
                let members: Vec<ReplicaId> = self.members().map(|(replica, _)| replica).collect();
                for replica in members {
                    if clean {
                        self.send(now, replica, Message::plain(Kind::Clean), Purpose::Ping, out);
                    }
                    self.send(now, replica, Message::plain(Kind::Close), Purpose::Ping, out);
                }
                self.phase = Phase::Stopped { clean };
            }
        }
    }

    /// A newer epoch has the volume, or the right to this one is gone: nothing is acknowledged any more.
    pub(super) fn fence(&mut self, out: &mut Vec<Command<P>>) {
        self.end(Phase::Fenced, IoError::Fenced, out);
    }

    pub(super) fn fail(&mut self, reason: FailReason, out: &mut Vec<Command<P>>) {
        self.end(Phase::Failed(reason), IoError::Failed, out);
    }

    pub(super) fn end(&mut self, phase: Phase, error: IoError, out: &mut Vec<Command<P>>) {
        self.phase = phase;
        for (replica, peer) in &mut self.peers {
            peer.close(*replica, out);
        }
        self.copies.clear();
        self.locks = Locks::default();
        let unanswered: Vec<IoId> = self.unanswered().collect();
        self.ios.clear();
        for io in unanswered {
            out.push(Command::Complete {
                io,
                result: Err(error),
            });
        }
        self.backlog.clear();
        self.unrepaired.clear();
        self.held.clear();
        self.snapshots.end();
        self.scrubs.end();
        self.stirred = true;
    }
}
