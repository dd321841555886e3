//! Copies of snapshots, read by satellites that make theirs anew (S6).
//!
//! A connection that opens a copy is for that copy and nothing else; it asks for one thing at a time, and a thread of
//! its own answers. No replica is concerned: its state machine is not asked, and it may be gone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use stor_replication::body::Body;
use stor_replication::ids::{ConnId, SnapshotId};
use stor_replication::range::ByteRange;
use stor_replication::recopy::Digest;
use stor_replication::wire::{DIGEST, Header, Kind, SNAPSHOT_ID, Status};
use uuid::Uuid;

use super::content::Content;
use super::server::Loop;
use crate::agent::copies::CopyKey;
use crate::data::Data;

/// Copies that are read at once; whoever makes another tries again later.
const MOST: usize = 32;
/// Bytes asked about at once: what a thread has in memory.
pub(crate) const MOST_BYTES: u64 = 4 << 20;
/// Stack of a thread that reads.
const STACK: usize = 128 << 10;

/// One connection's copy.
#[derive(Debug)]
pub(super) struct Reader {
    key: CopyKey,
    content: Option<Arc<Content>>,
    busy: bool,
}

/// What a thread found.
#[derive(Debug)]
pub(super) struct ReadDone {
    conn: ConnId,
    header: Header,
    answer: Result<Answer, Status>,
}

#[derive(Debug)]
enum Answer {
    Opened(Arc<Content>),
    Bytes(Vec<u8>),
}

/// Whether a message is for a copy.
pub(super) fn is_for_copy(kind: Kind) -> bool {
    matches!(kind, Kind::OpenCopy | Kind::CopyDigests | Kind::CopyRead)
}

impl Loop<'_> {
    /// Takes over which copies may be read. Whoever reads another is let go.
    pub(super) fn take_copies(&mut self, copies: BTreeMap<CopyKey, PathBuf>) {
        self.copies = copies;
        let gone: Vec<ConnId> = self
            .readers
            .iter()
            .filter(|(_, reader)| !self.copies.contains_key(&reader.key))
            .map(|(conn, _)| *conn)
            .collect();
        for conn in gone {
            self.drop_conn(conn, "the copy it reads is to go");
        }
    }

    /// A message for a copy.
    pub(super) fn copy_request(&mut self, conn: ConnId, header: Header, body: &Body<Data>) {
        if header.kind == Kind::OpenCopy {
            return self.open_copy(conn, header, body.bytes());
        }
        let Some(reader) = self.readers.get_mut(&conn) else {
            return self.push(conn, &header.reply(Status::NotOpen), Body::None);
        };
        let Some(content) = reader.content.clone().filter(|_| !reader.busy) else {
            return self.drop_conn(conn, "it asks before it was answered");
        };
        let range = header.range();
        if !range.lies_in(content.size) || range.len > MOST_BYTES {
            return self.push(conn, &header.reply(Status::Invalid), Body::None);
        }
        reader.busy = true;
        self.read_copy(conn, header, move || look(&content, header.kind, range));
    }

    //= docs/replication.md#R14
    fn open_copy(&mut self, conn: ConnId, header: Header, payload: &[u8]) {
        let Some((id, right)) = payload.split_first_chunk::<{ SNAPSHOT_ID as usize }>() else {
            return self.push(conn, &header.reply(Status::Invalid), Body::None);
        };
        let snapshot = SnapshotId(Uuid::from_bytes(*id));
        if let Err(why) = self.gate.check_copy(snapshot, right) {
            return self.refuse(conn, &header, why);
        }
        if self.readers.contains_key(&conn) || self.is_bound(conn) {
            return self.drop_conn(conn, "it is open already");
        }
        if self.readers.len() >= MOST {
            return self.drop_conn(conn, "too many copies are read");
        }
        let key = (header.volume, snapshot, header.replica);
        let Some(path) = self.copies.get(&key).cloned() else {
            return self.push(conn, &header.reply(Status::SnapshotUnknown), Body::None);
        };
        tracing::debug!(volume = %key.0, snapshot = %key.1, replica = %key.2, "a copy is read");
        let reader = Reader {
            key,
            content: None,
            busy: true,
        };
        self.readers.insert(conn, reader);
        self.read_copy(conn, header, move || match Content::open(&path) {
            Ok(content) => Ok(Answer::Opened(Arc::new(content))),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a copy of a snapshot can't be read");
                Err(Status::SnapshotFailed)
            }
        });
    }

    fn read_copy(
        &mut self,
        conn: ConnId,
        header: Header,
        work: impl FnOnce() -> Result<Answer, Status> + Send + 'static,
    ) {
        let (tell, waker) = (self.reads.0.clone(), self.reactor.waker());
        let thread = std::thread::Builder::new()
            .name("read-copy".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let answer = work();
                // The server never goes away before its process.
                drop(tell.send(ReadDone { conn, header, answer }));
                waker.wake();
            });
        if let Err(error) = thread {
            tracing::warn!(%error, "no thread to read a copy on");
            self.drop_conn(conn, "no thread");
        }
    }

    /// Answers what was found.
    pub(super) fn take_reads(&mut self) {
        while let Ok(done) = self.reads.1.try_recv() {
            let ReadDone { conn, header, answer } = done;
            let Some(reader) = self.readers.get_mut(&conn) else {
                continue;
            };
            reader.busy = false;
            match answer {
                Ok(Answer::Opened(content)) => {
                    let offset = content.size;
                    reader.content = Some(content);
                    let header = Header {
                        offset,
                        ..header.reply(Status::Ok)
                    };
                    self.push(conn, &header, Body::None);
                }
                Ok(Answer::Bytes(bytes)) => {
                    self.push(conn, &header.reply(Status::Ok), Body::Bytes(bytes));
                }
                Err(status) => self.push(conn, &header.reply(status), Body::None),
            }
        }
    }
}

/// Reads what is asked for.
fn look(content: &Content, kind: Kind, range: ByteRange) -> Result<Answer, Status> {
    let found = match kind {
        Kind::CopyDigests => content.digests(range).map(|digests| encode(&digests)),
        _ => content.read(range),
    };
    found.map(Answer::Bytes).map_err(|error| {
        tracing::warn!(%error, offset = range.offset, "a copy of a snapshot can't be read");
        Status::MediaError
    })
}

/// As on the wire.
fn encode(digests: &[Digest]) -> Vec<u8> {
    let bytes = |digest: &Digest| match digest {
        Digest::Zero => [0; DIGEST],
        Digest::Of(bytes) => *bytes,
    };
    digests.iter().flat_map(bytes).collect()
}

/// From the wire.
pub(crate) fn decode(bytes: &[u8]) -> Vec<Digest> {
    let one = |bytes: &[u8; DIGEST]| match bytes {
        [0, rest @ ..] if rest.iter().all(|byte| *byte == 0) => Digest::Zero,
        bytes => Digest::Of(*bytes),
    };
    let (chunks, _) = bytes.as_chunks::<DIGEST>();
    chunks.iter().map(one).collect()
}
