//! Rights to attach, as the leader gives them out: short-lived, and renewed as long as the attachment stands.
//!
//! Nothing is remembered. Time is cut into turns of [`TURN`], which begin at another moment for each node; the right
//! to an epoch is a function of the turn, so that asking again in the same turn gives the same bytes, and what is
//! sent to a satellite changes once a turn.

use std::time::Duration;

use stor_replication::catalogue::VolumeRow;
use stor_replication::ids::{Epoch, SnapshotId, VolumeId};
use stor_replication::wire::crc32c;
use stor_right::{Seconds, SignedRight, Signer, Statement};

/// How long a right opens its epoch, by the controllers' clock.
pub const LIFE: Duration = Duration::from_mins(10);
/// How often it is renewed: what a satellite has is good for [`LIFE`] less this at least, which is the time a
/// cluster without a leader leaves it.
pub const TURN: Duration = Duration::from_mins(3);

/// The beginning of the turn of a node that `now` is in.
pub fn turn(node: &str, now: Seconds) -> Seconds {
    // Otherwise all nodes would be told at the same moment.
    let shift = u64::from(crc32c(node.as_bytes())) % TURN.as_secs();
    let into = now.0.wrapping_add(shift) % TURN.as_secs();
    Seconds(now.0.saturating_sub(into))
}

/// Gives rights to one node in one turn.
#[derive(Clone, Copy, Debug)]
pub struct Issuer<'a> {
    signer: &'a Signer,
    node: &'a str,
    turn: Seconds,
}

impl<'a> Issuer<'a> {
    /// For the turn of `node` that it is now.
    pub fn new(signer: &'a Signer, node: &'a str) -> Self {
        let turn = turn(node, Seconds::now());
        Self { signer, node, turn }
    }

    /// The turn its rights are of.
    pub fn turn(&self) -> Seconds {
        self.turn
    }

    /// The right to read copies of a snapshot on other nodes: it names the snapshot where others name their volume.
    pub fn copy_right(&self, snapshot: SnapshotId) -> SignedRight {
        self.signer.sign(&Statement {
            volume: VolumeId(snapshot.0),
            epoch: Epoch(1),
            node: self.node.to_owned(),
            read_only: true,
            issued: self.turn,
            expires: self.turn.after(LIFE),
        })
    }

    /// The right to the row's epoch; `None` unless the node owns the volume. The row is one that was decided: who
    /// has the epoch does not change any more, even when a later one has come.
    pub fn right(&self, row: &VolumeRow, read_only: bool) -> Option<SignedRight> {
        (row.owner.as_deref() == Some(self.node)).then(|| {
            self.signer.sign(&Statement {
                volume: row.volume,
                epoch: row.view.epoch,
                node: self.node.to_owned(),
                read_only,
                issued: self.turn,
                expires: self.turn.after(LIFE),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_begins_now_or_before_and_lasts_its_time() {
        for node in ["s1", "s2", "k1", ""] {
            let first = turn(node, Seconds(1_700_000_000));
            for now in 0..TURN.as_secs() {
                assert_eq!(turn(node, Seconds(first.0 + now)), first);
            }
            assert_eq!(
                turn(node, Seconds(first.0 + TURN.as_secs())).0,
                first.0 + TURN.as_secs()
            );
        }
        assert_ne!(
            turn("s1", Seconds(1_700_000_000)),
            turn("s2", Seconds(1_700_000_000))
        );
    }
}
