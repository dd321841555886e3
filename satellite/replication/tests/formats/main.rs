//! Bytes from outside: pages of the metadata file, headers and payloads of the wire. Damage is noticed, what
//! an earlier version stored is read, and nothing that comes in makes a decoder panic.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

use std::convert::Infallible;

use proptest::prelude::*;
use stor_replication::disk::{
    BODY, Copy, FormatError, PAGE, PageId, SLOTS, Superblock, VERSION, decode_copy, decode_superblock,
    encode_page, newest,
};
use stor_replication::ids::{CacheId, ConfigSeq, Epoch, Lineage, Loss, OpId, ReplicaId, View, VolumeId};
use stor_replication::info::{Info, Roster};
use stor_replication::range::MAX_VOLUME;
use stor_replication::replica::{LoadError, Replica};
use stor_replication::time::Time;
use stor_replication::wire::{
    Framed, HEADER, Header, Kind, MAX_CONTROL, MAX_PAYLOAD, Status, WireError, crc32c, flags,
};
use uuid::Uuid;

const VOLUME: VolumeId = VolumeId(Uuid::from_u128(0x1111_2222_3333_4444_5555_6666_7777_8888));
const REPLICA: ReplicaId = ReplicaId(2);
const SIZE: u64 = 8 << 20;
/// A metadata file as version 1 writes it, as `(page number u32, page)` one after the other.
const VERSION_1: &[u8] = include_bytes!("version-1.bin");

fn superblock() -> Superblock {
    let mut maps = vec![None; SLOTS];
    maps[1] = Some((ReplicaId(3), ConfigSeq(7)));
    Superblock {
        size: SIZE,
        lineage: Lineage(Uuid::from_u128(0xabcd)),
        fence: Epoch(12),
        view: View {
            epoch: Epoch(11),
            config: ConfigSeq(7),
        },
        in_sync: vec![ReplicaId(1), REPLICA],
        cache: CacheId(Uuid::from_u128(0xcafe)),
        failed: false,
        loss: Loss {
            epoch: Epoch(9),
            op: OpId(0),
        },
        failures: 3,
        maps,
    }
}

fn page(seq: u64, superblock: &Superblock) -> Vec<u8> {
    encode_page(PageId::Superblock, VOLUME, REPLICA, seq, &superblock.encode()).to_vec()
}

/// With a version byte and a checksum to match.
fn of_version(mut page: Vec<u8>, version: u8) -> Vec<u8> {
    page[4] = version;
    page[60..64].fill(0);
    let crc = crc32c(&page);
    page[60..64].copy_from_slice(&crc.to_le_bytes());
    page
}

fn read(a: &[u8], b: &[u8]) -> Result<(u64, Superblock), FormatError> {
    decode_superblock(a, b, VOLUME, REPLICA)
}

/// A metadata file in which every kind of page is used.
fn version_1_file() -> Vec<(u32, Vec<u8>)> {
    let number = |id: PageId, second| u32::try_from(id.offset(second) / PAGE as u64).unwrap();
    let mut old = superblock();
    old.fence = Epoch(11);
    let dirty = [0b0010_0100_u8];
    let missed = [0xff_u8, 0, 0, 0, 1];
    vec![
        (number(PageId::Superblock, false), page(4, &old)),
        (number(PageId::Superblock, true), page(5, &superblock())),
        (
            number(PageId::Dirty(0), false),
            encode_page(PageId::Dirty(0), VOLUME, REPLICA, 0, &dirty).to_vec(),
        ),
        (
            number(PageId::OutOfSync(1, 0), false),
            encode_page(PageId::OutOfSync(1, 0), VOLUME, REPLICA, 0, &missed).to_vec(),
        ),
    ]
}

#[test]
fn a_file_of_version_1_opens() {
    let mut pages = std::collections::BTreeMap::new();
    for chunk in VERSION_1.chunks(4 + PAGE) {
        let (number, page) = chunk.split_at(4);
        pages.insert(
            u64::from(u32::from_le_bytes(number.try_into().unwrap())),
            page.to_vec(),
        );
    }
    let mut read = |offset: u64, len: usize| -> Result<Vec<u8>, Infallible> {
        let page = |number: u64| pages.get(&number).cloned().unwrap_or_else(|| vec![0; PAGE]);
        Ok((0..(len / PAGE) as u64)
            .flat_map(|n| page(offset / PAGE as u64 + n))
            .collect())
    };
    let cache = CacheId(Uuid::from_u128(1));
    let replica = Replica::<u64>::load(VOLUME, REPLICA, cache, Time::default(), &mut read).unwrap();
    assert_eq!(*replica.superblock(), superblock());
    assert_eq!(replica.dirty_regions(), 2);
}

#[test]
fn version_1_is_written_as_it_was() {
    let written: Vec<u8> = version_1_file()
        .into_iter()
        .flat_map(|(number, page)| [number.to_le_bytes().to_vec(), page].concat())
        .collect();
    if let Ok(path) = std::env::var("STOR_WRITE_FIXTURE") {
        std::fs::write(path, &written).unwrap();
    }
    assert_eq!(
        VERSION, 1,
        "a new version needs a file of its own, and this one must still open"
    );
    assert!(written == VERSION_1, "the format changed without a new version");
}

#[test]
fn the_later_of_two_good_copies_counts() {
    let (old, new) = (
        superblock(),
        Superblock {
            fence: Epoch(99),
            ..superblock()
        },
    );
    assert_eq!(read(&page(6, &old), &page(7, &new)), Ok((7, new.clone())));
    assert_eq!(read(&page(8, &new), &page(7, &old)), Ok((8, new)));
}

#[test]
fn a_torn_page_leaves_the_other() {
    let (old, new) = (
        superblock(),
        Superblock {
            fence: Epoch(99),
            ..superblock()
        },
    );
    let whole = page(7, &new);
    // Sectors of the new page over what was there before.
    let before = page(5, &old);
    for torn in 1..8 {
        let mut bytes = before.clone();
        bytes[..torn * 512].copy_from_slice(&whole[..torn * 512]);
        let expected = if bytes == whole {
            (7, new.clone())
        } else {
            (6, old.clone())
        };
        assert_eq!(
            read(&page(6, &old), &bytes),
            Ok(expected),
            "torn after {torn} sectors"
        );
    }
}

#[test]
fn without_a_good_copy_nothing_is_believed() {
    let good = page(6, &superblock());
    let mut bad = good.clone();
    bad[2000] ^= 1;
    assert_eq!(read(&bad, &bad), Err(FormatError::Superblock));
    assert_eq!(read(&bad, &[0; PAGE]), Err(FormatError::Superblock));
    assert_eq!(read(&[0; PAGE], &[0; PAGE]), Err(FormatError::Empty));
    assert_eq!(read(&[], &[]), Err(FormatError::Empty));
    assert_eq!(
        read(&good[..100], &good[..PAGE - 1]),
        Err(FormatError::Superblock)
    );
    assert_eq!(read(&bad, &good), Ok((6, superblock())));
}

/// Maps are made by the size: one that no volume can have must not make the satellite ask for terabytes.
#[test]
fn a_size_no_volume_can_have_is_damage() {
    let of = |size: u64| page(6, &Superblock { size, ..superblock() });
    for size in [MAX_VOLUME + 1, 1 << 63, u64::MAX] {
        assert_eq!(read(&of(size), &of(size)), Err(FormatError::Superblock), "{size}");
    }
    assert!(read(&of(MAX_VOLUME), &[]).is_ok());
}

#[test]
fn a_later_version_is_named_not_guessed() {
    let good = page(6, &superblock());
    let newer = of_version(page(7, &superblock()), VERSION + 1);
    assert_eq!(read(&good, &newer), Err(FormatError::Newer(VERSION + 1)));
    let mut file = |offset: u64, _: usize| -> Result<Vec<u8>, Infallible> {
        Ok(if offset == 0 {
            [good.clone(), newer.clone()].concat()
        } else {
            Vec::new()
        })
    };
    let cache = CacheId::default();
    let error = Replica::<u64>::load(VOLUME, REPLICA, cache, Time::default(), &mut file).unwrap_err();
    assert_eq!(error, LoadError::Format(FormatError::Newer(VERSION + 1)));
    assert!(error.to_string().contains("upgrade"));
}

#[test]
fn a_page_counts_only_in_its_place_and_for_its_owner() {
    let id = PageId::Dirty(3);
    let page = encode_page(id, VOLUME, REPLICA, 9, &[1; BODY]);
    assert_eq!(
        decode_copy(&page[..], id, VOLUME, REPLICA),
        Copy::Good {
            seq: 9,
            body: &[1; BODY]
        }
    );
    for (id, volume, replica) in [
        (PageId::Dirty(4), VOLUME, REPLICA),
        (PageId::OutOfSync(0, 3), VOLUME, REPLICA),
        (id, VolumeId(Uuid::from_u128(5)), REPLICA),
        (id, VOLUME, ReplicaId(9)),
    ] {
        assert_eq!(decode_copy(&page[..], id, volume, replica), Copy::Bad);
    }
}

#[test]
fn places_do_not_overlap() {
    let last = 64_u64 << 40;
    let regions = (last >> 20).div_ceil(stor_replication::disk::BITS);
    let blocks = (last >> 16).div_ceil(stor_replication::disk::BITS);
    let mut ends = vec![PageId::Superblock.offset(true)];
    assert_eq!(PageId::Dirty(0).offset(false), 2 * PAGE as u64);
    ends.push(PageId::Dirty(regions - 1).offset(true));
    for slot in 0..u8::try_from(SLOTS).unwrap() {
        assert!(PageId::OutOfSync(slot, 0).offset(false) > *ends.last().unwrap());
        ends.push(PageId::OutOfSync(slot, blocks - 1).offset(true));
    }
}

#[test]
fn damaged_beside_blank_is_damage() {
    assert_eq!(newest(Copy::Bad, Copy::Blank), Copy::Bad);
    assert_eq!(newest(Copy::Blank, Copy::Blank), Copy::Blank);
}

fn kinds() -> impl Strategy<Value = Kind> {
    (1_u8..=12).prop_map(|code| Kind::try_from(code).unwrap())
}

prop_compose! {
    fn headers()(
        kind in kinds(), reply in any::<bool>(), bits in 0_u16..32, volume in any::<u128>(), epoch in any::<u64>(),
        config in any::<u64>(), op in any::<u64>(), offset in any::<u64>(), length in 0..=MAX_PAYLOAD,
        replica in any::<u32>(), status in 0_u16..=10,
    ) -> Header {
        let status = Status::try_from(status).unwrap();
        let request = Header {
            kind,
            flags: bits & flags::ALL & !flags::REPLY,
            volume: VolumeId(Uuid::from_u128(volume)),
            replica: ReplicaId(replica),
            view: View { epoch: Epoch(epoch), config: ConfigSeq(config) },
            op: OpId(op),
            offset,
            length,
            status: Status::Ok,
        };
        if reply { request.reply(status) } else { request }
    }
}

/// The payload a message of this kind has.
fn payload_of(header: &Header) -> u32 {
    match (header.kind, header.is_reply()) {
        (Kind::Write, false) => header.length,
        (Kind::Read, true) if header.status == Status::Ok => header.length,
        _ => 0,
    }
}

proptest! {
    #[test]
    fn a_header_comes_back(header in headers(), crc in any::<u32>()) {
        let payload = payload_of(&header);
        let framed = Framed::try_from(&header.encode(payload, crc)).unwrap();
        prop_assert_eq!(framed, Framed { header, payload, payload_crc: crc });
    }

    #[test]
    fn a_payload_that_does_not_fit_its_kind_is_refused(header in headers(), extra in 1..=MAX_PAYLOAD) {
        let payload = payload_of(&header).wrapping_add(extra);
        let result = Framed::try_from(&header.encode(payload, 0));
        let may_carry = !matches!(header.kind, Kind::Write | Kind::Read | Kind::Zero | Kind::Flush | Kind::Ping | Kind::Close);
        match result {
            Ok(framed) => prop_assert!(may_carry && framed.payload <= MAX_CONTROL),
            Err(error) => prop_assert!(matches!(error, WireError::Malformed(_) | WireError::TooLong(_))),
        }
    }

    #[test]
    fn garbage_is_no_header(mut bytes in proptest::collection::vec(any::<u8>(), HEADER), sign in any::<bool>()) {
        if sign {
            // With a good magic and checksum: what follows has to be judged field by field.
            bytes[..4].copy_from_slice(b"StW1");
            let crc = crc32c(&bytes[..HEADER - 4]);
            bytes[HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
        }
        let bytes: [u8; HEADER] = bytes.try_into().unwrap();
        if let Ok(framed) = Framed::try_from(&bytes) {
            prop_assert!(sign);
            prop_assert!(framed.payload <= MAX_PAYLOAD);
        }
    }

    #[test]
    fn damage_to_a_header_is_noticed(header in headers(), at in 0..HEADER, bit in 0_u8..8) {
        let mut bytes = header.encode(payload_of(&header), 0);
        bytes[at] ^= 1_u8 << bit;
        let noticed = matches!(Framed::try_from(&bytes), Err(WireError::HeaderChecksum { .. } | WireError::Magic(_)));
        prop_assert!(noticed);
    }

    #[test]
    fn garbage_is_no_payload(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Some(info) = Info::decode(&bytes) {
            prop_assert_eq!(info.encode(), bytes.clone());
        }
        if let Some(roster) = Roster::decode(&bytes) {
            prop_assert_eq!(roster.encode(), bytes.clone());
        }
        // Longer than a superblock needs is right: a page is.
        if let Some(superblock) = Superblock::decode(&bytes) {
            prop_assert_eq!(&superblock.encode()[..], &bytes[..superblock.encode().len()]);
        }
    }

    #[test]
    fn garbage_is_no_page(
        mut bytes in proptest::collection::vec(any::<u8>(), PAGE), len in 0..=PAGE, sign in any::<bool>(),
    ) {
        if sign {
            bytes[..4].copy_from_slice(b"StP1");
            bytes = of_version(bytes, VERSION);
        }
        let copy = decode_copy(&bytes[..len], PageId::Superblock, VOLUME, REPLICA);
        prop_assert!(!matches!(copy, Copy::Good { .. }), "a random page is not ours");
        prop_assert!(read(&bytes, &bytes[..len]).is_err());
    }

    #[test]
    fn damage_to_a_page_is_noticed(at in 0..PAGE, bit in 0_u8..8) {
        let mut bytes = page(6, &superblock());
        bytes[at] ^= 1_u8 << bit;
        prop_assert_eq!(decode_copy(&bytes, PageId::Superblock, VOLUME, REPLICA), Copy::Bad);
    }

    #[test]
    fn a_superblock_comes_back(
        fence in any::<u64>(), view in any::<(u64, u64)>(), members in proptest::collection::vec(any::<u32>(), 0..8),
        slot in 0..SLOTS, absent in any::<(u32, u64)>(), failed in any::<bool>(), loss in any::<(u64, u64)>(),
    ) {
        let mut wanted = superblock();
        wanted.fence = Epoch(fence);
        wanted.view = View { epoch: Epoch(view.0), config: ConfigSeq(view.1) };
        wanted.in_sync = members.into_iter().map(ReplicaId).collect();
        wanted.failed = failed;
        wanted.loss = Loss {
            epoch: Epoch(loss.0),
            op: OpId(loss.1),
        };
        wanted.maps[slot] = Some((ReplicaId(absent.0), ConfigSeq(absent.1)));
        prop_assert_eq!(read(&page(6, &wanted), &[]), Ok((6, wanted)));
    }
}
