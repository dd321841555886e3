//! A volume over its NBD socket. Waits without a deadline, as the kernel and QEMU do.

use std::io;
use std::net::Shutdown;
use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixStream;
use std::path::Path;

use stor_transport::nbd::client::Client;
pub use stor_transport::nbd::client::{FUA, Failure, NO_HOLE};

/// A connection to one export.
#[derive(Debug)]
pub struct Nbd(Client<UnixStream>);

impl Nbd {
    /// Connects and asks for `export`.
    pub fn connect(socket: &Path, export: &str) -> io::Result<Self> {
        Client::negotiate(UnixStream::connect(socket)?, export).map(Self)
    }

    /// Something that ends the connection from another thread, whatever it waits for.
    pub fn cutter(&self) -> io::Result<Cutter> {
        self.0.stream().try_clone().map(Cutter)
    }
}

impl Deref for Nbd {
    type Target = Client<UnixStream>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Nbd {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
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
