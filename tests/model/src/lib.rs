//! The replication protocol on one block, searched completely: see `docs/model.md`.
//!
//! A [`State`](state::State) is everything there is, a [`Step`](protocol::Step) something that happens. Each
//! module says which steps there are of its kind and what they do; none checks twice what the other checked.
//! A [`Rule`](rules::Rule) taken out changes one condition somewhere.
//!
//! Not here: time, more than one block, liveness.
#![expect(
    clippy::indexing_slicing,
    reason = "arrays of fixed size, indexed by what was counted from them"
)]

pub(crate) mod canonical;
pub(crate) mod catalogue;
pub mod check;
pub(crate) mod copy;
pub(crate) mod engine;
pub(crate) mod handover;
pub mod history;
pub(crate) mod io;
pub(crate) mod membership;
pub mod properties;
pub mod protocol;
pub(crate) mod replica;
pub(crate) mod resync;
pub mod rules;
pub mod scope;
pub(crate) mod snapshot;
pub mod state;
pub(crate) mod superseded;
pub mod table;
