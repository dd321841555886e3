//! A snapshot's way from the leader to a member that is too far behind for the log.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use stor_proto::peer as proto;
use stor_proto::peer::peer_client::PeerClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::database::{self, DatabaseError};
use crate::directory::sync_directory;
use crate::entry::{Snapshot, SnapshotMeta, Vote};
use crate::snapshot::{SnapshotFile, describe, remove_draft};
use crate::wire;

/// The whole transfer, including its installation.
pub(crate) const SNAPSHOT_DEADLINE: Duration = Duration::from_mins(10);
/// The wait for one chunk; a sender that is silent for so long is gone.
const CHUNK_DEADLINE: Duration = Duration::from_secs(30);
const CHUNK: usize = 256 << 10;
/// Chunks read ahead of the connection.
const QUEUE: usize = 4;
/// Larger announcements are refused before anything is written: a million volumes need a tenth of it.
const LARGEST: u64 = 16 << 30;

/// Sending failed; the leader tries again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("cannot read the snapshot: {0}")]
    Read(#[source] io::Error),
    #[error("cannot encode the snapshot's description: {0}")]
    Encode(#[source] serde_json::Error),
    #[error("the member did not take it: {0}")]
    Refused(#[source] Box<Status>),
    #[error("the member's answer cannot be read: {0}")]
    Answer(#[source] serde_json::Error),
}

fn crc32c(data: &[u8]) -> u32 {
    // A CRC-32 has 32 bits.
    u32::try_from(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, data)).unwrap_or(u32::MAX)
}

/// Streams the file; answers the vote of the member once it has installed the snapshot.
pub(crate) async fn send(
    mut client: PeerClient<Channel>,
    to: proto::Addressee,
    vote: Vote,
    snapshot: Snapshot,
) -> Result<Vote, SendError> {
    let file = Arc::clone(&snapshot.snapshot.file);
    let length = file.metadata().map_err(SendError::Read)?.len();
    let header = proto::SnapshotHeader {
        to: Some(to),
        vote: Some(wire::put_vote(&vote)),
        meta: serde_json::to_vec(&snapshot.meta).map_err(SendError::Encode)?,
        length,
    };
    let (chunks, stream) = mpsc::channel(QUEUE);
    let reading = tokio::task::spawn_blocking(move || read_chunks(&file, length, header, &chunks));
    let reply = client.snapshot(ReceiverStream::new(stream)).await;
    match reading.await {
        Ok(Err(error)) => return Err(SendError::Read(error)),
        Ok(Ok(())) => {}
        Err(error) => return Err(SendError::Read(io::Error::other(error))),
    }
    let reply = reply.map_err(|status| SendError::Refused(Box::new(status)))?;
    serde_json::from_slice(&reply.into_inner().body).map_err(SendError::Answer)
}

fn read_chunks(
    file: &File,
    length: u64,
    header: proto::SnapshotHeader,
    chunks: &mpsc::Sender<proto::SnapshotChunk>,
) -> io::Result<()> {
    let mut header = Some(header);
    let mut offset = 0;
    while offset < length || header.is_some() {
        let size = usize::try_from(length - offset).unwrap_or(CHUNK).min(CHUNK);
        let mut data = vec![0; size];
        file.read_exact_at(&mut data, offset)?;
        offset += size as u64;
        let chunk = proto::SnapshotChunk {
            header: header.take(),
            crc32c: crc32c(&data),
            data,
        };
        if chunks.blocking_send(chunk).is_err() {
            // The connection ended; its error says why.
            return Ok(());
        }
    }
    Ok(())
}

/// A snapshot was not received; nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error("the sender stopped")]
    Silent,
    #[error("the connection failed: {0}")]
    Connection(#[source] Box<Status>),
    #[error("the transfer is malformed: {0}")]
    Malformed(&'static str),
    #[error("it is meant for another controller")]
    OtherNode,
    #[error("the description cannot be read: {0}")]
    Description(#[source] serde_json::Error),
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the file received is not usable: {0}")]
    Unusable(#[source] DatabaseError),
}

/// A received, checked and synced snapshot.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) vote: Vote,
    pub(crate) snapshot: Snapshot,
}

/// Writes the stream into `draft` and checks it against its own description. One that an older version wrote is
/// brought up to our schema here, before openraft knows of it; a newer one is refused.
pub(crate) async fn receive(
    mut stream: Streaming<proto::SnapshotChunk>,
    me: &proto::Addressee,
    draft: &Path,
    migrator: &sqlx::migrate::Migrator,
) -> Result<Received, ReceiveError> {
    let first = next(&mut stream)
        .await?
        .ok_or(ReceiveError::Malformed("it is empty"))?;
    let header = first
        .header
        .clone()
        .ok_or(ReceiveError::Malformed("it has no header"))?;
    if header.to.as_ref() != Some(me) {
        return Err(ReceiveError::OtherNode);
    }
    let vote = wire::take_vote(header.vote.ok_or(ReceiveError::Malformed("it has no vote"))?);
    let meta: SnapshotMeta = serde_json::from_slice(&header.meta).map_err(ReceiveError::Description)?;
    // openraft asserts this.
    if meta
        .last_log_id
        .is_none_or(|last| last.leader_id.term > vote.leader_id.term)
    {
        return Err(ReceiveError::Malformed("it is not older than its sender's term"));
    }
    if header.length > LARGEST {
        return Err(ReceiveError::Malformed("it is larger than any catalogue"));
    }
    write_file(&mut stream, first, header.length, draft).await?;
    check(draft, &meta, migrator).await?;
    let snapshot = SnapshotFile::open(draft).map_err(|source| failed(draft, source))?;
    Ok(Received {
        vote,
        snapshot: Snapshot { meta, snapshot },
    })
}

async fn next(
    stream: &mut Streaming<proto::SnapshotChunk>,
) -> Result<Option<proto::SnapshotChunk>, ReceiveError> {
    tokio::time::timeout(CHUNK_DEADLINE, stream.message())
        .await
        .map_err(|_| ReceiveError::Silent)?
        .map_err(|status| ReceiveError::Connection(Box::new(status)))
}

fn failed(path: &Path, source: io::Error) -> ReceiveError {
    ReceiveError::Write {
        path: path.to_owned(),
        source,
    }
}

async fn write_file(
    stream: &mut Streaming<proto::SnapshotChunk>,
    first: proto::SnapshotChunk,
    length: u64,
    draft: &Path,
) -> Result<(), ReceiveError> {
    remove_draft(draft).map_err(|source| failed(draft, source))?;
    let mut file = File::create(draft).map_err(|source| failed(draft, source))?;
    let mut written = 0;
    let mut chunk = Some(first);
    while let Some(proto::SnapshotChunk {
        data, crc32c: sum, ..
    }) = chunk
    {
        if crc32c(&data) != sum {
            return Err(ReceiveError::Malformed("a chunk does not match its checksum"));
        }
        written += data.len() as u64;
        if written > length {
            return Err(ReceiveError::Malformed("it is longer than announced"));
        }
        // 256 KiB into the page cache; not worth a thread of its own.
        file.write_all(&data).map_err(|source| failed(draft, source))?;
        chunk = next(stream).await?;
    }
    if written != length {
        return Err(ReceiveError::Malformed("it is shorter than announced"));
    }
    let synced = tokio::task::spawn_blocking(move || file.sync_all()).await;
    synced
        .map_err(io::Error::other)
        .flatten()
        .map_err(|source| failed(draft, source))
}

async fn check(
    draft: &Path,
    meta: &SnapshotMeta,
    migrator: &sqlx::migrate::Migrator,
) -> Result<(), ReceiveError> {
    let found = describe(draft).await.map_err(ReceiveError::Unusable)?;
    if found != *meta {
        return Err(ReceiveError::Malformed("the file is not the one described"));
    }
    migrate(draft, migrator).await.map_err(ReceiveError::Unusable)?;
    let dir = draft.parent().unwrap_or(draft);
    File::open(draft)
        .and_then(|file| file.sync_all())
        .and_then(|()| sync_directory(dir))
        .map_err(|source| failed(draft, source))
}

async fn migrate(draft: &Path, migrator: &sqlx::migrate::Migrator) -> Result<(), DatabaseError> {
    use sqlx::{Connection, SqliteConnection};
    let sqlite = || database::sqlite(draft);
    // Without a write-ahead log, so that one file remains.
    let options = database::options(draft).journal_mode(sqlx::sqlite::SqliteJournalMode::Delete);
    let mut conn = SqliteConnection::connect_with(&options).await.map_err(sqlite())?;
    database::migrate(&mut conn, draft, migrator).await?;
    conn.close().await.map_err(sqlite())
}
