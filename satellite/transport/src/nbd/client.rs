//! The client's side, as small as it can be: fixed newstyle negotiation, simple replies, one request at a time, over
//! any stream that blocks. For tools and tests that have no device; how long an answer is waited for is the stream's
//! own matter.

use std::io::{self, Read, Write};

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const GREETING: &[u8; 8] = b"NBDMAGIC";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const INFO_EXPORT: [u8; 2] = [0, 0];
const REPLY_ERROR: u32 = 1 << 31;
/// Longest option reply that is read.
const MAX_REPLY: u32 = 64 << 10;
/// Option replies before the server is given up.
const MAX_REPLIES: usize = 32;

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const ZEROES: u16 = 6;

/// The request is durable when it is answered.
pub const FUA: u16 = 1;
/// Zeroes keep their space.
pub const NO_HOLE: u16 = 2;

/// A request that was not done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The connection ended: what became of the request is not known.
    #[error("the connection was lost: {0}")]
    Lost(#[source] io::Error),
    /// The server answered an error.
    #[error("answered with an error: {0}")]
    Refused(#[source] io::Error),
}

/// A connection to one export. After [`Failure::Lost`] it is of no more use.
#[derive(Debug)]
pub struct Client<S> {
    stream: S,
    handle: u64,
    size: u64,
    flags: u16,
}

impl<S: Read + Write> Client<S> {
    /// Asks for `export` on a connection just made.
    pub fn negotiate(mut stream: S, export: &str) -> io::Result<Self> {
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
        hello.extend_from_slice(&name.saturating_add(6).to_be_bytes());
        hello.extend_from_slice(&name.to_be_bytes());
        hello.extend_from_slice(export.as_bytes());
        hello.extend_from_slice(&0_u16.to_be_bytes());
        stream.write_all(&hello)?;
        let (mut size, mut flags) = (0, 0);
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
                return Ok(Self {
                    stream,
                    handle: 0,
                    size,
                    flags,
                });
            }
            if kind == REPLY_INFO
                && let Some(told) = data.strip_prefix(&INFO_EXPORT)
                && let (Some(told_size), Some(told_flags)) =
                    (told.first_chunk(), told.get(8..).and_then(<[u8]>::first_chunk))
            {
                size = u64::from_be_bytes(*told_size);
                flags = u16::from_be_bytes(*told_flags);
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

    /// Bytes of the export, as the server said; 0 if it did not.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The export's transmission flags, as the server said.
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// The connection, for somebody else to talk on: every request has been answered.
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// What it talks over.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Writes.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        self.write_with(0, offset, bytes)
    }

    /// Writes, with flags such as [`FUA`].
    pub fn write_with(&mut self, flags: u16, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        self.send_with(flags, WRITE, offset, bytes.len(), bytes)
            .map_err(Failure::Lost)?;
        self.receive(&mut [])
    }

    /// Makes zeroes of a range, and gives its room back if the server likes (`WRITE_ZEROES`), or asks it to (`TRIM`).
    pub fn zero(&mut self, offset: u64, length: usize, trim: bool) -> Result<(), Failure> {
        let kind = if trim { TRIM } else { ZEROES };
        self.send(kind, offset, length, &[]).map_err(Failure::Lost)?;
        self.receive(&mut [])
    }

    /// Writes zeroes, with flags such as [`NO_HOLE`].
    pub fn zero_with(&mut self, flags: u16, offset: u64, length: usize) -> Result<(), Failure> {
        self.send_with(flags, ZEROES, offset, length, &[])
            .map_err(Failure::Lost)?;
        self.receive(&mut [])
    }

    /// Reads.
    pub fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        self.send_read(offset, bytes.len()).map_err(Failure::Lost)?;
        self.receive(bytes)
    }

    /// Makes durable what was written.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.send(FLUSH, 0, 0, &[]).map_err(Failure::Lost)?;
        self.receive(&mut [])
    }

    /// Sends a read whose answer [`Client::receive`] waits for.
    pub fn send_read(&mut self, offset: u64, length: usize) -> io::Result<()> {
        self.send(READ, offset, length, &[])
    }

    /// Sends a write whose answer [`Client::receive`] waits for.
    pub fn send_write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.send(WRITE, offset, bytes.len(), bytes)
    }

    fn send(&mut self, kind: u16, offset: u64, length: usize, out: &[u8]) -> io::Result<()> {
        self.send_with(0, kind, offset, length, out)
    }

    fn send_with(&mut self, flags: u16, kind: u16, offset: u64, length: usize, out: &[u8]) -> io::Result<()> {
        self.handle += 1;
        let mut request = Vec::with_capacity(28 + out.len());
        request.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        request.extend_from_slice(&flags.to_be_bytes());
        request.extend_from_slice(&kind.to_be_bytes());
        request.extend_from_slice(&self.handle.to_be_bytes());
        request.extend_from_slice(&offset.to_be_bytes());
        request.extend_from_slice(&u32::try_from(length).map_err(io::Error::other)?.to_be_bytes());
        request.extend_from_slice(out);
        self.stream.write_all(&request)
    }

    /// Waits for the answer to the last request; `into` takes what it read.
    pub fn receive(&mut self, into: &mut [u8]) -> Result<(), Failure> {
        let (error, handle) = self.head().map_err(Failure::Lost)?;
        if handle != self.handle {
            let error = io::Error::other("the server answers another request");
            return Err(Failure::Lost(error));
        }
        if error != 0 {
            let number = i32::try_from(error).unwrap_or(i32::MAX);
            return Err(Failure::Refused(io::Error::from_raw_os_error(number)));
        }
        self.stream.read_exact(into).map_err(Failure::Lost)
    }

    /// Error and handle of a simple reply.
    fn head(&mut self) -> io::Result<(u32, u64)> {
        if u32::from_be_bytes(take(&mut self.stream)?) != REPLY_MAGIC {
            return Err(io::Error::other("the server's reply is not understood"));
        }
        let error = u32::from_be_bytes(take(&mut self.stream)?);
        Ok((error, u64::from_be_bytes(take(&mut self.stream)?)))
    }
}

fn take<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0_u8; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

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
        let mut client = Client::negotiate(ours, "db1").unwrap();
        assert_eq!((client.size(), client.flags()), (0x4000, 1));
        client.write(4096, b"data").unwrap();
        let mut bytes = [0_u8; 4];
        client.read(4096, &mut bytes).unwrap();
        assert_eq!(&bytes, b"data");
        match client.flush().unwrap_err() {
            Failure::Refused(error) => assert!(error.to_string().contains("No space"), "{error}"),
            Failure::Lost(error) => panic!("{error}"),
        }
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
            Client::negotiate(ours, "db1")
                .unwrap_err()
                .to_string()
                .contains("newstyle")
        );
    }
}
