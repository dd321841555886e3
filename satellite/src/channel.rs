//! One connection of the replication protocol over the reactor: frames in, frames out.
//!
//! One receive is always under way, one send at most. Small messages are taken out of an inbox of
//! [`INBOX`] bytes, many at a time; the rest of a large payload is received where it will stay. Frames to
//! be sent gather until [`Channel::flush`], so that one batch of work costs one system call. What does not
//! check out ends the connection: [`ChannelError`].

use std::io;

use stor_device::{Buf, BufPool, Completion, Fd, Outcome, Piece, Reactor, Shared};
use stor_replication::body::Body;
use stor_replication::wire::{Framed, HEADER, Header, Kind, WireError, crc32c};
use thiserror::Error;

use crate::data::Data;

/// Bytes received at once. Holds seven 4 KiB writes; a longer payload goes straight to its place.
const INBOX: usize = 32 << 10;
/// Bytes that may wait to be sent. Far above what both sides have in flight; a peer that lets more pile up
/// does not read.
const OUTBOX: usize = 256 << 20;

/// Why a connection is of no more use.
#[derive(Debug, Error)]
pub(crate) enum ChannelError {
    /// The peer closed it, or the network did.
    #[error("the connection ended")]
    Ended,
    /// The system said no.
    #[error("{0}")]
    System(#[from] io::Error),
    /// Not the protocol.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// The peer does not read.
    #[error("the peer does not take its messages")]
    Stuffed,
}

/// A payload that is being received into its own buffer.
#[derive(Debug)]
struct Partial {
    framed: Framed,
    filled: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Channel {
    fd: Fd,
    recv_token: u64,
    send_token: u64,
    /// Bytes received and not yet taken, at the start of the inbox, while a payload is being received.
    kept: Option<Buf>,
    have: usize,
    partial: Option<Partial>,
    out: Vec<Piece>,
    out_bytes: usize,
    sending: bool,
}

impl Channel {
    /// Takes a connection over and begins to receive.
    pub(crate) fn new(
        fd: Fd,
        recv_token: u64,
        send_token: u64,
        reactor: &mut Reactor,
        pool: &BufPool,
    ) -> Self {
        let channel = Self {
            fd,
            recv_token,
            send_token,
            kept: None,
            have: 0,
            partial: None,
            out: Vec::new(),
            out_bytes: 0,
            sending: false,
        };
        reactor.recv(fd, pool.take(INBOX), 0, recv_token);
        channel
    }

    /// The connection's descriptor.
    pub(crate) fn fd(&self) -> Fd {
        self.fd
    }

    /// A receive completed: appends the messages it brought and goes on receiving.
    pub(crate) fn received(
        &mut self,
        completion: Completion,
        reactor: &mut Reactor,
        pool: &BufPool,
        messages: &mut Vec<(Header, Body<Data>)>,
    ) -> Result<(), ChannelError> {
        let (Outcome::Count(count @ 1..), Some(buf)) = (completion.result?, completion.buf) else {
            return Err(ChannelError::Ended);
        };
        if let Some(partial) = self.partial.take() {
            return self.fill(partial, buf, count, reactor, pool, messages);
        }
        self.have += count;
        self.parse(buf, reactor, pool, messages)
    }

    /// More of a payload came into its own buffer.
    fn fill(
        &mut self,
        mut partial: Partial,
        buf: Buf,
        count: usize,
        reactor: &mut Reactor,
        pool: &BufPool,
        messages: &mut Vec<(Header, Body<Data>)>,
    ) -> Result<(), ChannelError> {
        partial.filled += count;
        if partial.filled < buf.len() {
            let filled = partial.filled;
            self.partial = Some(partial);
            reactor.recv(self.fd, buf, filled, self.recv_token);
            return Ok(());
        }
        messages.push(message(&partial.framed, buf)?);
        let inbox = self.kept.take().unwrap_or_else(|| pool.take(INBOX));
        self.have = 0;
        reactor.recv(self.fd, inbox, 0, self.recv_token);
        Ok(())
    }

    /// Takes every whole message out of the inbox.
    fn parse(
        &mut self,
        mut inbox: Buf,
        reactor: &mut Reactor,
        pool: &BufPool,
        messages: &mut Vec<(Header, Body<Data>)>,
    ) -> Result<(), ChannelError> {
        let mut start = 0;
        while let Some(header) = inbox
            .get(start..self.have)
            .and_then(<[u8]>::first_chunk::<HEADER>)
        {
            let framed = Framed::try_from(header)?;
            let payload = framed.payload as usize;
            let here = start + HEADER;
            if payload == 0 {
                messages.push((framed.header, Body::None));
                start = here;
                continue;
            }
            let available = (self.have - here).min(payload);
            let small = here + payload <= inbox.len() && payload <= INBOX / 2;
            if available < payload && small {
                break;
            }
            let mut buf = pool.take(payload);
            let part = inbox.get(here..here + available).unwrap_or_default();
            buf.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
            if available < payload {
                self.partial = Some(Partial {
                    framed,
                    filled: available,
                });
                self.kept = Some(inbox);
                self.have = 0;
                reactor.recv(self.fd, buf, available, self.recv_token);
                return Ok(());
            }
            messages.push(message(&framed, buf)?);
            start = here + payload;
        }
        inbox.copy_within(start..self.have, 0);
        self.have -= start;
        let have = self.have;
        reactor.recv(self.fd, inbox, have, self.recv_token);
        Ok(())
    }

    /// Queues a message.
    pub(crate) fn push(&mut self, header: &Header, body: Body<Data>) {
        let piece = match body {
            Body::None => None,
            Body::Data(data) => Some((
                Piece::Shared(data.buffer.clone(), data.range.clone()),
                data.len(),
                data.crc,
            )),
            Body::Bytes(bytes) if bytes.is_empty() => None,
            Body::Bytes(bytes) => {
                let (len, crc) = (bytes.len(), crc32c(&bytes));
                Some((Piece::Bytes(bytes.into()), len, crc))
            }
        };
        let (len, crc) = piece.as_ref().map_or((0, 0), |(_, len, crc)| (*len, *crc));
        self.out.push(Piece::copy(
            &header.encode(u32::try_from(len).unwrap_or(u32::MAX), crc),
        ));
        self.out.extend(piece.map(|(piece, ..)| piece));
        self.out_bytes += HEADER + len;
    }

    /// Sends what is queued, unless a send is under way: then its end sends it.
    pub(crate) fn flush(&mut self, reactor: &mut Reactor) -> Result<(), ChannelError> {
        if self.out_bytes > OUTBOX {
            return Err(ChannelError::Stuffed);
        }
        if !self.sending && !self.out.is_empty() {
            self.sending = true;
            self.out_bytes = 0;
            let spare = reactor.pieces();
            reactor.send(self.fd, std::mem::replace(&mut self.out, spare), self.send_token);
        }
        Ok(())
    }

    /// Something has not left yet.
    pub(crate) fn is_sending(&self) -> bool {
        self.sending || !self.out.is_empty()
    }

    /// A send completed.
    pub(crate) fn sent(&mut self, completion: Completion, reactor: &mut Reactor) -> Result<(), ChannelError> {
        completion.result?;
        self.sending = false;
        self.flush(reactor)
    }
}

/// A message whose payload is whole, if it is as it was sent.
fn message(framed: &Framed, buf: Buf) -> Result<(Header, Body<Data>), ChannelError> {
    let found = framed.check(&buf)?;
    let body = if matches!(framed.header.kind, Kind::Write | Kind::Read) {
        let range = 0..buf.len();
        Body::Data(Data {
            buffer: Shared::from(buf),
            range,
            crc: found,
        })
    } else {
        Body::Bytes(buf.to_vec())
    };
    Ok((framed.header, body))
}
