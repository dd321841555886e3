//! Shows that the tests of this crate notice what they are there for: each deliberate defect of
//! `stor_replication::defect` is switched on and must be caught, by a test of a rule, by the simulation, or by
//! both. What catches what is the table in `docs/replication.md`.
//!
//! Needs the feature `defects`, for this crate alone:
//!
//! ```text
//! cargo nextest run -p stor-replication --features defects -E 'test(/^table::/)'             # by the table, quickly
//! cargo test --release -p stor-replication --features defects --test mutations -- --ignored  # makes the table
//! ```
//!
//! The rule tests and the simulation are compiled in, and are run anew in processes of their own with
//! `STOR_DEFECT=Name`; a stack that overflows or an endless loop is a defect noticed, too.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

#[path = "../formats/main.rs"]
mod formats;
#[path = "../invariants/main.rs"]
mod invariants;
#[path = "../simulation/main.rs"]
mod simulation;

mod hunt;
mod table;
