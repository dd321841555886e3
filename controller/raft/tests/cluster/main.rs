//! Nodes with a small key-value application over real connections on loopback.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod failover;
mod forgetful;
mod hostile;
mod killed;
mod members;
mod pairs;
mod refusals;
mod restart;
mod restored;
mod schema;
mod snapshots;
