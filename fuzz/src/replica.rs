//! A replica's metadata file, and a replica under any requests.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use stor_replication::body::Body;
use stor_replication::digest::Digests;
use stor_replication::disk::{PAGE, PageId, Superblock, encode_page};
use stor_replication::ids::{CacheId, ConnId, Lineage};
use stor_replication::range::{ByteRange, MAX_VOLUME};
use stor_replication::replica::{Command, DiskAction, DiskError, Event, Replica, SnapshotError};
use stor_replication::time::Time;
use stor_replication::wire::{Framed, Kind, SNAPSHOT_ID};
use uuid::Uuid;

use crate::bytes::Bytes;
use crate::wire::{REPLICA, VOLUME, mended};

pub(crate) const SIZE: u64 = 16 << 20;
const CACHE: CacheId = CacheId(Uuid::from_u128(9));
pub(crate) const LINEAGE: Lineage = Lineage(Uuid::from_u128(8));
/// Larger volumes are made smaller here: their maps take memory by right, at most a gigabyte for the largest.
const LARGEST: u64 = 64 << 30;
/// Pages that the maps of such a volume take, with a map for every absent replica.
const MOST_READS: usize = 260;

/// A file whose pages have right checksums and whatever the input holds in them.
pub(crate) fn metadata(input: &[u8]) {
    let mut from = Bytes(input);
    let plain = from.byte().is_multiple_of(2);
    let mut reads = 0;
    let mut read = |offset: u64, len: usize| -> Result<Vec<u8>, Infallible> {
        reads += 1;
        assert!(reads <= MOST_READS, "the metadata is read without end");
        assert!(len <= 2 * PAGE, "{len} bytes are read at once");
        let mut bytes = Vec::with_capacity(len);
        if plain {
            bytes.extend_from_slice(from.some(len));
        } else if offset == 0 {
            let size = from.u64();
            let size = if size <= MAX_VOLUME {
                size % (LARGEST + 1)
            } else {
                size
            };
            let body = [&size.to_le_bytes()[..], from.some(248)].concat();
            bytes.extend_from_slice(&encode_page(PageId::Superblock, VOLUME, REPLICA, 2, &body)[..]);
        } else if !from.is_empty() {
            let page = offset / PAGE as u64;
            let body = from.some(64);
            bytes
                .extend_from_slice(&encode_page(PageId::Dirty((page - 2) / 2), VOLUME, REPLICA, 2, body)[..]);
        }
        Ok(bytes)
    };
    let loaded = Replica::<()>::load(VOLUME, REPLICA, CACHE, Time::default(), &mut read);
    if let Ok(replica) = loaded {
        let superblock = replica.superblock();
        let again = Superblock::decode(&superblock.encode());
        assert_eq!(
            again.as_ref(),
            Some(superblock),
            "a superblock does not come back"
        );
    }
}

/// A replica just made, as a state machine.
fn fresh() -> Option<Replica<u8>> {
    let superblock = Superblock::fresh(SIZE, LINEAGE, CACHE, Some(REPLICA));
    let page = encode_page(PageId::Superblock, VOLUME, REPLICA, 0, &superblock.encode());
    let mut read = |offset: u64, _: usize| -> Result<Vec<u8>, Infallible> {
        Ok(if offset == 0 { page.to_vec() } else { Vec::new() })
    };
    Replica::load(VOLUME, REPLICA, CACHE, Time::default(), &mut read).ok()
}

/// Requests of two engines, of which one may send anything, and a disk that may fail.
pub(crate) fn requests(input: &[u8]) {
    let Some(mut replica) = fresh() else {
        panic!("a replica just made can't be opened");
    };
    let mut from = Bytes(input);
    let mut now = Time::default() + Duration::from_secs(10);
    // Operations under way.
    let mut disk: VecDeque<(u64, DiskAction<u8>)> = VecDeque::new();
    let mut storing = 0;
    let mut asked = 0;
    let mut out = Vec::new();
    while !from.is_empty() {
        let event = match from.byte() % 8 {
            0 => {
                now = now + Duration::from_millis(from.u16().into());
                Event::Tick
            }
            1 => Event::Gone {
                conn: ConnId(u64::from(from.byte() % 2)),
            },
            2 | 3 => match disk.pop_front() {
                Some((op, DiskAction::Extents { .. })) => Event::ExtentsFound {
                    op,
                    extents: Vec::new(),
                },
                Some((op, DiskAction::Digest { .. })) => Event::Digested {
                    op,
                    digests: from.byte().is_multiple_of(2).then(Digests::default),
                },
                Some((op, DiskAction::MaySnapshot(_) | DiskAction::Snapshot(_))) => Event::SnapshotDone {
                    op,
                    result: outcome(from.byte()).map_err(|_| SnapshotError::Failed),
                },
                Some((op, _)) => Event::DiskDone {
                    op,
                    result: outcome(from.byte()).map(|()| Some(0)),
                },
                None if storing > 0 => {
                    storing -= 1;
                    Event::PagesStored {
                        result: outcome(from.byte()),
                    }
                }
                None => continue,
            },
            4 if storing > 0 => {
                storing -= 1;
                Event::PagesStored { result: Ok(()) }
            }
            _ => match request(&mut from) {
                Some(event) => {
                    asked += 1;
                    event
                }
                None => continue,
            },
        };
        replica.step(now, event, &mut out);
        for command in out.drain(..) {
            match command {
                Command::Disk { op, action } => {
                    if let Some(range) = range(&action) {
                        assert!(range.valid_for(SIZE), "{range:?} is outside of the volume");
                    }
                    disk.push_back((op, action));
                }
                Command::StorePages(pages) => {
                    assert_eq!(storing, 0, "two batches of pages at once");
                    assert!(!pages.is_empty(), "an empty batch");
                    storing += 1;
                }
                Command::Reply { header, .. } => {
                    assert!(header.is_reply());
                    asked -= 1;
                }
                Command::Drop { .. } => {}
            }
        }
        assert!(asked >= 0, "more answers than requests");
    }
}

fn outcome(byte: u8) -> Result<(), DiskError> {
    match byte {
        0 => Err(DiskError::Failed),
        1 => Err(DiskError::NoSpace),
        2 => Err(DiskError::Transient),
        _ => Ok(()),
    }
}

fn range<P>(action: &DiskAction<P>) -> Option<ByteRange> {
    match action {
        DiskAction::Write { range, .. }
        | DiskAction::Zero { range, .. }
        | DiskAction::Read { range }
        | DiskAction::Extents { range }
        | DiskAction::Digest { range } => Some(*range),
        DiskAction::Flush | DiskAction::MaySnapshot(_) | DiskAction::Snapshot(_) => None,
    }
}

/// A request of this replica's volume with anything else in it; `None` when it is none.
fn request(from: &mut Bytes<'_>) -> Option<Event<u8>> {
    let conn = ConnId(u64::from(from.byte() % 2));
    let mut bytes = [0; stor_replication::wire::HEADER];
    let mut put = |at: usize, part: &[u8]| {
        bytes
            .iter_mut()
            .skip(at)
            .zip(part)
            .for_each(|(to, from)| *to = *from);
    };
    let kind = from.byte() % 16;
    put(5, &[kind, from.byte() & 0x1e, 0]);
    put(8, VOLUME.0.as_bytes());
    put(24, &u64::from(from.byte() % 4).to_le_bytes());
    put(32, &u64::from(from.byte() % 4).to_le_bytes());
    put(40, &from.u16().to_le_bytes());
    put(48, &from.number(SIZE).to_le_bytes());
    let length = u32::try_from(from.number(1 << 16) % (64 << 20)).unwrap_or(0);
    put(56, &length.to_le_bytes());
    put(64, &REPLICA.0.to_le_bytes());
    let most = if kind >= 14 { SNAPSHOT_ID as usize } else { 96 };
    let control = from.some(usize::from(kind >= 2) * most).to_vec();
    let payload = if kind == Kind::Write as u8 {
        length
    } else if [14, 15].contains(&kind) {
        SNAPSHOT_ID
    } else if [2, 8, 9, 10, 11].contains(&kind) {
        u32::try_from(control.len()).unwrap_or(0)
    } else {
        0
    };
    put(60, &payload.to_le_bytes());
    let framed = Framed::try_from(&mended(bytes)).ok()?;
    let body = match framed.header.kind {
        _ if payload == 0 => Body::None,
        Kind::Write => Body::Data(0),
        _ => Body::Bytes(control),
    };
    Some(Event::Request {
        conn,
        header: framed.header,
        body,
    })
}
