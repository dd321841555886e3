//! What a power cut keeps, from one seed.

/// How much of what was not synced is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// Nothing, as a disk that writes as late as it may.
    Nothing,
    /// All, as a disk that writes at once.
    All,
    /// In a hundred blocks so many.
    Percent(u64),
}

/// A source of decisions.
#[derive(Clone, Debug)]
pub struct Chance {
    state: u64,
    keeps: Keeps,
}

impl Chance {
    /// Decisions that follow from `seed` alone, how much is kept among them.
    pub fn new(seed: u64) -> Self {
        let mut chance = Self::keeping(seed, Keeps::Nothing);
        chance.keeps = match chance.below(8) {
            0 | 1 => Keeps::Nothing,
            2 => Keeps::All,
            3 => Keeps::Percent(5),
            4 => Keeps::Percent(95),
            _ => Keeps::Percent(50),
        };
        chance
    }

    /// Decisions of which it is said how much is kept.
    pub fn keeping(seed: u64, keeps: Keeps) -> Self {
        let state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5DEE_CE66_D1CE_4E5B;
        let mut chance = Self {
            state: state | 1,
            keeps,
        };
        // Seeds that differ little begin alike otherwise.
        for _ in 0..8 {
            chance.next();
        }
        chance
    }

    /// How much is kept.
    pub fn keeps(&self) -> Keeps {
        self.keeps
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    /// A number below `limit`; 0 when that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next().checked_rem(limit).unwrap_or(0)
    }

    /// Yes or no.
    pub fn coin(&mut self) -> bool {
        self.below(2) == 1
    }

    /// Whether one change of a block is kept.
    pub fn kept(&mut self) -> bool {
        match self.keeps {
            Keeps::Nothing => false,
            Keeps::All => true,
            Keeps::Percent(part) => self.below(100) < part,
        }
    }

    /// Whether a change that is kept is kept in part only.
    pub fn torn(&mut self) -> bool {
        self.keeps != Keeps::All && self.below(4) == 0
    }

    /// How many of `count` changes that are made durable in their order are kept.
    pub fn prefix(&mut self, count: usize) -> usize {
        match self.keeps {
            Keeps::Nothing => 0,
            Keeps::All => count,
            Keeps::Percent(_) => usize::try_from(self.below(count as u64 + 1)).unwrap_or(count),
        }
    }
}
