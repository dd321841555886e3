//! Deliberate defects, one rule or one care left out each, to show that the tests would notice.
//!
//! They exist only with the feature `defects`, which no crate asks for: `tests/mutations` is built with it,
//! and the daemons refuse to be (see [`crate::DEFECTS`]). Without the feature `defect!(Name)` is the constant
//! `false` and nothing of it is compiled. With it, one defect is on at a time, for one thread.

/// Whether a defect is on; `false` where they are not compiled in.
#[cfg(feature = "defects")]
macro_rules! defect {
    ($name:ident) => {
        $crate::defect::is_on($crate::defect::Defect::$name)
    };
}

/// Whether a defect is on; `false` where they are not compiled in.
#[cfg(not(feature = "defects"))]
macro_rules! defect {
    ($name:ident) => {
        $crate::defect::never()
    };
}

/// What is left of a defect that is not compiled in: a constant.
#[cfg(not(feature = "defects"))]
pub(crate) const fn never() -> bool {
    false
}

#[cfg(feature = "defects")]
mod list {
    use std::cell::Cell;

    macro_rules! defects {
        ($($name:ident $rule:literal $what:literal;)+) => {
            /// A rule or a care left out.
            #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
            pub enum Defect {
                $(#[doc = $what] $name),+
            }

            impl Defect {
                /// All of them, by rule.
                pub const ALL: &[Self] = &[$(Self::$name),+];

                /// Its name.
                pub fn name(self) -> &'static str {
                    match self { $(Self::$name => stringify!($name)),+ }
                }

                /// The rule it breaks.
                pub fn rule(self) -> &'static str {
                    match self { $(Self::$name => $rule),+ }
                }

                /// What is left out, or done wrong.
                pub fn what(self) -> &'static str {
                    match self { $(Self::$name => $what),+ }
                }

                /// By its name.
                pub fn named(name: &str) -> Option<Self> {
                    Self::ALL.iter().copied().find(|defect| defect.name() == name)
                }
            }
        };
    }

    defects! {
        AnswerAfterFirst "R1" "a write is answered when one member has it";
        AnswerWhenSent "R1" "a write is answered when it is sent";
        FlushByOne "R1" "a flush is answered when one member has flushed";
        AnswerBeforeRemoval "R2" "writes are answered without a member whose removal is only asked for";
        NoStoredView "R2" "answers go out before a member has stored the new view";
        ViewNotTold "R2" "members are not told the new view";
        AnyViewExpected "R2" "a change is decided though its proposer saw another set";
        CatalogueTrusted "R2" "an engine goes on though a replica has seen a later config than the catalogue";
        SilentVouches "R2" "a member is removed on the word of one that was not heard of late";
        NoJointAnswer "R3" "a replica proposed as member is not waited for";
        NoJointLease "R3" "its lease is not needed either";
        JoinUndrained "R3" "it is proposed before it has all that was sent to it";
        JoinUnflushed "R3" "it is proposed before it was flushed";
        FlushesKept "R3" "flushes from before it joined are taken to cover it";
        NoDrain "R4" "a promise does not wait for older I/O in the disk";
        DrainAllButOne "R4" "a promise waits for all older I/O but the last";
        FenceNotStored "R4" "a promise does not wait for the fence to be durable";
        NoLeaseWait "R4" "a promise does not wait for the lease granted before";
        LeaseOfTheFence "R4" "a restarted replica takes its lease for one of the engine that waits for it";
        LeaseForgotten "R4" "a restarted replica assumes that it had granted no lease";
        OlderEpochServed "R5" "an engine of an older epoch is let in";
        NoGrace "R5" "after an unclean end members are removed after half a second";
        LeaseNotChecked "R6" "a read is released without leases";
        LeaseOfOne "R6" "the lease of one member is enough";
        LeaseFromAnswer "R6" "a lease counts from the answer";
        NoMargin "R6" "nothing is taken off a lease for clocks of different speed";
        WriteBeforeBit "R7" "a write does not set its dirty bit";
        CopyWithoutBit "R7" "a copy to a returning replica sets no dirty bit";
        CopyNotTracked "R7" "a region is declared clean though a copy to it was not flushed";
        RegionOffByOne "R7" "of a write over two regions the second is not marked";
        FlushCoversLater "R7" "a flush is taken to cover what ended before its answer";
        CleanWithoutFlush "R7" "a region that rests is declared clean without a flush";
        CleanWhileWriting "R7" "a region is declared clean while it is written";
        CleanUnequal "R7" "a region is declared clean though it is unequal";
        LowerWritten "R7" "a region declared clean and written again is lowered all the same";
        StopUnflushed "R7" "a stop declares all clean before its flush was answered";
        NoRepair "R8" "dirty regions are not made equal after an unclean end";
        ReadUnrepaired "R8" "a read does not wait for the repair";
        AnySource "R8" "any member is the source of the repair";
        DoubtForgotten "R8" "a replica does not remember that it lost its cache";
        LossesTie "R8" "losses found by one engine count as equally old";
        FlushInDoubt "R8" "flushes are answered while a member is in doubt";
        LastRightGoes "R8" "the last member that is right is removed at once";
        LossServed "R8" "an older client is served though no member is right";
        AnyHonours "R8" "a member that lost acknowledged writes is a source for the client that has them";
        CopyHoldsRepair "R8" "a resync's copy keeps the lock its block's repair waits for";
        CacheNotCompared "R9" "the cache identity is not compared";
        FlushNotRecalled "R9" "flushes under way go on after a member lost its cache";
        AnswerOfTheUnheard "R9" "an acknowledgement counts though its replica is not connected";
        WritesNotRecalled "R9" "a write under way is not sent again to a member that lost it";
        CopyNotVoided "R9" "a copy under way counts on a member that has lost it since";
        NotSentAgain "R9" "what was under way is not sent again";
        MapBeginsEmpty "R10" "the map of an absent replica begins empty";
        MapStays "R10" "it does not grow with writes";
        MapWithoutDirty "R10" "after a crash it does not take the dirty map in";
        LowerBeforeMaps "R10" "a dirty bit goes before what it gained is durable";
        BlockOffByOne "R10" "of a write over two blocks the second is not marked";
        MapClearedUnflushed "R10" "it lets go of what was copied and not flushed";
        WrittenCleared "R10" "it lets go of what was written again after the copy";
        MapsNotHandedOn "R10" "a replica that joins is not given the maps of the absent";
        OwnMapIgnored "R11" "a returning replica's own dirty map is ignored";
        PartCalledClean "R11" "a region is called clean on a returning replica that lacks a part of it";
        MapOfAnyConfig "R11" "a map that begins at another config will do";
        OldCopyTrusted "R11" "a superblock older than its last joining will do";
        DamagedIsClean "R11" "a damaged page of a map counts as zeroes";
        WritesNotShared "R12" "a replica that begins to catch up is not sent the writes under way";
        NothingPassed "R12" "a copy waits for writes that wait for members that are away";
        NoLocks "R12" "nothing is locked";
        ReadsUnlocked "R12" "reads do not wait for writes";
        CopyUnlocked "R12" "copies do not wait for writes";
        LockFreedEarly "R12" "a write's lock goes before a replica that catches up has it";
        PassFromAnyone "R12" "a copy that passes a write is made from a member that lacks it";
        StalledCalledClean "R12" "a region with a write under way is called clean on a returning replica";
        AttemptLeftOpen "R12" "the connection of a resync that ended stays open";
        MemberUnasked "R13" "a member is taken for one whatever it says of itself";
        SyncingRead "R13" "a replica that catches up is read";
        ClaimKept "R13" "opened as no member a replica still claims to be one";
        IdentityNotChecked "R14" "a replica does not look whom a request is for";
        ViewNotChecked "R14" "a replica does not compare the view of a request";
        OldLinkAnswers "R14" "an answer counts whichever connection it came on";
        HeaderNotChecked "R14" "the checksum of a header is not compared";
        PayloadNotChecked "R14" "the checksum of a payload is not compared";
        PageNotChecked "R14" "the checksum of a stored page is not compared";
        FailureForgotten "R15" "a failed write or flush has no consequence for the replica";
        FailedLooksSound "R15" "a disk that failed opens with the identity it had";
        FailedTrusted "R15" "an engine told of a failure trusts the identity it knew";
        MinimumIgnored "R16" "neither engine nor catalogue keeps the minimum";
        SnapshotUngated "S1" "writes begin while a snapshot is made";
        SnapshotUndrained "S1" "a snapshot does not wait for writes under way";
        SnapshotUnflushed "S1" "a snapshot is made of what was not flushed";
        SnapshotWhileWriting "S2" "a replica makes its copy while it writes";
        SnapshotUnequal "S3" "a snapshot is made while members may differ";
        SnapshotOfSome "S4" "a snapshot is ready when one member has it";
        SnapshotOfAnyView "S4" "the catalogue takes a snapshot of another in-sync set";
        SnapshotDisturbed "S4" "an attempt goes on over a lost connection";
        SnapshotOldAnswer "S4" "what a member answered to an earlier attempt counts";
        SnapshotGateStays "S5" "writes are held until a snapshot is made, however long";
        SnapshotLate "S5" "a copy that was made after writes went on counts";
        RecopyUnflushed "S6" "a copy made anew counts before it is durable";
        RecopyBelieves "S6" "what is there of a copy made anew is not compared with the one it is made of";
        RecopyHoles "S6" "what is a hole in the other copy stays what it was";
        HoleTooLong "G1" "what only begins as a hole is sent as one";
        LeavesAtOnce "G2" "a member leaves though one that stays is not there or not right";
        TooSmallJoins "G3" "a replica smaller than the volume is brought up to date";
        GrownIsClean "G3" "what an absent replica has of the new part counts as known";
        ScrubUnlocked "C1" "copies are compared while they are written";
        ScrubUnequal "C1" "copies are compared while members may differ";
        ScrubOfSome "C1" "copies are compared though a replica is away";
        ScrubOldAnswer "C1" "what was answered to an earlier look counts";
        ScrubLockStays "C1" "a look lasts until every member has answered, however long";
        ScrubMinority "C2" "what the fewest copies hold is right";
        ScrubFromDoubt "C3" "it is mended from a member that may lack what was acknowledged";
        ScrubUngated "C3" "a scrub goes on while a snapshot is made";
        ScrubUnflushed "C3" "what was mended need not be durable";
        ScrubBlind "C3" "what was mended is not looked at again";
        ScrubUntold "C4" "it is mended before the catalogue has heard of it";
        ScrubUnpaced "C5" "a scrub goes as fast as disks can";
    }

    thread_local! {
        static ON: Cell<Option<Defect>> = const { Cell::new(None) };
    }

    /// Switches a defect on for this thread, or all off.
    pub fn switch(defect: Option<Defect>) {
        ON.set(defect);
    }

    /// Whether a defect is on: switched on for this thread, or named by `STOR_DEFECT` for the whole process.
    pub fn is_on(defect: Defect) -> bool {
        ON.get().or_else(of_process) == Some(defect)
    }

    fn of_process() -> Option<Defect> {
        static NAMED: std::sync::OnceLock<Option<Defect>> = std::sync::OnceLock::new();
        *NAMED.get_or_init(|| Defect::named(&std::env::var("STOR_DEFECT").ok()?))
    }
}

#[cfg(feature = "defects")]
pub use list::{Defect, is_on, switch};
