//! Stor's satellite: the agent that makes a node what the catalogue wants, the server of its replicas
//! and the engines of the volumes attached to it.

pub mod agent;
pub mod attach;
mod channel;
pub mod control;
mod data;
pub mod engine;
pub mod failure;
pub mod pool;
pub mod quiet;
pub mod replicas;

// Deliberate defects are for tests: nothing that serves data may be built with them.
const _: () = assert!(
    !stor_replication::DEFECTS,
    "built with the feature `defects` of stor-replication"
);
