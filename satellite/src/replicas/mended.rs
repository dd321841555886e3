//! Metadata that is found damaged when a replica is opened, and is done without: what of it is told.
//!
//! One copy of a page is damaged by a power cut in the middle of its write, or by a disk that goes bad. The state machine
//! does what is safe by itself ([`stor_replication::disk`]): the superblock's other copy counts, a map page is all
//! ones. Nothing is lost by it, but whoever looks after the disk has to know.

use std::collections::HashMap;

use stor_replication::disk::{BITS, Copy, PAGE, PageId, Superblock, decode_copy};
use stor_replication::range::{BLOCK, REGION};

use super::ReplicaSpec;

/// Damaged pages named one by one.
const MOST: usize = 8;

/// A page of which a copy can't be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Damaged {
    page: PageId,
    first: bool,
    second: bool,
}

/// Looks through the pages that a replica was loaded from, two copies at each offset. Logs what is damaged; says it in one
/// sentence, empty when nothing is.
pub(super) fn tell(spec: &ReplicaSpec, superblock: &Superblock, pages: &HashMap<u64, Vec<u8>>) -> String {
    let damaged = find(spec, superblock, pages);
    for one in damaged.iter().take(MOST) {
        tracing::warn!(
            volume = %spec.volume, replica = %spec.replica, path = %spec.meta.display(), offset = one.offset(),
            what = one.what(), done = one.done(), "a page of the replica's metadata is damaged"
        );
    }
    let Some(first) = damaged.first() else {
        return String::new();
    };
    let more = match damaged.len() - 1 {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let (what, offset, path) = (first.what(), first.offset(), spec.meta.display());
    format!(
        "{what} damaged at byte {offset} of {path}: {}{more}",
        first.done()
    )
}

fn find(spec: &ReplicaSpec, superblock: &Superblock, pages: &HashMap<u64, Vec<u8>>) -> Vec<Damaged> {
    let count = |unit: u64| superblock.size.div_ceil(unit).div_ceil(BITS);
    let used = (0_u8..).zip(&superblock.maps).filter(|(_, map)| map.is_some());
    let absent =
        used.flat_map(|(slot, _)| (0..count(BLOCK)).map(move |index| PageId::OutOfSync(slot, index)));
    let all = [PageId::Superblock]
        .into_iter()
        .chain((0..count(REGION)).map(PageId::Dirty))
        .chain(absent);
    let look = |page: PageId| {
        let bytes = pages.get(&page.offset(false))?;
        let (first, second) = bytes.split_at_checked(PAGE).unwrap_or((bytes, &[]));
        let is_bad = |copy: &[u8]| decode_copy(copy, page, spec.volume, spec.replica) == Copy::Bad;
        let (first, second) = (is_bad(first), is_bad(second));
        (first || second).then_some(Damaged { page, first, second })
    };
    all.filter_map(look).collect()
}

impl Damaged {
    fn offset(&self) -> u64 {
        self.page.offset(!self.first)
    }

    fn what(&self) -> String {
        let copies = match (self.first, self.second) {
            (true, true) => "both copies",
            (true, false) => "copy A",
            (false, _) => "copy B",
        };
        match self.page {
            PageId::Superblock => format!("{copies} of the superblock"),
            PageId::Dirty(index) => format!("{copies} of page {index} of the map of unequal regions"),
            PageId::OutOfSync(slot, index) => {
                format!("{copies} of page {index} of the map of what an absent replica missed (slot {slot})")
            }
        }
    }

    fn done(&self) -> &'static str {
        match self.page {
            PageId::Superblock => "the other copy is used, and both are written anew with the next change",
            PageId::Dirty(_) => "all that the page stands for is made equal to the other replicas",
            PageId::OutOfSync(..) => {
                "all that the page stands for is copied to the absent replica when it is back"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use stor_replication::disk::encode_page;
    use stor_replication::ids::{CacheId, ConfigSeq, Lineage, ReplicaId, VolumeId};
    use uuid::Uuid;

    use super::*;
    use crate::pool::backing::Room;

    fn spec() -> ReplicaSpec {
        ReplicaSpec {
            volume: VolumeId(Uuid::from_u128(1)),
            replica: ReplicaId(2),
            room: Room::Directory(PathBuf::from("/p")),
            data: PathBuf::from("/p/r2.data"),
            meta: PathBuf::from("/p/r2.meta"),
            size: 1 << 30,
            lineage: Lineage(Uuid::from_u128(3)),
            create: None,
            source: None,
            cache: CacheId::default(),
            snapshots: BTreeSet::new(),
        }
    }

    /// Every page of such a replica, good in both copies, with `damage` done to them.
    fn told(damage: impl FnOnce(&mut HashMap<u64, Vec<u8>>)) -> String {
        let spec = spec();
        let mut superblock = Superblock::fresh(spec.size, spec.lineage, spec.cache, None);
        superblock.maps[1] = Some((ReplicaId(0), ConfigSeq(4)));
        let body = superblock.encode();
        let pages = [PageId::Superblock, PageId::Dirty(0), PageId::OutOfSync(1, 0)];
        let mut pages: HashMap<u64, Vec<u8>> = pages
            .into_iter()
            .map(|page| {
                let copy = |seq| encode_page(page, spec.volume, spec.replica, seq, &body).to_vec();
                (page.offset(false), [copy(6), copy(7)].concat())
            })
            .collect();
        damage(&mut pages);
        tell(&spec, &superblock, &pages)
    }

    #[test]
    fn what_is_damaged_is_told_with_its_place_and_what_was_done() {
        assert_eq!(told(|_| {}), "");
        // Never written is not damaged, and neither is a file that ends there.
        assert_eq!(told(|pages| pages.get_mut(&0).unwrap()[PAGE..].fill(0)), "");
        assert_eq!(told(|pages| pages.get_mut(&0).unwrap().truncate(PAGE)), "");
        assert_eq!(
            told(|pages| pages.get_mut(&0).unwrap()[PAGE + 99] ^= 1),
            "copy B of the superblock damaged at byte 4096 of /p/r2.meta: the other copy is used, and both are written \
             anew with the next change"
        );
        let both = told(|pages| {
            for page in [PageId::Dirty(0), PageId::OutOfSync(1, 0)] {
                let bytes = pages.get_mut(&page.offset(false)).unwrap();
                bytes[99] ^= 1;
                bytes[PAGE + 99] ^= 1;
            }
        });
        assert!(
            both.starts_with("both copies of page 0 of the map of unequal regions damaged at byte 8192")
                && both.ends_with("; and 1 more"),
            "{both}"
        );
    }
}
