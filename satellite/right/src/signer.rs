//! The private half of a controller's key. It is only in memory and in the bytes [`Signer::generate`] hands out
//! for the controller's own file.

use std::fmt;

use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use thiserror::Error;

use crate::{PublicKey, SignedRight, Statement};

/// Why there is no key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum KeyError {
    /// The system gave no random numbers.
    #[error("the system gives no random numbers for a key")]
    Random,
    /// The bytes are no key of this kind, or damaged.
    #[error("it holds no Ed25519 key pair (PKCS#8), or a damaged one")]
    Damaged,
}

/// Signs rights.
pub struct Signer {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("key", &self.public.id())
            .finish_non_exhaustive()
    }
}

impl Signer {
    /// A new key pair: as a signer, and as PKCS#8 to be kept where nobody else can read it.
    pub fn generate() -> Result<(Self, Vec<u8>), KeyError> {
        let secret = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::Random)?;
        let secret = secret.as_ref().to_vec();
        Ok((Self::from_pkcs8(&secret)?, secret))
    }

    /// From what [`Signer::generate`] handed out. Both halves are in it and are held against each other.
    pub fn from_pkcs8(secret: &[u8]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_pkcs8(secret).map_err(|_| KeyError::Damaged)?;
        let public = pair
            .public_key()
            .as_ref()
            .try_into()
            .map_err(|_| KeyError::Damaged)?;
        Ok(Self {
            pair,
            public: PublicKey(public),
        })
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Makes a right. The same statement gives the same bytes.
    pub fn sign(&self, statement: &Statement) -> SignedRight {
        let mut bytes = statement.encode(self.public.id());
        let signature = self.pair.sign(&bytes);
        bytes.extend(signature.as_ref());
        SignedRight(bytes)
    }
}
