//! A snapshot of the volume at one moment: gate, drain, flush, snapshot on all, ready.

use crate::engine::in_doubt;
use crate::io::idle;
use crate::protocol::{Protocol, Step, is_open, open_of};
use crate::rules::Rule;
use crate::state::{Asked, Budget, Phase, State, bit, each};

pub(crate) fn steps(model: &Protocol, state: &State, engine: usize, steps: &mut Vec<Step>) {
    let of = &state.engines[engine];
    if of.phase != Phase::Active {
        return;
    }
    let row = &state.catalogue;
    if of.snapping == 0 {
        let free = of.proposal.stage == Asked::No && row.snapshot == 0;
        if state.ghost.left(Budget::Snapshot) > 0 && free {
            steps.push(Step::SnapBegin { engine });
        }
        return;
    }
    let equal = !of.unequal || !model.on(Rule::SnapEqual);
    let drained = equal && (idle(of) || !model.on(Rule::SnapDrain));
    if of.snapping == 1 && drained && !of.flush.on && !in_doubt(of) && state.ghost.left(Budget::Flush) > 0 {
        steps.push(Step::SnapFlush { engine });
    }
    if of.snapping == 3 {
        for replica in each(of.isr & !of.snapped) {
            if !is_open(state, engine, replica) || of.tell[replica] != 0 {
                continue;
            }
            let durable = state.replicas[replica].durable;
            for value in (0..8).filter(|value| durable & bit((*value).into()) != 0) {
                steps.push(Step::SnapAt {
                    engine,
                    replica,
                    value,
                });
            }
        }
        let complete = of.snapped & of.isr == of.isr || (of.snapped != 0 && !model.on(Rule::SnapAll));
        let current = row.epoch == of.epoch && row.config == of.config;
        if complete && (current || !model.on(Rule::Compare)) {
            steps.push(Step::SnapReady { engine });
        }
    }
    if open_of(state, engine, of.isr) != of.isr {
        steps.push(Step::SnapAbort { engine });
    }
}

pub(crate) fn begin(state: &mut State, engine: usize) {
    state.ghost.spend(Budget::Snapshot);
    state.ghost.snapshot = state.ghost.acked;
    state.engines[engine].snapping = 1;
}

pub(crate) fn flush(model: &Protocol, state: &mut State, engine: usize) {
    if model.on(Rule::SnapFlush) {
        crate::io::flush(state, engine);
        state.engines[engine].snapping = 2;
    } else {
        state.engines[engine].snapping = 3;
    }
}

/// One that an attempt before left behind is not taken for this one's.
pub(crate) fn at(model: &Protocol, state: &mut State, engine: usize, replica: usize, value: u8) {
    let of = &mut state.replicas[replica];
    if of.snapshot == 0 || model.on(Rule::SnapDelete) {
        of.snapshot = value + 1;
    }
    state.engines[engine].snapped |= bit(replica);
}

pub(crate) fn ready(state: &mut State, engine: usize) {
    let of = &mut state.engines[engine];
    state.catalogue.snapshot = of.isr;
    of.snapping = 0;
    of.snapped = 0;
}

/// Deleted wherever it can be; the gate opens.
pub(crate) fn abort(state: &mut State, engine: usize) {
    for replica in 0..state.replicas.len() {
        if is_open(state, engine, replica) {
            state.replicas[replica].snapshot = 0;
        }
    }
    let of = &mut state.engines[engine];
    of.flush = crate::state::Flush::default();
    of.snapping = 0;
    of.snapped = 0;
}
