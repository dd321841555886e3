//! Frames and payloads of the replication protocol, and pages of a metadata file.

use stor_replication::disk::{
    Copy, PAGE, PageId, Superblock, decode_copy, decode_superblock, encode_page, newest,
};
use stor_replication::ids::{ReplicaId, VolumeId};
use stor_replication::info::{Info, Roster};
use stor_replication::wire::{Framed, HEADER, MAX_PAYLOAD, crc32c};
use uuid::Uuid;

use crate::bytes::Bytes;

pub(crate) const VOLUME: VolumeId = VolumeId(Uuid::from_u128(7));
pub(crate) const REPLICA: ReplicaId = ReplicaId(1);

/// A header whose magic, version and checksum are right, so that the rest is looked at.
pub(crate) fn mended(mut bytes: [u8; HEADER]) -> [u8; HEADER] {
    let right = *b"StW1\x01";
    bytes.iter_mut().zip(right).for_each(|(to, from)| *to = from);
    let (before, _) = bytes.split_at(HEADER - 4);
    let sum = crc32c(before).to_le_bytes();
    bytes
        .iter_mut()
        .skip(HEADER - 4)
        .zip(sum)
        .for_each(|(to, from)| *to = from);
    bytes
}

pub(crate) fn frame(input: &[u8]) {
    let bytes: [u8; HEADER] = Bytes(input).array();
    for bytes in [bytes, mended(bytes)] {
        let Ok(framed) = Framed::try_from(&bytes) else {
            continue;
        };
        assert!(framed.payload <= MAX_PAYLOAD, "a payload is too long");
        let again = framed.header.encode(framed.payload, framed.payload_crc);
        assert_eq!(Framed::try_from(&again), Ok(framed), "a frame does not come back");
    }
}

pub(crate) fn payloads(input: &[u8]) {
    if let Some(info) = Info::decode(input) {
        assert_eq!(info.encode(), input, "an info does not come back");
    }
    if let Some(roster) = Roster::decode(input) {
        assert_eq!(roster.encode(), input, "a roster does not come back");
    }
    if let Some(superblock) = Superblock::decode(input) {
        assert_eq!(
            Superblock::decode(&superblock.encode()).as_ref(),
            Some(&superblock),
            "a superblock does not come back"
        );
    }
}

pub(crate) fn pages(input: &[u8]) {
    let mut from = Bytes(input);
    let id = match from.byte() % 3 {
        0 => PageId::Superblock,
        1 => PageId::Dirty(from.number(1 << 20) >> 20),
        _ => PageId::OutOfSync(from.byte() % 7, from.number(1 << 20) >> 20),
    };
    let seq = from.u64();
    let half = from.0.len() / 2;
    let first = from.some(half);
    let made = encode_page(id, VOLUME, REPLICA, seq, first);
    let Copy::Good { seq: found, .. } = decode_copy(&made[..], id, VOLUME, REPLICA) else {
        panic!("a page just made is not good");
    };
    assert_eq!(found, seq);
    let mut damaged = made.clone();
    for (at, byte) in from.0.iter().enumerate().take(16) {
        let at = (at * 257 + usize::from(*byte)) % PAGE;
        damaged
            .iter_mut()
            .skip(at)
            .take(1)
            .for_each(|there| *there ^= byte | 1);
    }
    let copy = decode_copy(&damaged[..], id, VOLUME, REPLICA);
    assert!(
        damaged == made || !matches!(copy, Copy::Good { .. }),
        "damage to a page was not noticed"
    );
    _ = newest(decode_copy(&made[..], id, VOLUME, REPLICA), copy);
    _ = decode_copy(input, id, VOLUME, REPLICA);
    _ = decode_superblock(input, &damaged[..], VOLUME, REPLICA);
}
