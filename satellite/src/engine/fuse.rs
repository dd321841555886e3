//! The kernel's requests on a FUSE connection.
//!
//! The connection outlives this process: the agent keeps its descriptor, and what the kernel and an
//! earlier process agreed on is in a file beside the control socket. A new engine has the kernel give
//! every unanswered request again.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use stor_device::{Buf, BufPool, Completion, Fd, Outcome, Piece, Reactor, Shared};
use stor_replication::engine::{IoError, Request};
use stor_replication::range::ByteRange;
use stor_transport::fuse::{
    self as proto, Answer as Decision, Connection, Errno, READ_BUFFER, Session, Unique,
};

use super::request::{Answer, Asker, Outcome as Done};
use crate::data::Data;

/// A write below this is copied out of the read buffer, which is over 1 MiB.
const COPY_BELOW: usize = 512 << 10;
/// Where what was agreed with the kernel is kept.
const SESSION_FILE: &str = "fuse-session.json";

/// See the module.
#[derive(Debug)]
pub(super) struct Fuse {
    fd: Fd,
    connection: Connection,
    session_file: PathBuf,
    read_token: u64,
    write_token: u64,
    /// Not reading: there is enough to do, or the end was reached.
    paused: Option<Buf>,
    over: bool,
}

/// What a read brought.
pub(super) enum Came {
    /// A request for the volume.
    Request(Asker, Request<Data>),
    /// Nothing to do.
    Nothing,
}

/// What an earlier process agreed on with the kernel, if one did: then its guest lives.
pub(super) fn earlier_session(control: &Path) -> Option<Session> {
    let path = control.with_file_name(SESSION_FILE);
    let text = fs::read(&path).ok()?;
    match serde_json::from_slice(&text) {
        Ok(session) => Some(session),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "what was agreed with the kernel is not readable");
            None
        }
    }
}

/// A mount is about to be made anew: nothing agreed before holds for it, and no client of an earlier one
/// lives. Failing to say so would make a later engine wait for requests that never were.
pub fn forget_session(control: &Path) -> io::Result<()> {
    match fs::remove_file(control.with_file_name(SESSION_FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Fuse {
    /// Takes the connection over.
    pub(super) fn new(
        fd: OwnedFd,
        control: &Path,
        (size, read_only): (u64, bool),
        (read_token, write_token): (u64, u64),
        reactor: &mut Reactor,
        pool: &BufPool,
    ) -> io::Result<Self> {
        let fd = reactor.register(fd)?;
        let connection = match earlier_session(control) {
            Some(session) => {
                if session.can_resend() {
                    reactor.write_stream(fd, vec![Piece::copy(&proto::notify_resend())], write_token);
                } else {
                    tracing::error!(
                        "this kernel can't give requests again (Linux 6.9 can): those under way hang"
                    );
                }
                Connection::resumed(size, read_only, session)
            }
            None => Connection::new(size, read_only),
        };
        reactor.read_stream(fd, pool.take(READ_BUFFER), read_token);
        let session_file = control.with_file_name(SESSION_FILE);
        Ok(Self {
            fd,
            connection,
            session_file,
            read_token,
            write_token,
            paused: None,
            over: false,
        })
    }

    /// A read completed.
    pub(super) fn read(
        &mut self,
        completion: Completion,
        pause: bool,
        reactor: &mut Reactor,
        pool: &BufPool,
    ) -> Came {
        let buf = completion.buf.unwrap_or_else(|| pool.take(READ_BUFFER));
        let count = match completion.result {
            Ok(Outcome::Count(count)) => count,
            Ok(_) => 0,
            Err(error) => {
                self.failed(&error, buf, reactor);
                return Came::Nothing;
            }
        };
        let (came, buf) = self.request(buf, count, reactor, pool);
        if pause {
            self.paused = Some(buf);
        } else {
            reactor.read_stream(self.fd, buf, self.read_token);
        }
        came
    }

    /// ENODEV is the end of the mount; the others concern one request that the kernel took back.
    fn failed(&mut self, error: &io::Error, buf: Buf, reactor: &mut Reactor) {
        let gone = [19, 9, 103, 107, 125];
        if error.raw_os_error().is_some_and(|code| gone.contains(&code)) {
            tracing::info!(%error, "the mount is gone");
            self.over = true;
        } else {
            tracing::debug!(%error, "a request was taken back");
            reactor.read_stream(self.fd, buf, self.read_token);
        }
    }

    fn request(&mut self, buf: Buf, count: usize, reactor: &mut Reactor, pool: &BufPool) -> (Came, Buf) {
        let parsed = buf.get(..count).map(proto::parse);
        let decision = match parsed {
            Some(Ok(request)) => self.connection.answer(&request),
            Some(Err(error)) => {
                tracing::error!(%error, "the kernel sent what can't be read");
                return (Came::Nothing, buf);
            }
            None => return (Came::Nothing, buf),
        };
        match decision {
            Decision::Reply(bytes) => self.write(vec![Piece::Bytes(bytes.into())], reactor),
            Decision::Started(bytes, session) => {
                self.keep(session);
                self.write(vec![Piece::Bytes(bytes.into())], reactor);
            }
            Decision::Refused(bytes, refused) => {
                tracing::error!(error = %refused, "the kernel can't be served");
                self.write(vec![Piece::Bytes(bytes.into())], reactor);
            }
            Decision::Nothing => {}
            Decision::Data(data) => return self.data(data, buf, reactor, pool),
        }
        (Came::Nothing, buf)
    }

    /// A request for the volume. The loop device keeps to 4096 bytes; anyone else is refused here.
    fn data(&mut self, data: proto::Data, buf: Buf, reactor: &mut Reactor, pool: &BufPool) -> (Came, Buf) {
        let (unique, offset, len) = match &data {
            proto::Data::Read { unique, offset, len } => (*unique, *offset, u64::from(*len)),
            proto::Data::Write {
                unique,
                offset,
                payload,
            } => (*unique, *offset, payload.len() as u64),
            proto::Data::Discard { unique, offset, len } | proto::Data::Zero { unique, offset, len } => {
                (*unique, *offset, *len)
            }
            proto::Data::Flush { unique } => (*unique, 0, 0),
        };
        let range = ByteRange::new(offset, len);
        let sector = stor_replication::range::SECTOR;
        if !offset.is_multiple_of(sector) || !len.is_multiple_of(sector) {
            self.write(vec![Piece::copy(&proto::error(unique, Errno::INVAL))], reactor);
            return (Came::Nothing, buf);
        }
        let asker = |what| Asker::Fuse { unique, what };
        let zero = |discard| Request::Zero {
            range,
            discard,
            fua: false,
        };
        match data {
            proto::Data::Read { .. } => (
                Came::Request(asker(Answer::Read { offset }), Request::Read(range)),
                buf,
            ),
            proto::Data::Flush { .. } => (Came::Request(asker(Answer::Done), Request::Flush), buf),
            proto::Data::Discard { .. } => (Came::Request(asker(Answer::Done), zero(true)), buf),
            proto::Data::Zero { .. } => (Came::Request(asker(Answer::Done), zero(false)), buf),
            proto::Data::Write { payload, .. } => {
                let what = Answer::Written {
                    len: u32::try_from(payload.len()).unwrap_or(u32::MAX),
                };
                let (data, buf) = take_payload(buf, payload, pool);
                (
                    Came::Request(
                        asker(what),
                        Request::Write {
                            range,
                            data,
                            fua: false,
                        },
                    ),
                    buf,
                )
            }
        }
    }

    /// What was agreed is needed by the next process: kept before the kernel can go on.
    fn keep(&self, session: Session) {
        let kept = serde_json::to_vec(&session)
            .map_err(io::Error::other)
            .and_then(|text| {
                let path = self.session_file.with_added_extension("new");
                fs::write(&path, text)?;
                fs::rename(&path, &self.session_file)
            });
        if let Err(error) = kept {
            tracing::error!(path = %self.session_file.display(), %error, "a crash of this engine will break the mount");
        }
    }

    /// The volume has grown.
    pub(super) fn set_size(&mut self, size: u64, reactor: &mut Reactor) {
        self.connection.set_size(size);
        self.write(vec![Piece::copy(&proto::notify_attributes())], reactor);
    }

    /// Goes on reading.
    pub(super) fn resume(&mut self, reactor: &mut Reactor) {
        if let Some(buf) = self.paused.take().filter(|_| !self.over) {
            reactor.read_stream(self.fd, buf, self.read_token);
        }
    }

    /// Answers a request.
    pub(super) fn reply(&mut self, unique: Unique, what: Answer, outcome: Done, reactor: &mut Reactor) {
        let pieces = match (outcome, what) {
            (Ok(Some(data)), Answer::Read { .. }) => {
                let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
                vec![
                    Piece::copy(&proto::read_header(unique, len)),
                    Piece::Shared(data.buffer, data.range),
                ]
            }
            (Ok(_), Answer::Written { len }) => vec![Piece::copy(&proto::written(unique, len))],
            (Ok(_), _) => vec![Piece::copy(&proto::done(unique))],
            (Err(IoError::Fenced | IoError::Media | IoError::Failed), _) => {
                vec![Piece::copy(&proto::error(unique, Errno::IO))]
            }
        };
        self.write(pieces, reactor);
    }

    fn write(&mut self, pieces: Vec<Piece>, reactor: &mut Reactor) {
        reactor.write_stream(self.fd, pieces, self.write_token);
    }
}

/// The payload of a write, and a buffer for the next read.
fn take_payload(buf: Buf, payload: std::ops::Range<usize>, pool: &BufPool) -> (Data, Buf) {
    if payload.len() < COPY_BELOW {
        let mut copy = pool.take(payload.len());
        let bytes = buf.get(payload).unwrap_or_default();
        copy.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        (Data::whole(Shared::from(copy)), buf)
    } else {
        (Data::new(Shared::from(buf), payload), pool.take(READ_BUFFER))
    }
}
