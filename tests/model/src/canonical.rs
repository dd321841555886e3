//! When two states are the same: if they differ in nothing but the names of replicas, or in the place a
//! request has in a disk's queue.

use std::hash::{Hash, Hasher};

use crate::state::{ENGINES, Engine, Mask, NOBODY, REPLICAS, Replica, State};

/// States that differ only in the names of replicas are one state.
impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        const ORDERS: [[usize; REPLICAS]; 6] =
            [[0, 1, 2], [1, 0, 2], [0, 2, 1], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        // A replica that never had a fence is not there.
        let orders = if self.replicas[2].fence == 0 {
            2
        } else {
            ORDERS.len()
        };
        let least = ORDERS.iter().take(orders).map(|order| self.encode(*order)).min();
        hasher.write(&least.unwrap_or([0; LENGTH]));
    }
}

const PER_REPLICA: usize = 20;
const PER_ENGINE: usize = 39;
const LENGTH: usize = PER_REPLICA * REPLICAS + PER_ENGINE * ENGINES + 27;

/// Bytes in order.
struct Out {
    bytes: [u8; LENGTH],
    at: usize,
}

impl Out {
    fn put(&mut self, byte: u8) {
        self.bytes[self.at] = byte;
        self.at += 1;
    }
}

impl State {
    /// All of it as bytes, replica `order[0]` first.
    fn encode(&self, order: [usize; REPLICAS]) -> [u8; LENGTH] {
        let mut out = Out {
            bytes: [0; LENGTH],
            at: 0,
        };
        for replica in order {
            self.replicas[replica].encode(order, &mut out);
        }
        for engine in &self.engines {
            engine.encode(order, &mut out);
        }
        let catalogue = &self.catalogue;
        out.put(catalogue.epoch << 4 | catalogue.config);
        out.put(renamed(catalogue.isr, order) << 4 | renamed(catalogue.snapshot, order));
        for from in order {
            out.put(catalogue.since[from]);
        }
        out.put(u8::from(catalogue.restored) << 1 | u8::from(self.ghost.excused));
        let ghost = &self.ghost;
        for byte in [
            ghost.next,
            ghost.acked,
            ghost.seen,
            ghost.flushed,
            ghost.client,
            ghost.told,
            ghost.top,
            ghost.snapshot,
            ghost.bad as u8,
        ] {
            out.put(byte);
        }
        for left in ghost.left {
            out.put(left);
        }
        out.bytes
    }
}

/// A mask after renaming.
fn renamed(mask: Mask, order: [usize; REPLICAS]) -> Mask {
    (0..REPLICAS).fold(0, |out, to| out | (mask >> order[to] & 1) << to)
}

/// A replica's name after renaming.
fn place(replica: u8, order: [usize; REPLICAS]) -> u8 {
    let found = (0..3_u8).find(|to| order[usize::from(*to)] == usize::from(replica));
    found.unwrap_or(NOBODY)
}

/// Flags as a byte.
fn flags<const N: usize>(of: [bool; N]) -> u8 {
    of.iter().fold(0, |byte, flag| byte << 1 | u8::from(*flag))
}

impl Replica {
    fn encode(&self, order: [usize; REPLICAS], out: &mut Out) {
        out.put(self.fence << 4 | self.session);
        out.put(self.value);
        out.put(self.durable);
        out.put(flags([
            self.dirty,
            self.kept,
            self.blind,
            self.failed,
            self.solid,
        ]));
        out.put(self.doubt << 4 | self.config);
        out.put(renamed(self.members, order) << 4 | self.snapshot);
        for of in order {
            let map = self.maps[of];
            out.put(map.since << 2 | flags([map.missed, map.stored]));
        }
        // Which of the two places a request has in the disk does not matter.
        let disk = self.disk.map(|pending| {
            u16::from(flags([pending.busy, pending.orphan, pending.copy])) << 8
                | u16::from(pending.value << 5 | pending.epoch << 2 | pending.op)
        });
        for entry in [disk[0].max(disk[1]), disk[0].min(disk[1])] {
            for byte in entry.to_be_bytes() {
                out.put(byte);
            }
        }
    }
}

impl Engine {
    fn encode(&self, order: [usize; REPLICAS], out: &mut Out) {
        let pair = |one: Mask, other: Mask| renamed(one, order) << 4 | renamed(other, order);
        out.put((self.phase as u8) << 4 | self.epoch);
        out.put(self.config << 4 | renamed(self.isr, order));
        for of in order {
            out.put(self.since[of] << 2 | self.tell[of]);
            out.put(self.loss[of]);
        }
        out.put(self.client << 4 | self.snapping);
        out.put(pair(self.reached, self.changed));
        out.put(pair(self.unflushed, self.lost));
        out.put(pair(self.fault, self.clean));
        out.put(pair(self.leased, self.snapped));
        out.put(flags([
            self.inherited,
            self.gate,
            self.tracked,
            self.covered,
            self.unequal,
        ]));
        out.put(
            (self.proposal.stage as u8) << 4
                | u8::from(self.proposal.add) << 3
                | renamed(self.proposal.who, order),
        );
        out.put(place(self.source, order));
        for op in &self.ops {
            out.put((op.kind as u8) << 5 | op.value << 2 | flags([op.answered, op.late]));
            out.put(pair(op.awaited, op.accepted));
            out.put(renamed(op.done, order) << 1 | u8::from(op.stale));
        }
        out.put(pair(self.flush.done, self.flush.since));
        out.put(self.flush.covers << 2 | flags([self.flush.on, self.flush.touched]));
        let sync = &self.sync;
        out.put(place(sync.target, order) << 4 | sync.stage as u8);
        out.put(flags([sync.need, sync.copied, sync.touched]));
        out.put(sync.before << 4 | renamed(sync.clear, order));
    }
}
