//! Wrong input of every kind: one clear error each, nothing half made, nothing lost.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout
)]

mod damage;
mod input;
mod pools;
mod start;
