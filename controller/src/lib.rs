//! Stor's controller: the catalogue of what should be, the planner that places replicas, the sessions of
//! satellites that make it so, and the REST API over all of it.

pub mod behind;
pub mod catalogue;
pub mod cluster;
pub mod observed;
pub mod plan;
pub mod policy;
pub mod reconcile;
pub mod rest;
pub mod restore;
pub mod rights;
pub mod server;
pub mod session;
pub mod settings;
pub mod show;
pub mod signers;
pub mod signing_key;

// Deliberate defects are for tests: nothing that serves data may be built with them.
const _: () = assert!(
    !stor_replication::DEFECTS,
    "built with the feature `defects` of stor-replication"
);
