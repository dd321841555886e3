//! The catalogue: who has the right to run an engine, who is in sync. It decides one change after another.

use crate::properties::excuse;
use crate::protocol::{Protocol, Step, is_live};
use crate::replica::end_session;
use crate::rules::Rule;
use crate::state::{Asked, Budget, Catalogue, Engine, NOBODY, Phase, REPLICAS, State, each};

pub(crate) fn steps(model: &Protocol, state: &State, steps: &mut Vec<Step>) {
    let scope = &model.scope;
    if usize::from(state.catalogue.epoch) < scope.epochs {
        if scope.fresh {
            steps.push(Step::Attach { inherited: false });
        }
        if scope.inherit && !state.catalogue.restored {
            steps.push(Step::Attach { inherited: true });
        }
    }
    if state.ghost.left(Budget::Restore) > 0 && state.catalogue.config > 1 {
        steps.push(Step::Restore);
    }
}

/// A new engine, with the row as it is.
pub(crate) fn attach(model: &Protocol, state: &mut State, inherited: bool) {
    // An inherited client's engine before is gone; its requests that are still on their way could as well
    // have arrived before.
    if inherited || !model.scope.zombies {
        end_all(state);
    }
    if !inherited {
        state.ghost.client += 1;
    }
    begin_epoch(state, inherited);
}

pub(crate) fn begin_epoch(state: &mut State, inherited: bool) {
    let place = usize::from(state.catalogue.epoch);
    state.catalogue.epoch += 1;
    let row = state.catalogue;
    state.engines[place] = Engine {
        phase: Phase::Starting,
        epoch: row.epoch,
        config: row.config,
        isr: row.isr,
        since: row.since,
        client: state.ghost.client,
        inherited,
        source: NOBODY,
        loss: [crate::state::UNKNOWN; REPLICAS],
        ..Engine::default()
    };
}

/// Every engine dies.
fn end_all(state: &mut State) {
    for engine in 0..state.engines.len() {
        if is_live(&state.engines[engine]) || state.engines[engine].phase == Phase::Failed {
            end(state, engine, Phase::Ended);
        }
    }
}

/// An engine does nothing any more.
pub(crate) fn end(state: &mut State, engine: usize, phase: Phase) {
    let epoch = state.engines[engine].epoch;
    for replica in 0..REPLICAS {
        if state.replicas[replica].session == epoch {
            end_session(&mut state.replicas[replica]);
        }
    }
    state.engines[engine] = Engine {
        phase,
        epoch,
        source: NOBODY,
        ..Engine::default()
    };
}

/// Compares and sets.
pub(crate) fn decide(model: &Protocol, state: &mut State, engine: usize) {
    let of = &state.engines[engine];
    let proposal = of.proposal;
    let row: &Catalogue = &state.catalogue;
    let expected = row.epoch == of.epoch && row.config == of.config;
    let isr = if proposal.add {
        row.isr | proposal.who
    } else {
        row.isr & !proposal.who
    };
    let least = if model.on(Rule::Minimum) {
        model.scope.minimum
    } else {
        1
    };
    let legal = isr.count_ones() >= least.into() && isr != row.isr;
    if (!expected && model.on(Rule::Compare)) || !legal {
        state.engines[engine].proposal.stage = Asked::Refused;
        return;
    }
    let row = &mut state.catalogue;
    row.config += 1;
    row.isr = isr;
    for replica in each(proposal.who) {
        row.since[replica] = if proposal.add { 0 } else { row.config };
    }
    state.engines[engine].proposal.stage = Asked::Made;
    excuse(state);
}

/// The row of the beginning is back; no engine runs.
pub(crate) fn restore(model: &Protocol, state: &mut State) {
    state.ghost.spend(Budget::Restore);
    end_all(state);
    state.catalogue = Catalogue {
        epoch: state.catalogue.epoch,
        config: 1,
        isr: model.all(),
        restored: true,
        ..Catalogue::default()
    };
}
