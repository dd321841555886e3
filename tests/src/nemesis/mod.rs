//! Faults of many kinds, one after the other and on top of each other, on a cluster that is in use.
//!
//! [`schedule`] says from a seed what is broken when; [`Hand`] breaks it and makes it good again. The same seed
//! gives the same schedule; what real processes make of it differs from run to run.

mod hand;
mod round;
mod schedule;

pub use hand::{Hand, cuts};
pub use round::{Report, Round, Stage};
pub use schedule::{Fault, Partition, Step, Victim, schedule};
