//! What the model remembers: replicas, engines, the catalogue, and what the clients were told.
//!
//! One block of one volume. Values are numbers of writes: a later write has a higher one, 0 is what was there
//! at first. Sets of replicas are bit masks. Everything is small and `Copy`: a run visits millions of states.

/// The most replicas.
pub const REPLICAS: usize = 3;
/// The most engines in one history.
pub const ENGINES: usize = 3;
/// Writes an engine may have under way; more than one only when a rule about locks is out.
pub const OPS: usize = 2;
/// No replica.
pub const NOBODY: u8 = 7;

/// A set of replicas.
pub type Mask = u8;

/// The mask of one replica.
pub fn bit(replica: usize) -> Mask {
    1 << replica
}

/// The replicas of a mask.
pub fn each(mask: Mask) -> impl Iterator<Item = usize> + Clone {
    (0..REPLICAS).filter(move |replica| mask & bit(*replica) != 0)
}

/// A replica of the volume: stored, unless the field says otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Replica {
    /// Older epochs are refused.
    pub fence: u8,
    /// Epoch of the engine it promised to serve on the present connection; 0: none. Not stored.
    pub session: u8,
    /// What a read gives. Not stored: a volatile cache is below.
    pub value: u8,
    /// Which values a power cut may leave, as a set.
    pub durable: u8,
    /// The region's dirty bit.
    pub dirty: bool,
    /// The stored cache identity is the present one.
    pub kept: bool,
    /// Its place among the losses of acknowledged writes found so far, the oldest first; 0: it lost none.
    pub doubt: u8,
    /// It kept power since it got its value. Not part of the protocol: for the properties.
    pub solid: bool,
    /// The config of the stored view.
    pub config: u8,
    /// The in-sync set of the stored view.
    pub members: Mask,
    /// What absent replicas missed.
    pub maps: [AbsentMap; REPLICAS],
    /// Writes in the disk. Not stored.
    pub disk: [Pending; 2],
    /// Its process began after the fence was raised: it takes a lease granted before for its own epoch's.
    pub blind: bool,
    /// Its disk failed.
    pub failed: bool,
    /// Its snapshot holds this value, plus one; 0: no snapshot.
    pub snapshot: u8,
}

/// The out-of-sync map of one absent replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AbsentMap {
    /// The config that removed it; 0: no map.
    pub since: u8,
    /// It missed something.
    pub missed: bool,
    /// The same, as it is on the disk.
    pub stored: bool,
}

/// A write in a replica's disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pending {
    /// There is one.
    pub busy: bool,
    /// What it writes.
    pub value: u8,
    /// Of which engine.
    pub epoch: u8,
    /// And which of its requests.
    pub op: u8,
    /// Its connection is gone: nobody will be told.
    pub orphan: bool,
    /// A copy.
    pub copy: bool,
}

/// Where an engine stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Phase {
    /// There is none.
    #[default]
    None,
    /// Waits for promises.
    Starting,
    /// Serves.
    Active,
    /// Takes no more requests, ends in order.
    Stopping,
    /// All is flushed; the members are told so.
    Closing,
    /// Ended, or knows that it is superseded.
    Ended,
    /// The device is lost until it is attached anew.
    Failed,
}

/// A request to write the block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Op {
    /// What for.
    pub kind: OpKind,
    /// What it writes.
    pub value: u8,
    /// Replicas it was sent to, but for those that owe it no more.
    pub awaited: Mask,
    /// Replicas whose disk has it, on the present connection.
    pub accepted: Mask,
    /// Replicas that answered.
    pub done: Mask,
    /// The client has its answer.
    pub answered: bool,
    /// A newer engine had answered something before this began.
    pub late: bool,
    /// A copy, and a member lost its cache meanwhile.
    pub stale: bool,
}

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum OpKind {
    /// There is none.
    #[default]
    None,
    /// A client's write.
    Write,
    /// A copy that makes the members equal.
    Repair,
    /// A copy for a replica that missed writes.
    Resync,
}

/// A flush under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flush {
    /// There is one.
    pub on: bool,
    /// Replicas that answered.
    pub done: Mask,
    /// Members that acknowledged a write since it began: it does not speak for that.
    pub since: Mask,
    /// What the client knew to be written when it began.
    pub covers: u8,
    /// A write began or ended since.
    pub touched: bool,
}

/// A change the engine asked the catalogue for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Proposal {
    /// Stage.
    pub stage: Asked,
    /// A replica is added, not removed.
    pub add: bool,
    /// Which.
    pub who: Mask,
}

/// Stage of a proposal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Asked {
    /// There is none.
    #[default]
    No,
    /// The outcome is open.
    Open,
    /// Made, the engine does not know.
    Made,
    /// Refused, the engine does not know.
    Refused,
}

/// Bringing a replica up to date.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resync {
    /// Which one; [`NOBODY`].
    pub target: u8,
    /// Stage.
    pub stage: Stage,
    /// It lacks the block.
    pub need: bool,
    /// The block was copied, not yet flushed.
    pub copied: bool,
    /// A client wrote the block after it was copied.
    pub touched: bool,
    /// Requests that must have reached it before it is flushed.
    pub before: u8,
    /// Members that are being told to clear their map of it.
    pub clear: Mask,
}

impl Default for Resync {
    fn default() -> Self {
        Self {
            target: NOBODY,
            stage: Stage::Missed,
            need: false,
            copied: false,
            touched: false,
            before: 0,
            clear: 0,
        }
    }
}

/// Stage of a resync.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(u8)]
pub enum Stage {
    /// A member is asked what it missed. From here on it gets clients' writes.
    #[default]
    Missed,
    /// It is given the maps of those that stay absent.
    Handing,
    /// Copies.
    Copying,
    /// Its answer counts; what was sent before must reach it.
    Joint,
    /// It was flushed.
    Flushed,
    /// It stored the view, as a member.
    Joined,
}

/// An engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Engine {
    /// Phase.
    pub phase: Phase,
    /// Its epoch.
    pub epoch: u8,
    /// The config it knows.
    pub config: u8,
    /// The in-sync set it knows.
    pub isr: Mask,
    /// The configs that removed the absent ones.
    pub since: [u8; REPLICAS],
    /// Which client it serves.
    pub client: u8,
    /// Its client is older than it.
    pub inherited: bool,
    /// Replicas whose cache identity it knows.
    pub reached: Mask,
    /// Of these: it is another one now.
    pub changed: Mask,
    /// Replicas that acknowledged writes it has not flushed there.
    pub unflushed: Mask,
    /// Members that lost acknowledged writes of this epoch.
    pub lost: Mask,
    /// Members that must be removed.
    pub fault: Mask,
    /// [`Replica::doubt`] of each as it said at the promise; [`UNKNOWN`]: it was not heard.
    pub loss: [u8; REPLICAS],
    /// The view is on its way to it: 1, and 2 with the word that what it holds is right.
    pub tell: [u8; REPLICAS],
    /// The word that the region is clean is on its way to it.
    pub clean: Mask,
    /// Its lease holds.
    pub leased: Mask,
    /// Answers wait until a member has stored the view.
    pub gate: bool,
    /// Proposal.
    pub proposal: Proposal,
    /// The region is dirty.
    pub tracked: bool,
    /// A flush of the whole set covers the last write.
    pub covered: bool,
    /// Members may differ.
    pub unequal: bool,
    /// Who is right then; [`NOBODY`].
    pub source: u8,
    /// Writes and copies.
    pub ops: [Op; OPS],
    /// Flush.
    pub flush: Flush,
    /// Resync.
    pub sync: Resync,
    /// Stage of a snapshot: 0 none, 1 gate closed, 2 flush under way, 3 flushed.
    pub snapping: u8,
    /// Members that have it.
    pub snapped: Mask,
}

/// A replica was not heard, or just lost acknowledged writes.
pub const UNKNOWN: u8 = 15;

/// The catalogue's row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Catalogue {
    /// Of the newest engine.
    pub epoch: u8,
    /// Of the in-sync set.
    pub config: u8,
    /// The in-sync set.
    pub isr: Mask,
    /// The configs that removed the absent ones.
    pub since: [u8; REPLICAS],
    /// Replicas that have the snapshot, once it is ready.
    pub snapshot: Mask,
    /// It was restored from an older copy.
    pub restored: bool,
}

/// What clients were told, and what may still happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ghost {
    /// The next write's number.
    pub next: u8,
    /// The highest write that was answered.
    pub acked: u8,
    /// The highest value that was read.
    pub seen: u8,
    /// The highest value a flush was answered for.
    pub flushed: u8,
    /// The newest client.
    pub client: u8,
    /// The newest client that was told of `acked` or `seen`.
    pub told: u8,
    /// Every in-sync replica that held it lost power or was removed: a newer client may find an older value.
    pub excused: bool,
    /// The highest epoch that answered.
    pub top: u8,
    /// What a snapshot must hold.
    pub snapshot: u8,
    /// What may still happen, by [`Budget`].
    pub left: [u8; BUDGETS],
    /// Which property the last step broke.
    pub bad: Bad,
}

/// Budgets in [`Ghost::left`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Budget {
    /// Power cuts.
    Power,
    /// Broken connections.
    Break,
    /// Restarts of a replica's process.
    Restart,
    /// Flushes that fail.
    Failure,
    /// Snapshots.
    Snapshot,
    /// Hand-overs.
    HandOver,
    /// Catalogues restored from an older copy.
    Restore,
    /// Flushes that begin.
    Flush,
}

/// How many budgets there are.
pub const BUDGETS: usize = 8;

impl Ghost {
    /// What is left of a budget.
    pub fn left(&self, budget: Budget) -> u8 {
        self.left[budget as usize]
    }

    /// Takes one.
    pub fn spend(&mut self, budget: Budget) {
        self.left[budget as usize] -= 1;
    }

    /// The least value a reader may see.
    pub fn floor(&self) -> u8 {
        self.acked.max(self.seen)
    }
}

/// A property, broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Bad {
    /// None.
    #[default]
    No,
    /// Acknowledged and flushed, and lost.
    FlushedLost,
    /// Acknowledged, and lost though an in-sync member kept power.
    AckedLost,
    /// A read went back.
    ReadWentBack,
    /// Two epochs answer.
    TwoEpochs,
    /// Answered with fewer copies than the minimum.
    TooFewCopies,
}

/// Everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct State {
    /// Replicas.
    pub replicas: [Replica; REPLICAS],
    /// Engines, oldest first.
    pub engines: [Engine; ENGINES],
    /// Catalogue.
    pub catalogue: Catalogue,
    /// Clients.
    pub ghost: Ghost,
}
