//! Ports of one cluster, kept from other clusters of the machine for as long as the test runs: a killed daemon
//! has to find its port free when it is started again.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};

/// Ports of a block: three controllers with two each, up to nine replica servers.
const BLOCK: u16 = 16;
/// Below the kernel's ephemeral ports, above those that `storctl quickstart` takes by itself.
const FIRST: u16 = 21_000;
const BLOCKS: u16 = 256;
const LOCKS: &str = "/var/tmp/stor-tests-ports";

/// A block of ports, held until dropped.
#[derive(Debug)]
pub struct Ports {
    first: u16,
    _lock: File,
}

impl Ports {
    /// Takes a block nobody has and nobody listens in.
    pub fn take() -> anyhow::Result<Self> {
        std::fs::create_dir_all(LOCKS).with_context(|| format!("making {LOCKS}"))?;
        for number in 0..BLOCKS {
            let path = Path::new(LOCKS).join(number.to_string());
            let lock = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .with_context(|| format!("opening {}", path.display()))?;
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("locking {}", path.display()));
                }
            }
            let first = FIRST + number * BLOCK;
            let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
            if (first..first + BLOCK).all(free) {
                return Ok(Self { first, _lock: lock });
            }
        }
        bail!("no {BLOCK} free ports in a row from {FIRST} on")
    }

    /// The block's number, nobody else's either as long as it is held.
    pub fn block(&self) -> u8 {
        u8::try_from((self.first - FIRST) / BLOCK).unwrap_or(u8::MAX)
    }

    /// One of them.
    pub fn get(&self, index: u16) -> u16 {
        self.first + index % BLOCK
    }
}
