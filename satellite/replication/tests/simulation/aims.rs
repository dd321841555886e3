//! Faults that are aimed: at a moment of the protocol, and in company that makes one rule matter.
//!
//! Left to chance, some rules stand for one another so well that a fault that needs just one of them comes
//! once in ten thousand seeds. A third of the seeds therefore pick one of these.

use super::faults::{Fault, Plan};
use super::rng::Rng;
use super::world::{MS, SECOND, What, World};

/// A moment at which a fault may strike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Moment {
    /// The catalogue removed a member.
    Removal,
    /// The catalogue added one; nobody knows yet.
    Addition,
    /// A new epoch began.
    Attach,
    /// An engine began to serve.
    Serves,
    /// A replica promised.
    Promise,
    /// A replica that caught up is told that it will be a member.
    Joins,
    /// A disk said no to a write or flush.
    DiskError,
    /// Regions are declared clean.
    Clean,
}

const MOMENTS: [Moment; 8] = [
    Moment::Removal,
    Moment::Addition,
    Moment::Attach,
    Moment::Serves,
    Moment::Promise,
    Moment::Joins,
    Moment::DiskError,
    Moment::Clean,
];

/// Faults that may strike at a moment.
const STRIKES: [Fault; 10] = [
    Fault::EngineCrash,
    Fault::EnginePause,
    Fault::SatelliteCrash,
    Fault::MachineCrash,
    Fault::OwnerDies,
    Fault::PowerLoss,
    Fault::BreakConnection,
    Fault::Takeover,
    Fault::CutController,
    Fault::DieMidway,
];

impl Plan {
    /// Some moments at which something strikes.
    pub(crate) fn aim_somewhere(&mut self, rng: &mut Rng) {
        for _ in 0..rng.between(1, 3) {
            let moment = MOMENTS[rng.index(MOMENTS.len())];
            self.strikes.push((moment, STRIKES[rng.index(STRIKES.len())]));
        }
    }

    /// One of the plans made for a rule that others hide.
    pub(crate) fn aim(&mut self, rng: &mut Rng) {
        self.strikes.clear();
        match rng.below(9) {
            // A write that only the owner's own replica has, and nobody writes there again (R10, R11).
            0 => {
                self.wide(rng);
                self.faults = vec![Fault::Split, Fault::Cut, Fault::SatelliteCrash];
                self.length = 80 * SECOND;
                self.pause = 8 * SECOND;
            }
            // An addition whose outcome the engine never learns, and a second engine beside it (R3).
            1 => {
                self.copies = 2;
                self.min_in_sync = 1;
                self.begin_stale = true;
                self.faults = vec![Fault::BreakConnection, Fault::SatelliteCrash];
                self.pause = 10 * SECOND;
                self.longest = 5 * SECOND;
                self.length = 90 * SECOND;
                self.strikes = vec![(Moment::Addition, Fault::Split)];
            }
            // A disk fails, and whoever was told dies (R15).
            2 => {
                self.faults = vec![Fault::BrokenDisk, Fault::EngineCrash, Fault::SatelliteCrash];
                self.longest = self.longest.min(SECOND);
                self.strikes = vec![
                    (Moment::DiskError, Fault::EngineCrash),
                    (Moment::DiskError, Fault::OwnerDies),
                    (Moment::DiskError, Fault::BreakConnection),
                ];
            }
            // Caches are lost, again and again (R8, R9).
            3 => {
                self.faults = vec![
                    Fault::MachineCrash,
                    Fault::EngineCrash,
                    Fault::PowerLoss,
                    Fault::OwnerDies,
                ];
                self.strikes = vec![
                    (Moment::Serves, Fault::MachineCrash),
                    (Moment::Serves, Fault::EngineCrash),
                    (Moment::Joins, Fault::MachineCrash),
                ];
            }
            // The set may not shrink (R16, R9).
            4 => {
                self.min_in_sync = 2;
                self.copies = 2 + rng.index(2);
                self.faults = vec![
                    Fault::Cut,
                    Fault::MachineCrash,
                    Fault::SatelliteCrash,
                    Fault::DiskHang,
                ];
            }
            // Replicas come and go, and something breaks just when they join (R3, R12, R13).
            5 => {
                self.wide(rng);
                self.faults = vec![Fault::SatelliteCrash, Fault::BreakConnection, Fault::CutOneWay];
                self.pause = rng.spread(300 * MS, 3 * SECOND);
                self.longest = rng.spread(500 * MS, 4 * SECOND);
                self.strikes = vec![
                    (Moment::Joins, Fault::MachineCrash),
                    (Moment::Addition, Fault::EngineCrash),
                    (Moment::Joins, Fault::BreakConnection),
                ];
            }
            // Long rests, so that regions are declared clean, then a loss (R7).
            6 => {
                self.wide(rng);
                self.rests = true;
                self.faults = vec![Fault::MachineCrash, Fault::OwnerDies, Fault::SatelliteCrash];
                self.pause = 15 * SECOND;
                self.length = 90 * SECOND;
                self.strikes = vec![
                    (Moment::Clean, Fault::MachineCrash),
                    (Moment::Clean, Fault::PowerLoss),
                    (Moment::Clean, Fault::EngineCrash),
                ];
            }
            // Old engines that live on with slow disks and lively clocks (R4, R5, R6).
            7 => {
                self.faults = vec![Fault::Takeover, Fault::Sleep, Fault::EnginePause, Fault::DiskHang];
                self.clocks_differ = true;
                self.slow_disk = true;
                self.depth = 16;
                self.pause = 4 * SECOND;
                self.longest = 3 * SECOND;
                self.strikes = vec![
                    (Moment::Attach, Fault::CutController),
                    (Moment::Attach, Fault::SatelliteCrash),
                    (Moment::Promise, Fault::SatelliteCrash),
                ];
            }
            // What is stored is damaged or comes from an older copy; addresses are stale (R11, R14).
            _ => {
                self.wide(rng);
                self.faults = vec![
                    Fault::OldCopy,
                    Fault::SatelliteCrash,
                    Fault::Rot,
                    Fault::FlipBits,
                    Fault::MachineCrash,
                ];
                self.misrouted = 5;
                self.pause = 5 * SECOND;
                self.length = 80 * SECOND;
            }
        }
    }

    /// Writes go everywhere, so that hardly any block is written twice.
    fn wide(&mut self, rng: &mut Rng) {
        self.hot = (0..60)
            .map(|_| rng.below(super::world::SIZE / super::disk::BLOCK - 8))
            .collect();
    }
}

impl World {
    /// Something may strike now, or some time after.
    pub(crate) fn moment(&mut self, moment: Moment) {
        if self.healing || self.plan.strikes.iter().all(|(at, _)| *at != moment) {
            return;
        }
        let often = if matches!(moment, Moment::Clean | Moment::Promise) {
            10
        } else {
            40
        };
        if !self.rng.chance(often) {
            return;
        }
        let fitting: Vec<Fault> = self
            .plan
            .strikes
            .iter()
            .filter(|(at, _)| *at == moment)
            .map(|(_, fault)| *fault)
            .collect();
        let fault = fitting[self.rng.index(fitting.len())];
        let delay = self.rng.spread(10, 300 * MS);
        self.after(delay, What::Strike(fault));
    }
}
