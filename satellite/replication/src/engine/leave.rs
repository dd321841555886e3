//! Members that are to go: the catalogue marks them, the engine has them removed when it can do without them.
//!
//! Nothing forces it, unlike the removal of a member that is away: it waits until all is equal and every member that
//! stays is there and has just answered. A member that goes is gone from the row with its removal; should it be needed
//! meanwhile (the others are away), it is a member like any other.

use super::{Command, Engine, Phase};
use crate::catalogue::{Change, EjectReason};
use crate::ids::ReplicaId;
use crate::time::Time;

impl<P: Clone> Engine<P> {
    /// Asks the catalogue to let those go that are marked, if nothing speaks against it now.
    //= docs/replication.md#G2
    pub(super) fn let_leave(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        if self.phase != Phase::Active || !self.unequal.is_clear() {
            return;
        }
        let leaving = |replica: ReplicaId| self.row.replicas.get(&replica).is_some_and(|m| m.leaving);
        let gone: Vec<ReplicaId> = self
            .members()
            .map(|(id, _)| id)
            .filter(|id| leaving(*id))
            .collect();
        let stay = || self.members().filter(|(id, _)| !leaving(*id));
        let sound = stay().all(|(_, peer)| peer.is_ready() && peer.is_right());
        if gone.is_empty() || (!sound && !defect!(LeavesAtOnce)) || stay().count() < self.row.least_in_sync()
        {
            return;
        }
        if !self.one_vouches(now, |replica, _| !gone.contains(&replica), out) {
            return;
        }
        let members = gone.into_iter().map(|id| (id, EjectReason::Operator)).collect();
        let expect = self.row.view;
        self.propose(Change::Remove { expect, members }, None, out);
    }
}
