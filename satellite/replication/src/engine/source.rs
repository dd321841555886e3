//! Which member is right where members may differ, and whom a copy is read from.

use super::copy::overlaps_unequal;
use super::{Command, Engine, Peer};
use crate::ids::ReplicaId;
use crate::range::ByteRange;
use crate::time::Time;

impl<P: Clone> Engine<P> {
    /// The member that is right about unequal blocks. While it is only away, it is waited for; when it
    /// left the set, another one takes its place: nothing unequal was ever shown (case 7). A living client
    /// has acknowledgements only a member that kept its cache can honour.
    //= docs/replication.md#R8
    pub(super) fn repair_source(
        &mut self,
        now: Time,
        failed: u16,
        out: &mut Vec<Command<P>>,
    ) -> Option<ReplicaId> {
        if !self.source.is_some_and(|source| self.is_usable(source, 0)) {
            self.source = self.best_source(0);
            self.tell_source(now, out);
        }
        // A block it can't read is another's to tell; the rest stays its own.
        self.source
            .filter(|source| self.is_usable(*source, failed))
            .or_else(|| self.best_source(failed))
            .filter(|source| self.peers.get(source).is_some_and(Peer::is_open))
    }

    fn is_usable(&self, replica: ReplicaId, failed: u16) -> bool {
        let peer = self.peers.get(&replica);
        peer.is_some_and(|peer| self.is_member(replica) && self.may_repair_from(peer, failed))
    }

    fn best_source(&self, failed: u16) -> Option<ReplicaId> {
        self.members()
            .filter(|(_, peer)| self.may_repair_from(peer, failed))
            .max_by_key(|(_, peer)| peer.worth())
            .map(|(replica, _)| replica)
    }

    pub(super) fn may_repair_from(&self, peer: &Peer<P>, failed: u16) -> bool {
        failed & peer.bit == 0 && self.honours(peer)
    }

    /// Whether a member has everything its client holds an acknowledgement for: from earlier epochs, if
    /// the client is older than this engine, and from this one.
    //= docs/replication.md#R8
    pub(super) fn honours(&self, peer: &Peer<P>) -> bool {
        defect!(AnyHonours) || (!peer.lost && (peer.is_right() || !self.guest_alive))
    }

    /// Unequal blocks are left and no member could honour what the client was told about them.
    //= docs/replication.md#R8
    pub(super) fn nobody_is_right(&self) -> bool {
        !self.unequal.is_clear() && !self.members().any(|(_, peer)| self.honours(peer))
    }

    /// A member may lack what was acknowledged: a flush would vouch for it.
    //= docs/replication.md#R8
    pub(super) fn in_doubt(&self) -> bool {
        !self.unequal.is_clear() && !self.members().all(|(_, peer)| peer.is_right())
    }

    pub(super) fn any_source(
        &self,
        range: ByteRange,
        failed: u16,
        not: Option<ReplicaId>,
    ) -> Option<ReplicaId> {
        // Copies for repair know their source; others stay off what may be wrong.
        let right = |peer: &Peer<P>| peer.is_right() || !overlaps_unequal(&self.unequal, range);
        self.members()
            .filter(|(_, peer)| right(peer))
            .filter(|(replica, peer)| peer.is_open() && failed & peer.bit == 0 && Some(*replica) != not)
            .min_by_key(|(_, peer)| peer.sent.len())
            .map(|(replica, _)| replica)
    }
}
