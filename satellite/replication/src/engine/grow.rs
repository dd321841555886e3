//! A volume that becomes larger while it is used. Every member has the room by then: the catalogue waited for all of
//! them (G3). The new part reads as zeroes on each, so that nothing has to be copied.

use super::message::Purpose;
use super::{Command, Engine};
use crate::ids::ReplicaId;
use crate::time::Time;

impl<P: Clone> Engine<P> {
    /// The row has a larger size than before.
    //= docs/replication.md#G3
    pub(super) fn grow(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        let (regions, blocks, size) = (self.regions(), self.blocks(), self.row.size);
        // What a block at the old end holds beyond it is equal everywhere, being zero.
        if !self.unequal.is_empty() {
            self.unequal.grow(blocks, false);
        }
        let members: Vec<ReplicaId> = self.members().map(|(id, _)| id).collect();
        for (replica, peer) in &mut self.peers {
            for map in peer.dirty.iter_mut().chain(&mut peer.reading) {
                if !map.is_empty() {
                    map.grow(regions, false);
                }
            }
            if let Some(info) = peer.info.as_mut().filter(|_| members.contains(replica)) {
                info.size = info.size.max(size);
            }
        }
        self.look_again(now, out);
    }

    /// Whoever is no member may be as large by now or not: it is asked anew, and a copy to it begins anew, with the
    /// new part (R11) and without what was copied already.
    fn look_again(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        let others: Vec<ReplicaId> = self
            .peers
            .iter()
            .filter(|(replica, peer)| !self.is_member(**replica) && peer.link_id().is_some())
            .map(|(replica, _)| *replica)
            .collect();
        for replica in others {
            let Some(peer) = self.peers.get_mut(&replica) else {
                continue;
            };
            peer.sent.retain(|_, sent| sent.purpose != Purpose::Open);
            if let Some(link) = peer.link_id() {
                out.push(Command::Disconnect { replica, link });
            }
            self.link_down(now, replica, out);
            if let Some(peer) = self.peers.get_mut(&replica) {
                peer.sync_at = now;
            }
        }
    }
}
