//! An engine ends in order and the next one goes on for the same client: live migration. Until then the
//! next one only forwards, which to the members is the same engine.

use crate::catalogue::begin_epoch;
use crate::protocol::{Protocol, Step, open_of};
use crate::rules::Rule;
use crate::state::{Asked, Budget, NOBODY, Phase, State};

pub(crate) fn steps(model: &Protocol, state: &State, engine: usize, steps: &mut Vec<Step>) {
    let of = &state.engines[engine];
    let quiet = of.proposal.stage == Asked::No && of.sync.target == NOBODY && of.snapping == 0;
    if of.phase == Phase::Active && state.ghost.left(Budget::HandOver) > 0 && quiet && !of.flush.on {
        steps.push(Step::HandBegin { engine });
    }
    let flushed = of.snapping == 4 || !model.on(Rule::HandFlush);
    let all = open_of(state, engine, of.isr) == of.isr;
    if of.phase == Phase::Stopping && flushed && !of.flush.on && !of.unequal && all && quiet_but(of) {
        steps.push(Step::HandClean { engine });
    }
    let room = usize::from(state.catalogue.epoch) < model.scope.epochs;
    if of.phase == Phase::Closing && room && state.catalogue.epoch == of.epoch {
        steps.push(Step::HandOver { engine });
    }
}

fn quiet_but(of: &crate::state::Engine) -> bool {
    of.proposal.stage == Asked::No && of.sync.target == NOBODY
}

pub(crate) fn begin(state: &mut State, engine: usize) {
    state.ghost.spend(Budget::HandOver);
    state.engines[engine].phase = Phase::Stopping;
}

pub(crate) fn clean(state: &mut State, engine: usize) {
    let of = &mut state.engines[engine];
    of.phase = Phase::Closing;
    of.clean = of.isr;
}

/// The epoch rises, from the engine that hands over.
pub(crate) fn hand_over(model: &Protocol, state: &mut State, engine: usize) {
    debug_assert!(model.scope.epochs <= state.engines.len());
    crate::catalogue::end(state, engine, Phase::Ended);
    begin_epoch(state, true);
}
