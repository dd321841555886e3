//! Power cuts: every file of a cluster lies on disks that really lose what was not flushed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout
)]

mod catalogue;
mod cuts;
mod disk;
mod ledger;
mod load;
mod machines;
mod restoring;
