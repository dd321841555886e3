//! A small NBD client on a unix socket: enough to write, flush and read a volume where no device can be had.
//! One request at a time, fixed newstyle negotiation, simple replies.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::failure::Failure;

/// I/O waits this long for a replica that is being taken out, and then some.
const DEADLINE: Duration = Duration::from_mins(1);

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const GREETING: &[u8; 8] = b"NBDMAGIC";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_ERROR: u32 = 1 << 31;
/// Longest option reply that is read.
const MAX_REPLY: u32 = 64 << 10;
/// Option replies before the server is given up.
const MAX_REPLIES: usize = 32;

/// A connection to one export.
#[derive(Debug)]
pub(crate) struct Nbd<S = UnixStream> {
    stream: S,
    handle: u64,
}

#[derive(Clone, Copy)]
enum Kind {
    Read = 0,
    Write = 1,
    Flush = 3,
}

impl Nbd {
    /// Connects to `nbd+unix:///EXPORT?socket=PATH`.
    pub(crate) fn connect(uri: &str) -> Result<Self, Failure> {
        let (export, path) = parse(uri).ok_or_else(|| Failure::failed(format!("{uri} is no NBD socket")))?;
        let open = || -> io::Result<UnixStream> {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            stream.set_write_timeout(Some(DEADLINE))?;
            Ok(stream)
        };
        let stream =
            open().map_err(|e| Failure::failed(format!("no connection to {uri}")).why(e.to_string()))?;
        Self::negotiate(stream, export)
            .map_err(|e| Failure::failed(format!("no NBD on {uri}")).why(e.to_string()))
    }
}

impl<S: Read + Write> Nbd<S> {
    fn negotiate(mut stream: S, export: &str) -> io::Result<Self> {
        let mut greeting = [0_u8; 18];
        stream.read_exact(&mut greeting)?;
        if !greeting.starts_with(GREETING) || greeting.get(8..16) != Some(OPTION_MAGIC.as_slice()) {
            return Err(io::Error::other("the server does not speak newstyle NBD"));
        }
        let name = u32::try_from(export.len()).map_err(io::Error::other)?;
        let mut hello = Vec::new();
        hello.extend_from_slice(&FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes());
        hello.extend_from_slice(OPTION_MAGIC);
        hello.extend_from_slice(&OPTION_GO.to_be_bytes());
        hello.extend_from_slice(&(name + 6).to_be_bytes());
        hello.extend_from_slice(&name.to_be_bytes());
        hello.extend_from_slice(export.as_bytes());
        hello.extend_from_slice(&0_u16.to_be_bytes());
        stream.write_all(&hello)?;
        for _ in 0..MAX_REPLIES {
            let magic = u64::from_be_bytes(take(&mut stream)?);
            let option = u32::from_be_bytes(take(&mut stream)?);
            let kind = u32::from_be_bytes(take(&mut stream)?);
            let length = u32::from_be_bytes(take(&mut stream)?);
            if magic != OPTION_REPLY_MAGIC || option != OPTION_GO || length > MAX_REPLY {
                return Err(io::Error::other("the server's reply to GO is not understood"));
            }
            let mut data = vec![0_u8; usize::try_from(length).map_err(io::Error::other)?];
            stream.read_exact(&mut data)?;
            if kind == REPLY_ACK {
                return Ok(Self { stream, handle: 0 });
            }
            if kind & REPLY_ERROR != 0 {
                let why = String::from_utf8_lossy(&data);
                return Err(io::Error::other(format!(
                    "the server refuses export {export:?}: {why}"
                )));
            }
        }
        Err(io::Error::other("the server never accepts the export"))
    }

    /// Writes.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        self.request(Kind::Write, offset, bytes.len(), bytes, &mut [])
    }

    /// Reads.
    pub(crate) fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        self.request(Kind::Read, offset, bytes.len(), &[], bytes)
    }

    /// Makes durable what was written.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.request(Kind::Flush, 0, 0, &[], &mut [])
    }

    fn request(
        &mut self,
        kind: Kind,
        offset: u64,
        length: usize,
        out: &[u8],
        into: &mut [u8],
    ) -> Result<(), Failure> {
        let doing = match kind {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Flush => "flush",
        };
        self.exchange(kind, offset, length, out, into).map_err(|e| {
            Failure::failed(format!("a {doing} failed")).why(format!("{e}, at byte {offset} over NBD"))
        })
    }

    fn exchange(
        &mut self,
        kind: Kind,
        offset: u64,
        length: usize,
        out: &[u8],
        into: &mut [u8],
    ) -> io::Result<()> {
        self.handle += 1;
        let mut request = Vec::with_capacity(28 + out.len());
        request.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        request.extend_from_slice(&0_u16.to_be_bytes());
        request.extend_from_slice(&(kind as u16).to_be_bytes());
        request.extend_from_slice(&self.handle.to_be_bytes());
        request.extend_from_slice(&offset.to_be_bytes());
        request.extend_from_slice(&u32::try_from(length).map_err(io::Error::other)?.to_be_bytes());
        request.extend_from_slice(out);
        self.stream.write_all(&request)?;
        let magic = u32::from_be_bytes(take(&mut self.stream)?);
        let error = u32::from_be_bytes(take(&mut self.stream)?);
        let handle = u64::from_be_bytes(take(&mut self.stream)?);
        if magic != REPLY_MAGIC || handle != self.handle {
            return Err(io::Error::other("the server's reply is not understood"));
        }
        if error != 0 {
            return Err(io::Error::from_raw_os_error(
                i32::try_from(error).unwrap_or(i32::MAX),
            ));
        }
        self.stream.read_exact(into)
    }
}

fn take<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0_u8; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn parse(uri: &str) -> Option<(&str, &str)> {
    uri.strip_prefix("nbd+unix:///")?.split_once("?socket=")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris() {
        assert_eq!(
            parse("nbd+unix:///db1?socket=/run/a.sock"),
            Some(("db1", "/run/a.sock"))
        );
        assert_eq!(parse("nbd://host/db1"), None);
    }

    /// Plays a server from the protocol's text: the bytes are written out, not made by the code under test.
    fn server(mut stream: UnixStream) -> Vec<u8> {
        let mut seen = Vec::new();
        stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03").unwrap();
        seen.extend_from_slice(&take::<29>(&mut stream).unwrap());
        let info =
            b"\x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\0\0\0\x0c\0\0\0\0\0\0\0\0\x40\0\0\x01";
        let ack = b"\x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x01\0\0\0\0";
        stream.write_all(info).unwrap();
        stream.write_all(ack).unwrap();
        seen.extend_from_slice(&take::<{ 28 + 4 }>(&mut stream).unwrap());
        stream
            .write_all(b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01")
            .unwrap();
        seen.extend_from_slice(&take::<28>(&mut stream).unwrap());
        stream
            .write_all(b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x02data")
            .unwrap();
        seen.extend_from_slice(&take::<28>(&mut stream).unwrap());
        stream
            .write_all(b"\x67\x44\x66\x98\0\0\0\x1c\0\0\0\0\0\0\0\x03")
            .unwrap();
        seen
    }

    #[test]
    fn write_read_and_a_refused_flush() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || server(theirs));
        let mut nbd = Nbd::negotiate(ours, "db1").unwrap();
        nbd.write(4096, b"data").unwrap();
        let mut bytes = [0_u8; 4];
        nbd.read(4096, &mut bytes).unwrap();
        assert_eq!(&bytes, b"data");
        let failure = nbd.flush().unwrap_err();
        assert!(failure.why.contains("No space"), "{failure:?}");
        let seen = thread.join().unwrap();
        let expected: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x09\0\0\0\x03db1\0\0\
            \x25\x60\x95\x13\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x10\0\0\0\0\x04data\
            \x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\x10\0\0\0\0\x04\
            \x25\x60\x95\x13\0\0\0\x03\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_server_of_another_kind_is_refused() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"HTTP/1.1 400 Bad Request\r\n").unwrap();
        assert!(
            Nbd::negotiate(ours, "db1")
                .unwrap_err()
                .to_string()
                .contains("newstyle")
        );
    }
}
