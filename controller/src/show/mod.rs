//! The API's objects, made from the catalogue's rows and what satellites report. Pure: rows and
//! observations in, objects out.

mod health;
mod history;
mod node;
mod scrubs;
mod snapshot;
#[cfg(test)]
mod tests;
mod tombstone;
mod volume;

pub use health::{Facts, status};
pub use node::{class, disks, event, mounts, node, orphans, pool};
pub use snapshot::snapshot;
pub use tombstone::tombstone;
pub use volume::{attachment, replicas, user_attachment, volume, volume_health};
