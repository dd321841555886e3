//! End-to-end and fault tests of Stor on real processes, and what they share.

#![expect(clippy::print_stdout, reason = "what a test measured is read in its output")]

pub mod block;
pub mod clients;
pub mod cluster;
pub mod database;
pub mod filesystem;
pub mod history;
pub mod http;
pub mod leftovers;
pub mod lossy;
pub mod maps;
pub mod medium;
pub mod nbd;
pub mod nemesis;
pub mod network;
pub mod ports;
pub mod process;
pub mod reflink;
pub mod registers;
pub mod skip;
pub mod vm;
pub mod volume;
pub mod wait;
pub mod writer;
