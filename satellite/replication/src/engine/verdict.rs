//! Which copy is right where copies differ: what most of them hold, and who tells.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::digest::Unit;
use crate::ids::ReplicaId;
use crate::range::{ByteRange, SECTOR};
use crate::scrub::Finding;

/// What is told of one sector by those who could read it: by content, who.
type Groups = BTreeMap<Unit, Vec<ReplicaId>>;

/// The places where `told`, sector by sector of `range`, differs or can't be read; what is the same of neighbours is
/// one place. `preferred` is the copy that reads are served from, if there is one.
pub(super) fn findings(
    range: ByteRange,
    told: &BTreeMap<ReplicaId, Vec<Unit>>,
    preferred: Option<ReplicaId>,
) -> Vec<Finding> {
    let sectors = usize::try_from(range.len / SECTOR).unwrap_or(0);
    let mut found: Vec<Finding> = Vec::new();
    for sector in 0..sectors {
        let offset = range.offset + sector as u64 * SECTOR;
        let Some(next) = judge(offset, sector, told, preferred) else {
            continue;
        };
        match found.last_mut() {
            Some(last) if continues(last, &next) => last.length += next.length,
            _ => found.push(next),
        }
    }
    found
}

fn continues(last: &Finding, next: &Finding) -> bool {
    let (offset, length) = (last.offset, last.length);
    offset + length == next.offset
        && *last
            == Finding {
                offset,
                length,
                ..next.clone()
            }
}

/// `None`: all are equal.
//= docs/replication.md#C2
fn judge(
    offset: u64,
    sector: usize,
    told: &BTreeMap<ReplicaId, Vec<Unit>>,
    preferred: Option<ReplicaId>,
) -> Option<Finding> {
    let (mut groups, mut unreadable) = (Groups::new(), Vec::new());
    for (replica, units) in told {
        match units.get(sector) {
            Some(Unit::Unreadable) | None => unreadable.push(*replica),
            Some(unit) => groups.entry(*unit).or_default().push(*replica),
        }
    }
    if groups.len() < 2 && unreadable.is_empty() {
        return None;
    }
    let of = groups.values().map(Vec::len).sum::<usize>();
    let has = |group: &Vec<ReplicaId>| preferred.is_some_and(|one| group.contains(&one));
    let count = |group: &Vec<ReplicaId>| {
        if defect!(ScrubMinority) {
            usize::MAX - group.len()
        } else {
            group.len()
        }
    };
    let best = groups
        .values()
        .max_by_key(|group| (count(group), has(group), Reverse(group.first().copied())));
    let wrong = groups
        .values()
        .filter(|group| Some(*group) != best)
        .flatten()
        .copied()
        .collect();
    let right = best.and_then(|group| preferred.filter(|_| has(group)).or(group.first().copied()));
    let small = |count: usize| u8::try_from(count).unwrap_or(u8::MAX);
    Some(Finding {
        offset,
        length: SECTOR,
        wrong,
        unreadable,
        right,
        agree: small(best.map_or(0, Vec::len)),
        of: small(of),
    })
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    const fn id(number: u32) -> ReplicaId {
        ReplicaId(number)
    }

    fn told(each: &[(u32, &[u8])]) -> BTreeMap<ReplicaId, Vec<Unit>> {
        let unit = |byte: &u8| match byte {
            255 => Unit::Unreadable,
            byte => Unit::of(&[*byte]),
        };
        each.iter()
            .map(|(replica, bytes)| (id(*replica), bytes.iter().map(unit).collect()))
            .collect()
    }

    fn one(each: &[(u32, &[u8])], preferred: Option<u32>) -> Finding {
        let found = findings(
            ByteRange::new(SECTOR, SECTOR),
            &told(each),
            preferred.map(ReplicaId),
        );
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].range(), ByteRange::new(SECTOR, SECTOR));
        found[0].clone()
    }

    #[test]
    fn what_most_hold_is_right_wherever_reads_go() {
        let found = one(&[(1, &[7]), (2, &[8]), (3, &[8])], Some(1));
        assert_eq!((found.right, found.wrong.clone()), (Some(id(2)), vec![id(1)]));
        assert!(found.is_certain());
        assert_eq!((found.agree, found.of), (2, 3));
    }

    #[test]
    fn among_equals_the_copy_that_reads_are_served_from_and_else_the_lowest_number() {
        let found = one(&[(1, &[7]), (2, &[8])], Some(2));
        assert_eq!((found.right, found.wrong.clone()), (Some(id(2)), vec![id(1)]));
        assert!(!found.is_certain());
        let found = one(&[(1, &[7]), (2, &[8])], None);
        assert_eq!((found.right, found.wrong.clone()), (Some(id(1)), vec![id(2)]));
        let found = one(&[(1, &[7]), (2, &[8]), (3, &[9])], Some(3));
        assert_eq!((found.right, found.wrong.len()), (Some(id(3)), 2));
        assert!(!found.is_certain());
    }

    #[test]
    fn who_cannot_read_has_no_say() {
        let found = one(&[(1, &[255]), (2, &[8])], Some(1));
        assert_eq!(
            (found.right, found.unreadable.clone()),
            (Some(id(2)), vec![id(1)])
        );
        assert!(found.is_certain() && found.wrong.is_empty());
        let found = one(&[(1, &[255]), (2, &[255])], Some(1));
        assert_eq!((found.right, found.unreadable.len()), (None, 2));
        assert!(!found.is_certain());
    }

    #[test]
    fn neighbours_of_one_kind_are_one_place() {
        let told = told(&[(1, &[1, 2, 3, 4, 5, 6]), (2, &[1, 0, 0, 4, 255, 0])]);
        let found = findings(ByteRange::new(0, 6 * SECTOR), &told, None);
        let ranges: Vec<(u64, u64)> = found
            .iter()
            .map(|one| (one.offset / SECTOR, one.length / SECTOR))
            .collect();
        assert_eq!(ranges, [(1, 2), (4, 1), (5, 1)]);
    }
}
