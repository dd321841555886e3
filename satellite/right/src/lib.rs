//! The right to attach a volume: a statement that a controller signs and every replica checks before it
//! listens to an engine (R14).
//!
//! ```text
//! controller --[Signer::sign]--> SignedRight --agent, engine, Open--> replica --[Keyring::verify]--> Authorised
//! ```
//!
//! Each controller has a key pair of its own ([`Signer`]), whose private half never leaves its directory; the
//! catalogue holds the public halves of all, and every satellite keeps them ([`Keyring`]).
//!
//! Promises: nothing but a key of the keyring makes a right, a right is for one volume and one epoch, and
//! whatever comes from outside is refused by value, never by a panic. Does not: open files or sockets, or say
//! who may attach what; that is the catalogue's.

mod keyring;
mod signer;
mod statement;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

pub use keyring::{Asked, Granted, KeyTextError, Keyring, MAX_KEYS, PublicKey, SKEW, TrustedKey};
pub use signer::{KeyError, Signer};
pub use statement::{KeyId, MAX_NODE, MAX_RIGHT, Statement};

/// A moment by a wall clock, in seconds since 1970, UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Seconds(pub u64);

impl Seconds {
    /// By this machine's clock. One that stands before 1970 says 1970.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self(since.map_or(0, |since| since.as_secs()))
    }

    /// Later by `by`.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by.as_secs()))
    }
}

/// A right as it travels. Whoever has its bytes can use it: they are shown to nobody but replicas, and
/// [`fmt::Debug`] does not tell them.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SignedRight(Vec<u8>);

impl SignedRight {
    /// From a message. Nothing is checked: that is the replicas' business.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// For a message.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for SignedRight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedRight({} bytes)", self.0.len())
    }
}
