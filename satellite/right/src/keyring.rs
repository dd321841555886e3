//! The public keys a replica trusts, and the check of a right.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use ring::signature::{ED25519, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use stor_replication::ids::{Epoch, VolumeId};
use stor_replication::right::{Authorised, RightRefusal};
use thiserror::Error;

use crate::{KeyId, Seconds, Statement, statement};

/// How far the clock of a replica's node may be from the controllers'. Beyond it, nothing new can be attached
/// there; what is attached goes on.
pub const SKEW: Duration = Duration::from_mins(5);

/// Keys of one keyring. A cluster has a few controllers; the rest are keys of controllers that were removed.
pub const MAX_KEYS: usize = 64;

/// The public half of a controller's key. As text: 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(pub [u8; 32]);

/// Not the text of a key.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{0:?} is not a public key: 64 hexadecimal digits")]
pub struct KeyTextError(String);

impl PublicKey {
    /// Its name in rights.
    pub fn id(&self) -> KeyId {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.0);
        KeyId(digest.as_ref().first_chunk().copied().unwrap_or_default())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for PublicKey {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        let wrong = || KeyTextError(text.chars().take(80).collect());
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let digit = |digit: u8| {
            char::from(digit)
                .to_digit(16)
                .and_then(|value| u8::try_from(value).ok())
        };
        let bytes: Option<Vec<u8>> = pairs
            .iter()
            .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
            .collect();
        match bytes.and_then(|bytes| bytes.try_into().ok()) {
            Some(key) if rest.is_empty() => Ok(Self(key)),
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyTextError;

    fn try_from(text: String) -> Result<Self, KeyTextError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

/// A key and what it is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrustedKey {
    /// The key.
    pub key: PublicKey,
    /// Its controller has another one or is no more: it opens no new epoch. What it signed for the epoch a
    /// replica serves stays good, or the removal of a controller could take a volume away.
    pub retired: bool,
}

/// What an engine asks for, and what the replica has stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// Volume of the Open.
    pub volume: VolumeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The highest epoch this replica was opened for before ([`stor_replication::disk::Superblock::fence`]).
    pub fenced: Epoch,
}

/// A right that was checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Granted {
    /// For the core.
    pub authorised: Authorised,
    /// What the right says.
    pub statement: Statement,
}

/// The keys of a cluster's controllers, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Keyring(Vec<TrustedKey>);

impl Keyring {
    /// Of these keys; of more than [`MAX_KEYS`] the newest.
    pub fn new(mut keys: Vec<TrustedKey>) -> Self {
        keys.drain(..keys.len().saturating_sub(MAX_KEYS));
        Self(keys)
    }

    /// The keys, oldest first.
    pub fn keys(&self) -> &[TrustedKey] {
        &self.0
    }

    /// Checks a right for an Open. What is cheap comes first: an Ed25519 check costs a few hundred times as
    /// much as all the rest.
    ///
    /// Time counts only when the epoch is above all this replica has stored. For the one it was opened for
    /// before, a right is good whatever its age: the engine goes on for as long as it is attached, and no
    /// controller may be there to renew anything. An older epoch is the core's to refuse (R5).
    //= docs/replication.md#R14
    pub fn verify(&self, right: &[u8], asked: Asked, now: Seconds) -> Result<Granted, RightRefusal> {
        let parsed = statement::parse(right)?;
        let trusted = self.0.iter().find(|trusted| trusted.key.id() == parsed.key);
        let trusted = trusted.ok_or(RightRefusal::UnknownKey)?;
        let statement = parsed.statement;
        if statement.volume != asked.volume {
            return Err(RightRefusal::OtherVolume);
        }
        if statement.epoch != asked.epoch {
            return Err(RightRefusal::OtherEpoch);
        }
        if asked.epoch > asked.fenced {
            if trusted.retired {
                return Err(RightRefusal::RetiredKey);
            }
            if now > statement.expires.after(SKEW) {
                return Err(RightRefusal::Expired);
            }
            if statement.issued > now.after(SKEW) {
                return Err(RightRefusal::NotYetValid);
            }
        }
        UnparsedPublicKey::new(&ED25519, trusted.key.0)
            .verify(parsed.signed, parsed.signature)
            .map_err(|_| RightRefusal::Forged)?;
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place where a signature was checked"
        )]
        let authorised = Authorised::checked(statement.volume, statement.epoch);
        Ok(Granted {
            authorised,
            statement,
        })
    }
}
