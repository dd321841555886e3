//! Stor's REST API: the objects that travel, what a name and a size may be, and a client.
//!
//! The controller serves these types, `storctl` and the Kubernetes bridge use them through [`client`].
//! Sizes are bytes, times RFC 3339 strings in UTC. Unknown fields are ignored when read, so that an
//! older client understands a newer controller.

pub mod backup;
pub mod client;
pub use stor_name as name;
pub mod objects;
pub mod problem;
pub mod size;
