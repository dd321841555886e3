//! What befalls a replica: its disk ends a write, its connection breaks, its process restarts, power is cut.

use crate::engine::link_down;
use crate::properties::excuse;
use crate::protocol::{Protocol, Step, is_live, is_open};
use crate::rules::Rule;
use crate::state::{Budget, Pending, Replica, State, bit};

pub(crate) fn steps(model: &Protocol, state: &State, steps: &mut Vec<Step>) {
    for (replica, of) in state.replicas.iter().enumerate().take(model.scope.replicas) {
        for (slot, pending) in of.disk.iter().enumerate() {
            if pending.busy {
                steps.push(Step::DiskDone { replica, slot });
            }
        }
        if state.ghost.left(Budget::Power) > 0 {
            let mut left = of.durable;
            for pending in of.disk.iter().filter(|pending| pending.busy) {
                left |= bit(pending.value.into());
            }
            for value in (0..8).filter(|value| left & bit((*value).into()) != 0) {
                steps.push(Step::Power { replica, value });
            }
        }
        if of.failed || (state.ghost.left(Budget::Restart) > 0 && has_older_lease(state, replica)) {
            steps.push(Step::Restart { replica });
        }
        for engine in 0..state.engines.len() {
            if state.ghost.left(Budget::Break) > 0 && is_open(state, engine, replica) {
                steps.push(Step::Break { engine, replica });
            }
        }
    }
}

/// An engine older than the fence may still hold a lease.
pub(crate) fn has_older_lease(state: &State, replica: usize) -> bool {
    let fence = state.replicas[replica].fence;
    let holds = |engine: &crate::state::Engine| {
        is_live(engine) && engine.epoch < fence && engine.leased & bit(replica) != 0
    };
    state.engines.iter().any(holds)
}

/// Requests in the disk go on, but nobody will be told of them.
pub(crate) fn end_session(replica: &mut Replica) {
    replica.session = 0;
    for pending in replica.disk.iter_mut().filter(|pending| pending.busy) {
        pending.orphan = true;
    }
}

pub(crate) fn disk_done(model: &Protocol, state: &mut State, replica: usize, slot: usize) {
    let of = &mut state.replicas[replica];
    let pending = of.disk[slot];
    of.disk[slot] = Pending::default();
    of.value = pending.value;
    of.solid = true;
    of.durable |= bit(pending.value.into());
    if !pending.copy || model.on(Rule::DirtyCopies) {
        of.dirty = true;
    }
    if pending.orphan {
        return;
    }
    let found = state
        .engines
        .iter()
        .position(|engine| is_live(engine) && engine.epoch == pending.epoch);
    let Some(engine) = found else { return };
    let of = &mut state.engines[engine];
    of.ops[usize::from(pending.op)].done |= bit(replica);
    of.unflushed |= bit(replica);
    of.flush.since |= bit(replica) & of.isr;
    if usize::from(of.sync.target) == replica {
        of.sync.before &= !(1 << pending.op);
    }
    if !of.flush.on {
        of.flush.since = 0;
    }
    crate::engine::settle(model, state, engine);
}

pub(crate) fn connection_breaks(model: &Protocol, state: &mut State, engine: usize, replica: usize) {
    state.ghost.spend(Budget::Break);
    end_session(&mut state.replicas[replica]);
    link_down(model, state, engine, replica);
}

/// The volatile state below a replica is another one.
fn lose_cache(model: &Protocol, state: &mut State, replica: usize) {
    let session = state.replicas[replica].session;
    end_session(&mut state.replicas[replica]);
    state.replicas[replica].kept = false;
    state.replicas[replica].solid = false;
    state.replicas[replica].failed = false;
    for engine in 0..state.engines.len() {
        let of = &mut state.engines[engine];
        if !is_live(of) {
            continue;
        }
        of.changed |= bit(replica) & of.reached;
        if of.epoch == session {
            link_down(model, state, engine, replica);
        }
    }
}

pub(crate) fn power_cut(model: &Protocol, state: &mut State, replica: usize, value: u8) {
    state.ghost.spend(Budget::Power);
    lose_cache(model, state, replica);
    let of = &mut state.replicas[replica];
    of.disk = [Pending::default(); 2];
    of.value = value;
    of.durable = bit(value.into());
    for map in of.maps.iter_mut().filter(|map| map.since != 0) {
        map.missed = map.stored || of.dirty;
    }
    excuse(state);
}

pub(crate) fn restart(model: &Protocol, state: &mut State, replica: usize) {
    if state.replicas[replica].failed {
        return lose_cache(model, state, replica);
    }
    state.ghost.spend(Budget::Restart);
    let session = state.replicas[replica].session;
    end_session(&mut state.replicas[replica]);
    state.replicas[replica].blind = true;
    for engine in 0..state.engines.len() {
        if is_live(&state.engines[engine]) && state.engines[engine].epoch == session {
            link_down(model, state, engine, replica);
        }
    }
}
