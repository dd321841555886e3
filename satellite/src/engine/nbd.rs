//! One NBD client on the engine's socket: bytes in, requests out, replies back.
//!
//! Receiving pauses while the engine has enough to do ([`Client::pause`]); what a client sends then stays
//! in its socket.

use std::io;

use stor_device::{Buf, BufPool, Completion, Fd, Outcome, Piece, Reactor};
use stor_replication::engine::IoError;
use stor_transport::nbd::{
    self, Command, Cookie, ErrorCode, Export, Handshake, NbdError, Negotiated, Progress, REQUEST_BYTES,
    Request,
};
use thiserror::Error;

use super::request::{Answer, Outcome as Done};

/// Bytes received at once, outside of large payloads. Above what a handshake needs (its longest option
/// and header) and room for a few small writes.
const INBOX: usize = 32 << 10;
/// A refused write's payload is read over up to this; a longer one ends the connection.
const MAX_SKIP: u32 = 64 << 20;

/// Replies, bytes, that may wait for a client to take the ones before; then no more requests are taken from it.
const MAX_REPLIES: usize = 32 << 20;

/// Why a client is let go.
#[derive(Debug, Error)]
pub(super) enum ClientError {
    /// It left, in whatever way.
    #[error("the client left")]
    Left,
    /// The system said no.
    #[error("{0}")]
    System(#[from] io::Error),
    /// It does not speak the protocol.
    #[error("{0}")]
    Protocol(#[from] NbdError),
    /// It announces more than anyone would want to read over.
    #[error("a refused write announces {0} bytes")]
    TooMuch(u32),
}

/// A request, with the payload of a write.
pub(super) type Came = (Request, Option<Buf>);

#[derive(Debug)]
enum Stage {
    Handshake(Box<Handshake>),
    Transmission(Negotiated),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Client {
    fd: Fd,
    recv_token: u64,
    send_token: u64,
    stage: Stage,
    have: usize,
    /// The inbox, while a payload is received into its own buffer, or while paused.
    kept: Option<Buf>,
    payload: Option<(Request, usize)>,
    skip: u32,
    paused: bool,
    out: Vec<Piece>,
    /// Bytes queued and not yet handed to a send.
    out_bytes: usize,
    sending: bool,
    /// Disconnects once everything is answered.
    leaving: bool,
    /// Requests not yet answered.
    waiting: usize,
}

impl Client {
    /// Takes a connection over and greets.
    pub(super) fn new(
        fd: Fd,
        export: &Export,
        tokens: (u64, u64),
        reactor: &mut Reactor,
        pool: &BufPool,
    ) -> Result<Self, nbd::ExportError> {
        let mut handshake = Handshake::new(export)?;
        let mut greeting = Vec::new();
        if let Err(error) = handshake.feed(&[], &mut greeting) {
            tracing::error!(%error, "a greeting without any input fails");
        }
        let mut client = Self {
            fd,
            recv_token: tokens.0,
            send_token: tokens.1,
            stage: Stage::Handshake(Box::new(handshake)),
            have: 0,
            kept: None,
            payload: None,
            skip: 0,
            paused: false,
            out: vec![Piece::Bytes(greeting.into())],
            out_bytes: 0,
            sending: false,
            leaving: false,
            waiting: 0,
        };
        client.flush(reactor);
        reactor.recv(fd, pool.take(INBOX), 0, tokens.0);
        Ok(client)
    }

    pub(super) fn fd(&self) -> Fd {
        self.fd
    }

    /// A receive completed. `pause`: take no more for now.
    pub(super) fn received(
        &mut self,
        completion: Completion,
        pause: bool,
        reactor: &mut Reactor,
        pool: &BufPool,
        came: &mut Vec<Came>,
        export: &Export,
    ) -> Result<(), ClientError> {
        let (Outcome::Count(count), Some(buf)) = (completion.result?, completion.buf) else {
            return Err(ClientError::Left);
        };
        if count == 0 {
            return Err(ClientError::Left);
        }
        let mut inbox = match self.payload.take() {
            Some((request, filled)) if filled + count < buf.len() => {
                self.payload = Some((request, filled + count));
                reactor.recv(self.fd, buf, filled + count, self.recv_token);
                return Ok(());
            }
            Some((request, _)) => {
                self.arrived(request, Some(buf), came);
                self.kept.take().unwrap_or_else(|| pool.take(INBOX))
            }
            None => {
                self.have += count;
                buf
            }
        };
        let start = self.parse(&inbox, pool, came, export)?;
        inbox.copy_within(start.at..self.have, 0);
        self.have -= start.at;
        if let Some((request, payload, filled)) = start.partial {
            self.have = 0;
            self.payload = Some((request, filled));
            self.kept = Some(inbox);
            reactor.recv(self.fd, payload, filled, self.recv_token);
        } else if pause {
            self.kept = Some(inbox);
            self.paused = true;
        } else {
            let have = self.have;
            reactor.recv(self.fd, inbox, have, self.recv_token);
        }
        Ok(())
    }

    /// It asks for more than it takes.
    pub(super) fn is_stuffed(&self) -> bool {
        self.out_bytes > MAX_REPLIES
    }

    /// Goes on receiving.
    pub(super) fn resume(&mut self, reactor: &mut Reactor) {
        if std::mem::take(&mut self.paused)
            && let Some(inbox) = self.kept.take()
        {
            let have = self.have;
            reactor.recv(self.fd, inbox, have, self.recv_token);
        }
    }

    /// Takes everything whole out of the inbox.
    fn parse(
        &mut self,
        inbox: &Buf,
        pool: &BufPool,
        came: &mut Vec<Came>,
        export: &Export,
    ) -> Result<Parsed, ClientError> {
        let mut at = 0;
        loop {
            let rest = inbox.get(at..self.have).unwrap_or_default();
            if self.skip > 0 {
                let over = rest.len().min(self.skip as usize);
                self.skip -= u32::try_from(over).unwrap_or(self.skip);
                at += over;
                if self.skip > 0 {
                    return Ok(Parsed { at, partial: None });
                }
                continue;
            }
            let negotiated = match &mut self.stage {
                Stage::Handshake(handshake) => {
                    let mut reply = Vec::new();
                    let (consumed, progress) = handshake.feed(rest, &mut reply)?;
                    at += consumed;
                    if !reply.is_empty() {
                        self.out.push(Piece::Bytes(reply.into()));
                    }
                    match progress {
                        Progress::NeedMore => return Ok(Parsed { at, partial: None }),
                        Progress::Ready(negotiated) => self.stage = Stage::Transmission(negotiated),
                        Progress::Closed(_) => self.leaving = true,
                    }
                    if self.leaving {
                        return Ok(Parsed {
                            at: self.have,
                            partial: None,
                        });
                    }
                    continue;
                }
                Stage::Transmission(negotiated) => *negotiated,
            };
            let Some(head) = rest.first_chunk::<REQUEST_BYTES>() else {
                return Ok(Parsed { at, partial: None });
            };
            let request = nbd::parse_request(head)?;
            at += REQUEST_BYTES;
            let len = request.payload_len() as usize;
            if let Err(refusal) = request.check(export, &negotiated) {
                if request.payload_len() > MAX_SKIP {
                    return Err(ClientError::TooMuch(request.payload_len()));
                }
                self.skip = request.payload_len();
                let mut reply = Vec::new();
                nbd::refusal(&negotiated, request.cookie, refusal, &mut reply);
                self.out.push(Piece::Bytes(reply.into()));
                continue;
            }
            if len == 0 {
                self.arrived(request, None, came);
                continue;
            }
            let here = inbox.get(at..self.have).unwrap_or_default();
            let mut payload = pool.take(len);
            let filled = here.len().min(len);
            payload
                .iter_mut()
                .zip(here.iter().take(filled))
                .for_each(|(to, from)| *to = *from);
            at += filled;
            if filled < len {
                return Ok(Parsed {
                    at,
                    partial: Some((request, payload, filled)),
                });
            }
            self.arrived(request, Some(payload), came);
        }
    }

    /// A whole request came.
    fn arrived(&mut self, request: Request, payload: Option<Buf>, came: &mut Vec<Came>) {
        if request.command == Command::Disconnect {
            self.leaving = true;
        } else {
            self.waiting += 1;
            came.push((request, payload));
        }
    }

    /// Queues the reply to a request.
    pub(super) fn reply(&mut self, cookie: Cookie, what: Answer, outcome: Done) {
        self.waiting = self.waiting.saturating_sub(1);
        let Stage::Transmission(negotiated) = &self.stage else {
            return;
        };
        match (outcome, what) {
            (Ok(Some(data)), Answer::Read { offset }) => {
                let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
                self.out.push(if negotiated.structured {
                    Piece::copy(&nbd::read_data(cookie, true, offset, len))
                } else {
                    Piece::copy(&nbd::simple(cookie, None))
                });
                self.out_bytes += data.len();
                self.out.push(Piece::Shared(data.buffer, data.range));
            }
            (Ok(_), _) => self.out.push(Piece::copy(&nbd::success(cookie))),
            (Err(error), _) => {
                let (code, why) = match error {
                    IoError::Fenced => (ErrorCode::Shutdown, "the volume was taken over by another node"),
                    IoError::Media => (ErrorCode::Io, "no replica can read these bytes"),
                    IoError::Failed => (
                        ErrorCode::Io,
                        "acknowledged writes were lost; attach the volume anew",
                    ),
                };
                let mut reply = Vec::new();
                nbd::failure(negotiated, cookie, code, why, &mut reply);
                self.out.push(Piece::Bytes(reply.into()));
            }
        }
    }

    /// Queues the reply to a `BLOCK_STATUS`. Without a metadata context it was refused when it came.
    pub(super) fn extents(&mut self, request: &Request, found: &[stor_replication::extents::Extent]) {
        self.waiting = self.waiting.saturating_sub(1);
        let Stage::Transmission(negotiated) = &self.stage else {
            return;
        };
        let Some(context) = negotiated.meta_base_allocation else {
            return;
        };
        let extents = found.iter().map(|extent| nbd::Extent {
            length: u64::from(extent.length),
            state: if extent.hole {
                nbd::ExtentState::Hole
            } else {
                nbd::ExtentState::Data
            },
        });
        let mut reply = Vec::new();
        nbd::block_status(context, request, extents, &mut reply);
        self.out_bytes += reply.len();
        self.out.push(Piece::Bytes(reply.into()));
    }

    /// Sends what is queued. `true`: everything is said and the client wants to go.
    pub(super) fn flush(&mut self, reactor: &mut Reactor) -> bool {
        if !self.sending && !self.out.is_empty() {
            self.sending = true;
            self.out_bytes = 0;
            let spare = reactor.pieces();
            reactor.send(self.fd, std::mem::replace(&mut self.out, spare), self.send_token);
        }
        self.leaving && self.waiting == 0 && !self.sending
    }

    /// A send completed.
    pub(super) fn sent(&mut self, completion: Completion) -> Result<(), ClientError> {
        completion.result?;
        self.sending = false;
        Ok(())
    }
}

/// How far the inbox was taken, and a payload that has not all arrived.
struct Parsed {
    at: usize,
    partial: Option<(Request, Buf, usize)>,
}
