//! The rules, each of which can be taken out.

/// A rule or a part of one. The names begin with the rule's id in `docs/replication.md`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Rule {
    /// Every member answers before the client is answered.
    AllAck,
    /// The catalogue removes a member before answers go out without it.
    CommitFirst,
    /// A change of the in-sync set names the view it presumes.
    Compare,
    /// An outcome that is not known is waited for, not made up.
    UnknownWaits,
    /// One remaining member stores the view before answers go out under it.
    ViewStored,
    /// A replica's answer counts from before its addition is proposed.
    Joint,
    /// So does its lease.
    JointLease,
    /// It is flushed before it is added.
    JoinFlush,
    /// A promise waits for older writes in the disk.
    Drain,
    /// A promise waits for older leases.
    LeaseWait,
    /// A promise dies with its connection: the next one drains too.
    Reopen,
    /// Replicas refuse older epochs.
    Fence,
    /// A new engine removes members only when leases from before it are over.
    Grace,
    /// Reads need the leases of all members when they are answered.
    Leases,
    /// The dirty bit is durable before the write.
    DirtyFirst,
    /// Copies set it too.
    DirtyCopies,
    /// It goes after a flush of the whole set.
    CleanFlushed,
    /// It stays while members differ.
    CleanEqual,
    /// Unequal blocks are repaired before they are read.
    Repair,
    /// The source is a member that lost nothing, or lost it longest ago.
    Source,
    /// Doubt is stored, and outlives the engine.
    Doubt,
    /// Losses found by one engine have an order.
    LossOrder,
    /// Flushes wait while a member is in doubt.
    DoubtFlush,
    /// An inherited client whose acknowledgements nobody can honour loses the device.
    LoseDevice,
    /// The cache identity is compared on each connection.
    CacheId,
    /// Flushes under way when a member loses its cache begin again.
    Recall,
    /// Writes under way then are sent to it again.
    RecallWrites,
    /// What a member acknowledged counts while its connection stands.
    AckOpen,
    /// Copies under way when a member loses its cache count for nothing.
    RecallCopies,
    /// The map of an absent replica begins with the dirty regions.
    MapStart,
    /// It grows with every write.
    MapGrow,
    /// What it gained is durable before a dirty bit goes.
    MapOrder,
    /// It is cleared only of what was flushed there.
    MapClear,
    /// A copied block that was written since stays in it.
    MapTouched,
    /// A joining replica is given the maps of those that stay absent.
    MapHand,
    /// A returning replica's own dirty map counts.
    OwnMap,
    /// A map of another config does not count.
    MapConfig,
    /// Without a map everything is copied.
    NoMap,
    /// A read waits for a write to the same bytes.
    LockRead,
    /// A copy and a write exclude one another.
    LockCopy,
    /// A copy passes only writes its source has.
    PassSource,
    /// A region with such a write is not called clean on the replica it is copied to.
    PassDirty,
    /// The lock stays until a replica that catches up has the write.
    LockJoining,
    /// A replica that catches up is not read.
    NotRead,
    /// A superblock that does not claim membership does not count as a member.
    Vouch,
    /// A failed flush is final for that opening of the disk.
    Final,
    /// The set does not shrink below the minimum.
    Minimum,
    /// A replica of a later config stops an engine.
    Behind,
    /// No write begins while a snapshot is made.
    SnapGate,
    /// Writes under way end before.
    SnapDrain,
    /// Nothing is unequal any more before.
    SnapEqual,
    /// All is flushed before.
    SnapFlush,
    /// It is ready when every member has it.
    SnapAll,
    /// What an engine left behind unready is deleted.
    SnapDelete,
    /// No request begins after a hand-over has.
    HandGate,
    /// Requests under way end before.
    HandDrain,
    /// All is flushed before the regions are called clean.
    HandFlush,
}

/// What is known of a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its id in `docs/replication.md`; S and H: snapshots and hand-overs, in `docs/model.md`.
    pub id: &'static str,
    /// What it says.
    pub words: &'static str,
    /// The configuration in which its absence shows, or might.
    pub scope: &'static str,
    /// Why it does not.
    pub why_not: &'static str,
}

impl Rule {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::AllAck,
        Self::CommitFirst,
        Self::Compare,
        Self::UnknownWaits,
        Self::ViewStored,
        Self::Joint,
        Self::JointLease,
        Self::JoinFlush,
        Self::Drain,
        Self::LeaseWait,
        Self::Reopen,
        Self::Fence,
        Self::Grace,
        Self::Leases,
        Self::DirtyFirst,
        Self::DirtyCopies,
        Self::CleanFlushed,
        Self::CleanEqual,
        Self::Repair,
        Self::Source,
        Self::Doubt,
        Self::LossOrder,
        Self::DoubtFlush,
        Self::LoseDevice,
        Self::CacheId,
        Self::Recall,
        Self::RecallWrites,
        Self::AckOpen,
        Self::RecallCopies,
        Self::MapStart,
        Self::MapGrow,
        Self::MapOrder,
        Self::MapClear,
        Self::MapTouched,
        Self::MapHand,
        Self::OwnMap,
        Self::MapConfig,
        Self::NoMap,
        Self::LockRead,
        Self::LockCopy,
        Self::PassSource,
        Self::PassDirty,
        Self::LockJoining,
        Self::NotRead,
        Self::Vouch,
        Self::Final,
        Self::Minimum,
        Self::Behind,
        Self::SnapGate,
        Self::SnapDrain,
        Self::SnapEqual,
        Self::SnapFlush,
        Self::SnapAll,
        Self::SnapDelete,
        Self::HandGate,
        Self::HandDrain,
        Self::HandFlush,
    ];

    /// One by name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|rule| format!("{rule:?}") == name)
    }

    /// What is known of it.
    pub const fn entry(self) -> Entry {
        let (id, words, scope, why_not) = match self {
            Self::AllAck => (
                "R1",
                "every member answers before the client is answered",
                "minimum",
                "",
            ),
            Self::CommitFirst => (
                "R2",
                "the catalogue removes a member before answers go out without it",
                "power",
                "",
            ),
            Self::Compare => (
                "R2",
                "a change of the in-sync set names the view it presumes",
                "resync-takeover",
                "",
            ),
            Self::UnknownWaits => (
                "R2",
                "an outcome that is not known is waited for, not made up",
                "takeover",
                "",
            ),
            Self::ViewStored => (
                "R2",
                "one remaining member stores the view before answers go out under it",
                "restored",
                "",
            ),
            Self::Joint => (
                "R3",
                "a replica's answer counts from before its addition is proposed",
                "resync-takeover",
                "",
            ),
            Self::JointLease => ("R3", "so does its lease", "resync-takeover", ""),
            Self::JoinFlush => ("R3", "it is flushed before it is added", "resync-power", ""),
            Self::Drain => (
                "R4",
                "a promise waits for older writes in the disk",
                "takeover",
                "",
            ),
            Self::LeaseWait => ("R4", "a promise waits for older leases", "takeover", ""),
            Self::Reopen => (
                "R4",
                "a promise dies with its connection: the next one drains too",
                "resync",
                "",
            ),
            Self::Fence => ("R5", "replicas refuse older epochs", "takeover", ""),
            Self::Grace => (
                "R5",
                "a new engine removes members only when leases from before it are over",
                "restart",
                "",
            ),
            Self::Leases => (
                "R6",
                "reads need the leases of all members when they are answered",
                "takeover",
                "",
            ),
            Self::DirtyFirst => ("R7", "the dirty bit is durable before the write", "resync", ""),
            Self::DirtyCopies => ("R7", "copies set it too", "inherit", ""),
            Self::CleanFlushed => ("R7", "it goes after a flush of the whole set", "power", ""),
            Self::CleanEqual => ("R7", "it stays while members differ", "power", ""),
            Self::Repair => (
                "R8",
                "unequal blocks are repaired before they are read",
                "power",
                "",
            ),
            Self::Source => (
                "R8",
                "the source is a member that lost nothing, or lost it longest ago",
                "power",
                "",
            ),
            Self::Doubt => ("R8", "doubt is stored, and outlives the engine", "inherit", ""),
            Self::LossOrder => ("R8", "losses found by one engine have an order", "losses", ""),
            Self::DoubtFlush => ("R8", "flushes wait while a member is in doubt", "minimum", ""),
            Self::LoseDevice => (
                "R8",
                "an inherited client whose acknowledgements nobody can honour loses the device",
                "inherit",
                "",
            ),
            Self::CacheId => (
                "R9",
                "the cache identity is compared on each connection",
                "minimum",
                "",
            ),
            Self::Recall => (
                "R9",
                "flushes under way when a member loses its cache begin again",
                "minimum",
                "",
            ),
            Self::RecallWrites => (
                "R9",
                "writes under way when a member loses its cache are sent to it again",
                "losses",
                "",
            ),
            Self::AckOpen => (
                "R9",
                "what a member acknowledged counts while its connection stands",
                "losses",
                "",
            ),
            Self::RecallCopies => (
                "R9",
                "copies under way when a member loses its cache count for nothing",
                "minimum-three",
                "",
            ),
            Self::MapStart => (
                "R10",
                "the map of an absent replica begins with the dirty regions",
                "resync",
                "",
            ),
            Self::MapGrow => ("R10", "it grows with every write", "resync", ""),
            Self::MapOrder => (
                "R10",
                "what it gained is durable before a dirty bit goes",
                "resync-power",
                "",
            ),
            Self::MapClear => (
                "R10",
                "it is cleared only of what was flushed there",
                "resync-power",
                "",
            ),
            Self::MapTouched => (
                "R10",
                "a copied block that was written since stays in it",
                "resync",
                "The flush of a checkpoint takes no time here; a write that ends between a flush and its answer is what it is for",
            ),
            Self::MapHand => (
                "R10",
                "a joining replica is given the maps of those that stay absent",
                "three",
                "Unknown is never clean (R11) stands for it, at the cost of a full copy",
            ),
            Self::OwnMap => (
                "R11",
                "a returning replica's own dirty map counts",
                "resync-takeover",
                "",
            ),
            Self::MapConfig => (
                "R11",
                "a map of another config does not count",
                "three",
                "A map that does not fit the roster is dropped when the view is stored, and a replica that is no member drops all of its own (R13): no map of another config is left to be asked for",
            ),
            Self::NoMap => (
                "R11",
                "without a map everything is copied",
                "resync-takeover",
                "Within one block and without damage there always is a map: it begins when the removal's view is stored, and is handed on (R10)",
            ),
            Self::LockRead => ("R12", "a read waits for a write to the same bytes", "power", ""),
            Self::LockCopy => ("R12", "a copy and a write exclude one another", "resync", ""),
            Self::PassSource => (
                "R12",
                "a copy passes only writes its source has",
                "minimum-return",
                "",
            ),
            Self::PassDirty => (
                "R12",
                "a region with such a write stays dirty on the replica it is copied to",
                "minimum-return",
                "",
            ),
            Self::LockJoining => (
                "R12",
                "the lock stays until a replica that catches up has the write",
                "resync",
                "",
            ),
            Self::NotRead => ("R13", "a replica that catches up is not read", "resync", ""),
            Self::Vouch => (
                "R13",
                "a superblock that does not claim membership does not count as a member",
                "restored",
                "Only a catalogue or a superblock restored from a copy makes a difference; the former is noticed by the config of the others (Behind), the latter is not modelled",
            ),
            Self::Final => (
                "R15",
                "a failed flush is final for that opening of the disk",
                "failure",
                "",
            ),
            Self::Minimum => ("R16", "the set does not shrink below the minimum", "minimum", ""),
            Self::Behind => (
                "R2",
                "a replica of a later config stops an engine",
                "restored",
                "",
            ),
            Self::SnapGate => ("S1", "no write begins while a snapshot is made", "snapshot", ""),
            Self::SnapDrain => ("S1", "writes under way end before", "snapshot", ""),
            Self::SnapEqual => ("S3", "nothing is unequal any more before", "snapshot", ""),
            Self::SnapFlush => ("S1", "all is flushed before", "snapshot", ""),
            Self::SnapAll => ("S4", "it is ready when every member has it", "snapshot", ""),
            Self::SnapDelete => (
                "S4",
                "what an engine left behind unready is deleted",
                "snapshot",
                "",
            ),
            Self::HandGate => ("H1", "no request begins after a hand-over has", "handover", ""),
            Self::HandDrain => ("H2", "requests under way end before", "handover", ""),
            Self::HandFlush => (
                "H3",
                "all is flushed before the regions are called clean",
                "handover",
                "",
            ),
        };
        Entry {
            id,
            words,
            scope,
            why_not,
        }
    }
}
