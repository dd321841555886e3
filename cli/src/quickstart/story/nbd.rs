//! A volume over its NBD socket: to write, flush and read it where no device can be had.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use stor_transport::nbd::client::{self, Client};

use crate::failure::Failure;

/// I/O waits this long for a replica that is being taken out, and then some.
const DEADLINE: Duration = Duration::from_mins(1);

/// A connection to one export.
#[derive(Debug)]
pub(crate) struct Nbd {
    client: Client<UnixStream>,
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
        let client = Client::negotiate(stream, export)
            .map_err(|e| Failure::failed(format!("no NBD on {uri}")).why(e.to_string()))?;
        Ok(Self { client })
    }

    /// Writes.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        let done = self.client.write(offset, bytes);
        done.map_err(|error| failed("write", offset, &error))
    }

    /// Reads.
    pub(crate) fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        let done = self.client.read(offset, bytes);
        done.map_err(|error| failed("read", offset, &error))
    }

    /// Makes durable what was written.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.client.flush().map_err(|error| failed("flush", 0, &error))
    }
}

fn failed(doing: &str, offset: u64, error: &client::Failure) -> Failure {
    Failure::failed(format!("a {doing} failed")).why(format!("{error}, at byte {offset} over NBD"))
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
}
