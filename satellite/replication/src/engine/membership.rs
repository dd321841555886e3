//! The in-sync set: what the catalogue says of it, and what the engine asks the catalogue for.

use std::collections::BTreeSet;
use std::time::Duration;

use super::message::{Message, Purpose};
use super::peer::Peer;
use super::{Command, Engine, FailReason, Phase, Proposal, START_GRACE, UNREACHABLE_AFTER};
use crate::body::Body;
use crate::catalogue::{Change, EjectReason, MemberState, Refusal, VolumeRow};
use crate::ids::{ConfigSeq, Loss, ReplicaId};
use crate::info::Roster;
use crate::right::RightRefusal;
use crate::time::Time;
use crate::wire::{Kind, flags};

/// After the catalogue refused a change for a lasting reason, it is not asked again before this.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

impl<P: Clone> Engine<P> {
    /// Forgets replicas that are not in the row any more. Their bits are given out again: nothing may
    /// be left that goes by them.
    fn drop_peers(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        let gone: Vec<ReplicaId> = self
            .peers
            .keys()
            .copied()
            .filter(|id| !self.row.replicas.contains_key(id))
            .collect();
        for replica in gone {
            self.give_up_on(now, replica, EjectReason::Operator, out);
            self.write_off(now, replica, out);
            let bit = self.peers.get(&replica).map_or(0, |peer| peer.bit);
            self.copies_without(now, replica, bit, out);
            self.peers.remove(&replica);
        }
    }

    /// A peer for every replica of the row.
    pub(super) fn sync_peers(&mut self, now: Time) {
        for replica in self.row.replicas.keys() {
            if !self.peers.contains_key(replica) {
                let taken = self.peers.values().fold(0, |mask, peer| mask | peer.bit);
                let bit = (0..16).map(|n| 1 << n).find(|bit| taken & bit == 0).unwrap_or(0);
                self.peers.insert(*replica, Peer::new(now, bit));
            }
        }
        self.update_required();
    }

    /// Recomputes whose acknowledgement a write needs: R1 for the set, R3 for one about to join.
    //= docs/replication.md#R3
    pub(super) fn update_required(&mut self) {
        let joining = self.joining();
        let away = |peer: &Peer<P>| defect!(AnswerBeforeRemoval) && peer.down_since().is_some();
        let joins = |replica: ReplicaId| Some(replica) == joining && !defect!(NoJointAnswer);
        self.required = self
            .peers
            .iter()
            .filter(|(replica, peer)| (self.is_member(**replica) && !away(peer)) || joins(**replica))
            .fold(0, |mask, (_, peer)| mask | peer.bit);
    }

    /// The replica whose acknowledgement counts though it is not in the set yet.
    pub(super) fn joining(&self) -> Option<ReplicaId> {
        let proposed = self.proposal.as_ref().and_then(|proposal| proposal.adding);
        let joint = |peer: &Peer<P>| peer.sync.as_ref().is_some_and(super::resync::Sync::is_joint);
        proposed.or_else(|| {
            self.peers
                .iter()
                .find(|(_, peer)| joint(peer))
                .map(|(replica, _)| *replica)
        })
    }

    /// Tells a replica the view and who is in it.
    pub(super) fn tell_view(&mut self, now: Time, replica: ReplicaId, out: &mut Vec<Command<P>>) {
        let member = self.is_member(replica);
        let roster = if member {
            self.roster(None)
        } else {
            Roster::default()
        };
        let right = self.source == Some(replica) || self.peers.get(&replica).is_some_and(Peer::is_right);
        let whole = self.phase_serves() && (self.unequal.is_clear() || right);
        let mut flags = if member { flags::MEMBER } else { 0 };
        if let Some(peer) = self.peers.get_mut(&replica)
            && member
            && whole
        {
            flags |= flags::WHOLE;
            peer.lost = false;
            if let Some(info) = &mut peer.info {
                info.loss = Loss::NONE;
            }
        }
        let message = Message {
            flags,
            body: Body::Bytes(roster.encode()),
            ..Message::plain(Kind::StoreView)
        };
        let purpose = if member {
            Purpose::View(self.row.view.config)
        } else {
            Purpose::Ping
        };
        self.send(now, replica, message, purpose, out);
    }

    /// What the chosen source holds is the truth from here on, should it have lost something before; the
    /// next engine must choose it again.
    //= docs/replication.md#R8
    pub(super) fn tell_source(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        let chosen = self.source.filter(|source| {
            self.peers
                .get(source)
                .is_some_and(|peer| peer.is_open() && !peer.is_right())
        });
        if let Some(source) = chosen.filter(|_| !self.unequal.is_clear()) {
            self.tell_view(now, source, out);
        }
    }

    /// Nothing is unequal any more: members that had lost their caches are as good as the others.
    //= docs/replication.md#R8
    pub(super) fn tell_whole(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        if !self.phase_serves() || !self.unequal.is_clear() {
            return;
        }
        let doubted: Vec<ReplicaId> = self
            .members()
            .filter(|(_, peer)| peer.is_open() && !peer.is_right())
            .map(|(replica, _)| replica)
            .collect();
        for replica in doubted {
            self.tell_view(now, replica, out);
        }
    }

    /// The in-sync set, with `joining` in it, and who is absent since when.
    pub(super) fn roster(&self, joining: Option<ReplicaId>) -> Roster {
        let mut roster = Roster::default();
        for (replica, member) in &self.row.replicas {
            match member.state {
                MemberState::InSync => roster.in_sync.push(*replica),
                MemberState::Stale { .. } if joining == Some(*replica) => roster.in_sync.push(*replica),
                MemberState::Stale {
                    since: Some(since), ..
                } => roster.absent.push((*replica, since)),
                MemberState::Stale { since: None, .. } => {}
            }
        }
        roster
    }

    /// A member stored the view: acknowledgements may go out under it (R2).
    //= docs/replication.md#R2
    pub(super) fn view_stored(
        &mut self,
        now: Time,
        replica: ReplicaId,
        config: ConfigSeq,
        out: &mut Vec<Command<P>>,
    ) {
        if self.gate && config == self.row.view.config && self.is_member(replica) {
            self.gate = false;
            self.try_ack_all(now, out);
        }
    }

    /// Asks the catalogue to remove members that can't be reached or used.
    //= docs/replication.md#R2
    pub(super) fn remove_unreachable(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        if self.proposal.is_some() || self.refused_until.is_some_and(|until| now < until) {
            return;
        }
        let grace = self.grace();
        let reason = |peer: &Peer<P>| {
            let away = peer.is_away(now, grace);
            peer.fault.or(away.then_some(EjectReason::Unreachable))
        };
        let gone: Vec<(ReplicaId, EjectReason)> = self
            .members()
            .filter_map(|(replica, peer)| Some((replica, reason(peer)?)))
            .collect();
        if gone.is_empty() {
            self.spared_since = None;
            return self.let_leave(now, out);
        }
        let members = self.members().count();
        //= docs/replication.md#R9
        let lost = |reason: &EjectReason| *reason == EjectReason::CacheLost;
        let never = |reason: &EjectReason| lost(reason) || *reason == EjectReason::DiskFailed;
        // Waiting cures neither: no member can give back what was acknowledged and not flushed.
        if gone.len() == members
            && gone.iter().all(|(_, reason)| never(reason))
            && gone.iter().any(|(_, reason)| lost(reason))
        {
            return self.fail(FailReason::CacheLost, out);
        }
        //= docs/replication.md#R16
        let left = members - gone.len();
        let reachable = self
            .members()
            .any(|(id, peer)| peer.is_open() && gone.iter().all(|(gone, _)| *gone != id));
        if (left < self.row.least_in_sync() && !defect!(MinimumIgnored)) || !reachable {
            return;
        }
        let stays = |replica: ReplicaId| gone.iter().all(|(gone, _)| *gone != replica);
        let right = self
            .members()
            .any(|(replica, peer)| stays(replica) && peer.is_right());
        if self.in_doubt() && !right {
            // Whoever goes now takes acknowledged writes along that nobody else has. It may come back.
            let since = *self.spared_since.get_or_insert(now);
            if now.since(since) < START_GRACE && !defect!(LastRightGoes) {
                return;
            }
        }
        if !self.one_vouches(
            now,
            |replica, peer| stays(replica) && (peer.is_right() || !right),
            out,
        ) {
            return;
        }
        self.spared_since = None;
        self.propose(
            Change::Remove {
                expect: self.row.view,
                members: gone,
            },
            None,
            out,
        );
        if defect!(AnswerBeforeRemoval) {
            self.try_ack_all(now, out);
        }
    }

    /// One of those that stay has just answered. Of one that was not heard for longer nobody knows whether it
    /// still holds what it acknowledged; the one that is to go may be the last that does. Who was not heard is asked.
    //= docs/replication.md#R2
    pub(super) fn one_vouches(
        &mut self,
        now: Time,
        which: impl Fn(ReplicaId, &Peer<P>) -> bool,
        out: &mut Vec<Command<P>>,
    ) -> bool {
        let open: Vec<(ReplicaId, bool, bool)> = self
            .members()
            .filter(|(replica, peer)| peer.is_open() && which(*replica, peer))
            .map(|(replica, peer)| {
                let heard = now.since(peer.heard) <= UNREACHABLE_AFTER;
                (replica, heard, peer.silent_at().is_some())
            })
            .collect();
        if open.iter().any(|(_, heard, _)| *heard) || defect!(SilentVouches) {
            return true;
        }
        for (replica, _, asked) in open {
            if !asked {
                self.ping(now, replica, out);
            }
        }
        false
    }

    /// The set may do without this member, and without those that are to go anyway.
    //= docs/replication.md#R16
    pub(super) fn may_lose(&self, now: Time, replica: ReplicaId) -> bool {
        let goes = |peer: &Peer<P>| peer.fault.is_some() || peer.is_away(now, self.grace());
        let stay = |(id, peer): &(ReplicaId, &Peer<P>)| *id != replica && !goes(peer);
        self.members().filter(stay).count() >= self.row.least_in_sync()
    }

    /// How long a member may be away before it is removed.
    //= docs/replication.md#R5
    fn grace(&self) -> Duration {
        match self.phase {
            Phase::Starting { .. } if !self.row.clean_before && !defect!(NoGrace) => START_GRACE,
            _ => UNREACHABLE_AFTER,
        }
    }

    pub(super) fn propose(&mut self, change: Change, adding: Option<ReplicaId>, out: &mut Vec<Command<P>>) {
        let id = self.next_proposal;
        self.next_proposal += 1;
        self.proposal = Some(Proposal { id, adding });
        self.update_required();
        out.push(Command::Propose { proposal: id, change });
    }

    /// The catalogue has decided. Whatever it answered, its row is the truth.
    pub(super) fn outcome(
        &mut self,
        now: Time,
        id: u64,
        row: VolumeRow,
        refusal: Option<&Refusal>,
        out: &mut Vec<Command<P>>,
    ) {
        let Some(proposal) = self.proposal.take_if(|proposal| proposal.id == id) else {
            return self.adopt(now, row, out);
        };
        if refusal.is_some() {
            self.refused_until = Some(now + REFUSED_PAUSE);
        }
        self.adopt(now, row, out);
        if let Some(replica) = proposal.adding
            && !self.is_member(replica)
        {
            self.abort_sync(now, replica, out);
            self.write_off(now, replica, out);
        }
        self.update_required();
        self.try_ack_all(now, out);
        self.stirred = true;
    }

    /// Takes a later row of the catalogue over.
    pub(super) fn adopt(&mut self, now: Time, row: VolumeRow, out: &mut Vec<Command<P>>) {
        let ended = matches!(
            self.phase,
            Phase::Stopped { .. } | Phase::Fenced | Phase::Failed(_)
        );
        if ended || row.revision <= self.row.revision || row.view.epoch < self.epoch {
            return;
        }
        if row.view.epoch > self.epoch || row.owner.is_none() {
            return self.fence(out);
        }
        let before: BTreeSet<ReplicaId> = self.row.in_sync().collect();
        let moved = row.view.config != self.row.view.config;
        let grows = row.size > self.row.size;
        self.row = row;
        self.stirred = true;
        if grows {
            self.grow(now, out);
        }
        if !moved {
            self.drop_peers(now, out);
            return self.sync_peers(now);
        }
        let after: BTreeSet<ReplicaId> = self.row.in_sync().collect();
        self.gate |= before.difference(&after).next().is_some() && !defect!(NoStoredView);
        // First of all: whatever is sent from here on is sent under the new view.
        let open: Vec<ReplicaId> = self
            .peers
            .iter()
            .filter(|(id, peer)| peer.is_open() && self.row.replicas.contains_key(id))
            .map(|(id, _)| *id)
            .collect();
        for replica in open {
            if !defect!(ViewNotTold) {
                self.tell_view(now, replica, out);
            }
        }
        for replica in before.difference(&after) {
            self.left(now, *replica, out);
        }
        self.drop_peers(now, out);
        self.sync_peers(now);
        for replica in after.difference(&before) {
            self.joined(now, *replica);
        }
        self.update_required();
        self.drop_unequal_when_alone();
        self.requeue_unrepaired(now, out);
        // Who waited for a member that left asks another, or learns that there is none.
        self.issue_waiting_reads(now, out);
        self.try_ack_all(now, out);
        self.release_held(now, out);
    }

    /// A member was removed: it owes nothing any more and comes back as one that must catch up.
    fn left(&mut self, now: Time, replica: ReplicaId, out: &mut Vec<Command<P>>) {
        let Some(peer) = self.peers.get_mut(&replica) else {
            return;
        };
        let bit = peer.bit;
        peer.hold_back(now);
        let reason = peer.fault.unwrap_or(EjectReason::Unreachable);
        self.give_up_on(now, replica, reason, out);
        self.write_off(now, replica, out);
        self.copies_without(now, replica, bit, out);
    }

    fn node_of(&self, replica: ReplicaId) -> &str {
        let member = self.row.replicas.get(&replica);
        member.map_or("?", |member| member.node.as_str())
    }

    /// Which replicas refuse this engine's right, and why (R14); empty when none does.
    pub fn barred(&self) -> String {
        let barred = self.peers.iter().filter(|(_, peer)| !peer.is_open());
        let told: Vec<String> = barred
            .filter_map(|(replica, peer)| {
                let why = refuses(peer.barred?);
                Some(format!(
                    "replica {replica} on node {} {why}",
                    self.node_of(*replica)
                ))
            })
            .collect();
        told.join("; ")
    }

    /// Why requests wait, if they do.
    pub(super) fn suspension(&self, now: Time) -> Option<String> {
        let away: Vec<String> = self
            .members()
            .filter(|(_, peer)| {
                peer.fault.is_some()
                    || peer.waits_for_room()
                    || peer
                        .down_since()
                        .is_some_and(|since| now.since(since) >= UNREACHABLE_AFTER)
            })
            .map(|(replica, peer)| {
                let node = self.node_of(replica);
                let full = peer.waits_for_room().then_some(EjectReason::NoSpace);
                let why = peer.fault.or(full).unwrap_or(EjectReason::Unreachable);
                match peer.barred.filter(|_| !peer.is_open()) {
                    Some(barred) => format!("replica {replica} on node {node} ({})", refuses(barred)),
                    None => format!("replica {replica} on node {node} ({why})"),
                }
            })
            .collect();
        if away.is_empty() {
            return None;
        }
        let members = self.members().count();
        let (left, least) = (members - away.len(), self.row.least_in_sync());
        let waits = if left == 0 {
            "no other replica has all writes".to_owned()
        } else if left < least {
            format!("without it {left} would be in sync, {least} must be")
        } else {
            "its removal from the in-sync set is being decided".to_owned()
        };
        Some(format!("waits for {}: {waits}", away.join(" and ")))
    }
}

impl<P: Clone> Engine<P> {
    pub(super) fn is_member(&self, replica: ReplicaId) -> bool {
        self.row
            .replicas
            .get(&replica)
            .is_some_and(|member| member.state == MemberState::InSync)
    }

    pub(super) fn members(&self) -> impl Iterator<Item = (ReplicaId, &Peer<P>)> {
        self.peers
            .iter()
            .filter(|(replica, _)| self.is_member(**replica))
            .map(|(replica, peer)| (*replica, peer))
    }
}

fn refuses(why: RightRefusal) -> String {
    format!("refuses the right to this epoch: {why}")
}
