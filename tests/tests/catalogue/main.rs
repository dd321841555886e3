//! The catalogue with real processes: that its answers are linearizable, and what becomes of it after a restore.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout
)]

mod linear;
mod register;
mod restored;
