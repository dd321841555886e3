//! Stor's satellite: the agent that makes a node what the catalogue wants, the server of its replicas
//! and the engines of the volumes attached to it.

pub mod agent;
pub mod attach;
mod channel;
pub mod control;
mod data;
pub mod engine;
pub mod pool;
pub mod replicas;
