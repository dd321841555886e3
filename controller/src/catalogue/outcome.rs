//! What became of a command: done, or refused with the reason. A refusal is an answer, not a failure: it is
//! decided the same on every controller and changes nothing.

use std::fmt;

use serde::{Deserialize, Serialize};
use stor_replication::catalogue::{Refusal, VolumeRow};
use thiserror::Error;

/// What applying a command answers.
pub type Reply = Result<Outcome, Refused>;

/// A command that did what it was to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The object is new.
    Created,
    /// It was already so.
    Unchanged,
    /// Changed, removed or recorded.
    Changed,
    /// A volume's view moved: the row now.
    Row(Box<VolumeRow>),
}

/// Something in the catalogue, for messages.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Object {
    /// `node`, `pool`, …
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

/// Kinds of objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A machine.
    Node,
    /// Space on one node; named `POOL on NODE`.
    Pool,
    /// A template.
    Class,
    /// A block device.
    Volume,
    /// A moment of a volume that was kept; named `VOLUME@NAME`.
    Snapshot,
    /// The right to use a volume.
    Attachment,
    /// The whole.
    Cluster,
    /// One of those who keep the catalogue.
    Controller,
}

impl Kind {
    /// As it stands in event objects: `node/s1`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Pool => "pool",
            Self::Class => "class",
            Self::Volume => "volume",
            Self::Snapshot => "snapshot",
            Self::Attachment => "attachment",
            Self::Cluster => "cluster",
            Self::Controller => "controller",
        }
    }
}

impl Object {
    /// Names an object.
    pub fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self {
            kind,
            name: name.into(),
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.word(), self.name)
    }
}

/// Why a command changed nothing.
#[derive(Clone, PartialEq, Eq, Debug, Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refused {
    /// It does not exist.
    #[error("there is no {object}")]
    NoSuch {
        /// What.
        object: Object,
    },
    /// It exists and is not what was asked for.
    #[error("{object} exists already and differs: {difference}")]
    Exists {
        /// What.
        object: Object,
        /// In what.
        difference: String,
    },
    /// Something needs it.
    #[error("{object} is in use: {by}")]
    InUse {
        /// What.
        object: Object,
        /// By what.
        by: String,
    },
    /// It was changed since the caller looked.
    #[error("{object} is at revision {current}, the request expected {expected}")]
    Revision {
        /// What.
        object: Object,
        /// What the caller saw.
        expected: u64,
        /// What is.
        current: u64,
    },
    /// It is in a state that does not allow this.
    #[error("{object} {state}")]
    State {
        /// What.
        object: Object,
        /// "is being deleted", …
        state: String,
    },
    /// The placement presumed what is no longer so. Plan again.
    #[error("the placement is out of date: {why}")]
    PlacementStale {
        /// What changed.
        why: String,
    },
    /// Its row is older than its data, or may be.
    #[error("the catalogue may be older than the data of {object}")]
    Behind {
        /// What.
        object: Object,
    },
    /// The volume's view does not allow the change.
    #[error("{refusal}")]
    View {
        /// Why.
        refusal: Refusal,
        /// The row as it is.
        row: Box<VolumeRow>,
    },
}
