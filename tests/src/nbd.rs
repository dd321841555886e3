//! A small NBD client on a unix socket that waits without a deadline, as the kernel and QEMU do: one request
//! at a time, fixed newstyle negotiation, simple replies.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const GREETING: &[u8; 8] = b"NBDMAGIC";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_ERROR: u32 = 1 << 31;
const MAX_REPLY: u32 = 64 << 10;
const MAX_REPLIES: usize = 32;

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const ZEROES: u16 = 6;

/// The request is durable when it is answered.
pub const FUA: u16 = 1;
/// Zeroes keep their space.
pub const NO_HOLE: u16 = 2;

/// A request that was not done.
#[derive(Debug)]
pub enum Failure {
    /// The connection ended: what became of the request is not known.
    Lost(io::Error),
    /// The server answered an error.
    Refused(io::Error),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lost(error) => write!(f, "the connection was lost: {error}"),
            Self::Refused(error) => write!(f, "answered with an error: {error}"),
        }
    }
}

impl std::error::Error for Failure {}

/// A connection to one export.
#[derive(Debug)]
pub struct Nbd {
    stream: UnixStream,
    handle: u64,
}

impl Nbd {
    /// Connects and asks for `export`.
    pub fn connect(socket: &Path, export: &str) -> io::Result<Self> {
        Self::negotiate(UnixStream::connect(socket)?, export)
    }

    fn negotiate(mut stream: UnixStream, export: &str) -> io::Result<Self> {
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

    /// Something that ends the connection from another thread, whatever it waits for.
    pub fn cutter(&self) -> io::Result<Cutter> {
        self.stream.try_clone().map(Cutter)
    }

    /// Writes.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        self.write_with(0, offset, bytes)
    }

    /// Writes, with flags.
    pub fn write_with(&mut self, flags: u16, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        self.send_with(flags, WRITE, offset, bytes.len(), bytes)
            .map_err(Failure::Lost)?;
        self.receive(&mut [])
    }

    /// Writes zeroes, with flags.
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

    /// Makes zeroes of a range, and gives its room back if the server likes (`WRITE_ZEROES`), or asks it to (`TRIM`).
    pub fn zero(&mut self, offset: u64, length: usize, trim: bool) -> Result<(), Failure> {
        let kind = if trim { TRIM } else { WRITE_ZEROES };
        self.send(kind, offset, length, &[]).map_err(Failure::Lost)?;
        self.receive(&mut [])
    }

    /// Sends a read whose answer [`Nbd::receive`] waits for.
    pub fn send_read(&mut self, offset: u64, length: usize) -> io::Result<()> {
        self.send(READ, offset, length, &[])
    }

    /// Sends a write whose answer [`Nbd::receive`] waits for.
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
        let mut head = || -> io::Result<(u32, u32, u64)> {
            Ok((
                u32::from_be_bytes(take(&mut self.stream)?),
                u32::from_be_bytes(take(&mut self.stream)?),
                u64::from_be_bytes(take(&mut self.stream)?),
            ))
        };
        let (magic, error, handle) = head().map_err(Failure::Lost)?;
        if magic != REPLY_MAGIC || handle != self.handle {
            return Err(Failure::Lost(io::Error::other(
                "the server's reply is not understood",
            )));
        }
        if error != 0 {
            let number = i32::try_from(error).unwrap_or(i32::MAX);
            return Err(Failure::Refused(io::Error::from_raw_os_error(number)));
        }
        self.stream.read_exact(into).map_err(Failure::Lost)
    }
}

/// Ends a connection.
#[derive(Debug)]
pub struct Cutter(UnixStream);

impl Cutter {
    /// Ends it; whoever waits on it learns that it is lost.
    pub fn cut(&self) {
        // It may have ended by itself.
        _ = self.0.shutdown(Shutdown::Both);
    }
}

fn take<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0_u8; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}
