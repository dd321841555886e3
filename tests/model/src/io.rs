//! Clients' writes, reads and flushes, and when dirty bits go.

use crate::engine::{in_doubt, joining, link_down, settle};
use crate::properties;
use crate::protocol::{Protocol, Step, is_open, open_of};
use crate::rules::Rule;
use crate::state::{Bad, Budget, Engine, Flush, Op, OpKind, Pending, Phase, Stage, State, bit, each};

pub(crate) fn steps(model: &Protocol, state: &State, engine: usize, steps: &mut Vec<Step>) {
    let of = &state.engines[engine];
    if may_write(model, state, of) {
        steps.push(Step::Write { engine });
    }
    for (op, request) in of
        .ops
        .iter()
        .enumerate()
        .filter(|(_, op)| op.kind != OpKind::None)
    {
        for replica in each(request.awaited & !request.accepted & !request.done) {
            if may_accept(model, state, engine, replica) {
                steps.push(Step::Accept { engine, op, replica });
            }
        }
    }
    read_steps(model, state, engine, steps);
    flush_steps(model, state, engine, steps);
    let all_open = open_of(state, engine, of.isr) == of.isr;
    let flushed = of.covered || !model.on(Rule::CleanFlushed);
    let equal = !of.unequal || !model.on(Rule::CleanEqual);
    if of.phase == Phase::Active && of.tracked && flushed && equal && idle(of) && !of.gate && all_open {
        steps.push(Step::Clean { engine });
    }
    for replica in each(of.clean) {
        if is_open(state, engine, replica) && of.tell[replica] == 0 {
            steps.push(Step::CleanAt { engine, replica });
        }
    }
}

/// No write or copy is under way.
pub(crate) fn idle(of: &Engine) -> bool {
    of.ops.iter().all(|op| op.kind == OpKind::None)
}

/// The lock on the block, for a write or a copy.
pub(crate) fn may_lock(model: &Protocol, of: &Engine, kind: OpKind) -> bool {
    let free = of.ops.iter().any(|op| op.kind == OpKind::None);
    let passes = |op: &Op| match (op.kind, kind) {
        (OpKind::None, _) => true,
        (OpKind::Write, OpKind::Write) => op.answered && !model.on(Rule::LockJoining),
        _ => !model.on(Rule::LockCopy),
    };
    free && of.ops.iter().all(passes)
}

fn may_write(model: &Protocol, state: &State, of: &Engine) -> bool {
    let open = match of.phase {
        Phase::Active => of.snapping == 0 || !model.on(Rule::SnapGate),
        Phase::Stopping => !model.on(Rule::HandGate),
        _ => false,
    };
    let free = !of.flush.on || model.scope.overlap || !model.on(Rule::HandGate) || !model.on(Rule::SnapGate);
    open && free && state.ghost.next <= model.scope.writes && may_lock(model, of, OpKind::Write)
}

/// Clients' writes go to members and to who catches up.
fn takes_writes(of: &Engine) -> u8 {
    let mirrors = of.sync.target != crate::state::NOBODY && of.sync.stage >= Stage::Missed;
    of.isr | joining(of) | if mirrors { 1 << of.sync.target } else { 0 }
}

/// Whose answer a client's answer needs (R1, R3).
pub(crate) fn required(model: &Protocol, of: &Engine) -> u8 {
    of.isr | if model.on(Rule::Joint) { joining(of) } else { 0 }
}

/// Puts a request into a free place.
pub(crate) fn begin(of: &mut Engine, op: Op) {
    if let Some(free) = of.ops.iter_mut().find(|op| op.kind == OpKind::None) {
        *free = op;
    }
    of.covered = false;
    of.flush.touched = of.flush.on;
}

pub(crate) fn write(model: &Protocol, state: &mut State, engine: usize) {
    let value = state.ghost.next;
    state.ghost.next += 1;
    let of = &mut state.engines[engine];
    let op = Op {
        kind: OpKind::Write,
        value,
        awaited: takes_writes(of),
        late: of.epoch < state.ghost.top,
        ..Op::default()
    };
    of.tracked = true;
    begin(of, op);
    of.sync.touched |= !of.sync.need && of.sync.stage >= Stage::Missed && model.on(Rule::MapTouched);
}

fn may_accept(model: &Protocol, state: &State, engine: usize, replica: usize) -> bool {
    let at = &state.replicas[replica];
    let open = is_open(state, engine, replica) && state.engines[engine].tell[replica] == 0;
    (open || !model.on(Rule::Fence)) && at.disk.iter().any(|pending| !pending.busy)
}

/// A request arrives, after all that was sent before it.
pub(crate) fn accept(model: &Protocol, state: &mut State, engine: usize, op: usize, replica: usize) {
    if state.engines[engine].clean & bit(replica) != 0 {
        clean_at(model, state, engine, replica);
    }
    if state.engines[engine].sync.clear & bit(replica) != 0 {
        crate::resync::clear_at(state, engine, replica);
    }
    let of = &mut state.engines[engine];
    let request = &mut of.ops[op];
    request.accepted |= bit(replica);
    let copy = request.kind != OpKind::Write;
    let at = &mut state.replicas[replica];
    at.dirty |= model.on(Rule::DirtyFirst) && (!copy || model.on(Rule::DirtyCopies));
    for map in at.maps.iter_mut().filter(|map| map.since != 0) {
        map.missed |= model.on(Rule::MapGrow);
    }
    if let Some(place) = at.disk.iter_mut().find(|pending| !pending.busy) {
        *place = Pending {
            busy: true,
            value: request.value,
            epoch: of.epoch,
            op: u8::from(op > 0),
            orphan: false,
            copy,
        };
    }
}

/// R1 and R2.
fn may_ack(model: &Protocol, state: &State, engine: usize, done: u8) -> bool {
    let of = &state.engines[engine];
    let gate = of.gate && model.on(Rule::ViewStored);
    let required = required(model, of);
    let heard = open_of(state, engine, required) == required || !model.on(Rule::AckOpen);
    let all = done & required == required && heard;
    let enough = all || (done != 0 && !model.on(Rule::AllAck));
    enough && !gate && matches!(of.phase, Phase::Active | Phase::Stopping)
}

/// The client is answered as soon as it may be.
pub(crate) fn answer(model: &Protocol, state: &mut State, engine: usize, op: usize) {
    let Op {
        kind,
        value,
        late,
        done,
        answered,
        ..
    } = state.engines[engine].ops[op];
    if kind != OpKind::Write || answered || !may_ack(model, state, engine, done) {
        return;
    }
    let of = &mut state.engines[engine];
    of.ops[op].answered = true;
    let copies = required(model, of).count_ones();
    if late {
        state.ghost.bad = Bad::TwoEpochs;
    } else if copies < model.scope.minimum.into() {
        state.ghost.bad = Bad::TooFewCopies;
    } else {
        properties::acknowledged(state, engine, value);
    }
}

fn read_steps(model: &Protocol, state: &State, engine: usize, steps: &mut Vec<Step>) {
    let of = &state.engines[engine];
    let locked = idle(of) || !model.on(Rule::LockRead);
    let catching_up = if model.on(Rule::NotRead) || of.sync.target == crate::state::NOBODY {
        0
    } else {
        1 << of.sync.target
    };
    let joining = if model.on(Rule::JointLease) {
        joining(of)
    } else {
        0
    };
    let leases = of.isr | joining;
    let leased = of.leased & leases == leases || !model.on(Rule::Leases);
    if of.phase != Phase::Active || of.unequal || !locked || !leased {
        return;
    }
    for replica in each(of.isr | catching_up) {
        if is_open(state, engine, replica) && of.tell[replica] == 0 {
            steps.push(Step::Read { engine, replica });
        }
    }
}

pub(crate) fn read(state: &mut State, engine: usize, replica: usize) {
    let value = state.replicas[replica].value;
    let verdict = properties::verdict(state, engine, value);
    if verdict != Bad::No {
        state.ghost.bad = verdict;
    } else if state.engines[engine].epoch < state.ghost.top {
        state.ghost.bad = Bad::TwoEpochs;
    } else {
        properties::seen(state, engine, value);
    }
}

fn flush_steps(model: &Protocol, state: &State, engine: usize, steps: &mut Vec<Step>) {
    let of = &state.engines[engine];
    let useful = (of.tracked && !of.covered) || state.ghost.flushed < state.ghost.floor();
    let may = match of.phase {
        Phase::Active => of.snapping == 0 && useful,
        Phase::Stopping => of.snapping == 0 && (idle(of) || !model.on(Rule::HandDrain)),
        _ => false,
    };
    let doubt = in_doubt(of) && model.on(Rule::DoubtFlush);
    let free = idle(of) || model.scope.overlap || !model.on(Rule::HandDrain);
    if may && !of.flush.on && !doubt && free && state.ghost.left(Budget::Flush) > 0 {
        steps.push(Step::Flush { engine });
    }
    if !of.flush.on {
        return;
    }
    let required = required(model, of);
    for replica in each(required & !of.flush.done) {
        if is_open(state, engine, replica) && of.tell[replica] == 0 {
            steps.push(Step::FlushAt { engine, replica });
            if state.ghost.left(Budget::Failure) > 0 {
                steps.push(Step::FlushFails { engine, replica });
            }
        }
    }
}

pub(crate) fn flush(state: &mut State, engine: usize) {
    state.ghost.spend(Budget::Flush);
    let covers = properties::known_written(state, engine);
    state.engines[engine].flush = Flush {
        on: true,
        covers,
        ..Flush::default()
    };
}

pub(crate) fn flush_at(model: &Protocol, state: &mut State, engine: usize, replica: usize) {
    let at = &mut state.replicas[replica];
    at.durable = bit(at.value.into());
    let of = &mut state.engines[engine];
    of.flush.done |= bit(replica);
    if of.flush.since & bit(replica) == 0 {
        of.unflushed &= !bit(replica);
    }
    settle(model, state, engine);
}

/// What the cache held is gone, and the next flush has nothing to complain about.
pub(crate) fn flush_fails(model: &Protocol, state: &mut State, engine: usize, replica: usize) {
    state.ghost.spend(Budget::Failure);
    let at = &mut state.replicas[replica];
    at.value = at.durable.trailing_zeros().try_into().unwrap_or(0);
    at.durable = bit(at.value.into());
    if model.on(Rule::Final) {
        at.failed = true;
        crate::replica::end_session(at);
        let of = &mut state.engines[engine];
        of.changed |= bit(replica);
        of.fault |= bit(replica) & of.isr;
        link_down(model, state, engine, replica);
    }
}

/// A flush is answered as soon as it may be.
pub(crate) fn flush_answer(model: &Protocol, state: &mut State, engine: usize) {
    let of = &state.engines[engine];
    if !of.flush.on || !may_ack(model, state, engine, of.flush.done) {
        return;
    }
    let of = &mut state.engines[engine];
    let Flush { covers, touched, .. } = of.flush;
    of.flush = Flush::default();
    of.covered = !touched;
    if of.phase == Phase::Stopping {
        of.snapping = 4;
    } else if of.snapping == 2 {
        of.snapping = 3;
    }
    state.ghost.flushed = state.ghost.flushed.max(covers);
}

pub(crate) fn clean(state: &mut State, engine: usize) {
    let of = &mut state.engines[engine];
    of.clean |= of.isr;
    of.tracked = false;
}

/// A region with a write in the disk stays dirty. After the last word the lease is given back.
pub(crate) fn clean_at(model: &Protocol, state: &mut State, engine: usize, replica: usize) {
    let at = &mut state.replicas[replica];
    if at.disk.iter().all(|pending| !pending.busy) {
        at.dirty = false;
        for map in at.maps.iter_mut().filter(|_| model.on(Rule::MapOrder)) {
            map.stored = map.missed;
        }
    }
    let of = &mut state.engines[engine];
    of.clean &= !bit(replica);
    if of.phase == Phase::Closing && of.isr & bit(replica) != 0 {
        of.leased &= !bit(replica);
        crate::replica::end_session(at);
    }
}
