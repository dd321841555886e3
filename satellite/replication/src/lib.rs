//! Stor's replication protocol.
pub mod catalogue;
pub mod ids;
