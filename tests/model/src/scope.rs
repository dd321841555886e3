//! How much may happen in a history: each configuration is searched completely.

use crate::state::BUDGETS;

/// Bounds of one search.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scope {
    /// Its name.
    pub name: &'static str,
    /// What may happen.
    pub about: &'static str,
    /// Replicas, all in sync at first.
    pub replicas: usize,
    /// Engines, the first of which serves at first.
    pub epochs: usize,
    /// Writes.
    pub writes: u8,
    /// The highest config: each removal and addition takes one.
    pub configs: u8,
    /// `min_in_sync`.
    pub minimum: u8,
    /// A later engine may have a new client.
    pub fresh: bool,
    /// It may have inherited the client of the one before.
    pub inherit: bool,
    /// An engine goes on when the next one has a new client.
    pub zombies: bool,
    /// Flushes and writes may be under way together.
    pub overlap: bool,
    /// How often each may happen: power cuts, broken connections, restarts of a replica's process, failed
    /// flushes, snapshots, hand-overs, restored catalogues, flushes.
    pub budgets: [u8; BUDGETS],
}

impl Scope {
    const BASE: Self = Self {
        name: "",
        about: "",
        replicas: 2,
        epochs: 2,
        writes: 2,
        configs: 2,
        minimum: 1,
        fresh: true,
        inherit: false,
        zombies: true,
        overlap: false,
        budgets: [0; BUDGETS],
    };

    /// All of them, the cheap ones first.
    pub const ALL: &'static [Self] = &[
        Self {
            name: "takeover",
            about: "two engines, the older goes on, a broken connection, a flush",
            writes: 1,
            budgets: [0, 1, 0, 0, 0, 0, 0, 1],
            ..Self::BASE
        },
        Self {
            name: "power",
            about: "two engines, two writes, a power cut, a flush",
            zombies: false,
            budgets: [1, 0, 0, 0, 0, 0, 0, 1],
            ..Self::BASE
        },
        Self {
            name: "resync",
            about: "removal and return twice, two writes, two broken connections, two flushes",
            epochs: 1,
            configs: 4,
            budgets: [0, 2, 0, 0, 0, 0, 0, 2],
            ..Self::BASE
        },
        Self {
            name: "resync-power",
            about: "removal and return, a power cut, a broken connection, a flush",
            epochs: 1,
            configs: 4,
            writes: 1,
            budgets: [1, 1, 0, 0, 0, 0, 0, 1],
            ..Self::BASE
        },
        Self {
            name: "resync-takeover",
            about: "removal and return, two engines, the older goes on, a broken connection, a flush",
            configs: 4,
            writes: 1,
            budgets: [0, 1, 0, 0, 0, 0, 0, 1],
            ..Self::BASE
        },
        Self {
            name: "inherit",
            about: "three engines, the client new or inherited, a power cut, a flush",
            epochs: 3,
            writes: 1,
            zombies: false,
            inherit: true,
            budgets: [1, 0, 0, 0, 0, 0, 0, 1],
            ..Self::BASE
        },
        Self {
            name: "minimum",
            about: "a set that may not shrink, two power cuts, flushes and writes together",
            epochs: 1,
            minimum: 2,
            overlap: true,
            budgets: [2, 0, 0, 0, 0, 0, 0, 2],
            ..Self::BASE
        },
        Self {
            name: "losses",
            about: "a set that may not shrink, two engines, two power cuts",
            zombies: false,
            minimum: 2,
            writes: 2,
            budgets: [2, 0, 0, 0, 0, 0, 0, 0],
            ..Self::BASE
        },
        Self {
            name: "minimum-three",
            about: "three replicas, none of which may be removed, two engines, a power cut",
            replicas: 3,
            zombies: false,
            minimum: 3,
            writes: 1,
            budgets: [1, 0, 0, 0, 0, 0, 0, 1],
            ..Self::BASE
        },
        Self {
            name: "minimum-return",
            about: "three replicas, two of which must be in sync; one is away, another returns, two broken connections",
            replicas: 3,
            epochs: 1,
            minimum: 2,
            configs: 4,
            writes: 1,
            budgets: [0, 2, 0, 0, 0, 0, 0, 1],
            ..Self::BASE
        },
        Self {
            name: "failure",
            about: "a flush that fails, two writes",
            epochs: 1,
            budgets: [0, 0, 0, 1, 0, 0, 0, 2],
            ..Self::BASE
        },
        Self {
            name: "restart",
            about: "two engines, the older goes on, a replica's process restarts",
            writes: 1,
            budgets: [0, 0, 1, 0, 0, 0, 0, 0],
            ..Self::BASE
        },
        Self {
            name: "snapshot",
            about: "two snapshots, two engines",
            zombies: false,
            writes: 1,
            budgets: [0, 0, 0, 0, 2, 0, 0, 2],
            ..Self::BASE
        },
        Self {
            name: "handover",
            about: "a hand-over, a power cut, a flush",
            fresh: false,
            zombies: false,
            writes: 1,
            budgets: [1, 0, 0, 0, 0, 1, 0, 1],
            ..Self::BASE
        },
        Self {
            name: "restored",
            about: "the catalogue is restored from its first copy, a broken connection",
            writes: 1,
            budgets: [0, 1, 0, 0, 0, 0, 1, 1],
            ..Self::BASE
        },
        Self {
            name: "three",
            about: "three replicas, two removals, returns, two broken connections",
            replicas: 3,
            epochs: 1,
            configs: 4,
            writes: 1,
            budgets: [0, 2, 0, 0, 0, 0, 0, 0],
            ..Self::BASE
        },
    ];

    /// One by name.
    pub fn named(name: &str) -> Option<&'static Self> {
        Self::ALL.iter().find(|scope| scope.name == name)
    }
}
