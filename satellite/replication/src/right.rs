//! Who may open a replica (R14): a value that the shell makes after it checked the controllers' signature, and
//! why it did not.
//!
//! No keys, no signatures, no clock here: the core takes [`Authorised`] for what it says and holds it against
//! what is asked.

use thiserror::Error;

use crate::ids::{Epoch, VolumeId};

/// An engine may open replicas of this volume under this epoch: a controller signed so, and the signature was
/// checked. Without one no Open has any effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Authorised {
    volume: VolumeId,
    epoch: Epoch,
}

impl Authorised {
    /// For the one who checked the signature, and for tests. The lints forbid it everywhere else.
    pub fn checked(volume: VolumeId, epoch: Epoch) -> Self {
        Self { volume, epoch }
    }

    /// Whether it is for this volume and epoch.
    pub(crate) fn covers(self, volume: VolumeId, epoch: Epoch) -> bool {
        (self.volume, self.epoch) == (volume, epoch)
    }
}

/// Why a right did not open a replica. On the wire a number, in `length` of the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[repr(u32)]
pub enum RightRefusal {
    /// There is none in the Open.
    #[error("there is none; the node's agent has not got one from a controller")]
    Absent = 1,
    /// Not a right.
    #[error("it can't be read")]
    Malformed = 2,
    /// Of a later version of this program.
    #[error("it is of a later version: upgrade the replica's satellite")]
    Newer = 3,
    /// Signed by nobody this node knows.
    #[error("the replica's node does not know the key it is signed with; it will when it hears a controller")]
    UnknownKey = 4,
    /// Of another volume.
    #[error("it is for another volume")]
    OtherVolume = 5,
    /// Of another epoch.
    #[error("it is for another epoch")]
    OtherEpoch = 6,
    /// Its key opens no new epochs.
    #[error("the controller that signed it was removed from the cluster")]
    RetiredKey = 7,
    /// Too old.
    #[error("it has expired: no controller has renewed it, or the clock of the replica's node is ahead")]
    Expired = 8,
    /// Of the future.
    #[error("it is from the future: the clock of the replica's node is behind the controllers'")]
    NotYetValid = 9,
    /// The signature is wrong.
    #[error("its signature is wrong")]
    Forged = 10,
    /// Of a later version of the replica.
    #[error("the replica's satellite does not say why")]
    Unknown = 11,
}

impl RightRefusal {
    /// As a number.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// From an answer; whatever a later version may mean is [`RightRefusal::Unknown`].
    pub fn from_code(code: u32) -> Self {
        use RightRefusal as R;
        [
            R::Absent,
            R::Malformed,
            R::Newer,
            R::UnknownKey,
            R::OtherVolume,
            R::OtherEpoch,
            R::RetiredKey,
            R::Expired,
            R::NotYetValid,
            R::Forged,
        ]
        .into_iter()
        .find(|refusal| refusal.code() == code)
        .unwrap_or(R::Unknown)
    }
}
