//! Controllers as they run, over their real ports, with satellites that only pretend.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::print_stdout
)]

mod anywhere;
mod api;
mod controllers;
#[path = "../../src/catalogue/tests/dump.rs"]
mod dump;
mod failover;
mod garbage;
mod random;
mod restored;
mod satellite;
mod sessions;
mod volumes;
