//! Stor's satellite: the agent that makes a node what the catalogue wants, the server of its replicas
//! and the engines of the volumes attached to it.

pub mod control;
pub mod replicas;
