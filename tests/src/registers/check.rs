//! Whether the history of one register is linearizable: whether there is an order of its operations in which each
//! takes effect at one moment between its beginning and its end, and every read shows the latest write.
//!
//! Every write has a value of its own, so that each read tells which write it saw; this makes the question easy
//! (P. B. Gibbons, E. Korach, "Testing Shared Memories", SIAM J. Comput. 26, 1997). All that has to do with a value is
//! its cluster: the write and the reads of it. From the first end of one of its operations to the last beginning
//! of one the register must have held the value all along, if that is later (a *solid* cluster); else there is
//! only a span in which it must have held it at some moment (a *loose* one). The history is linearizable exactly if
//! nothing is read before it was begun to be written, no two solid spans overlap, and no loose one lies within a
//! solid one.
//!
//! A write without an answer may take effect at any time after it was sent, or never: if somebody read it, it has
//! no end, else it is left out. A read without an answer says nothing.
//!
//! A block may be zeroed once, and then shows again what it showed before it was ever written. Reads of zeroes are
//! shared out between the two: if there is any right way, there is one in which those that began first saw the block
//! unwritten, so trying every number of them tries enough.

use std::collections::BTreeMap;

use super::record::{Kind, Operation};

/// The value of a register never written.
const UNWRITTEN: u64 = 0;
/// What the one write that zeroes a block is said to write. Reads of it show [`UNWRITTEN`].
pub const ZEROED: u64 = u64::MAX;

/// Why a history is not linearizable, with the operations that show it, in the order of their beginnings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// In words.
    pub what: String,
    /// The proof.
    pub proof: Vec<Operation>,
}

/// All that has to do with one value.
#[derive(Clone, Debug)]
struct Cluster {
    value: u64,
    operations: Vec<Operation>,
    /// First end.
    ended: u64,
    /// Last beginning.
    begun: u64,
}

impl Cluster {
    fn solid(&self) -> bool {
        self.ended < self.begun
    }
}

/// Checks what was noted of one register. Of two writes of one value in a history that is linearizable it says
/// that it is not: the caller makes values unique.
pub fn check(operations: &[Operation]) -> Result<(), Wrong> {
    if !operations.iter().any(|operation| operation.value == ZEROED) {
        return check_unique(operations);
    }
    let is_zero = |operation: &Operation| operation.kind == Kind::Read && operation.value == UNWRITTEN;
    let mut zeroes: Vec<Operation> = operations.iter().copied().filter(is_zero).collect();
    zeroes.sort_by_key(|operation| operation.begun);
    let others: Vec<Operation> = operations.iter().copied().filter(|o| !is_zero(o)).collect();
    let mut result = Ok(());
    for unwritten in 0..=zeroes.len() {
        let shared_out = zeroes.iter().enumerate().map(|(place, read)| Operation {
            value: if place < unwritten { UNWRITTEN } else { ZEROED },
            ..*read
        });
        let history: Vec<Operation> = others.iter().copied().chain(shared_out).collect();
        result = check_unique(&history);
        if result.is_ok() {
            break;
        }
    }
    result
}

/// [`check`], where every value is written once.
fn check_unique(operations: &[Operation]) -> Result<(), Wrong> {
    let clusters = clusters(operations)?;
    let mut solid: Vec<&Cluster> = clusters.iter().filter(|c| c.solid()).collect();
    solid.sort_by_key(|c| c.ended);
    for pair in solid.windows(2) {
        if let [one, other] = pair
            && other.ended < one.begun
        {
            return Err(wrong(
                format!(
                    "{:#x} and {:#x} were both there for a time that overlaps",
                    one.value, other.value
                ),
                &[one, other],
            ));
        }
    }
    for loose in clusters.iter().filter(|c| !c.solid()) {
        // The last solid span that begins before it: solid spans are in order and apart.
        let before = solid.partition_point(|c| c.ended < loose.begun);
        if let Some(around) = before.checked_sub(1).and_then(|last| solid.get(last))
            && loose.ended < around.begun
        {
            return Err(wrong(
                format!(
                    "{:#x} was there, while {:#x} was all along",
                    loose.value, around.value
                ),
                &[loose, around],
            ));
        }
    }
    Ok(())
}

fn clusters(operations: &[Operation]) -> Result<Vec<Cluster>, Wrong> {
    let mut by_value: BTreeMap<u64, Vec<Operation>> = BTreeMap::new();
    // Written before all times.
    let first = Operation {
        kind: Kind::Write,
        value: UNWRITTEN,
        begun: 0,
        ended: Some(0),
        client: 0,
    };
    by_value.entry(UNWRITTEN).or_default().push(first);
    for operation in operations {
        if operation.kind == Kind::Write || operation.ended.is_some() {
            by_value.entry(operation.value).or_default().push(*operation);
        }
    }
    let mut clusters = Vec::new();
    for (value, operations) in by_value {
        let writes: Vec<&Operation> = operations.iter().filter(|o| o.kind == Kind::Write).collect();
        let [write] = writes.as_slice() else {
            let what = match writes.len() {
                0 => format!("{value:#x} was read and never written"),
                count => format!("{value:#x} was written {count} times"),
            };
            return Err(Wrong {
                what,
                proof: operations,
            });
        };
        let write = **write;
        if operations.len() == 1 && write.ended.is_none() {
            continue;
        }
        let ended = operations
            .iter()
            .filter_map(|o| o.ended)
            .min()
            .unwrap_or(u64::MAX);
        let begun = operations.iter().map(|o| o.begun).max().unwrap_or(0);
        if ended < write.begun {
            return Err(Wrong {
                what: format!("{value:#x} was read before it was written"),
                proof: operations,
            });
        }
        clusters.push(Cluster {
            value,
            operations,
            ended,
            begun,
        });
    }
    Ok(clusters)
}

fn wrong(what: String, clusters: &[&Cluster]) -> Wrong {
    let mut proof: Vec<Operation> = clusters.iter().flat_map(|c| c.operations.clone()).collect();
    proof.sort_by_key(|o| o.begun);
    Wrong { what, proof }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
