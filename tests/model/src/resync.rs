//! Bringing a replica up to date that missed writes, step by step (R3, R9 to R13).

use crate::catalogue::decide;
use crate::engine::{joining, store_view};
use crate::io::{begin as begin_op, may_lock};
use crate::protocol::{Protocol, Step, is_open, open_of};
use crate::rules::Rule;
use crate::state::{Asked, Engine, NOBODY, Op, OpKind, Phase, Proposal, Resync, Stage, State, bit, each};

pub(crate) fn steps(model: &Protocol, state: &State, engine: usize, steps: &mut Vec<Step>) {
    let of = &state.engines[engine];
    if of.phase != Phase::Active || of.unequal {
        return;
    }
    let sources = open_of(state, engine, of.isr);
    if of.sync.target == NOBODY {
        if of.proposal.stage == Asked::No && sources != 0 {
            for target in each(model.all() & !of.isr).filter(|target| is_open(state, engine, *target)) {
                steps.push(Step::SyncBegin { engine, target });
            }
        }
        return;
    }
    for replica in each(of.sync.clear & sources) {
        steps.push(Step::SyncClearAt { engine, replica });
    }
    let target = usize::from(of.sync.target);
    if is_open(state, engine, target) {
        next_steps(model, state, engine, sources, steps);
    }
}

fn next_steps(model: &Protocol, state: &State, engine: usize, sources: u8, steps: &mut Vec<Step>) {
    let of = &state.engines[engine];
    let copying = of.ops.iter().any(|op| op.kind == OpKind::Resync);
    match of.sync.stage {
        // Asked on the connection the writes went out on before.
        Stage::Missed => each(sources)
            .filter(|source| arrived(of, *source) && of.tell[*source] == 0)
            .for_each(|source| steps.push(Step::SyncMissed { engine, source })),
        Stage::Handing => each(sources)
            .filter(|source| arrived(of, *source) && of.tell[*source] == 0)
            .for_each(|source| steps.push(Step::SyncHand { engine, source })),
        Stage::Copying => {
            if of.sync.need && !copying {
                each(sources)
                    .filter(|source| may_copy(model, state, engine, *source))
                    .for_each(|source| steps.push(Step::SyncCopy { engine, source }));
            }
            if of.sync.copied && !copying {
                steps.push(Step::SyncCheckpoint { engine });
            }
            if !of.sync.need && !copying && of.proposal.stage == Asked::No {
                steps.push(Step::SyncJoint { engine });
            }
        }
        Stage::Joint => {
            if of.sync.before == 0 {
                steps.push(Step::SyncFlush { engine });
            }
        }
        Stage::Flushed => steps.push(Step::SyncJoin { engine }),
        Stage::Joined => {
            let room = state.catalogue.config < model.scope.configs;
            if of.proposal.stage == Asked::No && of.snapping == 0 && room {
                steps.push(Step::SyncPropose { engine });
            }
        }
    }
}

/// A copy excludes writes, but for those its source has: they may wait for somebody who is away, for whom the replica that
/// catches up is to stand in.
fn may_copy(model: &Protocol, state: &State, engine: usize, source: usize) -> bool {
    let of = &state.engines[engine];
    let passes = |op: &Op| {
        let has = op.done & bit(source) != 0 || !model.on(Rule::PassSource);
        op.kind == OpKind::None || (op.kind == OpKind::Write && !op.answered && has)
    };
    let free = of.ops.iter().any(|op| op.kind == OpKind::None);
    may_lock(model, of, OpKind::Resync) || (free && of.ops.iter().all(passes))
}

/// All that was sent to a replica has arrived there.
fn arrived(of: &Engine, replica: usize) -> bool {
    of.ops
        .iter()
        .all(|op| op.awaited & bit(replica) == 0 || (op.accepted | op.done) & bit(replica) != 0)
}

pub(crate) fn begin(model: &Protocol, state: &mut State, engine: usize, target: usize) {
    let dirty = state.replicas[target].dirty;
    state.engines[engine].sync = Resync {
        target: u8::try_from(target).unwrap_or(NOBODY),
        need: dirty && model.on(Rule::OwnMap),
        ..Resync::default()
    };
    // What is not answered yet is sent to it too: its copy may have to pass it.
    let of = &mut state.engines[engine];
    for op in of
        .ops
        .iter_mut()
        .filter(|op| op.kind == OpKind::Write && !op.answered)
    {
        op.awaited |= bit(target);
    }
}

pub(crate) fn missed(model: &Protocol, state: &mut State, engine: usize, source: usize) {
    let sources = open_of(state, engine, state.engines[engine].isr);
    let of = &mut state.engines[engine];
    let target = usize::from(of.sync.target);
    let since = of.since[target];
    let knows = |replica: usize| {
        let map = state.replicas[replica].maps[target];
        map.since != 0 && (map.since == since || !model.on(Rule::MapConfig))
    };
    if knows(source) {
        of.sync.need |= state.replicas[source].maps[target].missed;
    } else if each(sources).any(knows) {
        // The others are asked too.
        return;
    } else {
        of.sync.need |= model.on(Rule::NoMap);
    }
    of.sync.stage = Stage::Handing;
}

/// The replica takes the maps over, and marks new writes from here on (R10).
pub(crate) fn hand(model: &Protocol, state: &mut State, engine: usize, source: usize) {
    let of = &mut state.engines[engine];
    of.sync.stage = Stage::Copying;
    let (target, isr, since) = (usize::from(of.sync.target), of.isr, of.since);
    for absent in (0..state.replicas.len()).filter(|absent| *absent != target && isr & bit(*absent) == 0) {
        let map = state.replicas[source].maps[absent];
        if model.on(Rule::MapHand) && map.since != 0 && map.since == since[absent] {
            let kept = &mut state.replicas[target].maps[absent];
            kept.since = map.since;
            kept.missed |= map.missed;
            kept.stored = kept.missed;
        }
    }
}

pub(crate) fn copy(state: &mut State, engine: usize, source: usize) {
    let value = state.replicas[source].value;
    let of = &mut state.engines[engine];
    let op = Op {
        kind: OpKind::Resync,
        value,
        awaited: 1 << of.sync.target,
        ..Op::default()
    };
    let (covered, touched) = (of.covered, of.flush.touched);
    begin_op(of, op);
    // The members are not touched by it.
    (of.covered, of.flush.touched) = (covered, touched);
}

/// What was copied is durable there: the members' maps let go of it, but for what was written since (R10), and
/// the replica itself is told that the region is clean (R11).
pub(crate) fn checkpoint(model: &Protocol, state: &mut State, engine: usize) {
    let members = open_of(state, engine, state.engines[engine].isr);
    let of = &mut state.engines[engine];
    let at = &mut state.replicas[usize::from(of.sync.target)];
    if model.on(Rule::MapClear) {
        at.durable = bit(at.value.into());
    }
    of.sync.copied = false;
    if !of.sync.touched {
        of.sync.clear = members;
        // A write that a member lacks leaves the region dirty on whoever has it.
        let stalled = of.ops.iter().any(|op| op.kind == OpKind::Write);
        if !stalled || !model.on(Rule::PassDirty) {
            of.clean |= 1 << of.sync.target;
        }
    }
}

pub(crate) fn clear_at(state: &mut State, engine: usize, replica: usize) {
    let of = &mut state.engines[engine];
    of.sync.clear &= !bit(replica);
    let map = &mut state.replicas[replica].maps[usize::from(of.sync.target)];
    map.missed = false;
    map.stored = false;
}

pub(crate) fn joint(state: &mut State, engine: usize) {
    let of = &mut state.engines[engine];
    of.sync.stage = Stage::Joint;
    let target = joining(of);
    for (op, request) in of.ops.iter().enumerate() {
        if request.awaited & target & !request.done != 0 {
            of.sync.before |= 1 << op;
        }
    }
}

pub(crate) fn flush(model: &Protocol, state: &mut State, engine: usize) {
    let of = &mut state.engines[engine];
    of.sync.stage = Stage::Flushed;
    of.sync.copied = false;
    let at = &mut state.replicas[usize::from(of.sync.target)];
    if model.on(Rule::JoinFlush) {
        at.durable = bit(at.value.into());
        of.unflushed &= !(1 << of.sync.target);
    }
}

/// It stores the view with itself in it: should it be added and the engine die, it vouches.
pub(crate) fn join(state: &mut State, engine: usize) {
    let of = &mut state.engines[engine];
    of.sync.stage = Stage::Joined;
    let target = usize::from(of.sync.target);
    let (isr, mut since, config) = (of.isr | bit(target), of.since, of.config);
    since[target] = 0;
    let at = &mut state.replicas[target];
    store_view(at, isr, since, config, true);
    at.doubt = 0;
}

pub(crate) fn propose(model: &Protocol, state: &mut State, engine: usize) {
    let of = &mut state.engines[engine];
    of.proposal = Proposal {
        stage: Asked::Open,
        add: true,
        who: 1 << of.sync.target,
    };
    if model.on(Rule::UnknownWaits) {
        decide(model, state, engine);
    }
}

/// Ends an attempt.
pub(crate) fn give_up(of: &mut Engine) {
    of.sync = Resync::default();
    for op in of.ops.iter_mut().filter(|op| op.kind == OpKind::Resync) {
        *op = Op::default();
    }
}
