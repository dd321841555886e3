//! Lets dirty bits go: a region that rests and is flushed everywhere is declared clean (R7).

use std::time::Duration;

use super::message::{Message, Purpose};
use super::{Command, Engine, Phase};
use crate::body::Body;
use crate::ids::ReplicaId;
use crate::range::{ByteRange, REGION};
use crate::time::Time;
use crate::wire::Kind;

/// How often it is looked at: an own flush a second at most.
const PACE: Duration = Duration::from_secs(1);

impl<P: Clone> Engine<P> {
    //= docs/replication.md#R7
    pub(super) fn tend_dirty(&mut self, now: Time, out: &mut Vec<Command<P>>) {
        if self.phase != Phase::Active || self.tracker.is_empty() || now < self.clean_at {
            return;
        }
        self.clean_at = now + PACE;
        if self.gate || !self.members().all(|(_, peer)| peer.is_ready()) {
            return;
        }
        let (idle, more) = self.tracker.idle(now);
        let equal = |region: &u64| {
            defect!(CleanUnequal) || !self.unequal.any(ByteRange::new(region * REGION, REGION).blocks())
        };
        let clean: Vec<u64> = idle.into_iter().filter(equal).collect();
        let members: Vec<ReplicaId> = self.members().map(|(replica, _)| replica).collect();
        for chunk in clean.chunks(16 << 10) {
            let bytes: Vec<u8> = chunk
                .iter()
                .flat_map(|region| u32::try_from(*region).unwrap_or(u32::MAX).to_le_bytes())
                .collect();
            for replica in &members {
                let message = Message {
                    body: Body::Bytes(bytes.clone()),
                    ..Message::plain(Kind::Clean)
                };
                self.send(now, *replica, message, Purpose::Ping, out);
            }
            for region in chunk {
                self.tracker.forget(*region);
            }
        }
        if more && !self.has_own_io() {
            self.own_flush(now, out);
        }
    }
}
