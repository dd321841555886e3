//! Everything in Stor that reads bytes from outside, as functions that are given any bytes.
//!
//! Each [`Entry`] takes bytes and does with them what a daemon would: a frame of the replication protocol, pages of a
//! metadata file, what an NBD client or the kernel sends, what a user types. It panics when a promise is broken: what
//! was decoded and encoded again is the same, a request never leaves its volume, there is an answer for each
//! request, the work is bounded by the length of the input. Whoever calls it checks that nothing else panics and that
//! no more memory is asked for than [`Entry::memory`] allows.
//!
//! Two callers: `tests/entries.rs` on any compiler, with the committed corpus and bytes made from it, and the targets of
//! `libfuzzer/` for cargo-fuzz.

#![allow(clippy::panic, reason = "a broken promise is told by a panic, to the fuzzer")]

mod bytes;
#[cfg(feature = "daemons")]
mod daemons;
mod engine;
mod kernel;
mod nbd;
mod replica;
#[cfg(feature = "daemons")]
mod rest;
#[cfg(feature = "daemons")]
mod text;
mod wire;

/// Something that reads bytes from outside.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Also the name of its corpus.
    pub name: &'static str,
    /// Reads them.
    pub run: fn(&[u8]),
    /// Bytes it may ask the allocator for in all, for each byte of the input.
    per_byte: usize,
    /// And besides.
    fixed: usize,
}

impl Entry {
    /// Bytes it may ask the allocator for in all, whatever it gives back, for an input of this length.
    pub fn memory(&self, length: usize) -> usize {
        self.fixed + self.per_byte * length
    }
}

/// Gives an input to the entry of this name.
pub fn run(name: &str, input: &[u8]) {
    let found = ENTRIES.iter().find(|entry| entry.name == name);
    let Some(entry) = found else {
        panic!("there is no entry {name}");
    };
    (entry.run)(input);
}

const fn entry(name: &'static str, run: fn(&[u8]), per_byte: usize, fixed: usize) -> Entry {
    Entry {
        name,
        run,
        per_byte,
        fixed,
    }
}

/// All of them. The limits are what they need, with room for another compiler, far below what would hurt.
pub const ENTRIES: &[Entry] = &[
    entry("frame", wire::frame, 0, 1 << 10),
    entry("payloads", wire::payloads, 16, 4 << 10),
    entry("pages", wire::pages, 8, 64 << 10),
    entry("metadata", replica::metadata, 64, 32 << 20),
    entry("replica", replica::requests, 4 << 10, 4 << 20),
    entry("engine", engine::answers, 4 << 10, 4 << 20),
    entry("nbd-handshake", nbd::handshake, 64, 64 << 10),
    entry("nbd-requests", nbd::requests, 64, 4 << 10),
    entry("fuse", kernel::requests, 64, 64 << 10),
    #[cfg(feature = "daemons")]
    entry("sizes-and-names", text::sizes_and_names, 256, 4 << 10),
    #[cfg(feature = "daemons")]
    entry("rest-bodies", rest::bodies, 256, 64 << 10),
    #[cfg(feature = "daemons")]
    entry("control", daemons::control, 256, 64 << 10),
    #[cfg(feature = "daemons")]
    entry("session", daemons::session, 256, 64 << 10),
    #[cfg(feature = "daemons")]
    entry("desired", daemons::desired, 256, 64 << 10),
    #[cfg(feature = "daemons")]
    entry("disks", daemons::disks, 256, 64 << 10),
];
