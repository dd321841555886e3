//! Which fault comes when, from a seed.
//!
//! Kinds are dealt as from a deck of cards, so that each has come once before any comes twice, and a run of a minute
//! has seen most of them. A fault begins before the one before it is over as often as not.

use std::fmt;
use std::time::Duration;

use crate::network::Traffic;

/// What is killed or stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// Satellite of storage node `s1` to `s3`: its agent and its replicas.
    Storage(u8),
    /// Controller `c1` to `c3`.
    Controller(u8),
    /// The controller that leads.
    Leader,
    /// All daemons of machine `n1` to `n3`.
    Machine(u8),
    /// The agent of the node where the volume is used.
    Agent,
    /// The engine.
    Engine,
}

/// Where the network is cut. A client is the node where the volume is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partition {
    /// A machine from all others.
    Machine(u8),
    /// The client from all others.
    Client,
    /// What the client sends to a machine, or what that sends to the client, is lost.
    OneWay {
        /// The machine.
        machine: u8,
        /// From the client.
        outward: bool,
        /// What is lost.
        traffic: Traffic,
    },
    /// What a machine's controller and satellite have with controllers elsewhere.
    Control(u8),
    /// The client hears of no controller, the replicas it reaches.
    ClientControl,
    /// The client from one machine's replicas.
    Data(u8),
    /// No machine's controller reaches another.
    Controllers,
    /// One machine and the client reach each other and nobody else.
    Halves(u8),
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL; started again at the end (the engine by its agent).
    Kill(Victim),
    /// SIGSTOP; SIGCONT at the end.
    Pause(Victim),
    /// The network is cut.
    Cut(Partition),
    /// The disk of a storage node is filled up.
    FullDisk(u8),
    /// The wall clocks of a machine jump by so many seconds, and back at the end.
    WallClock(u8, i64),
    /// A storage node is killed and started with boot-time and monotonic clocks that far beside the others'.
    BootClock(u8, i64),
    /// Every storage satellite is ended and started, one by one, then every controller.
    Rolling,
    /// Another node takes the volume by force, while its node is cut off from all others.
    TakeOver,
    /// Another node takes the volume by force, while its engine and agent are stopped.
    TakeOverAsleep,
    /// Another node takes the volume by force, while its node and one machine reach each other and nobody else. It
    /// lasts until the new engine does without that machine's replica.
    TakeOverSplit(u8),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A fault and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// After the beginning of the round.
    pub at: Duration,
    /// Until it is made good.
    pub lasts: Duration,
    /// What.
    pub fault: Fault,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at.as_secs_f32(), self.lasts.as_secs_f32());
        write!(f, "{at:6.1} s for {lasts:4.1} s  {}", self.fault)
    }
}

/// Kinds of a deck.
const KINDS: u64 = 23;
/// The last of them.
const SPLIT: u64 = KINDS - 1;
/// A new engine waits half a minute for replicas that may have what nobody else has.
const SPLIT_LASTS: Duration = Duration::from_secs(38);

/// Faults for `length`, from a seed.
pub fn schedule(seed: u64, length: Duration) -> Vec<Step> {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut steps = Vec::new();
    let mut deck: Vec<u64> = Vec::new();
    let mut at = Duration::from_secs(1);
    while at < length {
        let Some(kind) = deck.pop() else {
            deck = dice.shuffled(KINDS);
            continue;
        };
        if kind == SPLIT && length.saturating_sub(at) < 2 * SPLIT_LASTS {
            continue;
        }
        let lasts = match kind {
            SPLIT => SPLIT_LASTS,
            _ => Duration::from_millis(1500 + dice.roll(5000)),
        };
        let fault = fault(kind, &mut dice);
        steps.push(Step { at, lasts, fault });
        at += Duration::from_millis(800 + dice.roll(4200));
    }
    steps
}

fn fault(kind: u64, dice: &mut Dice) -> Fault {
    let machine = dice.one_of_three();
    let outward = dice.roll(2) == 0;
    let one_way = |traffic| Partition::OneWay {
        machine,
        outward,
        traffic,
    };
    match kind {
        0 => Fault::Kill(Victim::Storage(machine)),
        1 => Fault::Kill(Victim::Leader),
        2 => Fault::Kill(Victim::Controller(machine)),
        3 => Fault::Kill(Victim::Machine(machine)),
        4 => Fault::Kill(Victim::Agent),
        5 => Fault::Kill(Victim::Engine),
        6 => Fault::Pause(Victim::Storage(machine)),
        7 => Fault::Pause(Victim::Leader),
        8 => Fault::Pause(Victim::Engine),
        9 => Fault::Cut(Partition::Machine(machine)),
        10 => Fault::Cut(Partition::Client),
        11 => Fault::Cut(one_way(Traffic::All)),
        12 => Fault::Cut(one_way(Traffic::Data)),
        13 => Fault::Cut(Partition::Control(machine)),
        14 => Fault::Cut(Partition::ClientControl),
        15 => Fault::Cut(Partition::Data(machine)),
        16 => Fault::Cut(if outward {
            Partition::Controllers
        } else {
            Partition::Halves(machine)
        }),
        17 => Fault::FullDisk(machine),
        18 => Fault::WallClock(machine, dice.jump()),
        19 => Fault::BootClock(machine, dice.jump().abs()),
        20 => Fault::Rolling,
        SPLIT => Fault::TakeOverSplit(machine),
        _ if outward => Fault::TakeOver,
        _ => Fault::TakeOverAsleep,
    }
}

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 9) % below.max(1)
    }

    fn one_of_three(&mut self) -> u8 {
        u8::try_from(self.roll(3)).unwrap_or(0) + 1
    }

    /// Seconds by which a clock jumps: a leap, an hour, a day.
    fn jump(&mut self) -> i64 {
        let size = match self.roll(3) {
            0 => 1,
            1 => 3600,
            _ => 86_400,
        };
        if self.roll(2) == 0 { size } else { -size }
    }

    fn shuffled(&mut self, count: u64) -> Vec<u64> {
        let mut cards: Vec<u64> = (0..count).collect();
        for index in (1..cards.len()).rev() {
            cards.swap(index, usize::try_from(self.roll(index as u64 + 1)).unwrap_or(0));
        }
        cards
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_is_a_schedule_and_another_another() {
        let length = Duration::from_mins(3);
        assert_eq!(schedule(7, length), schedule(7, length));
        assert_ne!(schedule(7, length), schedule(8, length));
        let steps = schedule(7, length);
        assert!(steps.windows(2).all(|pair| pair[0].at < pair[1].at));
        assert!(steps.iter().all(|step| step.at < length));
        let overlapping = steps
            .windows(2)
            .filter(|pair| pair[0].at + pair[0].lasts > pair[1].at);
        assert!(overlapping.count() > steps.len() / 4);
    }

    #[test]
    fn every_kind_comes_before_any_comes_twice() {
        for seed in 0..50 {
            let mut dice = Dice(seed * 2 + 1);
            let kinds: BTreeSet<String> = dice
                .shuffled(KINDS)
                .into_iter()
                .map(|kind| format!("{}", fault(kind, &mut Dice(1))))
                .collect();
            assert_eq!(kinds.len() as u64, KINDS, "two numbers for one kind");
        }
    }
}
