//! Stor's replication protocol: how one volume is kept as equal copies on several nodes.
//!
//! Two state machines, [`replica`] (one copy) and [`engine`] (the one writer), the pure decisions of the
//! [`catalogue`], and the formats of the [`wire`] and of the [`disk`]. No I/O, no clock, no async
//! runtime: `step(now, event, &mut commands)`; a shell executes the commands. The simulation and the
//! daemons run this same code. The rules (R1 to R16, S1 to S7, G1 to G3, C1 to C5) are in `docs/replication.md`.

#[macro_use]
pub mod defect;

pub mod bitmap;
pub mod body;
pub mod catalogue;
pub mod digest;
pub mod disk;
pub mod engine;
pub mod extents;
pub mod ids;
pub mod info;
pub mod range;
pub mod recopy;
pub mod replica;
pub mod right;
pub mod scrub;
pub mod time;
pub mod wire;

/// Deliberate defects are compiled in. Whatever serves data asserts at compile time that they are not.
pub const DEFECTS: bool = cfg!(feature = "defects");
