//! What the engine is told and what it has done: its interface to the shell.

#[cfg(doc)]
use super::Engine;
use super::SnapshotAsk;
use crate::body::Body;
use crate::catalogue::{Change, Refusal, VolumeRow};
use crate::extents::Extent;
use crate::ids::{IoId, ReplicaId};
use crate::range::ByteRange;
use crate::scrub::ScrubAsk;
use crate::wire::Header;

/// A connection attempt to a replica; never used again within an engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkId(pub u64);

/// What a client asks for. Ranges are checked by the shell: aligned and inside the volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request<P> {
    /// Read.
    Read(ByteRange),
    /// Write.
    Write {
        /// Where.
        range: ByteRange,
        /// What; a copy nobody else can change.
        data: P,
        /// Durable when answered.
        fua: bool,
    },
    /// Make a range read as zeroes.
    Zero {
        /// Where.
        range: ByteRange,
        /// Give the space back.
        discard: bool,
        /// Durable when answered.
        fua: bool,
    },
    /// Make everything answered before durable.
    Flush,
    /// Tell which parts are holes: at most [`crate::extents::MAX_RANGE`] bytes.
    Extents(ByteRange),
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event<P> {
    /// A client's request.
    Submit {
        /// Its number.
        io: IoId,
        /// What.
        request: Request<P>,
    },
    /// A connection was made.
    Connected {
        /// Replica.
        replica: ReplicaId,
        /// As in [`Command::Connect`].
        link: LinkId,
    },
    /// A connection ended or was not made.
    Lost {
        /// Replica.
        replica: ReplicaId,
        /// As in [`Command::Connect`].
        link: LinkId,
    },
    /// An answer came; its checksums held.
    Answer {
        /// Replica.
        replica: ReplicaId,
        /// As in [`Command::Connect`].
        link: LinkId,
        /// What.
        header: Header,
        /// Payload.
        body: Body<P>,
    },
    /// The catalogue's row, as it is or became.
    Row(VolumeRow),
    /// The outcome of [`Command::Propose`].
    Outcome {
        /// Its number.
        proposal: u64,
        /// The row after it, or as it is when the change was refused.
        row: VolumeRow,
        /// Why it was refused.
        refusal: Option<Refusal>,
    },
    /// The snapshot the catalogue wants made now; `None`: none, or no more.
    Snapshot(Option<SnapshotAsk>),
    /// The scrub the catalogue wants to go on; `None`: none, or no more.
    Scrub(Option<ScrubAsk>),
    /// End in order.
    Stop,
    /// The time [`Engine::deadline`] named has come.
    Tick,
}

/// Something to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command<P> {
    /// Connect to a replica; tell [`Event::Connected`] or [`Event::Lost`].
    Connect {
        /// Replica.
        replica: ReplicaId,
        /// Names this connection from now on.
        link: LinkId,
    },
    /// Close a connection. No event of it may follow.
    Disconnect {
        /// Replica.
        replica: ReplicaId,
        /// Which.
        link: LinkId,
    },
    /// Send a message, in order.
    Send {
        /// Replica.
        replica: ReplicaId,
        /// Connection.
        link: LinkId,
        /// What.
        header: Header,
        /// Payload.
        body: Body<P>,
    },
    /// Have the catalogue changed; repeat until the outcome is known, never make one up.
    Propose {
        /// Its number.
        proposal: u64,
        /// What.
        change: Change,
    },
    /// Answer a client.
    Complete {
        /// Its number.
        io: IoId,
        /// For a read, the data.
        result: Result<Option<P>, IoError>,
    },
    /// Answer a client's [`Request::Extents`]: of the whole range or a beginning of it, at least one.
    CompleteExtents {
        /// Its number.
        io: IoId,
        /// What is a hole reads as zeroes until something is written to it.
        extents: Vec<Extent>,
    },
    /// The state changed; see [`Engine::state`].
    StateChanged,
}

/// Why a client's request failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoError {
    /// The volume has a newer engine, or this one lost its right. The outcome of a write is not known.
    Fenced,
    /// No replica could read it.
    Media,
    /// The device is lost until attached anew: acknowledged writes are gone.
    Failed,
}
