//! Real processes, killed and stopped under a client that never stops writing and checks all it reads.
//!
//! Each test has a cluster of its own and may run beside others. No test judges how long something took; the
//! longest waits are printed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout
)]

mod agent;
mod controllers;
mod deletion;
mod engine;
mod leader;
mod moving;
mod power;
mod replicas;
mod resync;
mod rights;
mod scrub;
mod stopping;
mod takeover;
