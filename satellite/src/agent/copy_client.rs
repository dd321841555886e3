//! Reads a copy of a snapshot on another node: one connection, one question at a time, each with a deadline. Blocks.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use stor_replication::ids::{OpId, View};
use stor_replication::range::ByteRange;
use stor_replication::recopy::{Digest, Source};
use stor_replication::wire::{Framed, HEADER, Header, Kind, Status, crc32c};

use super::copies::CopyKey;
use crate::replicas::readers::decode;

/// A node that is there takes milliseconds.
const CONNECT: Duration = Duration::from_secs(5);
/// For an answer: a disk may be busy with others.
const ANSWER: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub(super) struct CopyClient {
    stream: TcpStream,
    key: CopyKey,
    next: u64,
    size: u64,
}

impl CopyClient {
    /// Connects and opens the copy.
    pub(super) fn open(address: &str, key: CopyKey, right: &[u8]) -> Result<Self, String> {
        let stream = connect(address).map_err(|error| format!("cannot connect: {error}"))?;
        let mut client = Self {
            stream,
            key,
            next: 1,
            size: 0,
        };
        let mut payload = key.1.0.as_bytes().to_vec();
        payload.extend(right);
        let (answer, _) = client.ask(Kind::OpenCopy, ByteRange::default(), &payload)?;
        client.size = answer.offset;
        Ok(client)
    }

    /// Bytes of the copy.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    fn ask(&mut self, kind: Kind, range: ByteRange, payload: &[u8]) -> Result<(Header, Vec<u8>), String> {
        let op = OpId(self.next);
        self.next += 1;
        let (volume, _, replica) = self.key;
        let asked = Header {
            kind,
            flags: 0,
            volume,
            replica,
            view: View::default(),
            op,
            offset: range.offset,
            length: u32::try_from(range.len).map_err(|_| "too much at once".to_owned())?,
            status: Status::Ok,
        };
        let (answer, payload) = self
            .exchange(&asked, payload)
            .map_err(|error| format!("the connection: {error}"))?;
        let expected = (kind, volume, replica, op, true);
        if (
            answer.kind,
            answer.volume,
            answer.replica,
            answer.op,
            answer.is_reply(),
        ) != expected
        {
            return Err("the answer is to another question".to_owned());
        }
        match answer.status {
            Status::Ok => Ok((answer, payload)),
            Status::SnapshotUnknown => Err("it has no such copy".to_owned()),
            Status::NotAuthorised => Err("it does not accept the right to read it".to_owned()),
            other => Err(format!("refused: {other:?}")),
        }
    }

    fn exchange(&mut self, header: &Header, payload: &[u8]) -> io::Result<(Header, Vec<u8>)> {
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let mut message = header.encode(length, crc32c(payload)).to_vec();
        message.extend(payload);
        self.stream.write_all(&message)?;
        let mut head = [0; HEADER];
        self.stream.read_exact(&mut head)?;
        let framed = Framed::try_from(&head).map_err(io::Error::other)?;
        let mut body = vec![0; framed.payload as usize];
        self.stream.read_exact(&mut body)?;
        framed.check(&body).map_err(io::Error::other)?;
        Ok((framed.header, body))
    }
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "it has no address");
    for to in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&to, CONNECT) {
            Ok(stream) => {
                stream.set_read_timeout(Some(ANSWER))?;
                stream.set_write_timeout(Some(ANSWER))?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Source for CopyClient {
    type Data = Vec<u8>;
    type Error = String;

    fn digests(&mut self, range: ByteRange) -> Result<Vec<Digest>, String> {
        let (_, payload) = self.ask(Kind::CopyDigests, range, &[])?;
        Ok(decode(&payload))
    }

    fn read(&mut self, range: ByteRange) -> Result<Vec<u8>, String> {
        let (_, payload) = self.ask(Kind::CopyRead, range, &[])?;
        Ok(payload)
    }
}
