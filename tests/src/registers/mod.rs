//! Blocks as registers: what many clients did to them at once, and whether one copy without faults could have
//! given the same answers.
//!
//! [`Crowd`] reads and writes the same blocks from many connections and notes each request with the times of its
//! beginning and end; [`check`] judges what was noted of one block. Nothing of it is kept in the volume.

mod check;
mod client;
mod crowd;
mod record;

pub use check::{Wrong, ZEROED, check};
pub use crowd::{Crowd, Done};
pub use record::{Kind, Operation, Record, Stamp};
