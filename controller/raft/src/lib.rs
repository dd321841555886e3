//! A SQLite database replicated by Raft.
//!
//! An [`Application`] says what its commands are and how one of them changes the database. A [`Node`] keeps
//! the log of commands in `log.db`, agrees on it with the other nodes and applies what is committed to
//! `catalogue.db`, in the same order everywhere.
//!
//! ```text
//!  propose ──► openraft ──► log.db (fsync) ──► other nodes
//!                 │ committed
//!                 ▼
//!              Machine ──► catalogue.db (one transaction per batch, `last_applied` inside) ──► reader()
//! ```
//!
//! Promises: a reply to [`Node::propose`] means that a majority has the command on disk; a database that was
//! cut off at any moment opens again and continues; a node never runs on files it does not understand.
//! Does not do: TLS, tenancy, any knowledge of what the commands mean.

mod admission;
mod application;
mod channel;
mod contact;
mod database;
mod directory;
mod entry;
mod failure;
mod forward;
mod identity;
mod install;
mod join;
mod leadership;
mod log;
mod log_file;
mod log_writer;
mod machine;
mod membership;
mod network;
mod node;
mod opening;
mod options;
mod peer;
mod propose;
mod replay;
mod restore;
mod service;
mod snapshot;
mod state;
mod transfer;
mod wire;

#[cfg(test)]
mod storage_suite;

pub use application::Application;
pub use directory::DirectoryError;
pub use forward::ForwardError;
pub use identity::{Listening, who_listens};
pub use join::{JoinError, join};
pub use leadership::Leadership;
pub use membership::{MemberInfo, MembershipError};
pub use node::{InitializeError, Node, ServeError};
pub use opening::OpenError;
pub use options::{Options, Timing};
pub use peer::PeerInfo;
pub use propose::ProposeError;
pub use replay::{ReplayError, install_copy, prepare, replay};
pub use restore::{Origin, RestoreError, discard, examine, restore};
pub use service::PeerHandler;
pub use stor_proto::peer::{Header, HttpRequest, HttpResponse};
